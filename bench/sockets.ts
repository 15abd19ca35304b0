/**
 * `colo-proxy compare` against QEMU's own colo-compare object and against an ideal relay in C, on the same frames from the same
 * feeder over the same kind of sockets. Needs gcc; QEMU where its column is wanted.
 *
 *     npm run bench:sockets [-- [--seconds N] [--payload N ...] [--connections N ...] [--mode WORD ...] [--system WORD ...] [--quick] [--json]]
 *
 * | mode | the secondary's frames |
 * | --- | --- |
 * | order | the same ones, never ahead |
 * | behind | 1 to 64 frames behind |
 * | segments | the same streams cut at other places, and behind; no row for the relay, which knows no streams |
 *
 * Feeder, comparer and kernel share the machine's cores. "frames" are the primary's frames that came out.
 * `--cpu-prof DIR` writes profiles of `compare`. `--heap-profile` says instead where `compare` takes memory of the heap, and what of it is alive.
 *
 * @module
 */
import { type ChildProcess, execFileSync, spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { callControl } from '../src/control/client.ts';
import { type HeapSites, heapRows, printTable, type Row } from './report.ts';

const SYSTEMS = ['colo-proxy', 'qemu', 'relay'] as const;
type System = (typeof SYSTEMS)[number];
const MODES = ['order', 'behind', 'segments'] as const;

const SCRIPT = fileURLToPath(new URL('../bin/colo-proxy.js', import.meta.url));
const QEMU = 'qemu-system-x86_64';
/** At one figure. */
const ATTEMPTS = 3;
/** Clock ticks of /proc/PID/stat. */
const TICKS_PER_SECOND = 100;

interface Case {
  readonly payload: number;
  readonly connections: number;
  readonly mode: string;
}

interface Result {
  readonly framesPerSecond: number;
  readonly gbitPerSecond: number;
  readonly cpuUsPerFrame: number;
}

/** One heap profile of `compare`, see heap-probe.mjs. */
interface HeapProfile {
  readonly path: string;
  readonly isAlive: boolean;
}

const { values: options } = parseArgs({
  options: {
    seconds: { type: 'string', default: '1.5' },
    payload: { type: 'string', multiple: true, default: ['64', '512', '1400'] },
    connections: { type: 'string', multiple: true, default: ['1', '100', '10000'] },
    mode: { type: 'string', multiple: true, default: [...MODES] },
    system: { type: 'string', multiple: true, default: [...SYSTEMS] },
    json: { type: 'boolean', default: false },
    quick: { type: 'boolean', default: false },
    'cpu-prof': { type: 'string' },
    'heap-profile': { type: 'boolean', default: false },
  },
});

for (const name of ['payload', 'connections'] as const) {
  const wrong = options[name].find((word) => !/^[1-9]\d*$/.test(word));
  if (wrong !== undefined) {
    process.stderr.write(`--${name} is a number of its own each time, not '${wrong}'\n`);
    process.exit(2);
  }
}
for (const [name, known] of [
  ['mode', MODES],
  ['system', SYSTEMS],
] as const) {
  const wrong = options[name].find((word) => !(known as readonly string[]).includes(word));
  if (wrong !== undefined) {
    process.stderr.write(`--${name} is one of ${known.join(', ')}, not '${wrong}'\n`);
    process.exit(2);
  }
}

if (options.quick) {
  Object.assign(options, { seconds: '0.5', payload: ['64', '1400'], connections: ['100'] });
}

function compile(directory: string, name: string): string {
  const path = join(directory, name);
  const source = fileURLToPath(new URL(`./sockets/${name}.c`, import.meta.url));
  execFileSync('gcc', ['-O2', '-o', path, source]);
  return path;
}

/** The command line of a comparer that listens on three sockets of `directory`. */
function commandOf(system: System, directory: string, relay: string): readonly string[] {
  const [p, s, o] = ['primary', 'secondary', 'out'].map((name) => join(directory, name));
  if (system === 'relay') return [relay, p!, s!, o!];
  if (system === 'qemu') {
    const sockets = Object.entries({ p, s, o }).flatMap(([id, path]) => [
      '-chardev',
      `socket,id=${id},path=${path},server=on,wait=off`,
    ]);
    const object =
      'colo-compare,id=c,primary_in=p,secondary_in=s,outdev=o,iothread=io,max_queue_size=1000000,compare_timeout=60000';
    const words = ['-machine', 'none', '-nodefaults', '-display', 'none', ...sockets];
    return [QEMU, ...words, '-object', 'iothread,id=io', '-object', object];
  }
  const profile = options['cpu-prof'];
  const node = [process.execPath, ...(profile ? ['--cpu-prof', `--cpu-prof-dir=${profile}`] : [])];
  const ports = Object.entries({ 'primary-in': p, 'secondary-in': s, out: o }).flatMap(
    ([flag, path]) => [`--${flag}`, `qemu:unix:${path},server`],
  );
  // As QEMU's above: nobody makes a checkpoint here, so on a machine that is busy elsewhere none may be asked for.
  const control = ['--vm', 'none', '--control', join(directory, 'control')];
  control.push('--compare-timeout', '60000');
  return [...node, SCRIPT, 'compare', ...ports, ...control, '--log-level', 'error'];
}

async function until(what: string, condition: () => boolean | Promise<boolean>): Promise<void> {
  const end = performance.now() + 20_000;
  while (!(await condition())) {
    if (performance.now() > end) throw new Error(`not in time: ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
}

/** Has it one side of its stream open, and is it protected? */
async function protect(control: string): Promise<void> {
  const stateOf = async (): Promise<string> => {
    const answer = await callControl(control, { command: 'status' });
    return answer.ok ? (answer.result as { state: string }).state : answer.error;
  };
  await until('syncing', async () => (await stateOf()) === 'syncing');
  for (const step of ['begin', 'commit'] as const) {
    const answer = await callControl(control, { command: 'checkpoint', step });
    if (!answer.ok) throw new Error(answer.error);
  }
}

/** Processor seconds of a process so far. */
function cpuSeconds(pid: number): number {
  const fields = readFileSync(`/proc/${pid}/stat`, 'utf8').split(') ')[1]!.split(' ');
  return (Number(fields[11]) + Number(fields[12])) / TICKS_PER_SECOND;
}

async function stop(child: ChildProcess): Promise<void> {
  if (child.exitCode !== null || child.signalCode !== null) return;
  const gone = once(child, 'exit');
  child.kill('SIGTERM');
  await gone;
}

async function measure(
  system: System,
  given: Case,
  feeder: string,
  relay: string,
  heap?: HeapProfile,
): Promise<Result & { readonly frames: number }> {
  const directory = mkdtempSync(join(tmpdir(), 'colo-bench-'));
  const [program, ...words] = commandOf(system, directory, relay);
  const env = heap === undefined ? process.env : { ...process.env, ...heapEnvironment(heap) };
  const comparer = spawn(program!, words, { env, stdio: ['ignore', 'ignore', 'ignore'] });
  const paths = ['primary', 'secondary', 'out'].map((name) => join(directory, name));
  let player: ChildProcess | undefined;
  try {
    // QEMU's chardevs take connections before the object reads them.
    await until('sockets', () => paths.every((path) => existsSync(path)));
    await new Promise((resolve) => setTimeout(resolve, 500));
    const { payload, connections, mode } = given;
    const words = [payload, connections, mode, options.seconds].map(String);
    player = spawn(feeder, [...paths, ...words], { stdio: ['pipe', 'pipe', 'inherit'] });
    const lines = createInterface({ input: player.stdout! })[Symbol.asyncIterator]();
    await lines.next();
    if (system === 'colo-proxy') await protect(join(directory, 'control'));
    player.stdin!.write('\n');
    if ((await lines.next()).value !== 'open') throw new Error(`${system}: no connections`);
    if (heap !== undefined) await turnHeapProfile(comparer, heap, false);
    const before = cpuSeconds(comparer.pid!);
    player.stdin!.write('\n');
    const line: unknown = (await lines.next()).value;
    const match = /received (\d+) bytes (\d+) of \d+ ns (\d+)/.exec(String(line));
    if (match === null) throw new Error(`${system}: ${String(line)}`);
    const [frames, bytes, ns] = match.slice(1).map(Number) as [number, number, number];
    if (heap !== undefined) await turnHeapProfile(comparer, heap, true);
    return {
      frames,
      framesPerSecond: (frames / ns) * 1e9,
      gbitPerSecond: (bytes * 8) / ns,
      cpuUsPerFrame: ((cpuSeconds(comparer.pid!) - before) / frames) * 1e6,
    };
  } finally {
    if (player !== undefined) await stop(player);
    await stop(comparer);
    rmSync(directory, { recursive: true, force: true });
  }
}

function heapEnvironment({ path, isAlive }: HeapProfile): Record<string, string> {
  const probe = fileURLToPath(new URL('./heap-probe.mjs', import.meta.url));
  return {
    NODE_OPTIONS: `--import ${probe}`,
    COLO_BENCH_HEAP: path,
    COLO_BENCH_HEAP_ALIVE: isAlive ? '1' : '0',
  };
}

/** Begins the profile, or ends it: then the file says so, else nothing does, and a moment has to be enough. */
async function turnHeapProfile(
  comparer: ChildProcess,
  { path }: HeapProfile,
  isEnd: boolean,
): Promise<void> {
  comparer.kill('SIGUSR2');
  if (isEnd) await until('a heap profile', () => existsSync(path));
  await new Promise((resolve) => setTimeout(resolve, 500));
}

/** Where `compare` takes memory in one case. */
async function profileHeap(given: Case, feeder: string, directory: string): Promise<void> {
  const profiles: HeapSites[] = [];
  for (const isAlive of [true, false]) {
    const path = join(directory, isAlive ? 'alive.json' : 'taken.json');
    const { frames } = await measure('colo-proxy', given, feeder, '', { path, isAlive });
    const sites = JSON.parse(readFileSync(path, 'utf8')) as [string, number][];
    profiles.push(sites.map(([site, bytes]) => [site, bytes / frames]));
    rmSync(path);
  }
  const [alive, taken] = profiles as [HeapSites, HeapSites];
  const { mode, payload, connections } = given;
  process.stderr.write(`\n${mode}, ${payload} bytes, ${connections}: bytes of the heap a frame\n`);
  printTable(heapRows(taken, alive, 1));
}

/** Undefined when it fails each time; each failure is told. QEMU's object at times takes nothing of what comes right after its start. */
async function measureOrTell(
  system: System,
  given: Case,
  feeder: string,
  relay: string,
): Promise<Result | undefined> {
  for (let attempt = 1; attempt <= ATTEMPTS; attempt++) {
    try {
      return await measure(system, given, feeder, relay);
    } catch (error) {
      const { mode, payload, connections } = given;
      const name = `${mode}, ${payload}, ${connections}, attempt ${attempt}`;
      process.stderr.write(`${name}: ${String(error)}\n`);
    }
  }
  return undefined;
}

function hasQemu(): boolean {
  try {
    execFileSync(QEMU, ['--version'], { stdio: 'ignore' });
    return true;
  } catch {
    return false;
  }
}

function toRow(results: Partial<Record<System, Result>>): Row {
  const rate = (system: System): number => (results[system]?.framesPerSecond ?? 0) / 1_000;
  const [ours, qemu, relay] = SYSTEMS.map(rate) as [number, number, number];
  return {
    'colo-proxy, 1000 frames/s': ours.toFixed(0),
    'Gbit/s': (results['colo-proxy']?.gbitPerSecond ?? 0).toFixed(2),
    'CPU us/frame': (results['colo-proxy']?.cpuUsPerFrame ?? 0).toFixed(2),
    'QEMU, 1000 frames/s': qemu === 0 ? '-' : qemu.toFixed(0),
    'times QEMU': qemu === 0 ? '-' : (ours / qemu).toFixed(1),
    'relay, 1000 frames/s': relay === 0 ? '-' : relay.toFixed(0),
    'of the relay': relay === 0 ? '-' : `${((100 * ours) / relay).toFixed(0)} %`,
  };
}

async function run(): Promise<void> {
  const directory = mkdtempSync(join(tmpdir(), 'colo-bench-'));
  const feeder = compile(directory, 'feeder');
  const relay = compile(directory, 'relay');
  const systems = SYSTEMS.filter((name) => options.system.includes(name));
  const rows: Record<string, Row> = {};
  const all: (Case & { readonly system: System } & Result)[] = [];
  if (!hasQemu()) process.stderr.write(`${QEMU} is not installed: no figures of QEMU\n`);
  try {
    for (const mode of options.mode) {
      for (const payload of options.payload.map(Number)) {
        for (const connections of options.connections.map(Number)) {
          const given = { payload, connections, mode };
          if (options['heap-profile']) {
            await profileHeap(given, feeder, directory);
            continue;
          }
          const results: Partial<Record<System, Result>> = {};
          for (const system of systems) {
            if (system === 'qemu' && !hasQemu()) continue;
            if (system === 'relay' && mode === 'segments') continue;
            const result = await measureOrTell(system, given, feeder, relay);
            if (result === undefined) continue;
            results[system] = result;
            all.push({ ...given, system, ...result });
          }
          rows[`${mode}, ${payload} bytes, ${connections}`] = toRow(results);
        }
      }
    }
  } finally {
    rmSync(directory, { recursive: true, force: true });
  }
  if (!options['heap-profile']) printTable(rows);
  if (options.json) process.stdout.write(`${JSON.stringify({ node: process.version, all })}\n`);
}

await run();
