import { describe, expect, it } from 'vitest';
import { hashWords } from './hash.ts';

/** HalfSipHash-1-3 of whole words in BigInt, from the paper's definition: slow and plain. */
function reference(key: { low: number; high: number }, words: number[]): number {
  const mask = 0xffff_ffffn;
  const rotate = (x: bigint, by: bigint) => ((x << by) | (x >> (32n - by))) & mask;
  const k0 = BigInt(key.low >>> 0);
  const k1 = BigInt(key.high >>> 0);
  let [v0, v1, v2, v3] = [k0, k1, 0x6c796765n ^ k0, 0x74656462n ^ k1];
  const round = () => {
    v0 = (v0 + v1) & mask;
    v1 = rotate(v1, 5n) ^ v0;
    v0 = rotate(v0, 16n);
    v2 = (v2 + v3) & mask;
    v3 = rotate(v3, 8n) ^ v2;
    v0 = (v0 + v3) & mask;
    v3 = rotate(v3, 7n) ^ v0;
    v2 = (v2 + v1) & mask;
    v1 = rotate(v1, 13n) ^ v2;
    v2 = rotate(v2, 16n);
  };
  for (const m of [...words.map((word) => BigInt(word >>> 0)), BigInt(words.length * 4) << 24n]) {
    v3 ^= m;
    round();
    v0 ^= m;
  }
  v2 ^= 0xffn;
  for (let i = 0; i < 3; i++) round();
  return Number(v1 ^ v3);
}

describe('hashWords()', () => {
  it('is HalfSipHash-1-3', () => {
    const key = { low: 0x03020100, high: 0x07060504 };
    const words = Uint32Array.from({ length: 11 }, (_, i) => (i * 0x9e3779b9) >>> 0);
    for (let count = 0; count <= 11; count++) {
      expect(hashWords(key, words, 0, count) >>> 0).toBe(
        reference(key, [...words.subarray(0, count)]),
      );
    }
    expect(hashWords(key, words, 3, 5) >>> 0).toBe(reference(key, [...words.subarray(3, 8)]));
  });

  it('another key gives other collisions', () => {
    const collide = (low: number) => {
      const buckets = new Map<number, number[]>();
      for (let port = 0; port < 2_000; port++) {
        const bucket = hashWords({ low, high: 1 }, Uint32Array.of(port), 0, 1) & 1023;
        buckets.set(bucket, [...(buckets.get(bucket) ?? []), port]);
      }
      return [...buckets.values()].filter((ports) => ports.length > 1).map(String);
    };
    const first = new Set(collide(1));
    const common = collide(2).filter((ports) => first.has(ports));
    expect(common.length).toBeLessThan(10);
  });
});
