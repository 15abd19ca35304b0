import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import {
  arpFrame,
  type TcpFrameFields,
  type TestFrame,
  tcpFrame,
  udpFrame,
} from '../../test/support/frame-builder.ts';
import { SILENT_LOG } from '../../test/support/silent-log.ts';
import { StreamPeer } from '../../test/support/stream-peer.ts';
import { VNET_HDR_BYTES } from '../limits.ts';
import { openPort } from '../port/open.ts';
import { dissect, FRAME_OK, FrameInfo } from '../wire/frame.ts';
import { TCP_ACK, TCP_FIN, TCP_PSH, TCP_RST, TCP_SYN } from '../wire/tcp.ts';
import { type CompareFlags, createCompareNode, runCompare, withVnetHeader } from './compare.ts';
import type { NodeRunner } from './node.ts';

const PVM_ISN = 0xffff_ff00;
const SVM_ISN = 77_000;
const CLIENT_ISN = 5_000;

let directory = '';
let node: NodeRunner;
let peers: StreamPeer[] = [];
let primary: StreamPeer;
let secondary: StreamPeer;
let out: StreamPeer;

const portOf = (name: string, isVnet: boolean): string =>
  withVnetHeader(`qemu:unix:${join(directory, name)},server`, isVnet);

async function open(name: string, isVnet: boolean): Promise<StreamPeer> {
  const peer = await StreamPeer.open(join(directory, name), isVnet);
  peers.push(peer);
  return peer;
}

const wait = (ms: number): Promise<void> => new Promise((resolve) => setTimeout(resolve, ms));

async function until(what: string, condition: () => boolean): Promise<void> {
  const end = performance.now() + 5_000;
  while (!condition()) {
    if (performance.now() > end) throw new Error(`not in time: ${what}`);
    await wait(2);
  }
}

async function start(flags: Partial<CompareFlags> = {}): Promise<void> {
  const isVnet = flags.vnetHdrSupport === true;
  const [p, s, o] = ['primary', 'secondary', 'out'].map((name) => portOf(name, isVnet));
  const ports = [await openPort(p!), await openPort(s!), await openPort(o!)] as const;
  // Where no test waits for the other guest in vain: on a busy machine one may be behind for longer than by default.
  const compareTimeout = 60_000_000;
  const given = { primaryIn: p!, secondaryIn: s!, out: o!, compareTimeout, ...flags };
  node = createCompareNode(given, SILENT_LOG, ...ports);
  await node.start();
  primary = await open('primary', isVnet);
  out = await open('out', isVnet);
}

async function protect(): Promise<void> {
  secondary = await open('secondary', isVnetNode);
  await until('syncing', () => node.status().state === 'syncing');
  expect(await node.checkpointCommit()).toEqual({ ok: true });
  expect(node.status().state).toBe('protected');
}

let isVnetNode = false;

beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), 'colo-compare-'));
  isVnetNode = false;
});

afterEach(async () => {
  for (const peer of peers) await peer.close();
  peers = [];
  await node?.stop('test ends');
  rmSync(directory, { recursive: true, force: true });
});

/** A segment of either guest, `at` bytes after the SYN; data and ACK in the PVM's numbers, as filter-rewriter makes them. */
const segment = (at: number, payload: string, fields: TcpFrameFields = {}): TestFrame =>
  tcpFrame({
    seq: (PVM_ISN + 1 + at) >>> 0,
    ack: CLIENT_ISN + 1,
    flags: TCP_ACK | TCP_PSH,
    payload,
    ...fields,
  });

const synAck = (isn: number): TestFrame =>
  tcpFrame({
    seq: isn,
    ack: CLIENT_ISN + 1,
    flags: TCP_SYN | TCP_ACK,
    options: { mss: 1_460, windowScale: 2, sackPermitted: true },
  });

async function connect(): Promise<void> {
  primary.send(synAck(PVM_ISN));
  secondary.send(synAck(SVM_ISN));
  await out.take(1);
}

function infoOf(bytes: Uint8Array): FrameInfo {
  const memory = new Uint8Array(VNET_HDR_BYTES + bytes.length);
  memory.set(bytes, VNET_HDR_BYTES);
  const info = new FrameInfo();
  const buffer = { bytes: memory, view: new DataView(memory.buffer) };
  expect(dissect(buffer, VNET_HDR_BYTES, bytes.length, info)).toBe(FRAME_OK);
  return info;
}

const payloads = (frames: readonly Uint8Array[]): string[] =>
  frames.map((bytes) => {
    const { payloadOffset, payloadBytes, bytes: memory } = infoOf(bytes);
    return new TextDecoder().decode(memory.subarray(payloadOffset, payloadOffset + payloadBytes));
  });

