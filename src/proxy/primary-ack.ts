/**
 * The acknowledgement that had to stay behind: the header of the PVM's last segment that told the client more
 * than the SVM covers. Once the SVM has caught up, a pure ACK is built from it, so that addresses, tags, timestamps and
 * TTL are the PVM's own (G4).
 *
 * @module
 */
import { type Micros, NEVER } from '../base/time.ts';
import { VNET_HDR_BYTES } from '../limits.ts';
import { foldSum, sumOfBytes } from '../rewrite/checksum-delta.ts';
import { lowerAck, setWindow, trimSack } from '../rewrite/lower.ts';
import { dissect, type FrameInfo } from '../wire/frame.ts';
import { type Seq, seqBefore, seqBeforeOrEqual } from '../wire/seq.ts';
import {
  TCP_ACK,
  TCP_ACK_NUMBER,
  TCP_CHECKSUM,
  TCP_ECE,
  TCP_FLAGS,
  TCP_HEADER_BYTES_MIN,
  TCP_SEQ,
  TCP_SYN,
  TCP_URGENT,
  TCP_WINDOW,
} from '../wire/tcp.ts';
import { parseTcpOptions } from '../wire/tcp-options.ts';
import type { PooledFrame } from './frame-pool.ts';
import type { PrimaryContext } from './primary-context.ts';
import { type HeldSegment, lookAt } from './primary-segment.ts';
import type { TcpFlow } from './primary-tcp.ts';

const IP_PROTOCOL_TCP = 6;

/** An ACK that could not (wholly) go out: what a connection has of it, and no more, because most have none. */
export class KeptAck {
  /** The header, as a frame of its own. */
  frame: PooledFrame;
  ack: Seq = 0;
  window = 0;
  hasSack = false;
  /** It was never sent in any form: it counts even when it says nothing new (a duplicate ACK). */
  unsent = false;
  /** The ACK number that has waited longest, and since when any has. */
  waitingAck: Seq = 0;
  ackSinceUs: Micros = NEVER;
  /** Since when the client sees a closed window that the PVM has open. */
  windowSinceUs: Micros = NEVER;

  constructor(frame: PooledFrame) {
    this.frame = frame;
  }
}

/** Records to use again: most connections have none, and the next ACK makes another. */
const freeKept: KeptAck[] = [];
const FREE_MAX = 1_024;

function takeKept(frame: PooledFrame): KeptAck {
  const kept = freeKept.pop();
  if (kept === undefined) return new KeptAck(frame);
  kept.frame = frame;
  kept.waitingAck = 0;
  kept.ackSinceUs = NEVER;
  kept.windowSinceUs = NEVER;
  return kept;
}

/** SACK blocks of the segment in hand that the SVM covers; see `blocksCovered`. */
let coveredBlocks = 0;

/** Lowers the segment in place to what both guests cover. False: it stays behind. */
export function passAck(
  context: PrimaryContext,
  flow: TcpFlow,
  segment: HeldSegment,
  isPureAck: boolean,
): boolean {
  const gate = flow.gate;
  const isSyn = (segment.flags & TCP_SYN) !== 0;
  const { ack, window, lowered } = gate.limit(segment.ack, segment.window, isSyn);
  coveredBlocks = 0;
  const trims = segment.hasSack && blocksCovered(context, flow, segment) < 0;
  if (!lowered && !trims) {
    if (isCoveredBy(flow.heldAck, ack, window)) dropAck(context, flow);
    gate.onEmitted(ack, window, isSyn);
    return true;
  }
  const saysNew = !isPureAck || gate.advances(ack, window) || coveredBlocks > 0;
  const info = lookAt(segment, context.scratchInfo);
  if (!isSyn) keep(context, flow, info, segment.hasSack, saysNew, ack, window);
  if (!saysNew) return false;
  lowerAck(info, ack);
  setWindow(info, window);
  if (trims) {
    context.counts.sackTrimmed += trimSack(info, (left, right) => gate.coversBlock(left, right));
  }
  context.counts.ackLowered++;
  gate.onEmitted(ack, window, isSyn);
  return true;
}

/** Counts the SACK blocks that the SVM covers; returns -1 when there are others, else how many. */
function blocksCovered(context: PrimaryContext, flow: TcpFlow, segment: HeldSegment): number {
  const info = lookAt(segment, context.scratchInfo);
  const options = context.scratchOptions;
  parseTcpOptions(
    info.view,
    info.l4Offset + TCP_HEADER_BYTES_MIN,
    info.l4Offset + info.tcpHeaderBytes,
    options,
  );
  coveredBlocks = 0;
  for (let i = 0; i < options.sackCount; i++) {
    if (flow.gate.coversBlock(options.sackLeft(i), options.sackRight(i))) coveredBlocks++;
  }
  return coveredBlocks === options.sackCount ? coveredBlocks : -1;
}

/** Is everything that it says covered by what goes out? With the same ACK number and a smaller window an older segment has come late. */
function isCoveredBy(kept: KeptAck | undefined, ack: Seq, window: number): boolean {
  if (kept === undefined) return false;
  return kept.ack === ack ? kept.window <= window : seqBefore(kept.ack, ack);
}

/**
 * Takes the place of what was kept before: the header of `info`'s segment, of which `ack` and `window` may go out now. `wasSent`:
 * the segment itself goes out, lowered.
 */
