/**
 * One TCP connection in the primary engine: the PVM's segments are held until the SVM has produced the same bytes
 * (G1), and tell the client no more about its own data than both guests cover (G2).
 *
 *     PVM segment --> queue of held segments (first in, first out: G4) --> released when
 *                       bytes:  end <= compared            (compare/stream.ts)
 *                       ACK:    lowered to what both cover (compare/ack-gate.ts)
 *                       SYN:    the SVM has sent its own, with the same options
 *                       RST:    the SVM has sent its own
 *
 * A guest's TCP sends the same bytes whenever it retransmits a position (RFC 9293 §3.8.1): what lies before
 * `compared` is not compared again.
 *
 * Required reading before changing it: RFC 9293 §3.10.7, RFC 2018, RFC 7323, docs/ARCHITECTURE.md.
 *
 * @module
 */
import { ArrayPool } from '../base/array-pool.ts';
import { type Micros, NEVER } from '../base/time.ts';
import { AckGate } from '../compare/ack-gate.ts';
import {
  STREAM_DIFFERENT_FIN,
  STREAM_EQUAL,
  StreamComparer,
  type StreamHandlers,
} from '../compare/stream.ts';
import type { FrameBuffer } from '../env/frame.ts';
import type { CheckpointCause } from '../env/messages.ts';
import { TcpTrack, trackTcp } from '../flow/tcp-state.ts';
import type { FrameInfo } from '../wire/frame.ts';
import { type Seq, seqAdd, seqBefore, seqBeforeOrEqual, seqDistance, seqMax } from '../wire/seq.ts';
import { TCP_ACK, TCP_FIN, TCP_HEADER_BYTES_MIN, TCP_RST, TCP_SYN } from '../wire/tcp.ts';
import { parseTcpOptions, type TcpOptions } from '../wire/tcp-options.ts';
import type { PooledFrame } from './frame-pool.ts';
import { dropAck, type KeptAck, passAck, sendPendingAck, sendWholeAck } from './primary-ack.ts';
import { timeoutCause, waitingSinceUs, wantCheckpoint } from './primary-causes.ts';
import type { PrimaryContext, PrimaryFlowBase } from './primary-context.ts';
import { type LentSegment, settleLent } from './primary-lent.ts';
import {
  describePiece,
  describeSegment,
  type HeldSegment,
  keepSegment,
  lookAt,
  recyclePiece,
  recycleSegment,
  type SecondaryPiece,
  segmentLength,
} from './primary-segment.ts';
import { Handshake } from './primary-syn.ts';
import { TcpFacts } from './primary-tcp-facts.ts';

/** SVM bytes this far beyond what either guest has sent are not of this stream (bytes). */
const AHEAD_MAX = 1 << 30;

const heldArrays = new ArrayPool<HeldSegment>();

const STREAM_HANDLERS: StreamHandlers<HeldSegment, SecondaryPiece> = {
  onPrimaryDropped: (segment) => {
    segment.queued = false;
  },
  onSecondaryDropped: (piece) => piece.flow?.freePiece(piece),
};

export class TcpFlow extends TcpFacts implements PrimaryFlowBase {
  slot = -1;
  wheelSlot = -1;
  epoch = 0;
  heldBytes = 0;
  heldFrames = 0;

  readonly gate = new AckGate();
  readonly comparer: StreamComparer<HeldSegment, SecondaryPiece>;
  held: HeldSegment[] = heldArrays.none;
  /** What waits in the stream's memory instead, see primary-lent.ts: only while `isSteady`. */
  lentFirst: LentSegment | undefined = undefined;
  lentLast: LentSegment | undefined = undefined;

  /** The connection was open before it was seen: output before this position cannot be verified. */
  pickupSeq: Seq | undefined = undefined;

  readonly handshake = new Handshake();
  /** The connection's state, by which it ages. */
  readonly connection = new TcpTrack();

  /** What could not (wholly) go out of the PVM's last ACK. */
  heldAck: KeptAck | undefined = undefined;
  /** When the agreed prefix grew last. */
  progressUs: Micros = 0;

