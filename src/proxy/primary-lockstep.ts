/**
 * The way of most frames when both guests' output is at hand at once: the PVM's next segment and the SVM's next segment of one
 * connection in which nothing waits, with the same numbers and the same bytes. Such a pair needs neither a copy nor a queue; what
 * it changes of the flow is what the two segments would change one after the other, each taken the ordinary way. Whatever is not such a pair is
 * left to that way.
 *
 * @module
 */
import { bytesEqual } from '../base/equal.ts';
import type { FrameBuffer } from '../env/frame.ts';
import { trackTcp } from '../flow/tcp-state.ts';
import type { FrameInfo } from '../wire/frame.ts';
import { seqAdd, seqBefore } from '../wire/seq.ts';
import { TCP_ACK, TCP_ECE, TCP_PSH } from '../wire/tcp.ts';
import type { PrimaryContext } from './primary-context.ts';
import type { TcpFlow } from './primary-tcp.ts';

const ETHERNET_BYTES = 14;
const TYPE_IPV4 = 0x0800;
const TYPE_IPV6 = 0x86dd;
const PROTOCOL_TCP = 6;
/** NOP, NOP, timestamps (RFC 7323 appendix A): how every stack writes them. */
const TIMESTAMPS_WORD = 0x0101080a;
const TIMESTAMPS_BYTES = 12;
/** Payloads up to here are compared by words: a call of memcmp costs as much as 72 bytes (Node 20.20). */
const WORDS_MAX = 128;

/** What became of two segments: nothing, each goes the ordinary way. */
export const PAIR_NONE = 0;
/** Both were taken; the PVM's is to be sent. */
export const PAIR_TAKEN = 1;
/** Nothing, and something of the PVM waits already for what the SVM's connection brings: the SVM's goes the ordinary way. */
export const PAIR_PRIMARY_AHEAD = 2;
/** Nothing, and something of the SVM waits already for what the PVM's connection brings: the PVM's goes the ordinary way. */
export const PAIR_SECONDARY_AHEAD = 3;
/** The PVM's was taken, and waits where it lies. */
export const PAIR_TOOK_PRIMARY = 4;
/** The SVM's was taken. */
export const PAIR_TOOK_SECONDARY = 5;
/** Nothing: the SVM's waits at the head of its stream for what the PVM has not sent. */
export const PAIR_WAITS = 6;
export type PairResult =
  | typeof PAIR_NONE
  | typeof PAIR_TAKEN
  | typeof PAIR_PRIMARY_AHEAD
  | typeof PAIR_SECONDARY_AHEAD
  | typeof PAIR_TOOK_PRIMARY
  | typeof PAIR_TOOK_SECONDARY
  | typeof PAIR_WAITS;

/**
 * Reads an untagged TCP segment over IPv4 (without options) or IPv6 (without extension headers) that has ACK, at most PSH and ECE besides, and
 * at most timestamps as options. Reads nothing before `offset`: there need be no virtio-net header.
 *
 * @param info only the fields that such a segment has are written; never to be used for anything else
 * @returns false: another kind of frame
 */
export function readPlainSegment(
  buffer: FrameBuffer,
  offset: number,
  length: number,
  info: FrameInfo,
): boolean {
  const { view } = buffer;
  // The shorter of the two: Ethernet, IPv4, TCP.
  if (length < ETHERNET_BYTES + 40) return false;
  const l3 = offset + ETHERNET_BYTES;
  const etherType = view.getUint16(offset + 12);
  let l4: number;
  let end: number;
  if (etherType === TYPE_IPV4) {
    // Version, header length; no fragment; protocol.
    if (view.getUint8(l3) !== 0x45 || (view.getUint16(l3 + 6) & 0x3fff) !== 0) return false;
    if (view.getUint8(l3 + 9) !== PROTOCOL_TCP) return false;
    l4 = l3 + 20;
    end = l3 + view.getUint16(l3 + 2);
    info.ipVersion = 4;
    info.srcAddressOffset = l3 + 12;
    info.dstAddressOffset = l3 + 16;
  } else if (etherType === TYPE_IPV6) {
    if (view.getUint8(l3) >> 4 !== 6 || view.getUint8(l3 + 6) !== PROTOCOL_TCP) return false;
    l4 = l3 + 40;
    end = l4 + view.getUint16(l3 + 4);
    info.ipVersion = 6;
    info.srcAddressOffset = l3 + 8;
    info.dstAddressOffset = l3 + 24;
  } else return false;
  if (end > offset + length || l4 + 20 > end) return false;
  const offsetAndFlags = view.getUint16(l4 + 12);
  const headerBytes = (offsetAndFlags >> 12) * 4;
  const flags = offsetAndFlags & 0xff;
  if ((flags & ~(TCP_PSH | TCP_ECE)) !== TCP_ACK || l4 + headerBytes > end) return false;
  if (headerBytes !== 20) {
    if (headerBytes !== 20 + TIMESTAMPS_BYTES) return false;
    if (view.getUint32(l4 + 20) !== TIMESTAMPS_WORD) return false;
  }
  info.bytes = buffer.bytes;
  info.view = view;
  info.frameOffset = offset;
  info.frameBytes = length;
  info.protocol = PROTOCOL_TCP;
  info.srcPort = view.getUint16(l4);
  info.dstPort = view.getUint16(l4 + 2);
  info.seq = view.getUint32(l4 + 4);
  info.ack = view.getUint32(l4 + 8);
  info.tcpFlags = flags;
  info.window = view.getUint16(l4 + 14);
  info.l4Offset = l4;
  info.l4Bytes = end - l4;
  info.tcpHeaderBytes = headerBytes;
  info.payloadOffset = l4 + headerBytes;
  info.payloadBytes = end - l4 - headerBytes;
  return true;
}

