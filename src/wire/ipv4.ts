/**
 * IPv4 header (RFC 791 §3.1): field offsets from its first byte, and a builder.
 *
 * ```text
 * |ver|ihl| tos  |   total length    |   0
 * | identification |flg| frag offset |   4
 * |  ttl  | proto |     checksum     |   8
 * |              source              |  12
 * |            destination           |  16
 * |      options (0..40 bytes)       |  20
 * ```
 *
 * @module
 */
import type { FrameBuffer } from '../env/frame.ts';
import { copyBytes } from './bytes.ts';
import { writeIpv4Checksum } from './checksum.ts';

export const IPV4_VERSION_IHL = 0;
export const IPV4_TOS = 1;
export const IPV4_TOTAL_LENGTH = 2;
export const IPV4_ID = 4;
export const IPV4_FLAGS_OFFSET = 6;
export const IPV4_TTL = 8;
export const IPV4_PROTOCOL = 9;
export const IPV4_CHECKSUM = 10;
export const IPV4_SRC = 12;
export const IPV4_DST = 16;
export const IPV4_OPTIONS = 20;

export const IPV4_HEADER_BYTES_MIN = 20;
export const IPV4_ADDRESS_BYTES = 4;

/** Bits of the flags-and-offset field; its low 13 bits count units of 8 bytes. */
export const IPV4_DONT_FRAGMENT = 0x4000;
export const IPV4_MORE_FRAGMENTS = 0x2000;
export const IPV4_FRAGMENT_OFFSET_MASK = 0x1fff;

/** IP protocol numbers that the proxy knows (IANA; IPv6 extension headers are in ipv6.ts). */
export const IP_PROTOCOL_ICMP = 1;
export const IP_PROTOCOL_TCP = 6;
export const IP_PROTOCOL_UDP = 17;
export const IP_PROTOCOL_ICMPV6 = 58;

/** What `emitIpv4` writes. */
export interface Ipv4Fields {
  readonly src: Uint8Array;
  readonly dst: Uint8Array;
  readonly protocol: number;
  /** Bytes after the header. */
  readonly payloadBytes: number;
  /** @default 64 */
  readonly ttl?: number;
  /** @default 0 */
  readonly id?: number;
  /** @default 0 */
  readonly tos?: number;
  /** Flags and fragment offset as on the wire. @default IPV4_DONT_FRAGMENT */
  readonly flagsAndOffset?: number;
  /** Options, a multiple of 4 bytes up to 40. @default none */
  readonly options?: Uint8Array;
}

/**
 * Writes a header with its checksum at `offset`.
 *
 * @returns bytes written: 20, and the options
 */
export function emitIpv4(buffer: FrameBuffer, offset: number, fields: Ipv4Fields): number {
  const view = buffer.view;
  const optionBytes = fields.options?.length ?? 0;
  const headerBytes = IPV4_HEADER_BYTES_MIN + optionBytes;
  view.setUint8(offset + IPV4_VERSION_IHL, 0x40 | (headerBytes / 4));
  view.setUint8(offset + IPV4_TOS, fields.tos ?? 0);
  view.setUint16(offset + IPV4_TOTAL_LENGTH, headerBytes + fields.payloadBytes);
  view.setUint16(offset + IPV4_ID, fields.id ?? 0);
  view.setUint16(offset + IPV4_FLAGS_OFFSET, fields.flagsAndOffset ?? IPV4_DONT_FRAGMENT);
  view.setUint8(offset + IPV4_TTL, fields.ttl ?? 64);
  view.setUint8(offset + IPV4_PROTOCOL, fields.protocol);
  copyBytes(buffer.bytes, offset + IPV4_SRC, fields.src, 0, IPV4_ADDRESS_BYTES);
  copyBytes(buffer.bytes, offset + IPV4_DST, fields.dst, 0, IPV4_ADDRESS_BYTES);
  if (fields.options !== undefined) buffer.bytes.set(fields.options, offset + IPV4_OPTIONS);
  writeIpv4Checksum(view, offset, headerBytes);
  return headerBytes;
}
