import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { Histogram } from './histogram.ts';

describe('Histogram', () => {
  it('is 0 while empty', () => {
    expect(new Histogram().quantile(0.99)).toBe(0);
  });

  it('gives quantiles within one sixteenth, and the exact maximum', () => {
    fc.assert(
      fc.property(
        fc.array(
          fc.oneof(...[10, 31, 32, 40].map((bits) => fc.integer({ min: 0, max: 2 ** bits }))),
          {
            minLength: 1,
            maxLength: 200,
          },
        ),
        fc.double({ min: 0.01, max: 1, noNaN: true }),
        (values, q) => {
          const h = new Histogram();
          for (const v of values) h.record(v);
          const sorted = [...values].sort((a, b) => a - b);
          const exact = sorted[Math.ceil(q * sorted.length) - 1]!;
          expect(h.quantile(q)).toBeGreaterThanOrEqual(exact);
          expect(h.quantile(q)).toBeLessThanOrEqual(exact * 1.0626 + 1);
          expect(h.max).toBe(sorted.at(-1));
        },
      ),
    );
  });
});
