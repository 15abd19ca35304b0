/**
 * Memory for frames that must outlive the batch they came in: held output, kept client frames,
 * retained output. Slots of a few sizes are cut from slabs and used again, so that holding a frame
 * (which every matched frame does for the moment until its mate arrives) makes no garbage.
 *
 * A released slot is not used again before the next `reclaim()`, because frames passed to an
 * `EngineOutput` stay borrowed until the batch has been sent (see `env/engine.ts`).
 *
 * @module
 */
import { assert } from '../base/assert.ts';
import type { FrameBuffer, FrameKeeper } from '../env/frame.ts';
import { FRAME_BYTES_MAX, VNET_HDR_BYTES } from '../limits.ts';
import { VNET_HDR_LEN } from '../wire/vnet-hdr.ts';

/** Slot sizes in bytes: pure ACKs, Ethernet frames, jumbo frames, half and whole GSO frames. */
const SLOT_BYTES: readonly number[] = [256, 2_048, 9_728, 33_280, 66_048];
/** A slab is about this large, so that the slots of one size lie together. */
const SLAB_BYTES = 1_048_576;

/** Memory that a frame of `length` bytes (0..FRAME_BYTES_MAX) takes in a pool. */
export function slotBytesFor(length: number): number {
  return SLOT_BYTES[slotClassFor(length)]!;
}

function slotClassFor(length: number): number {
  let slotClass = 0;
  while (SLOT_BYTES[slotClass]! < length + VNET_HDR_BYTES) slotClass++;
  return slotClass;
}

/** A frame in pool memory; the virtio-net header lies in the VNET_HDR_BYTES before `offset`. */
export interface PooledFrame {
  readonly buffer: FrameBuffer;
  /** First byte of the Ethernet header. */
  readonly offset: number;
  /** Bytes of the frame, without the virtio-net header. */
  length: number;
  /** Bytes of memory that it occupies: what limits count. */
  readonly slotBytes: number;
  readonly slotClass: number;
  inUse: boolean;
  /** Of the frame that it is a copy of; see `FrameKeeper`. 0: of none that waits elsewhere. */
  mark: number;
}

export class FramePool {
  readonly #keeper: FrameKeeper | undefined;
  #free: PooledFrame[][] = SLOT_BYTES.map(() => []);
  #released: PooledFrame[] = [];
  #usedBytes = 0;
  #usedFrames = 0;

  /** @param keeper hears of copies of frames that wait elsewhere */
  constructor(keeper?: FrameKeeper) {
    this.#keeper = keeper;
  }

  /** Bytes of the slots in use. */
  get usedBytes(): number {
    return this.#usedBytes;
  }

  /** Slots in use. */
  get usedFrames(): number {
    return this.#usedFrames;
  }

  /**
   * A slot for a frame of `length` bytes (0..FRAME_BYTES_MAX). Its content, virtio-net header included, is
   * whatever the slot held before.
   */
  acquire(length: number): PooledFrame {
    assert(length >= 0 && length <= FRAME_BYTES_MAX, 'frame length within FRAME_BYTES_MAX');
    const slotClass = slotClassFor(length);
    const free = this.#free[slotClass]!;
    if (free.length === 0) this.#addSlab(slotClass);
    const frame = free.pop()!;
    assert(!frame.inUse, 'a free slot is not in use');
    frame.inUse = true;
    frame.length = length;
    this.#usedBytes += frame.slotBytes;
    this.#usedFrames++;
    return frame;
  }

  /** Copies a frame and its virtio-net header into a slot. */
  copy(buffer: FrameBuffer, offset: number, length: number): PooledFrame {
    const frame = this.acquire(length);
    frame.buffer.bytes.set(
      buffer.bytes.subarray(offset - VNET_HDR_BYTES, offset + length),
      frame.offset - VNET_HDR_BYTES,
    );
    if (this.#keeper !== undefined) {
      frame.mark = frame.buffer.view.getUint16(frame.offset - VNET_HDR_BYTES + VNET_HDR_LEN, true);
      if (frame.mark !== 0) this.#keeper.onKept(frame.mark);
    }
    return frame;
  }

  /** Gives a slot back; its memory stays untouched until `reclaim`. */
  release(frame: PooledFrame): void {
    assert(frame.inUse, 'a slot is released once');
    frame.inUse = false;
    this.#usedBytes -= frame.slotBytes;
    this.#usedFrames--;
    this.#released.push(frame);
    if (frame.mark === 0) return;
    this.#keeper?.onForgotten(frame.mark);
    frame.mark = 0;
  }

  /** Call at the start of a batch: what was released in the last one may be used again. */
  reclaim(): void {
    const released = this.#released;
    for (let i = 0; i < released.length; i++) {
      const frame = released[i]!;
      this.#free[frame.slotClass]!.push(frame);
    }
    released.length = 0;
  }

  #addSlab(slotClass: number): void {
    const slotBytes = SLOT_BYTES[slotClass]!;
    const count = Math.max(1, Math.floor(SLAB_BYTES / slotBytes));
    const bytes = new Uint8Array(slotBytes * count);
    const buffer: FrameBuffer = { bytes, view: new DataView(bytes.buffer) };
    for (let i = count - 1; i >= 0; i--) {
      this.#free[slotClass]!.push({
        buffer,
        offset: i * slotBytes + VNET_HDR_BYTES,
        length: 0,
        slotBytes,
        slotClass,
        inUse: false,
        mark: 0,
      });
    }
  }
}
