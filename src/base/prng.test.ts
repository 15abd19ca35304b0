import { describe, expect, it } from 'vitest';
import { Prng } from './prng.ts';

describe('Prng', () => {
  it('repeats from its seed, and differs for others', () => {
    const draw = (seed: number) => Array.from({ length: 4 }, () => new Prng(seed).nextU32());
    const run = (seed: number) => {
      const prng = new Prng(seed);
      return Array.from({ length: 8 }, () => prng.nextU32());
    };
    expect(run(42)).toEqual(run(42));
    expect(run(42)).not.toEqual(run(43));
    expect(run(42)).not.toEqual(run(42 + 2 ** 40));
    expect(new Set(draw(1)).size).toBe(1);
  });

  it('is sfc32: the numbers of the reference implementation for this state', () => {
    // PractRand sfc32 seeded (0, 1, 0), counter 1, after 12 rounds; computed with BigInt arithmetic below.
    const mask = 0xffff_ffffn;
    let [a, b, c, counter] = [0n, 1n, 0n, 1n];
    const next = () => {
      const sum = (a + b + counter) & mask;
      counter = (counter + 1n) & mask;
      a = b ^ (b >> 9n);
      b = (c + (c << 3n)) & mask;
      c = ((((c << 21n) | (c >> 11n)) & mask) + sum) & mask;
      return Number(sum);
    };
    for (let i = 0; i < 12; i++) next();
    const prng = new Prng(1);
    for (let i = 0; i < 1_000; i++) expect(prng.nextU32()).toBe(next());
  });

  it('nextBelow() and nextBetween() stay in range and reach every value', () => {
    const prng = new Prng(7);
    const seen = new Set<number>();
    for (let i = 0; i < 1_000; i++) {
      seen.add(prng.nextBelow(6));
      expect(prng.nextBetween(-3, 3)).toSatisfy((n: number) => n >= -3 && n <= 3);
    }
    expect([...seen].sort()).toEqual([0, 1, 2, 3, 4, 5]);
    expect(prng.nextBelow(1)).toBe(0);
    expect(() => prng.nextBelow(0)).toThrow('count is 1..2^32');
  });

  it('chance() is never at 0, always at 1, and about right between', () => {
    const prng = new Prng(3);
    let hits = 0;
    for (let i = 0; i < 10_000; i++) {
      expect(prng.chance(0)).toBe(false);
      expect(prng.chance(1)).toBe(true);
      if (prng.chance(0.25)) hits++;
    }
    expect(hits).toBeGreaterThan(2_300);
    expect(hits).toBeLessThan(2_700);
  });

  it('shuffle() keeps every item, and fork() does not disturb its source', () => {
    const prng = new Prng(9);
    const items = Array.from({ length: 50 }, (_, i) => i);
    const shuffled = prng.shuffle([...items]);
    expect(shuffled).not.toEqual(items);
    expect(shuffled.sort((a, b) => a - b)).toEqual(items);
    const one = new Prng(5);
    const other = new Prng(5);
    const fork = one.fork();
    other.fork();
    for (let i = 0; i < 100; i++) fork.nextU32();
    expect(one.nextU32()).toBe(other.nextU32());
  });
});
