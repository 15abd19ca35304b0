/**
 * The primary proxy alone dies, in the midst of traffic; guest, bridge and rules stay. What then becomes of the service is what the rules
 * say: packets that nobody takes pass, or are dropped.
 *
 * @module
 */

import { ETHER_TYPE_IPV4, ETHER_TYPE_IPV6 } from '../../wire/ethernet.ts';
import { attachByQueue, detachFromQueue } from '../attach.ts';
import { type Bench, expect } from '../bench.ts';
import { InterfaceTap } from '../capture.ts';
import { monotonicMs, sleep } from '../clock.ts';
import { type Facts, MEGABYTE, type Scenario, tenth } from '../scenario.ts';

const BYTES = 120 * MEGABYTE;
/** Slow enough to last when it is looked whether it goes on. */
const BYTES_PER_SECOND = 40 * MEGABYTE;
/** The client's kernel sends again after at least 200 ms: a pause of this length is a stop. */
const PAUSE_MS_MAX = 2_000;
const STOPPED_MS = 1_500;
const WAIT_MS = 100;

/** Kills the proxy in a download; resolves with when, and how the download ends. */
async function killInDownload(bench: Bench) {
  const seed = 17;
  const reached = bench.reached(seed);
  const transfer = bench.transfer({
    direction: 'download',
    bytes: BYTES,
    openedBy: 'client',
    seed,
    tellAtBytes: BYTES / 4,
    bytesPerSecondMax: BYTES_PER_SECOND,
  });
  await Promise.race([reached, transfer]);
  const killedMs = await bench.killPrimaryProxy();
  return { killedMs, transfer };
}

async function passOn(bench: Bench): Promise<Facts> {
  const { transfer } = await killInDownload(bench);
  const result = await transfer;
  expect(result.sha256Ok && result.wrongAt < 0, `wrong content at byte ${result.wrongAt}`);
  expect(result.pauseMs < PAUSE_MS_MAX, `the download stood still for ${result.pauseMs} ms`);
  const short = await bench.client({ type: 'short', count: 20, concurrency: 4, bytesEach: 5_000 });
  expect(short.completed === 20 && short.wrong === 0, `then: ${JSON.stringify(short)}`);
  return {
    bytes: result.bytes,
    sha256Ok: true,
    pauseMs: tenth(result.pauseMs),
    checkpoints: bench.vm.records.length,
  };
}

async function stop(bench: Bench): Promise<Facts> {
  detachFromQueue(bench.topology.pn);
  attachByQueue(bench.topology.pn, false);
  const { killedMs, transfer } = await killInDownload(bench);
  // What was on its way has arrived, and nothing more comes.
  await sleep(WAIT_MS);
  let frames = 0;
  const tap = new InterfaceTap(bench.topology.switch, 'p-pn', true, (bytes) => {
    if (isIp(bytes)) frames++;
  });
  await sleep(STOPPED_MS);
  tap.drain();
  tap.close();
  expect(frames === 0, `${frames} packets of the guest came after its proxy was dead`);
  const ping = await bench.client({ type: 'ping', count: 1, bytes: 56, timeoutMs: 300 });
  expect(ping.answered === 0, 'the guest answered without its proxy');
  // As an operator would help: the guest is served again, and nothing of its connection is lost.
  detachFromQueue(bench.topology.pn);
  const result = await transfer;
  expect(result.sha256Ok && result.wrongAt < 0, `wrong content at byte ${result.wrongAt}`);
  return {
    bytes: result.bytes,
    sha256Ok: true,
    pauseMs: tenth(result.pauseMs),
    stoppedMs: tenth(monotonicMs() - killedMs),
    checkpoints: bench.vm.records.length,
  };
}

/** The bridge carries ARP by itself. */
function isIp(frame: Uint8Array): boolean {
  const etherType = frame[12]! * 256 + frame[13]!;
  return etherType === ETHER_TYPE_IPV4 || etherType === ETHER_TYPE_IPV6;
}

export const proxyDeadBypass: Scenario = {
  name: 'dead-proxy-bypass',
  text: 'the primary proxy is killed in a download: its guest goes on serving without it',
  families: [4, 6],
  attach: 'nfqueue',
  run: passOn,
};

export const proxyDeadNoBypass: Scenario = {
  name: 'dead-proxy-no-bypass',
  text: 'the same without bypass: the guest is cut off until it is detached',
  families: [4, 6],
  attach: 'nfqueue',
  run: stop,
};
