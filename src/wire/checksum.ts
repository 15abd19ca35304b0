/**
 * The internet checksum (RFC 1071): full, incremental (RFC 1624), and over pseudo-headers (RFC 9293 §3.1,
 * RFC 8200 §8.1), also where only the pseudo-header is summed yet (virtio-net's NEEDS_CSUM).
 *
 * Sums are plain numbers that may exceed 16 bits until `checksumFold`; they stay exact far beyond 64 KiB.
 *
 * @module
 */
import type { FrameBuffer } from '../env/frame.ts';
import type { FrameInfo } from './frame.ts';

const PROTOCOL_ICMP = 1;
const PROTOCOL_TCP = 6;
const PROTOCOL_UDP = 17;
const PROTOCOL_ICMPV6 = 58;

/**
 * Adds `length` bytes at `offset`, as big-endian 16-bit words from there on, to `sum`. An odd last byte counts as
 * if a zero byte followed (RFC 1071 §1).
 *
 * Precondition: the range lies within the view.
 */
export function checksumAdd(view: DataView, offset: number, length: number, sum = 0): number {
  let total = sum;
  const end = offset + length;
  let at = offset;
  // 32-bit words are congruent to their two halves modulo 2^16 - 1, at half the reads.
  for (; at + 4 <= end; at += 4) total += view.getUint32(at);
  if (at + 2 <= end) {
    total += view.getUint16(at);
    at += 2;
  }
  if (at < end) total += view.getUint8(at) << 8;
  return total;
}

/** A sum in 16 bits: end-around carries added. */
export function checksumFold(sum: number): number {
  let folded = sum;
  while (folded > 0xffff) folded = (folded % 0x1_0000) + Math.floor(folded / 0x1_0000);
  return folded;
}

/** The checksum field of a sum: its complement. */
export function checksumOf(sum: number): number {
  return ~checksumFold(sum) & 0xffff;
}

/**
 * A checksum after a 16-bit field changed from `oldValue` to `newValue`: RFC 1624 equation 3,
 * HC' = ~(~HC + ~m + m'). Not equation 4 of RFC 1141, which can turn +0 into -0.
 *
 * @param isOdd the field begins an odd number of bytes after the start of the summed region
 */
export function checksumUpdate16(
  checksum: number,
  oldValue: number,
  newValue: number,
  isOdd = false,
): number {
  return applyDelta(checksum, (~oldValue & 0xffff) + (newValue & 0xffff), isOdd);
}

/** As `checksumUpdate16`, of a 32-bit field. Values are taken modulo 2^32. */
export function checksumUpdate32(
  checksum: number,
  oldValue: number,
  newValue: number,
  isOdd = false,
): number {
  const delta = (~oldValue & 0xffff) + (~oldValue >>> 16) + (newValue & 0xffff) + (newValue >>> 16);
  return applyDelta(checksum, delta, isOdd);
}

/** `delta` is below 2^18. At an odd place the words straddle, so the sum's bytes trade places (RFC 1071 §2 B). */
function applyDelta(checksum: number, delta: number, isOdd: boolean): number {
  let folded = (delta & 0xffff) + (delta >>> 16);
  folded = (folded & 0xffff) + (folded >>> 16);
  if (isOdd) folded = ((folded & 0xff) << 8) | (folded >>> 8);
  let sum = (~checksum & 0xffff) + folded;
  sum = (sum & 0xffff) + (sum >>> 16);
  return ~sum & 0xffff;
}

/**
 * The sum of the pseudo-header of a dissected IP packet. IPv4: RFC 9293 §3.1; IPv6: RFC 8200 §8.1.
 * The destination is the one in the IP header: packets with a routing header that is not at its end are not verified right.
 *
 * @param l4Bytes length field of the pseudo-header: transport header and payload
 */
