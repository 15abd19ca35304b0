/**
 * TCP segments in the primary engine: those of the PVM on their way out, and payload of the SVM that waits for its
 * mate.
 *
 * @module
 */
import { assert } from '../base/assert.ts';
import type { Micros } from '../base/time.ts';
import type { Piece } from '../compare/stream.ts';
import type { FrameBuffer } from '../env/frame.ts';
import { dissect, FRAME_OK, type FrameInfo } from '../wire/frame.ts';
import { type Seq, seqAdd, seqDistance } from '../wire/seq.ts';
import { TCP_FIN, TCP_HEADER_BYTES_MIN, TCP_SYN } from '../wire/tcp.ts';
import { parseTcpOptions, TcpOptions } from '../wire/tcp-options.ts';
import type { PooledFrame } from './frame-pool.ts';
import type { PrimaryContext, PrimaryFlow } from './primary-context.ts';
import type { TcpFlow } from './primary-tcp.ts';

const EMPTY_BYTES = new Uint8Array(0);
const EMPTY_BUFFER: FrameBuffer = { bytes: EMPTY_BYTES, view: new DataView(EMPTY_BYTES.buffer) };

/** A segment of the PVM on its way out. While its batch lasts it may lie in the batch's memory. */
export class HeldSegment implements Piece {
  buffer: FrameBuffer = EMPTY_BUFFER;
  frameOffset = 0;
  frameBytes = 0;
  /** Pool memory that holds it; undefined while it lies in the batch's memory. */
  frame: PooledFrame | undefined = undefined;
  /** The original fragments, when it was put together from such: they are what is released. */
  fragments: readonly PooledFrame[] | undefined = undefined;
  /** Payload as a piece of the stream. */
  seq: Seq = 0;
  end: Seq = 0;
  bytes: Uint8Array = EMPTY_BUFFER.bytes;
  offset = 0;
  /** Sequence number after the segment, SYN and FIN counted. */
  segmentEnd: Seq = 0;
  flags = 0;
  ack: Seq = 0;
  window = 0;
  hasSack = false;
  arrivedUs: Micros = 0;
  /** Is it in the comparer's queue? */
  queued = false;
  /** The PVM had sent beyond its beginning before: it fills a gap, or is a retransmission. */
  isRepeat = false;
}

/** Payload of an SVM segment that waits for the PVM's. */
export class SecondaryPiece implements Piece {
  seq: Seq = 0;
  end: Seq = 0;
  bytes: Uint8Array = EMPTY_BUFFER.bytes;
  offset = 0;
  frame: PooledFrame | undefined = undefined;
  arrivedUs: Micros = 0;
  queued = false;
  /** Whose it is while it is queued. */
  flow: TcpFlow | undefined = undefined;
}

const scratch = new TcpOptions();

/** Records to use again: held for the moment until the other guest's segment comes, they would else be garbage that has survived a batch. */
const freeSegments: HeldSegment[] = [];
const freePieces: SecondaryPiece[] = [];
const FREE_MAX = 65_536;

/** Gives a segment back; nobody may refer to it any more. */
export function recycleSegment(segment: HeldSegment): void {
  segment.buffer = EMPTY_BUFFER;
  segment.bytes = EMPTY_BYTES;
  segment.frame = undefined;
  segment.fragments = undefined;
  segment.hasSack = false;
  segment.isRepeat = false;
  segment.queued = false;
  if (freeSegments.length < FREE_MAX) freeSegments.push(segment);
}

/** As `recycleSegment`. */
export function recyclePiece(piece: SecondaryPiece): void {
  piece.bytes = EMPTY_BYTES;
  piece.frame = undefined;
  piece.queued = false;
  piece.flow = undefined;
  if (freePieces.length < FREE_MAX) freePieces.push(piece);
}

/** Payload of the SVM's segment that `info` describes, where it lies. */
export function describePiece(info: FrameInfo, nowUs: Micros): SecondaryPiece {
  const piece = freePieces.pop() ?? new SecondaryPiece();
  piece.seq = info.seq;
  piece.end = seqAdd(info.seq, info.payloadBytes);
  piece.bytes = info.bytes;
  piece.offset = info.payloadOffset;
  piece.arrivedUs = nowUs;
  return piece;
}

/** Describes the PVM's segment that `info` was dissected from; its memory stays where it is. */
export function describeSegment(
  buffer: FrameBuffer,
  info: FrameInfo,
  fragments: readonly PooledFrame[] | undefined,
  nowUs: Micros,
): HeldSegment {
  const segment = freeSegments.pop() ?? new HeldSegment();
  const isSyn = (info.tcpFlags & TCP_SYN) !== 0;
  segment.buffer = buffer;
  segment.frameOffset = info.frameOffset;
  segment.frameBytes = info.frameBytes;
  segment.fragments = fragments;
  segment.seq = isSyn ? seqAdd(info.seq, 1) : info.seq;
  segment.end = seqAdd(segment.seq, info.payloadBytes);
  segment.bytes = info.bytes;
  segment.offset = info.payloadOffset;
  segment.segmentEnd = seqAdd(info.seq, segmentLength(info));
  segment.flags = info.tcpFlags;
  segment.ack = info.ack;
  segment.window = info.window;
  segment.arrivedUs = nowUs;
  if (info.tcpHeaderBytes > TCP_HEADER_BYTES_MIN) {
    parseTcpOptions(info.view, info.l4Offset + 20, info.l4Offset + info.tcpHeaderBytes, scratch);
    segment.hasSack = scratch.sackCount > 0;
  }
  return segment;
}

/**
 * Copies a segment that must wait out of the batch's memory; of a reassembled one only the payload, beside its fragments. False:
 * beyond the hard limit.
 */
export function keepSegment(
  context: PrimaryContext,
  flow: PrimaryFlow,
  segment: HeldSegment,
): boolean {
  if (segment.frame !== undefined) return true;
  if (segment.fragments !== undefined) {
    const payloadEnd = segment.offset + seqDistance(segment.seq, segment.end);
    segment.bytes = segment.bytes.slice(segment.offset, payloadEnd);
    segment.offset = 0;
    return true;
  }
  const frame = context.hold(flow, segment.buffer, segment.frameOffset, segment.frameBytes);
  if (frame === undefined) return false;
  segment.offset = frame.offset + (segment.offset - segment.frameOffset);
  segment.bytes = frame.buffer.bytes;
  segment.buffer = frame.buffer;
  segment.frameOffset = frame.offset;
  segment.frame = frame;
  return true;
}

/** Sequence space that a segment takes: payload, SYN, FIN (RFC 9293 §3.4). */
export function segmentLength(info: FrameInfo): number {
  let length = info.payloadBytes;
  if ((info.tcpFlags & TCP_SYN) !== 0) length++;
  if ((info.tcpFlags & TCP_FIN) !== 0) length++;
  return length;
}

/** Dissects a held segment's frame again, for changing it in place. Not for one that came in fragments. */
export function lookAt(segment: HeldSegment, info: FrameInfo): FrameInfo {
  const result = dissect(segment.buffer, segment.frameOffset, segment.frameBytes, info);
  assert(result === FRAME_OK, 'a held segment was dissected before');
  return info;
}
