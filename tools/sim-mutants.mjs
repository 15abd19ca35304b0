/**
 * Shows that the simulation can fail: breaks each rule of `test/support/sim-mutants.ts`, one at a time, and runs seeds against
 * the broken engines until a checker speaks up.
 *
 *     npm run sim:mutants [-- --only TITLE-PART] [--scenarios] [--json]
 *
 * The same for the scenarios: with the fault put back that it keeps (`test/support/scenario-mutants.ts`), each must fail,
 * with every seed. `--scenarios`: only these, which takes seconds.
 *
 * Lines are broken while the modules are loaded (a query in their URL names the mutant), so the checkout is not touched.
 * Exit code 1 when a mutant is not found within its seeds, or its line is not there (any more).
 *
 * @module
 */
import { readFileSync } from 'node:fs';
import { register } from 'node:module';
import { fileURLToPath, pathToFileURL } from 'node:url';
import './ts.mjs';

/** Events with faults in each run. */
const STEPS = 2_000;

const root = fileURLToPath(new URL('..', import.meta.url));
const entry = pathToFileURL(`${root}src/sim/run.ts`).href;
const scenarios = pathToFileURL(`${root}src/sim/scenarios/index.ts`).href;

const HOOKS = `
  import { readFileSync } from 'node:fs';
  import { fileURLToPath } from 'node:url';
  import ts from ${JSON.stringify(import.meta.resolve('typescript'))};

  const compiled = new Map();
  let mutants = [];

  export function initialize(data) { mutants = data; }

  export async function resolve(specifier, context, nextResolve) {
    const resolved = await nextResolve(specifier, context);
    const mutant = /\\?mutant=(-?\\d+)$/.exec(context.parentURL ?? '');
    if (mutant === null || !specifier.startsWith('.')) return resolved;
    return { ...resolved, url: resolved.url + mutant[0] };
  }

  export function load(url, context, nextLoad) {
    const [file, query] = url.split('?');
    if (query === undefined || !file.endsWith('.ts')) return nextLoad(url, context);
    const path = fileURLToPath(file);
    const mutant = mutants[Number(query.split('=')[1])];
    const edits = mutant?.filter((edit) => edit.path === path) ?? [];
    const isBroken = edits.length > 0;
    let source = isBroken ? undefined : compiled.get(path);
    if (source === undefined) {
      const text = readFileSync(path, 'utf8');
      const broken = edits.reduce((all, { search, replace }) => all.replace(search, () => replace), text);
      source = ts.transpileModule(broken, {
        fileName: path,
        compilerOptions: { target: 'es2023', module: 'esnext', verbatimModuleSyntax: true },
      }).outputText;
      if (!isBroken) compiled.set(path, source);
    }
    return { format: 'module', source, shortCircuit: true };
  }
`;

const only = process.argv.includes('--only')
  ? process.argv[process.argv.indexOf('--only') + 1]
  : '';
const isJson = process.argv.includes('--json');
const isScenariosOnly = process.argv.includes('--scenarios');

/** Seeds with which a scenario must fail, each of them. */
const SCENARIO_SEEDS = [1, 2, 3];

/** @typedef {{ file: string, search: string, replace: string }} Edit */
/** @typedef {{ guarantee: string, title: string, seedsMax: number, edits: readonly Edit[], scenario: string }} Case */
const { SIM_MUTANTS } = await import('../test/support/sim-mutants.ts');
const { SCENARIO_MUTANTS } = await import('../test/support/scenario-mutants.ts');
/** @type {Case[]} */
const cases = SCENARIO_MUTANTS.map(({ scenario, edits }) => ({
  guarantee: '',
  title: `scenario ${scenario}`,
  seedsMax: SCENARIO_SEEDS.length,
  edits,
  scenario,
}));
if (!isScenariosOnly) {
  const drawn = SIM_MUTANTS.map(({ file, search, replace, ...mutant }) => ({
    ...mutant,
    edits: [{ file, search, replace }],
    scenario: '',
  }));
  cases.unshift(...drawn);
}
const chosen = cases.filter(({ title }) => title.includes(only ?? ''));
register(`data:text/javascript,${encodeURIComponent(HOOKS)}`, {
  data: chosen.map(({ edits }) => edits.map((edit) => ({ ...edit, path: root + edit.file }))),
});

/**
 * Runs seeds until one fails.
 *
 * @param {number} index of the mutant
 * @param {number} seedsMax
 */
async function hunt(index, seedsMax) {
  /** @type {typeof import('../src/sim/run.ts')} */
  const { runOnce } = await import(`${entry}?mutant=${index}`);
  for (let seed = 1; seed <= seedsMax; seed++) {
    const result = runOnce({ seed, steps: STEPS });
    if (result.outcome !== 'ok') return { seed, result };
  }
  return undefined;
}

/**
 * Plays a scenario with every seed; undefined when one of them does not fail.
 *
 * @param {number} index of the mutant
 * @param {string} name
 */
async function play(index, name) {
  /** @type {typeof import('../src/sim/run.ts')} */
  const { runOnce } = await import(`${entry}?mutant=${index}`);
  /** @type {typeof import('../src/sim/scenarios/index.ts')} */
  const { SCENARIOS } = await import(`${scenarios}?mutant=${index}`);
  const scenario = SCENARIOS.find((item) => item.name === name);
  if (scenario === undefined) throw new Error(`No scenario is called ${name}`);
  let found;
  for (const seed of SCENARIO_SEEDS) {
    const result = runOnce({ seed, steps: 0, scenario });
    if (result.outcome === 'ok') return undefined;
    found = { seed: SCENARIO_SEEDS.length, result };
  }
  return found;
}

/**
 * What is wrong with the lines to be broken; empty when each is there once.
 *
 * @param {readonly Edit[]} edits
 */
function misplaced(edits) {
  for (const { file, search } of edits) {
    const occurs = readFileSync(root + file, 'utf8').split(search).length - 1;
    if (occurs !== 1) return `its line occurs ${occurs} times in ${file}`;
  }
  return '';
}

let failures = 0;
const rows = [];
for (const [index, { guarantee, title, seedsMax, edits, scenario }] of chosen.entries()) {
  const fault = misplaced(edits);
  let found;
  if (fault === '') {
    found = scenario === '' ? await hunt(index, seedsMax) : await play(index, scenario);
  }
  let how = 'NOT FOUND';
  if (fault !== '') how = fault;
  else if (found !== undefined) how = found.result.guarantee || found.result.outcome;
  if (found === undefined) failures++;
  rows.push({
    guarantee,
    title,
    seedsMax,
    seeds: found?.seed ?? 0,
    how,
    text: found?.result.text.split('\n')[0] ?? '',
  });
  if (!isJson) {
    const seeds =
      found === undefined ? '' : ` after ${found.seed} of ${seedsMax} seeds: ${rows.at(-1)?.text}`;
    process.stdout.write(`${guarantee.padEnd(3)} ${title}: ${how}${seeds}\n`);
  }
}
if (isJson) process.stdout.write(`${JSON.stringify(rows, undefined, 2)}\n`);
else process.stdout.write(`${chosen.length - failures} found, ${failures} not found\n`);
process.exitCode = failures === 0 ? 0 : 1;
