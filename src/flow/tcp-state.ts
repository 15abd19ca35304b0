/**
 * The state of a TCP connection as seen from between its ends. States have the names of RFC 9293 §3.3.2, seen from the
 * end that is ahead; the logic is that of Linux' `nf_conntrack_proto_tcp.c`, but by sequence numbers
 * instead of flags alone: a FIN counts as acknowledged only when an ACK covers it.
 *
 * ```text
 *  none --SYN--> syn-sent --SYN-ACK, or SYN of the other end--> syn-received --both SYNs acknowledged--> established
 *    \--anything else (picked up in the middle)-------------------------------------------------------------^
 *  established --FIN--> fin-wait --that FIN acknowledged--> close-wait --FIN of the other end--> last-ack
 *              fin-wait --FIN of the other end--> last-ack --both FINs acknowledged--> time-wait
 *  any --RST that the receiver will believe--> closed
 *  time-wait, closed --SYN--> syn-sent (a new connection)
 * ```
 *
 * It follows connections in order to age them and to name them; it decides nothing about segments, and checks no windows.
 *
 * @module
 */
import { hasBit, withBit } from '../base/bits.ts';
import { type Seq, seqAdd, seqBefore, seqBeforeOrEqual, seqMax } from '../wire/seq.ts';
import { TCP_ACK, TCP_FIN, TCP_RST, TCP_SYN } from '../wire/tcp.ts';
import { FLOW_CLOSED, FLOW_ESTABLISHED, FLOW_HALF_OPEN, type FlowClass } from './table.ts';

export const TCP_NONE = 0;
export const TCP_SYN_SENT = 1;
export const TCP_SYN_RECEIVED = 2;
export const TCP_ESTABLISHED = 3;
export const TCP_FIN_WAIT = 4;
export const TCP_CLOSE_WAIT = 5;
export const TCP_LAST_ACK = 6;
export const TCP_TIME_WAIT = 7;
export const TCP_CLOSED = 8;
export type TcpState =
  | typeof TCP_NONE
  | typeof TCP_SYN_SENT
  | typeof TCP_SYN_RECEIVED
  | typeof TCP_ESTABLISHED
  | typeof TCP_FIN_WAIT
  | typeof TCP_CLOSE_WAIT
  | typeof TCP_LAST_ACK
  | typeof TCP_TIME_WAIT
  | typeof TCP_CLOSED;

/** Names of the states, by number. */
export const TCP_STATE_NAMES: readonly string[] = [
  'none',
  'syn-sent',
  'syn-received',
  'established',
  'fin-wait',
  'close-wait',
  'last-ack',
  'time-wait',
  'closed',
];

/** What `trackTcp` says of a segment. */
export const TRACK_OK = 0;
/** The segment begins a new connection between the same ports: whatever is known of the old one is void. */
export const TRACK_REOPENED = 1;
/** The receiver will not believe it (RST out of place, SYN within a connection): nothing changed. */
export const TRACK_IGNORED = 2;
export type TrackResult = typeof TRACK_OK | typeof TRACK_REOPENED | typeof TRACK_IGNORED;

// Bits of `TcpSide.#bits`.
const HAS_SENT = 1;
const HAS_SYN = 2;
const IS_SYN_ACKED = 4;
const HAS_FIN = 8;
const IS_FIN_ACKED = 16;
const HAS_ACKED = 32;

/** What is known of one end's sending, in few bytes: there are two of it for every connection (see wire/seq.ts). */
class TcpSide {
  #bits = 0;
  #synEnd = 0;
  #finEnd = 0;
  #end = 0;
  #ackMax = 0;

