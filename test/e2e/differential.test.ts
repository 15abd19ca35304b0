/**
 * docs/COMPARED.md is true: the same frames go to QEMU's colo-compare and to `colo-proxy compare`, and each does what the page
 * says of it.
 */
import { readFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { describe, expect, test } from 'vitest';
import { CASES } from '../support/differential/cases.ts';
import { whyNoQemu } from '../support/differential/comparer.ts';
import { runCases } from '../support/differential/run.ts';
import { printVerdicts, readTable, verdictsOf } from '../support/differential/table.ts';

const PAGE = fileURLToPath(new URL('../../docs/COMPARED.md', import.meta.url));
const page = readTable(readFileSync(PAGE, 'utf8'));
const reason = whyNoQemu();
const title = reason === '' ? "QEMU's colo-compare" : `QEMU's colo-compare (SKIPPED: ${reason})`;

/** Verdicts by the names of their cases, so that a failure names the case. */
const named = (verdicts: readonly string[]): Record<string, string | undefined> =>
  Object.fromEntries(CASES.map(({ name }, i) => [name, verdicts[i]]));

describe.concurrent('on the same frames', () => {
  test('colo-proxy compare does what docs/COMPARED.md says', async ({ expect }) => {
    expect(named(await runCases('colo-proxy'))).toEqual(named(verdictsOf(page, 'colo-proxy')));
  });

  test.skipIf(reason !== '')(`${title} does what docs/COMPARED.md says`, async ({ expect }) => {
    expect(named(await runCases('qemu'))).toEqual(named(verdictsOf(page, 'qemu')));
  });
});

test('docs/COMPARED.md has the names and reasons of all cases', () => {
  const verdicts = { qemu: verdictsOf(page, 'qemu'), 'colo-proxy': verdictsOf(page, 'colo-proxy') };
  expect(printVerdicts(verdicts)).toEqual(page);
});
