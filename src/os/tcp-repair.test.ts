import { describe, expect, test } from 'vitest';
import { timestampNow } from './tcp-repair.ts';

describe('timestampNow()', () => {
  test('goes on by milliseconds, never backwards, and never turns into a clock of microseconds', () => {
    for (let elapsedMs = 0; elapsedMs < 50; elapsedMs += 0.7) {
      const now = timestampNow(1_000, elapsedMs);
      expect(now & 1).toBe(0);
      expect(now).toBeGreaterThanOrEqual(1_000 + elapsedMs);
      expect(now).toBeLessThanOrEqual(1_000 + elapsedMs + 2);
    }
  });

  test('goes on by microseconds where the kernel says so in the lowest bit', () => {
    const now = timestampNow(1_001, 2.5);
    expect(now & 1).toBe(1);
    expect(now).toBeGreaterThanOrEqual(1_001 + 2_500);
    expect(now).toBeLessThanOrEqual(1_001 + 2_502);
  });

  test('wraps at 2^32', () => {
    expect(timestampNow(0xffff_fffe, 10)).toBe(8);
  });
});
