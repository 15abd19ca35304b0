import { describe, expect, test } from 'vitest';
import { CaptureDecoder } from '../wire/pcap.ts';
import { captureOf } from './capture.ts';
import { runOnce } from './run.ts';
import { shrink } from './shrink.ts';

/** Some worlds; what seeds have found on the way is kept by scenarios, whatever a seed draws today. */
const SEEDS = [3, 10, 16, 45, 57, 100, 123, 1045, 2033, 2043, 2143, 2206, 2303, 2434];

/** Short enough for every test run; `npm run sim:soak` goes on without an end. */
const STEPS = 1_000;

describe('runOnce()', () => {
  test.each(SEEDS)('seed %i keeps every guarantee, and twice the same trace', (seed) => {
    const first = runOnce({ seed, steps: STEPS });
    expect({ outcome: first.outcome, text: first.text, guarantee: first.guarantee }).toEqual({
      outcome: 'ok',
      text: '',
      guarantee: '',
    });
    const second = runOnce({ seed, steps: STEPS });
    expect(second.traceHash).toBe(first.traceHash);
    expect(second.events).toBe(first.events);
  });

  test('following a run does not change it', () => {
    const lines: string[] = [];
    const followed = runOnce({ seed: 3, steps: 500, follow: (line) => lines.push(line) });
    expect(followed.traceHash).toBe(runOnce({ seed: 3, steps: 500 }).traceHash);
    expect(lines.length).toBeGreaterThan(40);
  });

  test('other seeds give other runs', () => {
    const hashes = [1, 2, 3, 4].map((seed) => runOnce({ seed, steps: 200 }).traceHash);
    expect(new Set(hashes).size).toBe(4);
  });

  test('runs do what they are about: sessions, checkpoints, failovers, bytes', () => {
    const sum = { sessionsDone: 0, checkpoints: 0, failovers: 0, clientBytes: 0, compared: 0 };
    for (let seed = 1; seed <= 24; seed++) {
      const { facts } = runOnce({ seed, steps: STEPS });
      for (const name of Object.keys(sum) as (keyof typeof sum)[]) sum[name] += facts[name];
    }
    expect(sum.sessionsDone).toBeGreaterThan(50);
    expect(sum.checkpoints).toBeGreaterThan(10);
    expect(sum.failovers).toBeGreaterThan(1);
    expect(sum.clientBytes).toBeGreaterThan(100_000);
    expect(sum.compared).toBeGreaterThan(100);
  });
});

describe('shrink()', () => {
  test('finds a shorter run that fails the same way, and only such a one', () => {
    const ok = runOnce({ seed: 1, steps: 400 });
    const found = shrink(1, 400, { ...ok, step: 300 });
    expect(found.steps).toBeLessThan(40);
    expect(found.result.outcome).toBe('ok');
    const kept = shrink(1, 100, { ...ok, outcome: 'crash', step: 100 });
    expect(kept.steps).toBe(100);
  });
});

describe('captureOf()', () => {
  test('gives a pcapng file of exactly what clients saw', () => {
    const { seen } = runOnce({ seed: 1002, steps: 600, capture: true });
    expect(seen.length).toBeGreaterThan(20);
    const lengths: number[] = [];
    const decoder = new CaptureDecoder((packet) => lengths.push(packet.originalBytes));
    decoder.push(captureOf(seen));
    expect(lengths).toEqual(seen.map(({ frame }) => frame.length - 10));
  });
});
