/**
 * The end of `.ci/run`: counts what passed and what failed, and names what was skipped.
 *
 *     node tools/ci-summary.js DIRECTORY
 *
 * DIRECTORY holds for each step `NAME.exit` (its exit code), and `NAME.json` where it ran tests (vitest's JSON
 * reporter) or scenarios (`colo-proxy lab --json`). The last line is "N passed, N failed"; the exit code is 1 when anything
 * failed, or when nothing was run.
 *
 * @module
 */
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';

/** @typedef {{ passed: number, failed: string[], skipped: string[] }} Count */

/**
 * Counts the tests of a vitest JSON report. A file that could not be loaded has no tests, and counts as a failure.
 *
 * @param {any} report
 * @returns {Count}
 */
export function countTests(report) {
  const count = { passed: 0, failed: [], skipped: [] };
  for (const file of report.testResults) {
    if (file.status === 'failed' && file.assertionResults.length === 0)
      count.failed.push(file.name);
    for (const { status, fullName } of file.assertionResults) {
      if (status === 'passed') count.passed++;
      else if (status === 'failed') count.failed.push(fullName);
      else count.skipped.push(fullName);
    }
  }
  return count;
}

/**
 * Counts the scenarios of the lab.
 *
 * @param {any} report
 * @returns {Count}
 */
export function countScenarios(report) {
  const count = { passed: 0, failed: [], skipped: [] };
  for (const { name, family, guest, attach, ok, error, skipped } of report.scenarios) {
    const title = [name, family, guest, attach].filter(Boolean).join(' ');
    if (skipped) count.skipped.push(title);
    else if (ok) count.passed++;
    // What follows the first line is in the log of the step.
    else count.failed.push(`${title}: ${String(error ?? 'failed').split('\n')[0]}`);
  }
  return count;
}

/**
 * Counts one step: by its report, and by its exit code where the report does not explain a failure.
 *
 * @param {string} directory
 * @param {string} step
 * @returns {Count}
 */
export function countStep(directory, step) {
  const exitCode = readFileSync(join(directory, `${step}.exit`), 'utf8').trim();
  const path = join(directory, `${step}.json`);
  const hasReport = existsSync(path);
  /** @type {Count} */
  let count = { passed: 0, failed: [], skipped: [] };
  if (hasReport) {
    try {
      const report = JSON.parse(readFileSync(path, 'utf8'));
      count = 'scenarios' in report ? countScenarios(report) : countTests(report);
    } catch (error) {
      count.failed.push(`${step}: its report cannot be read: ${error}`);
    }
  }
  if (exitCode !== '0' && count.failed.length === 0)
    count.failed.push(`${step}: exit code ${exitCode}`);
  if (exitCode === '0' && !hasReport) count.passed++;
  return count;
}

/**
 * Counts all steps and prints the summary.
 *
 * @param {string} directory
 * @param {(line: string) => void} print
 * @returns {boolean} whether everything passed, and something was run
 */
export function summarize(directory, print) {
  const steps = readdirSync(directory)
    .filter((name) => name.endsWith('.exit'))
    .map((name) => name.slice(0, -'.exit'.length));
  let passed = 0;
  let failed = 0;
  for (const step of steps) {
    const count = countStep(directory, step);
    passed += count.passed;
    failed += count.failed.length;
    const skipped = count.skipped.length === 0 ? '' : `, ${count.skipped.length} skipped`;
    print(`${step}: ${count.passed} passed, ${count.failed.length} failed${skipped}`);
    for (const name of count.failed) print(`  failed: ${name}`);
    for (const name of count.skipped) print(`  skipped: ${name}`);
  }
  print(`${passed} passed, ${failed} failed`);
  return failed === 0 && passed > 0;
}

if (process.argv[2] !== undefined && process.argv[1]?.endsWith('ci-summary.js')) {
  process.exitCode = summarize(process.argv[2], (line) => console.log(line)) ? 0 : 1;
}
