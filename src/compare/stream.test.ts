import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { seqAdd, seqDistance } from '../wire/seq.ts';
import {
  type Piece,
  STREAM_DIFFERENT_BYTES,
  STREAM_DIFFERENT_FIN,
  STREAM_EQUAL,
  StreamComparer,
} from './stream.ts';

function piece(seq: number, bytes: Uint8Array | string): Piece {
  const data = typeof bytes === 'string' ? new TextEncoder().encode(bytes) : bytes;
  return { seq: seq >>> 0, end: seqAdd(seq, data.length), bytes: data, offset: 0 };
}

function comparer(): StreamComparer<Piece, Piece> {
  return new StreamComparer<Piece, Piece>({
    onPrimaryDropped: () => {},
    onSecondaryDropped: () => {},
  });
}

describe('StreamComparer', () => {
  it('compares across different segmentation', () => {
    const c = comparer();
    c.start(100);
    c.insertPrimary(piece(100, 'hello world'));
    c.insertSecondary(piece(100, 'hel'));
    expect(c.advance()).toBe(STREAM_EQUAL);
    expect(c.compared).toBe(103);
    c.insertSecondary(piece(103, 'lo wor'));
    c.insertSecondary(piece(109, 'ld'));
    expect(c.advance()).toBe(STREAM_EQUAL);
    expect(c.compared).toBe(111);
    expect(c.primary.size + c.secondary.size).toBe(0);
  });

  it('stops at the first differing byte and shows both sides', () => {
    const c = comparer();
    c.start(0xffff_fffe);
    c.insertPrimary(piece(0xffff_fffe, 'abcdef'));
    c.insertSecondary(piece(0xffff_fffe, 'abcXef'));
    expect(c.advance()).toBe(STREAM_DIFFERENT_BYTES);
    expect(c.compared).toBe(1);
    expect(c.excerpt('primary', 2)).toBe('6465');
    expect(c.excerpt('secondary', 16)).toBe('586566');
  });

  it('waits at a gap until it closes', () => {
    const c = comparer();
    c.start(0);
    c.insertPrimary(piece(0, 'abcdef'));
    c.insertSecondary(piece(3, 'def'));
    expect(c.advance()).toBe(STREAM_EQUAL);
    expect(c.compared).toBe(0);
    c.insertSecondary(piece(0, 'abc'));
    c.advance();
    expect(c.compared).toBe(6);
  });

  it('counts a FIN that both guests sent at the same place', () => {
    const c = comparer();
    c.start(0);
    c.insertPrimary(piece(0, 'ab'));
    c.primaryFin = 2;
    c.secondaryFin = 2;
    expect(c.advance()).toBe(STREAM_EQUAL);
    expect(c.compared).toBe(0);
    c.insertSecondary(piece(0, 'ab'));
    c.advance();
    expect(c.compared).toBe(3);
  });

  it('finds that one guest ends where the other goes on', () => {
    const c = comparer();
    c.start(0);
    c.primaryFin = 0;
    c.insertSecondary(piece(0, 'more'));
    expect(c.advance()).toBe(STREAM_DIFFERENT_FIN);
  });

  it('agrees with a naive comparison for any segmentation, order, overlap and start', () => {
    const cut = fc.array(fc.tuple(fc.nat(60), fc.integer({ min: 1, max: 20 })), { maxLength: 40 });
    fc.assert(
      fc.property(
        fc.uint8Array({ minLength: 1, maxLength: 60 }),
        fc.option(fc.nat(59), { nil: undefined }),
        fc.integer({ min: 0, max: 0xffff_ffff }),
        cut,
        cut,
        (stream, flipAt, start, primaryCuts, secondaryCuts) => {
          const other = Uint8Array.from(stream);
          if (flipAt !== undefined && flipAt < other.length) other[flipAt]! ^= 0x40;
          const c = comparer();
          c.start(start);
          const seen = [new Set<number>(), new Set<number>()] as const;
          let differs = false;
          const feed = (guest: 0 | 1, [from, length]: [number, number]): void => {
            const source = guest === 0 ? stream : other;
            const bytes = source.slice(from, from + length);
            if (differs || bytes.length === 0) return;
            const p = piece(seqAdd(start, from), bytes);
            if (seqDistance(c.compared, p.end) > 0) {
              if (guest === 0) c.insertPrimary(p);
              else c.insertSecondary(p);
            }
            for (let i = from; i < from + bytes.length; i++) seen[guest].add(i);
            const verdict = c.advance();
            let expected = 0;
            while (
              seen[0].has(expected) &&
              seen[1].has(expected) &&
              stream[expected] === other[expected]
            ) {
              expected++;
            }
            differs = seen[0].has(expected) && seen[1].has(expected);
            expect(seqDistance(start, c.compared)).toBe(expected);
            expect(verdict).toBe(differs ? STREAM_DIFFERENT_BYTES : STREAM_EQUAL);
          };
          const rounds = Math.max(primaryCuts.length, secondaryCuts.length);
          for (let i = 0; i < rounds; i++) {
            const p = primaryCuts[i];
            const s = secondaryCuts[i];
            if (p) feed(0, p);
            if (s) feed(1, s);
          }
        },
      ),
      { numRuns: 500 },
    );
  });
});
