/**
 * One direction of a tap whose packets wait in a kernel queue: frames in, verdicts out. What the engine sends without a packet that
 * waits (its own, or of one that has given way) goes out as a frame, in its place among the verdicts.
 *
 * @module
 */
import { NFQUEUE_GSO, type NfqueueMessage } from '../codec/nfqueue-msg.ts';
import type { FrameBuffer, FrameHandler } from '../env/frame.ts';
import type { PortCounters } from '../env/port.ts';
import { VNET_HDR_BYTES } from '../limits.ts';
import { ETHERNET_HEADER_BYTES } from '../wire/ethernet.ts';
import { VNET_FLAGS, VNET_GSO_NONE, VNET_GSO_TYPE, VNET_NEEDS_CSUM } from '../wire/vnet-hdr.ts';
import { countDrop } from './counters.ts';
import type { HardwareAddresses } from './hardware-addresses.ts';
import type { KernelQueue } from './kernel-queue.ts';
import { hasDestination, markOf, type QueuedFrames, setMark } from './queued-frame.ts';
import type { Sender } from './sender.ts';
import { MARK_COPY, type VerdictBook } from './verdict-book.ts';

/** What both directions share. */
export interface LaneShared {
  readonly book: VerdictBook;
  readonly frames: QueuedFrames;
  readonly failOpen: boolean;
  /** MTU of the tap. */
  mtu: number;
}

/** What a lane is made of. */
export interface LaneParts {
  readonly shared: LaneShared;
  readonly queue: Pick<
    KernelQueue,
    'number' | 'counters' | 'receive' | 'accept' | 'acceptChanged' | 'drop' | 'flush'
  >;
  /** Where frames go out that have no packet waiting. */
  readonly sender: Pick<Sender, 'queuedFrames' | 'add' | 'flush'>;
  /** Where sources are noted, and where destinations are looked up. */
  readonly from: HardwareAddresses;
  readonly to: HardwareAddresses;
  /** Towards the guest: what it should hear is not lost for a destination that was not seen yet. */
  readonly isIngress: boolean;
  /** Takes in what tells of addresses and was not looked at yet. */
  readonly learnMore: () => void;
  /** Of the port that receives from here, and of the one that sends. */
  readonly received: PortCounters;
  readonly sent: PortCounters;
}

export class QueueLane {
  readonly #parts: LaneParts;
  readonly #lent: number[] = [];
  readonly #onPacket: (buffer: FrameBuffer, message: NfqueueMessage) => void;
  #handler: FrameHandler = () => {};
  #missed = 0;
  #refused = 0;
  /** Frames were given to the sender since it was flushed. */
  #isInjecting = false;

  constructor(parts: LaneParts) {
    this.#parts = parts;
    this.#onPacket = (buffer, message) => this.#onQueued(buffer, message);
  }

  /** Ends the batch before, and hands over what waits, at most a batch; returns how many there were. */
  receive(handler: FrameHandler): number {
    this.#endBatch();
    this.#handler = handler;
    const queued = this.#parts.queue.receive(this.#onPacket);
    this.#countLosses();
    // Verdicts of the batch before; what this batch brings is given at its flush.
    if (queued === 0) this.#parts.queue.flush();
    return queued;
  }

  send(buffer: FrameBuffer, offset: number, length: number): void {
    const { book } = this.#parts.shared;
    const mark = markOf(buffer.view, offset);
    if (mark === MARK_COPY) {
      this.#countSent(length);
      return;
    }
    if (mark !== 0 && book.isOpen(mark)) {
      // Behind frames that the interface does not take yet it would overtake them.
      if (this.#parts.sender.queuedFrames === 0 || book.isGso(mark)) {
        this.#accept(buffer, offset, length, mark);
        return;
      }
      book.giveWay(mark);
    }
    this.#inject(buffer, offset, length);
  }

  /** Gives the verdicts, and sends. */
  flush(): void {
    this.#parts.shared.book.relieve();
    this.#parts.queue.flush();
    this.#parts.sender.flush();
    this.#isInjecting = false;
  }

  /** Nobody but those who have copied it can send a packet of the last batch now. */
  #endBatch(): void {
    const { book } = this.#parts.shared;
    for (const mark of this.#lent) book.onForgotten(mark);
    this.#lent.length = 0;
  }

  #onQueued(buffer: FrameBuffer, message: NfqueueMessage): void {
    const { book, frames, mtu } = this.#parts.shared;
    const { received: counters, from, to, isIngress, learnMore } = this.#parts;
    const isGso = (message.info & NFQUEUE_GSO) !== 0;
    const mark = message.isCut ? 0 : book.take(this.#parts.queue.number, message.id, isGso);
    if (mark === 0) {
      this.#parts.queue.drop(message.id);
      countDrop(counters, message.isCut ? 'too-long' : 'marks-used-up');
      return;
    }
    this.#lent.push(mark);
    const length = message.payloadBytes + ETHERNET_HEADER_BYTES;
    frames.make(buffer, message, mark, mtu, from, to, isIngress, learnMore);
    counters.receivedFrames++;
    counters.receivedBytes += length;
    this.#handler(buffer, message.payloadOffset - ETHERNET_HEADER_BYTES, length);
  }

  #accept(buffer: FrameBuffer, offset: number, length: number, mark: number): void {
    if (this.#isInjecting) {
      this.#parts.sender.flush();
      this.#isInjecting = false;
    }
    const { book, frames } = this.#parts.shared;
    const { view } = buffer;
    const isChanged = frames.isChanged(view, offset, length, mark);
    const id = book.accept(mark);
    this.#countSent(length);
    if (!isChanged) {
      this.#parts.queue.accept(id);
      return;
    }
    const vnet = offset - VNET_HDR_BYTES;
    const isPartial = (view.getUint8(vnet + VNET_FLAGS) & VNET_NEEDS_CSUM) !== 0;
    // The kernel computes the checksums of the segments that it cuts.
    const isWhole = !isPartial || view.getUint8(vnet + VNET_GSO_TYPE) !== VNET_GSO_NONE;
    const tcpOffset = isWhole ? 0 : frames.tcpOffset(mark);
    this.#parts.queue.acceptChanged(id, buffer, offset, length, tcpOffset);
  }

  /** A frame of which nothing waits in the kernel: the engine has built it, or its packet has given way. */
  #inject(buffer: FrameBuffer, offset: number, length: number): void {
    if (!hasDestination(buffer.view, offset)) {
      countDrop(this.#parts.sent, 'no-hardware-address');
      return;
    }
    setMark(buffer.view, offset, 0);
    this.#parts.queue.flush();
    this.#isInjecting = true;
    this.#parts.sender.add(buffer, offset, length);
  }

  #countSent(length: number): void {
    this.#parts.sent.sentFrames++;
    this.#parts.sent.sentBytes += length;
  }

  #countLosses(): void {
    const { missed, refused } = this.#parts.queue.counters;
    if (missed > this.#missed) {
      const reason = this.#parts.shared.failOpen ? 'passed-unchecked' : 'kernel-queue-full';
      countDrop(this.#parts.received, reason, missed - this.#missed);
      this.#missed = missed;
    }
    if (refused > this.#refused) {
      countDrop(this.#parts.sent, 'verdict-refused', refused - this.#refused);
      this.#refused = refused;
    }
  }
}
