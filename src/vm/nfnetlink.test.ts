import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, rmSync, statSync } from 'node:fs';
import { connect } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { checkpointRequest, RecordingNode } from '../../test/support/recording-node.ts';
import { SILENT_LOG } from '../../test/support/silent-log.ts';
import { ERRNO, NLM_F_REQUEST } from '../codec/netlink.ts';
import { encodeColoRequest, encodeLegacyRequest } from '../codec/nfnetlink-colo.ts';
import type { Role } from '../env/messages.ts';
import { VM_CLIENTS_MAX } from '../limits.ts';
import { NfnetlinkDriver } from './nfnetlink.ts';
import {
  type ColoNotification,
  NfnetlinkClient,
  type NfnetlinkClientOptions,
} from './nfnetlink-client.ts';
import { type NfnetlinkSpec, parseNfnetlinkSpec } from './spec.ts';

let directory = '';
let cleanUps: (() => unknown)[] = [];
let lastPort = 0;

beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), 'colo-nfnetlink-'));
});

afterEach(async () => {
  for (const cleanUp of cleanUps.reverse()) await cleanUp();
  cleanUps = [];
  rmSync(directory, { recursive: true });
});

function specOf(kind: 'netlink' | 'unix'): NfnetlinkSpec {
  // Above every process id, so that no automatically bound socket has it.
  if (kind === 'netlink') return { kind, portId: 0x7100_0000 + process.pid * 16 + lastPort++ };
  return { kind, path: join(directory, 'nfnetlink.sock') };
}

async function startDriver(spec: NfnetlinkSpec, role: Role = 'primary') {
  const node = new RecordingNode();
  const driver = new NfnetlinkDriver({ spec, role, log: SILENT_LOG });
  await driver.start(node);
  cleanUps.push(() => driver.close());
  return { node, driver };
}

async function openClient(spec: NfnetlinkSpec, options: Partial<NfnetlinkClientOptions> = {}) {
  const notifications: ColoNotification[] = [];
  let wake = () => {};
  const client = new NfnetlinkClient({
    spec,
    onNotification: (notification) => {
      notifications.push(notification);
      wake();
    },
    ...options,
  });
  await client.open();
  cleanUps.push(() => client.close());
  const notified = async (count: number) => {
    while (notifications.length < count) await new Promise<void>((resolve) => (wake = resolve));
    return notifications;
  };
  return { client, notifications, notified };
}

