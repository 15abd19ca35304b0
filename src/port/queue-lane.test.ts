import { describe, expect, it } from 'vitest';
import { CLIENT_IP, frameBytes, tcpFrame, udpFrame } from '../../test/support/frame-builder.ts';
import { NFQUEUE_CHECKSUM_NOT_READY, NFQUEUE_GSO, NfqueueMessage } from '../codec/nfqueue-msg.ts';
import type { FrameBuffer } from '../env/frame.ts';
import { VNET_HDR_BYTES } from '../limits.ts';
import { FramePool, type PooledFrame } from '../proxy/frame-pool.ts';
import { parseMac } from '../wire/address.ts';
import { createPortCounters } from './counters.ts';
import { HardwareAddresses } from './hardware-addresses.ts';
import type { PacketHandler } from './kernel-queue.ts';
import { QueueLane } from './queue-lane.ts';
import { QueuedFrames, setMark } from './queued-frame.ts';
import { MARK_COPY, VerdictBook } from './verdict-book.ts';

interface Packet {
  readonly frame: ReturnType<typeof tcpFrame>;
  readonly info?: number;
  readonly isCut?: boolean;
}

/** A lane whose kernel writes down what it is told; frames are kept in a pool, as the engine keeps them. */
class World {
  readonly log: string[] = [];
  readonly received = createPortCounters();
  readonly sent = createPortCounters();
  readonly book = new VerdictBook((_queue, id) => this.log.push(`drop ${id}`));
  readonly pool = new FramePool(this.book);
  readonly kept: PooledFrame[] = [];
  readonly sender = {
    queuedFrames: 0,
    add: (): void => void this.log.push('send'),
    flush: (): void => undefined,
  };
  readonly queue = {
    number: 64,
    counters: { missed: 0, refused: 0 },
    receive: (handler: PacketHandler): number => this.#receive(handler),
    accept: (id: number): void => void this.log.push(`accept ${id}`),
    acceptChanged: (
      id: number,
      _buffer: FrameBuffer,
      _offset: number,
      length: number,
      tcp: number,
    ): void => void this.log.push(`change ${id}: ${length}, ${tcp}`),
    drop: (id: number): void => void this.log.push(`drop ${id}`),
    flush: (): void => undefined,
  };
  readonly lane: QueueLane;
  readonly #shared = { book: this.book, frames: new QueuedFrames(), failOpen: false, mtu: 1_500 };
  #waiting: Packet[] = [];
  #id = 0;

