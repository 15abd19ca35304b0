import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { FakeQemu } from '../../test/support/fake-qemu.ts';
import { RecordingNode } from '../../test/support/recording-node.ts';
import type { ProxyEvent, Role } from '../env/messages.ts';
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

/** A driver, patient unless a test is about its patience, and its QEMU; `colo` puts QEMU into COLO before the driver comes. */
async function setUp(role: Role, options: Partial<QmpVmOptions> & { colo?: boolean } = {}) {
  const qemu = new FakeQemu(join(directory, 'qmp.sock'));
  if (options.colo === true) qemu.behaviour.colo = { mode: role, reason: 'none' };
  await qemu.start();
  cleanUps.push(() => qemu.stop());
  const node = new RecordingNode();
  const driver = new QmpVmDriver({
    endpoint: { kind: 'unix', path: qemu.path },
    role,
    commandTimeoutUs: 10_000_000,
    reconnectMinUs: 10_000,
    stopTimeoutUs: 10_000_000,
    resumeTimeoutUs: 10_000_000,
    ...options,
  });
  cleanUps.push(() => driver.close());
  await driver.start(node);
  const state = () => driver.status()['state'];
  await until(() => state() === (options.colo === true ? 'running' : 'idle'));
  await until(() => qemu.commands.length >= 5);
  const event = (kind: ProxyEvent['kind'], fields?: ProxyEvent['fields']) =>
    driver.onEvent({ atUs: 0, kind, text: kind, ...(fields === undefined ? {} : { fields }) });
  /** How often the checkpoint was asked for. */
  const requests = () => qemu.commands.filter((c) => c.startsWith('migrate-set-parameters')).length;
  return { qemu, node, driver, state, event, requests };
}

describe('QmpVmDriver on the primary: checkpoints', () => {
  test('tells the checkpoint with which COLO starts', async () => {
    const { qemu, node, state } = await setUp('primary');
    qemu.startColo('primary');
    await until(() => state() === 'running' && node.commands.length === 2);
    expect(node.commands).toEqual(['begin', 'commit']);
    expect(node.reports).toContain('QMP: idle -> running: MIGRATION colo');
    expect(node.reports).toContain('QMP: running -> stopped: STOP');
    expect(node.reports).toContain('QMP: stopped -> resumed: RESUME');
  });

  test('asks for one with the value that QEMU has, and turns STOP and RESUME into begin and commit', async () => {
    const { qemu, node, driver } = await setUp('primary', { colo: true });
    driver.requestCheckpoint();
    await until(() => node.commands.length === 2);
    expect(node.commands).toEqual(['begin', 'commit']);
    expect(qemu.commands).toContain('migrate-set-parameters 60000');
  });

  test('tells one that QEMU makes by itself', async () => {
    const { qemu, node } = await setUp('primary', { colo: true });
    qemu.checkpoint();
    await until(() => node.commands.length === 2);
    expect(node.commands).toEqual(['begin', 'commit']);
  });

  test('holds a request that arises during one until RESUME, where QEMU would swallow it', async () => {
    const { qemu, node, driver, state, requests } = await setUp('primary', { colo: true });
    qemu.behaviour.resumeMs = -1;
    driver.requestCheckpoint();
    await until(() => state() === 'stopped');
    driver.requestCheckpoint();
    driver.requestCheckpoint();
    await sleep(10);
    expect(requests()).toBe(1);
    qemu.behaviour.resumeMs = 5;
    qemu.resumeGuest();
    await until(() => node.commands.length === 4);
    expect(node.commands).toEqual(['begin', 'commit', 'begin', 'commit']);
    expect(requests()).toBe(2);
  });

  test('repeats a request that was answered but swallowed', async () => {
    const options = { colo: true, stopTimeoutUs: 200_000 };
    const { qemu, node, driver, requests } = await setUp('primary', options);
    qemu.behaviour.swallow = 2;
    driver.requestCheckpoint();
    await until(() => node.commands.length === 2);
    expect(requests()).toBe(3);
    expect(driver.status()['requestsSwallowed']).toBe(2);
  });

  test('reports a request that QEMU refuses, and listens to the next', async () => {
    const { qemu, node, driver } = await setUp('primary', { colo: true });
    qemu.behaviour.refuse.add('migrate-set-parameters');
    driver.requestCheckpoint();
    await until(() => node.reports.some((text) => text.includes('did not take the checkpoint')));
    qemu.behaviour.refuse.clear();
    driver.requestCheckpoint();
    await until(() => node.commands.length === 2);
  });

  test('keeps a request until COLO is entered, which answers it', async () => {
    const { qemu, node, driver, requests } = await setUp('primary');
    driver.requestCheckpoint();
    await sleep(20);
    expect(requests()).toBe(0);
    qemu.startColo('primary');
    await until(() => node.commands.length === 2);
    await sleep(20);
    expect(requests()).toBe(0);
    expect(node.commands).toEqual(['begin', 'commit']);
  });
});

