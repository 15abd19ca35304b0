/**
 * A keyed 32-bit hash for table lookups: HalfSipHash-1-3 (Aumasson, Bernstein: SipHash; the 32-bit
 * variant that Linux uses in hash tables, lib/siphash.c `hsiphash_*u32`).
 *
 * Clients choose their addresses and ports, so an unkeyed hash would let them put all their flows into
 * one chain. With a secret key they cannot tell which flows collide. Not for authentication: 64 bits of key.
 *
 * @module
 */

/** The secret: two 32-bit words. Fixed in tests, random in the daemon. */
export interface HashKey {
  readonly low: number;
  readonly high: number;
}

/**
 * Hashes `count` words of `words` from `start`.
 *
 * @returns signed 32-bit integer, all bits uniform; mask its low bits for a table index
 */
export function hashWords(
  key: HashKey,
  words: Uint32Array | Int32Array,
  start: number,
  count: number,
): number {
  let v0 = key.low | 0;
  let v1 = key.high | 0;
  let v2 = v0 ^ 0x6c796765;
  let v3 = v1 ^ 0x74656462;
  // `count` words, then the length in bytes, then three rounds of finalisation.
  for (let i = 0; i < count + 4; i++) {
    let m = 0;
    if (i < count) m = words[start + i]! | 0;
    else if (i === count) m = count << 26;
    else if (i === count + 1) v2 ^= 0xff;
    v3 ^= m;
    v0 = (v0 + v1) | 0;
    v1 = ((v1 << 5) | (v1 >>> 27)) ^ v0;
    v0 = (v0 << 16) | (v0 >>> 16);
    v2 = (v2 + v3) | 0;
    v3 = ((v3 << 8) | (v3 >>> 24)) ^ v2;
    v0 = (v0 + v3) | 0;
    v3 = ((v3 << 7) | (v3 >>> 25)) ^ v0;
    v2 = (v2 + v1) | 0;
    v1 = ((v1 << 13) | (v1 >>> 19)) ^ v2;
    v2 = (v2 << 16) | (v2 >>> 16);
    v0 ^= m;
  }
  return v1 ^ v3;
}
