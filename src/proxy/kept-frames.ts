/**
 * Frames put aside while a checkpoint is under way, in order and bounded: at the limit the newest is refused.
 *
 * @module
 */
import type { EngineStatus } from '../env/engine.ts';
import type { FrameBuffer } from '../env/frame.ts';
import type { FramePool, PooledFrame } from './frame-pool.ts';

export class KeptFrames {
  readonly #pool: FramePool;
  readonly #bytesMax: number;
  #frames: PooledFrame[] = [];
  #bytes = 0;

  constructor(pool: FramePool, bytesMax: number) {
    this.#pool = pool;
    this.#bytesMax = bytesMax;
  }

  get frames(): number {
    return this.#frames.length;
  }

  /** Pool memory in use. */
  get bytes(): number {
    return this.#bytes;
  }

  /** Copies a frame. False when the limit is reached: the frame is not kept. */
  push(buffer: FrameBuffer, offset: number, length: number): boolean {
    if (this.#bytes >= this.#bytesMax) return false;
    const frame = this.#pool.copy(buffer, offset, length);
    this.#frames.push(frame);
    this.#bytes += frame.slotBytes;
    return true;
  }

  /** Hands all frames out in order and forgets them; their memory stays valid until the batch was sent. */
  drain(visit: (buffer: FrameBuffer, offset: number, length: number) => void): void {
    const frames = this.#frames;
    this.#frames = [];
    this.#bytes = 0;
    for (const frame of frames) {
      visit(frame.buffer, frame.offset, frame.length);
      this.#pool.release(frame);
    }
  }

  clear(): void {
    this.drain(() => {});
  }
}

/** What is held in several places together. */
export function heldTogether(...places: readonly EngineStatus['held'][]): EngineStatus['held'] {
  let [frames, bytes] = [0, 0];
  for (const place of places) {
    frames += place.frames;
    bytes += place.bytes;
  }
  return { frames, bytes };
}
