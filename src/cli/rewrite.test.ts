import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import {
  arpFrame,
  CLIENT_IP,
  GUEST_IP,
  type TcpFrameFields,
  type TestFrame,
  tcpFrame,
} from '../../test/support/frame-builder.ts';
import { SILENT_LOG } from '../../test/support/silent-log.ts';
import { StreamPeer } from '../../test/support/stream-peer.ts';

import { VNET_HDR_BYTES } from '../limits.ts';
import { openPort } from '../port/open.ts';
import { isTransportChecksumRight } from '../wire/checksum.ts';
import { dissect, FRAME_OK, FrameInfo } from '../wire/frame.ts';
import { TCP_ACK, TCP_PSH, TCP_SYN } from '../wire/tcp.ts';
import type { NodeRunner } from './node.ts';
import { createRewriteNode, runRewrite } from './rewrite.ts';

const NAMES = ['guest', 'to-guest', 'net', 'to-net'] as const;
const PVM_ISN = 0xffff_ff00;
const SVM_ISN = 77_000;
const CLIENT_ISN = 5_000;

let directory = '';
let node: NodeRunner;
let ends: Record<(typeof NAMES)[number], StreamPeer>;

beforeEach(async () => {
  directory = mkdtempSync(join(tmpdir(), 'colo-rewrite-'));
  const specs = NAMES.map((name) => `qemu:unix:${join(directory, name)},server`);
  const [guest, toGuest, net, toNet] = specs as [string, string, string, string];
  const ports = [];
  for (const spec of specs) ports.push(await openPort(spec));
  node = createRewriteNode({ guest, toGuest, net, toNet }, SILENT_LOG, ports);
  await node.start();
  const opened = await Promise.all(NAMES.map((name) => StreamPeer.open(join(directory, name))));
  ends = Object.fromEntries(NAMES.map((name, i) => [name, opened[i]])) as typeof ends;
  await until('syncing', () => node.status().state === 'syncing');
});

afterEach(async () => {
  for (const end of Object.values(ends)) await end.close();
  await node.stop('test ends');
  rmSync(directory, { recursive: true, force: true });
});

