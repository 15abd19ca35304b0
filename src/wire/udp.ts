/**
 * UDP header (RFC 768): field offsets from its first byte, and a builder.
 *
 * @module
 */
import type { FrameBuffer } from '../env/frame.ts';

export const UDP_SRC_PORT = 0;
export const UDP_DST_PORT = 2;
/** Header and payload, bytes. */
export const UDP_LENGTH = 4;
/** 0: none (IPv4 only). */
export const UDP_CHECKSUM = 6;
export const UDP_HEADER_BYTES = 8;

/**
 * Writes a header at `offset`; the checksum is left 0 (`writeTransportChecksum`).
 *
 * @returns bytes written: 8
 */
export function emitUdp(
  buffer: FrameBuffer,
  offset: number,
  srcPort: number,
  dstPort: number,
  payloadBytes: number,
): number {
  const view = buffer.view;
  view.setUint16(offset + UDP_SRC_PORT, srcPort);
  view.setUint16(offset + UDP_DST_PORT, dstPort);
  view.setUint16(offset + UDP_LENGTH, UDP_HEADER_BYTES + payloadBytes);
  view.setUint16(offset + UDP_CHECKSUM, 0);
  return UDP_HEADER_BYTES;
}
