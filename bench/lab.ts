/**
 * The lab's topology: a protected pair against the plain bridge with one guest, in one run. Needs root (or user namespaces) and,
 * for its transfers, iperf3 and curl as they are.
 *
 *     npm run bench:lab [-- SECONDS]
 *
 * | figure | how |
 * | --- | --- |
 * | download, upload | `iperf3`, one TCP flow, equal content on both guests (`--repeating-payload`) |
 * | requests | short connections to the guest's HTTP service, eight at a time: connect, 1 KiB answer, close |
 * | ping | ICMP echo round trip, median of 500 |
 * | curl | a download of 50 MB |
 *
 * The guests share two cores with the nodes and the client, so "plain, both" is the fairer limit: the same plain
 * bridge while a second guest, in namespaces of its own, serves the same load at the same time.
 *
 * @module
 */
import { type ChildProcess, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { join } from 'node:path';
import { Bench } from '../src/lab/bench.ts';
import type { ClientCalls, ClientRequest, ClientResult } from '../src/lab/client/main.ts';
import { sleep } from '../src/lab/clock.ts';
import { GuestProcess } from '../src/lab/guest-process.ts';
import { ProcessChannel } from '../src/lab/messages.ts';
import type { Namespace } from '../src/lab/netns.ts';
import { labModule } from '../src/lab/program.ts';
import { enterSandbox, runInSandbox, sandboxDirectory } from '../src/lab/sandbox.ts';
import { ADDRESSES, buildTopology, closeTopology } from '../src/lab/topology.ts';

interface Figures {
  readonly downloadMbit: number;
  readonly uploadMbit: number;
  readonly requestsPerSecond: number;
  readonly pingMs: number;
  readonly curlMbit: number;
}

type AskClient = <N extends keyof ClientCalls>(
  request: { readonly type: N } & ClientCalls[N]['request'],
) => Promise<ClientCalls[N]['result']>;

const IPERF_PORT = 5_201;
const CURL_BYTES = 50_000_000;

async function output(child: ChildProcess): Promise<string> {
  let text = '';
  child.stdout?.on('data', (chunk: Buffer) => {
    text += chunk.toString();
  });
  await once(child, 'close');
  if (child.exitCode !== 0) throw new Error(`${child.spawnargs.join(' ')}: ${text}`);
  return text;
}

async function iperf(client: Namespace, seconds: number, reverse: boolean): Promise<number> {
  const args = ['-c', ADDRESSES[4].guest, '-p', String(IPERF_PORT), '-t', String(seconds), '-J'];
  args.push('--repeating-payload', ...(reverse ? ['-R'] : []));
  const text = await output(client.spawn('iperf3', args, { stdio: ['ignore', 'pipe', 'inherit'] }));
  const { end } = JSON.parse(text) as { end: { sum_received: { bits_per_second: number } } };
  return end.sum_received.bits_per_second / 1e6;
}

async function curl(client: Namespace): Promise<number> {
  const url = `http://${ADDRESSES[4].guest}/bytes/${CURL_BYTES}`;
  const args = ['-sS', '-o', '/dev/null', '-w', '%{size_download} %{time_total}', url];
  const text = await output(client.spawn('curl', args, { stdio: ['ignore', 'pipe', 'inherit'] }));
  const [bytes = 0, seconds = 0] = text.split(' ').map(Number);
  if (bytes !== CURL_BYTES) throw new Error(`curl got ${bytes} bytes`);
  return (bytes * 8) / seconds / 1e6;
}

/**
 * iperf3's servers are started anew for each run: they report times at its end, which differ, and the lab's checkpoints copy
 * only its own guest program.
 */
async function iperfRun(
  client: Namespace,
  guests: readonly Namespace[],
  seconds: number,
  reverse: boolean,
): Promise<number> {
  const servers = guests.map((guest) =>
    guest.spawn('iperf3', ['-s', '-p', String(IPERF_PORT)], { stdio: 'ignore' }),
  );
  await sleep(300);
  try {
    return await iperf(client, seconds, reverse);
  } finally {
    for (const server of servers) server.kill('SIGKILL');
  }
}

async function measure(
  client: Namespace,
  guests: readonly Namespace[],
  ask: AskClient,
  seconds: number,
): Promise<Figures> {
  const pingMs = (await ask({ type: 'ping', family: 4, count: 500, bytes: 56, timeoutMs: 1_000 }))
    .msMedian;
  const short = await ask({
    type: 'short',
    family: 4,
    count: 1_000,
    concurrency: 8,
    bytesEach: 1_024,
  });
  if (short.completed !== 1_000 || short.wrong > 0) throw new Error(JSON.stringify(short));
  const curlMbit = await curl(client);
  const downloadMbit = await iperfRun(client, guests, seconds, true);
  const uploadMbit = await iperfRun(client, guests, seconds, false);
  return { downloadMbit, uploadMbit, requestsPerSecond: 1_000 / short.seconds, pingMs, curlMbit };
}

/** One guest behind a plain bridge, with a client of its own. */
async function plain(seconds: number): Promise<Figures> {
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
    return await measure(topology.client, [topology.pvm], ask, seconds);
  } finally {
    await Promise.all([guest.kill(), channel.kill()]);
    closeTopology(topology);
  }
}

