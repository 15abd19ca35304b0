/**
 * TCP sequence numbers: unsigned 32-bit positions that wrap (RFC 9293 §3.4). The only place in
 * the project that orders them. Two positions may be compared while they lie less than 2^31 apart,
 * which TCP's largest window (2^30, RFC 7323 §2.3) guarantees.
 *
 * Where one is kept for every connection, the field holds it as a signed integer (`seq | 0`) behind accessors that
 * give it back unsigned (`>>> 0`): V8 keeps 32-bit signed integers in the object itself (8 bytes), larger numbers
 * in a heap object of their own (24 bytes, and another cache line).
 *
 * @module
 */

/** A sequence number: integer 0..2^32-1, host order. */
export type Seq = number;

/** `seq + count` modulo 2^32; `count` may be negative. */
export function seqAdd(seq: Seq, count: number): Seq {
  return (seq + count) >>> 0;
}

/** How far `to` lies after `from`: -2^31..2^31-1, negative when it lies before. */
export function seqDistance(from: Seq, to: Seq): number {
  return (to - from) | 0;
}

/** Is `a` strictly before `b`? */
export function seqBefore(a: Seq, b: Seq): boolean {
  return ((a - b) | 0) < 0;
}

/** Is `a` before `b`, or equal to it? */
export function seqBeforeOrEqual(a: Seq, b: Seq): boolean {
  return ((a - b) | 0) <= 0;
}

/** The later of two positions. */
export function seqMax(a: Seq, b: Seq): Seq {
  return ((a - b) | 0) < 0 ? b : a;
}

/** The earlier of two positions. */
export function seqMin(a: Seq, b: Seq): Seq {
  return ((a - b) | 0) < 0 ? a : b;
}
