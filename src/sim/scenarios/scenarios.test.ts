import { describe, expect, test } from 'vitest';
import { runOnce } from '../run.ts';
import { SCENARIOS } from './index.ts';

/** ISNs and the order of polls differ between these; the script does not. */
const SEEDS = [1, 2, 3, 4, 5, 6, 7, 8];

describe.each(SCENARIOS.map((scenario) => [scenario.name, scenario] as const))(
  '%s',
  (_, scenario) => {
    test.each(SEEDS)('keeps every guarantee with seed %i', (seed) => {
      const { outcome, guarantee, text } = runOnce({ seed, steps: 0, scenario });
      expect({ outcome, guarantee, text }).toEqual({ outcome: 'ok', guarantee: '', text: '' });
    });
  },
);

test('names are unique and say something', () => {
  expect(new Set(SCENARIOS.map(({ name }) => name)).size).toBe(SCENARIOS.length);
  for (const { name, about } of SCENARIOS) {
    expect(name).toMatch(/^[a-z]+(-[a-z]+)+$/);
    expect(about).toMatch(/^[A-Z].+\.$/);
  }
});
