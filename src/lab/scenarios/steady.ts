/**
 * Everyday traffic of all kinds: everything is compared, nothing waits for a checkpoint.
 *
 * @module
 */
import { type Bench, expect } from '../bench.ts';
import type { TransferRequest } from '../client/transfer.ts';
import { type Facts, MEGABYTE, PATIENT_COMPARE_MS, type Scenario, tenth } from '../scenario.ts';

const TRANSFER_BYTES = 100 * MEGABYTE;
const MIXED_BYTES = 10 * MEGABYTE;
const SHORT_COUNT = 300;
const SHORT_BYTES = 20_000;
const PING_COUNT = 50;
const DATAGRAM_COUNT = 200;

const TRANSFER = {
  bytes: TRANSFER_BYTES,
  openedBy: 'client',
  tellAtBytes: 0,
  bytesPerSecondMax: 0,
} as const satisfies Partial<TransferRequest>;

async function run(bench: Bench): Promise<Facts> {
  const ping = await bench.client({ type: 'ping', count: PING_COUNT, bytes: 56, timeoutMs: 1_000 });
  expect(ping.answered === PING_COUNT && ping.wrong === 0, `ping: ${JSON.stringify(ping)}`);
  // Each direction alone, for its speed; then everything at once.
  const down = await bench.transfer({ ...TRANSFER, direction: 'download', seed: 1 });
  const up = await bench.transfer({ ...TRANSFER, direction: 'upload', seed: 2 });
  const [mixed, short, udp, large] = await Promise.all([
    bench.transfer({ ...TRANSFER, bytes: MIXED_BYTES, direction: 'download', seed: 1 }),
    bench.client({ type: 'short', count: SHORT_COUNT, concurrency: 8, bytesEach: SHORT_BYTES }),
    bench.client({ type: 'datagrams', count: DATAGRAM_COUNT, bytes: 512, timeoutMs: 1_000 }),
    // Larger than the MTU: fragments.
    bench.client({ type: 'ping', count: 20, bytes: 4_000, timeoutMs: 1_000 }),
  ]);
  expect(down.sha256Ok && down.wrongAt < 0, `download: wrong at byte ${down.wrongAt}`);
  expect(mixed.sha256Ok && mixed.wrongAt < 0, `mixed download: wrong at byte ${mixed.wrongAt}`);
  expect(up.sha256Ok, 'upload: the guest received something else');
  expect(
    short.completed === SHORT_COUNT && short.wrong === 0,
    `short connections: ${JSON.stringify(short)}`,
  );
  expect(udp.answered === DATAGRAM_COUNT && udp.wrong === 0, `UDP: ${JSON.stringify(udp)}`);
  expect(large.answered === 20 && large.wrong === 0, `large ping: ${JSON.stringify(large)}`);
  const primary = await bench.primary.status();
  const causes = bench.vm.requests.slice(1).map(({ cause, flow }) => `${cause} (${flow})`);
  expect(causes.length === 0, `checkpoints were asked for: ${causes.join(', ')}`);
  expect(primary.divergences === 0, `${primary.divergences} divergences`);
  return {
    bytes: down.bytes + up.bytes + mixed.bytes,
    sha256Ok: true,
    downloadMbitPerSecond: tenth((down.bytes * 8) / 1e6 / down.seconds),
    uploadMbitPerSecond: tenth((up.bytes * 8) / 1e6 / up.seconds),
    pingMs: tenth(ping.msMedian),
    shortConnections: short.completed,
    holdP99Us: primary.latencyUs.p99,
    comparedFrames: primary.compared,
    releasedFrames: primary.released,
    checkpoints: bench.vm.records.length,
    pauseMs: tenth(Math.max(down.pauseMs, up.pauseMs)),
  };
}

export const steady: Scenario = {
  name: 'steady',
  text: 'downloads, uploads, short connections, ping, UDP: all compared, no checkpoint',
  families: [4, 6],
  compareTimeoutMs: PATIENT_COMPARE_MS,
  run,
};