/** A process of its own with a netlink socket: sends what `hex` says to `portId`, prints what it gets, never ends. */
async function startProcess(
  portId: number,
  hex: string,
): Promise<{ child: ChildProcess; first: string }> {
  const script = `
    const c = require('koffi').load(null);
    const socket = c.func('int socket(int, int, int)');
    const sendto = c.func('intptr_t sendto(int, const void *, size_t, int, const void *, uint32_t)');
    const recv = c.func('intptr_t recv(int, void *, size_t, int)');
    const to = new Uint8Array(12);
    new Uint16Array(to.buffer, 0, 1)[0] = 16;
    new Uint32Array(to.buffer, 4, 1)[0] = Number(process.argv[1]);
    const fd = socket(16, 3, 2);
    const bytes = Buffer.from(process.argv[2], 'hex');
    sendto(fd, bytes, bytes.length, 0, to, 12);
    const buffer = new Uint8Array(4096);
    const next = () => recv.async(fd, buffer, 4096, 0, (_, n) => {
      console.log(Buffer.from(buffer.subarray(0, n)).toString('hex'));
      next();
    });
    next();
    setInterval(() => {}, 1000);`;
  const child = spawn(process.execPath, ['-e', script, `${portId}`, hex], {
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  cleanUps.push(() => child.kill('SIGKILL'));
  const [chunk] = await once(child.stdout, 'data');
  return { child, first: String(chunk).trim() };
}

const hexOf = (bytes: Uint8Array) => Buffer.from(bytes).toString('hex');

describe.each(['netlink', 'unix'] as const)('NfnetlinkDriver on %s', (kind) => {
  test('serves the whole life of a primary node', async () => {
    const spec = specOf(kind);
    const { node, driver } = await startDriver(spec);
    const { client, notified } = await openClient(spec);
    expect(await client.request('checkpoint', 'primary')).toBe(ERRNO.ENOENT);
    expect(await client.request('init', 'secondary')).toBe(ERRNO.EINVAL);
    expect(await client.request('init', 'primary')).toBe(0);
    expect(await client.request('init', 'primary')).toBe(ERRNO.EEXIST);
    driver.requestCheckpoint();
    expect(await notified(1)).toEqual([{ abi: 'nfnetlink', different: true }]);
    expect(await client.request('checkpoint', 'primary')).toBe(0);
    expect(await client.request('failover', 'primary')).toBe(ERRNO.EINVAL);
    expect(await client.request('reset', 'primary')).toBe(0);
    client.close();
    await node.until(() => node.commands.length === 3);
    expect(node.commands[0]).toBe('commit');
    expect(node.commands[1]).toMatch(/^reset: PROXY_RESET of /);
    expect(node.commands[2]).toMatch(/^reset: .* is gone: its (socket|connection) is closed$/);
    expect(driver.status()['node']).toBe('no node');
  });

  test('serves the older ABI beside it', async () => {
    const spec = specOf(kind);
    const { driver } = await startDriver(spec);
    const { client, notified } = await openClient(spec, { abi: 'legacy' });
    expect(await client.request('init', 'primary')).toBe(0);
    driver.requestCheckpoint();
    expect(await notified(1)).toEqual([{ abi: 'legacy', different: true }]);
    expect(await client.request('checkpoint', 'primary')).toBe(0);
    expect(await client.request('query', 'primary')).toBe(0);
    expect((await notified(2))[1]).toEqual({ abi: 'legacy', different: false });
  });

  test('handles several messages of one datagram or chunk, in order', async () => {
    const spec = specOf(kind);
    const { node } = await startDriver(spec);
    const { client } = await openClient(spec);
    const fields = { flags: NLM_F_REQUEST, seq: 7, portId: client.portId };
    client.send(
      Uint8Array.from([
        ...encodeColoRequest('init', 1, fields),
        ...encodeColoRequest('checkpoint', 1, fields),
        ...encodeLegacyRequest('checkpoint', fields),
        ...encodeColoRequest('reset', 1, fields),
      ]),
    );
    await node.until(() => node.commands.length === 3);
    expect(node.commands.slice(0, 2)).toEqual(['commit', 'commit']);
  });

  test('takes any bytes from its clients and goes on', async () => {
    const spec = specOf(kind);
    const { driver } = await startDriver(spec);
    for (let seed = 1; seed < 40; seed++) {
      const { client } = await openClient(spec);
      const bytes = Uint8Array.from(
        { length: seed * 7 },
        (_, i) => (seed * 31 + i * i * 17) & 0xff,
      );
      client.send(bytes);
      client.close();
    }
    const { client } = await openClient(spec);
    expect(await client.request('init', 'primary')).toBe(0);
    expect(driver.status()['node']).toMatch(/mode 1/);
  });
});

describe('NfnetlinkDriver on netlink', () => {
  test('serves another process, and ends the node when that is killed', async () => {
    const spec = specOf('netlink');
    if (spec.kind !== 'netlink') return;
    const { node, driver } = await startDriver(spec);
    const fields = { flags: NLM_F_REQUEST | 4, seq: 5, portId: 0 };
    const { child, first } = await startProcess(
      spec.portId,
      hexOf(encodeColoRequest('init', 1, fields)),
    );
    const port = Buffer.from(Uint32Array.of(child.pid!).buffer).toString('hex');
    // The first automatically bound netlink socket of a process has its process id as port id.
    expect(first).toBe(
      `2400000002000000${'05000000'}${port}000000001c000000030c05000500000000000000`,
    );
    driver.requestCheckpoint();
    const [chunk] = await once(child.stdout!, 'data');
    expect(String(chunk).trim()).toBe(`1c000000000c000000000000${port}000000000800010000000001`);
    child.kill('SIGKILL');
    await node.until(() => node.commands.length > 0);
    expect(node.commands).toEqual([
      `reset: netlink port ${child.pid} (pid ${child.pid}, uid ${process.geteuid?.()}) is gone: its socket is closed`,
    ]);
  });

  test('sees that the owner is gone when another socket has taken its port id at once', async () => {
    const spec = specOf('netlink');
    const { node } = await startDriver(spec);
    const first = await openClient(spec);
    const { NetlinkSocket } = await import('../os/netlink.ts');
    expect(await first.client.request('init', 'primary')).toBe(0);
    const portId = first.client.portId;
    first.client.close();
    const second = new NetlinkSocket(portId, 4096);
    cleanUps.push(() => second.close());
    if (spec.kind !== 'netlink') return;
    const fields = { flags: NLM_F_REQUEST, seq: 1, portId };
    expect(second.send(spec.portId, encodeColoRequest('init', 1, fields))).toBeUndefined();
    await node.until(() => node.reports.length === 3);
    expect(node.commands[0]).toMatch(
      /is gone: (another socket has its port id|its socket is closed)/,
    );
    expect(node.reports[2]).toBe('The VM layer owns the node');
  });

  test('sees that the owner was gone before its INIT was read', async () => {
    const spec = specOf('netlink');
    if (spec.kind !== 'netlink') return;
    const { node, driver } = await startDriver(spec, 'secondary');
    const { NetlinkSocket } = await import('../os/netlink.ts');
    const socket = new NetlinkSocket(0, 4096);
    const fields = { flags: NLM_F_REQUEST, seq: 1, portId: socket.portId };
    expect(socket.send(spec.portId, encodeColoRequest('init', 2, fields))).toBeUndefined();
    socket.close();
    await node.until(() => node.commands.length === 1);
    expect(node.commands[0]).toMatch(/^reset: .* is gone: its socket is closed$/);
    expect(driver.status()['node']).toBe('no node');
  });

  test('says EINVAL to a truncated message, with what came of it', async () => {
    const spec = specOf('netlink');
    if (spec.kind !== 'netlink') return;
    await startDriver(spec);
    const bytes = encodeColoRequest('init', 1, { flags: NLM_F_REQUEST, seq: 9, portId: 0 });
    const { first } = await startProcess(spec.portId, hexOf(bytes.subarray(0, 22)));
    expect(first.slice(0, 16)).toBe('2a00000002000000');
    expect(first.slice(32, 40)).toBe('eaffffff');
    expect(first.slice(40)).toBe(`${hexOf(bytes.subarray(0, 22))}0000`);
  });

  test('fails to start when the port id is taken, saying so', async () => {
    const spec = specOf('netlink');
    await startDriver(spec);
    await expect(startDriver(spec)).rejects.toThrow(/EADDRINUSE/);
  });

  test('the client says that nobody is there', async () => {
    const { client } = await openClient(specOf('netlink'));
    await expect(client.request('init', 'primary')).rejects.toThrow(/ECONNREFUSED/);
  });
});

describe('NfnetlinkDriver on a Unix socket', () => {
  test('has a socket that only its user may open, and replaces that of a dead process', async () => {
    const spec = specOf('unix');
    if (spec.kind !== 'unix') return;
    const { driver } = await startDriver(spec);
    expect(statSync(spec.path).mode & 0o777).toBe(0o600);
    await expect(startDriver(spec)).rejects.toThrow(/another process is listening/);
    await driver.close();
    await startDriver(spec);
  });

  test('answers a broken stream once, and ends the connection', async () => {
    const spec = specOf('unix');
    if (spec.kind !== 'unix') return;
    await startDriver(spec);
    for (const [length, errno] of [
      [15, 'eaffffff'],
      [9_000, 'a6ffffff'],
    ] as const) {
      const bytes = encodeLegacyRequest('init', { flags: NLM_F_REQUEST, seq: 9, portId: 3 });
      new DataView(bytes.buffer).setUint32(0, length, true);
      const socket = connect(spec.path);
      socket.write(bytes);
      socket.write(bytes);
      const chunks: Buffer[] = [];
      for await (const chunk of socket) chunks.push(chunk as Buffer);
      const answer = Buffer.concat(chunks);
      expect(answer.length).toBe(36);
      expect(answer.subarray(16, 20).toString('hex')).toBe(errno);
    }
  });

  test('refuses more connections than it has room for', async () => {
    const spec = specOf('unix');
    const { driver } = await startDriver(spec);
    for (let i = 0; i < VM_CLIENTS_MAX; i++) await openClient(spec);
    const closed = new Promise((resolve) => openClient(spec, { onClosed: resolve }));
    await closed;
    expect(driver.status()['refusedConnections']).toBe(1);
  });

  test('tells its client when the proxy ends', async () => {
    const spec = specOf('unix');
    const { driver } = await startDriver(spec);
    let told: (error: unknown) => void = () => undefined;
    const closed = new Promise((resolve) => {
      told = resolve;
    });
    await openClient(spec, { onClosed: (error) => told(error) });
    await driver.close();
    expect(await closed).toBeInstanceOf(Error);
  });
});

test('a request that comes before the node has an owner reaches it with INIT', async () => {
  const spec = specOf('unix');
  const { driver } = await startDriver(spec);
  driver.requestCheckpoint();
  driver.onEvent({ atUs: 0, kind: 'divergence', text: `request ${checkpointRequest().id}` });
  const { client, notified } = await openClient(spec);
  expect(await client.request('init', 'primary')).toBe(0);
  expect(await notified(1)).toHaveLength(1);
});

test('parseNfnetlinkSpec() takes a port id or a path, and nothing else', () => {
  expect(parseNfnetlinkSpec('4711')).toEqual({ kind: 'netlink', portId: 4711 });
  expect(parseNfnetlinkSpec('4294967295')).toEqual({ kind: 'netlink', portId: 0xffff_ffff });
  expect(parseNfnetlinkSpec('unix:/run/x')).toEqual({ kind: 'unix', path: '/run/x' });
  for (const text of ['', '0', '4294967296', '-1', '1.5', 'unix:', 'localhost:1', '99999999999']) {
    expect(() => parseNfnetlinkSpec(text)).toThrow(/Expected/);
  }
});