export function pseudoHeaderSum(info: FrameInfo, protocol: number, l4Bytes: number): number {
  const addressBytes = info.ipVersion === 4 ? 4 : 16;
  let sum = protocol + l4Bytes;
  sum = checksumAdd(info.view, info.srcAddressOffset, addressBytes, sum);
  return checksumAdd(info.view, info.dstAddressOffset, addressBytes, sum);
}

/** Offset of the checksum field in the transport header, -1 for protocols without one. */
export function checksumFieldOffset(ipVersion: number, protocol: number): number {
  if (protocol === PROTOCOL_TCP) return 16;
  if (protocol === PROTOCOL_UDP) return 6;
  if (protocol === PROTOCOL_ICMP && ipVersion === 4) return 2;
  if (protocol === PROTOCOL_ICMPV6 && ipVersion === 6) return 2;
  return -1;
}

/** What the transport checksum of a dissected packet covers: sum of pseudo-header, header and payload, folded. */
function transportSum(info: FrameInfo): number {
  const isUdp = info.protocol === PROTOCOL_UDP;
  const l4Bytes = isUdp ? info.payloadBytes + 8 : info.l4Bytes;
  const hasPseudoHeader = !(info.ipVersion === 4 && info.protocol === PROTOCOL_ICMP);
  const pseudo = hasPseudoHeader ? pseudoHeaderSum(info, info.protocol, l4Bytes) : 0;
  return checksumFold(checksumAdd(info.view, info.l4Offset, l4Bytes, pseudo));
}

/**
 * Is the transport checksum of a dissected, unfragmented packet right? True for protocols without one, for UDP over IPv4 without
 * one (field 0), and for partial checksums, which the sender vouches for.
 */
export function isTransportChecksumRight(info: FrameInfo): boolean {
  const field = checksumFieldOffset(info.ipVersion, info.protocol);
  if (field < 0 || info.checksumPartial) return true;
  if (info.protocol === PROTOCOL_UDP && info.view.getUint16(info.l4Offset + 6) === 0) {
    return info.ipVersion === 4;
  }
  return transportSum(info) === 0xffff;
}

/**
 * Writes the transport checksum of a dissected, unfragmented packet: for builders, never on the packet path.
 * With `info.checksumPartial` only the sum of the pseudo-header, as virtio-net wants it.
 */
export function writeTransportChecksum(info: FrameInfo): void {
  const field = checksumFieldOffset(info.ipVersion, info.protocol);
  if (field < 0) return;
  const at = info.l4Offset + field;
  if (info.checksumPartial) {
    const l4Bytes = info.protocol === PROTOCOL_UDP ? info.payloadBytes + 8 : info.l4Bytes;
    info.view.setUint16(at, checksumFold(pseudoHeaderSum(info, info.protocol, l4Bytes)));
    return;
  }
  info.view.setUint16(at, 0);
  const checksum = checksumOf(transportSum(info));
  // RFC 768: a computed zero is sent as all ones, because zero means "none".
  info.view.setUint16(at, checksum === 0 && info.protocol === PROTOCOL_UDP ? 0xffff : checksum);
}

/** Writes the header checksum of the IPv4 header at `offset`, of `headerBytes`. */
export function writeIpv4Checksum(view: DataView, offset: number, headerBytes: number): void {
  view.setUint16(offset + 10, 0);
  view.setUint16(offset + 10, checksumOf(checksumAdd(view, offset, headerBytes)));
}

/**
 * Completes a partial checksum, as a NIC would: sums from `start` to `end` with the pseudo-header sum that is in the field.
 *
 * @param start first byte that is summed (the transport header), an offset in the view
 * @param field where the checksum lies, an offset in the view
 */
export function completePartialChecksum(
  buffer: FrameBuffer,
  start: number,
  field: number,
  end: number,
): void {
  const checksum = checksumOf(checksumAdd(buffer.view, start, end - start));
  // Linux' skb_checksum_help writes CSUM_MANGLED_0 for every protocol: for TCP both forms of zero verify.
  buffer.view.setUint16(field, checksum === 0 ? 0xffff : checksum);
}
