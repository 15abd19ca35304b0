/**
 * Translates a TCP segment between the numbers of the two guests, in place.
 *
 * The client knows one connection, the PVM's. The SVM chose another initial sequence number and another origin of
 * its timestamp clock. With `seqDelta = pvmIsn - svmIsn` and `tsDelta = pvmTsval - svmTsval` (modulo 2^32):
 *
 *     SVM to client:  seq += seqDelta, TSval += tsDelta
 *     client to SVM:  ack -= seqDelta, every SACK edge -= seqDelta, TSecr -= tsDelta
 *
 * The client's own numbers (its seq, what the SVM acknowledges, its TSval) are the same for both guests.
 * Frames with GSO stay whole: the segments cut from them later carry the translated numbers on. Of a fragmented
 * segment only the first fragment has a header; its checksum, which covers all fragments, is updated there.
 *
 * Sources: "COLO Proxy Module" RFC (2015), RFC 9293 §3.1, RFC 2018 §3, RFC 7323 §3.2, RFC 1624.
 *
 * @module
 */
import type { FrameInfo } from '../wire/frame.ts';
import { IP_PROTOCOL_TCP } from '../wire/ipv4.ts';
import { seqAdd } from '../wire/seq.ts';
import {
  TCP_ACK,
  TCP_ACK_NUMBER,
  TCP_CHECKSUM,
  TCP_DATA_OFFSET,
  TCP_DST_PORT,
  TCP_FLAGS,
  TCP_HEADER_BYTES_MIN,
  TCP_SEQ,
  TCP_SRC_PORT,
  TCP_WINDOW,
} from '../wire/tcp.ts';
import {
  TCP_OPTION_END,
  TCP_OPTION_NOP,
  TCP_OPTION_SACK,
  TCP_OPTION_TIMESTAMPS,
} from '../wire/tcp-options.ts';
import { applyChecksumDelta, delta32 } from './checksum-delta.ts';
import { assertTcpHeader, SACK_BLOCK_BYTES, updateTcpChecksum } from './tcp-frame.ts';

const TIMESTAMPS_OPTION_BYTES = 10;

/** Adds `count` (negative: subtracts) to the 32-bit field at `at` modulo 2^32, and returns what that adds to the TCP checksum's sum. */
function shift32(info: FrameInfo, at: number, count: number): number {
  const before = info.view.getUint32(at);
  const value = seqAdd(before, count);
  info.view.setUint32(at, value);
  return delta32(before, value, ((at - info.l4Offset) & 1) === 1);
}

/** Shifts the edges of a SACK option. */
function shiftSack(info: FrameInfo, at: number, optionBytes: number, count: number): number {
  let delta = 0;
  const end = at + optionBytes;
  for (let edge = at + 2; edge + SACK_BLOCK_BYTES <= end; edge += SACK_BLOCK_BYTES) {
    delta += shift32(info, edge, count) + shift32(info, edge + 4, count);
  }
  return delta;
}

/**
 * Walks the options: adds `sackShift` to every SACK edge, `tsvalShift` to TSval and `tsecrShift` to TSecr. Every
 * option of a kind is changed, since receivers differ in which of two they heed. As in the receiver, the walk ends
 * at the first option that runs past the header. Returns the change of the checksum's sum.
 */
function shiftOptions(
  info: FrameInfo,
  sackShift: number,
  tsvalShift: number,
  tsecrShift: number,
): number {
  const { bytes } = info;
  const end = info.l4Offset + info.tcpHeaderBytes;
  let at = info.l4Offset + TCP_HEADER_BYTES_MIN;
  let delta = 0;
  while (at + 1 < end) {
    const kind = bytes[at]!;
    if (kind === TCP_OPTION_END) break;
    if (kind === TCP_OPTION_NOP) {
      at++;
      continue;
    }
    const optionBytes = bytes[at + 1]!;
    if (optionBytes < 2 || at + optionBytes > end) break;
    if (kind === TCP_OPTION_SACK) {
      if (sackShift !== 0) delta += shiftSack(info, at, optionBytes, sackShift);
    } else if (kind === TCP_OPTION_TIMESTAMPS && optionBytes === TIMESTAMPS_OPTION_BYTES) {
      if (tsvalShift !== 0) delta += shift32(info, at + 2, tsvalShift);
      if (tsecrShift !== 0) delta += shift32(info, at + 6, tsecrShift);
    }
    at += optionBytes;
  }
  return delta;
}

