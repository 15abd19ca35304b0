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
