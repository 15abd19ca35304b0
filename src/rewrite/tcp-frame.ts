/**
 * What every in-place change of a TCP header begins and ends with: is there a whole header, and its checksum.
 *
 * @module
 */
import { assert } from '../base/assert.ts';
import type { FrameInfo } from '../wire/frame.ts';
import { IP_PROTOCOL_TCP } from '../wire/ipv4.ts';
import { TCP_CHECKSUM, TCP_HEADER_BYTES_MIN } from '../wire/tcp.ts';
import { applyChecksumDelta } from './checksum-delta.ts';

/** Bytes of a SACK block: left and right edge (RFC 2018 §3). */
export const SACK_BLOCK_BYTES = 8;

/** Does the frame hold a whole TCP header, the fields of which `dissect` has read? */
export function hasTcpHeader(info: FrameInfo): boolean {
  return info.protocol === IP_PROTOCOL_TCP && info.tcpHeaderBytes >= TCP_HEADER_BYTES_MIN;
}

/** Precondition of every in-place change: the caller has looked at `hasTcpHeader`. */
export function assertTcpHeader(info: FrameInfo): void {
  assert(hasTcpHeader(info), 'the frame holds a whole TCP header');
}

/**
 * Adds changes of summed bytes (see `checksum-delta.ts`) to the TCP checksum. A partial checksum is left alone:
 * it holds only the sum of the pseudo-header, and whoever completes it sums the bytes as they are by then.
 */
export function updateTcpChecksum(info: FrameInfo, delta: number): void {
  if (!info.checksumPartial) {
    applyChecksumDelta(info.view, info.l4Offset + TCP_CHECKSUM, delta);
  }
}
