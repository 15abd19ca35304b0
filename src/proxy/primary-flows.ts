/**
 * The primary's flows: finds or makes the flow of a frame and hands it over. Bounded: at the limits the least
 * recently used flow with nothing held is forgotten; where every flow holds something, a checkpoint is asked for.
 *
 * A forgotten flow is picked up again when it speaks; nothing is released on the strength of what was forgotten.
 *
 * @module
 */
import { type Micros, NEVER } from '../base/time.ts';
import type { FlowStatus } from '../env/engine.ts';
import type { FrameBuffer } from '../env/frame.ts';
import type { ProgressEntry } from '../env/messages.ts';
import {
  FLOW_CLOSED,
  FLOW_DATAGRAM,
  FLOW_ESTABLISHED,
  FLOW_HALF_OPEN,
  type FlowClass,
  FlowTable,
} from '../flow/table.ts';
import { TCP_CLOSED, TCP_STATE_NAMES, type TcpTrack, tcpFlowClass } from '../flow/tcp-state.ts';
import type { FrameInfo } from '../wire/frame.ts';
import { seqAdd, seqBefore, seqBeforeOrEqual } from '../wire/seq.ts';
import { TCP_SYN } from '../wire/tcp.ts';
import { isPassListed, type PrimaryConfig } from './config.ts';

import type { PrimaryContext, PrimaryFlow } from './primary-context.ts';
import { DatagramFlow } from './primary-datagram.ts';
import { FragmentTracker } from './primary-fragments.ts';
import {
  LENT_MORE,
  LENT_TAKEN,
  lendPrimary,
  matchLent,
  type RecordSink,
  type StreamRecord,
} from './primary-lent.ts';
import {
  PAIR_PRIMARY_AHEAD,
  PAIR_SECONDARY_AHEAD,
  PAIR_TAKEN,
  PAIR_TOOK_PRIMARY,
  PAIR_TOOK_SECONDARY,
  PAIR_WAITS,
  type PairResult,
  saysTheSame,
  takePair,
} from './primary-lockstep.ts';
import { TcpFlow } from './primary-tcp.ts';

const PROTOCOL_TCP = 6;
/**
 * A flow that was used less than this ago is not moved to the end of its list for a plain segment: that writes to five places of a
 * large table. Its timeouts are of many seconds.
 */
const TOUCH_US: Micros = 100_000;

/**
 * How a flow ages where only the guest's segments are seen, of which `flags` are the last one's. A guest says more than SYN once its
 * own was acknowledged; when it has sent a FIN nobody can tell whether the client has.
 */
function guestFlowClass({ guest, state }: TcpTrack, flags: number): FlowClass {
  if (guest.hasFin || state === TCP_CLOSED) return FLOW_CLOSED;
  return (flags & TCP_SYN) !== 0 ? FLOW_HALF_OPEN : FLOW_ESTABLISHED;
}

export class PrimaryFlows {
  readonly #context: PrimaryContext;
  readonly #table: FlowTable<PrimaryFlow>;
  /** Frames of other EtherTypes: one flow, the whole frame is compared. */
  readonly #other: DatagramFlow;
  /** Output that cannot be compared (no room for a flow, fragments that do not fit): held until a commit. */
  readonly #orphans: DatagramFlow;
  readonly #fragments: FragmentTracker;
  #epoch = 0;

  /** Frames wait for a checkpoint because their flows found no room. */
  #hasOrphans = false;

