/**
 * Gives the same frames to QEMU's colo-compare and to `colo-proxy compare` and prints what each made of them.
 *
 *     npm run diff:qemu [-- --case TEXT] [--write]
 *
 * `--case`: only those with TEXT in their name. `--write`: puts the table into docs/COMPARED.md.
 *
 * @module
 */
import { readFileSync, writeFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { CASES } from '../test/support/differential/cases.ts';
import { SYSTEMS, whyNoQemu } from '../test/support/differential/comparer.ts';
import { runCases } from '../test/support/differential/run.ts';
import { printVerdicts, replaceTable } from '../test/support/differential/table.ts';

const PAGE = fileURLToPath(new URL('../docs/COMPARED.md', import.meta.url));

const { values } = parseArgs({
  options: { write: { type: 'boolean', default: false }, case: { type: 'string', default: '' } },
});
const reason = whyNoQemu();
if (reason !== '') {
  process.stderr.write(`${reason}\n`);
  process.exit(1);
}
const cases = CASES.filter(({ name }) => name.includes(values.case));
// Both to their end, so that no process is left behind when one fails.
const results = await Promise.allSettled(SYSTEMS.map((system) => runCases(system, cases)));
const [qemu, ours] = results.map((result) => {
  if (result.status === 'rejected') throw result.reason;
  return result.value;
});
const lines = printVerdicts({ qemu: qemu!, 'colo-proxy': ours! }, cases);
process.stdout.write(`${lines.join('\n')}\n`);
if (values.write) {
  if (cases.length < CASES.length) throw new Error('--write is for all cases');
  writeFileSync(PAGE, replaceTable(readFileSync(PAGE, 'utf8'), lines));
}
