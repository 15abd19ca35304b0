/**
 * Runs scenarios one after the other, each on a bench of its own.
 *
 * @module
 */
import { join } from 'node:path';
import type { LabAttach, LabGuest } from '../cli/experiments.ts';
import type { LabBench } from './bench.ts';
import type { Family } from './clients.ts';
import { factsLine, type LabReport, type ScenarioReport, title } from './report.ts';
import type { Scenario } from './scenario.ts';

export interface RunOptions<B extends LabBench> {
  readonly scenarios: readonly Scenario<B>[];
  readonly guest: LabGuest;
  readonly attach: LabAttach;
  /** Builds a bench in a directory of its own. @throws ColoError */
  readonly build: (scenario: Scenario<B>, directory: string, family: Family) => B;
  readonly directory: string;
  /** Progress for people. */
  readonly say: (text: string) => void;
  /** Called with the bench of a failed scenario before it is taken down. */
  readonly onFailure: (bench: B, name: string) => Promise<void>;
}

export async function runScenarios<B extends LabBench>(options: RunOptions<B>): Promise<LabReport> {
  const startMs = performance.now();
  const reports: ScenarioReport[] = [];
  for (const scenario of options.scenarios) {
    for (const family of scenario.families) {
      reports.push(await runOne(options, scenario, family));
    }
  }
  const seconds = (performance.now() - startMs) / 1_000;
  return { ok: reports.every((report) => report.ok), seconds, scenarios: reports };
}

async function runOne<B extends LabBench>(
  options: RunOptions<B>,
  scenario: Scenario<B>,
  family: Family,
): Promise<ScenarioReport> {
  const startMs = performance.now();
  const label = `${scenario.name}-ipv${family}`;
  const report = {
    name: scenario.name,
    family: `ipv${family}`,
    guest: options.guest,
    attach: options.attach,
  } as const;
  const seconds = (): number => Math.round(performance.now() - startMs) / 1_000;
  let bench: B | undefined;
  try {
    const onStep = (text: string): void =>
      options.say(`...    ${title(report.name, report.family)} ${text}\n`);
    bench = options.build(scenario, join(options.directory, label), family);
    await bench.begin(onStep);
    const facts = await scenario.run(bench);
    bench.check();
    options.say(`ok     ${title(report.name, report.family)} ${factsLine(facts)}\n`);
    return { ...report, ok: true, seconds: seconds(), facts };
  } catch (cause) {
    const error = await explain(bench, cause);
    options.say(`FAILED ${title(report.name, report.family)} ${error}\n`);
    if (bench !== undefined) await options.onFailure(bench, label);
    return { ...report, ok: false, seconds: seconds(), facts: {}, error };
  } finally {
    await bench?.close();
  }
}

/** The error, and what else went wrong on the bench: often the cause. */
async function explain(bench: LabBench | undefined, cause: unknown): Promise<string> {
  const lines = [(cause as Error).message];
  if (bench !== undefined) {
    try {
      bench.check();
    } catch (error) {
      if ((error as Error).message !== lines[0]) lines.push((error as Error).message);
    }
    for (const daemon of [bench.primary, bench.secondary]) {
      const status = await daemon.status().catch(() => undefined);
      if (status !== undefined) lines.push(`${daemon.role}: ${JSON.stringify(status)}`);
    }
    lines.push(...bench.notes());
  }
  return lines.join('\n    ');
}
