/**
 * Memory of guest output that waits, within the limits of one flow and of all: in the pool, or lent by the stream that brought it, where it
 * counts as much.
 *
 * @module
 */
import type { FrameBuffer } from '../env/frame.ts';
import type { PrimaryConfig } from './config.ts';
import type { Counters } from './counters.ts';
import type { FramePool, PooledFrame } from './frame-pool.ts';
import type { PrimaryFlow } from './primary-context.ts';

export class HeldMemory {
  readonly #config: PrimaryConfig;
  readonly #pool: FramePool;
  readonly #dropped: Counters;
  readonly #onLimit: (flow: PrimaryFlow) => void;
  /** Of all flows. */
  #bytes = 0;
  #lentFrames = 0;
  #lentBytes = 0;

  /** @param onLimit a flow has reached a limit, which asks for a checkpoint */
  constructor(
    config: PrimaryConfig,
    pool: FramePool,
    dropped: Counters,
    onLimit: (flow: PrimaryFlow) => void,
  ) {
    this.#config = config;
    this.#pool = pool;
    this.#dropped = dropped;
    this.#onLimit = onLimit;
  }

  /** For `status`. */
  get held(): { readonly frames: number; readonly bytes: number } {
    return {
      frames: this.#pool.usedFrames + this.#lentFrames,
      bytes: this.#pool.usedBytes + this.#lentBytes,
    };
  }

  /** Copies a frame into the pool; undefined, and counted, beyond twice a limit. */
  hold(
    flow: PrimaryFlow,
    buffer: FrameBuffer,
    offset: number,
    length: number,
  ): PooledFrame | undefined {
    if (this.#isOver(flow, 1)) {
      this.#onLimit(flow);
      if (this.#isOver(flow, 2)) {
        this.#dropped.add('held-limit');
        return undefined;
      }
    }
    const frame = this.#pool.copy(buffer, offset, length);
    this.#count(flow, frame.slotBytes);
    return frame;
  }

  /** Gives pool memory of a flow back. */
  unhold(flow: PrimaryFlow, frame: PooledFrame): void {
    this.#count(flow, -frame.slotBytes);
    this.#pool.release(frame);
  }

  /** See `PrimaryContext`. */
  lend(flow: PrimaryFlow, slotBytes: number): boolean {
    if (this.#isOver(flow, 1)) return false;
    this.#count(flow, slotBytes);
    this.#lentBytes += slotBytes;
    this.#lentFrames++;
    return true;
  }

  /** See `PrimaryContext`. */
  unlend(flow: PrimaryFlow, slotBytes: number): void {
    this.#count(flow, -slotBytes);
    this.moveLent(slotBytes);
  }

  /** See `PrimaryContext`. */
  moveLent(slotBytes: number): void {
    this.#lentBytes -= slotBytes;
    this.#lentFrames--;
  }

  #isOver(flow: PrimaryFlow, times: number): boolean {
    const { heldBytesMax, flowHeldBytesMax } = this.#config;
    return this.#bytes > times * heldBytesMax || flow.heldBytes > times * flowHeldBytesMax;
  }

  #count(flow: PrimaryFlow, bytes: number): void {
    flow.heldBytes += bytes;
    this.#bytes += bytes;
  }
}
