/**
 * What the secondary knows of one flow: the two initial sequence numbers, hence the translation between the guests'
 * numbers, and where the connection stands, for the moment of a failover. Numbers are the PVM's (those of the wire)
 * unless a name says otherwise.
 *
 * ```text
 * PVM's SYN (copy from the primary) -- primaryIsn, primarySynTsval --+
 *   or the client's first ACK: ack - 1                              +--> seqDelta, tsDelta
 * SVM's SYN ------------------------ secondaryIsn, secondarySynTsval --+
 * ```
 *
 * **Timestamps.** The client keeps the newest TSval that it has seen (TS.Recent) and drops segments with an older one
 * (PAWS, RFC 7323 §5). It has seen the PVM's, so from the failover on the SVM's must lie beyond. The two clocks tick
 * alike from the SYNs on (`tsDelta`), but the SVM's may lag, by pauses or because it was restored from a
 * checkpoint. So the first segment after the failover jumps ahead: TIMESTAMP_MARGIN beyond the translation, and beyond the
 * newest TSval of the PVM that the client has echoed. A forward jump is harmless to PAWS; the client's echoes are
 * translated back with the number that was in force when their original was sent, or the SVM would measure the jump as
 * round-trip time.
 *
 * Required reading before changing it: RFC 9293 §3.4 and §3.10.7, RFC 7323 §4 and §5, docs/ARCHITECTURE.md.
 *
 * @module
 */
import type { Micros } from '../base/time.ts';
import type { FlowEntry } from '../flow/table.ts';
import { isTransportChecksumRight } from '../wire/checksum.ts';
import type { FrameInfo } from '../wire/frame.ts';
import { type Seq, seqAdd, seqBefore, seqBeforeOrEqual, seqDistance, seqMax } from '../wire/seq.ts';
import { TCP_ACK, TCP_FIN, TCP_RST, TCP_SYN } from '../wire/tcp.ts';
import type { TcpOptions } from '../wire/tcp-options.ts';
import type { RetainedFrame, RetentionOwner } from './retention.ts';

/**
 * Ticks by which the SVM's timestamps jump ahead at a failover: 16 s of a 1 kHz clock (Linux, FreeBSD), 16 ms of a 1 MHz one.
 * More than the SVM's clock lags; less than the 30 s that OpenBSD's pf tolerates when it checks timestamps.
 */
export const TIMESTAMP_MARGIN = 16_384;

/**
 * An echo that is further ahead of the SVM's clock is damaged or forged: 18 h at 1 kHz, a minute at 1 MHz. The client would refuse what lies
 * half of the clock's range beyond what it has seen (PAWS).
 */
const ECHO_LEAD_MAX = 2 ** 26;

/** No guest can be further ahead of the other than the largest window (RFC 7323 §2.3). */
const PROBE_ACK_BACK = 2 ** 30;

/** A sequence number this far from where a guest was is not its next one: more than any socket buffer holds. */
const JUMP_MIN = 2 ** 26;

/** The largest window that TCP knows (RFC 7323 §2.3). */
const WINDOW_BYTES_MAX = 2 ** 30;

/** Datagrams: only counted, so that the primary's progress can be matched. */
export class SecondaryDatagramFlow implements FlowEntry, RetentionOwner {
  readonly kind = 'datagram';
  slot = -1;
  retainedFirst: RetainedFrame | undefined = undefined;
  retainedLast: RetainedFrame | undefined = undefined;
  /** Which of the SVM's states this is of; an older one is brought up to date at the next touch. */
  generation = 0;
  /** Datagrams of the SVM in this epoch. */
  sent = 0;

  /** A checkpoint was committed: the primary counts anew. */
  adoptCheckpoint(generation: number): void {
    this.generation = generation;
    this.sent = 0;
  }
}

export class SecondaryTcpFlow implements FlowEntry, RetentionOwner {
  readonly kind = 'tcp';
  slot = -1;
  retainedFirst: RetainedFrame | undefined = undefined;
  retainedLast: RetainedFrame | undefined = undefined;
  /** Which of the SVM's states this is of; an older one is brought up to date at the next touch. */
  generation = 0;
  /** End of what was retained last; retransmissions before it are not kept again. */
  retainedEnd: Seq | undefined = undefined;