describe('QmpVmDriver on the primary: a checkpoint follows before the node is done with the one before', () => {
  /** QEMU makes one that nobody has asked for. */
  const pass = (qemu: FakeQemu): void => {
    qemu.stopGuest();
    qemu.event('MIGRATION_PASS', { pass: 2 });
    qemu.resumeGuest();
  };
  /** The driver has heard so many of QEMU's RESUMEs. */
  const resumed = (node: RecordingNode, count: number): Promise<void> =>
    node.until(() => node.reports.filter((text) => text.endsWith(': RESUME')).length === count);

  test('while it commits: a late begin is followed by a request all the same', async () => {
    const { qemu, node, requests } = await setUp('primary', { colo: true });
    let done: (result: { ok: true }) => void = () => undefined;
    node.answers['commit'] = new Promise((resolve) => {
      done = resolve;
    });
    pass(qemu);
    await node.until(() => node.commands.length === 2);
    pass(qemu);
    await resumed(node, 2);
    delete node.answers['commit'];
    done({ ok: true });
    await until(() => requests() === 1);
    await node.until(() => node.commands.length === 5);
    expect(node.commands).toEqual(['begin', 'commit', 'begin', 'begin', 'commit']);
  });

  test('while it commits, two: the second one does not cover what was drained after both', async () => {
    const { qemu, node, requests } = await setUp('primary', { colo: true });
    let done: (result: { ok: true }) => void = () => undefined;
    node.answers['commit'] = new Promise((resolve) => {
      done = resolve;
    });
    pass(qemu);
    await node.until(() => node.commands.length === 2);
    pass(qemu);
    pass(qemu);
    await resumed(node, 3);
    delete node.answers['commit'];
    done({ ok: true });
    await until(() => requests() === 1);
    await node.until(() => node.commands.length === 6);
    expect(node.commands).toEqual(['begin', 'commit', 'begin', 'begin', 'begin', 'commit']);
  });

  test('while it begins: a pause that was none is aborted before the next one begins', async () => {
    const { qemu, node } = await setUp('primary', { colo: true });
    let done: (result: { ok: true }) => void = () => undefined;
    node.answers['begin'] = new Promise((resolve) => {
      done = resolve;
    });
    qemu.stopGuest();
    await node.until(() => node.commands.length === 1);
    qemu.resumeGuest();
    qemu.stopGuest();
    qemu.event('MIGRATION_PASS', { pass: 2 });
    await sleep(30);
    delete node.answers['begin'];
    done({ ok: true });
    await node.until(() => node.commands.length === 3);
    qemu.resumeGuest();
    await node.until(() => node.commands.length === 4);
    const abort = 'abort: the guest was stopped and resumed without a checkpoint';
    expect(node.commands).toEqual(['begin', abort, 'begin', 'commit']);
  });

  test('while it begins: what was late before COLO has failed commits nothing afterwards', async () => {
    const { qemu, node, state } = await setUp('primary', { colo: true });
    let done: (result: { ok: true }) => void = () => undefined;
    node.answers['begin'] = new Promise((resolve) => {
      done = resolve;
    });
    const before = Date.now() * 1_000 - 5_000_000;
    for (const name of ['STOP', 'MIGRATION_PASS', 'RESUME']) qemu.event(name, { pass: 2 }, before);
    qemu.stopGuest();
    qemu.event('COLO_EXIT', { mode: 'primary', reason: 'error' });
    await until(() => state() === 'idle');
    qemu.startColo('primary');
    await until(() => state() === 'resumed');
    delete node.answers['begin'];
    done({ ok: true });
    await node.until(() => node.commands.includes('commit'));
    const abort = 'abort: QEMU has left COLO: mode primary, reason error';
    expect(node.commands).toEqual(['begin', abort, 'begin', 'begin', 'commit']);
  });

  test('while it begins, and ends that by itself: the next one is late by its own drain', async () => {
    const { qemu, node, event, requests } = await setUp('primary', { colo: true });
    let done: (result: { ok: true }) => void = () => undefined;
    node.answers['begin'] = new Promise((resolve) => {
      done = resolve;
    });
    const told = (atUs: number) => {
      for (const name of ['STOP', 'MIGRATION_PASS', 'RESUME']) qemu.event(name, { pass: 2 }, atUs);
    };
    told((Date.now() - 5_000) * 1_000);
    await node.until(() => node.commands.length === 1);
    event('peer-down');
    await sleep(20);
    const resumedAtUs = Date.now() * 1_000;
    await sleep(20);
    delete node.answers['begin'];
    qemu.behaviour.swallow = 1;
    done({ ok: true });
    await until(() => requests() === 1);
    told(resumedAtUs);
    await node.until(() => node.commands.includes('commit'));
    expect(node.commands).toEqual(['begin', 'begin', 'begin', 'commit']);
  });

  test('while it begins: the second one is told as well', async () => {
    const { qemu, node, requests } = await setUp('primary', { colo: true });
    let done: (result: { ok: true }) => void = () => undefined;
    node.answers['begin'] = new Promise((resolve) => {
      done = resolve;
    });
    qemu.stopGuest();
    await node.until(() => node.commands.length === 1);
    qemu.event('MIGRATION_PASS', { pass: 2 });
    qemu.resumeGuest();
    pass(qemu);
    await resumed(node, 2);
    delete node.answers['begin'];
    done({ ok: true });
    await until(() => requests() === 1);
    await node.until(() => node.commands.length === 5);
    expect(node.commands).toEqual(['begin', 'commit', 'begin', 'begin', 'commit']);
  });
});