  /** Segments in `held` with `isRepeat`. */
  #repeatsHeld = 0;
  readonly #context: PrimaryContext;

  constructor(context: PrimaryContext) {
    super();
    this.#context = context;
    this.comparer = new StreamComparer(STREAM_HANDLERS);
  }

  get kind(): 'tcp' {
    return 'tcp';
  }

  // ------------------------------------------------------------------ ingress

  /** A segment of the client, on its way to both guests. */
  onClient(info: FrameInfo): void {
    trackTcp(this.connection, info, false);
    const flags = info.tcpFlags;
    if ((flags & TCP_SYN) !== 0) {
      if ((flags & TCP_ACK) === 0) {
        this.primaryReset = false;
        this.outliveReset();
      }
      if (this.handshake.onClientSyn(info)) {
        this.gate.windowShift = this.handshake.windowShift();
      }
    } else if ((flags & TCP_ACK) !== 0 && this.primaryEndKnown) {
      const ack = info.ack;
      // Only an ACK of something sent says anything: others are forged or stale (RFC 9293 §3.10.7.4).
      if (seqBeforeOrEqual(ack, this.primaryEnd)) {
        if (!this.clientAckKnown || seqBefore(this.clientAck, ack)) this.clientAck = ack;
        this.clientAckKnown = true;
      }
    }
  }

  // ------------------------------------------------------------------ egress

  /** A segment of the PVM that passes without comparing: only its numbers are noted. */
  track(info: FrameInfo): void {
    if ((info.tcpFlags & TCP_SYN) !== 0) this.#onPrimarySyn(info);
    this.#noteNumbers(info);
    this.releasedKnown = true;
    this.releasedEnd = this.primaryEnd;
  }

