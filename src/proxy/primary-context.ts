/**
 * What the parts of the primary engine share: memory, time of the current batch, counters, and the ways out.
 *
 * @module
 */
import type { Histogram } from '../base/histogram.ts';
import type { Micros } from '../base/time.ts';
import type { TimerWheel, WheelEntry } from '../base/timer-wheel.ts';
import type { FrameBuffer } from '../env/frame.ts';
import type { CheckpointCause } from '../env/messages.ts';
import type { FlowEntry } from '../flow/table.ts';
import type { FrameInfo } from '../wire/frame.ts';
import type { TcpOptions } from '../wire/tcp-options.ts';
import type { PrimaryConfig } from './config.ts';
import type { Counters } from './counters.ts';
import type { FramePool, PooledFrame } from './frame-pool.ts';
import type { DatagramFlow } from './primary-datagram.ts';
import type { TcpFlow } from './primary-tcp.ts';

/** Fields that every flow of the primary has. */
export interface PrimaryFlowBase extends FlowEntry, WheelEntry {
  /** Epoch whose comparing state this is; an older one is brought up to date at the next touch. */
  epoch: number;
  /** The guests differ here: everything is held until the next commit. */
  diverged: boolean;
  /** A divergence of this flow was counted since the last commit. */
  reported: boolean;
  /** Bytes of pool memory that it occupies. */
  heldBytes: number;
  heldFrames: number;
  /** Is it in the list for the end of the batch? */
  dirty: boolean;
  /** Progress to tell the secondary. */
  progressed: boolean;
  /** Is it in the list of the next progress report? */
  inReport: boolean;
}

export type PrimaryFlow = TcpFlow | DatagramFlow;

/** Counters of the per-frame path. */
export interface PrimaryCounts {
  released: number;
  compared: number;
  ackLowered: number;
  sackTrimmed: number;
  pureAcksBuilt: number;
  passListed: number;
  retransmissions: number;
}

export function createPrimaryCounts(): PrimaryCounts {
  return {
    released: 0,
    compared: 0,
    ackLowered: 0,
    sackTrimmed: 0,
    pureAcksBuilt: 0,
    passListed: 0,
    retransmissions: 0,
  };
}

export interface PrimaryContext {
  readonly config: PrimaryConfig;
  readonly pool: FramePool;
  readonly wheel: TimerWheel<PrimaryFlow>;
  readonly dropped: Counters;
  readonly counters: Counters;
  readonly counts: PrimaryCounts;
  readonly latency: Histogram;
  /** For frames that are looked at again when they are released. */
  readonly scratchInfo: FrameInfo;
  readonly scratchOptions: TcpOptions;
  /** Time of the batch. */
  nowUs: Micros;
  /** Sends a frame of the PVM to the network; the memory stays untouched until the batch is sent. */
  emit(buffer: FrameBuffer, offset: number, length: number): void;
  /** Takes pool memory for a flow, within the limits; undefined (and counted) beyond the hard limit. */
  hold(
    flow: PrimaryFlow,
    buffer: FrameBuffer,
    offset: number,
    length: number,
  ): PooledFrame | undefined;
  /** Gives pool memory of a flow back. */
  unhold(flow: PrimaryFlow, frame: PooledFrame): void;
  /** A frame of a flow waits outside the pool, where it would take `slotBytes`; false (and nothing done) at the limits. */
  lend(flow: PrimaryFlow, slotBytes: number): boolean;
  /** It waits no longer. */
  unlend(flow: PrimaryFlow, slotBytes: number): void;
  /** It has moved into the pool. */
  moveLent(slotBytes: number): void;
  /** Asks for a checkpoint because of `flow`. */
  want(
    flow: PrimaryFlow,
    cause: CheckpointCause,
    offset: number,
    primaryExcerpt: string,
    secondaryExcerpt: string,
  ): void;
  /** Puts the flow on the list for the end of the batch. */
  markDirty(flow: PrimaryFlow): void;
}

/** How many bytes of a difference are shown. */
export const EXCERPT_BYTES_MAX = 16;
