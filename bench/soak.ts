/**
 * Mixed load for a long time: does anything grow? Memory of both nodes, flows, held frames and bytes are sampled;
 * a fault of any client ends the run.
 *
 *     npm run bench:soak [-- [--seconds N] [--json]]
 *
 * All at once and over again: short connections, a download, an upload, UDP, pings, and answers with random
 * bytes (each costs a checkpoint). "early" is the second fifth of the run, "late" the last. Pauses of the garbage collector are those under
 * load, not of the nodes' start: "young", of the young generation alone, and the others.
 *
 * @module
 */
import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { Bench } from '../src/lab/bench.ts';
import { monotonicMs, sleep } from '../src/lab/clock.ts';
import { enterSandbox, runInSandbox, sandboxDirectory } from '../src/lab/sandbox.ts';
import { printTable, type Row } from './report.ts';

const SAMPLE_MS = 2_000;
const MIB = 2 ** 20;
const TRANSFER = { bytes: 30_000_000, openedBy: 'client', tellAtBytes: 0 } as const;

/** One look at a node. */
interface Sample {
  readonly rssMiB: number;
  readonly flows: number;
  readonly heldFrames: number;
  readonly heldBytes: number;
}

/** See gc-probe.mjs. */
interface GcPause {
  readonly ms: number;
  readonly atMs: number;
  readonly isYoung: boolean;
}

interface GcLine {
  readonly role: string;
  readonly heapBytes: number;
  readonly pauses: readonly GcPause[];
}

function check(condition: boolean, what: unknown): void {
  if (!condition) throw new Error(JSON.stringify(what));
}

/** The load; each kind goes on until `isOver`. Rejects at the first fault. */
async function load(bench: Bench, isOver: () => boolean): Promise<void> {
  const repeat = async (work: (round: number) => Promise<void>): Promise<void> => {
    for (let round = 1; !isOver(); round++) await work(round);
  };
  const transfer = (direction: 'download' | 'upload', seed: number) => async (): Promise<void> => {
    const result = await bench.transfer({
      ...TRANSFER,
      direction,
      seed,
      bytesPerSecondMax: 20_000_000,
    });
    check(result.sha256Ok, result);
  };
  await Promise.all([
    repeat(transfer('download', 1)),
    repeat(transfer('upload', 2)),
    repeat(async () => {
      const call = { type: 'short', count: 100, concurrency: 4, bytesEach: 5_000 } as const;
      const short = await bench.client(call);
      check(short.completed === 100 && short.wrong === 0, short);
    }),
    repeat(async () => {
      const call = { type: 'datagrams', count: 100, bytes: 512, timeoutMs: 5_000 } as const;
      const udp = await bench.client(call);
      check(udp.wrong === 0, udp);
      await sleep(100);
    }),
    repeat(async () => {
      const ping = await bench.client({ type: 'ping', count: 20, bytes: 56, timeoutMs: 5_000 });
      check(ping.wrong === 0, ping);
      await sleep(200);
    }),
    repeat(async () => {
      const { tokens } = await bench.client({ type: 'tokens', count: 5, intervalMs: 1_000 });
      check(tokens.length === 5, tokens);
    }),
  ]);
}

async function look(daemon: Bench['primary']): Promise<Sample> {
  const status = await daemon.status();
  const { memoryBytes } = (status as unknown as { process: { memoryBytes: number } }).process;
  return {
    rssMiB: memoryBytes / MIB,
    flows: status.flows,
    heldFrames: status.held.frames,
    heldBytes: status.held.bytes,
  };
}

function median(values: readonly number[]): number {
  return values.toSorted((a, b) => a - b)[Math.floor(values.length / 2)] ?? 0;
}

