/**
 * Output of the SVM that may not have reached the client. If the primary dies, the client may lack it, and the
 * SVM's own retransmission timer would bring it only after 200 ms and more: a failover sends it at once (G5).
 *
 * Frames are kept as they would go to the network (already translated; a SYN as the SVM sent it, since both ISNs
 * may not be known yet). Each frame is in two lists, oldest first: that of all frames, by which the limit forgets the
 * oldest, and that of its flow, by which confirmations forget from the front.
 *
 *     kept ---- confirmed: the client's own acknowledgement -------------------------------------> forgotten
 *          ---- released, says the primary's progress report ------------------------------------> forgotten but for a TCP flow's newest
 *          ---- a checkpoint commits: its state contains whatever was sent ----------------------> forgotten
 *          ---- limit, oldest first -------------------------------------------------------------> forgotten, counted
 *          ---- failover ------------------------------------------------------------------------> sent, in order
 *
 * @module
 */
import { assert } from '../base/assert.ts';
import type { Micros } from '../base/time.ts';
import type { FrameInfo } from '../wire/frame.ts';
import { type Seq, seqBeforeOrEqual } from '../wire/seq.ts';
import type { Counters } from './counters.ts';
import type { FramePool, PooledFrame } from './frame-pool.ts';

/** Where a flow keeps its list; both undefined when nothing of it is kept. */
export interface RetentionOwner {
  retainedFirst: RetainedFrame | undefined;
  retainedLast: RetainedFrame | undefined;
}

/** What a frame is to the client: decides how it is confirmed and what is done to it before it is sent. */
export type RetainedKind = 'segment' | 'syn' | 'datagram';

/** Used again when it is forgotten: a frame leaves no object to the garbage collector. */
export class RetainedFrame {
  kind: RetainedKind = 'segment';
  frame: PooledFrame;
  /** Undefined: belongs to no flow (fragments, EtherTypes other than IP), and only ages. */
  owner: RetentionOwner | undefined = undefined;
  /** Segments and SYNs: sequence number after it (PVM's numbers; a SYN's are not compared). Datagrams: their count up to it. */
  end = 0;
  atUs: Micros = 0;
  older: RetainedFrame | undefined = undefined;
  newer: RetainedFrame | undefined = undefined;
  newerInFlow: RetainedFrame | undefined = undefined;

  constructor(frame: PooledFrame) {
    this.frame = frame;
  }
}

/** Entries kept for use: as many GSO frames fit RETAINED_BYTES_MAX. After a burst of small ones the rest is left to the collector. */
const FREE_ENTRIES_MAX = 4_096;

export class Retention {
  readonly #pool: FramePool;
  readonly #bytesMax: number;
  readonly #dropped: Counters;
  #oldest: RetainedFrame | undefined;
  #newest: RetainedFrame | undefined;
  readonly #free: RetainedFrame[] = [];
  #frames = 0;
  #bytes = 0;

  constructor(pool: FramePool, bytesMax: number, dropped: Counters) {
    this.#pool = pool;
    this.#bytesMax = bytesMax;
    this.#dropped = dropped;
  }

  get frames(): number {
    return this.#frames;
  }

  /** Pool memory in use. */
  get bytes(): number {
    return this.#bytes;
  }

  /** Keeps a copy of the frame that `info` describes. See `RetainedFrame` for `end`. */
  add(
    kind: RetainedKind,
    info: FrameInfo,
    owner: RetentionOwner | undefined,
    end: number,
    nowUs: Micros,
  ): void {
    const frame = this.#pool.copy(info, info.frameOffset, info.frameBytes);
    const entry = this.#free.pop() ?? new RetainedFrame(frame);
    entry.frame = frame;
    entry.kind = kind;
    entry.owner = owner;
    entry.end = end;
    entry.atUs = nowUs;
    entry.older = this.#newest;
    if (this.#newest === undefined) this.#oldest = entry;
    else this.#newest.newer = entry;
    this.#newest = entry;
    if (owner !== undefined) {
      if (owner.retainedLast === undefined) owner.retainedFirst = entry;
      else owner.retainedLast.newerInFlow = entry;
      owner.retainedLast = entry;
    }
    this.#frames++;
    this.#bytes += frame.slotBytes;
    while (this.#bytes > this.#bytesMax && this.#oldest !== undefined) {
      this.#dropped.add('retained-limit');
      this.#remove(this.#oldest);
    }
  }

  /** Everything before `position` (PVM's numbers) of a TCP flow has reached the client: it says so. */
  confirmReceived(owner: RetentionOwner, position: Seq): void {
    while (owner.retainedFirst !== undefined && isBefore(owner.retainedFirst, position)) {
      this.#remove(owner.retainedFirst);
    }
  }

  /**
   * Everything before `position` of a TCP flow was released to the client. What the dying primary had released last may have died with it,
   * in its queues or on a cable without a carrier, so the flow's newest segment stays: after a failover it is what RFC 8985 §7 calls a
   * tail loss probe. The client gets the end of an answer at once, or says by SACK what is missing before it.
   */
  confirmReleased(owner: RetentionOwner, position: Seq): void {
    while (
      owner.retainedFirst?.newerInFlow !== undefined &&
      isBefore(owner.retainedFirst, position)
    ) {
      this.#remove(owner.retainedFirst);
    }
  }

  /** The primary has dealt with the first `count` datagrams of a flow in this epoch. */
  confirmDatagrams(owner: RetentionOwner, count: number): void {
    while (owner.retainedFirst !== undefined && owner.retainedFirst.end <= count) {
      this.#remove(owner.retainedFirst);
    }
  }

  /** The flow is gone. */
  forget(owner: RetentionOwner): void {
    while (owner.retainedFirst !== undefined) this.#remove(owner.retainedFirst);
  }

  clear(): void {
    while (this.#oldest !== undefined) this.#remove(this.#oldest);
  }

  /** Hands everything to `visit`, oldest first, and forgets it. Memory stays valid until the batch was sent. */
  drain(visit: (entry: RetainedFrame) => void): void {
    while (this.#oldest !== undefined) {
      const entry = this.#oldest;
      visit(entry);
      this.#remove(entry);
    }
  }

  /** An entry is always the first of its flow when it goes: per flow and over all the order is the same. */
  #remove(entry: RetainedFrame): void {
    const { owner } = entry;
    if (owner !== undefined) {
      assert(owner.retainedFirst === entry, 'retention forgets from the front of a flow');
      owner.retainedFirst = entry.newerInFlow;
      if (owner.retainedFirst === undefined) owner.retainedLast = undefined;
    }
    if (entry.older === undefined) this.#oldest = entry.newer;
    else entry.older.newer = entry.newer;
    if (entry.newer === undefined) this.#newest = entry.older;
    else entry.newer.older = entry.older;
    this.#frames--;
    this.#bytes -= entry.frame.slotBytes;
    this.#pool.release(entry.frame);
    entry.owner = undefined;
    entry.older = undefined;
    entry.newer = undefined;
    entry.newerInFlow = undefined;
    if (this.#free.length < FREE_ENTRIES_MAX) this.#free.push(entry);
  }
}

/** Confirmed bytes mean that the SYN before them has got there, too. */
function isBefore(entry: RetainedFrame, position: Seq): boolean {
  return entry.kind === 'syn' || seqBeforeOrEqual(entry.end, position);
}