describe('QmpVmDriver on the primary: what is not a checkpoint', () => {
  test('does not commit a pause that copied nothing', async () => {
    const { qemu, node } = await setUp('primary', { colo: true });
    qemu.behaviour.sendsPass = false;
    qemu.checkpoint();
    await until(() => node.commands.length === 2);
    expect(node.commands).toEqual([
      'begin',
      'abort: the guest was stopped and resumed without a checkpoint',
    ]);
  });

  test('does not take MIGRATION_PASS from outside of a pause as evidence', async () => {
    const { qemu, node } = await setUp('primary', { colo: true });
    qemu.behaviour.sendsPass = false;
    qemu.event('MIGRATION_PASS', { pass: 9 });
    qemu.checkpoint();
    await until(() => node.commands.length === 2);
    expect(node.commands[1]).toMatch(/^abort/);
  });

  test('tells nothing of STOP and RESUME outside of COLO', async () => {
    const { qemu, node } = await setUp('primary');
    qemu.checkpoint();
    await sleep(30);
    expect(node.commands).toEqual([]);
  });

  test('commits a late begin only with a further checkpoint', async () => {
    const { qemu, node, driver } = await setUp('primary', { colo: true });
    // STOP and RESUME arrive together, because this process was busy: the guest runs again.
    const before = Date.now() * 1_000 - 5_000;
    const stamp = (us: number) => ({ seconds: Math.floor(us / 1e6), microseconds: us % 1e6 });
    const line = (event: string, us: number) => JSON.stringify({ timestamp: stamp(us), event });
    qemu.raw(
      `${line('STOP', before)}\r\n${line('MIGRATION_PASS', before)}\r\n${line('RESUME', before + 2_000)}\r\n`,
    );
    await until(() => node.commands.includes('commit'));
    expect(node.commands).toEqual(['begin', 'begin', 'commit']);
    expect(driver.status()).toMatchObject({ late: 1, committed: 1, requestsSent: 1 });
  });

  test('does not commit what the node has aborted by itself', async () => {
    const { qemu, node, state, event, requests } = await setUp('primary', { colo: true });
    qemu.behaviour.resumeMs = 20;
    qemu.checkpoint();
    await until(() => state() === 'stopped');
    event('checkpoint-aborted');
    await until(() => node.commands.length === 3);
    expect(node.commands).toEqual(['begin', 'begin', 'commit']);
    expect(requests()).toBe(1);
  });

  test('does not commit when the node refused to begin', async () => {
    const { qemu, node } = await setUp('primary', { colo: true });
    node.answers['begin'] = { ok: false, error: 'no secondary' };
    qemu.checkpoint();
    await until(() => node.reports.includes('The node refused to begin: no secondary'));
    expect(node.commands).toEqual(['begin']);
  });

  test('begins the next checkpoint only when the commit before it is done', async () => {
    const { qemu, node } = await setUp('primary', { colo: true });
    let finish = (_: { ok: true }) => {};
    node.answers['commit'] = new Promise((resolve) => {
      finish = resolve;
    });
    qemu.behaviour.resumeMs = 2;
    qemu.checkpoint();
    await until(() => node.commands.length === 2);
    qemu.behaviour.resumeMs = -1;
    qemu.checkpoint();
    await sleep(15);
    expect(node.commands).toEqual(['begin', 'commit']);
    delete node.answers['commit'];
    finish({ ok: true });
    await until(() => node.commands.length === 3);
    qemu.resumeGuest();
    await until(() => node.commands.length === 4);
    expect(node.commands).toEqual(['begin', 'commit', 'begin', 'commit']);
  });
});

