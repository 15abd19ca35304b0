/**
 * The primary engine on top of two packet queues whose kernel is played here: whatever guests, clients, peer and VM layer do, each
 * packet gets exactly one verdict, what the engine sends goes out in its order and unspoilt, and nothing waits for ever.
 *
 * @module
 */
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import {
  CLIENT_MAC,
  fragmentFrame,
  frameBytes,
  GUEST_IP,
  GUEST_MAC,
  icmpEcho,
  type TestFrame,
  tcpFrame,
  udpFrame,
} from '../../test/support/frame-builder.ts';
import { NfqueueMessage } from '../codec/nfqueue-msg.ts';
import type { EngineOutput } from '../env/engine.ts';
import type { FrameBuffer } from '../env/frame.ts';
import { LINK_FRAME_SECONDARY } from '../env/messages.ts';
import { REASSEMBLY_TIMEOUT_US } from '../limits.ts';
import { PRIMARY_DEFAULTS } from '../proxy/config.ts';
import { PrimaryEngine } from '../proxy/primary.ts';
import { parseMac } from '../wire/address.ts';
import { ETHERNET_HEADER_BYTES } from '../wire/ethernet.ts';
import { TCP_ACK, TCP_FIN, TCP_RST, TCP_SYN } from '../wire/tcp.ts';
import { createPortCounters } from './counters.ts';
import { HardwareAddresses } from './hardware-addresses.ts';
import type { PacketHandler } from './kernel-queue.ts';
import { QueueLane } from './queue-lane.ts';
import { QueuedFrames, setMark } from './queued-frame.ts';
import { VerdictBook } from './verdict-book.ts';

const HEADROOM_BYTES = 64;
const MTU = 1_500;
const toHex = (bytes: Uint8Array): string => Buffer.from(bytes).toString('hex');

/** The kernel's end of a queue, and the interface that frames are sent on: both write to one wire. */
class FakeKernel {
  readonly number: number;
  readonly counters = { missed: 0, refused: 0 };
  /** Packets without a verdict, layer 3 in hex. */
  readonly waiting = new Map<number, string>();
  readonly wire: string[] = [];
  readonly #srcMac: Uint8Array;
  #unread: { id: number; packet: Uint8Array }[] = [];
  #gathered: (() => void)[] = [];
  #id = 0;

  constructor(number: number, srcMac: string) {
    this.number = number;
    this.#srcMac = parseMac(srcMac)!;
  }

  enqueue(frame: TestFrame): void {
    const packet = frameBytes(frame).slice(ETHERNET_HEADER_BYTES);
    const id = ++this.#id;
    this.#unread.push({ id, packet });
    this.waiting.set(id, toHex(packet));
  }

  receive(handler: PacketHandler): number {
    const batch = this.#unread.splice(0);
    for (const { id, packet } of batch) {
      const bytes = new Uint8Array(HEADROOM_BYTES + packet.length);
      bytes.set(this.#srcMac, 0);
      bytes.set(packet, HEADROOM_BYTES);
      const message = new NfqueueMessage();
      message.id = id;
      message.etherType = packet[0]! >> 4 === 4 ? 0x0800 : 0x86dd;
      message.payloadOffset = HEADROOM_BYTES;
      message.payloadBytes = packet.length;
      handler({ bytes, view: new DataView(bytes.buffer) }, message);
      bytes.fill(0xdb, 0, HEADROOM_BYTES - 40);
    }
    return batch.length;
  }

  accept(id: number): void {
    this.#judge(id, (packet) => this.wire.push(packet));
  }

  acceptChanged(id: number, { bytes }: FrameBuffer, offset: number, length: number): void {
    const packet = toHex(bytes.subarray(offset + ETHERNET_HEADER_BYTES, offset + length));
    this.#judge(id, () => this.wire.push(packet));
  }

  drop(id: number): void {
    this.#judge(id, () => undefined);
  }

  flush(): void {
    for (const act of this.#gathered.splice(0)) act();
  }

  #judge(id: number, act: (packet: string) => void): void {
    this.#gathered.push(() => {
      const packet = this.waiting.get(id);
      if (packet === undefined) throw new Error(`packet ${id} waits no more`);
      this.waiting.delete(id);
      act(packet);
    });
  }

  /** The sender: by reference until its flush. */
  readonly sender = {
    queuedFrames: 0,
    frames: [] as TestFrame[],
    add: (buffer: FrameBuffer, offset: number, length: number): void =>
      void this.sender.frames.push({ buffer, offset, length }),
    flush: (): void => {
      for (const { buffer, offset, length } of this.sender.frames.splice(0)) {
        const { bytes } = buffer;
        this.wire.push(toHex(bytes.subarray(offset + ETHERNET_HEADER_BYTES, offset + length)));
      }
    },
  };
}

