import { describe, expect, test } from 'vitest';
import { US_PER_MS, US_PER_S } from '../base/time.ts';
import { FLAG_TOKEN } from './host/content.ts';
import { type RunResult, runOnce } from './run.ts';
import { PROTECTED_MS, plan, request, type Scenario } from './scenarios/scenario.ts';
import type { CheckpointPhase } from './vm-layer.ts';

const SEEDS = [1, 2, 3, 4, 5, 6, 7, 8];

const TELLS_SECONDARY = 'vm: tells the secondary that the SVM runs from the copy';

/** The primary dies in a phase of a checkpoint of one message, with an answer of the SVM's on its way to its node. */
function deathWithAnswerUnderWay(phase: CheckpointPhase): Scenario {
  return {
    name: `death-in-${phase}`,
    about: 'Both guests have chosen an answer; the secondary has not seen that of the SVM.',
    options: (calm) => ({
      ...calm,
      arbiterUsMax: 50 * US_PER_MS,
      vm: { ...calm.vm, oneMessage: 1, copyUsMax: 0 },
    }),
    script: (stage) => {
      const { world } = stage;
      stage.at(PROTECTED_MS, () => {
        const requests = [request(10), request(400, FLAG_TOKEN)];
        const session = stage.open(plan(requests, { pauseUs: 30 * US_PER_MS }));
        // From this checkpoint on the connection has the same numbers in both guests.
        stage.at(PROTECTED_MS + 15, () => stage.checkpoint());
        stage.at(PROTECTED_MS + 25, () => {
          stage.onSegment(world.secondaryGuest.from, (segment) =>
            segment.payload.length > 0 ? { lateUs: 200 * US_PER_MS } : undefined,
          );
        });
        stage.at(PROTECTED_MS + 60, () => {
          stage.demand('G5', session.receivedCount === 10, 'the second answer is there too early');
          stage.release(world.secondaryGuest.from);
          stage.onPhase(phase, () => stage.crashPrimary());
          stage.checkpoint();
        });
        stage.at(PROTECTED_MS + 3_000, () => {
          stage.demand('G5', world.isFailoverGranted, 'there was no failover');
          stage.demand('G5', session.receivedCount === 410, 'the answer is not there');
        });
      });
    },
    untilMs: PROTECTED_MS + 3_100,
  };
}

function run(phase: CheckpointPhase, seed: number): { result: RunResult; lines: string[] } {
  const lines: string[] = [];
  const scenario = deathWithAnswerUnderWay(phase);
  const result = runOnce({ seed, steps: 0, scenario, follow: (line) => lines.push(line) });
  return { result, lines };
}

describe('VmLayer, when the primary dies in a checkpoint', () => {
  test.each(SEEDS)(
    'what the SVM sent before the load is not output of the copy, seed %i',
    (seed) => {
      const { result, lines } = run('loaded', seed);
      expect(lines.some((line) => line.includes(TELLS_SECONDARY))).toBe(true);
      expect(result).toMatchObject({ outcome: 'ok', guarantee: '', text: '' });
    },
  );

  test.each(SEEDS)('the memory of a dead PVM is not copied, seed %i', (seed) => {
    const { result, lines } = run('begun', seed);
    const death = lines.findIndex((line) => line.includes('FAULT primary dies'));
    const after = lines.slice(death);
    expect(after.length).toBeLessThan(lines.length);
    expect(after.filter((line) => line.includes('the SVM runs from the copy'))).toEqual([]);
    expect(result).toMatchObject({ outcome: 'ok', guarantee: '', text: '' });
  });
});

/** Two checkpoints are given up while nothing reaches the secondary; then both commits come, each with its abort or the next begin behind it. */
const TWO_COPIES_WAIT: Scenario = {
  name: 'two-copies-wait',
  about: 'Each commit loads the copy that it is of.',
  options: (calm) => ({
    ...calm,
    peer: { ...calm.peer, timeoutUs: 10 * US_PER_S },
    vm: { ...calm.vm, isStaged: true, oneMessage: 1, answerTimeoutUs: 50 * US_PER_MS },
  }),
  script: (stage) => {
    const { world } = stage;
    stage.at(PROTECTED_MS, () => {
      world.line('STALL');
      world.link.stall('to-secondary', 180 * US_PER_MS);
      stage.checkpoint();
    });
    stage.at(PROTECTED_MS + 100, () => stage.checkpoint());
  },
  untilMs: PROTECTED_MS + 3_000,
};

