/**
 * The sending half of the ports that end in a kernel interface: frames are gathered by reference and handed over
 * in batches; what the kernel does not take at once is copied into a bounded queue and tried again.
 *
 * Order is kept: nothing is sent while the queue holds older frames.
 *
 * @module
 */
import type { FrameBuffer } from '../env/frame.ts';
import type { PortCounters } from '../env/port.ts';
import { BATCH_FRAMES_MAX, PORT_SEND_QUEUE_BYTES_MAX, VNET_HDR_BYTES } from '../limits.ts';
import {
  EAGAIN,
  EINTR,
  EINVAL,
  EIO,
  EMSGSIZE,
  ENETDOWN,
  ENOBUFS,
  ENODEV,
  ENXIO,
} from '../os/constants.ts';
import { addressOf } from '../os/libc.ts';
import { MessageVector } from '../os/message-vector.ts';
import { ETHERNET_HEADER_BYTES } from '../wire/ethernet.ts';
import { CopyQueue } from './copy-queue.ts';
import { countDrop, type PortDropReason } from './counters.ts';
import { FITTED_HEADER_BYTES_MAX, FrameFitter, fitsMtu } from './overlong.ts';

/** A full device queue (ENOBUFS) raises no event when it has room again. */
const RETRY_MS = 1;

/** MTU changes are rare and have no event here: it is asked for again at most this often. */
const MTU_MAX_AGE_MS = 1_000;

/** What the sender needs to know of its interface. */
export interface SendTarget {
  /** Sends messages `[first, first + count)`; how many were taken (at least 1), or `-errno`. */
  transmit(vector: MessageVector, first: number, count: number): number;
  /** Largest layer 3 packet in bytes, or `-errno`. */
  mtu(): number;
  /** The target shall call `retry` when the descriptor is writable. */
  wantWritable(wanted: boolean): void;
  /** A frame was refused because the interface is down or gone. */
  onLinkDown(): void;
}

/** Gathers, sends, queues. All memory is allocated once. */
export class Sender {
  readonly #target: SendTarget;
  readonly #counters: PortCounters;
  /** Frames of this batch, by reference. */
  readonly #vector = new MessageVector(BATCH_FRAMES_MAX, 0);
  readonly #buffers: FrameBuffer[] = [];
  /** First byte of the virtio-net header, and bytes from there to the frame's end. */
  readonly #starts = new Float64Array(BATCH_FRAMES_MAX);
  readonly #lengths = new Int32Array(BATCH_FRAMES_MAX);
  /** Bytes of rewritten headers in `#headers` that go before the payload at `#starts`; 0 = none. */
  readonly #headerBytes = new Int32Array(BATCH_FRAMES_MAX);
  readonly #headers: FrameBuffer;
  readonly #fitter = new FrameFitter();
  readonly #queue = new CopyQueue(PORT_SEND_QUEUE_BYTES_MAX);
  readonly #queueVector = new MessageVector(BATCH_FRAMES_MAX, 0);
  #count = 0;
  #mtu: number;
  #mtuReadMs = 0;
  #retryTimer: NodeJS.Timeout | undefined;

  constructor(target: SendTarget, counters: PortCounters) {
    this.#target = target;
    this.#counters = counters;
    const memory = new ArrayBuffer(BATCH_FRAMES_MAX * FITTED_HEADER_BYTES_MAX);
    this.#headers = { bytes: new Uint8Array(memory), view: new DataView(memory) };
    this.#mtu = target.mtu();
  }

  /** Frames that wait in the queue. */
  get queuedFrames(): number {
    return this.#queue.count;
  }

