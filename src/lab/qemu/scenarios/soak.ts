/**
 * Checkpoint after checkpoint under load of every kind; then the survivor has to serve from the memory that they have copied.
 *
 * @module
 */
import { expect } from '../../bench.ts';
import { sleep } from '../../clock.ts';
import { type Facts, type Scenario, tenth } from '../../scenario.ts';
import type { QemuBench } from '../qemu-bench.ts';
import { checkMemory, checkShort, checkTransfer, MIB, quantile } from './checks.ts';

const CHECKPOINTS = 200;
const BETWEEN_MS = 20;
const UDP_TIMEOUT_MS = 1_000;
const UDP_TRIES_MAX = 3;
const SESSION = 'soak';
const SEEDS = [1, 2, 3, 4];
/** The guest has written each of its 2048 pages, 8 each 20 ms that it runs, more than once. */
const WRITTEN_PAGES_MIN = 2 * 2_048;
const WRITTEN_EACH_MS = 250;
const WRITTEN_WITHIN_MS = 20_000;

interface Counts {
  udpAsked: number;
  udpRepeated: number;
}

/**
 * As a resolver would: what is not answered in time is asked again. A datagram that QEMU has read at the moment of a stop never
 * reaches the guest (filter-dump shows it on both machines, and no answer); TCP sends it again by itself.
 */
async function askByUdp(bench: QemuBench, counts: Counts): Promise<void> {
  const question = { type: 'datagrams', count: 1, bytes: 200, timeoutMs: UDP_TIMEOUT_MS } as const;
  counts.udpAsked++;
  for (let tries = 0; tries < UDP_TRIES_MAX; tries++) {
    const { answered, wrong } = await bench.client(question);
    expect(wrong === 0, 'UDP: a wrong answer');
    if (answered === 1) return;
    counts.udpRepeated++;
  }
  expect(false, `UDP: no answer to ${UDP_TRIES_MAX} questions in a row`);
}

/** Each of these goes on until `isOver` says so. The first that fails ends the scenario. */
function load(bench: QemuBench, counts: Counts, isOver: () => boolean): Promise<unknown> {
  const repeat = async (work: (round: number) => Promise<unknown>): Promise<void> => {
    for (let round = 0; !isOver(); round++) await work(round);
  };
  return Promise.all([
    repeat(() => checkShort(bench, 5, 2)),
    repeat(async (round) => {
      const seed = SEEDS[round % SEEDS.length]!;
      await checkTransfer(bench, 'download', MIB / 4, seed);
      await checkTransfer(bench, 'upload', MIB / 4, seed);
    }),
    // One connection that lives through all of it.
    repeat(async () => {
      await bench.client({ type: 'session', step: 'talk', name: SESSION, bytes: 2_000 });
      await sleep(BETWEEN_MS);
    }),
    repeat(() => askByUdp(bench, counts)),
    // Answers that differ ask for checkpoints by themselves, many of them in the midst of one.
    repeat(async () => {
      await bench.client({ type: 'tokens', count: 2, intervalMs: 100 });
      await checkMemory(bench);
    }),
  ]);
}

/** How many pages the guest that answers has written. The guests' answers differ: each asks for a checkpoint. */
async function writtenPages(bench: QemuBench): Promise<number> {
  const { text } = await bench.client({ type: 'text', path: '/written' });
  return Number.parseInt(text, 10);
}

/** Goes on until the guest has written enough for its memory to show anything. Returns how many pages it told. */
async function untilWritten(bench: QemuBench): Promise<number> {
  const byMs = performance.now() + WRITTEN_WITHIN_MS;
  let written = await writtenPages(bench);
  while (written < WRITTEN_PAGES_MIN) {
    const isInTime = performance.now() < byMs;
    expect(isInTime, `the guest has written ${written} pages only: too few to show anything`);
    await sleep(WRITTEN_EACH_MS);
    written = await writtenPages(bench);
  }
  return written;
}

/** Milliseconds from each STOP of the PVM to its RESUME. */
function pauses(bench: QemuBench, fromMs: number): number[] {
  const list: number[] = [];
  let stopMs: number | undefined;
  for (const { machine, name, atMs } of bench.events) {
    if (machine !== 'pvm' || atMs < fromMs) continue;
    if (name === 'STOP') stopMs = atMs;
    if (name === 'RESUME' && stopMs !== undefined) {
      list.push(atMs - stopMs);
      stopMs = undefined;
    }
  }
  return list;
}

async function run(bench: QemuBench): Promise<Facts> {
  const before = await bench.committed();
  await bench.client({ type: 'session', step: 'open', name: SESSION, openedBy: 'client' });
  let isOver = false;
  const counts = { udpAsked: 0, udpRepeated: 0 };
  const work = load(bench, counts, () => isOver);
  const startMs = bench.events.at(-1)?.atMs ?? 0;
  let told = 0;
  const soak = async (): Promise<void> => {
    while ((await bench.committed()) - before < CHECKPOINTS) {
      await bench.checkpoint();
      await sleep(BETWEEN_MS);
    }
    told = await untilWritten(bench);
  };
  try {
    await Promise.race([soak(), work]);
  } finally {
    isOver = true;
  }
  await work;
  const { checkpoints, vm } = await bench.primary.status();
  await bench.killPrimaryNode();
  await bench.failover();
  await bench.client({ type: 'session', step: 'talk', name: SESSION, bytes: 20_000 });
  for (const seed of SEEDS) await checkTransfer(bench, 'download', MIB / 4, seed);
  await checkMemory(bench);
  const written = await writtenPages(bench);
  // What a client was told was committed: the survivor cannot be behind it.
  expect(written >= told, `${told} pages were written, and the survivor knows of ${written}`);
  const stopped = pauses(bench, startMs);
  return {
    checkpoints: checkpoints.committed - before,
    requestedByNode: Number(vm['requestsSent']),
    stoppedP50Ms: tenth(quantile(stopped, 0.5)),
    stoppedP95Ms: tenth(quantile(stopped, 0.95)),
    stoppedMaxMs: tenth(Math.max(...stopped)),
    writtenPages: written,
    ...counts,
    sha256Ok: true,
  };
}

export const soak: Scenario<QemuBench> = {
  name: 'qemu-soak',
  text: `${CHECKPOINTS} checkpoints under load, then the survivor serves`,
  families: [4],
  run,
};
