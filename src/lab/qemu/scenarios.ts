/**
 * The scenarios with real virtual machines, in the order in which they are run.
 *
 * @module
 */
import { expect } from '../bench.ts';
import type { TransferRequest } from '../client/transfer.ts';
import { waitedAfter } from '../client/waits.ts';
import { monotonicMs, sleep } from '../clock.ts';
import { type Facts, type Scenario, tenth } from '../scenario.ts';
import { GUEST_MAC } from '../topology.ts';
import { type QemuBench, within } from './qemu-bench.ts';

type QemuScenario = Scenario<QemuBench>;

const MIB = 2 ** 20;
const SOAK_CHECKPOINTS = 200;
const SOAK_PAUSE_MS = 20;
/** A guest that is silent is noticed by the compare timeout of 200 ms; the rest is for a busy machine. */
const NOTICED_MS_MAX = 3_000;
/** The driver gives up a checkpoint after 10 s. */
const SERVED_AGAIN_MS_MAX = 25_000;

const TRANSFER = {
  openedBy: 'client',
  tellAtBytes: 0,
  bytesPerSecondMax: 0,
} as const satisfies Partial<TransferRequest>;

async function checkTransfer(
  bench: QemuBench,
  direction: 'download' | 'upload',
  bytes: number,
  seed: number,
): Promise<number> {
  const result = await bench.transfer({ ...TRANSFER, direction, bytes, seed });
  expect(result.sha256Ok, `${direction}: wrong content at byte ${result.wrongAt}`);
  return result.bytes;
}

async function checkShort(bench: QemuBench, count: number, concurrency: number): Promise<void> {
  const short = await bench.client({ type: 'short', count, concurrency, bytesEach: 5_000 });
  const isRight = short.completed === count && short.wrong === 0;
  expect(isRight, `short connections: ${JSON.stringify(short)}`);
}

async function runSteady(bench: QemuBench): Promise<Facts> {
  const ping = await bench.client({ type: 'ping', count: 30, bytes: 56, timeoutMs: 2_000 });
  expect(ping.answered === 30 && ping.wrong === 0, `ping: ${JSON.stringify(ping)}`);
  await checkShort(bench, 30, 4);
  await checkShort(bench, 50, 50);
  const down = await checkTransfer(bench, 'download', 2 * MIB, 1);
  const up = await checkTransfer(bench, 'upload', 2 * MIB, 2);
  const udp = await bench.client({ type: 'datagrams', count: 30, bytes: 512, timeoutMs: 2_000 });
  expect(udp.answered === 30 && udp.wrong === 0, `UDP: ${JSON.stringify(udp)}`);
  const { divergences, latencyUs } = await bench.primary.status();
  return {
    bytes: down + up,
    sha256Ok: true,
    pingMs: tenth(ping.msMedian),
    divergences,
    holdP99Us: latencyUs.p99,
    checkpoints: await bench.committed(),
  };
}

/** Bytes of TCP payload in a captured frame of the guest to the client. */
function guestPayload(frame: Uint8Array): number {
  const source = Buffer.from(frame.subarray(6, 12)).toString('hex');
  if (source !== GUEST_MAC.replaceAll(':', '')) return 0;
  const view = new DataView(frame.buffer, frame.byteOffset, frame.length);
  if (view.getUint16(12) !== 0x0800 || frame[23] !== 6) return 0;
  const ipBytes = (frame[14]! & 15) * 4;
  return view.getUint16(16) - ipBytes - (frame[14 + ipBytes + 12]! >> 4) * 4;
}

async function runDivergence(bench: QemuBench): Promise<Facts> {
  const before = await bench.committed();
  const { tokens } = await bench.client({ type: 'tokens', count: 3, intervalMs: 400 });
  const stops: number[] = [];
  const releases: number[] = [];
  for (const { token, ms, atMs } of tokens) {
    expect(/^[0-9a-f]{32}$/.test(token), `not what the guest answers: ${JSON.stringify(token)}`);
    const askedMs = atMs - ms;
    const stop = bench.event('pvm', 'STOP', askedMs);
    expect(stop !== undefined && stop.atMs < atMs, 'an answer came without a checkpoint');
    // Not one byte of an answer is on the client's cable before the guests stand still.
    const early = bench.recorder
      .frames()
      .filter((frame) => frame.atMs > askedMs && frame.atMs < stop!.atMs)
      .filter((frame) => guestPayload(frame.bytes) > 0);
    expect(early.length === 0, `${early.length} frames with data passed before the checkpoint`);
    const request = bench.primary.events.find(
      ({ kind, heardMs }) => kind === 'checkpoint-requested' && heardMs >= askedMs,
    );
    expect(request !== undefined, 'no checkpoint was asked for');
    stops.push(stop!.atMs - request!.heardMs);
    releases.push(atMs - request!.heardMs);
  }
  expect(new Set(tokens.map(({ token }) => token)).size === 3, 'the same answer twice');
  await checkTransfer(bench, 'download', MIB / 2, 3);
  return {
    requestToStopMs: tenth(Math.max(...stops)),
    requestToReleaseMs: tenth(Math.max(...releases)),
    divergences: tokens.length,
    checkpoints: (await bench.committed()) - before,
  };
}

