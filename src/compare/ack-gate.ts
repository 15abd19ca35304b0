/**
 * Input commit (G2) for one TCP connection: what may be told to the client about the client's own data.
 * An ACK number, a window edge or a SACK block goes out only as far as both guests have acknowledged or
 * offered; otherwise the client would forget data that the SVM does not hold, and a failover would lose it.
 *
 * All positions are the client's sequence numbers, which both guests share (they need no adjusting).
 *
 * @module
 */
import { hasBit, withBit } from '../base/bits.ts';
import {
  type Seq,
  seqAdd,
  seqBefore,
  seqBeforeOrEqual,
  seqDistance,
  seqMax,
  seqMin,
} from '../wire/seq.ts';
import type { TcpOptions } from '../wire/tcp-options.ts';

/** Intervals of the SVM's SACK scoreboard that are remembered; the oldest is forgotten. */
const SCOREBOARD_MAX = 16;
/** The window field's largest value. */
const WINDOW_MAX = 65_535;

/** Edges of SACK blocks, by index. */
interface Blocks {
  readonly lefts: Seq[];
  readonly rights: Seq[];
}

/** What `AckGate.limit` allows. */
interface Limited {
  ack: Seq;
  window: number;
  /** Are the ACK number or the window lower than what the PVM wrote? */
  lowered: boolean;
}

/** One for all gates: a result is used before the next is asked for. */
const limited: Limited = { ack: 0, window: 0, lowered: false };

// `#bits`: what is known, and the window shift + 1.
const SECONDARY_KNOWN = 1;
const EMITTED_KNOWN = 2;
const PRIMARY_KNOWN = 4;
const KNOWN_BITS = 7;
const SHIFT_SHIFT = 3;

export class AckGate {
  #bits = 0;

