import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import {
  encodeNotify,
  NOTIFY_CHECKPOINT,
  NOTIFY_DO_CHECKPOINT,
  NOTIFY_INIT,
  NOTIFY_INIT_ANSWER,
  NOTIFY_TEXT_BYTES_MAX,
  NotifyDecoder,
} from './notify.ts';

const bytesOf = (text: string) => Array.from(text, (c) => c.charCodeAt(0));

describe('encodeNotify()', () => {
  test('writes the four messages: length big-endian, no terminator', () => {
    for (const [text, length] of [
      [NOTIFY_INIT, 25],
      [NOTIFY_INIT_ANSWER, 25],
      [NOTIFY_CHECKPOINT, 15],
      [NOTIFY_DO_CHECKPOINT, 13],
    ] as const) {
      expect([...encodeNotify(text)]).toEqual([0, 0, 0, length, ...bytesOf(text)]);
    }
    expect(NOTIFY_INIT).toBe('COLO_USERSPACE_PROXY_INIT');
    expect(NOTIFY_INIT_ANSWER).toBe('COLO_COMPARE_GET_XEN_INIT');
    expect(NOTIFY_CHECKPOINT).toBe('COLO_CHECKPOINT');
    expect(NOTIFY_DO_CHECKPOINT).toBe('DO_CHECKPOINT');
  });

  test('refuses what would overrun the buffer of libxl, and what is no text', () => {
    expect(() => encodeNotify('x'.repeat(NOTIFY_TEXT_BYTES_MAX + 1))).toThrow(RangeError);
    expect(() => encodeNotify('')).toThrow(RangeError);
    expect(() => encodeNotify('é')).toThrow(RangeError);
  });
});

describe('NotifyDecoder', () => {
  test('takes texts with and without NULs at the end', () => {
    const frame = (body: number[]) => Uint8Array.from([0, 0, 0, body.length, ...body]);
    const decoder = new NotifyDecoder();
    expect(decoder.push(frame(bytesOf(NOTIFY_CHECKPOINT))).texts).toEqual([NOTIFY_CHECKPOINT]);
    expect(decoder.push(frame([...bytesOf(NOTIFY_CHECKPOINT), 0])).texts).toEqual([
      NOTIFY_CHECKPOINT,
    ]);
    expect(decoder.push(frame([0, 65, 0, 0])).texts).toEqual(['\0A']);
    expect(decoder.push(frame([])).texts).toEqual(['']);
  });

  test('is broken by a length above the limit, at once and for good', () => {
    const decoder = new NotifyDecoder();
    const first = decoder.push(Uint8Array.from([...encodeNotify('A'), 0, 0, 4, 0]));
    expect(first).toEqual({ texts: ['A'], brokenLength: 1024 });
    expect(decoder.push(encodeNotify('B'))).toEqual({ texts: [], brokenLength: 1024 });
  });

  test('fed in any pieces finds the same texts as at once', () => {
    const text = fc.string({ unit: 'grapheme-ascii', minLength: 1, maxLength: 40 });
    fc.assert(
      fc.property(
        fc.array(text),
        fc.array(fc.integer({ min: 1, max: 9 }), { minLength: 1 }),
        (texts, sizes) => {
          const bytes = Uint8Array.from(texts.flatMap((one) => [...encodeNotify(one)]));
          const decoder = new NotifyDecoder();
          const found: string[] = [];
          for (let at = 0, index = 0; at < bytes.length; index++) {
            const next = at + sizes[index % sizes.length]!;
            found.push(...decoder.push(bytes.subarray(at, next)).texts);
            at = next;
          }
          expect(found).toEqual(texts);
        },
      ),
    );
  });

  test('takes any bytes in any pieces', () => {
    fc.assert(
      fc.property(fc.array(fc.uint8Array({ maxLength: 64 })), (chunks) => {
        const decoder = new NotifyDecoder();
        for (const chunk of chunks) {
          for (const text of decoder.push(chunk).texts) {
            expect(text.length).toBeLessThanOrEqual(NOTIFY_TEXT_BYTES_MAX);
          }
        }
      }),
    );
  });
});
