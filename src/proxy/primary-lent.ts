/**
 * Segments of both guests that are cut at different places, or of which the PVM's comes first, taken where they lie in the streams that brought
 * them. The PVM's next segment waits in the memory that it was read into; the SVM's is compared with what waits there, and the PVM's goes
 * out from there, together with its neighbours: 0.6 µs of processor time for a frame of 64 bytes with its part of the SVM's, instead of 2.4 µs
 * the ordinary way (Node 20.20, `bench:sockets --mode segments --payload 64 --connections 1`). Nothing is copied; bytes of the SVM never wait here: a segment whose end the PVM has not
 * reached stays at its stream's head.
 *
 * What waits so is a list of plain segments without a gap, from `compared` to `primaryEnd`. Whatever else happens to the connection first
 * moves the list to the queue of held segments (`settle`), where the ordinary way goes on with it.
 *
 * @module
 */
import { assert } from '../base/assert.ts';
import type { Micros } from '../base/time.ts';
import { excerptOf } from '../compare/stream.ts';
import type { FrameBuffer, LendingBuffer } from '../env/frame.ts';
import { trackTcp } from '../flow/tcp-state.ts';
import { FRAME_BYTES_MAX, VNET_HDR_BYTES } from '../limits.ts';
import { dissect, FRAME_OK, type FrameInfo } from '../wire/frame.ts';
import { seqAdd, seqBefore, seqBeforeOrEqual, seqDistance, seqMin } from '../wire/seq.ts';
import { slotBytesFor } from './frame-pool.ts';
import type { PrimaryContext } from './primary-context.ts';
import { isSameRange, isSteady } from './primary-lockstep.ts';
import { describeSegment, type HeldSegment } from './primary-segment.ts';
import type { TcpFlow } from './primary-tcp.ts';

const EMPTY = new Uint8Array(0);
const NOWHERE: LendingBuffer = { bytes: EMPTY, view: new DataView(EMPTY.buffer), lent: 0 };

/** A frame in a stream, with what its port has written before it. */
export interface StreamRecord {
  /** Memory of the stream. */
  readonly stream: LendingBuffer;
  readonly mayLend: boolean;
  readonly recordOffset: number;
  readonly recordBytes: number;
  /** Its virtio-net header, at least VNET_HDR_BYTES; -1: it has none. */
  readonly headerOffset: number;
}

/** Takes a record that may go out; the memory is borrowed until the batch is sent. */
export type RecordSink = (stream: FrameBuffer, offset: number, length: number) => void;

/** A segment of the PVM that waits where it was read. */
export class LentSegment {
  next: LentSegment | undefined = undefined;
  stream: LendingBuffer = NOWHERE;
  recordOffset = 0;
  recordBytes = 0;
  headerOffset = 0;
  frameOffset = 0;
  frameBytes = 0;
  payloadOffset = 0;
  // Sequence numbers as signed integers, see wire/seq.ts.
  seq = 0;
  end = 0;
  ack = 0;
  window = 0;
  arrivedUs: Micros = 0;
}

/** Not taken: the ordinary way. */
export const LENT_NONE = 0;
/** Taken, and done with. */
export const LENT_TAKEN = 1;
/** Of the SVM's segment the PVM has not sent all: it stays where it is. Nothing of it need be compared again. */
export const LENT_MORE = 2;
export type LentResult = typeof LENT_NONE | typeof LENT_TAKEN | typeof LENT_MORE;

const free: LentSegment[] = [];
const FREE_MAX = 65_536;

/** The PVM's next segment of a connection, plain and with payload, waits in `record`'s memory. False: the ordinary way. */
export function lendPrimary(
  context: PrimaryContext,
  flow: TcpFlow,
  info: FrameInfo,
  record: StreamRecord,
): boolean {
  const { seq, payloadBytes } = info;
  if (payloadBytes === 0 || !record.mayLend || seq !== flow.primaryEnd) return false;
  if (info.frameBytes > FRAME_BYTES_MAX) return false;
  if (flow.lentFirst === undefined && (!isSteady(flow) || seq !== flow.comparer.compared)) {
    return false;
  }
  if (!context.lend(flow, slotBytesFor(info.frameBytes))) return false;
  const segment = free.pop() ?? new LentSegment();
  const end = seqAdd(seq, payloadBytes);
  record.stream.lent++;
  segment.stream = record.stream;
  segment.recordOffset = record.recordOffset;
  segment.recordBytes = record.recordBytes;
  segment.headerOffset = record.headerOffset;
  segment.frameOffset = info.frameOffset;
  segment.frameBytes = info.frameBytes;
  segment.payloadOffset = info.payloadOffset;
  segment.seq = seq | 0;
  segment.end = end | 0;
  segment.ack = info.ack | 0;
  segment.window = info.window;
  segment.arrivedUs = context.nowUs;
  if (flow.lentFirst === undefined) flow.lentFirst = segment;
  else flow.lentLast!.next = segment;
  flow.lentLast = segment;
  flow.heldFrames++;
  trackTcp(flow.connection, info, true);
  flow.primaryEnd = end;
  flow.gate.onPrimary(info.ack, info.window, false);
  if (flow.wheelSlot === -1) {
    context.wheel.arm(flow, context.nowUs + context.config.compareTimeoutUs);
  }
  return true;
}

