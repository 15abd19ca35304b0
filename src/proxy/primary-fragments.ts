/**
 * Fragments in the primary engine: put together for comparing, while the original fragments are what is released.
 *
 * @module
 */
import { type Micros, NEVER } from '../base/time.ts';
import type { FrameBuffer } from '../env/frame.ts';
import type { FrameInfo } from '../wire/frame.ts';
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
  readonly #orphans: DatagramFlow;

  constructor(
    context: PrimaryContext,
    orphans: DatagramFlow,
    _nowUs: Micros,
    _handlers: FragmentHandlers,
  ) {
    this.#context = context;
    this.#orphans = orphans;
  }

  onPrimary(buffer: FrameBuffer, info: FrameInfo): void {
    this.#context.want(this.#orphans, 'unverifiable', -1, '', '');
    this.#orphans.diverged = true;
    this.#orphans.onPrimary(buffer, info, undefined);
  }

  onSecondary(_buffer: FrameBuffer, _info: FrameInfo): void {
    this.#context.dropped.add('secondary-fragment');
  }

  releaseAll(): void {}

  clear(): void {}

  expire(_nowUs: Micros): void {}

  nextUs(): Micros {
    return NEVER;
  }
}
