/**
 * What waits to be written to the peer: messages are appended to large buffers, and whole buffers are
 * given to the socket. A buffer is used again when the socket says that it is written. No I/O here.
 *
 * While a write is under way only full buffers follow it (at most IN_FLIGHT_BUFFERS_MAX), and small messages
 * gather in the last one. So memory stays near the bytes queued however many flushes there are, and an
 * unbusy link still sends at every flush.
 *
 * @module
 */
import { assert } from '../base/assert.ts';
import type { FrameBuffer } from '../env/frame.ts';

/** Bytes of one send buffer: several of the largest messages, one write. */
export const SEND_BUFFER_BYTES = 256 * 1024;

/** Writes under way: one in the kernel's hands and one to follow it without a pause. */
const IN_FLIGHT_BUFFERS_MAX = 2;

/** Idle buffers kept for use (4 MiB); after a burst the rest is left to the garbage collector. */
const FREE_BUFFERS_MAX = 16;

/** Memory of the queue, filled up to `end`. */
interface SendBuffer extends FrameBuffer {
  end: number;
}

/** Gives `bytes` to the transport, which must leave them alone and call `onWritten` once they are sent (not when it fails). */
export type LinkWrite = (bytes: Uint8Array, onWritten: () => void) => void;

/** Idle send buffers, shared by the successive connections of one link. */
export class SendBufferPool {
  readonly #free: SendBuffer[] = [];

  take(): SendBuffer {
    const free = this.#free.pop();
    if (free !== undefined) return free;
    const bytes = new Uint8Array(SEND_BUFFER_BYTES);
    return { bytes, view: new DataView(bytes.buffer), end: 0 };
  }

  giveBack(buffer: SendBuffer): void {
    buffer.end = 0;
    if (this.#free.length < FREE_BUFFERS_MAX) this.#free.push(buffer);
  }
}

/** Send queue of one connection. */
export class LinkSendQueue {
  readonly #pool: SendBufferPool;
  readonly #write: LinkWrite;
  /** Full buffers, oldest first, before `#current`. */
  readonly #full: SendBuffer[] = [];
  #current: SendBuffer | undefined;
  #inFlight = 0;
  #isFlushWanted = false;
  #queuedBytes = 0;
  #writtenBytes = 0;

  constructor(pool: SendBufferPool, write: LinkWrite) {
    this.#pool = pool;
    this.#write = write;
  }

  /** Bytes appended and not yet written. */
  get queuedBytes(): number {
    return this.#queuedBytes;
  }

  /** Bytes written so far: grows while the peer reads. */
  get writtenBytes(): number {
    return this.#writtenBytes;
  }

  /** Memory with room for `bytes`, to be written from `offset`; valid until `commit`. */
  reserve(bytes: number): { readonly buffer: FrameBuffer; readonly offset: number } {
    assert(bytes <= SEND_BUFFER_BYTES, 'one message fits in a send buffer');
    if (this.#current !== undefined && this.#current.end + bytes > SEND_BUFFER_BYTES) {
      this.#full.push(this.#current);
      this.#current = undefined;
    }
    this.#current ??= this.#pool.take();
    return { buffer: this.#current, offset: this.#current.end };
  }

  /** Appends the first `bytes` of what `reserve` gave. */
  commit(bytes: number): void {
    assert(this.#current !== undefined, 'commit follows reserve');
    this.#current.end += bytes;
    this.#queuedBytes += bytes;
  }

  /** Gives what was appended to the transport, now or as soon as the writes before it are done. */
  flush(): void {
    this.#isFlushWanted = true;
    this.#pump();
  }

  /** Forgets everything; what the transport still holds is not used again. */
  clear(): void {
    this.#full.length = 0;
    this.#current = undefined;
    this.#isFlushWanted = false;
    this.#queuedBytes = 0;
  }

  #pump(): void {
    while (this.#isFlushWanted && this.#inFlight < IN_FLIGHT_BUFFERS_MAX) {
      const full = this.#full.shift();
      if (full !== undefined) {
        this.#hand(full);
        continue;
      }
      if (this.#inFlight > 0) return;
      this.#isFlushWanted = false;
      const current = this.#current;
      if (current === undefined || current.end === 0) return;
      this.#current = undefined;
      this.#hand(current);
    }
  }

  #hand(buffer: SendBuffer): void {
    this.#inFlight++;
    this.#write(buffer.bytes.subarray(0, buffer.end), () => {
      this.#inFlight--;
      this.#queuedBytes = Math.max(0, this.#queuedBytes - buffer.end);
      this.#writtenBytes += buffer.end;
      this.#pool.giveBack(buffer);
      this.#pump();
    });
  }
}
