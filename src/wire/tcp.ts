/**
 * TCP header (RFC 9293 §3.1): field offsets from its first byte, and flags.
 *
 * ```text
 *  0                   1                   2                   3
 *  0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
 * |          source port          |       destination port        |
 * |                        sequence number                        |
 * |                    acknowledgment number                      |
 * | offset| rsvd  |     flags     |            window             |
 * |           checksum            |         urgent pointer        |
 * |                     options (0..40 bytes)                     |
 * ```
 *
 * @module
 */
import type { FrameBuffer } from '../env/frame.ts';
import type { Seq } from './seq.ts';

/** Flags, as in `FrameInfo.tcpFlags` (byte 13 of the header). */
export const TCP_FIN = 0x01;
export const TCP_SYN = 0x02;
export const TCP_RST = 0x04;
export const TCP_PSH = 0x08;
export const TCP_ACK = 0x10;
export const TCP_URG = 0x20;
/** RFC 3168 §6.1. */
export const TCP_ECE = 0x40;
/** RFC 3168 §6.1. */
export const TCP_CWR = 0x80;

/** Offsets of the fields from the first byte of the header; all fields are big-endian. */
export const TCP_SRC_PORT = 0;
export const TCP_DST_PORT = 2;
export const TCP_SEQ = 4;
export const TCP_ACK_NUMBER = 8;
/** Upper four bits: header length in 32-bit words. */
export const TCP_DATA_OFFSET = 12;
export const TCP_FLAGS = 13;
export const TCP_WINDOW = 14;
export const TCP_CHECKSUM = 16;
export const TCP_URGENT = 18;
export const TCP_OPTIONS = 20;

/** Bytes of a header without options. */
export const TCP_HEADER_BYTES_MIN = 20;
/** Bytes of a header with all the options that fit. */
export const TCP_HEADER_BYTES_MAX = 60;

/** What `emitTcp` writes; host order. */
export interface TcpFields {
  readonly srcPort: number;
  readonly dstPort: number;
  readonly seq: Seq;
  readonly ack: Seq;
  readonly flags: number;
  /** As on the wire, unscaled. */
  readonly window: number;
  /** Options as on the wire, padded to a multiple of 4 bytes (`emitTcpOptions`). @default none */
  readonly options?: Uint8Array;
}

/**
 * Writes a header at `offset`; the checksum is left 0 (`writeTransportChecksum`).
 *
 * @returns bytes written: 20, and the options
 */
export function emitTcp(buffer: FrameBuffer, offset: number, fields: TcpFields): number {
  const view = buffer.view;
  const headerBytes = TCP_HEADER_BYTES_MIN + (fields.options?.length ?? 0);
  view.setUint16(offset + TCP_SRC_PORT, fields.srcPort);
  view.setUint16(offset + TCP_DST_PORT, fields.dstPort);
  view.setUint32(offset + TCP_SEQ, fields.seq);
  view.setUint32(offset + TCP_ACK_NUMBER, fields.ack);
  view.setUint8(offset + TCP_DATA_OFFSET, (headerBytes / 4) << 4);
  view.setUint8(offset + TCP_FLAGS, fields.flags);
  view.setUint16(offset + TCP_WINDOW, fields.window);
  view.setUint16(offset + TCP_CHECKSUM, 0);
  view.setUint16(offset + TCP_URGENT, 0);
  if (fields.options !== undefined) buffer.bytes.set(fields.options, offset + TCP_OPTIONS);
  return headerBytes;
}

/** `SA`, `FPA`: flags as letters (S F R P A U E W), `none` when there are none. */
export function formatTcpFlags(flags: number): string {
  let text = '';
  for (const [bit, letter] of FLAG_LETTERS) if ((flags & bit) !== 0) text += letter;
  return text === '' ? 'none' : text;
}

const FLAG_LETTERS: readonly (readonly [number, string])[] = [
  [TCP_SYN, 'S'],
  [TCP_FIN, 'F'],
  [TCP_RST, 'R'],
  [TCP_PSH, 'P'],
  [TCP_ACK, 'A'],
  [TCP_URG, 'U'],
  [TCP_ECE, 'E'],
  [TCP_CWR, 'W'],
];
