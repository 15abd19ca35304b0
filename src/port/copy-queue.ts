/**
 * Frames that the kernel would not take yet, copied into one ring of bytes: bounded, first in first out,
 * without an allocation per frame.
 *
 * @module
 */
import { assert } from '../base/assert.ts';
import type { FrameBuffer } from '../env/frame.ts';

/** Bytes that an entry is rounded up to; also bounds how many entries there can be. */
const ENTRY_ALIGN_BYTES = 64;

/** A queue of byte runs (each a virtio-net header and its frame). Its memory is made at the first use. */
export class CopyQueue {
  readonly #capacityBytes: number;
  /** Start and length of each entry, a ring like the memory itself. */
  readonly #starts: Int32Array;
  readonly #lengths: Int32Array;
  #buffer: FrameBuffer | undefined;
  #head = 0;
  #count = 0;
  /** Where the next entry begins. */
  #tail = 0;

  /** @param capacityBytes a multiple of 64 */
  constructor(capacityBytes: number) {
    assert(capacityBytes % ENTRY_ALIGN_BYTES === 0, 'capacity is a multiple of the alignment');
    this.#capacityBytes = capacityBytes;
    const entries = capacityBytes / ENTRY_ALIGN_BYTES;
    this.#starts = new Int32Array(entries);
    this.#lengths = new Int32Array(entries);
  }

  /** Entries in the queue. */
  get count(): number {
    return this.#count;
  }

  /** The memory that `start` points into; stays the same. */
  get buffer(): FrameBuffer {
    if (this.#buffer === undefined) {
      const memory = new ArrayBuffer(this.#capacityBytes);
      this.#buffer = { bytes: new Uint8Array(memory), view: new DataView(memory) };
    }
    return this.#buffer;
  }

  /**
   * Makes room at the end for `bytes` bytes (at least 1).
   *
   * @returns where to write them in `buffer`; -1 when the queue is full
   */
  reserve(bytes: number): number {
    const size = Math.ceil(bytes / ENTRY_ALIGN_BYTES) * ENTRY_ALIGN_BYTES;
    const start = this.#place(size);
    if (start < 0) return -1;
    const entry = (this.#head + this.#count) % this.#starts.length;
    this.#starts[entry] = start;
    this.#lengths[entry] = bytes;
    this.#count++;
    this.#tail = start + size;
    return start;
  }

  /** Where entry `index` (0 = the oldest) begins in `buffer`. */
  start(index: number): number {
    return this.#starts[(this.#head + index) % this.#starts.length]!;
  }

  /** Bytes of entry `index`. */
  bytes(index: number): number {
    return this.#lengths[(this.#head + index) % this.#lengths.length]!;
  }

  /** Drops the oldest `count` entries. */
  shift(count: number): void {
    assert(count <= this.#count, 'no more entries are taken than there are');
    this.#head = (this.#head + count) % this.#starts.length;
    this.#count -= count;
    if (this.#count === 0) this.#tail = 0;
  }

  /**
   * Drops `bytes` bytes from the front, whole entries and the beginning of one.
   *
   * @returns how many entries are gone entirely
   */
  advance(bytes: number): number {
    let left = bytes;
    let entries = 0;
    while (left > 0) {
      assert(this.#count > 0, 'no more bytes are taken than there are');
      const length = this.#lengths[this.#head]!;
      if (length > left) {
        this.#starts[this.#head]! += left;
        this.#lengths[this.#head]! -= left;
        break;
      }
      left -= length;
      this.shift(1);
      entries++;
    }
    return entries;
  }

  #place(size: number): number {
    if (this.#count === 0) return size <= this.#capacityBytes ? 0 : -1;
    const first = this.#starts[this.#head]!;
    if (this.#tail > first) {
      if (this.#tail + size <= this.#capacityBytes) return this.#tail;
      return size <= first ? 0 : -1;
    }
    // Wrapped: the free space lies between the newest and the oldest entry.
    return this.#tail + size <= first ? this.#tail : -1;
  }
}
