/**
 * The table of docs/COMPARED.md: made by the tool, held against a new run by the test.
 *
 * @module
 */
import { CASES, type Case } from './cases.ts';
import type { System } from './comparer.ts';

const BEGIN = '<!-- made by npm run diff:qemu -- --write -->';
const END = '<!-- end -->';
const COLUMNS = ['case', "QEMU 7.2's colo-compare", 'colo-proxy compare', 'who is right, and why'];

/** The lines of the table. @param verdicts of each system, in the order of the cases */
export function printVerdicts(
  verdicts: Readonly<Record<System, readonly string[]>>,
  cases: readonly Case[] = CASES,
): string[] {
  const rows = cases.map(({ name, why }, i) => [
    name,
    verdicts.qemu[i]!,
    verdicts['colo-proxy'][i]!,
    why,
  ]);
  return [COLUMNS, COLUMNS.map(() => '---'), ...rows].map((cells) => `| ${cells.join(' | ')} |`);
}

/** The page with another table. @throws Error when it has no place for one */
export function replaceTable(page: string, lines: readonly string[]): string {
  const [begin, end] = placeOf(page);
  return `${page.slice(0, begin)}\n\n${lines.join('\n')}\n\n${page.slice(end)}`;
}

/** The lines of the page's table. @throws Error when it has none */
export function readTable(page: string): string[] {
  const [begin, end] = placeOf(page);
  return page.slice(begin, end).trim().split('\n');
}

/** One system's verdicts in the lines of a table. */
export function verdictsOf(lines: readonly string[], system: System): string[] {
  const column = system === 'qemu' ? 2 : 3;
  return lines.slice(2).map((line) => line.split(' | ')[column - 1]!);
}

function placeOf(page: string): [number, number] {
  const begin = page.indexOf(BEGIN);
  const end = page.indexOf(END, begin);
  if (begin < 0 || end < 0) throw new Error('The page has no place for the table');
  return [begin + BEGIN.length, end];
}
