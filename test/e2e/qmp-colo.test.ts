/**
 * The QMP driver on a real COLO pair: two QEMU 7.2 without disk and network, whose guests do no more than run their
 * firmware, checkpoint each other's state over a Unix socket. The node is one that writes down what it is told; the
 * peer link is the test. Checkpoints under load, failover and the loss of the secondary are scenarios of `lab --guest qemu`.
 */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import type { CommandResult } from '../../src/env/engine.ts';
import type { ProxyEvent } from '../../src/env/messages.ts';
import { buildShim } from '../../src/lab/qemu/image.ts';
import { startColo } from '../../src/lab/qemu/machine.ts';
import { QmpVmDriver } from '../../src/vm/qmp.ts';
import { PairedQemu, whyNoPair } from '../support/qemu-pair.ts';
import { RecordingNode } from '../support/recording-node.ts';

const reason = whyNoPair();
const title = reason === '' ? 'a real COLO pair' : `a real COLO pair (SKIPPED: ${reason})`;

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

/** One QEMU and the driver of its node. */
class Half {
  readonly node = new RecordingNode();
  readonly qemu: PairedQemu;
  readonly driver: QmpVmDriver;

  constructor(name: 'P' | 'S') {
    this.qemu = new PairedQemu({ name, directory, shim });
    cleanUps.push(() => this.qemu.close());
    this.driver = new QmpVmDriver({
      endpoint: { kind: 'unix', path: join(directory, `${name}.driver`) },
      role: name === 'P' ? 'primary' : 'secondary',
      resumeTimeoutUs: 1_000_000,
    });
    cleanUps.push(() => this.driver.close());
  }

  async start(): Promise<void> {
    await this.driver.start(this.node);
    await until('monitors', () => this.qemu.up && this.state === 'idle');
  }

  get state(): unknown {
    return this.driver.status()['state'];
  }

  event(kind: ProxyEvent['kind']): void {
    this.driver.onEvent({ atUs: 0, kind, text: kind });
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
  for (const half of [p, s]) half.event('peer-up');
  await startColo(p.qemu, s.qemu, directory);
  // A late begin is followed by another one.
  await until('COLO', () => p.node.commands.at(-1) === 'commit' && s.state === 'running');
  expect(new Set(p.node.commands)).toEqual(new Set(['begin', 'commit']));
  p.node.commands.length = 0;
  s.node.commands.length = 0;
  return { p, s };
}

async function checkpoint(p: Half): Promise<void> {
  const count = p.node.commands.length;
  p.driver.requestCheckpoint();
  await until('checkpoint', () => p.node.commands.indexOf('commit', count) >= 0);
}

describe.skipIf(reason !== '')(title, () => {
  beforeEach(() => {
    directory = mkdtempSync(join(tmpdir(), 'colo-pair-'));
    shim = join(directory, 'shim.so');
    buildShim(shim);
  });

  afterEach(async () => {
    for (const cleanUp of cleanUps.reverse()) await cleanUp();
    cleanUps = [];
    rmSync(directory, { recursive: true });
  });

  test('holds a request that comes in the midst of a checkpoint, where QEMU would swallow it', async () => {
    const { p } = await startPair();
    // One whose RESUME is read too late is not committed but followed by another, which is the second request's as well.
    const done = (): number => {
      const { committed, late } = p.driver.status();
      return Number(committed) + Number(late);
    };
    for (let round = 0; round < 5; round++) {
      const before = done();
      // Told at STOP; a look now and then might miss all of a short checkpoint.
      const begun = p.node.until(() => p.node.commands.length > 0);
      p.driver.requestCheckpoint();
      await begun;
      // What is asked for before the node has answered to the begin is part of the same checkpoint.
      await new Promise((resolve) => setImmediate(resolve));
      p.driver.requestCheckpoint();
      await until('both', () => done() >= before + 2);
      p.node.commands.length = 0;
    }
    expect(p.driver.status()['requestsSwallowed']).toBe(0);
  });

  test('does not take a pause by an operator for a checkpoint', async () => {
    const { p } = await startPair();
    await p.qemu.execute('stop');
    await p.qemu.execute('cont');
    await until('told', () => p.node.commands.length === 2);
    expect(p.node.commands).toEqual([
      'begin',
      'abort: the guest was stopped and resumed without a checkpoint',
    ]);
    p.node.commands.length = 0;
    await checkpoint(p);
    expect(p.node.commands.at(-1)).toBe('commit');
  });

  test('lets the guest go on when the secondary QEMU hangs in the midst of a checkpoint', async () => {
    const { p, s } = await startPair();
    p.driver.requestCheckpoint();
    await p.node.until(() => p.node.commands.length === 1);
    s.qemu.process.kill('SIGSTOP');
    await until('abort', () => p.node.commands.length > 1);
    expect(p.node.commands[1]).toBe('abort: QEMU did not resume within 1000 ms');
    await until('COLO_EXIT', () => p.state === 'idle');
    expect(await p.qemu.execute('query-status')).toMatchObject({ running: true });
  });

  test('takes over when somebody tells the secondary QEMU so', async () => {
    const { p, s } = await startPair();
    await p.qemu.kill();
    await until('COLO_EXIT', () => s.state === 'idle');
    await s.qemu.execute('x-colo-lost-heartbeat');
    await until('failover', () => s.node.commands.length === 1);
    expect(s.node.commands).toEqual(['failover']);
  });
});
