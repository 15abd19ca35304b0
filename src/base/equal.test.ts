import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { bytesEqual, firstDifference } from './equal.ts';

/** Lengths on both sides of the change from loop to memcmp. */
const LENGTHS = [0, 1, 39, 40, 41, 79, 80, 81, 1_448, 65_536];

describe('bytesEqual() and firstDifference()', () => {
  it('see one differing byte anywhere, and nothing outside of the ranges', () => {
    for (const length of LENGTHS) {
      const a = new Uint8Array(length + 7).fill(7);
      const b = new Uint8Array(length + 7).fill(7);
      a.fill(1, 0, 3).fill(2, 3 + length);
      b.fill(3, 0, 5).fill(4, 5 + length);
      expect(bytesEqual(a, 3, b, 5, length)).toBe(true);
      expect(firstDifference(a, 3, b, 5, length)).toBe(length);
      for (const at of [0, 1, length >> 1, length - 1]) {
        if (at < 0 || at >= length) continue;
        b[5 + at] = 8;
        expect(bytesEqual(a, 3, b, 5, length)).toBe(false);
        expect(firstDifference(a, 3, b, 5, length)).toBe(at);
        b[5 + at] = 7;
      }
    }
  });

  it('firstDifference() is the first of several', () => {
    fc.assert(
      fc.property(
        fc.integer({ min: 1, max: 300 }),
        fc.array(fc.nat(299), { minLength: 1, maxLength: 5 }),
        fc.nat(9),
        (length, places, shift) => {
          const a = new Uint8Array(length + shift);
          const b = new Uint8Array(length);
          for (const place of places) b[place % length] = 1;
          const expected = Math.min(...places.map((place) => place % length));
          expect(firstDifference(a, shift, b, 0, length)).toBe(expected);
        },
      ),
    );
  });

  it('work on parts of a larger buffer, as slots of a pool are', () => {
    const pool = new Uint8Array(400).map((_, i) => i % 100);
    expect(bytesEqual(pool.subarray(100, 300), 0, pool, 200, 200)).toBe(true);
    expect(bytesEqual(pool.subarray(101, 300), 0, pool, 200, 100)).toBe(false);
  });
});
