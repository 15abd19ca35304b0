/**
 * `colo-proxy lab`: the whole system on one machine.
 *
 * @module
 */
import { ColoError } from '../base/error.ts';
import { EXIT_OK, EXIT_REFUSED } from '../cli/exit.ts';
import type { LabOptions } from '../cli/experiments.ts';
import { Bench } from './bench.ts';
import { keepEvidence } from './evidence.ts';
import { exploreText } from './explore.ts';
import { listText, tableText } from './report.ts';
import { runScenarios } from './runner.ts';
import { enterSandbox, runInSandbox, sandboxDirectory } from './sandbox.ts';
import type { Scenario } from './scenario.ts';
import { SCENARIOS } from './scenarios/index.ts';

/**
 * Runs the lab.
 *
 * @returns the exit code
 * @throws ColoError when the machine forbids it, or a scenario is not known
 */
export async function runLab(options: LabOptions): Promise<number> {
  const scenarios = selectScenarios(options.scenario);
  if (options.list === true) {
    process.stdout.write(listText(scenarios));
    return EXIT_OK;
  }
  const directory = sandboxDirectory();
  if (directory === undefined) return runInSandbox();
  return runInside(options, scenarios, directory);
}

async function runInside(
  options: LabOptions,
  scenarios: readonly Scenario[],
  directory: string,
): Promise<number> {
  const say = (text: string): void => void process.stderr.write(text);
  // Everything the lab started ends with it: this is process 1 of its namespace.
  enterSandbox((exitCode) => process.exit(exitCode));
  const keep = options.keep === true;
  if (keep && options.scenario === undefined) {
    const bench = await Bench.start({ directory, family: 4, seed: 0 });
    return stayUp(bench, say);
  }
  const report = await runScenarios({
    scenarios,
    directory,
    say,
    onFailure: async (bench, label) => {
      say(`       capture and logs: ${keepEvidence(bench, label)}\n`);
      if (keep) await stayUp(bench, say);
    },
  });
  say(tableText(report));
  if (options.json === true) process.stdout.write(`${JSON.stringify(report)}\n`);
  if (keep) await stayUp(await Bench.start({ directory, family: 4, seed: 0 }), say);
  return report.ok ? EXIT_OK : EXIT_REFUSED;
}

/** Until a signal ends the lab. */
async function stayUp(bench: Bench, say: (text: string) => void): Promise<never> {
  say(exploreText(bench));
  return new Promise<never>(() => {});
}

function selectScenarios(names: readonly string[] | undefined): readonly Scenario[] {
  if (names === undefined) return SCENARIOS;
  const unknown = names.filter((name) => !SCENARIOS.some((scenario) => scenario.name === name));
  if (unknown.length > 0) {
    const known = SCENARIOS.map(({ name }) => name).join(', ');
    const text = `There is no scenario ${unknown.join(', ')}; there are: ${known}`;
    throw new ColoError('COLO_ERR_USAGE_SCENARIO', text);
  }
  return SCENARIOS.filter(({ name }) => names.includes(name));
}
