/**
 * Which features of TCP a segment shows that a model host sends.
 *
 * @module
 */
import type { TcpConnection, TcpIo } from './connection.ts';
import { ACK, FIN, RST, SYN, segmentLength, type TcpSegment, URG } from './segment.ts';

/** Notes them. */
export function noteSegment(connection: TcpConnection, segment: TcpSegment, io: TcpIo): void {
  const { flags } = segment;
  if ((flags & RST) !== 0) io.note('resets');
  if ((flags & FIN) !== 0) io.note('closes');
  if ((flags & SYN) !== 0) {
    io.note((flags & ACK) === 0 ? 'connects' : 'accepts');
    return;
  }
  const length = segmentLength(segment);
  const { payload } = segment;
  if (payload.length > 0) io.note('sends data');
  if (payload.length > connection.mss) io.note('sends GSO frames');
  if (payload.length > 0 && (flags & URG) !== 0) io.note('sends urgent data');
  if (segment.timestamps !== undefined) io.note('sends timestamps');
  if (segment.sack.length > 0) io.note('sends SACK blocks');
  if (connection.rcvScale > 0) io.note('scales its window');
  if (segment.window === 0 && (flags & RST) === 0) io.note('closes its window');
  if (length > 0 && segment.seq + length > 0x1_0000_0000) io.note('passes 2^32');
  if (length > 0 && connection.sndMax > 0x1_0000_0000) io.note('goes beyond 4 GiB');
}
