import fc from 'fast-check';
import { expect, test } from 'vitest';
import { CopyQueue } from './copy-queue.ts';

const CAPACITY_BYTES = 1_024;

test('CopyQueue behaves as a list of byte runs, and never overwrites a waiting one', () => {
  const command = fc.oneof(
    fc.record({ push: fc.integer({ min: 1, max: 600 }) }),
    fc.record({ shift: fc.integer({ min: 1, max: 5 }) }),
    fc.record({ advance: fc.integer({ min: 1, max: 700 }) }),
  );
  fc.assert(
    fc.property(fc.array(command, { maxLength: 80 }), (commands) => {
      const queue = new CopyQueue(CAPACITY_BYTES);
      const model: Uint8Array[] = [];
      let stamp = 0;
      for (const step of commands) {
        if ('push' in step) {
          const at = queue.reserve(step.push);
          if (at < 0) continue;
          stamp = (stamp + 1) % 256;
          queue.buffer.bytes.fill(stamp, at, at + step.push);
          model.push(new Uint8Array(step.push).fill(stamp));
        } else if ('advance' in step) {
          let left = Math.min(
            step.advance,
            model.reduce((sum, run) => sum + run.length, 0),
          );
          const before = model.length;
          const gone = queue.advance(left);
          while (left > 0) {
            const first = model.shift()!;
            if (first.length > left) model.unshift(first.subarray(left));
            left -= Math.min(left, first.length);
          }
          expect(gone).toBe(before - model.length);
        } else {
          const count = Math.min(step.shift, model.length);
          queue.shift(count);
          model.splice(0, count);
        }
        expect(queue.count).toBe(model.length);
        model.forEach((bytes, index) => {
          const start = queue.start(index);
          const end = start + queue.bytes(index);
          expect(end).toBeLessThanOrEqual(CAPACITY_BYTES);
          expect(queue.buffer.bytes.subarray(start, end)).toEqual(bytes);
        });
      }
    }),
    { numRuns: 300 },
  );
});

test('CopyQueue takes its whole capacity, then refuses, then takes again', () => {
  const queue = new CopyQueue(CAPACITY_BYTES);
  for (let count = 0; count < 16; count++) expect(queue.reserve(64)).toBe(count * 64);
  expect(queue.reserve(1)).toBe(-1);
  queue.shift(1);
  expect(queue.reserve(65)).toBe(-1);
  expect(queue.reserve(64)).toBe(0);
  expect(queue.reserve(1)).toBe(-1);
  queue.shift(16);
  expect(queue.reserve(CAPACITY_BYTES)).toBe(0);
  queue.shift(1);
  expect(queue.reserve(CAPACITY_BYTES + 1)).toBe(-1);
});
