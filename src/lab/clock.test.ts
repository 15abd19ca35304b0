import { expect, test } from 'vitest';
import { monotonicMs, wallAheadMs } from './clock.ts';

test('wallAheadMs() says the same each time, whatever part of a millisecond it begins in', () => {
  const results = Array.from({ length: 20 }, () => {
    const endMs = monotonicMs() + Math.random() * 2;
    while (monotonicMs() < endMs);
    return wallAheadMs();
  });
  results.sort((a, b) => a - b);
  const middle = results[10]!;
  // Every reading of the wall clock lies less than a millisecond before the true time.
  const wallMs = Date.now();
  expect(wallMs - (monotonicMs() + middle)).toBeLessThan(0.1);
  expect(results[15]! - results[5]!).toBeLessThan(0.1);
});
