/**
 * A flow of datagrams (UDP, ICMP, ICMPv6, other protocols over IP, other EtherTypes) in the primary engine. The
 * PVM's datagrams are matched, in whatever order the SVM's come, against those that the SVM has sent; they go out
 * in the PVM's order (G4).
 *
 * A datagram that finds no mate may have a late one: it waits. When both guests have had one without a mate for
 * DATAGRAM_REORDER_US, or either for the compare timeout, the guests differ.
 *
 * @module
 */
import { type Micros, NEVER } from '../base/time.ts';
import { ComparedRanges, rangesEqual, rangesExcerpt } from '../compare/datagram.ts';
import type { FrameBuffer } from '../env/frame.ts';
import type { CheckpointCause } from '../env/messages.ts';
import { DATAGRAM_REORDER_US } from '../limits.ts';
import type { FrameInfo } from '../wire/frame.ts';
import type { PooledFrame } from './frame-pool.ts';
import { EXCERPT_BYTES_MAX, type PrimaryContext, type PrimaryFlowBase } from './primary-context.ts';

/** A datagram of one guest that waits. `frames`: one, or its fragments. */
interface Waiting {
  readonly frames: readonly PooledFrame[];
  /** What of it is compared. */
  readonly ranges: ComparedRanges;
  readonly arrivedUs: Micros;
  matched: boolean;
}

const incoming = new ComparedRanges();

export class DatagramFlow implements PrimaryFlowBase {
  readonly kind = 'datagram';
  slot = -1;
  wheelSlot = -1;
  epoch = 0;
  diverged = false;
  reported = false;
  heldBytes = 0;
  heldFrames = 0;
  dirty = false;
  progressed = false;
  inReport = false;
  /** Datagrams of the SVM in this epoch that are dealt with; what `progress` tells the secondary. */
  settled = 0;
  /** Datagrams of the PVM released since the flow is known: the place of a divergence. */
  releasedCount = 0;

  readonly primary: Waiting[] = [];
  readonly secondary: Waiting[] = [];
  readonly #context: PrimaryContext;

  constructor(context: PrimaryContext) {
    this.#context = context;
  }

  /**
   * A datagram of the PVM in `buffer`, described by `info`. `fragments`: the pool frames it came in, when it was
   * reassembled; `info` then describes memory of its own, valid during this call.
   */
  onPrimary(
    buffer: FrameBuffer,
    info: FrameInfo,
    fragments: readonly PooledFrame[] | undefined,
  ): void {
    incoming.describe(info);
    const mate = this.diverged ? -1 : this.#findSecondary();
    if (mate !== -1) {
      this.#settle(mate);
      if (this.primary.length === 0) {
        this.#releaseNow(buffer, info, fragments);
        return;
      }
    }
    const waiting = this.#keep(buffer, info, fragments, mate !== -1);
    if (waiting === undefined) return;
    this.primary.push(waiting);
    this.heldFrames++;
    this.#arm();
  }

  /** A datagram of the SVM. */
  onSecondary(
    buffer: FrameBuffer,
    info: FrameInfo,
    fragments: readonly PooledFrame[] | undefined,
  ): void {
    if (this.diverged) {
      this.#context.dropped.add('secondary-after-divergence');
      this.#freeFragments(fragments);
      return;
    }
    incoming.describe(info);
    for (const waiting of this.primary) {
      if (waiting.matched || !rangesEqual(waiting.ranges, incoming)) continue;
      waiting.matched = true;
      this.#countSettled();
      this.#freeFragments(fragments);
      this.#pump();
      return;
    }
    const waiting = this.#keep(buffer, info, fragments, false);
    if (waiting === undefined) return;
    this.secondary.push(waiting);
    this.#arm();
  }

