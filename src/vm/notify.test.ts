import { once } from 'node:events';
import { mkdtempSync, rmSync } from 'node:fs';
import { type AddressInfo, createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { Libxl } from '../../test/support/libxl.ts';
import { checkpointRequest, RecordingNode } from '../../test/support/recording-node.ts';
import { SILENT_LOG } from '../../test/support/silent-log.ts';
import { encodeNotify } from '../codec/notify.ts';
import { type Endpoint, parseEndpoint } from './endpoint.ts';
import { NotifyDriver } from './notify.ts';
import { NotifyClient } from './notify-client.ts';

let directory = '';
let endpoint: Endpoint = { kind: 'unix', path: '' };
let cleanUps: (() => unknown)[] = [];

beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), 'colo-notify-'));
  endpoint = { kind: 'unix', path: join(directory, 'notify.sock') };
});

afterEach(async () => {
  for (const cleanUp of cleanUps.reverse()) await cleanUp();
  cleanUps = [];
  rmSync(directory, { recursive: true });
});

async function startDriver() {
  const node = new RecordingNode();
  const driver = new NotifyDriver({ endpoint, log: SILENT_LOG });
  await driver.start(node);
  cleanUps.push(() => driver.close());
  const request = () => {
    driver.requestCheckpoint();
    return checkpointRequest();
  };
  return { node, driver, request };
}

function connectLibxl(): Libxl {
  const libxl = new Libxl(endpoint);
  cleanUps.push(() => libxl.die());
  return libxl;
}

const unixPath = () => (endpoint.kind === 'unix' ? endpoint.path : '');

