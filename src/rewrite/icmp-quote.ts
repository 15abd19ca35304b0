/**
 * TCP headers quoted inside ICMP and ICMPv6 errors (RFC 792, RFC 4443 §3). A router that refuses a segment of the
 * guest quotes it with the numbers on the wire, the PVM's. A TCP endpoint ignores an error whose quoted sequence
 * number is not in its window (RFC 5927 §4.1), so the SVM would miss every path MTU message: the quoted number
 * is translated as the segment was.
 *
 *     Ethernet | IP | ICMP type code checksum, 4 bytes | quoted IP header | quoted TCP header, at least 8 bytes
 *
 * Addresses are not touched: both guests have the same.
 *
 * @module
 */
import { IPV6_EXTENSION_HEADERS_MAX } from '../limits.ts';
import type { FrameInfo } from '../wire/frame.ts';
import { isIcmpError } from '../wire/icmpv4.ts';
import { ICMPV6_INFORMATIONAL_MIN } from '../wire/icmpv6.ts';
import { IP_PROTOCOL_ICMP, IP_PROTOCOL_ICMPV6, IP_PROTOCOL_TCP } from '../wire/ipv4.ts';
import {
  IPV6_EXT_DESTINATION,
  IPV6_EXT_FRAGMENT,
  IPV6_EXT_HOP_BY_HOP,
  IPV6_EXT_ROUTING,
} from '../wire/ipv6.ts';
import { TCP_ACK_NUMBER, TCP_SEQ } from '../wire/tcp.ts';
import { shiftQuotedField } from './adjust.ts';
import { applyChecksumDelta } from './checksum-delta.ts';

const ICMP_HEADER_BYTES = 8;
/** Offset of the checksum in ICMP and ICMPv6. */
const ICMP_CHECKSUM = 2;
/** RFC 792: as much of the quoted transport header as every error has (ports and sequence number). */
const QUOTE_BYTES_MIN = 8;

/**
 * Looks into an ICMP or ICMPv6 error for a quoted TCP segment and describes that segment in `quote`: addresses,
 * ports, `seq`, `ack` (0 when not quoted), `l4Offset`, `l4Bytes` (what is quoted of it), `vlan`. `tcpHeaderBytes`
 * stays 0, as the header may be cut. False when `info` is no such error, or is a fragment.
 *
 * @param info the dissected error
 * @param quote overwritten; its offsets refer to the same memory
 */
export function dissectQuote(info: FrameInfo, quote: FrameInfo): boolean {
  if (info.isFragment || info.l4Bytes < ICMP_HEADER_BYTES) return false;
  if (info.ipVersion === 4) {
    if (info.protocol !== IP_PROTOCOL_ICMP || !isIcmpError(info.icmpType)) return false;
  } else if (info.ipVersion === 6) {
    if (info.protocol !== IP_PROTOCOL_ICMPV6 || info.icmpType >= ICMPV6_INFORMATIONAL_MIN)
      return false;
  } else {
    return false;
  }
  const start = info.l4Offset + ICMP_HEADER_BYTES;
  const end = info.l4Offset + info.l4Bytes;
  quote.bytes = info.bytes;
  quote.view = info.view;
  quote.frameOffset = info.frameOffset;
  quote.frameBytes = info.frameBytes;
  quote.vlan = info.vlan;
  quote.vlanTags = info.vlanTags;
  quote.ipVersion = info.ipVersion;
  quote.l3Offset = start;
  quote.tcpHeaderBytes = 0;
  const tcpOffset =
    info.ipVersion === 4 ? quotedIpv4(quote, start, end) : quotedIpv6(quote, start, end);
  if (tcpOffset < 0 || tcpOffset + QUOTE_BYTES_MIN > end) return false;
  const { view } = info;
  quote.protocol = IP_PROTOCOL_TCP;
  quote.isFragment = false;
  quote.l4Offset = tcpOffset;
  quote.l4Bytes = end - tcpOffset;
  quote.srcPort = view.getUint16(tcpOffset);
  quote.dstPort = view.getUint16(tcpOffset + 2);
  quote.seq = view.getUint32(tcpOffset + TCP_SEQ);
  quote.ack = quote.l4Bytes >= 12 ? view.getUint32(tcpOffset + TCP_ACK_NUMBER) : 0;
  return true;
}