  primaryIsn: Seq | undefined = undefined;
  secondaryIsn: Seq | undefined = undefined;
  /** Of the client's SYN, or what the SVM's SYN-ACK acknowledges. */
  clientIsn: Seq | undefined = undefined;
  primarySynTsval: number | undefined = undefined;
  secondarySynTsval: number | undefined = undefined;
  /** SVM to PVM, -2^31..2^31-1. 0 while it is not known. */
  seqDelta = 0;
  tsDelta = 0;
  /** The handshake is over; or it was not seen, because the flow is older than the last commit (delta 0). */
  isOpen = false;
  /** It began after the failover: never translated. */
  isNew = false;
  /** Counted once: output although the PVM's ISN is unknown. */
  isUnlearnable = false;

  // Where the connection stands.
  clientAck: Seq | undefined = undefined;
  guestEnd: Seq | undefined = undefined;
  /** Newest of the SVM's acknowledgements in this epoch. */
  guestAck: Seq | undefined = undefined;
  /** The same of an earlier epoch: the SVM's state was replaced since by one that may have received less. */
  staleGuestAck: Seq | undefined = undefined;
  guestWindow = 0;
  /** SVM's clock: newest TSval that it has sent. */
  guestTsval: number | undefined = undefined;
  /** Newest TSval of the client, to be echoed. */
  clientTsval: number | undefined = undefined;
  /** Newest TSval of the PVM that the client has echoed. */
  echoedTsval: number | undefined = undefined;
  /** Ticks beyond `tsDelta` since the failover. */
  tsJump = 0;
  /** SVM's TSval of the first segment that jumped. */
  jumpedAtTsval: number | undefined = undefined;
  guestMacHigh = 0;
  guestMacLow = 0;
  clientMacHigh = 0;
  clientMacLow = 0;
  /** Sequence number after the FIN. */
  guestFinEnd: Seq | undefined = undefined;
  clientFinEnd: Seq | undefined = undefined;
  hasGuestReset = false;
  hasClientReset = false;
  /** When the last segment passed of a connection that is closed. */
  closedUs: Micros = 0;

  /** Is the translation known? */
  get isLearned(): boolean {
    return this.primaryIsn !== undefined && this.secondaryIsn !== undefined;
  }

  /** Would forgetting the flow lose a translation? */
  get isTranslated(): boolean {
    return this.seqDelta !== 0 || this.tsDelta !== 0 || this.tsJump !== 0;
  }

  /**
   * Both sides have finished and know it of each other, or one has reset the connection. Until the last ACK is through, a
   * forgotten translation would make both ends answer each other's segments for ever.
   */
  get isClosed(): boolean {
    return this.hasGuestReset || this.isOverForClient;
  }

  /** The client knows the end: nothing has to be told to it after a failover. A RST of the guest may have been lost. */
  get isOverForClient(): boolean {
    if (this.hasClientReset) return true;
    const { guestFinEnd, clientFinEnd, guestAck, clientAck } = this;
    return (
      guestFinEnd !== undefined &&
      clientFinEnd !== undefined &&
      clientAck !== undefined &&
      guestAck !== undefined &&
      seqBeforeOrEqual(guestFinEnd, clientAck) &&
      seqBeforeOrEqual(clientFinEnd, guestAck)
    );
  }

  /**
   * A checkpoint was committed: the SVM's numbers are the PVM's. Where the connection stands for the client is kept, for
   * the probe of a failover; what the SVM had sent in its old state is not.
   */
  adoptCheckpoint(generation: number): void {
    this.generation = generation;
    if (this.isLearned) this.isOpen ||= this.clientAck !== undefined;
    // A handshake of which only the SVM's side was known: from here on it is the PVM's, and there is nothing to learn.
    if (this.primaryIsn === undefined) this.clientIsn = undefined;
    this.secondaryIsn = this.primaryIsn;
    this.secondarySynTsval = this.primarySynTsval;
    if (this.guestTsval !== undefined) this.guestTsval = seqAdd(this.guestTsval, this.tsDelta);
    this.seqDelta = 0;
    this.tsDelta = 0;
    this.isUnlearnable = false;
    this.retainedEnd = undefined;
    this.guestEnd = undefined;
    this.staleGuestAck = this.guestAck ?? this.staleGuestAck;
    this.guestAck = undefined;
    // Unless the client has acknowledged it, only the SVM's old state had sent a FIN.
    const { guestFinEnd, clientAck } = this;
    if (guestFinEnd === undefined || clientAck === undefined) this.guestFinEnd = undefined;
    else if (seqBefore(clientAck, guestFinEnd)) this.guestFinEnd = undefined;
  }

