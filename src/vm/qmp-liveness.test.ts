import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { FakeQemu } from '../../test/support/fake-qemu.ts';
import { RecordingNode } from '../../test/support/recording-node.ts';
import type { Role } from '../env/messages.ts';
import { QmpVmDriver, type QmpVmOptions } from './qmp.ts';

let directory = '';
let cleanUps: (() => unknown)[] = [];

beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), 'colo-qmp-'));
});

afterEach(async () => {
  for (const cleanUp of cleanUps.reverse()) await cleanUp();
  cleanUps = [];
  rmSync(directory, { recursive: true });
});

const sleep = (ms: number) => new Promise((resolve) => setTimeout(resolve, ms));

async function until(condition: () => boolean): Promise<void> {
  while (!condition()) await sleep(2);
}

/** A driver whose QEMU is in COLO. */
async function setUp(role: Role, options: Partial<QmpVmOptions> = {}) {
  const qemu = new FakeQemu(join(directory, 'qmp.sock'));
  qemu.behaviour.colo = { mode: role, reason: 'none' };
  await qemu.start();
  cleanUps.push(() => qemu.stop());
  const node = new RecordingNode();
  const driver = new QmpVmDriver({
    endpoint: { kind: 'unix', path: qemu.path },
    role,
    commandTimeoutUs: 100_000,
    livenessIntervalUs: 10_000,
    ...options,
  });
  cleanUps.push(() => driver.close());
  await driver.start(node);
  await until(() => driver.status()['state'] === 'running');
  const asked = () => qemu.commands.filter((command) => command === 'query-status').length;
  return { qemu, node, driver, asked };
}

const HANGS = 'QEMU hangs: no answer to query-status in 100 ms';

describe('QmpVmDriver asks whether QEMU is alive', () => {
  test('secondary: a QEMU that hangs is no replica, and its node resets, once', async () => {
    const { qemu, node, driver } = await setUp('secondary');
    qemu.behaviour.mute.add('query-status');
    await node.until(() => node.commands.length > 0);
    await sleep(250);
    expect(node.commands).toEqual([`reset: ${HANGS}`]);
    expect(driver.status()['hung']).toBe(true);
    qemu.behaviour.mute.clear();
    await node.until(() => node.reports.includes('QEMU answers again'));
    expect(driver.status()['hung']).toBe(false);
    expect(node.commands).toEqual([`reset: ${HANGS}`]);
  });

  test('primary: it is told, and nothing is done to a guest that may run again', async () => {
    const { qemu, node } = await setUp('primary');
    qemu.behaviour.mute.add('query-status');
    await node.until(() => node.reports.includes(HANGS));
    expect(node.commands).toEqual([]);
  });

  test('a secondary without a peer link only tells', async () => {
    const { qemu, node } = await setUp('secondary', { isAlone: true });
    qemu.behaviour.mute.add('query-status');
    await node.until(() => node.reports.includes(HANGS));
    expect(node.commands).toEqual([]);
  });

  test('a guest that is stopped is not asked, and a question across a STOP says nothing', async () => {
    const { qemu, node, asked } = await setUp('secondary');
    qemu.behaviour.mute.add('query-status');
    const before = asked();
    await until(() => asked() > before);
    qemu.stopGuest();
    await sleep(200);
    const during = asked();
    await sleep(100);
    expect(asked()).toBe(during);
    expect(node.reports).not.toContain(HANGS);
    qemu.resumeGuest();
    await node.until(() => node.reports.includes(HANGS));
  });

  test('outside of COLO nothing is asked', async () => {
    const { qemu, asked } = await setUp('primary');
    qemu.event('COLO_EXIT', { mode: 'primary', reason: 'request' });
    await sleep(50);
    const before = asked();
    await sleep(100);
    expect(asked()).toBe(before);
  });
});