/** Two plain pairs at the same time; the mean of both. */
async function plainBoth(seconds: number): Promise<Figures> {
  const all = await Promise.all([plain(seconds), plain(seconds)]);
  const mean = (key: keyof Figures): number => (all[0]![key] + all[1]![key]) / 2;
  return {
    downloadMbit: mean('downloadMbit'),
    uploadMbit: mean('uploadMbit'),
    requestsPerSecond: mean('requestsPerSecond'),
    pingMs: mean('pingMs'),
    curlMbit: mean('curlMbit'),
  };
}

async function protectedPair(directory: string, seconds: number): Promise<Figures> {
  const bench = await Bench.start({ directory: join(directory, 'bench'), family: 4, seed: 0 });
  const { client, pvm, svm } = bench.topology;
  try {
    const ask: AskClient = (request) => bench.client(request as never) as Promise<never>;
    const figures = await measure(client, [pvm, svm], ask, seconds);
    for (const daemon of [bench.primary, bench.secondary]) {
      const status = await daemon.status();
      console.error(JSON.stringify(status));
    }
    return figures;
  } finally {
    await bench.close();
  }
}

function row(figures: Figures): Record<string, string> {
  return {
    'download Mbit/s': figures.downloadMbit.toFixed(0),
    'upload Mbit/s': figures.uploadMbit.toFixed(0),
    'requests/s': figures.requestsPerSecond.toFixed(0),
    'ping ms': figures.pingMs.toFixed(3),
    'curl Mbit/s': figures.curlMbit.toFixed(0),
  };
}

function ratio(a: Figures, b: Figures): Record<string, string> {
  const percent = (key: keyof Figures): string => `${((100 * a[key]) / b[key]).toFixed(0)} %`;
  return {
    'download Mbit/s': percent('downloadMbit'),
    'upload Mbit/s': percent('uploadMbit'),
    'requests/s': percent('requestsPerSecond'),
    'ping ms': `+${(a.pingMs - b.pingMs).toFixed(3)}`,
    'curl Mbit/s': percent('curlMbit'),
  };
}

async function main(): Promise<number> {
  for (const program of ['iperf3', 'curl']) {
    if (spawnSync(program, ['--version']).status === 0) continue;
    console.error(`Cannot measure without ${program}: apt-get install ${program}`);
    return 71;
  }
  const directory = sandboxDirectory();
  if (directory === undefined) return runInSandbox();
  enterSandbox((exitCode) => process.exit(exitCode));
  const seconds = Number(process.argv[2] ?? 5);
  const bridge = await plain(seconds);
  const both = await plainBoth(seconds);
  const pair = await protectedPair(directory, seconds);
  console.table({
    'plain bridge': row(bridge),
    'plain, both guests': row(both),
    'protected pair': row(pair),
    'pair / plain': ratio(pair, bridge),
    'pair / both': ratio(pair, both),
  });
  return 0;
}

process.exit(await main());