describe('NotifyDriver', () => {
  test('plays the sequence of libxl over three epochs', async () => {
    const { node, request } = await startDriver();
    const libxl = connectLibxl();
    // colo_proxy_setup()
    await libxl.send('COLO_USERSPACE_PROXY_INIT');
    expect(await libxl.receive(5_000)).toBe('COLO_COMPARE_GET_XEN_INIT');
    // First epoch: colo_proxy_preresume(), then the wait, which ends without a mismatch.
    await libxl.send('COLO_CHECKPOINT');
    await node.until(() => node.commands.length === 1);
    expect(await libxl.receive(50)).toBeUndefined();
    // Second epoch: a mismatch ends the wait. Requests that follow are the same checkpoint's.
    await libxl.send('COLO_CHECKPOINT');
    await node.until(() => node.commands.length === 2);
    request();
    request();
    expect(await libxl.receive(5_000)).toBe('DO_CHECKPOINT');
    expect(await libxl.receive(50)).toBeUndefined();
    // Third epoch: the next mismatch is told anew.
    await libxl.send('COLO_CHECKPOINT');
    await node.until(() => node.commands.length === 3);
    request();
    expect(await libxl.receive(5_000)).toBe('DO_CHECKPOINT');
    expect(node.commands).toEqual(['commit', 'commit', 'commit']);
  });

  test('understands a peer that terminates its strings, and one whose bytes come one by one', async () => {
    const { node } = await startDriver();
    const libxl = connectLibxl();
    await libxl.send('COLO_USERSPACE_PROXY_INIT\0');
    expect(await libxl.receive(5_000)).toBe('COLO_COMPARE_GET_XEN_INIT');
    for (const byte of encodeNotify('COLO_CHECKPOINT')) {
      libxl.socket.write(Uint8Array.of(byte));
      await new Promise((resolve) => setImmediate(resolve));
    }
    await node.until(() => node.commands.length === 1);
  });

  test('keeps a request until the VM layer is there, and drops one that a checkpoint has covered', async () => {
    const { driver, request } = await startDriver();
    request();
    const first = connectLibxl();
    await first.send('COLO_USERSPACE_PROXY_INIT');
    expect(await first.receive(5_000)).toBe('COLO_COMPARE_GET_XEN_INIT');
    expect(await first.receive(5_000)).toBe('DO_CHECKPOINT');
    first.socket.destroy();
    while (driver.status()['client'] === true)
      await new Promise((resolve) => setTimeout(resolve, 2));
    driver.onEvent({ atUs: 0, kind: 'checkpoint-begun', text: '' });
    const second = connectLibxl();
    await second.send('COLO_USERSPACE_PROXY_INIT');
    expect(await second.receive(5_000)).toBe('COLO_COMPARE_GET_XEN_INIT');
    expect(await second.receive(50)).toBeUndefined();
  });

  test('reports a checkpoint that the node refuses', async () => {
    const { node } = await startDriver();
    node.answers['commit'] = { ok: false, error: 'no secondary' };
    const libxl = connectLibxl();
    await libxl.send('COLO_USERSPACE_PROXY_INIT');
    await libxl.send('COLO_CHECKPOINT');
    await node.until(() => node.reports.includes('The node refused a checkpoint: no secondary'));
  });

  test('lets nobody give orders who has not introduced himself, nor a second one beside the first', async () => {
    const { node, driver } = await startDriver();
    const stranger = connectLibxl();
    await stranger.send('COLO_CHECKPOINT');
    await stranger.send('HELLO');
    await node.until(() => driver.status()['unknownTexts'] === 2);
    const first = connectLibxl();
    await first.send('COLO_USERSPACE_PROXY_INIT');
    expect(await first.receive(5_000)).toBe('COLO_COMPARE_GET_XEN_INIT');
    const closed = once(stranger.socket, 'close');
    await stranger.send('COLO_USERSPACE_PROXY_INIT');
    await closed;
    expect(node.commands).toEqual([]);
    // The first may say it again, as QEMU allows.
    await first.send('COLO_USERSPACE_PROXY_INIT');
    expect(await first.receive(5_000)).toBe('COLO_COMPARE_GET_XEN_INIT');
  });

  test('ends a connection whose length cannot be true', async () => {
    const { driver } = await startDriver();
    for (const length of [1024, 0xffff_ffff]) {
      const libxl = connectLibxl();
      await libxl.send('COLO_USERSPACE_PROXY_INIT');
      expect(await libxl.receive(5_000)).toBe('COLO_COMPARE_GET_XEN_INIT');
      const closed = once(libxl.socket, 'close');
      const bytes = Buffer.alloc(4);
      bytes.writeUInt32BE(length);
      libxl.socket.write(bytes);
      await closed;
      while (driver.status()['client'] === true)
        await new Promise((resolve) => setTimeout(resolve, 2));
    }
    expect(driver.status()['brokenStreams']).toBe(2);
  });

  test('serves TCP as well', async () => {
    const probe = createServer().listen(0, '127.0.0.1');
    await once(probe, 'listening');
    const { port } = probe.address() as AddressInfo;
    await new Promise((resolve) => probe.close(resolve));
    endpoint = parseEndpoint(`127.0.0.1:${port}`);
    const { node, request } = await startDriver();
    let wanted = 0;
    const client = new NotifyClient({ endpoint, onCheckpointWanted: () => wanted++ });
    cleanUps.push(() => client.close());
    await client.open();
    request();
    while (wanted === 0) await new Promise((resolve) => setTimeout(resolve, 2));
    client.checkpoint();
    await node.until(() => node.commands.length === 1);
    expect(node.commands).toEqual(['commit']);
  });
});

describe('NotifyClient', () => {
  test('fails when nobody listens, and when nobody answers', async () => {
    const options = { endpoint, onCheckpointWanted: () => undefined, timeoutUs: 50_000 };
    await expect(new NotifyClient(options).open()).rejects.toThrow(/ENOENT/);
    const mute = createServer().listen(unixPath());
    cleanUps.push(() => mute.close());
    await once(mute, 'listening');
    await expect(new NotifyClient(options).open()).rejects.toThrow(/no answer in time/);
  });
});

test('parseEndpoint() reads addresses and refuses everything else', () => {
  expect(parseEndpoint('unix:/run/a b')).toEqual({ kind: 'unix', path: '/run/a b' });
  expect(parseEndpoint('127.0.0.1:9009')).toEqual({ kind: 'tcp', host: '127.0.0.1', port: 9009 });
  expect(parseEndpoint('[::1]:9009')).toEqual({ kind: 'tcp', host: '::1', port: 9009 });
  expect(parseEndpoint('xen1.example:1')).toEqual({ kind: 'tcp', host: 'xen1.example', port: 1 });
  for (const text of [
    '',
    'unix:',
    ':9',
    'host',
    'host:',
    'host:0',
    'host:65536',
    '::1:9',
    '[x]:9',
    'a b:9',
    '[::1]',
    `unix:/${'x'.repeat(120)}`,
    'unix:a\0b',
  ]) {
    expect(() => parseEndpoint(text), text).toThrow(/Expected unix:PATH or HOST:PORT/);
  }
});
