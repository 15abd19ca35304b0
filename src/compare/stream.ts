/**
 * Compares one TCP connection's output, guest to client, as two byte streams (RFC: "compare the tcp payload
 * data of these two queues"). The guests segment differently, retransmit and reorder; only the bytes
 * at each position count.
 *
 *     primary    ....|=====P1=====|==P2==|
 *     secondary  ....|==S1==|====S2====|            S3 (out of order)
 *                    ^ compared ->
 *
 * `compared` is the end of the agreed prefix, in the PVM's sequence numbers. Pieces refer to memory of
 * frames; who owns that memory is the caller's business (`onDropped` tells when a piece is not needed any more).
 *
 * @module
 */
import { bytesEqual, firstDifference } from '../base/equal.ts';
import { type Seq, seqAdd, seqBefore, seqBeforeOrEqual, seqDistance, seqMin } from '../wire/seq.ts';

/** Payload of one segment. */
export interface Piece {
  /** Sequence number of the first byte. */
  readonly seq: Seq;
  /** Sequence number after the last byte; a FIN is not counted. */
  readonly end: Seq;
  readonly bytes: Uint8Array;
  /** Index of the first byte in `bytes`. */
  readonly offset: number;
}

/** How the two streams part, if they do. */
export const STREAM_EQUAL = 0;
export const STREAM_DIFFERENT_BYTES = 1;
/** One guest has ended its stream where the other goes on. */
export const STREAM_DIFFERENT_FIN = 2;
export type StreamVerdict =
  | typeof STREAM_EQUAL
  | typeof STREAM_DIFFERENT_BYTES
  | typeof STREAM_DIFFERENT_FIN;

/** What waits of one stream, to look at. */
export interface Pieces<P extends Piece> {
  readonly size: number;
  /** The first piece, if any. */
  readonly first: P | undefined;
}

/** Pieces sorted by `seq`, consumed from the front. */
class PieceQueue<P extends Piece> implements Pieces<P> {
  #pieces: P[] = [];
  #head = 0;

  get size(): number {
    return this.#pieces.length - this.#head;
  }

  /** The first piece, if any. */
  get first(): P | undefined {
    return this.#pieces[this.#head];
  }

