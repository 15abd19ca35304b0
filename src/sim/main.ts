/**
 * `colo-proxy sim`: runs seeds, reports what breaks. The only file of the simulation that does I/O.
 *
 * Exit codes: 0; 127 an engine or the simulation crashed; 128 liveness; 129 a guarantee was broken.
 *
 * @module
 */
import { readFileSync, writeFileSync } from 'node:fs';
import { performance } from 'node:perf_hooks';
import { captureOf } from './capture.ts';
import { type Outcome, type RunFacts, type RunResult, runOnce, STEPS_DEFAULT } from './run.ts';
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
}

/** Where lines go: results to standard output, progress to standard error. */
export interface SimWriter {
  out(text: string): void;
  progress(text: string): void;
}

const EXIT_CODES: Record<Outcome, number> = { ok: 0, crash: 127, liveness: 128, broken: 129 };

function versionOf(): string {
  const text = readFileSync(new URL('../../package.json', import.meta.url), 'utf8');
  return (JSON.parse(text) as { version: string }).version;
}

function addFacts(sum: Record<string, number>, facts: RunFacts): void {
  for (const [name, value] of Object.entries(facts))
    sum[name] = (sum[name] ?? 0) + (value as number);
}

/** A run, checked for determinism when asked. */
function execute(seed: number, steps: number, options: SimOptions, write: SimWriter): RunResult {
  const follow = options.verbose === true ? (line: string) => write.progress(line) : undefined;
  const request = { seed, steps, ...(follow === undefined ? {} : { follow }) };
  const result = runOnce(request);
  if (options.twice !== true) return result;
  const again = runOnce({ seed, steps });
  if (again.traceHash === result.traceHash) return result;
  return {
    ...result,
    outcome: 'crash',
    text: `the same seed gave ${result.traceHash} and ${again.traceHash}`,
  };
}

function report(result: RunResult, steps: number, options: SimOptions, write: SimWriter): void {
  const name = result.guarantee === '' ? result.outcome : `${result.guarantee} broken`;
  const found =
    options.isShrinking === false ? { steps, result } : shrink(result.seed, steps, result);
  write.progress(`\nseed ${result.seed}: ${name} at event ${result.step}: ${result.text}`);
  write.progress(`shortest failing run found: --seed ${result.seed} --steps ${found.steps}`);
  for (const line of found.result.lastLines) write.progress(line);
  const path = options.capture ?? `sim-${result.seed}.pcapng`;
  if (path === '') return;
  const captured = runOnce({ seed: result.seed, steps: found.steps, capture: true });
  writeFileSync(path, captureOf(captured.seen));
  write.progress(`what the clients saw: ${path}`);
}

/** Runs the simulation; the exit code of the first failure. */
export async function runSim(options: SimOptions, write: SimWriter): Promise<number> {
  const steps = options.steps ?? STEPS_DEFAULT;
  const runs = options.runs ?? 1;
  const version = versionOf();
  write.progress(
    `colo-proxy ${version} sim: seed ${options.seed}, ${runs} runs of ${steps} events and the heal`,
  );
  const startedMs = performance.now();
  const broken: {
    guarantee: string;
    outcome: Outcome;
    seed: number;
    step: number;
    text: string;
  }[] = [];
  const facts: Record<string, number> = {};
  let exitCode = 0;
  let events = 0;
  let traceHash = '';
  let done = 0;
  for (let i = 0; i < runs; i++) {
    const result = execute(options.seed + i, steps, options, write);
    done++;
    events += result.events;
    traceHash = result.traceHash;
    addFacts(facts, result.facts);
    if (result.outcome !== 'ok') {
      if (exitCode === 0) exitCode = EXIT_CODES[result.outcome];
      const { guarantee, outcome, seed, step } = result;
      broken.push({ guarantee, outcome, seed, step, text: result.text.split('\n', 4).join(' ') });
      report(result, steps, options, write);
      if (options.keepGoing !== true) break;
    }
    if (done % 500 === 0) write.progress(`${done} runs, ${events} events, ${broken.length} failed`);
    // Lets signals and timers of the process through.
    if (done % 50 === 0) await new Promise((resolve) => setImmediate(resolve));
  }
  const seconds = (performance.now() - startedMs) / 1_000;
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
        broken,
      }),
    );
  } else {
    write.out(
      `${exitCode === 0 ? 'ok' : 'FAILED'}: ${done} runs, ${events} events, trace ${traceHash}`,
    );
    write.out(
      `${(done / seconds).toFixed(1)} runs/s, ${Math.round(events / seconds)} events/s, ${JSON.stringify(facts)}`,
    );
  }
  return exitCode;
}
