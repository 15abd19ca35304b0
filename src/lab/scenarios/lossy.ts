/**
 * Cables that lose, double and reorder: everything still arrives, also across a failover.
 *
 * @module
 */
import { type Bench, expect } from '../bench.ts';
import type { TransferRequest } from '../client/transfer.ts';
import { type Facts, MEGABYTE, type Scenario, tenth } from '../scenario.ts';

const BYTES = 10 * MEGABYTE;
const LAST_BYTES = 10 * MEGABYTE;

const TRANSFER = {
  bytes: BYTES,
  openedBy: 'client',
  tellAtBytes: 0,
  bytesPerSecondMax: 0,
} as const satisfies Partial<TransferRequest>;

async function run(bench: Bench): Promise<Facts> {
  const [down, up, short, udp] = await Promise.all([
    bench.transfer({ ...TRANSFER, direction: 'download', seed: 1 }),
    bench.transfer({ ...TRANSFER, direction: 'upload', seed: 2 }),
    bench.client({ type: 'short', count: 30, concurrency: 4, bytesEach: 20_000 }),
    bench.client({ type: 'datagrams', count: 100, bytes: 512, timeoutMs: 300 }),
  ]);
  expect(down.sha256Ok && down.wrongAt < 0, `download: wrong at byte ${down.wrongAt}`);
  expect(up.sha256Ok, 'upload: the guest received something else');
  expect(short.completed === 30 && short.wrong === 0, `short: ${JSON.stringify(short)}`);
  expect(udp.wrong === 0 && udp.answered >= 50, `UDP: ${JSON.stringify(udp)}`);
  const checkpoints = bench.vm.records.length;

  const seed = 3;
  const reached = bench.reached(seed);
  const last = bench.transfer({
    ...TRANSFER,
    bytes: LAST_BYTES,
    direction: 'download',
    seed,
    tellAtBytes: LAST_BYTES / 2,
  });
  await Promise.race([reached, last]);
  await bench.killPrimaryNode();
  await bench.failover();
  const { sha256Ok, wrongAt, pauseMs } = await last;
  expect(sha256Ok && wrongAt < 0, `after failover: wrong at byte ${wrongAt}`);
  const relay = (await bench.relayCounts())!;
  expect(relay.lost > 0 && relay.duplicated > 0 && relay.reordered > 0, 'nothing was impaired');
  return {
    bytes: down.bytes + up.bytes + LAST_BYTES,
    sha256Ok: true,
    lostFrames: relay.lost,
    duplicatedFrames: relay.duplicated,
    reorderedFrames: relay.reordered,
    udpAnswered: udp.answered,
    checkpoints,
    pauseMs: tenth(pauseMs),
  };
}

export const lossy: Scenario = {
  name: 'lossy',
  text: 'cables that lose 1 %, double 1 % and reorder 2 % of all frames, and a failover',
  families: [4, 6],
  impairment: { loss: 0.01, duplication: 0.01, reordering: 0.02 },
  run,
};
