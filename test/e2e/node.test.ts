/**
 * Two nodes as an operator starts them: processes of their own, each in its network namespace, with real interfaces, a TLS
 * link between them, and `ctl` on their sockets.
 *
 *     pn: tap0 [primary] cp0   eth1 --- eth1   tap0 [secondary] cp0 :sn
 */
import { type ChildProcess, spawnSync } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { chmodSync, existsSync, mkdtempSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import type { NodeStatus } from '../../src/cli/node.ts';
import { callControl } from '../../src/control/client.ts';
import { Namespaces, whyNoNamespaces } from '../support/netns.ts';

const SCRIPT = fileURLToPath(new URL('../../bin/colo-proxy.js', import.meta.url));
const reason = whyNoNamespaces();
const title = reason === '' ? 'two nodes' : `two nodes (SKIPPED: ${reason})`;

let namespaces: Namespaces;
let directory: string;

beforeEach(() => {
  if (reason !== '') return;
  directory = mkdtempSync(join(tmpdir(), 'colo-node-'));
  writeFileSync(file('key'), randomBytes(32).toString('base64'), { mode: 0o600 });
  namespaces = new Namespaces();
  for (const name of ['pn', 'sn']) namespaces.add(name, true);
  namespaces.join('pn', 'eth1', 'sn', 'eth1');
  namespaces.ip('pn', 'address add 10.99.0.1/24 dev eth1');
  namespaces.ip('sn', 'address add 10.99.0.2/24 dev eth1');
  for (const name of ['pn', 'sn']) {
    for (const port of ['tap0', 'cp0']) {
      namespaces.ip(name, `link add ${port} type veth peer name ${port}-far`);
      namespaces.ip(name, `link set dev ${port} up`);
      namespaces.ip(name, `link set dev ${port}-far up`);
    }
  }
});
afterEach(async () => {
  await namespaces?.close();
  if (directory !== undefined) rmSync(directory, { recursive: true, force: true });
});

const file = (name: string): string => join(directory, name);
const PORTS = ['--guest', 'packet:tap0', '--net', 'packet:cp0', '--peer-timeout', '1000'];

/** Starts a node; its log is in a file beside its socket. */
function start(namespace: 'pn' | 'sn', ...more: string[]): ChildProcess {
  const role = namespace === 'pn' ? 'primary' : 'secondary';
  const peer = namespace === 'pn' ? 'listen:10.99.0.1:9000' : 'connect:10.99.0.1:9000';
  const key = more.includes('--peer-key') ? [] : ['--peer-key', file('key')];
  const words = [role, ...PORTS, '--peer', peer, ...key, '--control', file(namespace), ...more];
  const log = file(`${namespace}.log`);
  return namespaces.start(namespace, [
    'sh',
    '-c',
    'log=$1; shift; exec "$@" 2>"$log"',
    'sh',
    log,
    process.execPath,
    SCRIPT,
    ...words,
  ]);
}

/** Runs a node that cannot start to its end. */
function run(namespace: 'pn' | 'sn', ...words: string[]): { code: number | null; err: string } {
  const all = [`--net=${namespaces.path(namespace)}`, process.execPath, SCRIPT, ...words];
  const { status, stderr } = spawnSync('nsenter', all, { encoding: 'utf8', timeout: 20_000 });
  return { code: status, err: stderr };
}

async function status(namespace: 'pn' | 'sn'): Promise<NodeStatus> {
  const answer = await callControl(file(namespace), { command: 'status' });
  if (!answer.ok) throw new Error(answer.error);
  return answer.result as NodeStatus;
}

async function until(what: string, condition: () => Promise<boolean>): Promise<void> {
  const end = performance.now() + 20_000;
  for (;;) {
    if (await condition().catch(() => false)) return;
    if (performance.now() > end) throw new Error(`not in time: ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}
const reaches = (namespace: 'pn' | 'sn', state: string): Promise<void> =>
  until(`${namespace} ${state}`, async () => (await status(namespace)).state === state);

function ctl(
  namespace: 'pn' | 'sn',
  ...words: string[]
): { code: number | null; out: string; err: string } {
  const args = [SCRIPT, 'ctl', '--control', file(namespace), ...words];
  const { status: code, stdout, stderr } = spawnSync(process.execPath, args, { encoding: 'utf8' });
  return { code, out: stdout, err: stderr };
}

const exitOf = (child: ChildProcess): Promise<number | null> =>
  child.exitCode !== null
    ? Promise.resolve(child.exitCode)
    : new Promise((resolve) => child.once('exit', resolve));

describe.skipIf(reason !== '')(title, () => {
  test('join, checkpoint through ctl, refuse a failover while both live, and part in peace', async () => {
    const primary = start('pn');
    const secondary = start('sn');
    await reaches('pn', 'syncing');
    expect(statSync(file('pn')).mode & 0o777).toBe(0o600);

    expect(ctl('pn', 'checkpoint', 'begin')).toMatchObject({
      code: 0,
      out: 'checkpoint begin: done\n',
    });
    expect((await status('sn')).state).toBe('checkpointing'); // begin returned, so the peer has begun
    expect(ctl('pn', 'checkpoint', 'commit')).toMatchObject({ code: 0 });
    expect(await status('pn')).toMatchObject({
      role: 'primary',
      state: 'protected',
      epoch: 1,
      peer: { connected: true },
      checkpoints: { committed: 1 },
      link: { security: 'tls-psk' },
    });
    expect(await status('sn')).toMatchObject({ state: 'protected', failoverReady: true });

    const refused = ctl('sn', 'failover');
    expect(refused.code).toBe(1);
    expect(refused.err).toMatch(/^colo-proxy: .+\n$/);
    expect(JSON.parse(ctl('sn', 'failover', '--json').out)).toMatchObject({ ok: false });

    primary.kill('SIGTERM');
    expect(await exitOf(primary)).toBe(0);
    expect(existsSync(file('pn'))).toBe(false);
    await reaches('sn', 'unprotected');
    expect(ctl('sn', 'events').out).toContain('goodbye: shutting down (SIGTERM)');
    secondary.kill('SIGINT');
    expect(await exitOf(secondary)).toBe(0);
  });

  test('the exec driver makes the first checkpoint by itself', async () => {
    const ctlCommand = `${process.execPath} ${SCRIPT} ctl checkpoint`;
    const command = `echo "$COLO_REQUEST" > ${file('request')}; ${ctlCommand} begin && ${ctlCommand} commit`;
    start('pn', '--vm', `exec:${command}`);
    start('sn');
    await reaches('pn', 'protected');
    const request = spawnSync('cat', [file('request')], { encoding: 'utf8' }).stdout;
    expect(JSON.parse(request)).toMatchObject({ id: 1, cause: 'sync' });
  });

  test('a secondary that hangs is lost as one that died, and found again', async () => {
    start('pn');
    const secondary = start('sn');
    await reaches('pn', 'syncing');
    secondary.kill('SIGSTOP');
    const stoppedMs = performance.now();
    await reaches('pn', 'unprotected');
    expect(performance.now() - stoppedMs).toBeLessThan(5_000); // deadline 1 s, and a loaded machine
    secondary.kill('SIGCONT');
    await reaches('pn', 'syncing');
  });

  test('a secondary takes over when the primary was killed', async () => {
    const primary = start('pn');
    const secondary = start('sn');
    await reaches('pn', 'syncing');
    expect(ctl('pn', 'checkpoint', 'commit').code).toBe(0);
    await reaches('sn', 'protected');
    primary.kill('SIGKILL');
    await until('peer lost', async () => !(await status('sn')).peer.connected);
    expect(ctl('sn', 'failover')).toMatchObject({ code: 0, out: 'failover: done\n' });
    expect((await status('sn')).state).toBe('failed-over');
    secondary.kill('SIGKILL'); // beside one that serves a primary would end by itself
    await exitOf(secondary);
    const again = start('pn'); // finds the dead one's socket file, and replaces it
    await until('primary is back', async () => (await status('pn')).role === 'primary');
    again.kill('SIGTERM');
    expect(await exitOf(again)).toBe(0);
  });

  test('a peer with another key is refused, counted, and disturbs nothing', async () => {
    writeFileSync(file('other'), randomBytes(32).toString('hex'), { mode: 0o600 });
    start('pn');
    start('sn', '--peer-key', file('other'));
    await until('a refusal', async () => {
      const { refused } = (await status('pn')).link;
      return Object.values(refused).some((count) => count > 0);
    });
    expect(await status('pn')).toMatchObject({ state: 'unprotected', peer: { connected: false } });
  });

  test('the configuration file says what the flags do not', async () => {
    const lines = ['compare-timeout: 50', 'log-level: warn', 'limits:', '  flows-max: 100'];
    writeFileSync(file('c.yaml'), lines.join('\n'));
    start('pn', '--config', file('c.yaml'));
    await until('it answers', async () => (await status('pn')).state === 'unprotected');
  });

  test('a node that cannot start says why in one line, with the right code', () => {
    const peer = ['--peer', 'listen:10.99.0.1:9000'];
    const key = ['--peer-key', file('key')];
    const guest = ['--guest', 'packet:tap0'];
    const cases: [string[], number, string][] = [
      [['--guest', 'packet:nowhere', '--net', 'packet:cp0', ...peer, ...key], 71, 'nowhere'],
      [[...guest, '--net', 'packet:cp0', '--peer', 'listen:10.1.2.3:9000', ...key], 71, '10.1.2.3'],
      [[...guest, '--net', 'floppy:0', ...peer, ...key], 64, 'floppy'],
      [[...guest, '--net', 'packet:cp0', ...peer], 64, '--peer-key'],
      [[...guest, '--net', 'packet:cp0', ...peer, '--peer-key', file('none')], 78, 'none'],
    ];
    for (const [words, code, text] of cases) {
      const ended = run('pn', 'primary', ...words, '--log-level', 'silent');
      expect(ended.code, ended.err).toBe(code);
      expect(ended.err).toMatch(/^colo-proxy: .+\n$/);
      expect(ended.err).toContain(text);
    }
    chmodSync(file('key'), 0o644);
    const words = [...guest, '--net', 'packet:cp0', ...peer, ...key, '--log-level', 'silent'];
    expect(run('pn', 'primary', ...words).code).toBe(78);
  });

  test('a node whose interface is deleted ends with the code of the operating system', async () => {
    const primary = start('pn');
    await until('it answers', async () => (await status('pn')).state === 'unprotected');
    namespaces.ip('pn', 'link delete tap0');
    expect(await exitOf(primary)).toBe(71);
  });
});
