/**
 * `colo-proxy compare --notify` as a process, with a client that plays libxl in its mode for a proxy in user space: from the
 * introduction over several epochs to its death. There is no Xen here; see docs/xen.md.
 */
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, rmSync } from 'node:fs';
import { type AddressInfo, createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterEach, beforeEach, expect, test } from 'vitest';
import type { NodeStatus } from '../../src/cli/node.ts';
import { callControl } from '../../src/control/client.ts';
import type { Endpoint } from '../../src/vm/endpoint.ts';
import { udpFrame } from '../support/frame-builder.ts';
import { Libxl } from '../support/libxl.ts';
import { StreamPeer } from '../support/stream-peer.ts';

const SCRIPT = fileURLToPath(new URL('../../bin/colo-proxy.js', import.meta.url));
/** For what must not come. */
const QUIET_MS = 300;

let directory: string;
let compare: ChildProcess;
let notify: Endpoint;
let primary: StreamPeer;
let secondary: StreamPeer;
let out: StreamPeer;
let clients: Libxl[] = [];

beforeEach(async () => {
  directory = mkdtempSync(join(tmpdir(), 'colo-xen-'));
  const probe = createServer().listen(0, '127.0.0.1');
  await once(probe, 'listening');
  const { port } = probe.address() as AddressInfo;
  await new Promise((resolve) => probe.close(resolve));
  notify = { kind: 'tcp', host: '127.0.0.1', port };
  const ports = ['primary-in', 'secondary-in', 'out'].flatMap((name) => [
    `--${name}`,
    `qemu:unix:${join(directory, name)},server`,
  ]);
  const words = [SCRIPT, 'compare', ...ports, '--notify', `127.0.0.1:${port}`, '--min-run', '1'];
  words.push('--control', join(directory, 'control'), '--log-level', 'error');
  compare = spawn(process.execPath, words, { stdio: ['ignore', 'inherit', 'inherit'] });
  await until(async () => (await state()) === 'unprotected');
  [primary, secondary, out] = await Promise.all([
    StreamPeer.open(join(directory, 'primary-in')),
    StreamPeer.open(join(directory, 'secondary-in')),
    StreamPeer.open(join(directory, 'out')),
  ]);
  await until(async () => (await state()) === 'syncing');
});

afterEach(async () => {
  for (const client of clients) client.die();
  clients = [];
  for (const peer of [primary, secondary, out]) await peer?.close();
  const gone = once(compare, 'exit');
  compare.kill('SIGTERM');
  await gone;
  rmSync(directory, { recursive: true, force: true });
});

async function status(): Promise<NodeStatus | undefined> {
  const answer = await callControl(join(directory, 'control'), { command: 'status' }).catch(
    () => undefined,
  );
  return answer?.ok === true ? (answer.result as NodeStatus) : undefined;
}

const state = async (): Promise<string | undefined> => (await status())?.state;

async function until(condition: () => Promise<boolean>): Promise<void> {
  const endMs = performance.now() + 10_000;
  while (!(await condition())) {
    if (performance.now() > endMs) throw new Error('not in time');
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
}

function connectLibxl(): Libxl {
  const libxl = new Libxl(notify);
  clients.push(libxl);
  return libxl;
}

/** Until the node has made this many checkpoints. */
const epoch = (count: number): Promise<void> =>
  until(async () => {
    const now = await status();
    return now?.state === 'protected' && now.epoch === count;
  });

/** A connection of libxl that has made the first checkpoint. */
async function begin(): Promise<Libxl> {
  const libxl = connectLibxl();
  expect(await libxl.setup()).toBe('COLO_COMPARE_GET_XEN_INIT');
  // The node asks for the first one as for any other.
  expect(await libxl.receive(5_000)).toBe('DO_CHECKPOINT');
  await libxl.preresume();
  await epoch(1);
  return libxl;
}

const answer = (payload: string) => udpFrame({ payload });

function differ(ofPrimary: string, ofSecondary: string): void {
  primary.send(answer(ofPrimary));
  secondary.send(answer(ofSecondary));
}

test('epochs with and without a difference, as libxl makes them', async () => {
  const libxl = await begin();
  // Nothing differs: libxl waits for 5 s, and then makes a checkpoint all the same.
  primary.send(answer('equal'));
  secondary.send(answer('equal'));
  await out.take(1);
  expect(await libxl.receive(QUIET_MS)).toBeUndefined();
  await libxl.preresume();
  await epoch(2);
  // A difference ends its wait. What differs meanwhile is part of the same request.
  differ('one', 'other');
  expect(await libxl.receive(5_000)).toBe('DO_CHECKPOINT');
  differ('two', 'another');
  expect(await libxl.receive(QUIET_MS)).toBeUndefined();
  expect(out.frames).toHaveLength(0);
  await libxl.preresume();
  expect(await out.take(2)).toHaveLength(2);
  await epoch(3);
  // And the next one is told anew.
  differ('three', 'yet another');
  expect(await libxl.receive(5_000)).toBe('DO_CHECKPOINT');
  await libxl.preresume();
  expect(await out.take(1)).toHaveLength(1);
  await epoch(4);
});

test('a request that crosses a checkpoint of libxl costs one more, and no more', async () => {
  const libxl = await begin();
  differ('one', 'other');
  await until(async () => (await status())?.divergences === 1);
  // Its wait has just ended by time: the request stays in its socket.
  await libxl.preresume();
  expect(await out.take(1)).toHaveLength(1);
  await epoch(2);
  expect(await libxl.receive(5_000)).toBe('DO_CHECKPOINT');
  await libxl.preresume();
  await epoch(3);
  expect(await libxl.receive(QUIET_MS)).toBeUndefined();
});

test('length and text that come far apart are one frame', async () => {
  const libxl = connectLibxl();
  await libxl.send('COLO_USERSPACE_PROXY_INIT', 200);
  expect(await libxl.receive(5_000)).toBe('COLO_COMPARE_GET_XEN_INIT');
  await libxl.send('COLO_CHECKPOINT', 200);
  await epoch(1);
});

test('libxl ends without a word, and another one goes on where it was', async () => {
  const first = await begin();
  differ('one', 'other');
  expect(await first.receive(5_000)).toBe('DO_CHECKPOINT');
  first.die();
  await until(async () => (await status())?.vm['client'] === false);
  // Nothing is released for that, and the request is not forgotten.
  expect(out.frames).toHaveLength(0);
  expect(await state()).toBe('protected');
  const second = connectLibxl();
  expect(await second.setup()).toBe('COLO_COMPARE_GET_XEN_INIT');
  expect(await second.receive(5_000)).toBe('DO_CHECKPOINT');
  await second.preresume();
  expect(await out.take(1)).toHaveLength(1);
  await epoch(2);
});
