/**
 * `colo-proxy sim`: runs seeds, reports what breaks. The only file of the simulation that does I/O.
 *
 * Exit codes: 0; 1 a mark was not reached (`--marks`); 127 an engine or the simulation crashed; 128 liveness; 129 a guarantee was broken.
 *
 * @module
 */
import { readFileSync, writeFileSync } from 'node:fs';
import { performance } from 'node:perf_hooks';
import { ColoError } from '../base/error.ts';
import { captureOf } from './capture.ts';
import { MARKS } from './marks.ts';
import { type Outcome, type RunFacts, type RunResult, runOnce, STEPS_DEFAULT } from './run.ts';
import { SCENARIOS } from './scenarios/index.ts';
import type { Scenario } from './scenarios/scenario.ts';
import { shrink } from './shrink.ts';

export interface SimOptions {
  /** First seed; the runs take this and the following ones. */
  readonly seed: number;
  /** Events with faults in each run. */
  readonly steps?: number;
  readonly runs?: number;
  readonly json?: boolean;
  /** Follow the trace of every event in words. */
  readonly verbose?: boolean;
  /** Each seed twice: the trace hashes must agree. */
  readonly twice?: boolean;
  /** Where the capture of a failing run goes; default `sim-SEED.pcapng` in the working directory, empty: nowhere. */
  readonly capture?: string;
  /** Go on after a failure, and report all of them. */
  readonly keepGoing?: boolean;
  /** Search for a shorter run that fails the same way. Default true. */
  readonly isShrinking?: boolean;
  /** The scripted world of this name, or `all`, instead of drawn ones; each with `runs` seeds. */
  readonly scenario?: string;
  /** Says how many runs have reached each feature of the world, and fails when one has not been reached; see marks.ts. */
  readonly marks?: boolean;
  /** Names the scenarios, and runs nothing. */
  readonly list?: boolean;
}

/** Where lines go: results to standard output, progress to standard error. */
export interface SimWriter {
  out(text: string): void;
  progress(text: string): void;
}

const EXIT_CODES: Record<Outcome, number> = { ok: 0, crash: 127, liveness: 128, broken: 129 };
const UNREACHED_EXIT_CODE = 1;

function versionOf(): string {
  const text = readFileSync(new URL('../../package.json', import.meta.url), 'utf8');
  return (JSON.parse(text) as { version: string }).version;
}

function addFacts(sum: Record<string, number>, facts: RunFacts): void {
  for (const [name, value] of Object.entries(facts))
    sum[name] = (sum[name] ?? 0) + (value as number);
}

/** One run that is asked for. */
interface Job {
  readonly seed: number;
  readonly steps: number;
  readonly scenario?: Scenario;
}

function chosenScenarios(name: string | undefined): readonly Scenario[] {
  if (name === undefined) return [];
  const chosen = name === 'all' ? SCENARIOS : SCENARIOS.filter((item) => item.name === name);
  if (chosen.length > 0) return chosen;
  throw new ColoError(
    'COLO_ERR_USAGE',
    `No scenario is called ${JSON.stringify(name)}: \`sim --list\` names them`,
  );
}

function listScenarios(write: SimWriter, isJson: boolean): void {
  if (isJson) {
    write.out(JSON.stringify(SCENARIOS.map(({ name, about }) => ({ name, about }))));
    return;
  }
  for (const { name, about } of SCENARIOS) write.out(`${name}\n    ${about}`);
}

function listMarks(
  marks: Readonly<Record<string, number>>,
  unreached: readonly string[],
  write: SimWriter,
): void {
  const rarestFirst = Object.entries(marks).sort(([, a], [, b]) => a - b);
  for (const [mark, runs] of rarestFirst) write.out(`${String(runs).padStart(6)} runs  ${mark}`);
  for (const mark of unreached) write.progress(`no run has reached: ${mark}`);
}

/** A run, checked for determinism when asked. */
function execute(job: Job, options: SimOptions, write: SimWriter): RunResult {
  const follow = options.verbose === true ? (line: string) => write.progress(line) : undefined;
  const result = runOnce({ ...job, ...(follow === undefined ? {} : { follow }) });
  if (options.twice !== true) return result;
  const again = runOnce(job);
  if (again.traceHash === result.traceHash) return result;
  return {
    ...result,
    outcome: 'crash',
    text: `the same seed gave ${result.traceHash} and ${again.traceHash}`,
  };
}