function keep(
  context: PrimaryContext,
  flow: TcpFlow,
  info: FrameInfo,
  hasSack: boolean,
  wasSent: boolean,
  ack: Seq,
  window: number,
): void {
  const before = flow.heldAck;
  // Where the way from the guest reorders, an older ACK comes late: the one that is kept says more.
  if (before !== undefined && seqBefore(info.ack, before.ack)) return;
  const length = info.l4Offset + info.tcpHeaderBytes - info.frameOffset;
  if (before !== undefined) context.unhold(flow, before.frame);
  const frame = context.hold(flow, info, info.frameOffset, length);
  if (frame === undefined) {
    if (before !== undefined) forget(flow, before);
    return;
  }
  makePureAck(frame, info);
  const kept = before ?? takeKept(frame);
  kept.frame = frame;
  kept.ack = info.ack;
  kept.window = info.window;
  kept.hasSack = hasSack;
  kept.unsent = !wasSent;
  flow.heldAck = kept;
  noteWaiting(kept, ack, window, context.nowUs);
}

/** The SVM has moved: sends as much as may go now. `seq`: what the client has been sent so far. */
export function sendPendingAck(context: PrimaryContext, flow: TcpFlow, seq: Seq | undefined): void {
  const gate = flow.gate;
  const kept = flow.heldAck;
  if (kept === undefined || !gate.secondaryKnown) return;
  const { ack, window, lowered } = gate.limit(kept.ack, kept.window, false);
  noteWaiting(kept, ack, window, context.nowUs);
  if (gate.advances(ack, window) || (!lowered && (kept.unsent || kept.hasSack))) {
    send(context, flow, kept, seq, ack, window);
    gate.onEmitted(ack, window, false);
    kept.unsent = false;
  }
  if (!lowered) dropAck(context, flow);
}

/** A checkpoint covers it, or the node is unprotected: sends it as it was, and forgets it. */
export function sendWholeAck(context: PrimaryContext, flow: TcpFlow, seq: Seq | undefined): void {
  const kept = flow.heldAck;
  if (kept === undefined) return;
  send(context, flow, kept, seq, kept.ack, kept.window);
  flow.gate.onEmitted(kept.ack, kept.window, false);
  dropAck(context, flow);
}

/** Forgets what is kept, if anything is. */
export function dropAck(context: PrimaryContext, flow: TcpFlow): void {
  const kept = flow.heldAck;
  if (kept === undefined) return;
  context.unhold(flow, kept.frame);
  forget(flow, kept);
}

function forget(flow: TcpFlow, kept: KeptAck): void {
  flow.heldAck = undefined;
  if (freeKept.length < FREE_MAX) freeKept.push(kept);
}

/** Of `kept`, `ack` and `window` may go out now. */
function noteWaiting(kept: KeptAck, ack: Seq, window: number, nowUs: Micros): void {
  if (ack === kept.ack) kept.ackSinceUs = NEVER;
  else if (kept.ackSinceUs === NEVER || seqBeforeOrEqual(kept.waitingAck, ack)) {
    kept.ackSinceUs = nowUs;
    kept.waitingAck = kept.ack;
  }
  if (window !== 0 || kept.window === 0) kept.windowSinceUs = NEVER;
  else if (kept.windowSinceUs === NEVER) kept.windowSinceUs = nowUs;
}

function send(
  context: PrimaryContext,
  flow: TcpFlow,
  kept: KeptAck,
  seq: Seq | undefined,
  ack: Seq,
  window: number,
): void {
  // It may go out again in this batch, and what was sent must not change: send a copy.
  const frame = context.pool.copy(kept.frame.buffer, kept.frame.offset, kept.frame.length);
  const info = context.scratchInfo;
  dissect(frame.buffer, frame.offset, frame.length, info);
  const { view, bytes } = frame.buffer;
  const l4 = info.l4Offset;
  if (seq !== undefined) view.setUint32(l4 + TCP_SEQ, seq);
  view.setUint32(l4 + TCP_ACK_NUMBER, ack);
  view.setUint16(l4 + TCP_WINDOW, window);
  if (kept.hasSack) trimSack(info, (left, right) => flow.gate.coversBlock(left, right));
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
/** Makes a copied header (of the segment that `info` describes) a whole frame: lengths, flags, nothing offloaded. */
function makePureAck(frame: PooledFrame, info: FrameInfo): void {
  const { offset, length } = frame;
  const { bytes, view } = frame.buffer;
  const l3 = offset + (info.l3Offset - info.frameOffset);
  const l4 = offset + (info.l4Offset - info.frameOffset);
  bytes.fill(0, offset - VNET_HDR_BYTES, offset);
  if (info.ipVersion === 4) {
    view.setUint16(l3 + 2, offset + length - l3);
    view.setUint16(l3 + 10, 0);
    view.setUint16(l3 + 10, ~sumOfBytes(bytes, l3, l4, false) & 0xffff);
  } else view.setUint16(l3 + 4, offset + length - l3 - 40);
  bytes[l4 + TCP_FLAGS] = TCP_ACK | (bytes[l4 + TCP_FLAGS]! & TCP_ECE);
  view.setUint16(l4 + TCP_URGENT, 0);
}
