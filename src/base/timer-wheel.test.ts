import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { TimerWheel } from './timer-wheel.ts';

interface Entry {
  wheelSlot: number;
  readonly deadlineUs: number;
}

const entry = (deadlineUs: number): Entry => ({ wheelSlot: -1, deadlineUs });

describe('TimerWheel', () => {
  it('hands out nothing before its time and everything after it', () => {
    const wheel = new TimerWheel<Entry>(1_000_000);
    const one = entry(1_200_000);
    wheel.arm(one, one.deadlineUs);
    const due: Entry[] = [];
    wheel.advance(1_199_000, (e) => due.push(e));
    expect(due).toEqual([]);
    expect(wheel.nextUs()).toBe(1_200_000);
    wheel.advance(1_200_000, (e) => due.push(e));
    expect(due).toEqual([one]);
    expect(wheel.nextUs()).toBe(Number.POSITIVE_INFINITY);
  });

  it('lets an entry be armed again by its own callback', () => {
    const wheel = new TimerWheel<Entry>(0);
    const one = entry(5_000);
    wheel.arm(one, 5_000);
    wheel.advance(5_000, (e) => wheel.arm(e, 9_000));
    expect(wheel.nextUs()).toBe(9_000);
  });

  it('is never late by more than its granularity, for any deadlines and steps', () => {
    fc.assert(
      fc.property(
        fc.array(fc.integer({ min: 0, max: 1_000_000 }), { maxLength: 50 }),
        fc.array(fc.integer({ min: 1, max: 200_000 }), { maxLength: 30 }),
        (deadlines, steps) => {
          const wheel = new TimerWheel<Entry>(0);
          const entries = deadlines.map(entry);
          for (const e of entries) wheel.arm(e, e.deadlineUs);
          const left = new Set(entries);
          let nowUs = 0;
          for (const step of steps) {
            nowUs += step;
            wheel.advance(nowUs, (e) => {
              expect(e.deadlineUs).toBeLessThanOrEqual(nowUs);
              left.delete(e);
            });
            for (const e of left) expect(e.deadlineUs).toBeGreaterThan(nowUs - 2_000);
            if (left.size > 0) {
              const earliest = Math.min(...[...left].map((e) => e.deadlineUs));
              expect(wheel.nextUs()).toBeLessThanOrEqual(Math.max(earliest, nowUs) + 2_000);
            }
          }
          expect(wheel.count).toBe(left.size);
        },
      ),
    );
  });

  it('forgets an entry that was disarmed', () => {
    const wheel = new TimerWheel<Entry>(0);
    const one = entry(3_000);
    wheel.arm(one, 3_000);
    wheel.disarm(one);
    wheel.advance(10_000, () => expect.unreachable());
    expect(wheel.count).toBe(0);
  });
});
