/**
 * A guest is taken out of protection and protected again while a download runs: no cable is moved, and the client notices nothing.
 * That it is protected is shown by the death of the primary node.
 *
 * @module
 */
import { attachByQueue, detachFromQueue } from '../attach.ts';
import { type Bench, expect } from '../bench.ts';
import { monotonicMs, sleep } from '../clock.ts';
import { type Facts, MEGABYTE, type Scenario, tenth } from '../scenario.ts';

const BYTES = 200 * MEGABYTE;
/** Slow enough to last until the end of it all. */
const BYTES_PER_SECOND = 30 * MEGABYTE;
/** How long the guest is served by the bridge alone. */
const UNATTACHED_MS = 300;

async function run(bench: Bench): Promise<Facts> {
  const { pn } = bench.topology;
  const seed = 19;
  const reached = bench.reached(seed);
  const transfer = bench.transfer({
    direction: 'download',
    bytes: BYTES,
    openedBy: 'client',
    seed,
    tellAtBytes: BYTES / 8,
    bytesPerSecondMax: BYTES_PER_SECOND,
  });
  await Promise.race([reached, transfer]);
  // In this order nothing is dropped: what is held goes out, and then packets pass by themselves.
  await bench.endPrimaryProxy('SIGTERM');
  detachFromQueue(pn);
  await sleep(UNATTACHED_MS);
  const backMs = monotonicMs();
  attachByQueue(pn);
  await bench.startPrimaryProxy();
  const protectedMs = monotonicMs() - backMs;
  await bench.killPrimaryNode();
  await bench.failover();
  const result = await transfer;
  expect(result.sha256Ok && result.wrongAt < 0, `wrong content at byte ${result.wrongAt}`);
  return {
    bytes: result.bytes,
    sha256Ok: true,
    pauseMs: tenth(result.pauseMs),
    protectedAgainMs: tenth(protectedMs),
    checkpoints: bench.vm.records.length,
  };
}

export const liveAttach: Scenario = {
  name: 'live-attach',
  text: 'a guest unprotected and protected again while a download runs',
  families: [4, 6],
  attach: 'nfqueue',
  run,
};