  constructor(failOpen = false) {
    const from = new HardwareAddresses();
    const to = new HardwareAddresses();
    const client = new DataView(new ArrayBuffer(10));
    for (const [i, byte] of [...CLIENT_IP.split('.').map(Number)].entries()) {
      client.setUint8(i, byte);
    }
    client.setUint16(4, 0x0200);
    to.learn(client, 4, 0, client, 4);
    this.lane = new QueueLane({
      ...{
        queue: this.queue,
        sender: this.sender,
        from,
        to,
        isIngress: false,
        learnMore: () => undefined,
      },
      ...{ received: this.received, sent: this.sent },
      shared: { ...this.#shared, failOpen },
    });
  }

  /** One batch of packets, all of them kept; returns their copies. */
  hold(...packets: Packet[]): PooledFrame[] {
    this.#waiting = packets;
    const held: PooledFrame[] = [];
    this.lane.receive((...frame) => held.push(this.pool.copy(...frame)));
    this.kept.push(...held);
    this.lane.receive(() => undefined);
    return held;
  }

  send({ buffer, offset, length }: PooledFrame): void {
    this.lane.send(buffer, offset, length);
  }

  #receive(handler: PacketHandler): number {
    const packets = this.#waiting;
    this.#waiting = [];
    for (const { frame, info = 0, isCut = false } of packets) {
      const packet = frameBytes(frame).slice(14);
      const bytes = new Uint8Array(40 + packet.length);
      bytes.set(parseMac('02:00:00:00:00:02')!);
      bytes.set(packet, 40);
      const message = new NfqueueMessage();
      Object.assign(message, { id: ++this.#id, etherType: 0x0800, info, isCut });
      Object.assign(message, { payloadOffset: 40, payloadBytes: packet.length });
      handler({ bytes, view: new DataView(bytes.buffer) }, message);
    }
    return packets.length;
  }
}

const PARTIAL = NFQUEUE_CHECKSUM_NOT_READY;
/** Acknowledgement number, from the frame's first byte. */
const ACK_OFFSET = 14 + 20 + 8;

describe('QueueLane', () => {
  it('lets a packet wait in the kernel while its copy is held, and accepts it as it is', () => {
    const world = new World();
    const [frame] = world.hold({ frame: tcpFrame({ payload: 'held' }) });
    expect({ log: world.log, open: world.book.open }).toEqual({ log: [], open: 1 });
    world.send(frame!);
    world.pool.release(frame!);
    expect(world.log).toEqual(['accept 1']);
    expect({ open: world.book.open, marks: world.book.marks }).toEqual({ open: 0, marks: 0 });
    expect(world.sent).toMatchObject({ sentFrames: 1, sentBytes: frame!.length });
  });

  it('drops what the engine did not keep, once the batch is over', () => {
    const world = new World();
    const [frame] = world.hold({ frame: udpFrame() });
    world.pool.release(frame!);
    expect(world.log).toEqual(['drop 1']);
  });

  it.each([
    ['with a whole checksum', 0, 0],
    ['with a partial one, to be completed', PARTIAL, 34],
    ['a GSO frame, whose segments get theirs from the kernel', PARTIAL | NFQUEUE_GSO, 0],
  ])('replaces a packet whose acknowledgement was lowered: %s', (_name, info, tcpOffset) => {
    const world = new World();
    const [frame] = world.hold({ frame: tcpFrame({ ack: 500 }), info });
    frame!.buffer.view.setUint32(frame!.offset + ACK_OFFSET, 400);
    world.send(frame!);
    expect(world.log).toEqual([`change 1: ${frame!.length}, ${tcpOffset}`]);
  });

  it('sends a packet a second time as a frame: its verdict is given', () => {
    const world = new World();
    const [frame] = world.hold({ frame: tcpFrame() });
    world.send(frame!);
    world.send(frame!);
    expect(world.log).toEqual(['accept 1', 'send']);
  });

  it('sends what the engine has built, but to nobody whose address is not known', () => {
    const world = new World();
    const { buffer, offset, length } = tcpFrame();
    world.lane.send(buffer, offset, length);
    buffer.bytes.fill(0, offset, offset + 6);
    world.lane.send(buffer, offset, length);
    expect(world.log).toEqual(['send']);
    expect(world.sent.dropped).toEqual({ 'no-hardware-address': 1 });
  });

  it('does not send what was only a copy', () => {
    const world = new World();
    const { buffer, offset, length } = tcpFrame();
    setMark(buffer.view, offset, MARK_COPY);
    world.lane.send(buffer, offset, length);
    expect({ log: world.log, sent: world.sent.sentFrames }).toEqual({ log: [], sent: 1 });
  });

  it('does not let a packet overtake frames that wait for the interface', () => {
    const world = new World();
    const [plain, gso] = world.hold(
      { frame: tcpFrame({ payload: 'a' }) },
      { frame: tcpFrame({ payload: 'b'.repeat(3_000) }), info: PARTIAL | NFQUEUE_GSO },
    );
    world.sender.queuedFrames = 1;
    world.send(plain!);
    world.send(gso!);
    expect(world.log).toEqual(['drop 1', 'send', 'accept 2']);
    // What is sent has no mark in the hint that the kernel reads.
    expect(plain!.buffer.view.getUint16(plain!.offset - VNET_HDR_BYTES + 2, true)).toBe(0);
  });

  it('drops a packet that it sees only the beginning of', () => {
    const world = new World();
    expect(world.hold({ frame: tcpFrame(), isCut: true })).toEqual([]);
    expect(world.log).toEqual(['drop 1']);
    expect(world.received.dropped).toEqual({ 'too-long': 1 });
  });

  it.each([
    [false, 'kernel-queue-full'],
    [true, 'passed-unchecked'],
  ])('counts what found no room (fail-open %s) and verdicts without a packet', (failOpen, name) => {
    const world = new World(failOpen);
    world.queue.counters.missed = 3;
    world.queue.counters.refused = 2;
    world.hold();
    world.queue.counters.missed = 4;
    world.hold();
    expect(world.received.dropped).toEqual({ [name]: 4 });
    expect(world.sent.dropped).toEqual({ 'verdict-refused': 2 });
  });
});