/** A plain segment of the SVM, of a connection in which something waits so; what it lets out goes to `sink`. */
export function matchLent(
  context: PrimaryContext,
  flow: TcpFlow,
  info: FrameInfo,
  sink: RecordSink,
): LentResult {
  const { comparer, gate } = flow;
  const { seq, payloadBytes } = info;
  const from = comparer.compared;
  const end = seqAdd(seq, payloadBytes);
  const isNext = seqBeforeOrEqual(seq, from) && seqBefore(from, end);
  if (!isNext && payloadBytes > 0) return LENT_NONE;
  // What the SVM acknowledges counts whatever becomes of the rest.
  gate.onSecondary(info.ack, info.window, false, undefined);
  if (payloadBytes === 0) return LENT_TAKEN;
  let at = from;
  let isFree = true;
  for (let p = flow.lentFirst; p !== undefined && at !== end; p = p.next) {
    const upTo = seqMin(p.end >>> 0, end);
    const pOffset = p.payloadOffset + seqDistance(p.seq, at);
    const sOffset = info.payloadOffset + seqDistance(seq, at);
    if (!isSameRange(p.stream, pOffset, info, sOffset, seqDistance(at, upTo))) return LENT_NONE;
    at = upTo;
    const isWhole = at === p.end >>> 0;
    if (isWhole && gate.limit(p.ack >>> 0, p.window, false).lowered) isFree = false;
  }
  // What says more than the SVM covers has to be changed, which is not done here.
  if (!isFree) return LENT_NONE;
  if (at !== from) {
    comparer.compared = at;
    flow.progressUs = context.nowUs;
    releaseLent(context, flow, sink);
  }
  return at === end ? LENT_TAKEN : LENT_MORE;
}

/** Lets out what lies before `compared`. */
function releaseLent(context: PrimaryContext, flow: TcpFlow, sink: RecordSink): void {
  const { compared } = flow.comparer;
  for (let p = flow.lentFirst; p !== undefined; p = flow.lentFirst) {
    const end = p.end >>> 0;
    if (!seqBeforeOrEqual(end, compared)) return;
    flow.gate.onEmitted(p.ack >>> 0, p.window, false);
    flow.releasedEnd = end;
    flow.releasedKnown = true;
    context.counts.compared++;
    context.counts.released++;
    context.latency.record(context.nowUs - p.arrivedUs);
    context.unlend(flow, slotBytesFor(p.frameBytes));
    if (context.config.reportsProgress) {
      flow.progressed = true;
      context.markDirty(flow);
    }
    sink(p.stream, p.recordOffset, p.recordBytes);
    takeFirst(flow, p);
  }
}

/**
 * Moves what waits so into memory of the pool, as held segments in their order: `take` is called with each. It costs as much of the limits
 * there as it did here.
 */
export function settleLent(
  context: PrimaryContext,
  flow: TcpFlow,
  take: (segment: HeldSegment) => void,
): void {
  const info = context.scratchInfo;
  for (let p = flow.lentFirst; p !== undefined; p = flow.lentFirst) {
    const frame = context.pool.acquire(p.frameBytes);
    const { bytes } = frame.buffer;
    const { stream, headerOffset, frameOffset, frameBytes } = p;
    if (headerOffset === -1) bytes.fill(0, frame.offset - VNET_HDR_BYTES, frame.offset);
    else {
      const header = stream.bytes.subarray(headerOffset, headerOffset + VNET_HDR_BYTES);
      bytes.set(header, frame.offset - VNET_HDR_BYTES);
    }
    bytes.set(stream.bytes.subarray(frameOffset, frameOffset + frameBytes), frame.offset);
    const result = dissect(frame.buffer, frame.offset, frameBytes, info);
    assert(result === FRAME_OK, 'a plain segment can be dissected');
    const segment = describeSegment(frame.buffer, info, undefined, p.arrivedUs);
    segment.frame = frame;
    context.moveLent(frame.slotBytes);
    takeFirst(flow, p);
    take(segment);
  }
}

/** Up to `bytesMax` bytes that wait so, from `compared` on, hexadecimal; undefined when nothing does. */
export function lentExcerpt(flow: TcpFlow, bytesMax: number): string | undefined {
  const first = flow.lentFirst;
  if (first === undefined) return undefined;
  const { seq, end, payloadOffset: offset, stream } = first;
  return excerptOf({ seq, end, bytes: stream.bytes, offset }, flow.comparer.compared, bytesMax);
}

/** `first` waits no longer. */
function takeFirst(flow: TcpFlow, first: LentSegment): void {
  flow.lentFirst = first.next;
  if (first.next === undefined) flow.lentLast = undefined;
  flow.heldFrames--;
  first.stream.lent--;
  first.stream = NOWHERE;
  first.next = undefined;
  if (free.length < FREE_MAX) free.push(first);
}
