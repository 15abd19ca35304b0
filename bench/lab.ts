/**
 * The lab's topology: a protected pair against the plain bridge, with one guest and with two, in one run. Needs root (or
 * user namespaces), iperf3 and wrk (`npm run bench` installs them where it may).
 *
 *     npm run bench:lab [-- [--seconds N] [--attach nfqueue] [--qemu] [--insecure] [--json] [--only download,upload,...]]
 *
 * | figure | how |
 * | --- | --- |
 * | download, upload | `iperf3`, one TCP flow or eight, equal content on both guests (`--repeating-payload`) |
 * | requests, p50, p99 | `wrk`, eight connections kept alive, answers of 1 KiB |
 * | connections | short connections to the same service, eight at a time: connect, 1 KiB answer, close |
 * | ping | ICMP echo round trip, median of 1,000 after 4,000 |
 *
 * The guests share the machine's cores with the nodes and the client, so "plain, both" is the fair limit: the same plain
 * bridge while a second guest, in namespaces of its own, serves the same load at the same time. Every figure of the pair
 * is taken on a pair of its own: the lab's checkpoints copy its own guest program only, so one asked for at the end of an
 * iperf3 run (its closing report differs) would spoil the next.
 *
 * `--attach nfqueue` measures the pair once more with PN's tap in the bridge and its packets in the kernel's queues.
 * `--qemu` measures the same guests protected by QEMU's own objects too, see `lab-qemu.ts`.
 *
 * @module
 */
