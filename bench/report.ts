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