  /**
   * The guests' window shift (RFC 7323 §2): 0..14, or -1 while unknown (a connection that was open before it was
   * seen). Unknown shifts are dealt with by comparing the window fields as they are.
   */
  get windowShift(): number {
    return (this.#bits >> SHIFT_SHIFT) - 1;
  }

  set windowShift(shift: number) {
    this.#bits = (this.#bits & KNOWN_BITS) | ((shift + 1) << SHIFT_SHIFT);
  }

  /** Has the SVM acknowledged anything yet? Until then nothing may go out. */
  get secondaryKnown(): boolean {
    return hasBit(this.#bits, SECONDARY_KNOWN);
  }

  set secondaryKnown(value: boolean) {
    this.#bits = withBit(this.#bits, SECONDARY_KNOWN, value);
  }

  #secondaryAck = 0;
  #secondaryEdge = 0;
  secondaryWindow = 0;
  #emittedAck = 0;
  #emittedEdge = 0;
  #primaryAck = 0;
  #primaryEdge = 0;
  primaryWindow = 0;
  /** The SVM's SACK scoreboard; undefined while it is empty. */
  #blocks: Blocks | undefined = undefined;

  /** Was the client told anything, as noted here? */
  get emittedKnown(): boolean {
    return hasBit(this.#bits, EMITTED_KNOWN);
  }

  set emittedKnown(value: boolean) {
    this.#bits = withBit(this.#bits, EMITTED_KNOWN, value);
  }

  /** Has the PVM acknowledged anything? */
  get primaryKnown(): boolean {
    return hasBit(this.#bits, PRIMARY_KNOWN);
  }

  set primaryKnown(value: boolean) {
    this.#bits = withBit(this.#bits, PRIMARY_KNOWN, value);
  }

  // Sequence numbers are kept as 32-bit signed integers, which V8 keeps in the object itself (see wire/seq.ts).

  get secondaryAck(): Seq {
    return this.#secondaryAck >>> 0;
  }

  set secondaryAck(seq: Seq) {
    this.#secondaryAck = seq | 0;
  }

  get secondaryEdge(): Seq {
    return this.#secondaryEdge >>> 0;
  }

  set secondaryEdge(seq: Seq) {
    this.#secondaryEdge = seq | 0;
  }

  get emittedAck(): Seq {
    return this.#emittedAck >>> 0;
  }

  set emittedAck(seq: Seq) {
    this.#emittedAck = seq | 0;
  }

  get emittedEdge(): Seq {
    return this.#emittedEdge >>> 0;
  }

  set emittedEdge(seq: Seq) {
    this.#emittedEdge = seq | 0;
  }

  get primaryAck(): Seq {
    return this.#primaryAck >>> 0;
  }

  set primaryAck(seq: Seq) {
    this.#primaryAck = seq | 0;
  }

  get primaryEdge(): Seq {
    return this.#primaryEdge >>> 0;
  }

  set primaryEdge(seq: Seq) {
    this.#primaryEdge = seq | 0;
  }

  /** Takes a segment of the PVM: remembers how far it goes. `isSyn`: its window is not scaled. */
  onPrimary(ack: Seq, window: number, isSyn: boolean): void {
    const edge = seqAdd(ack, scaled(window, isSyn ? -1 : this.windowShift));
    if (!this.primaryKnown || seqBeforeOrEqual(this.primaryAck, ack)) {
      this.primaryAck = ack;
      this.primaryWindow = window;
    }
    this.primaryEdge = this.primaryKnown ? seqMax(this.primaryEdge, edge) : edge;
    this.primaryKnown = true;
  }

  /** Takes a segment of the SVM. Returns whether it lets anything more out. */
  onSecondary(ack: Seq, window: number, isSyn: boolean, options: TcpOptions | undefined): boolean {
    const edge = seqAdd(ack, scaled(window, isSyn ? -1 : this.windowShift));
    let more = false;
    if (!this.secondaryKnown) {
      this.secondaryKnown = true;
      this.secondaryAck = ack;
      this.secondaryEdge = edge;
      this.secondaryWindow = window;
      more = true;
    } else if (seqBeforeOrEqual(this.secondaryAck, ack)) {
      more =
        ack !== this.secondaryAck ||
        window > this.secondaryWindow ||
        seqBefore(this.secondaryEdge, edge);
      this.secondaryAck = ack;
      this.secondaryWindow = window;
      this.secondaryEdge = seqMax(this.secondaryEdge, edge);
    }
    if (options !== undefined && options.sackCount > 0) {
      for (let i = 0; i < options.sackCount; i++) {
        const left = options.sackLeft(i);
        const right = options.sackRight(i);
        if (!seqBefore(left, right) || this.coversBlock(left, right)) continue;
        this.#blocks ??= { lefts: [], rights: [] };
        addBlock(this.#blocks, left, right);
        more = true;
      }
    }
    if (this.#blocks !== undefined) {
      forgetBlocks(this.#blocks, this.secondaryAck);
      if (this.#blocks.lefts.length === 0) this.#blocks = undefined;
    }
    return more;
  }

  /** A checkpoint was committed: the SVM has acknowledged and offered all that the PVM had. */
  adoptPrimary(): void {
    this.#blocks = undefined;
    this.secondaryKnown = this.primaryKnown;
    this.secondaryAck = this.primaryAck;
    this.secondaryEdge = this.primaryEdge;
    this.secondaryWindow = this.primaryWindow;
    // ... and the client was told all of it, or is told in the same batch.
    this.emittedKnown = this.primaryKnown;
    this.emittedAck = this.primaryAck;
    this.emittedEdge = this.primaryEdge;
  }

  /** The SVM's position is unknown again. */
  forgetSecondary(): void {
    this.secondaryKnown = false;
    this.#blocks = undefined;
  }

  /**
   * How much of an ACK number and window field of the PVM may go out. The SVM must be known.
   *
   * @returns valid until the next call, of any gate
   */
  limit(ack: Seq, window: number, isSyn: boolean): Readonly<Limited> {
    limited.ack = seqMin(ack, this.secondaryAck);
    if (isSyn) {
      const room = Math.max(0, seqDistance(limited.ack, this.secondaryEdge));
      limited.window = Math.min(window, room);
    } else if (this.windowShift < 0) {
      limited.window = Math.min(window, this.secondaryWindow);
    } else {
      const edge = seqMin(seqAdd(ack, window << this.windowShift), this.secondaryEdge);
      const room = Math.max(0, seqDistance(limited.ack, edge));
      limited.window = Math.min(room >>> this.windowShift, WINDOW_MAX);
      if (limited.ack === ack) limited.window = Math.min(limited.window, window);
    }
    limited.lowered = limited.ack !== ack || limited.window !== window;
    return limited;
  }

  /** Would (`ack`, `window`) tell the client anything new? */
  advances(ack: Seq, window: number): boolean {
    if (!this.emittedKnown || seqBefore(this.emittedAck, ack)) return true;
    return seqBefore(this.emittedEdge, seqAdd(ack, scaled(window, this.windowShift)));
  }

  /** Notes what went out to the client. */
  onEmitted(ack: Seq, window: number, isSyn: boolean): void {
    const edge = seqAdd(ack, scaled(window, isSyn ? -1 : this.windowShift));
    this.emittedAck = this.emittedKnown ? seqMax(this.emittedAck, ack) : ack;
    this.emittedEdge = this.emittedKnown ? seqMax(this.emittedEdge, edge) : edge;
    this.emittedKnown = true;
  }

  /** Does the SVM hold the whole of a SACK block of the PVM? */
  coversBlock(left: Seq, right: Seq): boolean {
    if (!this.secondaryKnown) return false;
    if (seqBeforeOrEqual(right, this.secondaryAck)) return true;
    if (this.#blocks === undefined) return false;
    const { lefts, rights } = this.#blocks;
    const from = seqMax(left, this.secondaryAck);
    for (let i = 0; i < lefts.length; i++) {
      if (seqBeforeOrEqual(lefts[i]!, from) && seqBeforeOrEqual(right, rights[i]!)) return true;
    }
    return false;
  }
}

// Functions, not private methods: see base/bits.ts.

/** `shift` -1: as it is. */
function scaled(window: number, shift: number): number {
  return shift < 0 ? window : window << shift;
}

/** Merges a block into the scoreboard. */
function addBlock({ lefts, rights }: Blocks, left: Seq, right: Seq): void {
  let from = left;
  let to = right;
  for (let i = lefts.length - 1; i >= 0; i--) {
    if (seqBeforeOrEqual(lefts[i]!, to) && seqBeforeOrEqual(from, rights[i]!)) {
      from = seqMin(from, lefts[i]!);
      to = seqMax(to, rights[i]!);
      lefts.splice(i, 1);
      rights.splice(i, 1);
    }
  }
  if (lefts.length === SCOREBOARD_MAX) {
    lefts.shift();
    rights.shift();
  }
  lefts.push(from);
  rights.push(to);
}

/** Forgets the blocks that end at or before `seq`. */
function forgetBlocks({ lefts, rights }: Blocks, seq: Seq): void {
  for (let i = lefts.length - 1; i >= 0; i--) {
    if (seqBeforeOrEqual(rights[i]!, seq)) {
      lefts.splice(i, 1);
      rights.splice(i, 1);
    }
  }
}
