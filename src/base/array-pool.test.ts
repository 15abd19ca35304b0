import { describe, expect, it } from 'vitest';
import { ArrayPool } from './array-pool.ts';

describe('ArrayPool', () => {
  it('gives an array on to the next owner, emptied', () => {
    const pool = new ArrayPool<number>();
    const array = pool.take();
    array.push(1, 2);
    expect(pool.give(array)).toBe(pool.none);
    expect(pool.take()).toBe(array);
    expect(array).toEqual([]);
    expect(pool.take()).not.toBe(array);
  });

  it('does not hand out the one that stands for nothing', () => {
    const pool = new ArrayPool<number>();
    expect(pool.give(pool.none)).toBe(pool.none);
    expect(pool.take()).not.toBe(pool.none);
  });
});
