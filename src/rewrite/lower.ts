/**
 * Lowers what a guest's segment tells the client, in place (guarantee G2): acknowledgement, window, SACK
 * blocks. The primary lets a segment go with what *both* guests cover instead of holding its payload back.
 *
 * With a partial checksum (VIRTIO_NET_HDR_F_NEEDS_CSUM) the checksum field holds the sum of the pseudo-header
 * only, which none of these fields is part of: it is left alone. A full checksum is updated as RFC 1624 says.
 *
 * @module
 */
import type { FrameInfo } from '../wire/frame.ts';
import type { Seq } from '../wire/seq.ts';
import { TCP_ACK_NUMBER, TCP_HEADER_BYTES_MIN, TCP_WINDOW } from '../wire/tcp.ts';
import { TCP_OPTION_END, TCP_OPTION_NOP, TCP_OPTION_SACK } from '../wire/tcp-options.ts';
import { delta16, delta32, sumOfBytes } from './checksum-delta.ts';
import { assertTcpHeader, SACK_BLOCK_BYTES, updateTcpChecksum } from './tcp-frame.ts';

/**
 * Sets the acknowledgement number of a TCP frame, and `info.ack`.
 * Precondition: the frame holds a whole TCP header.
 */
export function lowerAck(info: FrameInfo, newAck: Seq): void {
  assertTcpHeader(info);
  const offset = info.l4Offset + TCP_ACK_NUMBER;
  const before = info.view.getUint32(offset);
  if (before === newAck) return;
  info.view.setUint32(offset, newAck);
  info.ack = newAck;
  updateTcpChecksum(info, delta32(before, newAck, false));
}

/**
 * Sets the window field of a TCP frame (0..65535, unscaled, as on the wire), and `info.window`.
 * Precondition: the frame holds a whole TCP header.
 */
export function setWindow(info: FrameInfo, window: number): void {
  assertTcpHeader(info);
  const offset = info.l4Offset + TCP_WINDOW;
  const before = info.view.getUint16(offset);
  if (before === window) return;
  info.view.setUint16(offset, window);
  info.window = window;
  updateTcpChecksum(info, delta16(before, window, false));
}

/**
 * Keeps the blocks of one SACK option for which `covered` is true, moved together; the freed bytes become NOPs,
 * so the header keeps its length. Returns how many blocks it took out.
 */
function trimOption(
  info: FrameInfo,
  optionOffset: number,
  optionBytes: number,
  covered: (left: Seq, right: Seq) => boolean,
): number {
  const { bytes, view } = info;
  const blockCount = (optionBytes - 2) >>> 3;
  const end = optionOffset + optionBytes;
  const odd = ((optionOffset - info.l4Offset) & 1) === 1;
  let kept = 0;
  let sumBefore = -1;
  for (let i = 0; i < blockCount; i++) {
    const from = optionOffset + 2 + i * SACK_BLOCK_BYTES;
    const left = view.getUint32(from);
    const right = view.getUint32(from + 4);
    if (!covered(left, right)) {
      if (sumBefore < 0) sumBefore = sumOfBytes(bytes, optionOffset, end, odd);
      continue;
    }
    if (kept !== i) {
      const to = optionOffset + 2 + kept * SACK_BLOCK_BYTES;
      view.setUint32(to, left);
      view.setUint32(to + 4, right);
    }
    kept++;
  }
  if (kept === blockCount) return 0;
  const keptBytes = kept === 0 ? 0 : 2 + kept * SACK_BLOCK_BYTES;
  if (kept > 0) bytes[optionOffset + 1] = keptBytes;
  bytes.fill(TCP_OPTION_NOP, optionOffset + keptBytes, end);
  const sumAfter = sumOfBytes(bytes, optionOffset, end, odd);
  updateTcpChecksum(info, (~sumBefore & 0xffff) + sumAfter);
  return blockCount - kept;
}

/**
 * Takes out of every SACK option (RFC 2018) the blocks for which `covered(left, right)` is false. The edges are
 * passed as on the wire; `right` is the first sequence number after the block. The walk ends at the first
 * malformed option, as it does in the receiver. Returns how many blocks it took out.
 *
 * A D-SACK block (RFC 2883) lies at or below the acknowledgement number: what `covered` says of it decides.
 * Precondition: the frame holds a whole TCP header.
 */
export function trimSack(info: FrameInfo, covered: (left: Seq, right: Seq) => boolean): number {
  assertTcpHeader(info);
  const end = info.l4Offset + info.tcpHeaderBytes;
  const { bytes } = info;
  let removed = 0;
  let at = info.l4Offset + TCP_HEADER_BYTES_MIN;
  while (at < end) {
    const kind = bytes[at]!;
    if (kind === TCP_OPTION_END) break;
    if (kind === TCP_OPTION_NOP) {
      at++;
      continue;
    }
    if (at + 1 >= end) break;
    const optionBytes = bytes[at + 1]!;
    if (optionBytes < 2 || at + optionBytes > end) break;
    if (kind === TCP_OPTION_SACK) removed += trimOption(info, at, optionBytes, covered);
    at += optionBytes;
  }
  return removed;
}