class World {
  readonly egress = new FakeKernel(10, GUEST_MAC);
  readonly ingress = new FakeKernel(11, CLIENT_MAC);
  readonly book: VerdictBook;
  readonly engine: PrimaryEngine;
  readonly toNet: QueueLane;
  readonly toGuest: QueueLane;
  /** What the engine sent, layer 3 in hex. */
  readonly sent = { net: [] as string[], guest: [] as string[] };
  nowUs = 1_000_000;
  readonly #guestFrames: TestFrame[] = [];

  constructor(waitingMax: number) {
    this.book = new VerdictBook(
      (queue, id) => (queue === 10 ? this.egress : this.ingress).drop(id),
      waitingMax,
    );
    const shared = { book: this.book, frames: new QueuedFrames(), failOpen: false, mtu: MTU };
    const guests = new HardwareAddresses();
    const clients = new HardwareAddresses();
    const lane = (kernel: FakeKernel, isIngress: boolean): QueueLane =>
      new QueueLane({
        ...{ shared, queue: kernel, sender: kernel.sender, isIngress, learnMore: () => undefined },
        ...(isIngress ? { from: clients, to: guests } : { from: guests, to: clients }),
        ...{ received: createPortCounters(), sent: createPortCounters() },
      });
    this.toNet = lane(this.egress, false);
    this.toGuest = lane(this.ingress, true);
    const send =
      (to: QueueLane, log: string[]) =>
      (buffer: FrameBuffer, offset: number, length: number): void => {
        log.push(toHex(buffer.bytes.subarray(offset + ETHERNET_HEADER_BYTES, offset + length)));
        to.send(buffer, offset, length);
      };
    const output: EngineOutput = {
      keeper: this.book,
      sendToNet: send(this.toNet, this.sent.net),
      sendToGuest: send(this.toGuest, this.sent.guest),
      sendFrameToPeer: () => undefined,
      sendMessageToPeer: () => undefined,
      requestCheckpoint: () => undefined,
      event: () => undefined,
    };
    const limits = { heldBytesMax: 60_000, flowHeldBytesMax: 30_000, keptClientBytesMax: 20_000 };
    this.engine = new PrimaryEngine({ ...PRIMARY_DEFAULTS, ...limits }, output, this.nowUs);
  }

  guest(frames: readonly TestFrame[]): void {
    for (const frame of frames) this.egress.enqueue(frame);
    this.#guestFrames.push(...frames);
    this.pump(this.toNet, (buffer, offset, length) =>
      this.engine.onGuestFrame(buffer, offset, length, this.nowUs),
    );
  }

  client(frames: readonly TestFrame[]): void {
    for (const frame of frames) this.ingress.enqueue(frame);
    this.pump(this.toGuest, (buffer, offset, length) =>
      this.engine.onNetFrame(buffer, offset, length, this.nowUs),
    );
  }

  /** The SVM says what the PVM has said, some of it. */
  secondary(which: number): void {
    const frames = this.#guestFrames.splice(0, 1 + (which % 8));
    for (const { buffer, offset, length } of frames) {
      setMark(buffer.view, offset, 0);
      const kind = LINK_FRAME_SECONDARY;
      this.engine.onPeerFrame(kind, this.engine.epoch, buffer, offset, length, this.nowUs);
    }
    this.settle();
  }

  pump(
    from: QueueLane,
    handler: (buffer: FrameBuffer, offset: number, length: number) => void,
  ): void {
    while (from.receive(handler) > 0) this.settle();
  }

  act(call: (nowUs: number) => unknown): void {
    call(this.nowUs);
    this.settle();
  }

  pass(us: number): void {
    const endUs = this.nowUs + us;
    while (this.engine.nextDeadlineUs() <= endUs) {
      this.nowUs = Math.max(this.engine.nextDeadlineUs(), this.nowUs + 1);
      this.act((nowUs) => this.engine.onTick(nowUs));
    }
    this.nowUs = endUs;
  }

  settle(): void {
    this.engine.flush(this.nowUs);
    this.toNet.flush();
    this.toGuest.flush();
    expect(this.egress.waiting.size + this.ingress.waiting.size).toBe(this.book.open);
    // What the engine sends goes out, all of it, in its order.
    expect(this.egress.wire).toEqual(this.sent.net);
    expect(this.ingress.wire).toEqual(this.sent.guest);
  }
}

const PORTS = [80, 443, 9_000];
const payload = (n: number): string => String.fromCharCode(97 + (n % 26)).repeat(1 + (n % 900));

