/**
 * What `colo-proxy lab --guest qemu` leaves behind, however it ends. Its scenarios are a step of `.ci/run` of their own.
 *
 * @module
 */
import { readdirSync, readFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { describe, expect, test } from 'vitest';
import { whatIsMissing } from '../../src/lab/qemu/image.ts';
import { startKeptLab } from '../support/kept-lab.ts';

const missing = whatIsMissing();
const reason = process.getuid?.() === 0 ? missing.join(', ') : 'root';
const title = reason === '' ? 'lab --guest qemu' : `lab --guest qemu (SKIPPED: needs ${reason})`;

/** Command lines that name the directory of this lab: its nodes, and its machines. */
function processesOf(outerPid: number): string[] {
  return readdirSync('/proc').flatMap((name) => {
    if (!/^\d+$/.test(name)) return [];
    try {
      const words = readFileSync(`/proc/${name}/cmdline`, 'latin1').replaceAll('\0', ' ');
      return words.includes(`/colo-proxy-lab-${outerPid}-`) ? [words] : [];
    } catch {
      // It has ended meanwhile.
      return [];
    }
  });
}

const directoriesOf = (outerPid: number): string[] =>
  readdirSync(tmpdir()).filter((name) => name.startsWith(`colo-proxy-lab-${outerPid}-`));

async function nothingIsLeft(outerPid: number): Promise<void> {
  for (let tries = 0; tries < 1_000 && processesOf(outerPid).length > 0; tries++) {
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
  expect(processesOf(outerPid)).toEqual([]);
}

describe.skipIf(reason !== '')(title, () => {
  test('leaves no machine after SIGKILL, and after SIGINT no directory either', async () => {
    const killed = await startKeptLab('--guest', 'qemu');
    const killedPid = killed.child.pid!;
    const machines = processesOf(killedPid).filter((words) => words.startsWith('qemu-system'));
    expect(machines).toHaveLength(2);
    killed.child.kill('SIGKILL');
    await nothingIsLeft(killedPid);

    const stopped = await startKeptLab('--guest', 'qemu');
    const stoppedPid = stopped.child.pid!;
    expect(directoriesOf(killedPid)).toEqual([]);
    const exit = new Promise((resolve) => stopped.child.once('exit', resolve));
    stopped.child.kill('SIGINT');
    expect(await exit).toBe(130);
    await nothingIsLeft(stoppedPid);
    expect(directoriesOf(stoppedPid)).toEqual([]);
  });
});
