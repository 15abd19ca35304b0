/**
 * Fragments in the primary engine: put together for comparing, while the original fragments are what is released. A
 * datagram of the PVM that does not become whole within the compare timeout cannot be compared: its fragments are held
 * until a checkpoint covers them.
 *
 * @module
 */
import type { Micros } from '../base/time.ts';
import type { FrameBuffer } from '../env/frame.ts';
import { Reassembly } from '../flow/reassembly.ts';
import { dissect, FRAME_OK, FrameInfo } from '../wire/frame.ts';
import type { PooledFrame } from './frame-pool.ts';
import type { PrimaryContext } from './primary-context.ts';
import type { DatagramFlow } from './primary-datagram.ts';

/** Takes a whole datagram and the frames it came in; these are on the orphans' account. */
export type ReassembledHandler = (
  buffer: FrameBuffer,
  info: FrameInfo,
  frames: readonly PooledFrame[],
) => void;

export interface FragmentHandlers {
  readonly onPrimary: ReassembledHandler;
  readonly onSecondary: ReassembledHandler;
}

export class FragmentTracker {
  readonly #context: PrimaryContext;
  /** Holds what cannot be compared, and keeps the account of all fragments. */
  readonly #orphans: DatagramFlow;
  readonly #primary: Reassembly<PooledFrame>;
  readonly #secondary: Reassembly<PooledFrame>;
  /** Of the reassembled datagram, while `info` describes the fragment. */
  readonly #whole = new FrameInfo();

  constructor(context: PrimaryContext, orphans: DatagramFlow, handlers: FragmentHandlers) {
    this.#context = context;
    this.#orphans = orphans;
    const timeoutUs = context.config.compareTimeoutUs;
    this.#primary = new Reassembly<PooledFrame>({
      timeoutUs,
      onComplete: (buffer, offset, length, frames) => {
        if (dissect(buffer, offset, length, this.#whole) === FRAME_OK) {
          handlers.onPrimary(buffer, this.#whole, frames);
        } else this.#orphan(frames, 'guest-reassembled-malformed');
      },
      onAbandon: (frames, reason) => {
        // Cleared: a checkpoint covers them, or the node is unprotected; they are released with the orphans.
        if (reason === 'cleared') this.#orphans.holdOnly(frames);
        else this.#orphan(frames, `guest-fragments-${reason}`);
      },
    });
    this.#secondary = new Reassembly<PooledFrame>({
      timeoutUs,
      onComplete: (buffer, offset, length, frames) => {
        if (dissect(buffer, offset, length, this.#whole) === FRAME_OK) {
          handlers.onSecondary(buffer, this.#whole, frames);
        } else this.#free(frames, 'secondary-reassembled-malformed');
      },
      onAbandon: (frames, reason) => this.#free(frames, `secondary-fragments-${reason}`),
    });
  }

  onPrimary(buffer: FrameBuffer, info: FrameInfo): void {
    const frame = this.#context.hold(this.#orphans, buffer, info.frameOffset, info.frameBytes);
    if (frame !== undefined) this.#primary.add(info, frame, this.#context.nowUs);
  }

  onSecondary(buffer: FrameBuffer, info: FrameInfo): void {
    const frame = this.#context.hold(this.#orphans, buffer, info.frameOffset, info.frameBytes);
    if (frame !== undefined) this.#secondary.add(info, frame, this.#context.nowUs);
  }

  /** Hands all fragments of the PVM to the orphans, which are about to be released, and drops the SVM's. */
  clear(): void {
    this.#primary.clear();
    this.#secondary.clear();
  }

  expire(nowUs: Micros): void {
    this.#primary.expire(nowUs);
    this.#secondary.expire(nowUs);
  }

  nextUs(): Micros {
    return Math.min(this.#primary.nextDeadlineUs(), this.#secondary.nextDeadlineUs());
  }

  #orphan(frames: readonly PooledFrame[], counter: string): void {
    if (frames.length === 0) return;
    this.#context.counters.add(counter);
    this.#orphans.holdOnly(frames);
    this.#context.want(this.#orphans, 'unverifiable', -1, '', '');
  }

  #free(frames: readonly PooledFrame[], counter: string): void {
    if (frames.length === 0) return;
    this.#context.dropped.add(counter, frames.length);
    for (const frame of frames) this.#context.unhold(this.#orphans, frame);
  }
}
