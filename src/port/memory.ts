/**
 * Two ports joined back to back in memory, for tests: what one sends the other receives, copied, in order,
 * with their virtio-net headers, in a later turn of the event loop.
 *
 * @module
 */
import type { FrameBuffer, FrameHandler } from '../env/frame.ts';
import type { Port } from '../env/port.ts';
import { BATCH_FRAMES_MAX, PORT_SEND_QUEUE_BYTES_MAX, VNET_HDR_BYTES } from '../limits.ts';
import { CopyQueue } from './copy-queue.ts';
import { countDrop, createPortCounters } from './counters.ts';

/** One end of a pair. Bounded as a real port: at PORT_SEND_QUEUE_BYTES_MAX unread bytes frames are lost. */
export class MemoryPort implements Port {
  readonly name: string;
  readonly counters = createPortCounters();
  /** Frames for this end that nobody has received yet. */
  readonly #inbox = new CopyQueue(PORT_SEND_QUEUE_BYTES_MAX);
  readonly #deliver = () => {
    this.#scheduled = false;
    if (this.#started && !this.#closed && this.#inbox.count > this.#lent) this.#onReadable();
  };
  #peer: MemoryPort | undefined;
  #onReadable: () => void = () => {};
  #onClosed: (error: Error) => void = () => {};
  /** Frames at the head of the inbox that the last `receive` handed out. */
  #lent = 0;
  #started = false;
  #scheduled = false;
  #closed = false;

  private constructor(name: string) {
    this.name = name;
  }

  /** A joined pair, named `memory:NAME.a` and `memory:NAME.b`. */
  static createPair(name: string): [MemoryPort, MemoryPort] {
    const a = new MemoryPort(`memory:${name}.a`);
    const b = new MemoryPort(`memory:${name}.b`);
    a.#peer = b;
    b.#peer = a;
    return [a, b];
  }

  start(onReadable: () => void, onClosed: (error: Error) => void): void {
    this.#onReadable = onReadable;
    this.#onClosed = onClosed;
    this.#started = true;
    if (this.#inbox.count > 0) this.#schedule();
  }

  receive(handler: FrameHandler): number {
    const inbox = this.#inbox;
    inbox.shift(this.#lent);
    this.#lent = 0;
    if (this.#closed) return 0;
    const count = Math.min(inbox.count, BATCH_FRAMES_MAX);
    this.#lent = count;
    for (let index = 0; index < count; index++) {
      const length = inbox.bytes(index) - VNET_HDR_BYTES;
      this.counters.receivedFrames++;
      this.counters.receivedBytes += length;
      handler(inbox.buffer, inbox.start(index) + VNET_HDR_BYTES, length);
    }
    if (inbox.count > count) this.#schedule();
    return count;
  }

  send(buffer: FrameBuffer, offset: number, length: number): void {
    const peer = this.#peer;
    if (this.#closed || peer === undefined || peer.#closed) {
      countDrop(this.counters, 'closed');
      return;
    }
    const at = peer.#inbox.reserve(VNET_HDR_BYTES + length);
    if (at < 0) {
      countDrop(this.counters, 'send-queue-full');
      return;
    }
    const start = offset - VNET_HDR_BYTES;
    peer.#inbox.buffer.bytes.set(buffer.bytes.subarray(start, offset + length), at);
    this.counters.sentFrames++;
    this.counters.sentBytes += length;
    peer.#schedule();
  }

  /** Nothing to do: `send` has copied. */
  flush(): void {}

  close(): Promise<void> {
    this.#closed = true;
    return Promise.resolve();
  }

  /** What a vanished interface does: the port dies, and says so in a later turn. */
  fail(error: Error): void {
    if (this.#closed) return;
    this.#closed = true;
    setImmediate(() => this.#onClosed(error));
  }

  #schedule(): void {
    if (this.#scheduled || !this.#started) return;
    this.#scheduled = true;
    setImmediate(this.#deliver);
  }
}
