/**
 * Two nodes, each on the monitor and on the network card of its own QEMU, which make a COLO pair: nothing here is played but the
 * guests, that only run their firmware.
 *
 *     pn: QEMU P = [primary] cp0   eth1 --- eth1   QEMU S = [secondary] cp0 :sn
 */
import type { ChildProcess } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { existsSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import type { NodeStatus } from '../../src/cli/node.ts';
import { callControl } from '../../src/control/client.ts';
import { buildShim } from '../../src/lab/qemu/image.ts';
import { startColo } from '../../src/lab/qemu/machine.ts';
import { Namespaces, whyNoNamespaces } from '../support/netns.ts';
import { PairedQemu, whyNoPair } from '../support/qemu-pair.ts';

const SCRIPT = fileURLToPath(new URL('../../bin/colo-proxy.js', import.meta.url));
const reason = whyNoNamespaces() || whyNoPair();
const title = reason === '' ? 'nodes of a COLO pair' : `nodes of a COLO pair (SKIPPED: ${reason})`;

type Name = 'pn' | 'sn';

let namespaces: Namespaces;
let directory: string;
let qemus: PairedQemu[] = [];

const file = (name: string): string => join(directory, name);

beforeEach(() => {
  if (reason !== '') return;
  directory = mkdtempSync(join(tmpdir(), 'colo-nodes-'));
  writeFileSync(file('key'), randomBytes(32).toString('base64'), { mode: 0o600 });
  namespaces = new Namespaces();
  for (const name of ['pn', 'sn'] as const) {
    namespaces.add(name, true);
    namespaces.ip(name, 'link add cp0 type veth peer name cp0-far');
    namespaces.ip(name, 'link set dev cp0 up');
    namespaces.ip(name, 'link set dev cp0-far up');
  }
  namespaces.join('pn', 'eth1', 'sn', 'eth1');
  namespaces.ip('pn', 'address add 10.99.0.1/24 dev eth1');
  namespaces.ip('sn', 'address add 10.99.0.2/24 dev eth1');
});

afterEach(async () => {
  for (const qemu of qemus) await qemu.close();
  qemus = [];
  await namespaces?.close();
  if (directory !== undefined) rmSync(directory, { recursive: true, force: true });
});

function start(name: Name, ...more: string[]): ChildProcess {
  const isPrimary = name === 'pn';
  const words = [isPrimary ? 'primary' : 'secondary', '--net', 'packet:cp0'];
  words.push('--guest', `qemu:unix:${file(`${name}.nic`)},server`);
  words.push(
    '--peer',
    `${isPrimary ? 'listen' : 'connect'}:10.99.0.1:9000`,
    '--peer-key',
    file('key'),
  );
  words.push('--vm', `qmp:unix:${file(isPrimary ? 'P.driver' : 'S.driver')}`);
  words.push('--control', file(name), ...more);
  const shell = ['sh', '-c', 'log=$1; shift; exec "$@" 2>"$log"', 'sh', file(`${name}.log`)];
  return namespaces.start(name, [...shell, process.execPath, SCRIPT, ...words]);
}

async function status(name: Name): Promise<NodeStatus> {
  const answer = await callControl(file(name), { command: 'status' });
  if (!answer.ok) throw new Error(answer.error);
  return answer.result as NodeStatus;
}

async function until(what: string, condition: () => Promise<boolean>): Promise<void> {
  const end = performance.now() + 30_000;
  for (;;) {
    if (await condition().catch(() => false)) return;
    if (performance.now() > end) throw new Error(`not in time: ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
}

const reaches = (name: Name, state: string): Promise<void> =>
  until(`${name} ${state}`, async () => (await status(name)).state === state);

const committed = async (name: Name): Promise<number> => (await status(name)).checkpoints.committed;

/** Nodes and QEMUs, protected. */
async function startPair() {
  const primary = start('pn');
  const secondary = start('sn', '--on-peer-loss', 'failover');
  // A NIC of QEMU connects once, when QEMU starts.
  await until('NICs', async () => existsSync(file('pn.nic')) && existsSync(file('sn.nic')));
  const shim = file('shim.so');
  buildShim(shim);
  const [p, s] = (['P', 'S'] as const).map((name) => {
    const nicPath = file(name === 'P' ? 'pn.nic' : 'sn.nic');
    return new PairedQemu({ name, directory, shim, nicPath });
  });
  if (p === undefined || s === undefined) throw new Error('unreachable');
  qemus.push(p, s);
  await until('monitors', async () => p.up && s.up);
  for (const name of ['pn', 'sn'] as const) {
    await until('drivers', async () => (await status(name)).vm['state'] === 'idle');
  }
  await reaches('pn', 'syncing');
  await startColo(p, s, directory);
  await reaches('pn', 'protected');
  await reaches('sn', 'protected');
  return { primary, secondary, p, s };
}

const exitOf = (child: ChildProcess): Promise<number | null> =>
  child.exitCode !== null
    ? Promise.resolve(child.exitCode)
    : new Promise((resolve) => child.once('exit', resolve));

describe.skipIf(reason !== '')(title, () => {
  test('are protected by the checkpoints of QEMU; its death makes the secondary take over', async () => {
    const { primary, p, s } = await startPair();
    for (let round = 0; round < 5; round++) {
      const before = [await committed('pn'), await committed('sn')];
      await p.execute('migrate-set-parameters', { 'x-checkpoint-delay': 60_000 });
      await until('checkpoint', async () => (await committed('pn')) > (before[0] ?? 0));
      await until('checkpoint', async () => (await committed('sn')) > (before[1] ?? 0));
    }
    expect((await status('sn')).failoverReady).toBe(true);
    await p.kill();
    expect(await exitOf(primary)).toBe(71);
    await reaches('sn', 'failed-over');
    await until('QEMU has left COLO', async () => {
      const colo = (await s.execute('query-colo-status')) as { mode: string; reason: string };
      return colo.mode === 'none' && colo.reason === 'request';
    });
    expect(await s.execute('query-status')).toMatchObject({ running: true });

    // The old primary must not serve beside it when it is started again.
    expect(await exitOf(start('pn'))).toBe(71);
  });

  test('go on unprotected when the QEMU of the secondary dies', async () => {
    const { p, s } = await startPair();
    await s.kill();
    await reaches('sn', 'unprotected');
    await reaches('pn', 'unprotected');
    expect((await status('pn')).reason).toMatch(/QEMU is dead/);
    expect((await status('sn')).failoverReady).toBe(false);
    expect(await p.execute('query-status')).toMatchObject({ running: true });
  });
});
