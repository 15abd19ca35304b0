/**
 * IPv6 header and fragment header (RFC 8200 §3, §4.5): field offsets from their first byte, and builders.
 *
 * ```text
 * |ver| class  |      flow label      |   0
 * | payload length  | next  | hoplim  |   4
 * |           source (16)             |   8
 * |         destination (16)          |  24
 * ```
 *
 * @module
 */
import type { FrameBuffer } from '../env/frame.ts';
import { copyBytes } from './bytes.ts';

export const IPV6_VERSION_CLASS_LABEL = 0;
export const IPV6_PAYLOAD_LENGTH = 4;
export const IPV6_NEXT_HEADER = 6;
export const IPV6_HOP_LIMIT = 7;
export const IPV6_SRC = 8;
export const IPV6_DST = 24;

export const IPV6_HEADER_BYTES = 40;
export const IPV6_ADDRESS_BYTES = 16;

/** Next-header values of extension headers (RFC 8200 §4, RFC 4302). */
export const IPV6_EXT_HOP_BY_HOP = 0;
export const IPV6_EXT_ROUTING = 43;
export const IPV6_EXT_FRAGMENT = 44;
export const IPV6_EXT_AH = 51;
export const IPV6_NO_NEXT_HEADER = 59;
export const IPV6_EXT_DESTINATION = 60;

/** Fragment header: next header, reserved, offset and flags, identification. */
export const IPV6_FRAGMENT_OFFSET_FLAGS = 2;
export const IPV6_FRAGMENT_ID = 4;
export const IPV6_FRAGMENT_HEADER_BYTES = 8;
/** The M flag in the offset-and-flags field; `& 0xfff8` of that field is the offset in bytes. */
export const IPV6_MORE_FRAGMENTS = 1;

/** What `emitIpv6` writes. */
export interface Ipv6Fields {
  readonly src: Uint8Array;
  readonly dst: Uint8Array;
  readonly nextHeader: number;
  /** Bytes after this header, extension headers included. */
  readonly payloadBytes: number;
  /** @default 64; neighbour discovery wants 255 */
  readonly hopLimit?: number;
  /** @default 0 */
  readonly trafficClass?: number;
  /** @default 0 */
  readonly flowLabel?: number;
}

/**
 * Writes a header at `offset`.
 *
 * @returns bytes written: 40
 */
export function emitIpv6(buffer: FrameBuffer, offset: number, fields: Ipv6Fields): number {
  const view = buffer.view;
  const classAndLabel = ((fields.trafficClass ?? 0) << 20) | (fields.flowLabel ?? 0);
  view.setUint32(offset + IPV6_VERSION_CLASS_LABEL, 0x6000_0000 | classAndLabel);
  view.setUint16(offset + IPV6_PAYLOAD_LENGTH, fields.payloadBytes);
  view.setUint8(offset + IPV6_NEXT_HEADER, fields.nextHeader);
  view.setUint8(offset + IPV6_HOP_LIMIT, fields.hopLimit ?? 64);
  copyBytes(buffer.bytes, offset + IPV6_SRC, fields.src, 0, IPV6_ADDRESS_BYTES);
  copyBytes(buffer.bytes, offset + IPV6_DST, fields.dst, 0, IPV6_ADDRESS_BYTES);
  return IPV6_HEADER_BYTES;
}

/**
 * Writes a fragment header at `offset`.
 *
 * @param fragmentOffset in bytes, a multiple of 8
 * @returns bytes written: 8
 */
export function emitIpv6Fragment(
  buffer: FrameBuffer,
  offset: number,
  nextHeader: number,
  fragmentOffset: number,
  moreFragments: boolean,
  id: number,
): number {
  const view = buffer.view;
  view.setUint8(offset, nextHeader);
  view.setUint8(offset + 1, 0);
  const flags = moreFragments ? IPV6_MORE_FRAGMENTS : 0;
  view.setUint16(offset + IPV6_FRAGMENT_OFFSET_FLAGS, fragmentOffset | flags);
  view.setUint32(offset + IPV6_FRAGMENT_ID, id);
  return IPV6_FRAGMENT_HEADER_BYTES;
}