/**
 * SVM to client: `seq += seqDelta`, `TSval += tsDelta`; updates `info.seq`.
 * Both deltas are any integers in -2^32..2^32, taken modulo 2^32.
 *
 * Precondition: the frame holds a whole TCP header (`hasTcpHeader`).
 */
export function adjustGuestSegment(info: FrameInfo, seqDelta: number, tsDelta: number): void {
  assertTcpHeader(info);
  if (seqDelta === 0 && tsDelta === 0) return;
  let delta = 0;
  if (seqDelta !== 0) {
    delta = shift32(info, info.l4Offset + TCP_SEQ, seqDelta);
    info.seq = seqAdd(info.seq, seqDelta);
  }
  if (tsDelta !== 0) delta += shiftOptions(info, 0, tsDelta, 0);
  updateTcpChecksum(info, delta);
}

/**
 * Client to SVM: `ack -= seqDelta`, all SACK edges `-= seqDelta`, `TSecr -= tsDelta`; updates `info.ack`.
 * A segment without the ACK flag carries none of these (RFC 9293 §3.1, RFC 7323 §3.2) and stays as it is.
 *
 * Precondition: the frame holds a whole TCP header (`hasTcpHeader`).
 */
export function adjustClientSegment(info: FrameInfo, seqDelta: number, tsDelta: number): void {
  assertTcpHeader(info);
  if ((info.tcpFlags & TCP_ACK) === 0 || (seqDelta === 0 && tsDelta === 0)) return;
  let delta = 0;
  if (seqDelta !== 0) {
    delta = shift32(info, info.l4Offset + TCP_ACK_NUMBER, -seqDelta);
    info.ack = seqAdd(info.ack, -seqDelta);
  }
  if (info.tcpHeaderBytes > TCP_HEADER_BYTES_MIN) {
    delta += shiftOptions(info, -seqDelta, 0, -tsDelta);
  }
  updateTcpChecksum(info, delta);
}

/**
 * Reads the TCP header of a first fragment into `info`, whose ports `dissect` has read already. False when the
 * fragment does not hold all of the header: then the segment cannot be translated (RFC 1858 tells filters to
 * drop such "tiny fragments").
 *
 * Precondition: a first fragment (`fragmentOffset` 0) with protocol TCP.
 */
export function readFragmentTcpHeader(info: FrameInfo): boolean {
  const { view, l4Offset: l4 } = info;
  if (info.protocol !== IP_PROTOCOL_TCP || info.fragmentOffset !== 0) return false;
  if (info.l4Bytes < TCP_HEADER_BYTES_MIN) return false;
  const headerBytes = (view.getUint8(l4 + TCP_DATA_OFFSET) >> 4) * 4;
  if (headerBytes < TCP_HEADER_BYTES_MIN || headerBytes > info.l4Bytes) return false;
  info.srcPort = view.getUint16(l4 + TCP_SRC_PORT);
  info.dstPort = view.getUint16(l4 + TCP_DST_PORT);
  info.seq = view.getUint32(l4 + TCP_SEQ);
  info.ack = view.getUint32(l4 + TCP_ACK_NUMBER);
  info.tcpFlags = view.getUint8(l4 + TCP_FLAGS);
  info.window = view.getUint16(l4 + TCP_WINDOW);
  info.tcpHeaderBytes = headerBytes;
  info.payloadOffset = l4 + headerBytes;
  info.payloadBytes = info.l4Bytes - headerBytes;
  return true;
}

/**
 * The quoted header's part of a translation: adds `count` to a 32-bit field of it and mends its checksum if
 * that was quoted too. Returns the change of the enclosing sum. Offsets within the frame.
 */
export function shiftQuotedField(
  view: DataView,
  tcpOffset: number,
  fieldOffset: number,
  quotedEnd: number,
  count: number,
): number {
  const at = tcpOffset + fieldOffset;
  const before = view.getUint32(at);
  const after = seqAdd(before, count);
  view.setUint32(at, after);
  let delta = delta32(before, after, false);
  const checksumAt = tcpOffset + TCP_CHECKSUM;
  if (checksumAt + 2 <= quotedEnd) {
    const checksumBefore = view.getUint16(checksumAt);
    applyChecksumDelta(view, checksumAt, delta);
    delta += (~checksumBefore & 0xffff) + view.getUint16(checksumAt);
  }
  return delta;
}
