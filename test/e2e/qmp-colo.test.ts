/**
 * The QMP driver on a real COLO pair: two QEMU 7.2 without disk and network, whose guests do no more than run their
 * firmware, checkpoint each other's state over a Unix socket. The node is one that writes down what it is told; the
 * peer link is the test.
 */
import { type ChildProcess, execFileSync, spawn } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import type { CommandResult } from '../../src/env/engine.ts';
import type { ProxyEvent } from '../../src/env/messages.ts';
import { QmpVmDriver } from '../../src/vm/qmp.ts';
import { QmpClient } from '../../src/vm/qmp-client.ts';
import { RecordingNode } from '../support/recording-node.ts';

const QEMU = 'qemu-system-x86_64';
const SHIM = fileURLToPath(new URL('../support/qemu-bql-shim.c', import.meta.url));

/** Why these tests cannot run here; empty when they can. */
function whyNoPair(): string {
  try {
    const version = execFileSync(QEMU, ['--version'], { encoding: 'utf8' });
    if (!version.includes('version 7.2.')) return 'needs QEMU 7.2, the last whose COLO starts';
    execFileSync('gcc', ['--version'], { stdio: 'ignore' });
    return '';
  } catch {
    return `needs ${QEMU} and gcc`;
  }
}

const reason = whyNoPair();
const title = reason === '' ? 'a real COLO pair' : `a real COLO pair (SKIPPED: ${reason})`;

type Name = 'P' | 'S';

let directory = '';
let shim = '';
let cleanUps: (() => unknown)[] = [];