async function runFailover(bench: QemuBench): Promise<Facts> {
  await bench.client({ type: 'session', step: 'open', name: 'before', openedBy: 'client' });
  await bench.client({ type: 'session', step: 'talk', name: 'before', bytes: 1_000 });
  await bench.checkpoint();
  const committed = await bench.committed();
  // From here on: connections that the SVM has opened by itself, with numbers of its own.
  await bench.client({ type: 'session', step: 'open', name: 'after', openedBy: 'client' });
  await bench.client({ type: 'session', step: 'talk', name: 'after', bytes: 1_000 });
  const [downSeed, upSeed] = [11, 12];
  const rate = { ...TRANSFER, bytes: 2 * MIB, tellAtBytes: MIB / 2, bytesPerSecondMax: MIB };
  const midway = Promise.all([bench.reached(downSeed), bench.reached(upSeed)]);
  const download = bench.transfer({ ...rate, direction: 'download', seed: downSeed });
  const upload = bench.transfer({ ...rate, direction: 'upload', seed: upSeed });
  const transfers = Promise.all([download, upload]);
  await Promise.race([midway, transfers]);
  const between = (await bench.committed()) - committed;
  const { counters } = await bench.secondary.status();
  const killedMs = await bench.killPrimaryNode();
  const { askedMs, obeyedMs } = await bench.failover();
  const [down, up] = await transfers;
  expect(down.sha256Ok, `download: wrong content at byte ${down.wrongAt}`);
  expect(up.sha256Ok, 'upload: the guest received something else');
  for (const name of ['before', 'after']) {
    await bench.client({ type: 'session', step: 'talk', name, bytes: 20_000 });
    await bench.client({ type: 'session', step: 'close', name });
  }
  await checkShort(bench, 10, 2);
  return {
    bytes: down.bytes + up.bytes,
    sha256Ok: true,
    checkpointsBetween: between,
    translatedFrames: counters['adjusted'] ?? 0,
    takeoverMs: tenth(obeyedMs - killedMs),
    nextByteMs: tenth(waitedAfter(askedMs, down.waits)),
    pauseMs: tenth(Math.max(down.pauseMs, up.pauseMs)),
    checkpoints: committed,
  };
}

async function runSecondaryLoss(bench: QemuBench): Promise<Facts> {
  const seed = 21;
  const reached = bench.reached(seed);
  const rate = { ...TRANSFER, bytes: 2 * MIB, tellAtBytes: MIB / 2, bytesPerSecondMax: MIB };
  const transfer = bench.transfer({ ...rate, direction: 'download', seed });
  await Promise.race([reached, transfer]);
  const killedMs = await bench.killSecondaryNode();
  await bench.primary.reaches('unprotected', NOTICED_MS_MAX);
  const unprotectedMs = monotonicMs() - killedMs;
  const down = await transfer;
  expect(down.sha256Ok, `download: wrong content at byte ${down.wrongAt}`);
  await checkShort(bench, 10, 2);
  const ended = async (): Promise<void> => {
    for (;;) {
      const colo = (await bench.pvm.execute('query-colo-status')) as { mode: string };
      if (colo.mode === 'none') return;
      await sleep(50);
    }
  };
  await within(SERVED_AGAIN_MS_MAX, 'QEMU leaves COLO', ended());
  expect(
    ((await bench.pvm.execute('query-status')) as { running: boolean }).running,
    'the PVM does not run',
  );
  await checkShort(bench, 10, 2);
  return {
    bytes: down.bytes,
    sha256Ok: true,
    unprotectedMs: tenth(unprotectedMs),
    coloEndedMs: tenth(monotonicMs() - killedMs),
    pauseMs: tenth(down.pauseMs),
  };
}

