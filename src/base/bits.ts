/**
 * Yes-or-no facts as bits of one integer, for objects that there may be a million of: a field of its own takes 8 bytes each.
 * Functions, not private methods (`#set`): those mark every object of their class, with another 8 bytes (Node 20.20).
 *
 * @module
 */

/** Is the bit `bit` (one bit, as a value) set in `bits`? */
export function hasBit(bits: number, bit: number): boolean {
  return (bits & bit) !== 0;
}

/** `bits` with the bit `bit` (one bit, as a value) set or cleared. */
export function withBit(bits: number, bit: number, value: boolean): number {
  return value ? bits | bit : bits & ~bit;
}