function report(job: Job, result: RunResult, options: SimOptions, write: SimWriter): void {
  const { seed, steps, scenario } = job;
  const name = result.guarantee === '' ? result.outcome : `${result.guarantee} broken`;
  const where = scenario === undefined ? `seed ${seed}` : `scenario ${scenario.name}, seed ${seed}`;
  write.progress(`\n${where}: ${name} at event ${result.step}: ${result.text}`);
  let shortest = { steps, result };
  if (scenario === undefined) {
    if (options.isShrinking !== false) shortest = shrink(seed, steps, result);
    write.progress(`shortest failing run found: --seed ${seed} --steps ${shortest.steps}`);
  }
  for (const line of shortest.result.lastLines) write.progress(line);
  const path = options.capture ?? `sim-${scenario?.name ?? ''}${seed}.pcapng`;
  if (path === '') return;
  const captured = runOnce({ ...job, steps: shortest.steps, capture: true });
  writeFileSync(path, captureOf(captured.seen));
  write.progress(`what the clients saw: ${path}`);
}

/** A run that failed, as `--json` shows it. */
interface Failure {
  readonly guarantee: string;
  readonly outcome: Outcome;
  readonly seed: number;
  readonly scenario: string;
  readonly step: number;
  readonly text: string;
}

function failureOf({ scenario }: Job, result: RunResult): Failure {
  const { guarantee, outcome, seed, step } = result;
  const text = result.text.split('\n', 4).join(' ');
  return { guarantee, outcome, seed, scenario: scenario?.name ?? '', step, text };
}

/**
 * Runs the simulation; the exit code of the first failure.
 *
 * @throws ColoError `COLO_ERR_USAGE`: there is no such scenario
 */
export async function runSim(options: SimOptions, write: SimWriter): Promise<number> {
  if (options.list === true) {
    listScenarios(write, options.json === true);
    return 0;
  }
  const scenarios = chosenScenarios(options.scenario);
  const steps = scenarios.length > 0 ? 0 : (options.steps ?? STEPS_DEFAULT);
  const seeds = options.runs ?? 1;
  const runs = seeds * Math.max(1, scenarios.length);
  const version = versionOf();
  const what =
    scenarios.length > 0
      ? `${seeds} seeds of ${scenarios.length} scenarios`
      : `${runs} runs of ${steps} events and the heal`;
  write.progress(`colo-proxy ${version} sim: seed ${options.seed}, ${what}`);
  const startedMs = performance.now();
  const broken: Failure[] = [];
  const facts: Record<string, number> = {};
  const reached = new Map<string, number>();
  let exitCode = 0;
  let events = 0;
  let traceHash = '';
  let done = 0;
  for (let i = 0; i < runs; i++) {
    const scenario = scenarios[Math.floor(i / seeds)];
    const job = {
      seed: options.seed + (i % seeds),
      steps,
      ...(scenario === undefined ? {} : { scenario }),
    };
    const result = execute(job, options, write);
    done++;
    events += result.events;
    traceHash = result.traceHash;
    addFacts(facts, result.facts);
    for (const mark of result.marks.keys()) reached.set(mark, (reached.get(mark) ?? 0) + 1);
    if (result.outcome !== 'ok') {
      if (exitCode === 0) exitCode = EXIT_CODES[result.outcome];
      broken.push(failureOf(job, result));
      report(job, result, options, write);
      if (options.keepGoing !== true) break;
    }
    if (done % 500 === 0) write.progress(`${done} runs, ${events} events, ${broken.length} failed`);
    // Lets signals and timers of the process through.
    if (done % 50 === 0) await new Promise((resolve) => setImmediate(resolve));
  }
  const seconds = (performance.now() - startedMs) / 1_000;
  const marks = Object.fromEntries(MARKS.map((mark) => [mark, reached.get(mark) ?? 0]));
  const unreached = options.marks === true ? MARKS.filter((mark) => marks[mark] === 0) : [];
  if (exitCode === 0 && unreached.length > 0) exitCode = UNREACHED_EXIT_CODE;
  if (options.json === true) {
    const { seed } = options;
    write.out(
      JSON.stringify({
        ok: exitCode === 0,
        version,
        seed,
        runs: done,
        steps,
        events,
        traceHash,
        seconds,
        facts,
        ...(options.marks === true ? { marks, unreached } : {}),
        broken,
      }),
    );
  } else {
    if (options.marks === true) listMarks(marks, unreached, write);
    write.out(
      `${exitCode === 0 ? 'ok' : 'FAILED'}: ${done} runs, ${events} events, trace ${traceHash}`,
    );
    write.out(
      `${(done / seconds).toFixed(1)} runs/s, ${Math.round(events / seconds)} events/s, ${JSON.stringify(facts)}`,
    );
  }
  return exitCode;
}
