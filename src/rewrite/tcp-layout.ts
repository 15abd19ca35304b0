/**
 * Where the fields of a TCP header lie (RFC 9293 §3.1) and the option kinds that are rewritten.
 * All offsets count from the first byte of the TCP header, in bytes; all fields are big-endian.
 *
 *      0                   1                   2                   3
 *      0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
 *     |          Source Port          |       Destination Port        |
 *     |                        Sequence Number                        |
 *     |                    Acknowledgment Number                      |
 *     |  Data |       |C|E|U|A|P|R|S|F|                               |
 *     | Offset| Rsrvd |W|C|R|C|S|S|Y|I|            Window             |
 *     |           Checksum            |         Urgent Pointer        |
 *     |                           Options                             |
 *
 * @module
 */
import { assert } from '../base/assert.ts';
import type { FrameInfo } from '../wire/frame.ts';

export const TCP_SEQ_OFFSET = 4;
export const TCP_ACK_OFFSET = 8;
export const TCP_FLAGS_OFFSET = 13;
export const TCP_WINDOW_OFFSET = 14;
export const TCP_CHECKSUM_OFFSET = 16;
/** Header without options. */
export const TCP_HEADER_BYTES_MIN = 20;

export const IP_PROTOCOL_TCP = 6;

export const TCP_FIN = 0x01;
export const TCP_SYN = 0x02;
export const TCP_RST = 0x04;
export const TCP_ACK = 0x10;

/** Option kinds (RFC 9293 §3.1, RFC 2018 §3, RFC 7323 §3). */
export const OPTION_END = 0;
export const OPTION_NOP = 1;
export const OPTION_SACK = 5;
export const OPTION_TIMESTAMPS = 8;

/** Kind, length, TSval, TSecr. */
export const TIMESTAMPS_OPTION_BYTES = 10;
/** Left and right edge. */
export const SACK_BLOCK_BYTES = 8;

/** Does the frame hold a whole TCP header (all of it in the first fragment, if it is fragmented)? */
export function hasTcpHeader(info: FrameInfo): boolean {
  return info.protocol === IP_PROTOCOL_TCP && info.tcpHeaderBytes >= TCP_HEADER_BYTES_MIN;
}

/** Precondition of every in-place change: the caller has looked at `hasTcpHeader`. */
export function assertTcpHeader(info: FrameInfo): void {
  assert(hasTcpHeader(info), 'the frame holds a whole TCP header');
}