  constructor(context: PrimaryContext, config: PrimaryConfig) {
    this.#context = context;
    this.#table = new FlowTable<PrimaryFlow>({
      hashKey: config.hashKey,
      flowsMax: config.flowsMax,
      halfOpenMax: config.halfOpenFlowsMax,
    });
    this.#other = new DatagramFlow(context);
    this.#orphans = new DatagramFlow(context);
    this.#fragments = new FragmentTracker(context, this.#orphans, {
      onPrimary: (buffer, info, frames) => this.#primaryFrame(buffer, info, frames),
      onSecondary: (buffer, info, frames) => this.#secondaryFrame(buffer, info, frames),
    });
  }

  get size(): number {
    return this.#table.size;
  }

  // ------------------------------------------------------------------ frames

  /** A client's frame on its way to the guests: only TCP has anything to learn from it. */
  onClientFrame(info: FrameInfo): void {
    if (info.protocol !== PROTOCOL_TCP || info.ipVersion === 0 || info.isFragment) return;
    const isSyn = (info.tcpFlags & TCP_SYN) !== 0;
    const flow = this.#find(info, false) ?? (isSyn ? this.#insert(info, false) : undefined);
    if (flow === undefined || flow.kind !== 'tcp') return;
    flow.onClient(info);
    this.#classify(flow, info);
  }

  /** A frame of the PVM that passes uncompared; its numbers are needed when protection begins. */
  track(info: FrameInfo): void {
    if (info.protocol !== PROTOCOL_TCP || info.ipVersion === 0 || info.isFragment) return;
    const flow = this.#find(info, true) ?? this.#insert(info, true);
    if (flow === undefined || flow.kind !== 'tcp') return;
    flow.track(info);
    this.#classify(flow, info);
  }

  /** A frame of the PVM, protected. */
  onPrimaryFrame(buffer: FrameBuffer, info: FrameInfo): void {
    if (info.isFragment) this.#fragments.onPrimary(buffer, info);
    else this.#primaryFrame(buffer, info, undefined);
  }

  /** A frame of the SVM, of this epoch. */
  onSecondaryFrame(buffer: FrameBuffer, info: FrameInfo): void {
    if (info.isFragment) this.#fragments.onSecondary(buffer, info);
    else this.#secondaryFrame(buffer, info, undefined);
  }

  #primaryFrame(
    buffer: FrameBuffer,
    info: FrameInfo,
    fragments: Parameters<DatagramFlow['onPrimary']>[2],
  ): void {
    if (fragments !== undefined && this.isPassListed(info)) {
      for (const frame of fragments) {
        this.#context.emit(frame.buffer, frame.offset, frame.length);
        this.#context.unhold(this.#orphans, frame);
      }
      return;
    }
    const flow = this.#flowFor(info);
    if (flow === undefined) {
      this.#context.counters.add('flowsFull');
      this.#context.want(this.#orphans, 'limit', -1, '', '');
      this.#orphans.diverged = true;
      this.#hasOrphans = true;
      this.#orphans.onPrimary(buffer, info, fragments);
      return;
    }
    this.#adoptFragments(flow, fragments);
    flow.onPrimary(buffer, info, fragments);
    if (flow.kind === 'tcp') this.#classify(flow, info);
  }

  /** Is it not to be compared, by the operator's word? Counted then. Fragments, of which not all have ports, are judged once they are whole. */
  isPassListed(info: FrameInfo): boolean {
    const isListed = !info.isFragment && isPassListed(info, this.#context.config.passList);
    if (isListed) this.#context.counts.passListed++;
    return isListed;
  }

  /** The heads of both guests' streams, plain segments: see primary-lockstep.ts and primary-lent.ts. */
  onHeads(
    primary: FrameInfo | undefined,
    secondary: FrameInfo | undefined,
    record: StreamRecord,
    sink: RecordSink,
  ): PairResult {
    const { passList } = this.#context.config;
    if (primary !== undefined && isPassListed(primary, passList)) return PAIR_SECONDARY_AHEAD;
    if (secondary !== undefined) {
      if (isPassListed(secondary, passList)) return PAIR_PRIMARY_AHEAD;
      if (primary !== undefined && this.#takePair(primary, secondary)) return PAIR_TAKEN;
      const result = this.#onSecondaryHead(secondary, sink);
      if (result !== PAIR_WAITS || primary === undefined) return result;
    }
    return primary === undefined ? PAIR_WAITS : this.#onPrimaryHead(primary, record);
  }

  #takePair(primary: FrameInfo, secondary: FrameInfo): boolean {
    if (!saysTheSame(primary, secondary)) return false;
    const flow = this.#findPlain(primary);
    if (flow === undefined || !takePair(this.#context, flow, primary)) return false;
    this.#classify(flow, primary);
    return true;
  }

  #onSecondaryHead(info: FrameInfo, sink: RecordSink): PairResult {
    const flow = this.#findPlain(info);
    if (flow === undefined) return PAIR_PRIMARY_AHEAD;
    if (flow.lentFirst !== undefined) {
      const result = matchLent(this.#context, flow, info, sink);
      if (result === LENT_MORE) return PAIR_WAITS;
      return result === LENT_TAKEN ? PAIR_TOOK_SECONDARY : PAIR_PRIMARY_AHEAD;
    }
    const { comparer } = flow;
    const isOrdinary = flow.diverged || !comparer.started || !flow.primaryEndKnown;
    // What is held waits for bytes that may be here already.
    if (isOrdinary || flow.held.length > 0 || info.payloadBytes === 0) return PAIR_PRIMARY_AHEAD;
    // Where the SVM is ahead, the PVM's segments come first: so the streams stay side by side, and nothing of the SVM's is copied.
    const isNext = seqBeforeOrEqual(info.seq, comparer.compared);
    const isBeyond = seqBefore(flow.primaryEnd, seqAdd(info.seq, info.payloadBytes));
    return comparer.secondary.size > 0 || (isNext && isBeyond) ? PAIR_WAITS : PAIR_PRIMARY_AHEAD;
  }

  #onPrimaryHead(info: FrameInfo, record: StreamRecord): PairResult {
    const flow = this.#findPlain(info);
    if (flow === undefined || !lendPrimary(this.#context, flow, info, record)) {
      return PAIR_SECONDARY_AHEAD;
    }
    this.#classify(flow, info);
    return PAIR_TOOK_PRIMARY;
  }

  #findPlain(info: FrameInfo): TcpFlow | undefined {
    const flow = this.#table.find(info, true);
    if (flow === undefined || flow.kind !== 'tcp') return undefined;
    const { nowUs } = this.#context;
    if (nowUs - this.#table.usedUs(flow) > TOUCH_US) this.#table.touch(flow, nowUs);
    if (flow.epoch !== this.#epoch) flow.adoptCheckpoint(this.#epoch);
    return flow;
  }

  #secondaryFrame(
    buffer: FrameBuffer,
    info: FrameInfo,
    fragments: Parameters<DatagramFlow['onPrimary']>[2],
  ): void {
    if (fragments !== undefined && this.isPassListed(info)) {
      this.#context.counters.add('secondaryNotCompared');
      for (const frame of fragments) this.#context.unhold(this.#orphans, frame);
      return;
    }
    const flow = this.#flowFor(info);
    if (flow === undefined) {
      this.#context.dropped.add('secondary-flows-full');
      for (const frame of fragments ?? []) this.#context.unhold(this.#orphans, frame);
      return;
    }
    this.#adoptFragments(flow, fragments);
    if (flow.kind === 'tcp') {
      flow.onSecondary(info);
      for (const frame of fragments ?? []) this.#context.unhold(flow, frame);
    } else flow.onSecondary(buffer, info, fragments);
  }

  /** Fragments were held on the orphans' account. */
  #adoptFragments(flow: PrimaryFlow, fragments: Parameters<DatagramFlow['onPrimary']>[2]): void {
    if (fragments === undefined) return;
    for (const frame of fragments) {
      this.#orphans.heldBytes -= frame.slotBytes;
      flow.heldBytes += frame.slotBytes;
    }
  }

  // ------------------------------------------------------------------ table

  #flowFor(info: FrameInfo): PrimaryFlow | undefined {
    const flow =
      info.ipVersion === 0 ? this.#other : (this.#find(info, true) ?? this.#insert(info, true));
    if (flow !== undefined && flow.epoch !== this.#epoch) flow.adoptCheckpoint(this.#epoch);
    return flow;
  }

  #find(info: FrameInfo, guestIsSource: boolean): PrimaryFlow | undefined {
    const flow = this.#table.find(info, guestIsSource);
    if (flow !== undefined) this.#table.touch(flow, this.#context.nowUs);
    return flow;
  }

  #insert(info: FrameInfo, guestIsSource: boolean): PrimaryFlow | undefined {
    // What found no room waits for the checkpoint: a flow made now could let later frames of the same kind pass it (G4).
    if (this.#hasOrphans) return undefined;
    const isTcp = info.protocol === PROTOCOL_TCP;
    const isSyn = isTcp && (info.tcpFlags & TCP_SYN) !== 0;
    let flowClass: FlowClass = FLOW_DATAGRAM;
    if (isTcp) flowClass = isSyn ? FLOW_HALF_OPEN : FLOW_ESTABLISHED;
    const { nowUs } = this.#context;
    const hasRoom = this.#table.makeRoom(
      flowClass,
      nowUs,
      (flow) => this.#canEvict(flow),
      () => this.#context.counters.add('flowsEvicted'),
    );
    if (!hasRoom) return undefined;
    const flow: PrimaryFlow = isTcp ? new TcpFlow(this.#context) : new DatagramFlow(this.#context);
    flow.epoch = this.#epoch;
    this.#table.insert(info, guestIsSource, flow, nowUs, flowClass);
    return flow;
  }

  /** A flow with something held or waiting stays. */
  #canEvict(flow: PrimaryFlow): boolean {
    return flow.heldBytes === 0 && !flow.dirty && flow.waitingSinceUs() === NEVER;
  }

  #classify(flow: TcpFlow, info: FrameInfo): void {
    const { connection } = flow;
    const flowClass = this.#context.config.seesClients
      ? tcpFlowClass(connection.state)
      : guestFlowClass(connection, info.tcpFlags);
    if (this.#table.classOf(flow) !== flowClass) {
      this.#table.setClass(flow, flowClass, this.#context.nowUs);
    }
  }

  // ------------------------------------------------------------------ checkpoints

  /** Releases everything held, in every flow. */
  releaseAll(): void {
    this.#fragments.clear();
    // Before the flows: what one of them holds came when it had room, hence later.
    this.#orphans.releaseAll();
    this.#hasOrphans = false;
    // Whatever holds or waits is armed in the wheel.
    this.#context.wheel.forEach((flow) => {
      flow.releaseAll();
    });
    this.#other.releaseAll();
  }

  /** From now on flows of an older epoch are brought up to date when they are touched. */
  adoptCheckpoint(epoch: number): void {
    this.#epoch = epoch;
    this.#orphans.adoptCheckpoint(epoch);
    this.#other.adoptCheckpoint(epoch);
    // Flows with work pending in this batch must not go on with the old epoch's state.
    this.#context.wheel.forEach((flow) => {
      if (flow.epoch !== epoch) flow.adoptCheckpoint(epoch);
    });
  }

  // ------------------------------------------------------------------ time

  /** The wheel hands out a flow. */
  onDue(flow: PrimaryFlow): void {
    const { nowUs, config } = this.#context;
    const deadlineUs =
      flow.kind === 'datagram'
        ? flow.deadlineUs()
        : flow.waitingSinceUs() + config.compareTimeoutUs;
    if (deadlineUs === NEVER) {
      flow.reported = false;
      if (flow.heldBytes > 0) this.#context.wheel.arm(flow, nowUs + config.compareTimeoutUs);
      return;
    }
    if (deadlineUs > nowUs) {
      this.#context.wheel.arm(flow, deadlineUs);
      return;
    }
    flow.onTimeout();
    this.#context.wheel.arm(flow, nowUs + config.compareTimeoutUs);
  }

  expire(nowUs: Micros): void {
    this.#fragments.expire(nowUs);
    this.#table.expire(
      nowUs,
      (flow) => this.#canEvict(flow),
      () => this.#context.counters.add('flowsAged'),
    );
  }

  nextUs(): Micros {
    return Math.min(this.#table.nextExpiryUs(), this.#fragments.nextUs());
  }

  // ------------------------------------------------------------------ looking

  /** Readable name of a flow. */
  describe(flow: PrimaryFlow): string {
    if (flow === this.#other) return 'other EtherTypes';
    if (flow === this.#orphans || flow.slot === -1) return 'output that cannot be compared';
    return this.#table.describeFlow(flow);
  }

  /** What the secondary is told of a flow's progress; undefined when there is nothing to tell. */
  progressOf(flow: PrimaryFlow): ProgressEntry | undefined {
    if (flow.slot === -1) return undefined;
    if (flow.kind === 'tcp' && !flow.releasedKnown) return undefined;
    const position = flow.kind === 'tcp' ? flow.releasedEnd : flow.settled;
    return { ...this.#table.key(flow), position };
  }

  /** Not in the table, and first, since something is held there: what could not be compared, and frames of other EtherTypes. */
  list(countMax: number): FlowStatus[] {
    const list: FlowStatus[] = [];
    for (const flow of [this.#orphans, this.#other]) {
      if (flow.heldBytes > 0 && list.length < countMax) list.push(this.#statusOf(flow));
    }
    for (const flow of this.#table.values()) {
      if (list.length >= countMax) break;
      list.push(this.#statusOf(flow));
    }
    return list;
  }

  #statusOf(flow: PrimaryFlow): FlowStatus {
    const { diverged, epoch, heldBytes, heldFrames } = flow;
    const isTcp = flow.kind === 'tcp';
    return {
      flow: this.describe(flow),
      tcpState: isTcp ? (TCP_STATE_NAMES[flow.connection.state] ?? '') : '',
      heldFrames,
      heldBytes,
      detail: { diverged, released: isTcp ? flow.releasedEnd : flow.releasedCount, epoch },
    };
  }
}