  /** Inserts behind all pieces that begin at or before it; O(1) for a stream in order. */
  insert(piece: P): void {
    const pieces = this.#pieces;
    let at = pieces.length;
    while (at > this.#head && seqBefore(piece.seq, pieces[at - 1]!.seq)) at--;
    if (at === pieces.length) pieces.push(piece);
    else pieces.splice(at, 0, piece);
  }

  /** The piece that holds the byte at `seq`, if there is one. */
  covering(seq: Seq): P | undefined {
    const pieces = this.#pieces;
    for (let i = this.#head; i < pieces.length; i++) {
      const piece = pieces[i]!;
      if (seqBefore(seq, piece.seq)) return undefined;
      if (seqBefore(seq, piece.end)) return piece;
    }
    return undefined;
  }

  /** Removes the leading pieces that end at or before `seq`. */
  dropUntil(seq: Seq, onDropped: (piece: P) => void): void {
    const pieces = this.#pieces;
    while (this.#head < pieces.length && seqBeforeOrEqual(pieces[this.#head]!.end, seq)) {
      const piece = pieces[this.#head]!;
      pieces[this.#head++] = undefined as never;
      onDropped(piece);
    }
    if (this.#head === pieces.length) {
      this.#empty();
    } else if (this.#head > 64 && this.#head * 2 > pieces.length) {
      pieces.splice(0, this.#head);
      this.#head = 0;
    }
  }

  /** Takes out one piece that need not be at the front; nothing happens when it is not there. */
  remove(piece: P): void {
    const at = this.#pieces.indexOf(piece, this.#head);
    if (at === -1) return;
    this.#pieces.splice(at, 1);
    if (this.size === 0) this.#empty();
  }

  /** Removes all pieces. */
  clear(onDropped: (piece: P) => void): void {
    for (let i = this.#head; i < this.#pieces.length; i++) onDropped(this.#pieces[i]!);
    this.#empty();
  }

  #empty(): void {
    this.#head = 0;
    // Popping is cheaper than `length = 0` for the usual one element (4 % of the primary engine's time, Node 20).
    while (this.#pieces.length > 0) this.#pieces.pop();
  }
}

/**
 * What nearly all streams of a million connections have: a queue takes 150 bytes with its array. Never to be inserted into. One that is needed
 * was used a moment ago by another connection.
 */
const NOTHING = new PieceQueue<never>();
const freeQueues: PieceQueue<Piece>[] = [];
const FREE_MAX = 1_024;

function takeQueue<P extends Piece>(): PieceQueue<P> {
  return (freeQueues.pop() as PieceQueue<P> | undefined) ?? new PieceQueue<P>();
}

/** What to have in the place of `queue` after pieces have left it. */
function giveIfEmpty<P extends Piece>(queue: PieceQueue<P>): PieceQueue<P> {
  if (queue.size > 0 || queue === (NOTHING as PieceQueue<Piece>)) return queue;
  if (freeQueues.length < FREE_MAX) freeQueues.push(queue as unknown as PieceQueue<Piece>);
  return NOTHING as PieceQueue<Piece> as PieceQueue<P>;
}

/** Drops the pieces that end at or before `seq`; returns what to have in the place of `queue`. */
function dropUntil<P extends Piece>(
  queue: PieceQueue<P>,
  seq: Seq,
  onDropped: (piece: P) => void,
): PieceQueue<P> {
  queue.dropUntil(seq, onDropped);
  return giveIfEmpty(queue);
}

/** Told of every piece that leaves a queue, except by `remove`. Shared by all connections: a piece knows whose it is. */
export interface StreamHandlers<P extends Piece, S extends Piece> {
  onPrimaryDropped(piece: P): void;
  onSecondaryDropped(piece: S): void;
}

/** The two streams of one connection. `P` and `S` are the caller's kinds of pieces. */
export class StreamComparer<P extends Piece, S extends Piece> {
  #compared = 0;
  /** False until the position where comparing begins is known. */
  started = false;
  #primary = NOTHING as PieceQueue<Piece> as PieceQueue<P>;
  #secondary = NOTHING as PieceQueue<Piece> as PieceQueue<S>;
  /** Position of each guest's FIN, once seen. */
  primaryFin: Seq | undefined = undefined;
  secondaryFin: Seq | undefined = undefined;
  readonly #handlers: StreamHandlers<P, S>;

  /** End of the agreed prefix; meaningful once `started`. */
  get compared(): Seq {
    return this.#compared >>> 0;
  }

  set compared(seq: Seq) {
    this.#compared = seq | 0;
  }

  constructor(handlers: StreamHandlers<P, S>) {
    this.#handlers = handlers;
  }

  /** What waits of the PVM's stream. */
  get primary(): Pieces<P> {
    return this.#primary;
  }

  /** What waits of the SVM's stream. */
  get secondary(): Pieces<S> {
    return this.#secondary;
  }

  /** `advance` is to follow. */
  insertPrimary(piece: P): void {
    if (this.#primary.size === 0) this.#primary = takeQueue();
    this.#primary.insert(piece);
  }

  /** `advance` is to follow. */
  insertSecondary(piece: S): void {
    if (this.#secondary.size === 0) this.#secondary = takeQueue();
    this.#secondary.insert(piece);
  }

  /** Takes out one piece that need not be the first; nothing happens when it is not there. */
  removePrimary(piece: P): void {
    this.#primary.remove(piece);
    this.#primary = giveIfEmpty(this.#primary);
  }

  /** As `removePrimary`. */
  removeSecondary(piece: S): void {
    this.#secondary.remove(piece);
    this.#secondary = giveIfEmpty(this.#secondary);
  }

  /** Everything before `seq` counts as agreed; pieces before it are dropped. */
  start(seq: Seq): void {
    this.compared = seq;
    this.started = true;
    this.#primary = dropUntil(this.#primary, seq, this.#handlers.onPrimaryDropped);
    this.#secondary = dropUntil(this.#secondary, seq, this.#handlers.onSecondaryDropped);
  }

  /** Forgets both streams: a checkpoint has made them one. Comparing goes on at `seq`. */
  restart(seq: Seq): void {
    this.clearSecondary();
    this.clearPrimary();
    this.compared = seq;
    this.started = true;
  }

  /** Forgets the PVM's stream and the position: it begins anew. */
  clearPrimary(): void {
    this.#primary.clear(this.#handlers.onPrimaryDropped);
    this.#primary = giveIfEmpty(this.#primary);
    this.primaryFin = undefined;
    this.started = false;
  }

  /** Forgets the SVM's stream: it begins anew. */
  clearSecondary(): void {
    this.#secondary.clear(this.#handlers.onSecondaryDropped);
    this.#secondary = giveIfEmpty(this.#secondary);
    this.secondaryFin = undefined;
  }

  /** Forgets everything, the position too. */
  reset(): void {
    this.restart(0);
    this.started = false;
  }

  /**
   * Compares as far as both streams reach. After a verdict other than STREAM_EQUAL `compared` is the position
   * of the first difference.
   */
  advance(): StreamVerdict {
    if (!this.started) return STREAM_EQUAL;
    for (;;) {
      const position = this.compared;
      const p = this.#primary.covering(position);
      const s = this.#secondary.covering(position);
      if (p === undefined || s === undefined) return advanceFin(this, p, s);
      const end = seqMin(p.end, s.end);
      const length = seqDistance(position, end);
      const pOffset = p.offset + seqDistance(p.seq, position);
      const sOffset = s.offset + seqDistance(s.seq, position);
      if (!bytesEqual(p.bytes, pOffset, s.bytes, sOffset, length)) {
        const equal = firstDifference(p.bytes, pOffset, s.bytes, sOffset, length);
        this.compared = seqAdd(position, equal);
        return STREAM_DIFFERENT_BYTES;
      }
      this.compared = end;
      this.#primary = dropUntil(this.#primary, end, this.#handlers.onPrimaryDropped);
      this.#secondary = dropUntil(this.#secondary, end, this.#handlers.onSecondaryDropped);
    }
  }

  /** Up to `bytesMax` bytes of either guest from `compared` on, hexadecimal, for a divergence's reason. */
  excerpt(guest: 'primary' | 'secondary', bytesMax: number): string {
    const piece: Piece | undefined =
      guest === 'primary'
        ? this.#primary.covering(this.compared)
        : this.#secondary.covering(this.compared);
    return piece === undefined ? '' : excerptOf(piece, this.compared, bytesMax);
  }
}

/**
 * At `compared` one of the guests has no byte (yet): have they ended there? A function, not a private method: see
 * base/bits.ts.
 */
function advanceFin<P extends Piece, S extends Piece>(
  comparer: StreamComparer<P, S>,
  p: P | undefined,
  s: S | undefined,
): StreamVerdict {
  const primaryEnded = comparer.primaryFin === comparer.compared;
  const secondaryEnded = comparer.secondaryFin === comparer.compared;
  if (primaryEnded && secondaryEnded) {
    comparer.compared = seqAdd(comparer.compared, 1);
    return STREAM_EQUAL;
  }
  if ((primaryEnded && s !== undefined) || (secondaryEnded && p !== undefined)) {
    return STREAM_DIFFERENT_FIN;
  }
  return STREAM_EQUAL;
}

/** Up to `bytesMax` bytes of a piece from `seq` on, which lies within it, hexadecimal. */
export function excerptOf(piece: Piece, seq: Seq, bytesMax: number): string {
  const from = piece.offset + seqDistance(piece.seq, seq);
  const to = Math.min(from + bytesMax, piece.offset + seqDistance(piece.seq, piece.end));
  let text = '';
  for (let i = from; i < to; i++) text += piece.bytes[i]!.toString(16).padStart(2, '0');
  return text;
}
