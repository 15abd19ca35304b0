/** Streams of other programs: however their bytes are cut into chunks, the same comes out; no bytes make a decoder throw or hoard. */
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { encodeNotify, NOTIFY_TEXT_BYTES_MAX, NotifyDecoder } from './notify.ts';
import { decodeQmp, encodeQmpCommand, QmpLineDecoder } from './qmp-json.ts';

/** Cuts `bytes` at the given places. */
function chunksOf(bytes: Uint8Array, cuts: readonly number[]): Uint8Array[] {
  const places = [...new Set(cuts.map((cut) => cut % (bytes.length + 1)))].sort((a, b) => a - b);
  const chunks: Uint8Array[] = [];
  let from = 0;
  for (const to of [...places, bytes.length]) {
    chunks.push(bytes.slice(from, to));
    from = to;
  }
  return chunks;
}

const cuts = fc.array(fc.nat({ max: 5_000 }), { maxLength: 20 });

const command = fc
  .tuple(fc.string({ maxLength: 30 }), fc.nat(), fc.dictionary(fc.string(), fc.jsonValue()))
  .map(([name, id, args]) => encodeQmpCommand(name, id, args as Record<string, unknown>));

const qmpBytes = fc
  .array(
    fc.oneof(command, fc.uint8Array({ maxLength: 80 }), fc.constant(Uint8Array.of(10, 13, 10))),
    {
      maxLength: 12,
    },
  )
  .map((parts) => Uint8Array.from(parts.flatMap((part) => [...part])));

describe('QmpLineDecoder', () => {
  test('gives the same lines for any chunks, and decodeQmp() answers to every line', () => {
    const check = (bytes: Uint8Array, places: number[]): void => {
      const whole = new QmpLineDecoder(200).push(bytes);
      const decoder = new QmpLineDecoder(200);
      const parts = chunksOf(bytes, places).map((chunk) => decoder.push(chunk));
      expect(parts.flatMap(({ lines }) => lines)).toEqual([...whole.lines]);
      expect(parts.reduce((sum, { tooLong }) => sum + tooLong, 0)).toBe(whole.tooLong);
      for (const line of whole.lines) expect(decodeQmp(line)).toBeTypeOf('object');
    };
    fc.assert(fc.property(qmpBytes, cuts, check), { numRuns: 2_000 });
  });
});

describe('NotifyDecoder', () => {
  test('gives the same texts for any chunks, and stops for good at a length that cannot be', () => {
    const text = fc.string({ unit: 'grapheme-ascii', minLength: 1, maxLength: 40 });
    const part = fc.oneof(text.map(encodeNotify), fc.uint8Array({ maxLength: 6 }));
    const bytes = fc
      .array(part, { maxLength: 10 })
      .map((parts) => Uint8Array.from(parts.flatMap((item) => [...item])));
    const check = (stream: Uint8Array, places: number[]): void => {
      const whole = new NotifyDecoder().push(stream);
      const decoder = new NotifyDecoder();
      const parts = chunksOf(stream, places).map((chunk) => decoder.push(chunk));
      expect(parts.flatMap(({ texts }) => texts)).toEqual([...whole.texts]);
      expect(parts.at(-1)?.brokenLength).toBe(whole.brokenLength);
      if (whole.brokenLength !== undefined) {
        expect(whole.brokenLength).toBeGreaterThan(NOTIFY_TEXT_BYTES_MAX);
      }
    };
    fc.assert(fc.property(bytes, cuts, check), { numRuns: 2_000 });
  });
});