async function until(what: string, condition: () => boolean, timeoutMs = 20_000): Promise<void> {
  const end = performance.now() + timeoutMs;
  while (!condition()) {
    if (performance.now() > end) throw new Error(`not in time: ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 2));
  }
}

/** One QEMU with two monitors, one for the driver and one for the test, and the driver of its node. */
class Half {
  readonly name: Name;
  readonly node = new RecordingNode();
  readonly driver: QmpVmDriver;
  readonly monitor: QmpClient;
  readonly process: ChildProcess;

  constructor(name: Name) {
    this.name = name;
    // A size that is no multiple of 256 KiB: QEMU 7.2 under TCG otherwise forgets dirty pages.
    const words = ['-name', name, '-accel', 'tcg,thread=single', '-machine', 'pc', '-m', '131080k'];
    words.push('-nodefaults', '-no-user-config', '-display', 'none', '-nic', 'none');
    for (const monitor of ['driver', 'test']) {
      words.push('-qmp', `unix:${this.#path(monitor)},server=on,wait=off`);
    }
    if (name === 'S') words.push('-incoming', 'defer');
    this.process = spawn(QEMU, words, {
      stdio: ['ignore', 'ignore', 'inherit'],
      env: { ...process.env, LD_PRELOAD: shim },
    });
    cleanUps.push(() => this.kill());
    this.driver = new QmpVmDriver({
      endpoint: { kind: 'unix', path: this.#path('driver') },
      role: name === 'P' ? 'primary' : 'secondary',
    });
    cleanUps.push(() => this.driver.close());
    this.monitor = new QmpClient({
      endpoint: { kind: 'unix', path: this.#path('test') },
      handlers: { onUp: () => undefined, onDown: () => undefined, onEvent: () => undefined },
    });
    cleanUps.push(() => this.monitor.close());
  }

  async start(): Promise<void> {
    await this.driver.start(this.node);
    this.monitor.start();
    await until('monitors', () => this.monitor.up && this.state === 'idle');
  }

  get state(): unknown {
    return this.driver.status()['state'];
  }

  event(kind: ProxyEvent['kind'], fields?: ProxyEvent['fields']): void {
    this.driver.onEvent({ atUs: 0, kind, text: kind, ...(fields === undefined ? {} : { fields }) });
  }

  async execute(command: string, args?: Record<string, unknown>): Promise<unknown> {
    const result = await this.monitor.execute(command, args, 10_000_000);
    if (!result.ok) throw new Error(`${command}: ${result.text}`);
    return result.value;
  }

  async kill(): Promise<void> {
    if (this.process.exitCode !== null || this.process.signalCode !== null) return;
    const gone = new Promise((resolve) => this.process.once('exit', resolve));
    this.process.kill('SIGKILL');
    await gone;
  }

  #path(monitor: string): string {
    return join(directory, `${this.name}.${monitor}`);
  }
}

/** A pair in COLO, with the first checkpoint told. */
async function startPair(): Promise<{ p: Half; s: Half }> {
  const p = new Half('P');
  const s = new Half('S');
  await Promise.all([p.start(), s.start()]);
  // The primary's begin and commit reach the secondary's driver as events of its engine.
  const answer = (kind: ProxyEvent['kind']): CommandResult => {
    s.event(kind);
    return { ok: true };
  };
  Object.defineProperty(p.node.answers, 'begin', { get: () => answer('checkpoint-begun') });
  const capabilities = ['x-colo', 'events'].map((capability) => ({ capability, state: true }));
  const uri = `unix:${join(directory, 'migration')}`;
  await s.execute('migrate-set-capabilities', { capabilities });
  await s.execute('migrate-incoming', { uri });
  await p.execute('migrate-set-capabilities', { capabilities });
  await p.execute('migrate-set-parameters', {
    'x-checkpoint-delay': 60_000,
    'max-bandwidth': 2 ** 32,
  });
  for (const half of [p, s]) half.event('peer-up');
  await p.execute('migrate', { uri });
  await until('COLO', () => p.node.commands.length === 2 && s.state === 'running');
  expect(p.node.commands).toEqual(['begin', 'commit']);
  p.node.commands.length = 0;
  s.node.commands.length = 0;
  return { p, s };
}

async function checkpoint(p: Half): Promise<void> {
  const count = p.node.commands.length;
  p.driver.requestCheckpoint();
  await until('checkpoint', () => p.node.commands.length >= count + 2);
}

describe.skipIf(reason !== '')(title, () => {
  beforeEach(() => {
    directory = mkdtempSync(join(tmpdir(), 'colo-pair-'));
    shim = join(directory, 'shim.so');
    execFileSync('gcc', ['-O2', '-shared', '-fPIC', '-o', shim, SHIM, '-ldl']);
  });

  afterEach(async () => {
    for (const cleanUp of cleanUps.reverse()) await cleanUp();
    cleanUps = [];
    rmSync(directory, { recursive: true });
  });

  test('makes every checkpoint that is asked for, and the secondary takes over', async () => {
    const { p, s } = await startPair();
    const rounds = 20;
    for (let round = 0; round < rounds; round++) await checkpoint(p);
    const { late, committed } = p.driver.status();
    expect(committed).toBe(rounds + 1);
    expect(p.node.commands.filter((command) => command === 'commit')).toHaveLength(rounds);
    // A late begin is committed by a further checkpoint; on a busy machine there may be some.
    expect(p.node.commands).toHaveLength(2 * rounds + Number(late));
    await until('the secondary has committed', () => s.node.commands.length >= rounds);
    expect(new Set(s.node.commands)).toEqual(new Set(['commit']));

    s.node.commands.length = 0;
    s.event('peer-down');
    await p.kill();
    await until('COLO_EXIT', () => s.state === 'idle');
    expect(s.node.reports).toContain('QEMU has left COLO: mode secondary, reason error');
    s.event('failover');
    await until('RESUME', () => s.driver.status()['stopped'] === false);
    await new Promise((resolve) => setTimeout(resolve, 200));
    expect(await s.execute('query-status')).toMatchObject({ running: true });
    expect(await s.execute('query-colo-status')).toMatchObject({ mode: 'none', reason: 'request' });
    // Its own doing is no decision of somebody else.
    expect(s.node.commands).toEqual([]);
  });

  test('holds a request that comes in the midst of a checkpoint, where QEMU would swallow it', async () => {
    const { p } = await startPair();
    for (let round = 0; round < 5; round++) {
      const before = Number(p.driver.status()['committed']);
      p.driver.requestCheckpoint();
      await until('STOP', () => p.state === 'stopped' || p.state === 'resumed');
      p.driver.requestCheckpoint();
      await until('both', () => Number(p.driver.status()['committed']) >= before + 2);
    }
    expect(p.driver.status()['requestsSwallowed']).toBe(0);
  });

  test('does not take a pause by an operator for a checkpoint', async () => {
    const { p } = await startPair();
    await p.execute('stop');
    await p.execute('cont');
    await until('told', () => p.node.commands.length === 2);
    expect(p.node.commands).toEqual([
      'begin',
      'abort: the guest was stopped and resumed without a checkpoint',
    ]);
    p.node.commands.length = 0;
    await checkpoint(p);
    expect(p.node.commands.at(-1)).toBe('commit');
  });

  test('lets the primary go on when the secondary is killed', async () => {
    const { p, s } = await startPair();
    await s.kill();
    p.driver.requestCheckpoint();
    await until('COLO_EXIT', () => p.state === 'idle', 30_000);
    expect(p.node.commands.at(-1)).toMatch(
      /^(reset|abort): QEMU has left COLO: mode primary, reason error/,
    );
    await until('told', () =>
      p.node.reports.some((text) => text.includes('x-colo-lost-heartbeat')),
    );
    await new Promise((resolve) => setTimeout(resolve, 200));
    expect(await p.execute('query-status')).toMatchObject({ running: true });
    expect(await p.execute('query-colo-status')).toMatchObject({ mode: 'none' });
  });

  test('takes over when somebody tells the secondary QEMU so', async () => {
    const { p, s } = await startPair();
    await p.kill();
    await until('COLO_EXIT', () => s.state === 'idle');
    await s.execute('x-colo-lost-heartbeat');
    await until('failover', () => s.node.commands.length === 1);
    expect(s.node.commands).toEqual(['failover']);
  });
});
