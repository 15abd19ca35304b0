import { execFile } from 'node:child_process';
import { promisify } from 'node:util';
import { expect, it } from 'vitest';
import { SCENARIOS } from '../src/sim/scenarios/index.ts';
import { SCENARIO_MUTANTS } from './support/scenario-mutants.ts';

it('has for each scenario the fault that it keeps', () => {
  const named = SCENARIO_MUTANTS.map(({ scenario }) => scenario);
  expect([...named].sort()).toEqual(SCENARIOS.map(({ name }) => name).sort());
});

it('fails every scenario when its fault is put back', async () => {
  const tool = ['tools/sim-mutants.mjs', '--scenarios', '--json'];
  const { stdout } = await promisify(execFile)(process.execPath, tool).catch((error) => error);
  const rows = JSON.parse(stdout) as { title: string; how: string; seeds: number }[];
  expect(rows.filter(({ seeds }) => seeds === 0)).toEqual([]);
  expect(rows).toHaveLength(SCENARIO_MUTANTS.length);
}, 180_000);
