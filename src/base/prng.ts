/**
 * A seeded, deterministic pseudo-random generator: sfc32 (Chris Doty-Humphrey, PractRand; 128 bits of
 * state, period at least 2^32, 2^127 on average). Everything random in the core, the simulator and the
 * tests comes from here, so that a run repeats from its seed. Not for secrets.
 *
 * @module
 */
import { assert } from './assert.ts';

/** Rounds after seeding until the state no longer resembles the seed (PractRand uses 12 for sfc32). */
const WARM_UP_ROUNDS = 12;

export class Prng {
  #a = 0;
  #b = 0;
  #c = 0;
  #counter = 1;

  /** @param seed integer 0..2^53-1, all of whose bits count; a negative one works too */
  constructor(seed: number) {
    this.#a = 0;
    this.#b = seed | 0;
    this.#c = Math.floor(seed / 0x1_0000_0000) | 0;
    for (let i = 0; i < WARM_UP_ROUNDS; i++) this.nextU32();
  }

  /** Uniform integer 0..2^32-1. */
  nextU32(): number {
    const sum = (this.#a + this.#b + this.#counter) | 0;
    this.#counter = (this.#counter + 1) | 0;
    this.#a = this.#b ^ (this.#b >>> 9);
    this.#b = (this.#c + (this.#c << 3)) | 0;
    this.#c = ((this.#c << 21) | (this.#c >>> 11)) + sum;
    this.#c |= 0;
    return sum >>> 0;
  }

  /**
   * Uniform integer 0..count-1, without modulo bias.
   *
   * @param count 1..2^32
   */
  nextBelow(count: number): number {
    assert(count >= 1 && count <= 0x1_0000_0000, 'prng: count is 1..2^32');
    const limit = 0x1_0000_0000 - (0x1_0000_0000 % count);
    for (;;) {
      const value = this.nextU32();
      if (value < limit) return value % count;
    }
  }

  /** Uniform integer `low..high`, both included; at most 2^32 apart. */
  nextBetween(low: number, high: number): number {
    return low + this.nextBelow(high - low + 1);
  }

  /** Uniform number in [0, 1), with 32 bits of resolution. */
  nextFloat(): number {
    return this.nextU32() / 0x1_0000_0000;
  }

  /** True with `probability` (0 = never, 1 = always). */
  chance(probability: number): boolean {
    return this.nextFloat() < probability;
  }

  /** One item of a list that is not empty. */
  pick<T>(items: readonly T[]): T {
    assert(items.length > 0, 'prng: pick from an empty list');
    return items[this.nextBelow(items.length)] as T;
  }

  /** Reorders `items` in place (Fisher-Yates). */
  shuffle<T>(items: T[]): T[] {
    for (let i = items.length - 1; i > 0; i--) {
      const j = this.nextBelow(i + 1);
      const swapped = items[i] as T;
      items[i] = items[j] as T;
      items[j] = swapped;
    }
    return items;
  }

  /** Fills `out` with random bytes. */
  fill(out: Uint8Array): Uint8Array {
    for (let i = 0; i < out.length; i++) out[i] = this.nextU32();
    return out;
  }

  /**
   * A generator of its own, so that a part of a run that draws more numbers does not change the others.
   */
  fork(): Prng {
    return new Prng((this.nextU32() & 0x1f_ffff) * 0x1_0000_0000 + this.nextU32());
  }
}
