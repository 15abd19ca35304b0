import { describe, expect, test } from 'vitest';
import { US_PER_MS, US_PER_S } from '../base/time.ts';
import { CaptureDecoder } from '../wire/pcap.ts';
import { captureOf } from './capture.ts';
import { heldFrames } from './node.ts';
import { runOnce } from './run.ts';
import { PROTECTED_MS, plan, request, type Scenario } from './scenarios/scenario.ts';
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

describe('what no single event shows', () => {
  test('is looked at before an event that comes after a pause', () => {
    const pauseMs = 500;
    let lookedUs = 0;
    let agoUs = Number.NaN;
    const scenario: Scenario = {
      name: 'pause',
      about: 'Nothing happens but the heartbeats of the peer link.',
      script: (stage) => {
        const { world } = stage;
        const pulse = world.pulse.bind(world);
        world.pulse = () => {
          lookedUs = world.nowUs;
          pulse();
        };
        stage.at(PROTECTED_MS + pauseMs, () => {
          agoUs = world.nowUs - lookedUs;
        });
      },
      untilMs: PROTECTED_MS + pauseMs,
    };
    expect(runOnce({ seed: 1, steps: 0, scenario }).outcome).toBe('ok');
    expect(agoUs).toBeLessThanOrEqual(10 * US_PER_MS);
  });

  test('a frame that stands alone in its stream is held', () => {
    let held = -1;
    const scenario: Scenario = {
      name: 'alone',
      about: "The PVM's SYN-ACK waits for the SVM's, which is lost.",
      options: (calm) => ({ ...calm, pairWaitUs: US_PER_S }),
      script: (stage) => {
        const { world } = stage;
        stage.at(PROTECTED_MS, () => {
          stage.onSegment(world.secondaryGuest.from, () => ({ isLost: true }));
          stage.open(plan([request(10)]));
        });
        stage.at(PROTECTED_MS + 50, () => {
          held = heldFrames(world.primary);
          expect(world.primary.engine.status(world.primary.nowUs).held.frames).toBe(0);
          stage.release(world.secondaryGuest.from);
        });
      },
      untilMs: PROTECTED_MS + 60,
    };
    expect(runOnce({ seed: 1, steps: 0, scenario }).outcome).toBe('ok');
    expect(held).toBe(1);
  });

  test('a replaced SVM counts as untold until the batch is over that told its node', () => {
    const untold: boolean[] = [];
    let note = (): unknown => undefined;
    const scenario: Scenario = {
      name: 'told',
      about: 'One checkpoint.',
      script: ({ world }) => {
        const { queue, vm } = world;
        note = () => {
          queue.after(0, 'script', () => untold.push(vm.isReplacedUntold));
          queue.after(1, 'script', () => untold.push(vm.isReplacedUntold));
        };
      },
      untilMs: PROTECTED_MS,
    };
    const follow = (line: string) => line.includes('secondary: checkpoint-committed') && note();
    expect(runOnce({ seed: 1, steps: 0, scenario, follow }).outcome).toBe('ok');
    expect(untold).toEqual([true, false]);
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
