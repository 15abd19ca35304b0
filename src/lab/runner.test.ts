import { describe, expect, it } from 'vitest';
import type { LabBench } from './bench.ts';
import { runScenarios } from './runner.ts';
import type { Facts, Scenario } from './scenario.ts';

/** A bench that is only its ways to fail. */
class PlayedBench {
  readonly #fails: string;
  readonly done: string[];
  readonly primary = { role: 'primary', status: async () => ({ state: 'protected' }) };
  readonly secondary = { role: 'secondary', status: () => Promise.reject(new Error('gone')) };

  constructor(fails: string, done: string[]) {
    this.#fails = fails;
    this.done = done;
  }
  async begin(onStep: (text: string) => void): Promise<void> {
    onStep('booting');
    if (this.#fails === 'begin') throw new Error('it does not boot');
  }
  check(): void {
    if (this.#fails === 'check') throw new Error('the silence was broken');
  }
  notes(): string[] {
    return ['a note'];
  }
  async close(): Promise<void> {
    this.done.push('close');
  }
}

async function run(fails: string) {
  const done: string[] = [];
  let said = '';
  const scenario: Scenario<LabBench> = {
    name: 'played',
    text: '',
    families: [6],
    run: async (): Promise<Facts> => {
      done.push('run');
      if (fails === 'run') throw new Error('wrong bytes');
      return { pauseMs: 3 };
    },
  };
  const report = await runScenarios<LabBench>({
    scenarios: [scenario],
    guest: 'qemu',
    attach: 'packet',
    directory: '/nowhere',
    build: () => {
      if (fails === 'build') throw new Error('no rights');
      return new PlayedBench(fails, done) as unknown as LabBench;
    },
    say: (text) => {
      said += text;
    },
    onFailure: async (_bench, label) => void done.push(`evidence of ${label}`),
  });
  return { report, done, said };
}

describe('runScenarios()', () => {
  it('shows what it does, and reports the facts', async () => {
    const { report, done, said } = await run('nothing');
    expect(done).toEqual(['run', 'close']);
    expect(report).toMatchObject({
      ok: true,
      scenarios: [{ name: 'played', family: 'ipv6', guest: 'qemu', facts: { pauseMs: 3 } }],
    });
    expect(said).toMatch(
      /^\.\.\. {4}played +ipv6 booting\nok {5}played +ipv6 longest pause 3 ms\n$/,
    );
  });

  it.each([
    ['begin', ['evidence of played-ipv6', 'close'], 'it does not boot'],
    ['run', ['run', 'evidence of played-ipv6', 'close'], 'wrong bytes'],
    ['check', ['run', 'evidence of played-ipv6', 'close'], 'the silence was broken'],
    ['build', [], 'no rights'],
  ])('keeps evidence and cleans up when %s fails', async (fails, expected, error) => {
    const { report, done } = await run(fails);
    expect(done).toEqual(expected);
    expect(report.ok).toBe(false);
    expect(report.scenarios[0]!.error).toContain(error);
    if (fails !== 'build') {
      expect(report.scenarios[0]!.error).toContain('primary: {"state":"protected"}');
      expect(report.scenarios[0]!.error).toContain('a note');
    }
  });
});