describe('QmpVmDriver on the primary: failures', () => {
  test('aborts when COLO ends in the midst of a checkpoint, and commits nothing', async () => {
    const { qemu, node, state } = await setUp('primary', { colo: true });
    qemu.behaviour.resumeMs = -1;
    qemu.checkpoint();
    await until(() => state() === 'stopped');
    qemu.event('COLO_EXIT', { mode: 'primary', reason: 'error' });
    qemu.resumeGuest();
    await until(() => node.commands.length === 2);
    await sleep(20);
    expect(node.commands).toEqual([
      'begin',
      'abort: QEMU has left COLO: mode primary, reason error',
    ]);
    expect(state()).toBe('idle');
  });

  test('makes the node unprotected when COLO ends between checkpoints', async () => {
    const { qemu, node, event, state } = await setUp('primary', { colo: true });
    // Without a peer there is nothing to end.
    qemu.event('COLO_EXIT', { mode: 'primary', reason: 'request' });
    await until(() => state() === 'idle');
    qemu.startColo('primary');
    await until(() => node.commands.length === 2);
    node.commands.length = 0;
    event('peer-up');
    qemu.event('COLO_EXIT', { mode: 'primary', reason: 'request' });
    await until(() => node.commands.length === 1);
    expect(node.commands).toEqual(['reset: QEMU has left COLO: mode primary, reason request']);
  });

  test('aborts when QEMU hangs in a checkpoint, and connects anew', async () => {
    const options = { colo: true, resumeTimeoutUs: 150_000 };
    const { qemu, node, driver } = await setUp('primary', options);
    qemu.behaviour.resumeMs = -1;
    qemu.checkpoint();
    await until(() => node.commands.length === 2);
    expect(node.commands[1]).toBe('abort: QEMU did not resume within 150 ms');
    await until(() => Number(driver.status()['connects']) > 1);
  });

  test('lets QEMU go on when it hangs in a checkpoint and the peer is alive', async () => {
    const options = { colo: true, resumeTimeoutUs: 150_000 };
    const { qemu, node, event, state } = await setUp('primary', options);
    event('peer-up');
    qemu.behaviour.resumeMs = -1;
    qemu.checkpoint();
    await until(() => qemu.commands.includes('x-colo-lost-heartbeat'));
    await until(() => state() === 'idle');
    expect(node.commands[1]).toBe('abort: QEMU did not resume within 150 ms');
    expect(qemu.behaviour.isRunning).toBe(true);
  });

  test('connects anew when QEMU hangs in a checkpoint and does not listen either', async () => {
    const options = { colo: true, resumeTimeoutUs: 150_000, commandTimeoutUs: 150_000 };
    const { qemu, driver, event } = await setUp('primary', options);
    event('peer-up');
    qemu.behaviour.resumeMs = -1;
    qemu.behaviour.mute.add('x-colo-lost-heartbeat');
    qemu.checkpoint();
    await until(() => qemu.commands.includes('yank'));
    await until(() => Number(driver.status()['connects']) > 1);
  });

  test('does not abort at once when QEMU dies in a checkpoint: the secondary may have to take over', async () => {
    const options = { colo: true, resumeTimeoutUs: 1_000_000 };
    const { qemu, node, state } = await setUp('primary', options);
    qemu.behaviour.resumeMs = -1;
    qemu.checkpoint();
    await until(() => state() === 'stopped');
    await qemu.stop();
    await until(() => state() === 'disconnected');
    // Its death is told instead.
    await until(() => node.commands.length === 2);
    expect(node.commands[1]).toMatch(/^guest-lost: QEMU is dead/);
    await until(() => node.commands.length === 3);
    expect(node.commands[2]).toMatch(/^abort: QEMU did not resume/);
  });

  test('does not call a QEMU dead that was shut down, hangs, or was not in COLO', async () => {
    const { qemu, node, driver, state } = await setUp('primary', { colo: true });
    qemu.event('SHUTDOWN', { guest: true, reason: 'guest-shutdown' });
    await until(() => node.reports.includes('QEMU reports SHUTDOWN'));
    await qemu.stop();
    await until(() => Number(driver.status()['connects']) > 5);
    qemu.behaviour.colo.mode = 'none';
    await qemu.start();
    await until(() => state() === 'idle');
    await qemu.stop();
    const connects = Number(driver.status()['connects']);
    await until(() => Number(driver.status()['connects']) > connects + 4);
    expect(node.commands).toEqual([]);
  });

  test('aborts when QEMU is back after a checkpoint of which the end was not seen', async () => {
    const { qemu, node, state } = await setUp('primary', { colo: true });
    qemu.behaviour.resumeMs = -1;
    qemu.checkpoint();
    await until(() => state() === 'stopped');
    await qemu.stop();
    qemu.behaviour.isRunning = true;
    await qemu.start();
    await until(() => node.commands.length === 2);
    expect(node.commands[1]).toBe('abort: the connection to QEMU was lost during a checkpoint');
    await until(() => state() === 'running');
  });

  test('does not take a RESUME after a reconnection for the end of the checkpoint before', async () => {
    const { qemu, node, state } = await setUp('primary', {
      colo: true,
      commandTimeoutUs: 150_000,
    });
    qemu.behaviour.resumeMs = -1;
    qemu.checkpoint();
    await until(() => state() === 'stopped');
    qemu.behaviour.mute.add('query-colo-status');
    await qemu.stop();
    await qemu.start();
    await until(() => state() === 'idle');
    qemu.resumeGuest();
    qemu.behaviour.mute.clear();
    await until(() => state() === 'running');
    await until(() => node.commands.length === 2);
    expect(node.commands[1]).toBe('abort: the connection to QEMU was lost during a checkpoint');
  });

  test('survives a restart of QEMU', async () => {
    const { qemu, node, driver, state } = await setUp('primary', { colo: true });
    await qemu.stop();
    await until(() => state() === 'disconnected');
    await until(() => node.commands.length === 1);
    expect(node.commands[0]).toMatch(/^guest-lost: QEMU is dead/);
    node.commands.length = 0;
    driver.requestCheckpoint();
    qemu.behaviour.colo.mode = 'none';
    await qemu.start();
    await until(() => state() === 'idle');
    qemu.startColo('primary');
    await until(() => node.commands.length === 2);
    expect(node.commands).toEqual(['begin', 'commit']);
  });

  test('is not disturbed by garbage, unknown events and answers nobody asked for', async () => {
    const { qemu, node, driver } = await setUp('primary', { colo: true });
    qemu.line('garbage');
    qemu.line('{"event": 7}');
    qemu.line('[]');
    qemu.event('SPICE_MIGRATE_COMPLETED');
    qemu.event('STOP_THE_PRESS', { status: 'colo' });
    qemu.line('{"return": {}, "id": 99999}');
    qemu.line('{"error": {"class": "X", "desc": "Y"}}');
    qemu.event('MIGRATION');
    qemu.event('COLO_EXIT', { mode: 7 });
    qemu.event('MIGRATION', { status: 'colo' });
    qemu.raw('{"event": "RES');
    qemu.line('UME"}');
    await until(() => Number(driver.status()['unknownLines']) === 3);
    await until(() => driver.status()['state'] === 'running');
    expect(driver.status()).toMatchObject({ unknownEvents: 2, lateAnswers: 2 });
    node.commands.length = 0;
    qemu.checkpoint();
    await until(() => node.commands.length === 2);
    expect(node.commands).toEqual(['begin', 'commit']);
  });

  test('lets QEMU go on when COLO has failed and the peer is alive', async () => {
    const { qemu, event } = await setUp('primary', { colo: true });
    event('peer-up');
    qemu.event('COLO_EXIT', { mode: 'primary', reason: 'error' });
    await until(() => qemu.commands.includes('x-colo-lost-heartbeat'));
  });

  test('waits for the decision when COLO has failed and the peer is lost', async () => {
    const { qemu, event, state } = await setUp('primary', { colo: true });
    event('peer-up');
    event('peer-down');
    qemu.event('COLO_EXIT', { mode: 'primary', reason: 'error' });
    await until(() => state() === 'idle');
    event('arbitration', { decision: 'hold' });
    await sleep(20);
    expect(qemu.commands).not.toContain('x-colo-lost-heartbeat');
    event('arbitration', { decision: 'release' });
    await until(() => qemu.commands.includes('x-colo-lost-heartbeat'));
  });

  test('asks for a checkpoint when the node serves alone, and leaves COLO when that fails', async () => {
    const { qemu, event, requests } = await setUp('primary', { colo: true });
    // The checkpoint does not come about: the other QEMU is gone.
    qemu.behaviour.swallow = 1;
    event('peer-up');
    event('peer-down');
    await sleep(20);
    expect(requests()).toBe(0);
    event('arbitration', { decision: 'release' });
    await until(() => requests() === 1);
    expect(qemu.commands).not.toContain('x-colo-lost-heartbeat');
    qemu.event('COLO_EXIT', { mode: 'primary', reason: 'error' });
    await until(() => qemu.commands.includes('x-colo-lost-heartbeat'));
  });

  test('stays in COLO when the node serves alone, unless the guest is stopped', async () => {
    const { qemu, event, state } = await setUp('primary', { colo: true });
    event('arbitration', { decision: 'release' });
    await sleep(20);
    expect(qemu.commands).not.toContain('x-colo-lost-heartbeat');
    qemu.behaviour.resumeMs = -1;
    qemu.checkpoint();
    await until(() => state() === 'stopped');
    event('arbitration', { decision: 'release' });
    await until(() => qemu.commands.includes('x-colo-lost-heartbeat'));
    await until(() => state() === 'idle');
  });
});

