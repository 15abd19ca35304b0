/**
 * Shows that the simulation can fail: breaks each rule of `test/support/sim-mutants.ts`, one at a time, and runs seeds against
 * the broken engines until a checker speaks up.
 *
 *     npm run sim:mutants [-- --only TITLE-PART] [--json]
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
    const isBroken = mutant?.path === path;
    let source = isBroken ? undefined : compiled.get(path);
    if (source === undefined) {
      const text = readFileSync(path, 'utf8');
      source = ts.transpileModule(isBroken ? text.replace(mutant.search, () => mutant.replace) : text, {
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

/** @typedef {import('../test/support/sim-mutants.ts').SimMutant} SimMutant */
/** @type {{ SIM_MUTANTS: readonly SimMutant[] }} */
const { SIM_MUTANTS } = await import('../test/support/sim-mutants.ts');
const chosen = SIM_MUTANTS.filter(({ title }) => title.includes(only ?? ''));
register(`data:text/javascript,${encodeURIComponent(HOOKS)}`, {
  data: chosen.map(({ file, search, replace }) => ({ path: root + file, search, replace })),
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

let failures = 0;
const rows = [];
for (const [index, mutant] of chosen.entries()) {
  const occurs = readFileSync(root + mutant.file, 'utf8').split(mutant.search).length - 1;
  const found = occurs === 1 ? await hunt(index, mutant.seedsMax) : undefined;
  let how = 'NOT FOUND';
  if (occurs !== 1) how = `its line occurs ${occurs} times in ${mutant.file}`;
  else if (found !== undefined) how = found.result.guarantee || found.result.outcome;
  if (found === undefined) failures++;
  const { guarantee, title, seedsMax } = mutant;
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