  /** Has it sent anything that we saw? Then `end` is meaningful. */
  get hasSent(): boolean {
    return hasBit(this.#bits, HAS_SENT);
  }

  set hasSent(value: boolean) {
    this.#bits = withBit(this.#bits, HAS_SENT, value);
  }

  get hasSyn(): boolean {
    return hasBit(this.#bits, HAS_SYN);
  }

  set hasSyn(value: boolean) {
    this.#bits = withBit(this.#bits, HAS_SYN, value);
  }

  get isSynAcked(): boolean {
    return hasBit(this.#bits, IS_SYN_ACKED);
  }

  set isSynAcked(value: boolean) {
    this.#bits = withBit(this.#bits, IS_SYN_ACKED, value);
  }

  get hasFin(): boolean {
    return hasBit(this.#bits, HAS_FIN);
  }

  set hasFin(value: boolean) {
    this.#bits = withBit(this.#bits, HAS_FIN, value);
  }

  get isFinAcked(): boolean {
    return hasBit(this.#bits, IS_FIN_ACKED);
  }

  set isFinAcked(value: boolean) {
    this.#bits = withBit(this.#bits, IS_FIN_ACKED, value);
  }

  get hasAcked(): boolean {
    return hasBit(this.#bits, HAS_ACKED);
  }

  set hasAcked(value: boolean) {
    this.#bits = withBit(this.#bits, HAS_ACKED, value);
  }

  /** After its SYN. */
  get synEnd(): Seq {
    return this.#synEnd >>> 0;
  }

  set synEnd(seq: Seq) {
    this.#synEnd = seq | 0;
  }

  /** After its FIN. */
  get finEnd(): Seq {
    return this.#finEnd >>> 0;
  }

  set finEnd(seq: Seq) {
    this.#finEnd = seq | 0;
  }

  /** After the last sequence number it has used. */
  get end(): Seq {
    return this.#end >>> 0;
  }

  set end(seq: Seq) {
    this.#end = seq | 0;
  }

  /** The highest ACK number it has sent. */
  get ackMax(): Seq {
    return this.#ackMax >>> 0;
  }

  set ackMax(seq: Seq) {
    this.#ackMax = seq | 0;
  }

  /**
   * The way of most segments, those that change no bit of either side: what is sent and acknowledged before was sent and acknowledged already,
   * and the receiver has not finished. False: nothing was done.
   *
   * @param end after the segment's bytes
   */
  takeOrdinary(end: Seq, ack: Seq, receiver: TcpSide): boolean {
    if ((this.#bits & (HAS_SENT | HAS_ACKED)) !== (HAS_SENT | HAS_ACKED)) return false;
    const received = receiver.#bits;
    if ((received & (IS_SYN_ACKED | HAS_FIN)) !== IS_SYN_ACKED) return false;
    // An ACK of what was never sent acknowledges nothing.
    const isSent = (received & HAS_SENT) === 0 || seqBeforeOrEqual(ack, receiver.#end >>> 0);
    if (isSent && seqBefore(this.#ackMax >>> 0, ack)) this.#ackMax = ack | 0;
    if (seqBefore(this.#end >>> 0, end)) this.#end = end | 0;
    return true;
  }

  reset(): void {
    this.#bits = 0;
    this.#synEnd = 0;
    this.#finEnd = 0;
    this.#end = 0;
    this.#ackMax = 0;
  }
}

/** One connection. Written by `trackTcp`. */
export class TcpTrack {
  state: TcpState = TCP_NONE;
  readonly guest: TcpSide = new TcpSide();
  readonly client: TcpSide = new TcpSide();
}

/** The fields of a segment that matter here; a `FrameInfo` of a TCP frame has them. */
export interface TcpSegmentInfo {
  readonly seq: Seq;
  readonly ack: Seq;
  readonly tcpFlags: number;
  readonly payloadBytes: number;
}

/**
 * Advances a connection by one segment, in the order seen. Depends on its arguments alone.
 *
 * @param guestIsSource the guest sent the segment
 */
export function trackTcp(
  track: TcpTrack,
  segment: TcpSegmentInfo,
  guestIsSource: boolean,
): TrackResult {
  const sender = guestIsSource ? track.guest : track.client;
  const receiver = guestIsSource ? track.client : track.guest;
  const flags = segment.tcpFlags;
  if ((flags & (TCP_SYN | TCP_FIN | TCP_RST | TCP_ACK)) === TCP_ACK) {
    const end = seqAdd(segment.seq, segment.payloadBytes);
    if (sender.takeOrdinary(end, segment.ack, receiver)) return TRACK_OK;
  }
  if ((flags & TCP_RST) !== 0) return onReset(track, segment, sender, receiver);
  if ((flags & TCP_SYN) !== 0) {
    const isOver = track.state === TCP_TIME_WAIT || track.state === TCP_CLOSED;
    if (isOver && (flags & TCP_ACK) === 0) {
      sender.reset();
      receiver.reset();
      noteSyn(segment, sender);
      track.state = TCP_SYN_SENT;
      return TRACK_REOPENED;
    }
    if (!isSynBelievable(track.state, segment, sender)) return TRACK_IGNORED;
    noteSyn(segment, sender);
  } else if (track.state === TCP_NONE) {
    // Picked up in the middle: both handshakes happened before we looked.
    sender.isSynAcked = true;
    receiver.isSynAcked = true;
  }
  noteSent(segment, sender);
  if ((flags & TCP_ACK) !== 0) noteAck(segment.ack, sender, receiver);
  if (track.state !== TCP_CLOSED) track.state = deriveState(track.guest, track.client);
  return TRACK_OK;
}

/** How a flow in this state ages. */
export function tcpFlowClass(state: TcpState): FlowClass {
  if (state <= TCP_SYN_RECEIVED) return FLOW_HALF_OPEN;
  return state <= TCP_CLOSE_WAIT ? FLOW_ESTABLISHED : FLOW_CLOSED;
}

/**
 * RFC 9293 §3.10.7.3: with only a SYN out, a RST has to acknowledge it. Else, as in Linux, it must not lie before what the
 * receiver has acknowledged (RFC 5961 §3 is stricter, but the receiver's window is not known here).
 */
function onReset(
  track: TcpTrack,
  segment: TcpSegmentInfo,
  sender: TcpSide,
  receiver: TcpSide,
): TrackResult {
  const answersSyn = track.state === TCP_SYN_SENT && receiver.hasSyn;
  if (answersSyn) {
    const hasAck = (segment.tcpFlags & TCP_ACK) !== 0;
    if (!hasAck || seqBefore(segment.ack, receiver.synEnd)) return TRACK_IGNORED;
    if (seqBefore(receiver.end, segment.ack)) return TRACK_IGNORED;
  } else if (receiver.hasAcked && seqBefore(segment.seq, receiver.ackMax)) {
    return TRACK_IGNORED;
  }
  noteSent(segment, sender);
  track.state = TCP_CLOSED;
  return TRACK_OK;
}

/** A SYN belongs to the handshake, or repeats it; any other is answered by a challenge ACK (RFC 5961 §4). */
function isSynBelievable(state: TcpState, segment: TcpSegmentInfo, sender: TcpSide): boolean {
  if (sender.hasSyn) {
    // Before it is acknowledged an end may give up and begin anew with another number.
    return sender.synEnd === seqAdd(segment.seq, 1) || state === TCP_SYN_SENT;
  }
  return state <= TCP_SYN_RECEIVED;
}

function noteSyn(segment: TcpSegmentInfo, sender: TcpSide): void {
  const synEnd = seqAdd(segment.seq, 1);
  if (sender.hasSyn && sender.synEnd === synEnd) return;
  sender.hasSyn = true;
  sender.isSynAcked = false;
  sender.synEnd = synEnd;
  sender.hasSent = false;
}

function noteSent(segment: TcpSegmentInfo, sender: TcpSide): void {
  const hasSyn = (segment.tcpFlags & TCP_SYN) !== 0;
  const hasFin = (segment.tcpFlags & (TCP_FIN | TCP_RST)) === TCP_FIN;
  const length = segment.payloadBytes + (hasSyn ? 1 : 0) + (hasFin ? 1 : 0);
  const end = seqAdd(segment.seq, length);
  sender.end = sender.hasSent ? seqMax(sender.end, end) : end;
  sender.hasSent = true;
  if (hasFin && !sender.hasFin) {
    sender.hasFin = true;
    sender.finEnd = end;
  }
}

/** An ACK of what was never sent acknowledges nothing. */
function noteAck(ack: Seq, sender: TcpSide, receiver: TcpSide): void {
  if (receiver.hasSent && seqBefore(receiver.end, ack)) return;
  sender.ackMax = sender.hasAcked ? seqMax(sender.ackMax, ack) : ack;
  sender.hasAcked = true;
  // Whoever acknowledges data has seen the SYN, even if we have not.
  if (!receiver.hasSyn || seqBeforeOrEqual(receiver.synEnd, ack)) receiver.isSynAcked = true;
  if (receiver.hasFin && seqBeforeOrEqual(receiver.finEnd, ack)) receiver.isFinAcked = true;
}

function deriveState(a: TcpSide, b: TcpSide): TcpState {
  if (a.hasFin && b.hasFin) return a.isFinAcked && b.isFinAcked ? TCP_TIME_WAIT : TCP_LAST_ACK;
  if (a.hasFin || b.hasFin) return a.isFinAcked || b.isFinAcked ? TCP_CLOSE_WAIT : TCP_FIN_WAIT;
  if (a.isSynAcked && b.isSynAcked) return TCP_ESTABLISHED;
  // A SYN-ACK whose SYN we missed stands for both.
  const isAnswered = (a.hasSyn && b.hasSyn) || a.isSynAcked || b.isSynAcked;
  const isSynAckAlone = (a.hasSyn && a.hasAcked) || (b.hasSyn && b.hasAcked);
  return isAnswered || isSynAckAlone ? TCP_SYN_RECEIVED : TCP_SYN_SENT;
}
