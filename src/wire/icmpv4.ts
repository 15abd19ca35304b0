/**
 * ICMP (RFC 792): types, field offsets from the first byte, a builder for echo.
 *
 * @module
 */
import type { FrameBuffer } from '../env/frame.ts';

export const ICMP_TYPE = 0;
export const ICMP_CODE = 1;
export const ICMP_CHECKSUM = 2;
/** Echo and timestamp: identifier, sequence number. */
export const ICMP_IDENTIFIER = 4;
export const ICMP_SEQUENCE = 6;
/** Errors: the offending packet's IP header and at least 8 bytes follow here. */
export const ICMP_QUOTE = 8;
export const ICMP_HEADER_BYTES = 8;

export const ICMP_ECHO_REPLY = 0;
export const ICMP_UNREACHABLE = 3;
export const ICMP_SOURCE_QUENCH = 4;
export const ICMP_REDIRECT = 5;
export const ICMP_ECHO_REQUEST = 8;
export const ICMP_TIME_EXCEEDED = 11;
export const ICMP_PARAMETER_PROBLEM = 12;
export const ICMP_TIMESTAMP_REQUEST = 13;
export const ICMP_TIMESTAMP_REPLY = 14;

/** Does this type quote the packet that caused it? (RFC 1122 §3.2.2) */
export function isIcmpError(type: number): boolean {
  return (
    type === ICMP_UNREACHABLE ||
    type === ICMP_SOURCE_QUENCH ||
    type === ICMP_REDIRECT ||
    type === ICMP_TIME_EXCEEDED ||
    type === ICMP_PARAMETER_PROBLEM
  );
}

/**
 * Writes an echo header (ICMP, or ICMPv6 with its types) at `offset`; the checksum is left 0 (`writeTransportChecksum`).
 *
 * @returns bytes written: 8
 */
export function emitEcho(
  buffer: FrameBuffer,
  offset: number,
  type: number,
  identifier: number,
  sequence: number,
): number {
  const view = buffer.view;
  view.setUint8(offset + ICMP_TYPE, type);
  view.setUint8(offset + ICMP_CODE, 0);
  view.setUint16(offset + ICMP_CHECKSUM, 0);
  view.setUint16(offset + ICMP_IDENTIFIER, identifier);
  view.setUint16(offset + ICMP_SEQUENCE, sequence);
  return ICMP_HEADER_BYTES;
}
