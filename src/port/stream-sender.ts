/**
 * The sending half of a port that ends in a byte stream: pieces are gathered by reference and written with one
 * writev(2); what the socket does not take is copied into a bounded queue. A frame that was begun is always finished.
 *
 * @module
 */
import { assert } from '../base/assert.ts';
import type { FrameBuffer } from '../env/frame.ts';
import type { PortCounters } from '../env/port.ts';
import { BATCH_FRAMES_MAX, PORT_SEND_QUEUE_BYTES_MAX } from '../limits.ts';
import { EAGAIN, EINTR } from '../os/constants.ts';
import { addressOf } from '../os/libc.ts';
import { MessageVector } from '../os/message-vector.ts';
import { CopyQueue } from './copy-queue.ts';
import { countDrop } from './counters.ts';

/** What the sender needs to know of its socket. */
export interface StreamTarget {
  /** Writes messages `[first, first + count)` one after the other; bytes taken, or `-errno`. */
  write(vector: MessageVector, first: number, count: number): number;
  wantWritable(wanted: boolean): void;
  /** The stream is broken; called at most once a `flush` or `retry`. */
  onBroken(error: number): void;
}

/** Gathers, writes, queues, for one connection after the other. */
export class StreamSender {
  readonly #target: StreamTarget;
  readonly #counters: PortCounters;
  readonly #headBytesMax: number;
  /** Each piece: a head in `#heads`, then bytes of the frame's own memory. */
  readonly #vector = new MessageVector(BATCH_FRAMES_MAX, 0);
  readonly #heads: FrameBuffer;
  readonly #headBytes = new Int32Array(BATCH_FRAMES_MAX);
  readonly #buffers: FrameBuffer[] = [];
  readonly #offsets = new Int32Array(BATCH_FRAMES_MAX);
  readonly #lengths = new Int32Array(BATCH_FRAMES_MAX);
  readonly #frameBytes = new Int32Array(BATCH_FRAMES_MAX);
  readonly #frames = new Int32Array(BATCH_FRAMES_MAX);
  readonly #queue = new CopyQueue(PORT_SEND_QUEUE_BYTES_MAX);
  readonly #queueVector = new MessageVector(BATCH_FRAMES_MAX, 0);
  #count = 0;

  /** @param headBytesMax room for what goes before the bytes of a frame's own memory */
  constructor(target: StreamTarget, counters: PortCounters, headBytesMax: number) {
    this.#target = target;
    this.#counters = counters;
    this.#headBytesMax = headBytesMax;
    const memory = new ArrayBuffer(BATCH_FRAMES_MAX * headBytesMax);
    this.#heads = { bytes: new Uint8Array(memory), view: new DataView(memory) };
  }

  /** Frames that wait in the queue. */
  get queuedFrames(): number {
    return this.#queue.count;
  }

  /** Memory for heads; the next one begins at `headOffset`. */
  get heads(): FrameBuffer {
    return this.#heads;
  }

  /** Where the head of the next `add` is to be written. */
  get headOffset(): number {
    return this.#count * this.#headBytesMax;
  }

  /**
   * Takes a frame whose head has been written at `headOffset` and whose rest is borrowed until `flush`.
   *
   * @param frameBytes what counts as sent
   * @param frames how many frames these bytes are
   */
  add(
    headBytes: number,
    buffer: FrameBuffer,
    offset: number,
    length: number,
    frameBytes: number,
    frames = 1,
  ): void {
    const index = this.#count++;
    this.#headBytes[index] = headBytes;
    this.#buffers[index] = buffer;
    this.#offsets[index] = offset;
    this.#lengths[index] = length;
    this.#frameBytes[index] = frameBytes;
    this.#frames[index] = frames;
    this.#vector.setSegments(
      index,
      addressOf(this.#heads.bytes.buffer) + index * this.#headBytesMax,
      headBytes,
      addressOf(buffer.bytes.buffer) + buffer.bytes.byteOffset + offset,
      length,
    );
    if (this.#count === BATCH_FRAMES_MAX) this.flush();
  }

  /** Writes the batch; afterwards it references no memory. */
  flush(): void {
    if (this.#queue.count > 0) this.retry();
    const count = this.#count;
    let first = 0;
    while (first < count) {
      if (this.#queue.count > 0) {
        this.#keep(first++, 0);
        continue;
      }
      const written = this.#target.write(this.#vector, first, count - first);
      if (written >= 0) {
        first = this.#onWritten(first, written);
      } else if (written === -EAGAIN) {
        this.#keep(first++, 0);
      } else if (written !== -EINTR) {
        countDrop(this.#counters, 'send-failed', count - first);
        this.#count = 0;
        this.#target.onBroken(-written);
        return;
      }
    }
    this.#count = 0;
    if (this.#queue.count > 0) this.#target.wantWritable(true);
  }

  /** Writes what waits: the socket is writable. */
  retry(): void {
    const queue = this.#queue;
    const address = addressOf(queue.buffer.bytes.buffer);
    while (queue.count > 0) {
      const count = Math.min(queue.count, BATCH_FRAMES_MAX);
      for (let index = 0; index < count; index++) {
        this.#queueVector.setSegments(
          index,
          address + queue.start(index),
          queue.bytes(index),
          0,
          0,
        );
      }
      const written = this.#target.write(this.#queueVector, 0, count);
      if (written >= 0) {
        queue.advance(written);
      } else if (written === -EAGAIN) {
        this.#target.wantWritable(true);
        return;
      } else if (written !== -EINTR) {
        this.#target.onBroken(-written);
        return;
      }
    }
    this.#target.wantWritable(false);
  }

  /** The connection is gone: what waits is lost and counted. */
  reset(): void {
    const lost = this.#queue.count + this.#count;
    if (lost > 0) countDrop(this.#counters, 'not-connected', lost);
    this.#queue.shift(this.#queue.count);
    this.#count = 0;
  }

  /** `written` bytes from piece `first` on were taken; the rest of a piece that was cut goes to the queue. */
  #onWritten(first: number, written: number): number {
    let index = first;
    let left = written;
    while (left > 0) {
      const bytes = this.#headBytes[index]! + this.#lengths[index]!;
      if (left < bytes) {
        this.#keep(index++, left);
        break;
      }
      left -= bytes;
      this.#countSent(index++);
    }
    return index;
  }

  /** Copies piece `index`, without its first `done` bytes, to the end of the queue. */
  #keep(index: number, done: number): void {
    const headBytes = this.#headBytes[index]!;
    const length = this.#lengths[index]!;
    const at = this.#queue.reserve(headBytes + length - done);
    if (at < 0) {
      assert(done === 0, 'a frame that was begun is finished');
      countDrop(this.#counters, 'send-queue-full', this.#frames[index]);
      return;
    }
    const target = this.#queue.buffer.bytes;
    const headDone = Math.min(done, headBytes);
    const head = index * this.#headBytesMax;
    target.set(this.#heads.bytes.subarray(head + headDone, head + headBytes), at);
    const bodyDone = done - headDone;
    const from = this.#offsets[index]!;
    const body = this.#buffers[index]!.bytes.subarray(from + bodyDone, from + length);
    target.set(body, at + headBytes - headDone);
    this.#countSent(index);
  }

  /** What the queue takes counts as sent, too: only a broken connection loses it, and that is counted then. */
  #countSent(index: number): void {
    this.#counters.sentFrames += this.#frames[index]!;
    this.#counters.sentBytes += this.#frameBytes[index]!;
  }
}