  /**
   * Does a segment of the SVM (no SYN, no RST) show that the SVM runs from the PVM's state, although no commit was told? Its
   * number is then far from where the SVM was, and near it in the PVM's numbers. Only the SVM's own output decides, so
   * that no client can feign it. False where the two numberings are too close to tell.
   */
  isOfReplacedState(seq: Seq): boolean {
    const { guestEnd } = this;
    if (guestEnd === undefined || !this.isLearned) return false;
    const fromOwn = seqDistance(guestEnd, seqAdd(seq, this.seqDelta));
    return Math.abs(fromOwn) > JUMP_MIN && Math.abs(seqDistance(guestEnd, seq)) < JUMP_MIN / 2;
  }

  // ------------------------------------------------------------------ learning

  /**
   * The PVM's SYN or SYN-ACK. Another ISN than before: the next connection of the same addresses and ports; then it
   * returns true, and nothing of the last one counts any more.
   */
  onPrimarySyn(info: FrameInfo, options: TcpOptions): boolean {
    if (this.primaryIsn === info.seq) return false;
    const isNext = this.isLearned || this.isOpen;
    if (isNext) this.#beginAnew();
    this.primaryIsn = info.seq;
    this.primarySynTsval = options.hasTimestamps ? options.tsval : undefined;
    this.#learn();
    return isNext;
  }

  /** The SVM's SYN or SYN-ACK, in its own numbers. Returns as `onPrimarySyn`. */
  onGuestSyn(info: FrameInfo, options: TcpOptions): boolean {
    if (this.secondaryIsn === info.seq) return false;
    // When the copy of the PVM's SYN came before, it has begun anew already, and is not lost here.
    const isNext = this.isOpen || this.secondaryIsn !== undefined;
    if (isNext) this.#beginAnew();
    this.secondaryIsn = info.seq;
    this.secondarySynTsval = options.hasTimestamps ? options.tsval : undefined;
    if (this.primaryIsn !== undefined) this.guestEnd = seqAdd(this.primaryIsn, 1);
    if ((info.tcpFlags & TCP_ACK) !== 0) this.clientIsn = seqAdd(info.ack, -1);
    this.#learn();
    return isNext;
  }

  /** A SYN of the client towards the guest. */
  onClientSyn(info: FrameInfo): void {
    if (this.secondaryIsn === undefined && !this.isOpen) this.clientIsn = info.seq;
  }

  /**
   * A segment of the client with ACK while the PVM's ISN is unknown: the first one acknowledges just the PVM's SYN, so
   * `ack - 1` is its ISN. Only where a handshake is under way, and only the segment that completes it.
   *
   * After the failover (the copy of the PVM's SYN was lost with the primary) any other segment will do, be it a probe one
   * before: the SVM has sent nothing but its SYN-ACK, so no byte of the PVM was released, and no ACK can be beyond its SYN.
   *
   * A damaged segment, which the SVM refuses anyway, must not decide over the connection.
   */
  learnFromClient(info: FrameInfo, options: TcpOptions, failedOver: boolean): void {
    if (info.isFragment || !isTransportChecksumRight(info)) return;
    const { clientIsn } = this;
    const isSynAck = (info.tcpFlags & TCP_SYN) !== 0 && this.secondaryIsn !== undefined;
    const isFirst = clientIsn !== undefined && info.seq === seqAdd(clientIsn, 1);
    const isLate =
      failedOver &&
      clientIsn !== undefined &&
      this.secondaryIsn !== undefined &&
      this.guestEnd === undefined &&
      seqDistance(clientIsn, info.seq) >= 0 &&
      seqDistance(clientIsn, info.seq) <= WINDOW_BYTES_MAX;
    if (isSynAck || isFirst || isLate) {
      this.primaryIsn = seqAdd(info.ack, -1);
      // It echoes the TSval of what it acknowledges. Linux refuses an ACK of its SYN-ACK with another echo. After the
      // failover that may be the SVM's SYN-ACK, whose clock the client then knows already.
      const isOfSvm = failedOver && this.primaryIsn === this.secondaryIsn;
      if (!isOfSvm && options.hasTimestamps) this.primarySynTsval = options.tsecr;
      this.#learn();
    } else if (this.secondaryIsn === undefined) {
      // Not of the handshake that was seen (a forged SYN): the connection is older than the last commit.
      this.isOpen = true;
    }
  }