  /** Frames of the PVM that cannot be compared: they wait for a checkpoint. They are on this flow's account. */
  holdOnly(frames: readonly PooledFrame[]): void {
    const ranges = new ComparedRanges();
    this.primary.push({ frames, ranges, arrivedUs: this.#context.nowUs, matched: false });
    this.heldFrames++;
    this.diverged = true;
  }

  /** Releases everything held, as it is; what the SVM sent is dropped. */
  releaseAll(): void {
    for (const waiting of this.primary.splice(0)) this.#release(waiting);
    for (const waiting of this.secondary.splice(0)) this.#free(waiting);
    this.heldFrames = 0;
    this.diverged = false;
    this.reported = false;
  }

  /** A checkpoint was committed. */
  adoptCheckpoint(epoch: number): void {
    this.epoch = epoch;
    this.settled = 0;
    this.diverged = false;
    this.reported = false;
  }

  /** Nothing is left to do at the end of a batch. */
  onFlush(): void {}

  waitingSinceUs(): Micros {
    const primary = this.primary.find((w) => !w.matched);
    const secondary = this.secondary[0];
    return Math.min(
      primary === undefined ? NEVER : primary.arrivedUs,
      secondary === undefined ? NEVER : secondary.arrivedUs,
    );
  }

  /** When the flow is to be looked at: see the module's comment. */
  deadlineUs(): Micros {
    const since = this.waitingSinceUs();
    const primary = this.primary.find((w) => !w.matched);
    const secondary = this.secondary[0];
    const timeout = since + this.#context.config.compareTimeoutUs;
    if (primary === undefined || secondary === undefined) return timeout;
    const both = Math.max(primary.arrivedUs, secondary.arrivedUs) + DATAGRAM_REORDER_US;
    return Math.min(timeout, both);
  }

  /** `deadlineUs()` has come. */
  onTimeout(): void {
    const primary = this.primary.find((w) => !w.matched);
    const secondary = this.secondary[0];
    let cause: CheckpointCause;
    if (primary !== undefined && secondary !== undefined) {
      const sameLength = primary.ranges.total === secondary.ranges.total;
      cause = sameLength ? 'different-bytes' : 'different-length';
      this.diverged = true;
    } else cause = primary !== undefined ? 'secondary-silent' : 'primary-silent';
    this.#context.want(
      this,
      cause,
      this.releasedCount,
      primary === undefined ? '' : rangesExcerpt(primary.ranges, EXCERPT_BYTES_MAX),
      secondary === undefined ? '' : rangesExcerpt(secondary.ranges, EXCERPT_BYTES_MAX),
    );
  }

  #findSecondary(): number {
    for (let i = 0; i < this.secondary.length; i++) {
      if (rangesEqual(this.secondary[i]!.ranges, incoming)) return i;
    }
    return -1;
  }

  #settle(index: number): void {
    const [waiting] = this.secondary.splice(index, 1);
    if (waiting !== undefined) this.#free(waiting);
    this.#countSettled();
  }

  #countSettled(): void {
    this.settled++;
    if (!this.#context.config.reportsProgress) return;
    this.progressed = true;
    this.#context.markDirty(this);
  }

  #releaseNow(
    buffer: FrameBuffer,
    info: FrameInfo,
    fragments: readonly PooledFrame[] | undefined,
  ): void {
    const context = this.#context;
    if (fragments === undefined) context.emit(buffer, info.frameOffset, info.frameBytes);
    else {
      for (const frame of fragments) context.emit(frame.buffer, frame.offset, frame.length);
      this.#freeFragments(fragments);
    }
    context.counts.compared++;
    context.latency.record(0);
    this.releasedCount++;
  }

  /** Copies a datagram into the pool; a reassembled one keeps its fragments and a copy of what is compared. */
  #keep(
    buffer: FrameBuffer,
    info: FrameInfo,
    fragments: readonly PooledFrame[] | undefined,
    matched: boolean,
  ): Waiting | undefined {
    const context = this.#context;
    const ranges = new ComparedRanges();
    ranges.describe(info);
    let frames = fragments;
    if (frames === undefined) {
      const frame = context.hold(this, buffer, info.frameOffset, info.frameBytes);
      if (frame === undefined) return undefined;
      moveRanges(ranges, frame.buffer.bytes, frame.offset - info.frameOffset);
      frames = [frame];
    } else {
      const start = ranges.offset[0];
      const last = (ranges.count - 1) as 0;
      const end = ranges.offset[last]! + ranges.length[last]!;
      moveRanges(ranges, info.bytes.slice(start, end), -start);
    }
    return { frames, ranges, arrivedUs: context.nowUs, matched };
  }

  #pump(): void {
    let count = 0;
    while (count < this.primary.length && this.primary[count]!.matched) {
      this.#release(this.primary[count++]!);
      this.#context.counts.compared++;
      this.heldFrames--;
    }
    if (count > 0) this.primary.splice(0, count);
  }

  #release(waiting: Waiting): void {
    const context = this.#context;
    for (const frame of waiting.frames) context.emit(frame.buffer, frame.offset, frame.length);
    context.latency.record(context.nowUs - waiting.arrivedUs);
    this.releasedCount++;
    this.#free(waiting);
  }

  #free(waiting: Waiting): void {
    for (const frame of waiting.frames) this.#context.unhold(this, frame);
  }

  #freeFragments(fragments: readonly PooledFrame[] | undefined): void {
    if (fragments === undefined) return;
    for (const frame of fragments) this.#context.unhold(this, frame);
  }

  #arm(): void {
    const context = this.#context;
    const deadline = this.deadlineUs();
    if (deadline === NEVER) return;
    if (this.wheelSlot !== -1) {
      // The second guest's unmatched datagram brings the deadline forward.
      if (this.primary.length === 0 || this.secondary.length === 0) return;
      context.wheel.disarm(this);
    }
    context.wheel.arm(this, deadline);
  }
}

function moveRanges(ranges: ComparedRanges, bytes: Uint8Array, distance: number): void {
  ranges.bytes = bytes;
  for (let i = 0; i < ranges.count; i++) ranges.offset[i as 0]! += distance;
}
