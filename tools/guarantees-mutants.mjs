/**
 * Shows that the tests of the guarantees can fail: breaks each rule of `test/support/guarantee-mutants.ts`, one at a time,
 * and runs the tests of that guarantee in `test/guarantees.test.ts` against it.
 *
 *     npm run guarantees:mutants
 *
 * Lines are broken while the modules are loaded (a query in their URL names the mutant), so all of it takes one process
 * and a few seconds, and the checkout is not touched. Exit code 1 when a mutant survives, or its line is not there (any more).
 *
 * @module
 */
import { readFileSync } from 'node:fs';
import { register } from 'node:module';
import { fileURLToPath, pathToFileURL } from 'node:url';
import { expect } from 'vitest';
import './ts.mjs';

const root = fileURLToPath(new URL('..', import.meta.url));
const suite = pathToFileURL(`${root}test/guarantees.test.ts`).href;

/** @typedef {import('../test/support/guarantee-mutants.ts').Mutant} Mutant */
/** @typedef {{ name: string, run: () => void }} Test */

/** Stands for vitest in the loaded suite: only collects. All tests of the suite are synchronous. */
const collected = {
  /** @type {Test[]} */
  tests: [],
  group: '',
  expect,
};
Object.assign(globalThis, { guaranteeTests: collected });

const COLLECTOR = `
  const c = globalThis.guaranteeTests;
  export const expect = c.expect;
  export const it = (name, run) => c.tests.push({ name: c.group + ' > ' + name, run });
  it.each = (cases) => (name, run) =>
    cases.forEach((one) => it(name.replace('$title', one.title), () => run(one)));
  export const describe = (name, define) => { c.group = name; define(); };
  describe.each = (cases) => (name, define) =>
    cases.forEach((one) => describe(name.replace('%d', one), () => define(one)));
`;

const HOOKS = `
  import { readFileSync } from 'node:fs';
  import { fileURLToPath } from 'node:url';
  import ts from ${JSON.stringify(import.meta.resolve('typescript'))};

  const collector = ${JSON.stringify(`data:text/javascript,${encodeURIComponent(COLLECTOR)}`)};
  const compiled = new Map();
  let mutants = [];

  export function initialize(data) { mutants = data; }

  export async function resolve(specifier, context, nextResolve) {
    const mutant = /\\?mutant=(-?\\d+)$/.exec(context.parentURL ?? '');
    if (mutant !== null && specifier === 'vitest') return { url: collector, shortCircuit: true };
    const resolved = await nextResolve(specifier, context);
    if (mutant === null || !specifier.startsWith('.')) return resolved;
    return { ...resolved, url: resolved.url + mutant[0] };
  }

  export function load(url, context, nextLoad) {
    const [file, query] = url.split('?');
    if (!file.startsWith('file:') || !file.endsWith('.ts')) return nextLoad(url, context);
    const path = fileURLToPath(file);
    const mutant = mutants[Number(query?.split('=')[1] ?? -1)];
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

/**
 * The tests of one guarantee against one mutant (-1: none).
 *
 * @param {number} mutant
 * @param {string} prefix
 * @returns {Promise<{ count: number, failed: string | undefined }>} the name of the first test that failed
 */
async function runTests(mutant, prefix) {
  collected.tests = [];
  await import(`${suite}?mutant=${mutant}`);
  const tests = collected.tests.filter(({ name }) => name.startsWith(prefix));
  for (const { name, run } of tests) {
    try {
      run();
    } catch {
      return { count: tests.length, failed: name };
    }
  }
  return { count: tests.length, failed: undefined };
}

/**
 * What is wrong with a mutant; empty when a test notices it.
 *
 * @param {Mutant} mutant
 * @param {number} index
 */
async function judge(mutant, index) {
  const occurs = readFileSync(root + mutant.file, 'utf8').split(mutant.search).length - 1;
  if (occurs !== 1) return `its line occurs ${occurs} times in ${mutant.file}`;
  const { failed } = await runTests(index, `${mutant.guarantee} `);
  if (failed === undefined) return 'no test notices it';
  process.stdout.write(`${mutant.guarantee}  ${mutant.title}\n      ${mutant.file}: ${failed}\n`);
  return '';
}

/** @type {{ MUTANTS: readonly Mutant[] }} */
const { MUTANTS } = await import('../test/support/guarantee-mutants.ts');
register(`data:text/javascript,${encodeURIComponent(HOOKS)}`, {
  data: MUTANTS.map((mutant) => ({ ...mutant, path: root + mutant.file })),
});

const whole = await runTests(-1, 'G');
if (whole.failed !== undefined || whole.count === 0) {
  process.stdout.write(`The suite fails as it is: ${whole.failed ?? 'no tests'}\n`);
  process.exit(1);
}
let survivors = 0;
for (const [index, mutant] of MUTANTS.entries()) {
  const problem = await judge(mutant, index);
  if (problem === '') continue;
  survivors++;
  process.stdout.write(`${mutant.guarantee}  SURVIVED: ${mutant.title}\n      ${problem}\n`);
}
process.stdout.write(`${MUTANTS.length - survivors} of ${MUTANTS.length} mutants noticed\n`);
process.exit(survivors === 0 ? 0 : 1);