/** A segment of one of three connections, whose numbers make sense often enough. */
const segment = (isGuest: boolean): fc.Arbitrary<TestFrame[]> =>
  fc
    .record({
      port: fc.constantFrom(...PORTS),
      at: fc.nat(6),
      ack: fc.nat(6),
      window: fc.constantFrom(0, 1_000, 60_000),
      flags: fc.constantFrom(TCP_ACK, TCP_ACK, TCP_ACK, TCP_ACK | TCP_FIN, TCP_ACK | TCP_RST),
      isSyn: fc.boolean(),
      hasPayload: fc.boolean(),
      sack: fc.boolean(),
    })
    .map(({ port, at, ack, window, flags, isSyn, hasPayload, sack }) => {
      const isFirst = at === 0 && isSyn;
      const ends = isGuest
        ? { srcPort: port, dstPort: 40_000 }
        : { srcPort: 40_000, dstPort: port, src: '10.0.0.9', dst: GUEST_IP, srcMac: CLIENT_MAC };
      const base = isGuest ? 1_000 : 5_000;
      const other = isGuest ? 5_000 : 1_000;
      return [
        tcpFrame({
          ...ends,
          seq: isFirst ? base - 1 : base + at * 300,
          ack: other + ack * 300,
          flags: isFirst ? (isGuest ? TCP_SYN | TCP_ACK : TCP_SYN) : flags,
          window,
          ...(sack && !isFirst
            ? { options: Uint8Array.from([1, 1, 5, 10, 0, 0, 0x20, 0, 0, 0, 0x30, 0]) }
            : {}),
          payload: hasPayload && !isFirst ? 'p'.repeat(300) : '',
        }),
      ];
    });

const datagram = (isGuest: boolean): fc.Arbitrary<TestFrame[]> =>
  fc
    .record({ port: fc.constantFrom(...PORTS), n: fc.nat(60), kind: fc.nat(3) })
    .map(({ port, n, kind }) => {
      const ends = isGuest ? {} : { src: '10.0.0.9', dst: GUEST_IP, srcMac: CLIENT_MAC };
      if (kind === 0) return [icmpEcho({ ...ends, payload: payload(n) })];
      const frame = udpFrame({ ...ends, srcPort: port, dstPort: 5_000, payload: payload(n * 7) });
      if (kind === 1) return fragmentFrame(frame, 136, n).slice(0, 1 + (n % 5));
      return [frame];
    });

const traffic = (isGuest: boolean) =>
  fc
    .array(fc.oneof(segment(isGuest), datagram(isGuest)), { minLength: 1, maxLength: 6 })
    .map((frames) => frames.flat());

const step = fc.oneof(
  { weight: 6, arbitrary: traffic(true).map((guest) => ({ guest })) },
  { weight: 4, arbitrary: traffic(false).map((client) => ({ client })) },
  { weight: 4, arbitrary: fc.record({ secondary: fc.nat(20) }) },
  { weight: 2, arbitrary: fc.record({ pass: fc.constantFrom(100, 50_000, 300_000) }) },
  {
    weight: 3,
    arbitrary: fc.record({
      call: fc.constantFrom('begin', 'commit', 'abort', 'down', 'up', 'reset'),
    }),
  },
);

/** Up, and a first checkpoint: without these nothing is ever held. */
function protect(world: World): void {
  world.act((nowUs) => world.engine.onPeerUp(0, nowUs));
  checkpoint(world);
}

function checkpoint(world: World): void {
  world.act((nowUs) => world.engine.checkpointBegin(nowUs));
  world.act((nowUs) => world.engine.checkpointCommit(nowUs));
  const epoch = world.engine.epoch + 1;
  world.act((nowUs) => world.engine.onPeerMessage({ type: 'checkpoint-committed', epoch }, nowUs));
}

function call(world: World, what: string): void {
  const { engine } = world;
  if (what === 'begin') world.act((nowUs) => engine.checkpointBegin(nowUs));
  else if (what === 'commit') checkpoint(world);
  else if (what === 'abort') world.act((nowUs) => engine.checkpointAbort('test', nowUs));
  else if (what === 'down') world.act((nowUs) => engine.onPeerDown('test', nowUs));
  else if (what === 'reset') world.act((nowUs) => engine.reset('test', nowUs));
  else protect(world);
}

describe('QueueLane under the primary engine', () => {
  test.each([
    ['enough room', 1_024],
    ['packets that give way', 4],
  ])(
    'every packet gets one verdict, nothing is spoilt, nothing waits for ever: %s',
    (_name, max) => {
      fc.assert(
        fc.property(fc.array(step, { maxLength: 40 }), (steps) => {
          const world = new World(max);
          // Everybody has been seen: otherwise a copy has no destination.
          world.guest([udpFrame({ srcPort: 1 })]);
          world.client([udpFrame({ src: '10.0.0.9', dst: GUEST_IP, srcMac: CLIENT_MAC })]);
          protect(world);
          for (const one of steps) {
            if ('guest' in one) world.guest(one.guest);
            else if ('client' in one) world.client(one.client);
            else if ('secondary' in one) world.secondary(one.secondary);
            else if ('pass' in one) world.pass(one.pass);
            else call(world, one.call);
            expect(world.book.open).toBeLessThanOrEqual(max);
          }
          world.act((nowUs) => world.engine.reset('end', nowUs));
          world.pass(2 * REASSEMBLY_TIMEOUT_US);
          world.guest([]);
          world.client([]);
          world.settle();
          expect({ open: world.book.open, marks: world.book.marks }).toEqual({ open: 0, marks: 0 });
        }),
        { numRuns: 300 },
      );
    },
  );
});
