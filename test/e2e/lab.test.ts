/**
 * `colo-proxy lab`, as a newcomer runs it: every scenario on real Linux TCP stacks.
 *
 * Guards end to end: G1 (divergence), G2 and G5 (failover-*), G3 (checked at the switch in every scenario),
 * G4 (every hash), G6 (silent-secondary, lossy), G9 (peer-loss).
 *
 * @module
 */
import { execFile } from 'node:child_process';
import { readdirSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { describe, expect, test } from 'vitest';
import type { LabReport } from '../../src/lab/report.ts';
import { SCENARIOS } from '../../src/lab/scenarios/index.ts';
import { startKeptLab } from '../support/kept-lab.ts';

const SCRIPT = fileURLToPath(new URL('../../bin/colo-proxy.js', import.meta.url));
const run = promisify(execFile);

async function lab(...args: string[]): Promise<{ report: LabReport; log: string }> {
  const lab = [SCRIPT, 'lab', '--json', ...args];
  const result = await run(process.execPath, lab, { maxBuffer: 64 * 1024 * 1024 }).catch(
    // A failed scenario exits with 1, and still reports.
    (error: { stdout: string; stderr: string }) => error,
  );
  if (result.stdout === '') throw new Error(result.stderr);
  return { report: JSON.parse(result.stdout) as LabReport, log: result.stderr };
}

describe('colo-proxy lab', () => {
  for (const { name, text, families, attach: only } of SCENARIOS) {
    // Those run in the lab as a whole, by packet queues: see .ci/run.
    if (only !== undefined) continue;
    test(`${name}: ${text}`, async () => {
      const { report, log } = await lab('--scenario', name);
      expect(report.ok, log).toBe(true);
      expect(report.scenarios.map((scenario) => scenario.family)).toEqual(
        families.map((family) => `ipv${family}`),
      );
      for (const { facts, guest, attach } of report.scenarios) {
        expect({ guest, attach }).toEqual({ guest: 'netns', attach: 'packet' });
        expect(facts['pauseMs']).toBeGreaterThan(0);
        expect(facts['checkpoints']).toBeGreaterThan(0);
      }
    });
  }

  test('an unknown scenario is a usage error that names the known ones', async () => {
    const failed = run(process.execPath, [SCRIPT, 'lab', '--scenario', 'nonesuch']);
    await expect(failed).rejects.toMatchObject({
      code: 64,
      stderr: expect.stringContaining('failover-download'),
    });
  });

  test('nothing is left after SIGKILL but a directory, and after SIGINT nothing at all', async () => {
    const killed = await startKeptLab();
    killed.child.kill('SIGKILL');
    await waitUntil(() => !isAlive(killed.innerPid));

    const stopped = await startKeptLab();
    // The directory of the killed lab went when the next one started.
    expect(labDirectories(killed.child.pid!)).toEqual([]);
    const exit = new Promise((resolve) => stopped.child.once('exit', resolve));
    stopped.child.kill('SIGINT');
    expect(await exit).toBe(130);
    expect(isAlive(stopped.innerPid)).toBe(false);
    expect(labDirectories(stopped.child.pid!)).toEqual([]);
  });
});

function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch {
    return false;
  }
}

function labDirectories(outerPid: number): string[] {
  return readdirSync(tmpdir()).filter((name) => name.startsWith(`colo-proxy-lab-${outerPid}-`));
}

async function waitUntil(condition: () => boolean): Promise<void> {
  for (let tries = 0; tries < 1_000 && !condition(); tries++) {
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
  expect(condition()).toBe(true);
}
