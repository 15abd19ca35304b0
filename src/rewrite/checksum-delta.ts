/**
 * Incremental updates of the Internet checksum (RFC 1624, equation 3): `HC' = ~(~HC + ~m + m')`.
 *
 * Each changed field contributes `~m + m'` to a sum; one `applyChecksumDelta` at the end writes the checksum.
 * A field at an odd distance from the first summed byte contributes its bytes swapped (RFC 1071 §2 (B)),
 * which happens with TCP options that a sender did not align.
 *
 * A checksum that was wrong stays wrong: damage done before us is not hidden.
 *
 * @module
 */

/** Adds carries back in until the sum fits 16 bits. `sum`: 0..2^31-1. */
export function foldSum(sum: number): number {
  let folded = (sum & 0xffff) + (sum >>> 16);
  folded = (folded & 0xffff) + (folded >>> 16);
  return folded;
}

/** Both bytes of a 16-bit word exchanged. */
function swap16(word: number): number {
  return ((word & 0xff) << 8) | (word >>> 8);
}

/**
 * What replacing a 16-bit field adds to the sum, 0..2^16-1.
 *
 * @param odd whether the field begins at an odd distance from the first byte that the checksum covers
 */
export function delta16(before: number, after: number, odd: boolean): number {
  const sum = foldSum((~before & 0xffff) + (after & 0xffff));
  return odd ? swap16(sum) : sum;
}

/** The same as `delta16` for a 32-bit field. */
export function delta32(before: number, after: number, odd: boolean): number {
  const sum = foldSum(
    (~before & 0xffff) + (~before >>> 16) + (after & 0xffff) + ((after >>> 16) & 0xffff),
  );
  return odd ? swap16(sum) : sum;
}

/**
 * The one's complement sum of `[start, end)`, 0..2^16-1, as big-endian words.
 *
 * @param odd whether `start` lies at an odd distance from the first byte that the checksum covers
 */
export function sumOfBytes(bytes: Uint8Array, start: number, end: number, odd: boolean): number {
  let sum = 0;
  let shift = odd ? 0 : 8;
  for (let i = start; i < end; i++) {
    sum += bytes[i]! << shift;
    shift = 8 - shift;
  }
  return foldSum(sum);
}

/** Writes the checksum at `checksumOffset` after fields were replaced whose deltas add up to `delta` (0..2^31-1). */
export function applyChecksumDelta(view: DataView, checksumOffset: number, delta: number): void {
  const before = view.getUint16(checksumOffset);
  view.setUint16(checksumOffset, ~foldSum((~before & 0xffff) + foldSum(delta)) & 0xffff);
}