function compareEnds(samples: readonly Sample[], heap: readonly number[]): Row {
  const fifth = <T>(list: readonly T[], index: number): readonly T[] =>
    list.slice((list.length * index) / 5, (list.length * (index + 1)) / 5);
  const ends = (list: readonly number[], digits: number): string =>
    `${median(fifth(list, 1)).toFixed(digits)} / ${median(fifth(list, 4)).toFixed(digits)}`;
  return {
    'RSS MiB early / late': ends(
      samples.map(({ rssMiB }) => rssMiB),
      0,
    ),
    'heap MiB early / late': ends(heap, 1),
    'flows early / late': ends(
      samples.map(({ flows }) => flows),
      0,
    ),
    'held frames, at rest': samples.at(-1)?.heldFrames ?? 0,
    'held bytes, at rest': samples.at(-1)?.heldBytes ?? 0,
  };
}

function readGc(path: string): readonly GcLine[] {
  if (!existsSync(path)) throw new Error('the nodes wrote nothing about their garbage collector');
  const lines = readFileSync(path, 'utf8').trimEnd().split('\n');
  return lines.map((line) => JSON.parse(line) as GcLine);
}

function describePauses(pauses: readonly GcPause[]): Row {
  const of = (isYoung: boolean): readonly number[] =>
    pauses
      .filter((pause) => pause.isYoung === isYoung)
      .map(({ ms }) => ms)
      .sort((a, b) => a - b);
  const [young, others] = [of(true), of(false)];
  const at = (q: number): string => (young[Math.ceil(young.length * q) - 1] ?? 0).toFixed(1);
  return {
    'GC, young': young.length,
    'p50 / p90 / p99 / max ms': [0.5, 0.9, 0.99, 1].map(at).join(' / '),
    others: others.length,
    'max ms': (others.at(-1) ?? 0).toFixed(1),
  };
}

async function main(): Promise<number> {
  const { values } = parseArgs({
    options: {
      seconds: { type: 'string', default: '600' },
      json: { type: 'boolean', default: false },
    },
  });
  const directory = sandboxDirectory();
  if (directory === undefined) return runInSandbox();
  enterSandbox((exitCode) => process.exit(exitCode));
  const gcPath = join(directory, 'gc.jsonl');
  process.env['COLO_BENCH_GC'] = gcPath;
  const probe = fileURLToPath(new URL('./gc-probe.mjs', import.meta.url));
  process.env['NODE_OPTIONS'] = `--import ${probe}`;
  const bench = await Bench.start({ directory: join(directory, 'bench'), family: 4, seed: 0 });
  const seconds = Number(values.seconds);
  const startMs = monotonicMs();
  const loadedAtMs = Date.now();
  const isOver = (): boolean => monotonicMs() - startMs > seconds * 1_000;
  const nodes = { primary: bench.primary, secondary: bench.secondary };
  const samples: Record<string, Sample[]> = { primary: [], secondary: [] };
  const sample = async (): Promise<void> => {
    for (const [role, daemon] of Object.entries(nodes)) samples[role]!.push(await look(daemon));
  };
  const sampling = (async () => {
    while (!isOver()) {
      await sleep(SAMPLE_MS);
      await sample();
      process.stderr.write(`\r${Math.round((monotonicMs() - startMs) / 1_000)} of ${seconds} s `);
    }
    process.stderr.write('\n');
  })();
  await Promise.all([load(bench, isOver), sampling]);
  await sleep(SAMPLE_MS);
  await sample(); // at rest: nothing may be left
  const { divergences, checkpoints } = await bench.primary.status();
  bench.check();
  await bench.close();
  const gc = readGc(gcPath);
  const rows: Record<string, Row> = {};
  for (const role of Object.keys(nodes)) {
    const lines = gc.filter((line) => line.role === role);
    const pauses = lines.flatMap((line) => line.pauses.filter(({ atMs }) => atMs >= loadedAtMs));
    const heap = lines.map(({ heapBytes }) => heapBytes / MIB);
    rows[role] = {
      ...compareEnds(samples[role]!, heap),
      ...describePauses(pauses),
    };
  }
  const facts = { seconds, divergences, checkpoints: checkpoints.committed };
  if (values.json) process.stdout.write(`${JSON.stringify({ ...facts, nodes: rows })}\n`);
  process.stderr.write(`${divergences} divergences, ${checkpoints.committed} checkpoints\n`);
  printTable(rows);
  return 0;
}

process.exit(await main());
