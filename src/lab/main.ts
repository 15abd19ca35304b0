/**
 * `colo-proxy lab`: the whole system on one machine.
 *
 * @module
 */
import { ColoError } from '../base/error.ts';
import { EXIT_OK, EXIT_REFUSED } from '../cli/exit.ts';
import type { LabOptions } from '../cli/experiments.ts';
import { Bench, begun, type LabBench } from './bench.ts';
import { keepEvidence } from './evidence.ts';
import { exploreText } from './explore.ts';
import { guestImage, requireTools } from './qemu/image.ts';
import { QemuBench } from './qemu/qemu-bench.ts';
import { QEMU_SCENARIOS } from './qemu/scenarios/index.ts';
import { listText, tableText } from './report.ts';
import { type RunOptions, runScenarios } from './runner.ts';
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
  return options.guest === 'qemu' ? runQemuLab(options) : runNetnsLab(options);
}

const say = (text: string): void => void process.stderr.write(text);

async function runNetnsLab(options: LabOptions): Promise<number> {
  const { attach = 'packet' } = options;
  const possible = SCENARIOS.filter((scenario) => (scenario.attach ?? attach) === attach);
  const scenarios = selectScenarios(possible, options.scenario);
  if (options.list === true) return list(scenarios);
  const directory = sandboxDirectory();
  if (directory === undefined) return runInSandbox();
  return runInside(options, () => new Bench({ directory, family: 4, seed: 0, attach }), {
    scenarios,
    guest: 'netns',
    attach,
    directory,
    build: ({ impairment, compareTimeoutMs }, place, family) =>
      new Bench({ directory: place, family, impairment, seed: family, attach, compareTimeoutMs }),
  });
}

async function runQemuLab(options: LabOptions): Promise<number> {
  if (options.attach === 'nfqueue') {
    const text = 'Virtual machines in the lab have no tap: --attach nfqueue is for --guest netns';
    throw new ColoError('COLO_ERR_USAGE', text);
  }
  const scenarios = selectScenarios(QEMU_SCENARIOS, options.scenario);
  if (options.list === true) return list(scenarios);
  const directory = sandboxDirectory();
  if (directory === undefined) {
    // Out here, where there is a network.
    const install = options.install === true;
    requireTools(install, say);
    guestImage(install, say);
    return runInSandbox();
  }
  const image = guestImage(false, say);
  return runInside(options, () => new QemuBench({ directory, family: 4, image }), {
    scenarios,
    guest: 'qemu',
    attach: 'packet',
    directory,
    build: ({ compareTimeoutMs }, place, family) =>
      new QemuBench({ directory: place, family, image, compareTimeoutMs }),
  });
}

function list<B extends LabBench>(scenarios: readonly Scenario<B>[]): number {
  process.stdout.write(listText(scenarios));
  return EXIT_OK;
}

/** `buildAnother` makes the bench that `--keep` leaves up. */
async function runInside<B extends LabBench>(
  options: LabOptions,
  buildAnother: () => B,
  what: Omit<RunOptions<B>, 'say' | 'onFailure'>,
): Promise<number> {
  // Everything the lab started ends with it: this is process 1 of its namespace.
  enterSandbox((exitCode) => process.exit(exitCode));
  const keep = options.keep === true;
  const startAnother = (): Promise<B> => begun(buildAnother(), (text) => say(`${text} ...\n`));
  if (keep && options.scenario === undefined) return stayUp(await startAnother());
  const report = await runScenarios({
    ...what,
    say,
    onFailure: async (bench, label) => {
      say(`       capture and logs: ${keepEvidence(bench, label)}\n`);
      if (keep) await stayUp(bench);
    },
  });
  say(tableText(report));
  if (options.json === true) process.stdout.write(`${JSON.stringify(report)}\n`);
  if (keep) await stayUp(await startAnother());
  return report.ok ? EXIT_OK : EXIT_REFUSED;
}

/** Until a signal ends the lab. */
async function stayUp(bench: LabBench): Promise<never> {
  say(exploreText(bench));
  return new Promise<never>(() => {});
}

function selectScenarios<B extends LabBench>(
  all: readonly Scenario<B>[],
  names: readonly string[] | undefined,
): readonly Scenario<B>[] {
  if (names === undefined) return all;
  const unknown = names.filter((name) => !all.some((scenario) => scenario.name === name));
  if (unknown.length > 0) {
    const known = all.map(({ name }) => name).join(', ');
    const text = `There is no scenario ${unknown.join(', ')}; there are: ${known}`;
    throw new ColoError('COLO_ERR_USAGE_SCENARIO', text);
  }
  return all.filter(({ name }) => names.includes(name));
}
