/**
 * A histogram of durations with bounded error and memory: 16 linear steps in every power of two
 * (at most 6 % off), as HdrHistogram does. In the core because the engines record every release.
 *
 * @module
 */
const STEPS = 16;
const STEP_BITS = 4;
const BUCKETS = STEPS * 44;
/** The largest value that can be shifted: some 36 minutes, in microseconds. */
const INT_MAX = 2 ** 31 - 1;

export class Histogram {
  #counts = new Float64Array(BUCKETS);
  #count = 0;
  #max = 0;

  /** Records a whole number, 0..2^47. Negative values count as 0. */
  record(value: number): void {
    this.#counts[bucketOf(value)]! += 1;
    this.#count++;
    if (value > this.#max) this.#max = value;
  }

  get count(): number {
    return this.#count;
  }

  /** The largest value recorded, exact. */
  get max(): number {
    return this.#max;
  }

  /** The value at or below which the share `q` (0..1) of the records lies; 0 when empty. */
  quantile(q: number): number {
    const rank = Math.ceil(q * this.#count);
    let seen = 0;
    for (let i = 0; i < BUCKETS; i++) {
      seen += this.#counts[i]!;
      if (seen >= rank && seen > 0) return Math.min(upperOf(i), this.#max);
    }
    return 0;
  }
}

function bucketOf(value: number): number {
  if (value < STEPS) return value > 0 ? value | 0 : 0;
  if (value > INT_MAX) return bucketOfLarge(value);
  // By the bits: 2 ns, where a logarithm and a power took 50 (Node 20.20).
  const exponent = 31 - Math.clz32(value);
  const step = (value >> (exponent - STEP_BITS)) - STEPS;
  return (exponent - STEP_BITS + 1) * STEPS + step;
}

function bucketOfLarge(value: number): number {
  const exponent = Math.floor(Math.log2(value));
  const step = Math.floor(value / 2 ** (exponent - STEP_BITS)) - STEPS;
  return Math.min(BUCKETS - 1, (exponent - STEP_BITS + 1) * STEPS + step);
}

function upperOf(bucket: number): number {
  if (bucket < STEPS) return bucket;
  const exponent = Math.floor(bucket / STEPS) + STEP_BITS - 1;
  const step = bucket % STEPS;
  return (STEPS + step + 1) * 2 ** (exponent - STEP_BITS) - 1;
}