/** Offset of the quoted TCP header, or -1. A quoted later fragment has none. */
function quotedIpv4(quote: FrameInfo, start: number, end: number): number {
  const { view } = quote;
  if (start + 20 > end || view.getUint8(start) >> 4 !== 4) return -1;
  const headerBytes = (view.getUint8(start) & 0x0f) * 4;
  if (headerBytes < 20 || view.getUint8(start + 9) !== IP_PROTOCOL_TCP) return -1;
  if ((view.getUint16(start + 6) & 0x1fff) !== 0) return -1;
  quote.srcAddressOffset = start + 12;
  quote.dstAddressOffset = start + 16;
  return start + headerBytes;
}

/** The same for IPv6, past hop-by-hop, routing, destination and first-fragment headers (RFC 8200 §4). */
function quotedIpv6(quote: FrameInfo, start: number, end: number): number {
  const { view } = quote;
  if (start + 40 > end || view.getUint8(start) >> 4 !== 6) return -1;
  quote.srcAddressOffset = start + 8;
  quote.dstAddressOffset = start + 24;
  let nextHeader = view.getUint8(start + 6);
  let at = start + 40;
  for (let count = 0; count <= IPV6_EXTENSION_HEADERS_MAX; count++) {
    if (nextHeader === IP_PROTOCOL_TCP) return at;
    if (at + 8 > end) return -1;
    const isFragment = nextHeader === IPV6_EXT_FRAGMENT;
    if (isFragment && (view.getUint16(at + 2) & 0xfff8) !== 0) return -1;
    if (!isFragment && !isOptionsHeader(nextHeader)) return -1;
    nextHeader = view.getUint8(at);
    at += isFragment ? 8 : (view.getUint8(at + 1) + 1) * 8;
  }
  return -1;
}

/** Headers whose second byte is their length in units of 8 bytes without the first. */
function isOptionsHeader(nextHeader: number): boolean {
  return (
    nextHeader === IPV6_EXT_HOP_BY_HOP ||
    nextHeader === IPV6_EXT_ROUTING ||
    nextHeader === IPV6_EXT_DESTINATION
  );
}

/** Adds a change of the error's bytes to its ICMP checksum. */
function updateIcmpChecksum(info: FrameInfo, delta: number): void {
  if (info.checksumPartial) return;
  applyChecksumDelta(info.view, info.l4Offset + ICMP_CHECKSUM, delta);
}

/**
 * An error about a segment of the guest, on its way to the SVM: the quoted `seq -= seqDelta`, with the quoted
 * checksum (if it was quoted) and the ICMP checksum.
 *
 * @param quote what `dissectQuote` found in `info`
 */
export function adjustQuoteForGuest(info: FrameInfo, quote: FrameInfo, seqDelta: number): void {
  if (seqDelta === 0) return;
  const end = quote.l4Offset + quote.l4Bytes;
  updateIcmpChecksum(info, shiftQuotedField(quote.view, quote.l4Offset, TCP_SEQ, end, -seqDelta));
}

/**
 * An error that the SVM sends about a client's segment: the quoted `ack += seqDelta`, if it is quoted.
 *
 * @param quote what `dissectQuote` found in `info`
 */
export function adjustQuoteForClient(info: FrameInfo, quote: FrameInfo, seqDelta: number): void {
  if (seqDelta === 0 || quote.l4Bytes < TCP_ACK_NUMBER + 4) return;
  const end = quote.l4Offset + quote.l4Bytes;
  updateIcmpChecksum(
    info,
    shiftQuotedField(quote.view, quote.l4Offset, TCP_ACK_NUMBER, end, seqDelta),
  );
}