describe('QmpVmDriver on the secondary', () => {
  test('commits the checkpoint that the primary has begun, at RESUME', async () => {
    const { qemu, node, state, event } = await setUp('secondary', { colo: true });
    qemu.behaviour.resumeMs = -1;
    qemu.checkpoint();
    await until(() => state() === 'stopped');
    event('checkpoint-begun');
    await sleep(5);
    expect(node.commands).toEqual([]);
    qemu.resumeGuest();
    await until(() => node.commands.length === 1);
    expect(node.commands).toEqual(['commit']);
    // The primary's begin may be seen before the STOP.
    event('checkpoint-committed');
    event('checkpoint-begun');
    qemu.behaviour.resumeMs = 5;
    qemu.checkpoint();
    await until(() => node.commands.length === 2);
    // And after the RESUME.
    event('checkpoint-committed');
    qemu.checkpoint();
    await until(() => state() === 'stopped');
    await until(() => state() === 'running');
    event('checkpoint-begun');
    // Not inside of the call: that comes out of the engine.
    expect(node.commands).toHaveLength(2);
    await until(() => node.commands.length === 3);
    expect(node.commands).toEqual(['commit', 'commit', 'commit']);
  });

  test('tells of whole checkpoints where there is no link to the primary', async () => {
    const { qemu, node, event, state } = await setUp('secondary', { colo: true, isAlone: true });
    qemu.behaviour.resumeMs = -1;
    qemu.checkpoint();
    await until(() => node.commands.length === 1);
    expect(node.commands).toEqual(['begin']);
    // The engine says so of every begin.
    event('checkpoint-begun');
    qemu.resumeGuest();
    await until(() => state() === 'running' && node.commands.length === 2);
    expect(node.commands).toEqual(['begin', 'commit']);
  });

  test('begins with the checkpoint in which COLO starts where there is no link to the primary', async () => {
    const { qemu, node } = await setUp('secondary', { isAlone: true });
    qemu.startColo('secondary');
    await until(() => node.commands.length === 1);
    expect(node.commands).toEqual(['begin']);
  });

  test('commits neither a pause without a begin nor one that the primary has committed', async () => {
    const { qemu, node, state, event } = await setUp('secondary', { colo: true });
    qemu.behaviour.resumeMs = -1;
    qemu.checkpoint();
    await until(() => state() === 'stopped');
    qemu.resumeGuest();
    await until(() => state() === 'running');
    qemu.checkpoint();
    await until(() => state() === 'stopped');
    event('checkpoint-begun');
    event('checkpoint-committed');
    qemu.resumeGuest();
    await until(() => state() === 'running');
    await sleep(10);
    expect(node.commands).toEqual([]);
  });

  test('commits nothing when COLO fails in the midst of a checkpoint', async () => {
    const { qemu, node, state, event } = await setUp('secondary', { colo: true });
    qemu.behaviour.resumeMs = -1;
    qemu.checkpoint();
    event('checkpoint-begun');
    await until(() => state() === 'stopped');
    qemu.event('COLO_EXIT', { mode: 'secondary', reason: 'error' });
    qemu.resumeGuest();
    await sleep(20);
    expect(node.commands).toEqual([]);
  });

  test('tells QEMU when the node has taken over, once', async () => {
    const { qemu, node, event, state } = await setUp('secondary', { colo: true });
    qemu.event('COLO_EXIT', { mode: 'secondary', reason: 'error' });
    await until(() => state() === 'idle');
    expect(qemu.commands).not.toContain('x-colo-lost-heartbeat');
    event('failover');
    await until(() => qemu.commands.includes('x-colo-lost-heartbeat'));
    await sleep(20);
    event('failover');
    await sleep(20);
    expect(qemu.commands.filter((c) => c === 'x-colo-lost-heartbeat')).toHaveLength(1);
    expect(node.commands).toEqual([]);
  });

  test('takes over when somebody else has told QEMU to', async () => {
    const { qemu, node } = await setUp('secondary', { colo: true });
    qemu.event('COLO_EXIT', { mode: 'secondary', reason: 'request' });
    await until(() => node.commands.length === 1);
    expect(node.commands).toEqual(['failover']);
  });

  test('takes over when somebody else has told QEMU to after COLO had failed', async () => {
    const { qemu, node, state } = await setUp('secondary', { colo: true });
    node.answers['failover'] = { ok: false, error: 'the peer is alive' };
    qemu.event('COLO_EXIT', { mode: 'secondary', reason: 'error' });
    await until(() => state() === 'idle');
    qemu.behaviour.colo = { mode: 'none', reason: 'request' };
    qemu.checkpoint();
    await until(() => node.commands.length === 1);
    expect(node.commands).toEqual(['failover']);
    await until(() => node.reports.some((text) => text.includes('refused to take over')));
  });

  test('tells a QEMU that could not be reached at the takeover as soon as it can', async () => {
    const { qemu, event, state } = await setUp('secondary', { colo: true });
    await qemu.stop();
    await until(() => state() === 'disconnected');
    event('failover');
    await qemu.start();
    await until(() => qemu.commands.includes('x-colo-lost-heartbeat'));
  });

  test('yanks the migration of a QEMU that does not answer the takeover', async () => {
    const options = { colo: true, commandTimeoutUs: 100_000 };
    const { qemu, event } = await setUp('secondary', options);
    qemu.behaviour.mute.add('x-colo-lost-heartbeat');
    event('failover');
    await until(() => qemu.commands.includes('yank'));
    qemu.behaviour.mute.clear();
    await until(() => qemu.commands.filter((c) => c === 'x-colo-lost-heartbeat').length === 2);
  });
});