/** Are two plain segments of the same connection? */
export function isSameFlow(a: FrameInfo, b: FrameInfo): boolean {
  if (a.ipVersion !== b.ipVersion || a.srcPort !== b.srcPort || a.dstPort !== b.dstPort) {
    return false;
  }
  // Source and destination address lie behind one another.
  const words = a.ipVersion === 4 ? 2 : 8;
  return wordsEqual(a.view, a.srcAddressOffset, b.view, b.srcAddressOffset, words);
}

/** Are two plain segments of one connection, and say the same? PSH, ECE and timestamps are each guest's own. */
export function saysTheSame(a: FrameInfo, b: FrameInfo): boolean {
  const length = a.payloadBytes;
  // The sequence number first: it tells most segments apart.
  if (a.seq !== b.seq || a.ack !== b.ack || a.window !== b.window || length !== b.payloadBytes) {
    return false;
  }
  if (!isSameFlow(a, b)) return false;
  return isSameRange(a, a.payloadOffset, b, b.payloadOffset, length);
}

/** Are `length` bytes at both offsets the same? Both ranges lie within their memory. */
export function isSameRange(
  a: FrameBuffer,
  aOffset: number,
  b: FrameBuffer,
  bOffset: number,
  length: number,
): boolean {
  if (length > WORDS_MAX) return bytesEqual(a.bytes, aOffset, b.bytes, bOffset, length);
  const words = length >> 2;
  if (!wordsEqual(a.view, aOffset, b.view, bOffset, words)) return false;
  const done = words << 2;
  return bytesEqual(a.bytes, aOffset + done, b.bytes, bOffset + done, length - done);
}

/**
 * Nothing is held in the flow's queue or waits for the SVM, or will: the PVM's next segment, if plain, needs the same bytes of the SVM
 * and nothing else.
 */
export function isSteady(flow: TcpFlow): boolean {
  const { comparer } = flow;
  if (flow.diverged || flow.held.length > 0 || flow.heldAck !== undefined) return false;
  if (!comparer.started || !flow.primaryEndKnown || flow.pickupSeq !== undefined) return false;
  if (comparer.primary.size > 0 || comparer.secondary.size > 0) return false;
  if (comparer.primaryFin !== undefined || comparer.secondaryFin !== undefined) return false;
  if (flow.secondaryReset || flow.primaryReset) return false;
  return flow.gate.secondaryKnown && !flow.handshake.isWaiting && !flow.handshake.isAhead;
}

/**
 * Takes a segment that both guests have sent alike. False: something waits in this flow, or the segment is not the next one; then
 * nothing was done that taking the two segments the ordinary way would not do again.
 */
export function takePair(context: PrimaryContext, flow: TcpFlow, info: FrameInfo): boolean {
  const { comparer, gate } = flow;
  const { seq, ack, window, payloadBytes } = info;
  if (seq !== flow.primaryEnd || seq !== comparer.compared || flow.lentFirst !== undefined) {
    return false;
  }
  if (!isSteady(flow) || seqBefore(ack, gate.secondaryAck)) return false;
  gate.onPrimary(ack, window, false);
  gate.onSecondary(ack, window, false, undefined);
  if (gate.limit(ack, window, false).lowered) return false;
  gate.onEmitted(ack, window, false);
  trackTcp(flow.connection, info, true);
  context.counts.compared++;
  context.counts.released++;
  context.latency.record(0);
  if (payloadBytes === 0) return true;
  const end = seqAdd(seq, payloadBytes);
  flow.primaryEnd = end;
  comparer.compared = end;
  flow.progressUs = context.nowUs;
  flow.releasedEnd = end;
  flow.releasedKnown = true;
  if (context.config.reportsProgress) {
    flow.progressed = true;
    context.markDirty(flow);
  }
  return true;
}

function wordsEqual(a: DataView, aOffset: number, b: DataView, bOffset: number, words: number) {
  for (let i = 0; i < words; i++) {
    if (a.getInt32(aOffset + 4 * i) !== b.getInt32(bOffset + 4 * i)) return false;
  }
  return true;
}
