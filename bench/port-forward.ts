/**
 * Two packet ports between two network namespaces, against a kernel bridge in their place: throughput of one TCP connection, CPU
 * time of this process for it, and round trips.
 *
 *     node --import ./tools/ts.mjs bench/port-forward.ts [SECONDS]      as root; with iperf3 when that is installed
 *
 * @module
 */
import { execFileSync } from 'node:child_process';
import type { Port } from '../src/env/port.ts';
import { PacketPort } from '../src/port/packet.ts';
import { inNetworkNamespace, Namespaces, whyNoNamespaces } from '../test/support/netns.ts';

const SERVER = '10.77.0.2';
/** For the client of this repository, which hashes what it sends and so is slower than iperf3. */
const UPLOAD_BYTES = 1_000_000_000;

const seconds = Number(process.argv[2] ?? 5);
const reason = whyNoNamespaces();
if (reason !== '') throw new Error(`This bench ${reason}`);

function hasIperf(): boolean {
  try {
    execFileSync('iperf3', ['--version'], { stdio: 'ignore' });
    return true;
  } catch {
    return false;
  }
}

function build(spaces: Namespaces): void {
  spaces.add('client', true);
  spaces.add('proxy', true);
  spaces.add('server', true);
  spaces.join('client', 'c0', 'proxy', 'pc');
  spaces.join('proxy', 'ps', 'server', 's0');
  spaces.ip('client', 'addr add 10.77.0.1/24 dev c0');
  spaces.ip('server', `addr add ${SERVER}/24 dev s0`);
}

function forward(from: Port, to: Port): void {
  const handler: Parameters<Port['receive']>[0] = (buffer, offset, length) => {
    to.send(buffer, offset, length);
  };
  from.start(
    () => {
      while (from.receive(handler) > 0) to.flush();
    },
    (error) => {
      throw error;
    },
  );
}

interface Figures {
  readonly uploadGbit: number;
  readonly downloadGbit: number;
  readonly cpuSecondsPerGb: number;
  readonly roundTripP50Us: number;
  readonly roundTripP99Us: number;
}

/** Gbit/s of one connection. */
async function throughput(spaces: Namespaces, isDownload: boolean): Promise<number> {
  if (!hasIperf()) {
    const words = isDownload ? ['download'] : ['upload'];
    const all = [...words, SERVER, 7_001, UPLOAD_BYTES] as const;
    return (await spaces.endpoint('client', ...all)).gbitPerSecond ?? 0;
  }
  const words = ['-c', SERVER, '-J', '-t', String(seconds), ...(isDownload ? ['-R'] : [])];
  const output = await spaces.command('client', ['iperf3', ...words]);
  const parsed: unknown = JSON.parse(output);
  const sum = (parsed as { end: { sum_received: { bits_per_second: number } } }).end.sum_received;
  return sum.bits_per_second / 1e9;
}

async function measure(spaces: Namespaces, receivedBytes: () => number): Promise<Figures> {
  await spaces.serve('server', SERVER, 7_001);
  if (hasIperf()) spaces.start('server', ['iperf3', '-s', '-B', SERVER]);
  const echo = await spaces.endpoint('client', 'echo', SERVER, 7_001, 5_000);
  const before = process.cpuUsage();
  const bytesBefore = receivedBytes();
  const uploadGbit = await throughput(spaces, false);
  const downloadGbit = await throughput(spaces, true);
  const used = process.cpuUsage(before);
  const bytes = receivedBytes() - bytesBefore;
  return {
    uploadGbit,
    downloadGbit,
    cpuSecondsPerGb: bytes === 0 ? 0 : (used.user + used.system) / 1e6 / (bytes / 1e9),
    roundTripP50Us: echo.p50Us ?? 0,
    roundTripP99Us: echo.p99Us ?? 0,
  };
}

async function withBridge(): Promise<Figures> {
  const spaces = new Namespaces();
  try {
    build(spaces);
    spaces.ip('proxy', 'link add br0 type bridge');
    for (const device of ['pc', 'ps']) spaces.ip('proxy', `link set dev ${device} master br0`);
    spaces.ip('proxy', 'link set dev br0 up');
    return await measure(spaces, () => 0);
  } finally {
    await spaces.close();
  }
}

async function withPorts(): Promise<Figures> {
  const spaces = new Namespaces();
  const ports: Port[] = [];
  try {
    build(spaces);
    const [client, server] = inNetworkNamespace(spaces.path('proxy'), () => [
      new PacketPort('pc'),
      new PacketPort('ps'),
    ]) as [Port, Port];
    ports.push(client, server);
    forward(client, server);
    forward(server, client);
    const figures = await measure(
      spaces,
      () => client.counters.receivedBytes + server.counters.receivedBytes,
    );
    for (const port of ports) {
      if (Object.keys(port.counters.dropped).length > 0)
        console.log(port.name, port.counters.dropped);
    }
    return figures;
  } finally {
    for (const port of ports) await port.close();
    await spaces.close();
  }
}

function row(name: string, figures: Figures): Record<string, string> {
  return {
    path: name,
    'upload Gbit/s': figures.uploadGbit.toFixed(1),
    'download Gbit/s': figures.downloadGbit.toFixed(1),
    'CPU s/GB': figures.cpuSecondsPerGb.toFixed(2),
    'round trip p50 us': String(figures.roundTripP50Us),
    'p99 us': String(figures.roundTripP99Us),
  };
}

console.log(
  `Node ${process.version}; ${hasIperf() ? 'iperf3' : 'tcp-endpoint.mjs'}, one connection`,
);
console.table([row('kernel bridge', await withBridge()), row('packet ports', await withPorts())]);