async function runSoak(bench: QemuBench): Promise<Facts> {
  const before = await bench.committed();
  let isOver = false;
  const load = Promise.all([
    (async () => {
      while (!isOver) await checkShort(bench, 5, 2);
    })(),
    (async () => {
      for (let seed = 1; !isOver; seed = (seed % 4) + 1) {
        await checkTransfer(bench, 'download', MIB / 4, seed);
        await checkTransfer(bench, 'upload', MIB / 4, seed);
      }
    })(),
  ]);
  const times: number[] = [];
  const soak = async (): Promise<void> => {
    while (times.length < SOAK_CHECKPOINTS) {
      times.push(await bench.checkpoint());
      await sleep(SOAK_PAUSE_MS);
    }
  };
  try {
    await Promise.race([soak(), load]);
  } finally {
    isOver = true;
  }
  await load;
  // The survivor serves from its own memory, which 200 checkpoints have written.
  await bench.killPrimaryNode();
  await bench.failover();
  for (const seed of [1, 2, 3, 4]) await checkTransfer(bench, 'download', MIB / 4, seed);
  times.sort((a, b) => a - b);
  return {
    checkpoints: SOAK_CHECKPOINTS,
    checkpointsByNode: (await bench.secondary.status()).checkpoints.committed - before,
    checkpointP50Ms: tenth(times[Math.floor(times.length / 2)]!),
    checkpointMaxMs: tenth(times.at(-1)!),
    sha256Ok: true,
  };
}

/** The SVM hangs: the checkpoint that it is wanted for cannot be made, and in the end the PVM serves alone. */
async function runHangingSecondary(bench: QemuBench): Promise<Facts> {
  await bench.client({ type: 'session', step: 'open', name: 'hang', openedBy: 'client' });
  const index = bench.primary.events.length;
  const atMs = monotonicMs();
  bench.svm.signal('SIGSTOP');
  const talk = bench.client({ type: 'session', step: 'talk', name: 'hang', bytes: 1_000 });
  const noticed = await bench.primary.event('divergence', index, NOTICED_MS_MAX);
  await within(SERVED_AGAIN_MS_MAX, 'the client is answered', talk);
  const servedMs = monotonicMs() - atMs;
  const { state } = await bench.primary.status();
  return {
    noticedMs: tenth(noticed.heardMs - atMs),
    servedAgainMs: tenth(servedMs),
    state,
  };
}

/** The PVM hangs: noticed as soon as the SVM answers what the PVM does not; then the operator's fence, and failover. */
async function runHangingPrimary(bench: QemuBench): Promise<Facts> {
  await bench.client({ type: 'session', step: 'open', name: 'hang', openedBy: 'client' });
  const index = bench.primary.events.length;
  const atMs = monotonicMs();
  bench.pvm.signal('SIGSTOP');
  const talk = bench.client({ type: 'session', step: 'talk', name: 'hang', bytes: 1_000 });
  const noticed = await bench.primary.event('divergence', index, NOTICED_MS_MAX);
  await bench.killPrimaryNode();
  const { obeyedMs } = await bench.failover();
  await within(SERVED_AGAIN_MS_MAX, 'the client is answered', talk);
  await checkShort(bench, 10, 2);
  return {
    noticedMs: tenth(noticed.heardMs - atMs),
    takeoverMs: tenth(obeyedMs - noticed.heardMs),
    servedAgainMs: tenth(monotonicMs() - atMs),
  };
}

export const QEMU_SCENARIOS: readonly QemuScenario[] = [
  {
    name: 'qemu-steady',
    text: 'ping, 80 connections, 2 MiB down and up, UDP: everything is compared',
    families: [4, 6],
    run: runSteady,
  },
  {
    name: 'qemu-divergence',
    text: 'answers that differ wait for a checkpoint of QEMU',
    families: [4],
    run: runDivergence,
  },
  {
    name: 'qemu-failover',
    text: 'primary QEMU and proxy killed in a download, an upload and idle connections',
    families: [4, 6],
    run: runFailover,
  },
  {
    name: 'qemu-secondary-loss',
    text: 'secondary QEMU and proxy killed: the service goes on, COLO ends',
    families: [4],
    run: runSecondaryLoss,
  },
  {
    name: 'qemu-soak',
    text: `${SOAK_CHECKPOINTS} checkpoints under load, then the survivor serves`,
    families: [4],
    run: runSoak,
  },
  {
    name: 'qemu-hang-secondary',
    text: 'the secondary QEMU hangs (SIGSTOP)',
    families: [4],
    run: runHangingSecondary,
  },
  {
    name: 'qemu-hang-primary',
    text: 'the primary QEMU hangs (SIGSTOP)',
    families: [4],
    run: runHangingPrimary,
  },
];