describe('compare', () => {
  it('passes everything while there is no secondary', async () => {
    await start();
    primary.send(segment(0, 'alone'), arpFrame());
    expect(await out.take(2)).toHaveLength(2);
    expect(node.status()).toMatchObject({ state: 'unprotected', released: 2 });
  });

  it.each([false, true])(
    'releases what both guests say, virtio-net headers: %s',
    async (isVnet) => {
      isVnetNode = isVnet;
      await start({ vnetHdrSupport: isVnet });
      await protect();
      primary.send(synAck(PVM_ISN));
      await wait(20);
      expect(out.frames).toHaveLength(0);
      secondary.send(synAck(SVM_ISN));
      expect(infoOf((await out.take(1))[0]!).seq).toBe(PVM_ISN);
      primary.send(segment(0, 'hello world'));
      secondary.send(segment(0, 'hello '));
      await wait(20);
      expect(out.frames).toHaveLength(0);
      secondary.send(segment(6, 'world'));
      expect(payloads(await out.take(1))).toEqual(['hello world']);
      // Across the wrap of the PVM's sequence numbers.
      const long = 'x'.repeat(600);
      primary.send(segment(11, long), segment(611, 'end', { flags: TCP_ACK | TCP_FIN }));
      secondary.send(segment(11, long), segment(611, 'end', { flags: TCP_ACK | TCP_FIN }));
      expect(payloads(await out.take(2))).toEqual([long, 'end']);
      expect(node.status()).toMatchObject({ divergences: 0, held: { frames: 0 } });
    },
  );

  it.each([false, true])(
    'lets megabytes out in their order that the guests cut differently, virtio-net headers: %s',
    async (isVnet) => {
      isVnetNode = isVnet;
      await start({ vnetHdrSupport: isVnet });
      await protect();
      await connect();
      const textAt = (at: number, length: number) =>
        Array.from({ length }, (_, i) => String.fromCharCode(97 + ((at + i) % 23))).join('');
      const [cut, mateCut] = [1_000, 700];
      const bytes = 3 * cut * mateCut;
      const cuts = (length: number) =>
        Array.from({ length: bytes / length }, (_, i) =>
          segment(i * length, textAt(i * length, length)),
        );
      const expected = cuts(cut).map(({ buffer, offset, length }) =>
        Buffer.from(buffer.bytes.subarray(offset, offset + length)).toString('hex'),
      );
      const mates = cuts(mateCut);
      // 500 of the PVM's ahead, then both in turns.
      cuts(cut).forEach((frame, i) => {
        primary.send(frame);
        if (i >= 500) secondary.send(...mates.splice(0, 2));
      });
      secondary.send(...mates);
      const frames = await out.take(expected.length);
      expect(frames.map((frame) => Buffer.from(frame).toString('hex'))).toEqual(expected);
      const status = node.status();
      expect(status).toMatchObject({ divergences: 0, held: { frames: 0, bytes: 0 } });
      expect(status.released).toBe(expected.length + 1);
    },
  );

  it('holds what differs until a commit', async () => {
    await start();
    await protect();
    await connect();
    primary.send(segment(0, 'token A'));
    secondary.send(segment(0, 'token B'));
    await until('divergence', () => node.status().divergences === 1);
    expect(out.frames).toHaveLength(0);
    expect((await node.checkpointBegin()).ok).toBe(true);
    expect(out.frames).toHaveLength(0);
    expect((await node.checkpointCommit()).ok).toBe(true);
    expect(payloads(await out.take(1))).toEqual(['token A']);
  });

  it('lowers an acknowledgement to what the SVM has (G2)', async () => {
    await start();
    await protect();
    await connect();
    primary.send(segment(0, 'abc', { ack: CLIENT_ISN + 101 }));
    secondary.send(segment(0, 'abc', { ack: CLIENT_ISN + 51 }));
    expect(infoOf((await out.take(1))[0]!).ack).toBe(CLIENT_ISN + 51);
    secondary.send(segment(3, '', { ack: CLIENT_ISN + 101, flags: TCP_ACK }));
    expect(infoOf((await out.take(1))[0]!).ack).toBe(CLIENT_ISN + 101);
  });

  it('counts the scaled window of a SYN-ACK without having seen the client', async () => {
    await start();
    await protect();
    await connect();
    // Same right edge: the SVM acknowledges 40 bytes less, its window is 10 << 2 bytes larger.
    primary.send(segment(0, 'w', { ack: CLIENT_ISN + 41, window: 100 }));
    secondary.send(segment(0, 'w', { ack: CLIENT_ISN + 1, window: 110 }));
    const info = infoOf((await out.take(1))[0]!);
    expect([info.ack, info.window]).toEqual([CLIENT_ISN + 1, 110]);
  });

  it('lets no RST of one guest alone through', async () => {
    await start({ compareTimeout: 1_000_000 });
    await protect();
    await connect();
    const reset = segment(0, '', { flags: TCP_RST | TCP_ACK });
    primary.send(reset);
    await until('divergence', () => node.status().divergences === 1);
    expect(out.frames).toHaveLength(0);
    await node.checkpointCommit();
    expect(await out.take(1)).toHaveLength(1);
  });

  it('does not take SVM output from before a checkpoint for output after it', async () => {
    await start();
    await protect();
    await connect();
    secondary.send(segment(0, 'stale'));
    await until('it is there', () => node.status().link.receivedFrames === 2);
    await node.checkpointBegin();
    // From here on the SVM runs from the new state; not read before the commit.
    secondary.send(segment(0, 'fresh'));
    primary.send(segment(0, 'fresh'));
    await wait(20);
    expect(out.frames).toHaveLength(0);
    await node.checkpointCommit();
    expect(payloads(await out.take(1))).toEqual(['fresh']);
    primary.send(segment(5, 'stale'));
    await wait(20);
    expect(out.frames).toHaveLength(0);
  });

  it('takes in at a begin what still lies in the sockets', async () => {
    await start();
    await protect();
    await connect();
    primary.send(segment(0, 'before'));
    secondary.send(segment(0, 'other!'));
    // Written, and nobody has had a turn to read it.
    await new Promise((resolve) => setImmediate(resolve));
    await node.checkpointBegin();
    await node.checkpointCommit();
    expect(payloads(await out.take(1))).toEqual(['before']);
    secondary.send(segment(6, 'next'));
    primary.send(segment(6, 'next'));
    expect(payloads(await out.take(1))).toEqual(['next']);
  });

  it('releases and goes on alone when the secondary is gone, and syncs with the next', async () => {
    await start();
    await protect();
    await connect();
    primary.send(segment(0, 'held'));
    await until('held', () => node.status().held.frames > 0);
    await secondary.close();
    expect(payloads(await out.take(1))).toEqual(['held']);
    expect(node.status()).toMatchObject({ state: 'unprotected', peer: { connected: false } });
    await protect();
    primary.send(segment(4, 'again'));
    secondary.send(segment(4, 'again'));
    expect(payloads(await out.take(1))).toEqual(['again']);
  });

  it('notices at the end of a checkpoint that the secondary has left in its middle', async () => {
    await start();
    await protect();
    await node.checkpointBegin();
    await secondary.close();
    await node.checkpointAbort('test');
    await until('unprotected', () => node.status().state === 'unprotected');
    await protect();
    primary.send(udpFrame({ payload: 'u' }));
    secondary.send(udpFrame({ payload: 'u' }));
    expect(await out.take(1)).toHaveLength(1);
  });

  it('closes a stream that is none, counts it, and takes the next connection', async () => {
    await start();
    primary.sendBytes(new Uint8Array(64).fill(0xff));
    await until('closed', () => node.status().ports.guest.dropped['protocol-error'] === 1);
    primary = await open('primary', false);
    primary.send(segment(0, 'ok'));
    expect(await out.take(1)).toHaveLength(1);
  });

  it('counts frames that come from where released ones go', async () => {
    await start();
    out.send(segment(0, 'back'));
    await until('counted', () => node.status().ports.net.dropped['wrong-direction'] === 1);
    expect(primary.frames).toHaveLength(0);
  });

  it('asks for a checkpoint at --max-queue-size, and drops nothing', async () => {
    await start({ maxQueueSize: 2 });
    await protect();
    await connect();
    const parts = Array.from({ length: 4 }, (_, i) => String(i).repeat(1_000));
    primary.send(...parts.map((part, i) => segment(1_000 * i, part)));
    await until('limit', () => node.status().divergences === 1);
    await node.checkpointCommit();
    expect(payloads(await out.take(4))).toEqual(parts);
  });
});

describe('flags of compare', () => {
  const three = { primaryIn: 'qemu:unix:/a', secondaryIn: 'qemu:unix:/b', out: 'qemu:unix:/c' };

  it('must name somebody who makes checkpoints', () => {
    expect(() => runCompare(three)).toThrow(/--vm qmp:/);
    expect(() => runCompare({ ...three, vm: { kind: 'none' } })).toThrow(/--control/);
  });

  it('must name three ports', () => {
    const vm = { kind: 'exec', command: 'true' } as const;
    expect(() => runCompare({ ...three, out: three.primaryIn, vm })).toThrow(/same port/);
    expect(() => runCompare({ ...three, out: 'nowhere', vm })).toThrow(/port kind/);
  });
});
