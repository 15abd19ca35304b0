import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { compareStreams, ReferenceStream } from '../../test/support/reference-comparer.ts';
import { seqAdd, seqBefore } from '../wire/seq.ts';
import {
  type Piece,
  STREAM_DIFFERENT_BYTES,
  STREAM_DIFFERENT_FIN,
  STREAM_EQUAL,
  StreamComparer,
} from './stream.ts';

/** Bytes of a stream at most: small, so that segments overlap, repeat and leave gaps. */
const STREAM_BYTES = 40;

interface Step {
  readonly guest: 'primary' | 'secondary';
  readonly start: number;
  readonly count: number;
  readonly fin: boolean;
}

interface Case {
  readonly isn: number;
  readonly content: Uint8Array;
  /** Where the secondary's stream differs, if anywhere. */
  readonly flips: readonly number[];
  readonly primaryBytes: number;
  readonly secondaryBytes: number;
  readonly steps: readonly Step[];
}

const isn = fc.oneof(
  fc.integer({ min: 0, max: 0xffff_ffff }),
  // So near to 2^32 that the stream wraps.
  fc.integer({ min: 0xffff_ffff - STREAM_BYTES, max: 0xffff_ffff }),
  fc.integer({ min: 0x7fff_ffff - STREAM_BYTES, max: 0x7fff_ffff }),
);

const step: fc.Arbitrary<Step> = fc.record({
  guest: fc.constantFrom('primary' as const, 'secondary' as const),
  start: fc.nat({ max: STREAM_BYTES - 1 }),
  count: fc.nat({ max: 15 }),
  fin: fc.boolean(),
});

const cases: fc.Arbitrary<Case> = fc.record({
  isn,
  content: fc.uint8Array({ minLength: STREAM_BYTES, maxLength: STREAM_BYTES }),
  flips: fc.oneof(fc.constant([]), fc.array(fc.nat({ max: STREAM_BYTES - 1 }), { maxLength: 2 })),
  primaryBytes: fc.integer({ min: STREAM_BYTES - 3, max: STREAM_BYTES }),
  secondaryBytes: fc.integer({ min: STREAM_BYTES - 3, max: STREAM_BYTES }),
  steps: fc.array(step, { maxLength: 60 }),
});

const VERDICTS = {
  equal: STREAM_EQUAL,
  'different-bytes': STREAM_DIFFERENT_BYTES,
  'different-fin': STREAM_DIFFERENT_FIN,
} as const;

/** Plays a case into both comparers, and looks at both after every segment. */
function play(item: Case): void {
  const { content, primaryBytes, secondaryBytes } = item;
  const other = content.slice();
  for (const at of item.flips) other[at]! ^= 0x55;
  const streams = {
    primary: { bytes: content.subarray(0, primaryBytes), reference: new ReferenceStream() },
    secondary: { bytes: other.subarray(0, secondaryBytes), reference: new ReferenceStream() },
  };
  const comparer = new StreamComparer<Piece, Piece>({
    onPrimaryDropped: () => {},
    onSecondaryDropped: () => {},
  });
  comparer.start(item.isn);
  for (const { guest, start, count, fin } of item.steps) {
    const { bytes, reference } = streams[guest];
    const end = Math.min(start + count, bytes.length);
    const payload = bytes.slice(start, end);
    // As in a frame: the payload lies somewhere in a larger buffer.
    const frame = new Uint8Array(payload.length + 7);
    frame.set(payload, 5);
    const seq = seqAdd(item.isn, start);
    const piece: Piece = { seq, end: seqAdd(seq, payload.length), bytes: frame, offset: 5 };
    if (payload.length > 0 && seqBefore(comparer.compared, piece.end)) {
      if (guest === 'primary') comparer.insertPrimary(piece);
      else comparer.insertSecondary(piece);
    }
    reference.insert(start, payload);
    if (fin && end === bytes.length) {
      reference.fin = bytes.length;
      if (guest === 'primary') comparer.primaryFin = seqAdd(item.isn, bytes.length);
      else comparer.secondaryFin = seqAdd(item.isn, bytes.length);
    }
    const expected = compareStreams(streams.primary.reference, streams.secondary.reference);
    const verdict = comparer.advance();
    expect({ verdict, compared: comparer.compared }).toEqual({
      verdict: VERDICTS[expected.verdict],
      compared: seqAdd(item.isn, expected.compared),
    });
    // The engine asks no more after a difference: a checkpoint follows.
    if (verdict !== STREAM_EQUAL) return;
    if (expected.compared > Math.min(primaryBytes, secondaryBytes)) return;
  }
}

describe('StreamComparer', () => {
  test('says what a slow comparer says, after every segment, in any order, across 2^32', () => {
    fc.assert(fc.property(cases, play), { numRuns: 3_000 });
  });
});