  /** Takes a frame by reference until the next `flush`; sends when the batch is full. */
  add(buffer: FrameBuffer, offset: number, length: number): void {
    if (length < ETHERNET_HEADER_BYTES) {
      countDrop(this.#counters, 'too-short');
      return;
    }
    const index = this.#count;
    this.#buffers[index] = buffer;
    this.#starts[index] = offset - VNET_HDR_BYTES;
    this.#lengths[index] = VNET_HDR_BYTES + length;
    this.#headerBytes[index] = 0;
    if (fitsMtu(buffer, offset, length, this.#mtu)) {
      const address = addressOf(buffer.bytes.buffer) + buffer.bytes.byteOffset;
      this.#vector.setSegment(index, address + offset - VNET_HDR_BYTES, VNET_HDR_BYTES + length);
    } else if (!this.#addFitted(index, buffer, offset, length)) {
      countDrop(this.#counters, 'too-long');
      return;
    }
    this.#count++;
    if (this.#count === BATCH_FRAMES_MAX) this.flush();
  }

  /** Sends the batch; afterwards it references no memory. */
  flush(): void {
    if (this.#queue.count > 0) this.#drainQueue();
    const count = this.#count;
    let first = 0;
    while (first < count) {
      if (this.#queue.count > 0) {
        this.#keep(first++);
        continue;
      }
      const sent = this.#target.transmit(this.#vector, first, count - first);
      if (sent > 0) {
        for (let index = first; index < first + sent; index++) {
          this.#countSent(this.#headerBytes[index]! + this.#lengths[index]!);
        }
        first += sent;
      } else if (this.#waits(-sent)) {
        this.#keep(first++);
      } else if (sent !== -EINTR && !(sent === -EMSGSIZE && this.#refit(first))) {
        this.#dropRefused(-sent);
        first++;
      }
    }
    this.#count = 0;
  }

  /** Tries the queue again: the descriptor is writable. */
  retry(): void {
    if (this.#queue.count > 0) this.#drainQueue();
  }

  /** Asks for the interface's MTU anew. */
  refreshMtu(): void {
    const mtu = this.#target.mtu();
    if (mtu > 0) this.#mtu = mtu;
    this.#mtuReadMs = performance.now();
  }

  /** Stops retrying; what waits is lost and counted. */
  close(): void {
    if (this.#retryTimer !== undefined) clearTimeout(this.#retryTimer);
    const lost = this.#queue.count + this.#count;
    if (lost > 0) countDrop(this.#counters, 'closed', lost);
    this.#queue.shift(this.#queue.count);
    this.#count = 0;
  }

  #addFitted(index: number, buffer: FrameBuffer, offset: number, length: number): boolean {
    if (performance.now() - this.#mtuReadMs > MTU_MAX_AGE_MS) this.refreshMtu();
    const headerOffset = index * FITTED_HEADER_BYTES_MAX;
    const fitter = this.#fitter;
    const headers = this.#headers;
    const bytes = fitter.fit(buffer, offset, length, this.#mtu, headers, headerOffset);
    if (bytes === 0) return false;
    this.#headerBytes[index] = bytes;
    this.#starts[index] = fitter.payloadOffset;
    this.#lengths[index] = fitter.payloadBytes;
    this.#vector.setSegments(
      index,
      addressOf(headers.bytes.buffer) + headerOffset,
      bytes,
      addressOf(buffer.bytes.buffer) + buffer.bytes.byteOffset + fitter.payloadOffset,
      fitter.payloadBytes,
    );
    return true;
  }

  /** The kernel found frame `index` too long, so the MTU has shrunk: fits the frame to the new one. */
  #refit(index: number): boolean {
    if (this.#headerBytes[index]! > 0) return false;
    this.refreshMtu();
    const offset = this.#starts[index]! + VNET_HDR_BYTES;
    const length = this.#lengths[index]! - VNET_HDR_BYTES;
    return this.#addFitted(index, this.#buffers[index]!, offset, length);
  }

  /** Does this error pass by itself? Then arranges for another try. */
  #waits(error: number): boolean {
    if (error === EAGAIN) {
      this.#target.wantWritable(true);
      return true;
    }
    if (error !== ENOBUFS) return false;
    this.#retryTimer ??= setTimeout(() => {
      this.#retryTimer = undefined;
      this.retry();
    }, RETRY_MS);
    return true;
  }

  /** Copies frame `index` of the batch to the end of the queue. */
  #keep(index: number): void {
    const headerBytes = this.#headerBytes[index]!;
    const length = this.#lengths[index]!;
    const at = this.#queue.reserve(headerBytes + length);
    if (at < 0) {
      countDrop(this.#counters, 'send-queue-full');
      return;
    }
    const target = this.#queue.buffer.bytes;
    if (headerBytes > 0) {
      const from = index * FITTED_HEADER_BYTES_MAX;
      target.set(this.#headers.bytes.subarray(from, from + headerBytes), at);
    }
    const start = this.#starts[index]!;
    target.set(this.#buffers[index]!.bytes.subarray(start, start + length), at + headerBytes);
  }

  #drainQueue(): void {
    const queue = this.#queue;
    const address = addressOf(queue.buffer.bytes.buffer);
    while (queue.count > 0) {
      const count = Math.min(queue.count, BATCH_FRAMES_MAX);
      for (let index = 0; index < count; index++) {
        this.#queueVector.setSegment(index, address + queue.start(index), queue.bytes(index));
      }
      const sent = this.#target.transmit(this.#queueVector, 0, count);
      if (sent > 0) {
        for (let index = 0; index < sent; index++) this.#countSent(queue.bytes(index));
        queue.shift(sent);
      } else if (this.#waits(-sent)) {
        return;
      } else if (sent !== -EINTR) {
        this.#dropRefused(-sent);
        queue.shift(1);
      }
    }
    this.#target.wantWritable(false);
  }

  #countSent(bytes: number): void {
    this.#counters.sentFrames++;
    this.#counters.sentBytes += bytes - VNET_HDR_BYTES;
  }

  #dropRefused(error: number): void {
    let reason: PortDropReason = 'send-failed';
    if (error === ENETDOWN || error === ENXIO || error === ENODEV || error === EIO) {
      reason = 'link-down';
      this.#target.onLinkDown();
    } else if (error === EMSGSIZE) {
      reason = 'too-long';
    } else if (error === EINVAL) {
      // An impossible virtio-net header.
      reason = 'send-failed';
    }
    countDrop(this.#counters, reason);
  }
}
