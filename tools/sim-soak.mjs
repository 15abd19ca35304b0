/**
 * Runs the simulation until it is stopped (Ctrl-C, SIGTERM, or --seconds), each time from another seed, and keeps what fails.
 *
 *     npm run sim:soak [-- --seed N] [--steps N] [--seconds N] [--keep DIRECTORY]
 *
 * Every failing seed is appended to DIRECTORY/failures.jsonl (default `sim-failures`) with its shortest failing run, and its
 * capture is put beside it. The exit code is that of the first failure. Without --seed it begins at a random one.
 *
 * @module
 */
import { randomInt } from 'node:crypto';
import { appendFileSync, mkdirSync } from 'node:fs';
import { parseArgs } from 'node:util';
import { runSim } from '../dist/sim/main.js';

const { values } = parseArgs({
  options: {
    seed: { type: 'string' },
    steps: { type: 'string', default: '2000' },
    seconds: { type: 'string', default: 'Infinity' },
    keep: { type: 'string', default: 'sim-failures' },
  },
});

/** Runs between two looks at the clock. */
const RUNS = 50;

const steps = Number(values.steps);
const endMs = Date.now() + Number(values.seconds) * 1_000;
let seed = values.seed === undefined ? randomInt(2 ** 31) : Number(values.seed);
const firstSeed = seed;
let isStopped = false;
let exitCode = 0;
let runs = 0;
let events = 0;
for (const signal of ['SIGINT', 'SIGTERM']) {
  process.once(signal, () => {
    isStopped = true;
  });
}
process.stderr.write(`sim-soak: from seed ${seed}, ${steps} events and the heal in each run\n`);

/**
 * One seed with everything that helps to understand its failure.
 *
 * @param {number} failing
 */
async function keep(failing) {
  mkdirSync(values.keep, { recursive: true });
  const lines = [];
  const write = {
    out: () => {},
    progress: (/** @type {string} */ line) => {
      lines.push(line);
      process.stderr.write(`${line}\n`);
    },
  };
  await runSim({ seed: failing, steps, capture: `${values.keep}/${failing}.pcapng` }, write);
  appendFileSync(
    `${values.keep}/failures.jsonl`,
    `${JSON.stringify({ seed: failing, steps, lines })}\n`,
  );
}

while (!isStopped && Date.now() < endMs) {
  let summary = '';
  const write = {
    out: (/** @type {string} */ line) => {
      summary = line;
    },
    progress: () => {},
  };
  const options = {
    seed,
    steps,
    runs: RUNS,
    json: true,
    keepGoing: true,
    isShrinking: false,
    capture: '',
  };
  const code = await runSim(options, write);
  if (exitCode === 0) exitCode = code;
  const { broken, events: count } = JSON.parse(summary);
  for (const failure of broken) await keep(failure.seed);
  runs += RUNS;
  events += count;
  seed += RUNS;
}
const failed = exitCode === 0 ? 'no guarantee broken' : `FAILED, see ${values.keep}/failures.jsonl`;
process.stdout.write(`${runs} runs from seed ${firstSeed}, ${events} events: ${failed}\n`);
process.exitCode = exitCode;
