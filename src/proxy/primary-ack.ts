/**
 * The pure ACK that lets a held acknowledgement go once the SVM has caught up: built from the header of the PVM's
 * last segment, so that addresses, tags, timestamps and TTL are the PVM's own (G4).
 *
 * @module
 */
import { VNET_HDR_BYTES } from '../limits.ts';
import { foldSum, sumOfBytes } from '../rewrite/checksum-delta.ts';
import { trimSack } from '../rewrite/lower.ts';
import { dissect, type FrameInfo } from '../wire/frame.ts';
import type { Seq } from '../wire/seq.ts';
import {
  TCP_ACK,
  TCP_ACK_NUMBER,
  TCP_CHECKSUM,
  TCP_ECE,
  TCP_FLAGS,
  TCP_SEQ,
  TCP_URGENT,
  TCP_WINDOW,
} from '../wire/tcp.ts';
import type { PrimaryContext } from './primary-context.ts';
import type { TcpFlow } from './primary-tcp.ts';

const IP_PROTOCOL_TCP = 6;

/** Keeps the header of `info`'s segment as the flow's template. The frame itself is not changed. */
export function makeAckTemplate(
  context: PrimaryContext,
  flow: TcpFlow,
  info: FrameInfo,
  hasSack: boolean,
): void {
  const headerEnd = info.l4Offset + info.tcpHeaderBytes;
  const length = headerEnd - info.frameOffset;
  if (flow.template !== undefined) context.unhold(flow, flow.template);
  flow.template = context.hold(flow, info, info.frameOffset, length);
  if (flow.template === undefined) return;
  const { buffer, offset } = flow.template;
  const { bytes, view } = buffer;
  const l3 = offset + (info.l3Offset - info.frameOffset);
  const l4 = offset + (info.l4Offset - info.frameOffset);
  bytes.fill(0, offset - VNET_HDR_BYTES, offset);
  if (info.ipVersion === 4) {
    view.setUint16(l3 + 2, offset + length - l3);
    view.setUint16(l3 + 10, 0);
    const sum = sumOfBytes(bytes, l3, l4, false);
    view.setUint16(l3 + 10, ~foldSum(sum) & 0xffff);
  } else view.setUint16(l3 + 4, offset + length - l3 - 40);
  bytes[l4 + TCP_FLAGS] = TCP_ACK | (bytes[l4 + TCP_FLAGS]! & TCP_ECE);
  view.setUint16(l4 + TCP_URGENT, 0);
  if (flow.releasedKnown) view.setUint32(l4 + TCP_SEQ, flow.releasedEnd);
  flow.templateAck = info.ack;
  flow.templateWindow = info.window;
  flow.templateHasSack = hasSack;
}

/** Sends the flow's template with this acknowledgement and window field, SACK blocks as far as the SVM covers them. */
export function emitPureAck(
  context: PrimaryContext,
  flow: TcpFlow,
  ack: Seq,
  window: number,
): void {
  const template = flow.template;
  if (template === undefined) return;
  // The template may go out again in this batch, and what was sent must not change: send a copy.
  const frame = context.pool.copy(template.buffer, template.offset, template.length);
  const info = context.scratchInfo;
  dissect(frame.buffer, frame.offset, frame.length, info);
  const { view, bytes } = frame.buffer;
  const l4 = info.l4Offset;
  if (flow.releasedKnown) view.setUint32(l4 + TCP_SEQ, flow.releasedEnd);
  view.setUint32(l4 + TCP_ACK_NUMBER, ack);
  view.setUint16(l4 + TCP_WINDOW, window);
  if (flow.templateHasSack) trimSack(info, (left, right) => flow.gate.coversBlock(left, right));
  view.setUint16(l4 + TCP_CHECKSUM, 0);
  const addressBytes = info.ipVersion === 4 ? 8 : 32;
  const sum =
    sumOfBytes(bytes, info.srcAddressOffset, info.srcAddressOffset + addressBytes, false) +
    IP_PROTOCOL_TCP +
    info.l4Bytes +
    sumOfBytes(bytes, l4, l4 + info.l4Bytes, false);
  view.setUint16(l4 + TCP_CHECKSUM, ~foldSum(sum) & 0xffff);
  context.counts.pureAcksBuilt++;
  context.emit(frame.buffer, frame.offset, frame.length);
  context.pool.release(frame);
}
