import { expect, test } from 'vitest';
import { US_PER_MS, US_PER_S } from '../../base/time.ts';
import { runOnce } from '../run.ts';
import { PROTECTED_MS, type Scenario } from '../scenarios/scenario.ts';

/** The secondary hears nothing and gives up; what it had sent until then reaches the primary late, but before that gives up. */
const LATE_WORD: Scenario = {
  name: 'late-word',
  about: 'Each direction of the peer link stalls, one after the other.',
  options: (calm) => ({ ...calm, peer: { ...calm.peer, timeoutUs: US_PER_S } }),
  script: (stage) => {
    const { world } = stage;
    stage.at(PROTECTED_MS, () => world.link.stall('to-secondary', 10 * US_PER_S));
    stage.at(PROTECTED_MS + 900, () => world.link.stall('to-primary', 700 * US_PER_MS));
    stage.at(PROTECTED_MS + 2_500, () => {
      world.pulse();
      const { state } = world.primary.engine;
      stage.demand('G9', state === 'protected', `the primary is ${state}, it has heard too little`);
    });
    stage.at(PROTECTED_MS + 2_900, () => {
      const { state } = world.primary.engine;
      stage.demand('G9', state === 'unprotected', `the primary is ${state}, and hears nothing`);
    });
  },
  untilMs: PROTECTED_MS + 3_000,
};

test.each([1, 2, 3])('a late word of the peer is a word of it, seed %i', (seed) => {
  const result = runOnce({ seed, steps: 0, scenario: LATE_WORD });
  expect(result).toMatchObject({ outcome: 'ok', guarantee: '', text: '' });
});