  /**
   * A segment of the PVM, in `buffer`. `fragments`: the frames it was put together from, if it came in fragments; `info` then
   * describes memory that is only valid during this call.
   */
  onPrimary(
    buffer: FrameBuffer,
    info: FrameInfo,
    fragments: readonly PooledFrame[] | undefined,
  ): void {
    this.#settle();
    if ((info.tcpFlags & TCP_SYN) !== 0) this.#onPrimarySyn(info);
    const isRepeat = this.primaryEndKnown && seqBefore(info.seq, this.primaryEnd);
    this.#noteNumbers(info);
    const segment = describeSegment(buffer, info, fragments, this.#context.nowUs);
    const payload = info.payloadBytes;
    segment.isRepeat = isRepeat && payload > 0;
    if (this.#isRetransmission(segment, payload)) {
      this.#context.counts.retransmissions++;
      this.#release(segment);
      // Its bytes were agreed on; its ACK may have been kept back.
      this.#armIfWaiting();
      return;
    }
    this.#join(segment);
    if (segment.isRepeat) this.#repeatsHeld++;
    if (!this.diverged) this.#offerPrimary(segment, payload);
    this.#pump();
    if (this.held.length > 0 && this.held[this.held.length - 1] === segment) {
      if (!keepSegment(this.#context, this, segment)) this.#lose(segment);
    }
    this.#armIfWaiting();
  }

  /** A segment of the SVM: seq already in the PVM's numbers, except that of a SYN. */
  onSecondary(info: FrameInfo): void {
    this.#settle();
    const context = this.#context;
    const flags = info.tcpFlags;
    if (this.diverged) {
      context.dropped.add('secondary-after-divergence');
      return;
    }
    if ((flags & TCP_SYN) !== 0) this.#onSecondarySyn(info);
    if ((flags & TCP_RST) !== 0) {
      if (!this.secondaryReset) this.resetSinceUs = context.nowUs;
      this.secondaryReset = true;
    } else {
      this.outliveReset();
      if ((flags & TCP_ACK) !== 0) this.#onSecondaryAck(info);
      if (info.payloadBytes > 0 || (flags & TCP_FIN) !== 0) this.#offerSecondary(info);
    }
    this.#pump();
    this.#armIfWaiting();
  }

  // ------------------------------------------------------------------ checkpoints

  /** Releases everything held, as it is: covered by a commit, or the node is unprotected. */
  releaseAll(): void {
    this.#settle();
    const held = this.held;
    this.held = heldArrays.none;
    this.heldFrames = 0;
    this.#repeatsHeld = 0;
    // Before the segments: to be taken out one by one they would have to be looked for.
    this.comparer.reset();
    for (const segment of held) this.#send(segment);
    heldArrays.give(held);
    sendWholeAck(this.#context, this, this.#releasedEnd());
    this.secondarySinceUs = NEVER;
    this.resetSinceUs = NEVER;
    this.diverged = false;
    this.reported = false;
  }

  /** A checkpoint was committed since this flow was touched last: both guests stand where the PVM stood. */
  adoptCheckpoint(epoch: number): void {
    this.epoch = epoch;
    this.releasedKnown = this.primaryEndKnown;
    this.releasedEnd = this.primaryEnd;
    if (this.primaryEndKnown) this.comparer.restart(this.primaryEnd);
    else this.comparer.reset();
    this.gate.adoptPrimary();
    sendWholeAck(this.#context, this, this.#releasedEnd());
    this.pickupSeq = undefined;
    this.gate.windowShift = this.handshake.adoptCheckpoint();
    this.secondaryReset = this.primaryReset;
    this.secondarySinceUs = NEVER;
    this.resetSinceUs = NEVER;
    this.diverged = false;
    this.reported = false;
  }

  // ------------------------------------------------------------------ deadlines

  /** Since when the other guest has been silent about the oldest thing that waits; NEVER when nothing does. */
  waitingSinceUs(): Micros {
    return waitingSinceUs(this, this.#context.config.compareTimeoutUs);
  }

  /** The compare timeout has passed since `waitingSinceUs()`. */
  onTimeout(): void {
    this.#want(timeoutCause(this, this.#context.config.compareTimeoutUs));
  }

  /** End of the batch: the SVM may have caught up with a held ACK. */
  onFlush(): void {
    if (!this.diverged) sendPendingAck(this.#context, this, this.#releasedEnd());
    this.#armIfWaiting();
  }

  // ------------------------------------------------------------------ details: SYN

  #onPrimarySyn(info: FrameInfo): void {
    if (!this.handshake.onPrimarySyn(info)) return;
    // What an earlier connection of the same ports still holds has no mate any more, and nothing may pass it: a checkpoint covers all.
    if (this.held.length > 0) this.#diverge('unverifiable');
    this.primaryEnd = info.seq;
    this.primaryEndKnown = true;
    this.releasedKnown = false;
    this.clientAckKnown = false;
    this.pickupSeq = undefined;
    this.primaryReset = false;
    this.gate.primaryKnown = false;
    this.gate.emittedKnown = false;
    dropAck(this.#context, this);
    this.comparer.clearPrimary();
    this.gate.windowShift = this.handshake.windowShift();
    this.#matchSyn();
  }

  #onSecondarySyn(info: FrameInfo): void {
    if (!this.handshake.onSecondarySyn(info)) return;
    this.secondaryReset = false;
    this.resetSinceUs = NEVER;
    this.comparer.clearSecondary();
    this.secondarySinceUs = NEVER;
    this.gate.forgetSecondary();
    dropAck(this.#context, this);
    this.gate.windowShift = this.handshake.windowShift();
    this.#matchSyn();
  }

  /** Once both SYNs are there, comparing begins behind them. */
  #matchSyn(): void {
    const result = this.handshake.match();
    if (result === 'different') this.#diverge('different-options');
    const isn = this.handshake.primaryIsn;
    if (result !== 'matched' || isn === undefined) return;
    this.comparer.start(seqAdd(isn, 1));
    this.#advance();
  }

  // ------------------------------------------------------------------ details: PVM segments

  /** From here on everything goes the ordinary way. */
  #settle(): void {
    if (this.lentFirst === undefined) return;
    settleLent(this.#context, this, (segment) => {
      this.#join(segment);
      segment.queued = true;
      this.comparer.insertPrimary(segment);
    });
  }

  #join(segment: HeldSegment): void {
    if (this.held === heldArrays.none) this.held = heldArrays.take();
    this.held.push(segment);
    this.heldFrames++;
  }

  #noteNumbers(info: FrameInfo): void {
    trackTcp(this.connection, info, true);
    const flags = info.tcpFlags;
    const isSyn = (flags & TCP_SYN) !== 0;
    if ((flags & TCP_RST) !== 0) {
      this.primaryReset = true;
      return;
    }
    this.primaryReset = false;
    const end = seqAdd(info.seq, segmentLength(info));
    this.primaryEnd = this.primaryEndKnown ? seqMax(this.primaryEnd, end) : end;
    this.primaryEndKnown = true;
    if ((flags & TCP_ACK) !== 0) this.gate.onPrimary(info.ack, info.window, isSyn);
  }

  /**
   * Bytes that were agreed on before go out at once, past whatever is held: waiting would only let the client
   * wait. So do bytes that the client has acknowledged, whoever sent them.
   */
  #isRetransmission(segment: HeldSegment, payload: number): boolean {
    if ((segment.flags & TCP_RST) !== 0 || this.diverged || this.handshake.isAhead) return false;
    if ((segment.flags & TCP_ACK) !== 0 && !this.gate.secondaryKnown) return false;
    if ((segment.flags & TCP_SYN) !== 0) return this.handshake.matched && this.releasedKnown;
    if (payload === 0 && (segment.flags & TCP_FIN) === 0) return false;
    if (!this.comparer.started || !this.releasedKnown) return false;
    if (!seqBeforeOrEqual(segment.segmentEnd, this.releasedEnd)) return false;
    if (!seqBeforeOrEqual(segment.segmentEnd, this.comparer.compared)) return false;
    if (segment.fragments !== undefined && !this.#fragmentsMayGo(segment)) return false;
    if (this.pickupSeq === undefined || !seqBefore(segment.seq, this.pickupSeq)) return true;
    return this.clientAckKnown && seqBeforeOrEqual(segment.segmentEnd, this.clientAck);
  }

  #offerPrimary(segment: HeldSegment, payload: number): void {
    const isFin = (segment.flags & TCP_FIN) !== 0;
    if (payload === 0 && !isFin) return;
    const comparer = this.comparer;
    if (!comparer.started) {
      if (this.handshake.isWaiting) {
        // Waits for the SVM's SYN; the pieces are compared from there on.
      } else this.#pickUp(segment.seq);
    } else if (this.pickupSeq !== undefined && seqBefore(segment.seq, this.pickupSeq)) {
      this.#want('unverifiable');
      this.diverged = true;
      return;
    }
    if (payload > 0 && (!comparer.started || seqBefore(comparer.compared, segment.end))) {
      segment.queued = true;
      comparer.insertPrimary(segment);
    }
    if (isFin) comparer.primaryFin = segment.end;
    this.#advance();
  }

  /** The connection was open before it was seen: comparing begins at the PVM's first byte. */
  #pickUp(seq: Seq): void {
    let start = seq;
    if (this.clientAckKnown) start = seqMax(start, this.clientAck);
    this.pickupSeq = seq;
    this.comparer.start(start);
    this.#context.counters.add('pickedUp');
  }