async function until(what: string, condition: () => boolean): Promise<void> {
  const end = performance.now() + 5_000;
  while (!condition()) {
    if (performance.now() > end) throw new Error(`not in time: ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 2));
  }
}

async function checkpoint(): Promise<void> {
  expect(await node.checkpointBegin()).toEqual({ ok: true });
  expect(await node.checkpointCommit()).toEqual({ ok: true });
}

function infoOf(bytes: Uint8Array): FrameInfo {
  const memory = new Uint8Array(VNET_HDR_BYTES + bytes.length);
  memory.set(bytes, VNET_HDR_BYTES);
  const info = new FrameInfo();
  const buffer = { bytes: memory, view: new DataView(memory.buffer) };
  expect(dissect(buffer, VNET_HDR_BYTES, bytes.length, info)).toBe(FRAME_OK);
  expect(isTransportChecksumRight(info)).toBe(true);
  return info;
}

const fromClient = (fields: TcpFrameFields): TestFrame =>
  tcpFrame({ src: CLIENT_IP, dst: GUEST_IP, srcPort: 40_312, dstPort: 80, ...fields });

/** Sends a frame in on one side and takes what comes out on the other. */
async function through(from: 'guest' | 'net', frame: TestFrame): Promise<FrameInfo> {
  ends[from].send(frame);
  const [bytes] = await ends[from === 'guest' ? 'to-net' : 'to-guest'].take(1);
  return infoOf(bytes!);
}

async function connect(): Promise<void> {
  await through('net', fromClient({ seq: CLIENT_ISN, flags: TCP_SYN }));
  const synAck = tcpFrame({ seq: SVM_ISN, ack: CLIENT_ISN + 1, flags: TCP_SYN | TCP_ACK });
  expect((await through('guest', synAck)).seq).toBe(SVM_ISN);
  const ack = fromClient({ seq: CLIENT_ISN + 1, ack: (PVM_ISN + 1) >>> 0, flags: TCP_ACK });
  expect((await through('net', ack)).ack).toBe(SVM_ISN + 1);
}

const answer = (at: number, payload: string): TestFrame =>
  tcpFrame({ seq: SVM_ISN + 1 + at, ack: CLIENT_ISN + 1, flags: TCP_ACK | TCP_PSH, payload });

describe('rewrite', () => {
  it('translates a connection between its first ACK and the next checkpoint', async () => {
    await checkpoint();
    await connect();
    expect((await through('guest', answer(0, 'hello'))).seq).toBe((PVM_ISN + 1) >>> 0);
    const ack = fromClient({ seq: CLIENT_ISN + 1, ack: (PVM_ISN + 6) >>> 0, flags: TCP_ACK });
    expect((await through('net', ack)).ack).toBe(SVM_ISN + 6);
    await checkpoint();
    const next = tcpFrame({ seq: (PVM_ISN + 6) >>> 0, ack: CLIENT_ISN + 1, payload: 'x' });
    expect((await through('guest', next)).seq).toBe((PVM_ISN + 6) >>> 0);
  });

  it('keeps what comes during a checkpoint until its commit', async () => {
    await checkpoint();
    await connect();
    await node.checkpointBegin();
    const ack = fromClient({ seq: CLIENT_ISN + 1, ack: (PVM_ISN + 1) >>> 0, payload: 'kept' });
    ends.net.send(ack);
    await until('kept', () => node.status().held.frames > 0);
    expect(ends['to-guest'].frames).toHaveLength(0);
    await node.checkpointCommit();
    expect(infoOf((await ends['to-guest'].take(1))[0]!).ack).toBe((PVM_ISN + 1) >>> 0);
  });

  it('sends nothing of the guest before a first checkpoint, and refuses to take over', async () => {
    ends.guest.send(answer(0, 'early'));
    await until('dropped', () => node.status().dropped['guest-not-synced'] === 1);
    expect(ends['to-net'].frames).toHaveLength(0);
    expect(await node.failover(false)).toMatchObject({ ok: false });
    expect(node.status().state).toBe('syncing');
  });

  it('answers the guest itself, which nobody else would', async () => {
    await checkpoint();
    await through('net', fromClient({ seq: CLIENT_ISN, flags: TCP_SYN }));
    ends.guest.send(arpFrame());
    expect(await ends['to-guest'].take(1)).toHaveLength(1);
    expect(ends['to-net'].frames).toHaveLength(0);
  });

  it('goes on with the connection after a failover, and leaves new ones alone', async () => {
    await checkpoint();
    await connect();
    ends.guest.send(answer(0, 'a'));
    await ends['to-net'].take(1);
    expect(await node.failover(false)).toEqual({ ok: true });
    expect(node.status().state).toBe('failed-over');
    const isData = (bytes: Uint8Array): boolean => bytes.length > 54 && bytes[23] === 6;
    ends.guest.send(answer(1, 'after'));
    await until('data', () =>
      ends['to-net'].frames.some((f) => isData(f) && infoOf(f).payloadBytes === 5),
    );
    const data = ends['to-net'].frames.splice(0).map((f) => (isData(f) ? infoOf(f) : undefined));
    expect(data.find((info) => info?.payloadBytes === 5)?.seq).toBe((PVM_ISN + 2) >>> 0);
    const ack = fromClient({ seq: CLIENT_ISN + 1, ack: (PVM_ISN + 7) >>> 0, flags: TCP_ACK });
    expect((await through('net', ack)).ack).toBe(SVM_ISN + 7);
    const syn = fromClient({ srcPort: 50_000, seq: 1, flags: TCP_SYN });
    await through('net', syn);
    const synAck = tcpFrame({ dstPort: 50_000, seq: 9_999, ack: 2, flags: TCP_SYN | TCP_ACK });
    ends.guest.send(synAck);
    await until('SYN-ACK', () =>
      ends['to-net'].frames.some((f) => f[23] === 6 && infoOf(f).seq === 9_999),
    );
  });
});

describe('flags of rewrite', () => {
  const two = { guest: 'qemu:unix:/a', net: 'qemu:unix:/b' };

  it('must name somebody who tells of checkpoints', () => {
    expect(() => runRewrite(two)).toThrow(/--vm qmp:/);
    const vm = { kind: 'exec', command: 'true' } as const;
    expect(() => runRewrite({ ...two, vm, control: '/c' })).toThrow(/exec:/);
  });

  it('must name different ports', () => {
    expect(() => runRewrite({ ...two, toNet: two.guest, control: '/c' })).toThrow(/same port/);
  });
});