describe('VmLayer, copies that wait for the decision', () => {
  test.each(SEEDS)('loads the copy of each commit, seed %i', (seed) => {
    const lines: string[] = [];
    const follow = (line: string): number => lines.push(line);
    const result = runOnce({ seed, steps: 0, scenario: TWO_COPIES_WAIT, follow });
    expect(result).toMatchObject({ outcome: 'ok', guarantee: '', text: '' });
    const after = lines.slice(lines.findIndex((line) => line.includes('STALL')));
    const givenUp = after.filter((line) => line.includes('vm: over: no answer to commit'));
    expect(givenUp.length).toBeGreaterThanOrEqual(2);
    const commits = after.filter((line) => line.includes('secondary: checkpoint-committed'));
    const loads = after.filter((line) => line.includes('the SVM runs from the copy'));
    expect(commits.length).toBeGreaterThanOrEqual(3);
    expect(loads).toHaveLength(commits.length);
  });
});

/** The time of a line of the trace, by the run's clock. */
function msOf(line: string): number {
  return Number.parseFloat(line);
}

/** Plays a script once; its lines from the first that says `from`. */
function play(scenario: Scenario, seed: number, from: string): [RunResult, string[]] {
  const lines: string[] = [];
  const result = runOnce({ seed, steps: 0, scenario, follow: (line) => lines.push(line) });
  const start = lines.findIndex((line) => line.includes(from));
  expect(start).toBeGreaterThan(-1);
  return [result, lines.slice(start)];
}

describe('VmLayer, beside a secondary that hangs or dies', () => {
  test.each(SEEDS)('tells a secondary that hangs when it wakes, seed %i', (seed) => {
    const hangMs = 80;
    const scenario: Scenario = {
      name: 'death-beside-a-hung-secondary',
      about: 'The primary dies with the SVM loaded, while the secondary hangs.',
      options: (calm) => ({ ...calm, vm: { ...calm.vm, oneMessage: 1 } }),
      script: (stage) => {
        stage.at(PROTECTED_MS, () => {
          stage.onPhase('loaded', () => {
            stage.world.line('HANG');
            stage.world.secondary.hang(hangMs * US_PER_MS);
            stage.crashPrimary();
          });
          stage.checkpoint();
        });
      },
      untilMs: PROTECTED_MS + 300,
    };
    const [result, lines] = play(scenario, seed, 'HANG');
    const told = lines.filter((line) => line.includes(TELLS_SECONDARY));
    expect(told).toHaveLength(1);
    expect(msOf(told[0]!)).toBeGreaterThan(msOf(lines[0]!) + hangMs);
    expect(result).toMatchObject({ outcome: 'ok', guarantee: '', text: '' });
  });

  test.each(SEEDS)(
    'a copy is not loaded into the SVM after the one it was for, seed %i',
    (seed) => {
      const scenario: Scenario = {
        name: 'copy-for-a-dead-svm',
        about:
          'The SVM dies and boots while the PVM is copied, and a hung primary keeps the checkpoint open.',
        options: (calm) => ({
          ...calm,
          vm: { ...calm.vm, oneMessage: 1, copyUsMax: 400 * US_PER_MS },
        }),
        script: (stage) => {
          const { world } = stage;
          stage.at(1_000, () => {
            stage.onPhase('saved', () => {
              world.killSecondary(10 * US_PER_MS, 'any');
              world.primary.hang(500 * US_PER_MS);
            });
            stage.checkpoint();
          });
        },
        untilMs: 3_000,
      };
      const [result, lines] = play(scenario, seed, 'the secondary boots');
      const next = lines.findIndex((line) => line.includes('both guests paused'));
      expect(next).toBeGreaterThan(0);
      const early = lines.slice(0, next);
      expect(early.filter((line) => line.includes('the SVM runs from the copy'))).toEqual([]);
      expect(result).toMatchObject({ outcome: 'ok', guarantee: '', text: '' });
    },
  );

  test('what it has begun at a secondary ends before the SVM goes on', () => {
    const scenario: Scenario = {
      name: 'abort-at-a-hung-secondary',
      about: 'The copy fails while the secondary, which has begun, hangs.',
      options: (calm) => ({
        ...calm,
        vm: { ...calm.vm, oneMessage: 1, tellsSecondary: 1, failBeforeLoad: 0.5 },
      }),
      script: (stage) => {
        const { world } = stage;
        stage.at(500, () => {
          world.line('HERE');
          stage.onPhase('saved', () => {
            world.secondary.hang(60 * US_PER_MS);
            stage.onPhase('resumed', () => {
              const { state } = world.secondary.engine;
              stage.demand('G9', state !== 'checkpointing', 'the secondary is still in it');
            });
          });
          stage.checkpoint();
        });
      },
      untilMs: 1_000,
    };
    const runs = SEEDS.map((seed) => play(scenario, seed, 'HERE'));
    for (const [result] of runs)
      expect(result).toMatchObject({ outcome: 'ok', guarantee: '', text: '' });
    const failed = runs.filter(([, lines]) =>
      lines.some((line) => line.includes('vm: over: the copy failed')),
    );
    expect(failed.length).toBeGreaterThan(1);
  });
});