  // ------------------------------------------------------------------ details: SVM segments

  #onSecondaryAck(info: FrameInfo): void {
    const gate = this.gate;
    let options: TcpOptions | undefined;
    if (info.tcpHeaderBytes > TCP_HEADER_BYTES_MIN) {
      options = this.#context.scratchOptions;
      parseTcpOptions(info.view, info.l4Offset + 20, info.l4Offset + info.tcpHeaderBytes, options);
    }
    const isSyn = (info.tcpFlags & TCP_SYN) !== 0;
    if (!gate.onSecondary(info.ack, info.window, isSyn, options)) return;
    if (this.heldAck !== undefined) this.#context.markDirty(this);
  }

  #offerSecondary(info: FrameInfo): void {
    const comparer = this.comparer;
    const context = this.#context;
    const { seq } = info;
    // A SYN's own number is unadjusted, so bytes on it have no position; they come again.
    if ((info.tcpFlags & TCP_SYN) !== 0) return;
    const end = seqAdd(seq, info.payloadBytes);
    if (comparer.started) {
      const ahead = seqDistance(comparer.compared, seq);
      if (ahead > AHEAD_MAX || ahead < -AHEAD_MAX) {
        context.dropped.add('secondary-out-of-window');
        return;
      }
    }
    if (this.secondarySinceUs === NEVER) this.secondarySinceUs = context.nowUs;
    let piece: SecondaryPiece | undefined;
    if (info.payloadBytes > 0 && (!comparer.started || seqBefore(comparer.compared, end))) {
      piece = describePiece(info, context.nowUs);
      piece.queued = true;
      piece.flow = this;
      comparer.insertSecondary(piece);
    }
    if ((info.tcpFlags & TCP_FIN) !== 0) comparer.secondaryFin = end;
    this.#advance();
    if (piece?.queued) this.#keepSecondary(piece, info);
  }

  #keepSecondary(piece: SecondaryPiece, info: FrameInfo): void {
    const frame = this.#context.hold(this, info, info.frameOffset, info.frameBytes);
    if (frame === undefined) {
      this.comparer.removeSecondary(piece);
      recyclePiece(piece);
      return;
    }
    piece.frame = frame;
    piece.bytes = frame.buffer.bytes;
    piece.offset = frame.offset + (info.payloadOffset - info.frameOffset);
  }

  /** The comparer needs it no more. */
  freePiece(piece: SecondaryPiece): void {
    if (piece.frame !== undefined) this.#context.unhold(this, piece.frame);
    recyclePiece(piece);
  }

  #advance(): void {
    const comparer = this.comparer;
    const before = comparer.compared;
    const verdict = comparer.advance();
    if (comparer.compared !== before) this.progressUs = this.#context.nowUs;
    if (verdict !== STREAM_EQUAL) {
      this.#diverge(verdict === STREAM_DIFFERENT_FIN ? 'fin-mismatch' : 'different-bytes');
      return;
    }
    this.#updateSecondarySince();
  }

  #updateSecondarySince(): void {
    const comparer = this.comparer;
    const first = comparer.secondary.first;
    if (first !== undefined) this.secondarySinceUs = first.arrivedUs;
    else if (
      comparer.secondaryFin === undefined ||
      (comparer.started && seqBefore(comparer.secondaryFin, comparer.compared))
    ) {
      this.secondarySinceUs = NEVER;
    }
  }

  #diverge(cause: CheckpointCause): void {
    this.#want(cause);
    this.diverged = true;
  }

  #want(cause: CheckpointCause): void {
    wantCheckpoint(this.#context, this, cause);
  }

  // ------------------------------------------------------------------ details: release

  /** Releases from the head of the queue as far as the rules allow. */
  #pump(): void {
    if (this.diverged) return;
    const held = this.held;
    let released = 0;
    while (released < held.length && this.#mayGo(held[released]!)) {
      const segment = held[released++]!;
      this.#leaveQueue(segment);
      this.#release(segment);
    }
    if (released === held.length) this.held = heldArrays.give(held);
    else if (released === 1) held.shift();
    else if (released > 1) held.splice(0, released);
    if (this.#repeatsHeld > 0 && held.length > 1) this.#pumpRepeats();
  }

  /**
   * What fills a gap does not wait behind the segments after the gap: the SVM may be unable to go on to those before
   * the client has it (its window waits for the client, who waits for the missing segment). Nor does the beginning of the first
   * one, sent again by itself.
   */
  #pumpRepeats(): void {
    const head = this.held[0]!;
    for (let i = 1; i < this.held.length && this.#repeatsHeld > 0; i++) {
      const segment = this.held[i]!;
      if (!segment.isRepeat || seqBefore(head.seq, segment.seq) || !this.#mayGo(segment)) continue;
      this.held.splice(i--, 1);
      this.#leaveQueue(segment);
      this.#context.counts.retransmissions++;
      this.#release(segment);
    }
  }

  /** Beyond the hard limit: as if the network had lost it; the guest will send it again. */
  #lose(segment: HeldSegment): void {
    this.held.pop();
    this.#leaveQueue(segment);
    if (segment.queued) this.comparer.removePrimary(segment);
  }

  #leaveQueue(segment: HeldSegment): void {
    this.heldFrames--;
    if (segment.isRepeat) this.#repeatsHeld--;
  }

  #mayGo(segment: HeldSegment): boolean {
    const flags = segment.flags;
    if (this.handshake.isAhead) return false;
    if ((flags & TCP_RST) !== 0) return this.secondaryReset;
    if ((flags & TCP_SYN) !== 0 && !this.handshake.matched) return false;
    if ((flags & TCP_ACK) !== 0 && !this.gate.secondaryKnown) return false;
    const comparer = this.comparer;
    if (segment.seq !== segment.end || (flags & TCP_FIN) !== 0) {
      if (!comparer.started || !seqBeforeOrEqual(segment.segmentEnd, comparer.compared)) {
        return false;
      }
    }
    return segment.fragments === undefined || this.#fragmentsMayGo(segment);
  }

  /** A header that lies in fragments is not changed: it waits until the SVM covers all of it. */
  #fragmentsMayGo(segment: HeldSegment): boolean {
    if ((segment.flags & TCP_ACK) === 0) return true;
    const isSyn = (segment.flags & TCP_SYN) !== 0;
    return !this.gate.limit(segment.ack, segment.window, isSyn).lowered && !segment.hasSack;
  }

  /** Lets a segment out: as it is, lowered, or (a pure ACK that says nothing new yet) later. */
  #release(segment: HeldSegment): void {
    const flags = segment.flags;
    const isPureAck =
      segment.seq === segment.end &&
      (flags & (TCP_SYN | TCP_FIN | TCP_RST)) === 0 &&
      (flags & TCP_ACK) !== 0;
    if ((flags & TCP_ACK) !== 0 && (flags & TCP_RST) === 0) {
      if (!passAck(this.#context, this, segment, isPureAck)) {
        this.#free(segment);
        return;
      }
    }
    if ((flags & TCP_SYN) !== 0 && segment.fragments === undefined) {
      this.handshake.lower(lookAt(segment, this.#context.scratchInfo));
    }
    if ((flags & TCP_RST) !== 0) this.resetSinceUs = NEVER;
    this.#context.counts.compared++;
    // An ACK or RST alone stands at a position without taking any: it releases nothing of the stream.
    if ((flags & (TCP_SYN | TCP_FIN)) !== 0 || segment.seq !== segment.end) {
      this.#noteReleased(segment.segmentEnd);
    }
    this.#send(segment);
  }

  #noteReleased(end: Seq): void {
    if (this.releasedKnown && !seqBefore(this.releasedEnd, end)) return;
    this.releasedEnd = end;
    this.releasedKnown = true;
    this.progressed = true;
    this.#context.markDirty(this);
  }

  #releasedEnd(): Seq | undefined {
    return this.releasedKnown ? this.releasedEnd : undefined;
  }

  #send(segment: HeldSegment): void {
    const context = this.#context;
    if (segment.fragments !== undefined) {
      for (const fragment of segment.fragments) {
        context.emit(fragment.buffer, fragment.offset, fragment.length);
      }
    } else context.emit(segment.buffer, segment.frameOffset, segment.frameBytes);
    context.latency.record(context.nowUs - segment.arrivedUs);
    this.#free(segment);
  }

  #free(segment: HeldSegment): void {
    if (segment.queued) this.comparer.removePrimary(segment);
    if (segment.frame !== undefined) this.#context.unhold(this, segment.frame);
    if (segment.fragments !== undefined) {
      for (const fragment of segment.fragments) this.#context.unhold(this, fragment);
    }
    recycleSegment(segment);
  }

  #armIfWaiting(): void {
    if (this.wheelSlot !== -1) return;
    const { nowUs, config, wheel } = this.#context;
    const sinceUs = this.waitingSinceUs();
    // Nothing waits for the SVM, yet a smaller window than the PVM's is out: a commit must find the flow in the wheel.
    if (sinceUs === NEVER && this.heldAck === undefined) return;
    wheel.arm(this, (sinceUs === NEVER ? nowUs : sinceUs) + config.compareTimeoutUs);
  }
}
