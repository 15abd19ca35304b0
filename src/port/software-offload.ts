/**
 * Does in software what a virtio-net header asks for, for ports that cannot pass the header on: cuts GSO frames into
 * segments and completes partial checksums (virtio 1.2 §5.1.6.2; Linux net/ipv4/tcp_offload.c, udp_offload.c).
 *
 * Payload is not copied: each segment is rewritten headers, and a piece of the frame that it was cut from.
 *
 * @module
 */
import type { FrameBuffer } from '../env/frame.ts';
import { VNET_HDR_BYTES } from '../limits.ts';
import { checksumAdd, checksumOf, writeIpv4Checksum } from '../wire/checksum.ts';
import { dissect, FRAME_OK, FrameInfo } from '../wire/frame.ts';
import { IP_PROTOCOL_TCP, IP_PROTOCOL_UDP, IPV4_ID, IPV4_TOTAL_LENGTH } from '../wire/ipv4.ts';
import { seqAdd } from '../wire/seq.ts';
import { TCP_CHECKSUM, TCP_CWR, TCP_FIN, TCP_FLAGS, TCP_PSH, TCP_SEQ } from '../wire/tcp.ts';
import {
  VNET_CSUM_OFFSET,
  VNET_CSUM_START,
  VNET_FLAGS,
  VNET_GSO_ECN,
  VNET_GSO_NONE,
  VNET_GSO_SIZE,
  VNET_GSO_TCPV4,
  VNET_GSO_TCPV6,
  VNET_GSO_TYPE,
  VNET_GSO_UDP_L4,
  VNET_NEEDS_CSUM,
} from '../wire/vnet-hdr.ts';

/** Room for the rewritten headers of one segment. */
export const SEGMENT_HEADER_BYTES_MAX = 512;

/** A smaller segment size only multiplies one frame into ten thousands (Linux refuses it alike, TCP_MIN_GSO_SIZE). */
const SEGMENT_BYTES_MIN = 8;

const UDP_LENGTH = 4;
const UDP_CHECKSUM = 6;
const IPV6_PAYLOAD_LENGTH = 4;
const IPV6_HEADER_BYTES = 40;

/** Where the headers of the next segment are to be written: SEGMENT_HEADER_BYTES_MAX bytes. */
export interface HeaderRoom {
  readonly buffer: FrameBuffer;
  readonly offset: number;
}

/** Takes one segment: `headerBytes` in the room that was asked for last, then payload of the original frame. */
export interface SegmentSink {
  room(): HeaderRoom;
  segment(headerBytes: number, payloadOffset: number, payloadBytes: number): void;
}

/** Has the frame anything offloaded? */
export function isOffloaded(view: DataView, offset: number): boolean {
  const vnet = offset - VNET_HDR_BYTES;
  return (
    (view.getUint8(vnet + VNET_FLAGS) & VNET_NEEDS_CSUM) !== 0 ||
    view.getUint8(vnet + VNET_GSO_TYPE) !== VNET_GSO_NONE
  );
}

/** One per port: it keeps the dissected frame between its methods. */
export class SoftwareOffload {
  readonly #info = new FrameInfo();

  /**
   * Gives `sink` the segments of an offloaded frame.
   *
   * @returns false when the header makes no sense for this frame, and nothing was given
   */
  complete(buffer: FrameBuffer, offset: number, length: number, sink: SegmentSink): boolean {
    const view = buffer.view;
    const vnet = offset - VNET_HDR_BYTES;
    const gsoType = view.getUint8(vnet + VNET_GSO_TYPE) & ~VNET_GSO_ECN;
    if (gsoType === VNET_GSO_NONE) return completeChecksum(buffer, offset, length, sink);
    const info = this.#info;
    if (dissect(buffer, offset, length, info) !== FRAME_OK || info.isFragment) return false;
    const segmentBytes = view.getUint16(vnet + VNET_GSO_SIZE, true);
    const isTcp = gsoType === VNET_GSO_TCPV4 || gsoType === VNET_GSO_TCPV6;
    if (!isTcp && gsoType !== VNET_GSO_UDP_L4) return false;
    if (info.protocol !== (isTcp ? IP_PROTOCOL_TCP : IP_PROTOCOL_UDP)) return false;
    const headerBytes = info.payloadOffset - offset;
    if (segmentBytes < SEGMENT_BYTES_MIN || headerBytes > SEGMENT_HEADER_BYTES_MAX) return false;
    for (let done = 0, index = 0; done < info.payloadBytes || index === 0; index++) {
      const bytes = Math.min(segmentBytes, info.payloadBytes - done);
      this.#emitSegment(sink, headerBytes, index, done, bytes);
      done += bytes;
    }
    return true;
  }