test.each(SEEDS)(
  'what the primary was before the begin does not end the checkpoint, seed %i',
  (seed) => {
    const scenario: Scenario = {
      name: 'unprotected-before-the-begin',
      about: 'A primary that hangs hears of the reset of its secondary, then of the begin.',
      options: (calm) => ({ ...calm, vm: { ...calm.vm, copyUsMax: 5_000 } }),
      script: (stage) => {
        const { primary, secondary } = stage.world;
        stage.at(PROTECTED_MS, () => primary.hang(20 * US_PER_MS));
        stage.at(PROTECTED_MS + 1, () => stage.checkpoint());
        stage.at(PROTECTED_MS + 2, () =>
          secondary.command((engine, nowUs) => engine.reset('for the test', nowUs)),
        );
        stage.at(PROTECTED_MS + 100, () => {
          const { state } = primary.engine;
          stage.demand('G9', state !== 'checkpointing', 'nobody ends the checkpoint');
        });
      },
      untilMs: PROTECTED_MS + 200,
    };
    const [, lines] = play(scenario, seed, 'SCRIPT checkpoint');
    expect(lines.filter((line) => line.includes('nobody ends'))).toEqual([]);
    expect(lines.some((line) => line.includes('vm: begin: ok'))).toBe(true);
  },
);

test('after a reset of its own it makes the next checkpoint, since no node asks for one', () => {
  const scenario: Scenario = {
    name: 'reset-by-the-layer',
    about: 'The checkpoint fails after the load, and the primary has never heard of it.',
    options: (calm) => ({ ...calm, vm: { ...calm.vm, oneMessage: 1, failAfterLoad: 1 } }),
    script: (stage) => {
      const { world } = stage;
      stage.at(PROTECTED_MS, () => {
        const { state } = world.primary.engine;
        stage.demand('G9', state === 'unprotected', `the primary is ${state}`);
        world.vm.heal();
      });
      stage.at(4 * PROTECTED_MS, () => {
        const { state } = world.primary.engine;
        stage.demand('G9', state === 'protected', `after the heal the primary is ${state}`);
      });
    },
    untilMs: 5 * PROTECTED_MS,
  };
  const [result] = play(scenario, 1, 'vm: reset: ok');
  expect(result).toMatchObject({ outcome: 'ok', guarantee: '', text: '' });
});

test.each(SEEDS)(
  'a secondary that was started anew and never met may refuse to take over, seed %i',
  (seed) => {
    const scenario: Scenario = {
      name: 'double-fault',
      about:
        'The secondary dies and comes back, its SVM is loaded, the primary dies before it has noticed.',
      options: (calm) => ({ ...calm, vm: { ...calm.vm, oneMessage: 1 } }),
      script: (stage) => {
        const { world } = stage;
        stage.at(PROTECTED_MS, () => {
          world.link.cut(false);
          world.link.isAllowed = false;
          world.killSecondary(10 * US_PER_MS, 'any');
          stage.at(PROTECTED_MS + 50, () => {
            stage.demand('G9', world.primary.engine.state === 'protected', 'it has noticed');
            stage.onPhase('loaded', () => stage.crashPrimary());
            stage.checkpoint();
          });
        });
      },
      untilMs: PROTECTED_MS + 500,
    };
    const [result, lines] = play(scenario, seed, 'FAULT secondary dies');
    expect(lines.some((line) => line.includes(TELLS_SECONDARY))).toBe(true);
    expect(lines.some((line) => line.includes('has not been met'))).toBe(true);
    expect(result).toMatchObject({ outcome: 'liveness', text: 'nobody serves any more' });
  },
);