describe('QmpVmDriver and its connection', () => {
  test('waits for a QEMU that is started later, and says so once', async () => {
    const qemu = new FakeQemu(join(directory, 'qmp.sock'));
    const node = new RecordingNode();
    const driver = new QmpVmDriver({
      endpoint: { kind: 'unix', path: qemu.path },
      role: 'primary',
      reconnectMinUs: 5_000,
    });
    cleanUps.push(() => driver.close());
    await driver.start(node);
    await until(() => Number(driver.status()['connects']) >= 3);
    expect(node.reports).toEqual([expect.stringMatching(/^Cannot reach QEMU yet: .*ENOENT/)]);
    await qemu.start();
    cleanUps.push(() => qemu.stop());
    await until(() => driver.status()['state'] === 'idle');
  });

  test('asks again where QEMU stands when it was too busy to say, and sees when it dies meanwhile', async () => {
    const { qemu, node, driver, state } = await setUp('primary', {
      colo: true,
      commandTimeoutUs: 150_000,
    });
    qemu.behaviour.mute.add('query-colo-status');
    await qemu.stop();
    await qemu.start();
    const isSlow = (text: string) => text.startsWith('query-colo-status failed');
    await until(() => node.reports.some(isSlow));
    qemu.behaviour.mute.clear();
    await until(() => state() === 'running');
    driver.requestCheckpoint();
    await until(() => node.commands.length === 2);
    qemu.behaviour.mute.add('query-colo-status');
    await qemu.stop();
    await qemu.start();
    await until(() => node.reports.filter(isSlow).length > 1);
    await qemu.stop();
    await until(() => node.commands.length === 3);
    expect(node.commands[2]).toMatch(/^guest-lost: QEMU is dead/);
  });

  test('tries again when the monitor serves another client', async () => {
    const qemu = new FakeQemu(join(directory, 'qmp.sock'));
    qemu.behaviour.isSilent = true;
    await qemu.start();
    cleanUps.push(() => qemu.stop());
    const { QmpClient } = await import('./qmp-client.ts');
    const downs: string[] = [];
    const ups: string[] = [];
    const client = new QmpClient({
      endpoint: { kind: 'unix', path: qemu.path },
      handlers: {
        onUp: (version) => ups.push(version),
        onDown: (reason) => downs.push(reason),
        onEvent: () => undefined,
      },
      greetingTimeoutUs: 30_000,
      reconnectMinUs: 5_000,
    });
    cleanUps.push(() => client.close());
    client.start();
    expect(await client.execute('query-status')).toMatchObject({
      ok: false,
      failure: 'disconnected',
    });
    await until(() => downs.length === 1);
    expect(downs[0]).toMatch(/no greeting in 30 ms/);
    qemu.behaviour.isSilent = false;
    await until(() => ups.length === 1);
    expect(ups).toEqual(['7.2.22']);
    qemu.behaviour.mute.add('query-status');
    const slow = client.execute('query-status', undefined, 20_000);
    expect(await slow).toMatchObject({ ok: false, failure: 'timeout' });
    const lost = client.execute('query-status');
    client.reconnect('test');
    expect(await lost).toMatchObject({ ok: false, failure: 'disconnected', text: 'test' });
  });

  test('says when the QEMU has the other role', async () => {
    const { qemu, node } = await setUp('primary');
    qemu.behaviour.colo.mode = 'secondary';
    await qemu.stop();
    await qemu.start();
    const text = 'This QEMU is the secondary of its pair, and this node the primary';
    await until(() => node.reports.includes(text));
    expect(node.commands).toEqual([]);
  });
});
