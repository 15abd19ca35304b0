import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { summarize } from '../tools/ci-summary.js';

let directory: string;
beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), 'colo-ci-'));
});
afterEach(() => {
  rmSync(directory, { recursive: true });
});

function add(step: string, exitCode: number, report?: object): void {
  writeFileSync(join(directory, `${step}.exit`), `${exitCode}\n`);
  if (report !== undefined) writeFileSync(join(directory, `${step}.json`), JSON.stringify(report));
}
function run(): { ok: boolean; lines: string[] } {
  const lines: string[] = [];
  const ok = summarize(directory, (line) => lines.push(line));
  return { ok, lines };
}
const tests = (...statuses: string[]) => ({
  testResults: [
    {
      name: 'a.test.ts',
      status: statuses.includes('failed') ? 'failed' : 'passed',
      assertionResults: statuses.map((status, i) => ({ status, fullName: `test ${i}` })),
    },
  ],
});

describe('summarize()', () => {
  it('adds up tests, scenarios and steps without a report', () => {
    add('lint', 0);
    add('test', 0, tests('passed', 'passed', 'skipped'));
    add('lab', 0, { ok: true, scenarios: [{ name: 'steady', family: 'ipv4', ok: true }] });
    const { ok, lines } = run();
    expect(ok).toBe(true);
    expect(lines.at(-1)).toBe('4 passed, 0 failed');
    expect(lines).toContain('  skipped: test 2');
  });

  it('fails for a failed test and names it', () => {
    add('test', 1, tests('passed', 'failed'));
    const { ok, lines } = run();
    expect(ok).toBe(false);
    expect(lines).toContain('  failed: test 1');
    expect(lines.at(-1)).toBe('1 passed, 1 failed');
  });

  it('fails for a scenario', () => {
    const failed = { name: 'lossy', family: 'ipv6', ok: false, error: 'hash differs' };
    add('lab', 1, { ok: false, scenarios: [failed] });
    expect(run().lines).toContain('  failed: lossy ipv6: hash differs');
  });

  it('counts the two labs apart, and says which guest a failed scenario had', () => {
    const run_ = (guest: string, ok: boolean) => ({ name: 'steady', family: 'ipv4', guest, ok });
    add('lab', 0, { ok: true, scenarios: [run_('netns', true)] });
    add('lab-qemu', 1, { ok: false, scenarios: [run_('qemu', true), run_('qemu', false)] });
    const { ok, lines } = run();
    expect(ok).toBe(false);
    expect(lines).toContain('lab-qemu: 1 passed, 1 failed');
    expect(lines).toContain('  failed: steady ipv4 qemu: failed');
    expect(lines.at(-1)).toBe('2 passed, 1 failed');
  });

  it('fails for a lab that has no report because machines cannot run here', () => {
    add('lint', 0);
    add('lab-qemu', 71);
    expect(run()).toMatchObject({ ok: false });
    expect(run().lines).toContain('  failed: lab-qemu: exit code 71');
  });

  it('fails for a step that ended badly although its report shows no failure', () => {
    add('test', 124, tests('passed'));
    expect(run()).toMatchObject({ ok: false });
  });

  it('fails for a file that could not be loaded', () => {
    const file = { name: 'broken.test.ts', status: 'failed', assertionResults: [] };
    add('test', 1, { testResults: [file] });
    expect(run().lines).toContain('  failed: broken.test.ts');
  });

  it('fails for a report that is cut off, and when nothing ran', () => {
    expect(run()).toMatchObject({ ok: false });
    add('lab', 137);
    writeFileSync(join(directory, 'lab.json'), '{"scenarios": [');
    expect(run()).toMatchObject({ ok: false });
  });
});
