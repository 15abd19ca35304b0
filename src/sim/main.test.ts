import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import { PrimaryEngine } from '../proxy/primary.ts';
import { SecondaryEngine } from '../proxy/secondary.ts';
import { CaptureDecoder } from '../wire/pcap.ts';
import { runSim, type SimOptions } from './main.ts';
import { MARKS } from './marks.ts';

let directory = '';

beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), 'colo-proxy-sim-'));
});

afterEach(() => {
  vi.restoreAllMocks();
  rmSync(directory, { recursive: true });
});

/** Runs the command, and what it has said. */
async function run(options: SimOptions) {
  const out: string[] = [];
  const progress: string[] = [];
  const capture = join(directory, 'clients.pcapng');
  const code = await runSim(
    { capture, ...options },
    { out: (line) => out.push(line), progress: (line) => progress.push(line) },
  );
  return { code, out, progress, capture };
}

/** An engine that breaks on purpose: it accepts a failover that it has to refuse. */
function breakFailover(): void {
  vi.spyOn(SecondaryEngine.prototype, 'failover').mockReturnValue({ ok: true });
}

describe('sim', () => {
  it('says version and seed first, then how it went', async () => {
    const { code, out, progress } = await run({ seed: 5, steps: 100, runs: 2 });
    expect(code).toBe(0);
    expect(progress[0]).toMatch(
      /^colo-proxy \d+\.\d+\.\d+ sim: seed 5, 2 runs of 100 events and the heal$/,
    );
    expect(out[0]).toMatch(/^ok: 2 runs, \d+ events, trace [0-9a-f]{16}$/);
    expect(out[1]).toMatch(/"sessions":\d+.*"checkpoints":\d+.*"divergences":\d+.*"failovers":\d+/);
  });

  it('--json: one object with what the runs did', async () => {
    const { out } = await run({ seed: 5, steps: 100, runs: 2, json: true });
    expect(out).toHaveLength(1);
    expect(JSON.parse(out[0]!)).toMatchObject({
      ok: true,
      seed: 5,
      runs: 2,
      steps: 100,
      broken: [],
    });
    const { events, traceHash } = JSON.parse(out[0]!);
    expect(events).toBeGreaterThan(200);
    expect(traceHash).toMatch(/^[0-9a-f]{16}$/);
  });

  it('129, a guarantee is broken: seed, shortest run, last events, what the clients saw', async () => {
    breakFailover();
    const { code, progress, capture } = await run({ seed: 7, steps: 300 });
    expect(code).toBe(129);
    const text = progress.join('\n');
    expect(text).toContain('seed 7: G10 broken at event 1: the secondary took over');
    expect(text).toContain('shortest failing run found: --seed 7 --steps 1');
    expect(text).toContain('BROKEN G10');
    expect(progress.at(-1)).toBe(`what the clients saw: ${capture}`);
    const decoder = new CaptureDecoder(() => {});
    decoder.push(readFileSync(capture));
    expect(decoder.error).toBeUndefined();
  });

  it('129 with --json: guarantee, seed and step of each failure', async () => {
    breakFailover();
    const { code, out } = await run({ seed: 7, steps: 300, runs: 2, json: true, keepGoing: true });
    expect(code).toBe(129);
    const { ok, broken } = JSON.parse(out[0]!);
    expect(ok).toBe(false);
    expect(broken).toMatchObject([
      { guarantee: 'G10', outcome: 'broken', seed: 7, step: 1 },
      { guarantee: 'G10', outcome: 'broken', seed: 8, step: 1 },
    ]);
  });

  it('127, an engine throws: the text of the error, and the shortest run that throws', async () => {
    vi.spyOn(PrimaryEngine.prototype, 'onNetFrame').mockImplementation(() => {
      throw new Error('assertion failed: a test breaks it');
    });
    const { code, progress } = await run({ seed: 7, steps: 300 });
    expect(code).toBe(127);
    const text = progress.join('\n');
    expect(text).toContain('crash at event');
    expect(text).toContain('a test breaks it');
    const steps = Number(/--seed 7 --steps (\d+)/.exec(text)?.[1]);
    expect(steps).toBeLessThan(300);
  });

  it('128, no checkpoint ever ends after the heal: what is not done', async () => {
    vi.spyOn(PrimaryEngine.prototype, 'checkpointBegin').mockReturnValue({
      ok: false,
      error: 'no',
    });
    vi.spyOn(PrimaryEngine.prototype, 'checkpointCommit').mockReturnValue({
      ok: false,
      error: 'no',
    });
    const { code, progress } = await run({ seed: 3, steps: 20, isShrinking: false });
    expect(code).toBe(128);
    expect(progress.join('\n')).toMatch(/seed 3: liveness at event \d+: .*/);
  });

  it('--twice finds a run that does not go the same way again', async () => {
    const original = PrimaryEngine.prototype.onNetFrame;
    let frames = 0;
    vi.spyOn(PrimaryEngine.prototype, 'onNetFrame').mockImplementation(function (
      this: PrimaryEngine,
      ...frame
    ) {
      // Of the first run only.
      if (frames++ !== 3) original.apply(this, frame);
    });
    const { code, progress } = await run({ seed: 3, steps: 50, twice: true, isShrinking: false });
    expect(code).toBe(127);
    expect(progress.join('\n')).toContain('the same seed gave');
  });

  it('--marks fails when a feature of the world is reached by no run, and names it', async () => {
    const { code, out, progress } = await run({ seed: 1, steps: 5, marks: true });
    expect(code).toBe(1);
    expect(out.filter((line) => line.endsWith(' runs  session over IPv4'))).toHaveLength(1);
    const json = (await run({ seed: 1, steps: 5, marks: true, json: true })).out[0]!;
    const { unreached, marks } = JSON.parse(json) as {
      unreached: string[];
      marks: Record<string, number>;
    };
    expect(Object.keys(marks)).toEqual([...MARKS]);
    expect(unreached).toEqual(MARKS.filter((mark) => marks[mark] === 0));
    expect(unreached).toContain('operator: reset of the secondary');
    expect(unreached).not.toContain('vm: committed');
    expect(progress).toContain('no run has reached: operator: reset of the secondary');
  });
});