  #emitSegment(
    sink: SegmentSink,
    headerBytes: number,
    index: number,
    done: number,
    bytes: number,
  ): void {
    const info = this.#info;
    const { buffer, offset } = sink.room();
    const from = info.frameOffset;
    buffer.bytes.set(info.bytes.subarray(from, from + headerBytes), offset);
    const view = buffer.view;
    const l3 = offset + info.l3Offset - from;
    const l4 = offset + info.l4Offset - from;
    const l4Bytes = info.payloadOffset - info.l4Offset + bytes;
    if (info.ipVersion === 4) {
      view.setUint16(l3 + IPV4_TOTAL_LENGTH, l4 - l3 + l4Bytes);
      view.setUint16(l3 + IPV4_ID, (view.getUint16(l3 + IPV4_ID) + index) & 0xffff);
      writeIpv4Checksum(view, l3, l4 - l3);
    } else {
      view.setUint16(l3 + IPV6_PAYLOAD_LENGTH, l4 - l3 - IPV6_HEADER_BYTES + l4Bytes);
    }
    const isTcp = info.protocol === IP_PROTOCOL_TCP;
    if (isTcp) this.#writeTcp(view, l4, index, done, done + bytes >= info.payloadBytes);
    else view.setUint16(l4 + UDP_LENGTH, l4Bytes);
    const field = l4 + (isTcp ? TCP_CHECKSUM : UDP_CHECKSUM);
    view.setUint16(field, 0);
    const addressBytes = info.ipVersion === 4 ? 8 : 32;
    let sum = info.protocol + l4Bytes;
    sum = checksumAdd(info.view, info.srcAddressOffset, addressBytes, sum);
    sum = checksumAdd(view, l4, l4Bytes - bytes, sum);
    sum = checksumAdd(info.view, info.payloadOffset + done, bytes, sum);
    view.setUint16(field, finalChecksum(sum));
    sink.segment(headerBytes, info.payloadOffset + done, bytes);
  }

  /** FIN and PSH belong to the last segment, CWR to the first (RFC 3168 §6.1.2). */
  #writeTcp(view: DataView, l4: number, index: number, done: number, isLast: boolean): void {
    view.setUint32(l4 + TCP_SEQ, seqAdd(this.#info.seq, done));
    let flags = view.getUint8(l4 + TCP_FLAGS);
    if (!isLast) flags &= ~(TCP_FIN | TCP_PSH);
    if (index > 0) flags &= ~TCP_CWR;
    view.setUint8(l4 + TCP_FLAGS, flags);
  }
}

/** The field holds the pseudo-header's sum: everything from csum_start on is summed over it. */
function completeChecksum(
  buffer: FrameBuffer,
  offset: number,
  length: number,
  sink: SegmentSink,
): boolean {
  const view = buffer.view;
  const vnet = offset - VNET_HDR_BYTES;
  const start = view.getUint16(vnet + VNET_CSUM_START, true);
  const field = start + view.getUint16(vnet + VNET_CSUM_OFFSET, true);
  const headerBytes = field + 2;
  if (headerBytes > length || headerBytes > SEGMENT_HEADER_BYTES_MAX) return false;
  const room = sink.room();
  room.buffer.bytes.set(buffer.bytes.subarray(offset, offset + headerBytes), room.offset);
  const sum = checksumAdd(view, offset + start, length - start);
  room.buffer.view.setUint16(room.offset + field, finalChecksum(sum));
  sink.segment(headerBytes, offset + headerBytes, length - headerBytes);
  return true;
}

/** RFC 768: zero would mean "no checksum"; for TCP both forms of zero verify. */
function finalChecksum(sum: number): number {
  const checksum = checksumOf(sum);
  return checksum === 0 ? 0xffff : checksum;
}
