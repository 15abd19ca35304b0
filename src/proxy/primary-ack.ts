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

/** An ACK that could not (wholly) go out. */
class KeptAck {
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

/** SACK blocks of the segment in hand that the SVM covers; see `#blocksCovered`. */
let coveredBlocks = 0;

export class HeldAck {
  readonly #context: PrimaryContext;
  readonly #flow: TcpFlow;
  #kept: KeptAck | undefined = undefined;

  constructor(context: PrimaryContext, flow: TcpFlow) {
    this.#context = context;
    this.#flow = flow;
  }

  get exists(): boolean {
    return this.#kept !== undefined;
  }

  /** Since when an ACK number waits for the SVM; NEVER when none does. */
  get ackSinceUs(): Micros {
    return this.#kept?.ackSinceUs ?? NEVER;
  }

  /** Since when the client sees a closed window that the PVM has open. */
  get windowSinceUs(): Micros {
    return this.#kept?.windowSinceUs ?? NEVER;
  }

  /** Lowers the segment in place to what both guests cover. False: it stays behind. */
  pass(segment: HeldSegment, isPureAck: boolean): boolean {
    const gate = this.#flow.gate;
    const isSyn = (segment.flags & TCP_SYN) !== 0;
    const { ack, window, lowered } = gate.limit(segment.ack, segment.window, isSyn);
    coveredBlocks = 0;
    const trims = segment.hasSack && this.#blocksCovered(segment) < 0;
    if (!lowered && !trims) {
      if (this.#isCoveredBy(ack)) this.drop();
      gate.onEmitted(ack, window, isSyn);
      return true;
    }
    const context = this.#context;
    const saysNew = !isPureAck || gate.advances(ack, window) || coveredBlocks > 0;
    const info = lookAt(segment, context.scratchInfo);
    if (!isSyn) this.#keep(info, segment.hasSack, saysNew, ack, window);
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
  #blocksCovered(segment: HeldSegment): number {
    const info = lookAt(segment, this.#context.scratchInfo);
    const options = this.#context.scratchOptions;
    parseTcpOptions(
      info.view,
      info.l4Offset + TCP_HEADER_BYTES_MIN,
      info.l4Offset + info.tcpHeaderBytes,
      options,
    );
    coveredBlocks = 0;
    for (let i = 0; i < options.sackCount; i++) {
      if (this.#flow.gate.coversBlock(options.sackLeft(i), options.sackRight(i))) coveredBlocks++;
    }
    return coveredBlocks === options.sackCount ? coveredBlocks : -1;
  }

  /** Is everything that it says covered by an ACK number that goes out? */
  #isCoveredBy(ack: Seq): boolean {
    return this.#kept !== undefined && seqBeforeOrEqual(this.#kept.ack, ack);
  }

  /**
   * Takes the place of what was kept before: the header of `info`'s segment, of which `ack` and `window` may go out now. `wasSent`:
   * the segment itself goes out, lowered.
   */
  #keep(info: FrameInfo, hasSack: boolean, wasSent: boolean, ack: Seq, window: number): void {
    const before = this.#kept;
    // Where the way from the guest reorders, an older ACK comes late: the one that is kept says more.
    if (before !== undefined && seqBefore(info.ack, before.ack)) return;
    const context = this.#context;
    const length = info.l4Offset + info.tcpHeaderBytes - info.frameOffset;
    if (before !== undefined) context.unhold(this.#flow, before.frame);
    const frame = context.hold(this.#flow, info, info.frameOffset, length);
    if (frame === undefined) {
      if (before !== undefined) this.#forget(before);
      return;
    }
    makePureAck(frame, info);
    const kept = before ?? takeKept(frame);
    kept.frame = frame;
    kept.ack = info.ack;
    kept.window = info.window;
    kept.hasSack = hasSack;
    kept.unsent = !wasSent;
    this.#kept = kept;
    this.#noteWaiting(kept, ack, window);
  }

  /** The SVM has moved: sends as much as may go now. `seq`: what the client has been sent so far. */
  sendPending(seq: Seq | undefined): void {
    const gate = this.#flow.gate;
    const kept = this.#kept;
    if (kept === undefined || !gate.secondaryKnown) return;
    const { ack, window, lowered } = gate.limit(kept.ack, kept.window, false);
    this.#noteWaiting(kept, ack, window);
    if (gate.advances(ack, window) || (!lowered && (kept.unsent || kept.hasSack))) {
      this.#send(kept, seq, ack, window);
      gate.onEmitted(ack, window, false);
      kept.unsent = false;
    }
    if (!lowered) this.drop();
  }

  /** A checkpoint covers it, or the node is unprotected: sends it as it was, and forgets it. */
  sendWhole(seq: Seq | undefined): void {
    const kept = this.#kept;
    if (kept === undefined) return;
    this.#send(kept, seq, kept.ack, kept.window);
    this.#flow.gate.onEmitted(kept.ack, kept.window, false);
    this.drop();
  }

  drop(): void {
    const kept = this.#kept;
    if (kept === undefined) return;
    this.#context.unhold(this.#flow, kept.frame);
    this.#forget(kept);
  }

  #forget(kept: KeptAck): void {
    this.#kept = undefined;
    if (freeKept.length < FREE_MAX) freeKept.push(kept);
  }

  /** Of `kept`, `ack` and `window` may go out now. */
  #noteWaiting(kept: KeptAck, ack: Seq, window: number): void {
    const { nowUs } = this.#context;
    if (ack === kept.ack) kept.ackSinceUs = NEVER;
    else if (kept.ackSinceUs === NEVER || seqBeforeOrEqual(kept.waitingAck, ack)) {
      kept.ackSinceUs = nowUs;
      kept.waitingAck = kept.ack;
    }
    if (window !== 0 || kept.window === 0) kept.windowSinceUs = NEVER;
    else if (kept.windowSinceUs === NEVER) kept.windowSinceUs = nowUs;
  }

  #send(kept: KeptAck, seq: Seq | undefined, ack: Seq, window: number): void {
    const context = this.#context;
    // It may go out again in this batch, and what was sent must not change: send a copy.
    const frame = context.pool.copy(kept.frame.buffer, kept.frame.offset, kept.frame.length);
    const info = context.scratchInfo;
    dissect(frame.buffer, frame.offset, frame.length, info);
    const { view, bytes } = frame.buffer;
    const l4 = info.l4Offset;
    if (seq !== undefined) view.setUint32(l4 + TCP_SEQ, seq);
    view.setUint32(l4 + TCP_ACK_NUMBER, ack);
    view.setUint16(l4 + TCP_WINDOW, window);
    if (kept.hasSack) trimSack(info, (left, right) => this.#flow.gate.coversBlock(left, right));
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