import { type ChildProcess, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import type { LabAttach } from '../src/cli/experiments.ts';
import { Bench } from '../src/lab/bench.ts';
import type { ClientCalls, ClientRequest, ClientResult } from '../src/lab/client/main.ts';
import { sleep } from '../src/lab/clock.ts';
import { GuestProcess } from '../src/lab/guest-process.ts';
import { ProcessChannel } from '../src/lab/messages.ts';
import type { Namespace } from '../src/lab/netns.ts';
import { labModule } from '../src/lab/program.ts';
import { QEMU } from '../src/lab/qemu/image.ts';
import { enterSandbox, runInSandbox, sandboxDirectory } from '../src/lab/sandbox.ts';
import { ADDRESSES, buildTopology, closeTopology } from '../src/lab/topology.ts';
import { QemuPair } from './lab-qemu.ts';
import { printTable, type Row } from './report.ts';

type AskClient = <N extends keyof ClientCalls>(
  request: { readonly type: N } & ClientCalls[N]['request'],
) => Promise<ClientCalls[N]['result']>;

/** Where one measurement happens. */
interface Place {
  readonly client: Namespace;
  readonly guests: readonly Namespace[];
  readonly ask: AskClient;
}

/** Named figures; higher is better but for those in ms. */
type Figures = Record<string, number>;

/** What QEMU's objects did, by the names of figures. */
interface QemuResult {
  readonly figures: Figures;
  /** Checkpoints that were asked for while a figure was taken. */
  readonly requests: Figures;
  /** Why there is no figure. */
  readonly failures: Record<string, string>;
}

type Measurement = (place: Place, seconds: number) => Promise<Figures>;

const IPERF_PORT = 5_201;
const PING_WARM_UP = 4_000;
const PINGS = 1_000;
const CONNECTIONS_WARM_UP = 1_000;
const CONNECTIONS = 2_000;
const CONCURRENCY = 8;
const ANSWER_BYTES = 1_024;
/** What a program may take beyond its own measuring, ms: behind a pair that diverges each of its steps can wait for seconds. */
const PROGRAM_MS_MAX = 45_000;
const CELL_LENGTH_MAX = 60;
/** Programs and the Debian packages that have them. */
const PROGRAMS = { iperf3: 'iperf3', wrk: 'wrk', [QEMU]: 'qemu-system-x86' };

async function output(child: ChildProcess): Promise<string> {
  let text = '';
  child.stdout?.on('data', (chunk: Buffer) => {
    text += chunk.toString();
  });
  await once(child, 'close');
  if (child.exitCode === 0) return text;
  const [program = ''] = child.spawnargs;
  if (child.signalCode !== null) throw new Error(`${program} did not end in time`);
  throw new Error(`${program}: ${/"error":\s*"(.*)"/.exec(text)?.[1] ?? text}`);
}

/** Runs a program that measures for `seconds`. @throws Error when it fails or does not end */
function outputOf(
  namespace: Namespace,
  seconds: number,
  program: string,
  args: readonly string[],
): Promise<string> {
  const stdio = ['ignore', 'pipe', 'inherit'] as const;
  const timeout = seconds * 1_000 + PROGRAM_MS_MAX;
  return output(
    namespace.spawn(program, args, { stdio: [...stdio], timeout, killSignal: 'SIGKILL' }),
  );
}

/** The first second, in which TCP and the nodes come to speed, is left out (`-O 1`). */
function iperf(name: string, flows: number, isReverse: boolean): Measurement {
  return async ({ client, guests }, seconds) => {
    const servers = guests.map((guest) =>
      guest.spawn('iperf3', ['-s', '-p', String(IPERF_PORT)], { stdio: 'ignore' }),
    );
    await sleep(300);
    try {
      const args = ['-c', ADDRESSES[4].guest, '-p', String(IPERF_PORT), '-t', String(seconds)];
      args.push('-O', '1', '-J', '-P', String(flows), '--repeating-payload');
      if (isReverse) args.push('-R');
      const text = await outputOf(client, seconds, 'iperf3', args);
      const { end } = JSON.parse(text) as { end: { sum_received: { bits_per_second: number } } };
      return { [name]: end.sum_received.bits_per_second / 1e6 };
    } finally {
      for (const server of servers) server.kill('SIGKILL');
    }
  };
}

async function ping({ ask }: Place): Promise<Figures> {
  const call = { type: 'ping', family: 4, bytes: 56, timeoutMs: 1_000 } as const;
  await ask({ ...call, count: PING_WARM_UP });
  return { 'ping ms': (await ask({ ...call, count: PINGS })).msMedian };
}

async function connections({ ask }: Place): Promise<Figures> {
  const call = {
    type: 'short',
    family: 4,
    concurrency: CONCURRENCY,
    bytesEach: ANSWER_BYTES,
  } as const;
  await ask({ ...call, count: CONNECTIONS_WARM_UP });
  const short = await ask({ ...call, count: CONNECTIONS });
  if (short.completed !== CONNECTIONS || short.wrong > 0) throw new Error(JSON.stringify(short));
  return { 'connections/s': CONNECTIONS / short.seconds };
}

/** wrk's own report: it prints durations as `123.00us`, `1.23ms`, `1.00s`. */
function wrkFigure(text: string, pattern: RegExp): number {
  const [, number = '', unit = ''] = pattern.exec(text) ?? [];
  const scale = { us: 1e-3, ms: 1, s: 1e3, '': 1 }[unit];
  if (number === '' || scale === undefined) throw new Error(`wrk printed: ${text}`);
  return Number(number) * scale;
}

async function requests({ client }: Place, seconds: number): Promise<Figures> {
  const url = `http://${ADDRESSES[4].guest}/bytes/${ANSWER_BYTES}`;
  const args = ['-t', '1', '-c', String(CONCURRENCY), '--latency'];
  const run = (duration: number): Promise<string> =>
    outputOf(client, duration, 'wrk', [...args, '-d', String(duration), url]);
  await run(2);
  const text = await run(seconds);
  const error = /.*(?:Non-2xx|Socket errors).*|\b0 requests in .*/.exec(text)?.[0];
  if (error !== undefined) throw new Error(`wrk: ${error.trim()}`);
  return {
    'requests/s': wrkFigure(text, /Requests\/sec:\s+([\d.]+)()/),
    'request p50 ms': wrkFigure(text, /50%\s+([\d.]+)(us|ms|s)/),
    'request p99 ms': wrkFigure(text, /99%\s+([\d.]+)(us|ms|s)/),
  };
}

/** By what `--only` calls them. */
const MEASUREMENTS: Readonly<Record<string, Measurement>> = {
  ping,
  connections,
  requests,
  download: iperf('download Mbit/s', 1, true),
  upload: iperf('upload Mbit/s', 1, false),
  'download-x8': iperf('download x8 Mbit/s', 8, true),
  'upload-x8': iperf('upload x8 Mbit/s', 8, false),
};

/** One guest behind a plain bridge, with a client of its own. */
async function plain(measure: Measurement, seconds: number): Promise<Figures> {
  const topology = buildTopology({ impaired: false, plain: true });
  const guest = new GuestProcess(topology.pvm);
  const channel = new ProcessChannel<ClientRequest, ClientResult>(
    topology.client.fork(labModule('client/main'), [], {
      stdio: ['ignore', 'inherit', 'inherit', 'ipc'],
      detached: true,
    }),
    'client',
  );
  await Promise.all([guest.ready, channel.ready]);
  const ask: AskClient = (request) =>
    channel.ask(request as unknown as ClientRequest, 120_000) as Promise<never>;
  try {
    return await measure({ client: topology.client, guests: [topology.pvm], ask }, seconds);
  } finally {
    await Promise.all([guest.kill(), channel.kill()]);
    closeTopology(topology);
  }
}

/** Two plain pairs at the same time; the mean of both. */
async function plainBoth(measure: Measurement, seconds: number): Promise<Figures> {
  const [a, b] = await Promise.all([plain(measure, seconds), plain(measure, seconds)]);
  return Object.fromEntries(
    Object.entries(a).map(([name, value]) => [name, (value + b[name]!) / 2]),
  );
}

async function protectedPair(
  measure: Measurement,
  seconds: number,
  directory: string,
  insecureLink: boolean,
  attach: LabAttach,
): Promise<Figures> {
  const options = {
    directory,
    family: 4,
    seed: 0,
    insecureLink,
    attach,
  } as const;
  const bench = await Bench.start(options);
  const { client, pvm, svm } = bench.topology;
  try {
    const ask: AskClient = (request) => bench.client(request as never) as Promise<never>;
    return await measure({ client, guests: [pvm, svm], ask }, seconds);
  } finally {
    await bench.close();
  }
}

/**
 * The same guests behind QEMU's own objects. What these cannot carry to its end is told in the place of its figures.
 *
 * @param names of the figures that `measure` takes
 */
async function byQemu(
  measure: Measurement,
  seconds: number,
  directory: string,
  names: readonly string[],
  result: QemuResult,
): Promise<void> {
  let pair: QemuPair | undefined;
  try {
    pair = await QemuPair.start(directory);
    const { clients, topology } = pair;
    const { client, pvm, svm } = topology;
    const ask: AskClient = (request) => clients.ask(request as never) as Promise<never>;
    const figures = await measure({ client, guests: [pvm, svm], ask }, seconds);
    Object.assign(result.figures, figures);
  } catch (error) {
    const text = error instanceof Error ? error.message : String(error);
    console.error(`behind QEMU's objects: ${text}`);
    const cell = text.replaceAll(/\s+/g, ' ').slice(0, CELL_LENGTH_MAX);
    for (const name of names) result.failures[name] = cell;
  } finally {
    for (const name of names) result.requests[name] = pair?.requests ?? 0;
    await pair?.close();
  }
}

/** How many times the throughput of QEMU's objects; of waits, which part of theirs. */
function timesQemu(pair: Figures, { figures }: QemuResult): Row {
  return Object.fromEntries(
    Object.entries(pair).map(([name, value]) => {
      const base = figures[name] ?? 0;
      return [name, base === 0 ? '-' : (value / base).toFixed(name.endsWith('ms') ? 2 : 1)];
    }),
  );
}

function ratio(pair: Figures, base: Figures): Row {
  return Object.fromEntries(
    Object.entries(pair).map(([name, value]) => [
      name,
      name.startsWith('ping')
        ? `+${(value - base[name]!).toFixed(3)}`
        : `${((100 * value) / base[name]!).toFixed(0)} %`,
    ]),
  );
}

function row(figures: Figures): Row {
  return Object.fromEntries(
    Object.entries(figures).map(([name, value]) => [
      name,
      value.toFixed(name.endsWith('ms') ? 3 : 0),
    ]),
  );
}

async function main(): Promise<number> {
  const { values } = parseArgs({
    options: {
      seconds: { type: 'string', default: '5' },
      attach: { type: 'string', default: 'packet' },
      qemu: { type: 'boolean', default: false },
      insecure: { type: 'boolean', default: false },
      json: { type: 'boolean', default: false },
      only: { type: 'string', default: Object.keys(MEASUREMENTS).join(',') },
    },
  });
  const chosen = values.only.split(',').map((name): [string, Measurement] => {
    const measure = MEASUREMENTS[name];
    if (measure === undefined) throw new Error(`--only ${name}: there is no such figure`);
    return [name, measure];
  });
  for (const [program, packageName] of Object.entries(PROGRAMS)) {
    if (program === QEMU && !values.qemu) continue;
    if (spawnSync(program, ['-version']).error === undefined) continue;
    console.error(`Cannot measure without ${program}: apt-get install ${packageName}`);
    return 71;
  }
  if (values.attach !== 'packet' && values.attach !== 'nfqueue') {
    console.error('--attach is packet or nfqueue');
    return 64;
  }
  const directory = sandboxDirectory();
  if (directory === undefined) return runInSandbox();
  enterSandbox((exitCode) => process.exit(exitCode));
  const seconds = Number(values.seconds);
  const bridge: Figures = {};
  const both: Figures = {};
  const pair: Figures = {};
  const queued: Figures = {};
  const qemu: QemuResult = { figures: {}, requests: {}, failures: {} };
  for (const [name, measure] of chosen) {
    console.error(`${name} ...`);
    // One after the other, so that a change of the machine's speed touches all of them.
    Object.assign(bridge, await plain(measure, seconds));
    Object.assign(both, await plainBoth(measure, seconds));
    const place = join(directory, `pair-${name}`);
    const figures = await protectedPair(measure, seconds, place, values.insecure, 'packet');
    Object.assign(pair, figures);
    if (values.qemu) {
      const names = Object.keys(figures);
      await byQemu(measure, seconds, join(directory, `qemu-${name}`), names, qemu);
    }
    if (values.attach === 'packet') continue;
    const queuedPlace = join(directory, `queued-${name}`);
    Object.assign(
      queued,
      await protectedPair(measure, seconds, queuedPlace, values.insecure, values.attach),
    );
  }
  const more = {
    ...(values.qemu ? { qemu } : {}),
    ...(values.attach === 'packet' ? {} : { queued }),
  };
  if (values.json) process.stdout.write(`${JSON.stringify({ bridge, both, pair, ...more })}\n`);
  printTable({
    'plain bridge': row(bridge),
    'plain, both guests': row(both),
    'protected pair': row(pair),
    ...(values.attach === 'packet' ? {} : { 'the pair, by queues': row(queued) }),
    ...(values.qemu ? { "QEMU's own proxy": { ...row(qemu.figures), ...qemu.failures } } : {}),
    'pair / plain': ratio(pair, bridge),
    'pair / both': ratio(pair, both),
    ...(values.attach === 'packet' ? {} : { 'by queues / pair': ratio(queued, pair) }),
    ...(values.qemu
      ? {
          'pair / QEMU, times': timesQemu(pair, qemu),
          "QEMU's checkpoint requests": qemu.requests,
        }
      : {}),
  });
  return 0;
}

process.exit(await main());