  /** A connection that begins after the failover: the numbers are the SVM's own. */
  beginUntranslated(info: FrameInfo): void {
    if (this.isNew && this.secondaryIsn === info.seq) return;
    this.#beginAnew();
    this.secondaryIsn = info.seq;
    this.isNew = true;
  }

  #learn(): void {
    if (this.primaryIsn === undefined || this.secondaryIsn === undefined) return;
    this.seqDelta = seqDistance(this.secondaryIsn, this.primaryIsn);
    if (this.primarySynTsval !== undefined && this.secondarySynTsval !== undefined) {
      this.tsDelta = seqDistance(this.secondarySynTsval, this.primarySynTsval);
    }
  }

  #beginAnew(): void {
    this.primaryIsn = undefined;
    this.secondaryIsn = undefined;
    this.clientIsn = undefined;
    this.primarySynTsval = undefined;
    this.secondarySynTsval = undefined;
    this.seqDelta = 0;
    this.tsDelta = 0;
    this.isOpen = false;
    this.isUnlearnable = false;
    this.retainedEnd = undefined;
    this.clientAck = undefined;
    this.guestEnd = undefined;
    this.guestAck = undefined;
    this.staleGuestAck = undefined;
    this.guestTsval = undefined;
    this.clientTsval = undefined;
    this.echoedTsval = undefined;
    this.tsJump = 0;
    this.jumpedAtTsval = undefined;
    this.guestFinEnd = undefined;
    this.clientFinEnd = undefined;
    this.hasGuestReset = false;
    this.hasClientReset = false;
  }

  // ------------------------------------------------------------------ following

  /** A segment of the SVM, translated already; `options` are those it had before (SVM's clock). */
  followGuest(info: FrameInfo, options: TcpOptions): void {
    const { view, frameOffset, tcpFlags } = info;
    if ((tcpFlags & TCP_RST) !== 0) {
      this.hasGuestReset = true;
      return;
    }
    // A guest that has sent a RST, or accepted one of the client, sends no more on the connection.
    this.hasGuestReset = false;
    this.hasClientReset = false;
    const hasFin = (tcpFlags & TCP_FIN) !== 0;
    const isSyn = (tcpFlags & TCP_SYN) !== 0;
    if (!isSyn) {
      const end = seqAdd(info.seq, info.payloadBytes + (hasFin ? 1 : 0));
      this.guestEnd = this.guestEnd === undefined ? end : seqMax(this.guestEnd, end);
      if (hasFin) this.guestFinEnd = end;
    }
    if ((tcpFlags & TCP_ACK) !== 0) {
      this.guestAck = this.guestAck === undefined ? info.ack : seqMax(this.guestAck, info.ack);
      // RFC 7323 §2.2: the window of a SYN is never scaled, that of a later segment always.
      const scale = isSyn ? Math.max(0, options.windowScale) : 0;
      this.guestWindow = info.window >>> scale;
    }
    this.clientMacHigh = view.getUint16(frameOffset);
    this.clientMacLow = view.getUint32(frameOffset + 2);
    this.guestMacHigh = view.getUint16(frameOffset + 6);
    this.guestMacLow = view.getUint32(frameOffset + 8);
    if (options.hasTimestamps) this.guestTsval = newest(this.guestTsval, options.tsval);
  }

  /** A segment of the client, before it is translated. */
  followClient(info: FrameInfo, options: TcpOptions): void {
    const { tcpFlags } = info;
    if ((tcpFlags & TCP_RST) !== 0) {
      this.hasClientReset ||= this.#canBeReset(info);
      return;
    }
    if ((tcpFlags & TCP_FIN) !== 0) this.clientFinEnd = seqAdd(info.seq, info.payloadBytes + 1);
    if ((tcpFlags & TCP_ACK) === 0) return;
    this.clientAck = this.clientAck === undefined ? info.ack : seqMax(this.clientAck, info.ack);
    if (!options.hasTimestamps) return;
    this.clientTsval = newest(this.clientTsval, options.tsval);
    if (options.tsecr !== 0 && this.jumpedAtTsval === undefined) {
      this.echoedTsval = newest(this.echoedTsval, options.tsecr);
    }
  }

  /** Could a guest take this RST of the client for one (RFC 9293 §3.10.7.4)? What is damaged or forged must not end the translation. */
  #canBeReset(info: FrameInfo): boolean {
    const expected = this.guestAck ?? this.staleGuestAck ?? info.seq;
    return Math.abs(seqDistance(expected, info.seq)) < JUMP_MIN && isTransportChecksumRight(info);
  }

  /**
   * An acknowledgement number that is true of the SVM's state, for the probe. Of a state that has acknowledged nothing since
   * a commit a number so old that it acknowledges nothing: PROBE_ACK_BACK before one of the state that it replaced.
   */
  get probeAck(): Seq | undefined {
    if (this.guestAck !== undefined) return this.guestAck;
    const { staleGuestAck } = this;
    return staleGuestAck === undefined ? undefined : seqAdd(staleGuestAck, -PROBE_ACK_BACK);
  }

  // ------------------------------------------------------------------ timestamps

  /**
   * What the client is told for a TSval of the SVM.
   *
   * @param failedOver the client sees it: keep it beyond what the PVM has sent
   */
  tsvalForClient(tsval: number, failedOver: boolean): number {
    if (failedOver && !this.isNew && this.jumpedAtTsval === undefined) this.#jump(tsval);
    return seqAdd(tsval, this.tsDelta + this.tsJump);
  }

  /** What the SVM is told for a TSecr of the client: an echo of something that the SVM itself has sent. */
  tsecrForGuest(tsecr: number): number {
    if (tsecr === 0) return 0;
    let own = seqAdd(tsecr, -this.tsDelta);
    if (this.jumpedAtTsval !== undefined) {
      const sinceJump = seqAdd(own, -this.tsJump);
      if (seqBeforeOrEqual(this.jumpedAtTsval, sinceJump)) own = sinceJump;
    }
    // The PVM may have been ahead: a time that has not come yet makes the SVM refuse a SYN-ACK (Linux
    // tcp_rcv_synsent_state_process) or measure nonsense.
    if (this.guestTsval !== undefined && seqBefore(this.guestTsval, own)) return this.guestTsval;
    return own;
  }

  /** Ticks that `tsval`, of the PVM's clock, lacks to be surely accepted by the client after the failover. */
  tsvalLack(tsval: number): number {
    if (this.echoedTsval === undefined) return 0;
    const lack = seqDistance(tsval, seqAdd(this.echoedTsval, TIMESTAMP_MARGIN));
    return lack > 0 && lack < ECHO_LEAD_MAX ? lack : 0;
  }

  #jump(tsval: number): void {
    const jumped = seqAdd(tsval, this.tsDelta + TIMESTAMP_MARGIN);
    this.tsJump = TIMESTAMP_MARGIN + this.tsvalLack(jumped);
    this.jumpedAtTsval = tsval;
  }
}

export type SecondaryFlow = SecondaryTcpFlow | SecondaryDatagramFlow;

/** The later of two timestamps (RFC 7323 §5.2 orders them as sequence numbers). */
function newest(before: number | undefined, value: number): number {
  return before === undefined ? value : seqMax(before, value);
}
