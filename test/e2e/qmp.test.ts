/**
 * The QMP driver and client against a real QEMU process. `-machine none` has no guest, but a monitor with greeting,
 * capabilities, events and migration commands: what is played by `FakeQemu` in the unit tests is real here.
 */
import { type ChildProcess, execFileSync, spawn } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import type { Role } from '../../src/env/messages.ts';
import { QmpVmDriver } from '../../src/vm/qmp.ts';
import { QmpClient, type QmpEvent } from '../../src/vm/qmp-client.ts';
import { RecordingNode } from '../support/recording-node.ts';

const QEMU = 'qemu-system-x86_64';

/** Why these tests cannot run here; empty when they can. */
function whyNoQemu(): string {
  try {
    execFileSync(QEMU, ['--version'], { stdio: 'ignore' });
    return '';
  } catch {
    return `needs ${QEMU}`;
  }
}

const reason = whyNoQemu();
const title = reason === '' ? 'a real QEMU' : `a real QEMU (SKIPPED: ${reason})`;

async function until(condition: () => boolean, timeoutMs = 20_000): Promise<void> {
  const end = performance.now() + timeoutMs;
  while (!condition()) {
    if (performance.now() > end) throw new Error('condition not met in time');
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
}

describe.skipIf(reason !== '')(title, () => {
  let directory = '';
  let path = '';
  let cleanUps: (() => unknown)[] = [];

  beforeEach(() => {
    directory = mkdtempSync(join(tmpdir(), 'colo-qemu-'));
    path = join(directory, 'qmp.sock');
  });

  afterEach(async () => {
    for (const cleanUp of cleanUps.reverse()) await cleanUp();
    cleanUps = [];
    rmSync(directory, { recursive: true });
  });

  function startQemu(...extra: string[]): ChildProcess {
    const monitor = `unix:${path},server=on,wait=off`;
    const child = spawn(
      QEMU,
      [
        '-machine',
        'none',
        '-accel',
        'tcg',
        '-nodefaults',
        '-display',
        'none',
        '-qmp',
        monitor,
        ...extra,
      ],
      { stdio: ['ignore', 'ignore', 'inherit'] },
    );
    cleanUps.push(() => stopQemu(child));
    return child;
  }

  async function stopQemu(child: ChildProcess): Promise<void> {
    if (child.exitCode !== null || child.signalCode !== null) return;
    const gone = new Promise((resolve) => child.once('exit', resolve));
    child.kill('SIGKILL');
    await gone;
  }

  async function connectClient() {
    const events: QmpEvent[] = [];
    const ups: string[] = [];
    const downs: string[] = [];
    const client = new QmpClient({
      endpoint: { kind: 'unix', path },
      handlers: {
        onUp: (version) => ups.push(version),
        onDown: (text) => downs.push(text),
        onEvent: (event) => events.push(event),
      },
      reconnectMinUs: 20_000,
    });
    cleanUps.push(() => client.close());
    client.start();
    await until(() => ups.length > 0);
    return { client, events, ups, downs };
  }

  async function startDriver(role: Role) {
    const node = new RecordingNode();
    const endpoint = { kind: 'unix', path } as const;
    const driver = new QmpVmDriver({ endpoint, role, reconnectMinUs: 20_000 });
    cleanUps.push(() => driver.close());
    await driver.start(node);
    await until(() => driver.status()['state'] === 'idle');
    return { node, driver };
  }

  test('greets, answers, and stamps STOP and RESUME with the clock of this machine', async () => {
    startQemu();
    const { client, events, ups } = await connectClient();
    expect(ups[0]).toMatch(/^\d+\.\d+\.\d+$/);
    expect(await client.execute('query-status')).toMatchObject({
      ok: true,
      value: { running: true, status: 'running' },
    });
    const before = Date.now() * 1_000;
    expect(await client.execute('stop')).toMatchObject({ ok: true });
    expect(await client.execute('cont')).toMatchObject({ ok: true });
    await until(() => events.length === 2);
    expect(events.map((event) => event.name)).toEqual(['STOP', 'RESUME']);
    for (const event of events) {
      expect(event.atUs).toBeGreaterThan(before - 1_000_000);
      expect(event.atUs).toBeLessThan(before + 10_000_000);
    }
  });

  test('refuses what it does not know, and is not confused by it', async () => {
    startQemu();
    const { client } = await connectClient();
    expect(await client.execute('no-such-command')).toMatchObject({
      ok: false,
      failure: 'refused',
      errorClass: 'CommandNotFound',
    });
    expect(
      await client.execute('migrate-set-parameters', { 'x-checkpoint-delay': 'x' }),
    ).toMatchObject({
      ok: false,
      errorClass: 'GenericError',
    });
    expect(await client.execute('x-colo-lost-heartbeat')).toMatchObject({ ok: false });
    expect(await client.execute('query-name')).toMatchObject({ ok: true });
  });

  test('has every command and answer that the driver relies on', async () => {
    startQemu();
    const { client } = await connectClient();
    const value = async (command: string) => {
      const result = await client.execute(command);
      if (!result.ok) throw new Error(result.text);
      return result.value;
    };
    const commands = (await value('query-commands')) as { name: string }[];
    const names = commands.map(({ name }) => name);
    for (const name of [
      'migrate-set-parameters',
      'query-migrate-parameters',
      'query-migrate-capabilities',
      'query-colo-status',
      'x-colo-lost-heartbeat',
      'yank',
    ]) {
      expect(names).toContain(name);
    }
    expect(await value('query-colo-status')).toMatchObject({ mode: 'none' });
    expect(await value('query-migrate-parameters')).toMatchObject({ 'x-checkpoint-delay': 20_000 });
    const capabilities = (await value('query-migrate-capabilities')) as object[];
    expect(capabilities).toContainEqual({ capability: 'events', state: false });
    expect(capabilities).toContainEqual({ capability: 'x-colo', state: false });
    const delay = { 'x-checkpoint-delay': 60_000 };
    expect(await client.execute('migrate-set-parameters', delay)).toMatchObject({ ok: true });
    expect(await value('query-migrate-parameters')).toMatchObject(delay);
  });

  test('the driver tells nothing of a pause outside of COLO', async () => {
    startQemu();
    const { node, driver } = await startDriver('primary');
    driver.requestCheckpoint();
    await driver.close();
    const { client } = await connectClient();
    expect(await client.execute('stop')).toMatchObject({ ok: true });
    expect(await client.execute('cont')).toMatchObject({ ok: true });
    client.close();
    expect(node.commands).toEqual([]);
    expect(node.reports.at(-1)).toMatch(/QEMU is not in COLO/);
  });

  test('the driver survives a QEMU that hangs, one that is killed, and finds its successor', async () => {
    const first = startQemu();
    const { driver } = await startDriver('secondary');
    first.kill('SIGSTOP');
    await new Promise((resolve) => setTimeout(resolve, 100));
    first.kill('SIGCONT');
    expect(driver.status()['state']).toBe('idle');
    await stopQemu(first);
    await until(() => driver.status()['state'] === 'disconnected');
    startQemu();
    await until(() => driver.status()['state'] === 'idle');
    expect(driver.status()['qemu']).toMatch(/^\d+\.\d+\.\d+$/);
  });

  test('a command to a QEMU that hangs ends with its deadline; the late answer disturbs nothing', async () => {
    const qemu = startQemu();
    const { client } = await connectClient();
    qemu.kill('SIGSTOP');
    const result = await client.execute('query-status', undefined, 100_000);
    expect(result).toMatchObject({ ok: false, failure: 'timeout' });
    qemu.kill('SIGCONT');
    await until(() => client.counters.lateAnswers === 1);
    expect(await client.execute('query-name')).toMatchObject({ ok: true, value: {} });
  });

  test('a second client waits for a greeting until the first has left', async () => {
    startQemu();
    const first = await connectClient();
    const second = new QmpClient({
      endpoint: { kind: 'unix', path },
      handlers: { onUp: () => undefined, onDown: () => undefined, onEvent: () => undefined },
      greetingTimeoutUs: 200_000,
      reconnectMinUs: 20_000,
    });
    cleanUps.push(() => second.close());
    second.start();
    await until(() => second.counters.connects >= 2);
    expect(second.up).toBe(false);
    first.client.close();
    await until(() => second.up);
  });
});
