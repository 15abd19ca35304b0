/**
 * How benchmarks print: tables that can be pasted into docs/BENCHMARKS.md, on standard error, beside the JSON on
 * standard output.
 *
 * @module
 */

/** Cells by column name. */
export type Row = Readonly<Record<string, string | number>>;

/** Prints rows, by name, as a Markdown table. All rows have the columns of the first. */
export function printTable(rows: Readonly<Record<string, Row>>): void {
  const columns = Object.keys(Object.values(rows)[0] ?? {});
  const lines = [
    `| | ${columns.join(' | ')} |`,
    `|${' --- |'.repeat(columns.length + 1)}`,
    ...Object.entries(rows).map(
      ([name, row]) => `| ${name} | ${columns.map((column) => row[column] ?? '').join(' | ')} |`,
    ),
  ];
  process.stderr.write(`${lines.join('\n')}\n`);
}

/** Bytes of the heap by the site that took them, the most first: what `endHeapProfile` gives. */
export type HeapSites = readonly (readonly [site: string, bytes: number])[];

const TAKEN_SITES_MAX = 6;
const ALIVE_SITES_MAX = 2;

/** Rows of a heap profile, in bytes for each of `count` things that were done: the sites that took most, and those of which most is alive. */
export function heapRows(taken: HeapSites, alive: HeapSites, count: number): Record<string, Row> {
  const total = (sites: HeapSites): number => sites.reduce((sum, [, bytes]) => sum + bytes, 0);
  const [takenAt, aliveAt] = [new Map(taken), new Map(alive)];
  const row = (takenBytes = 0, aliveBytes = 0): Row => ({
    taken: (takenBytes / count).toFixed(1),
    alive: (aliveBytes / count).toFixed(2),
  });
  const top = [...taken.slice(0, TAKEN_SITES_MAX), ...alive.slice(0, ALIVE_SITES_MAX)];
  return {
    all: row(total(taken), total(alive)),
    ...Object.fromEntries(top.map(([site]) => [site, row(takenAt.get(site), aliveAt.get(site))])),
  };
}
