/**
 * VM layers that drive two real nodes, each party a process of its own: nfnetlink_colo over netlink sockets and Unix
 * sockets, libxl's notify protocol, and what happens when the peer is lost.
 *
 *     pn: tap0 [primary] cp0   eth1 --- eth1   tap0 [secondary] cp0 :sn
 *          ^ VM layer                            ^ VM layer
 */
import { type ChildProcess, spawn } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { basename, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import type { NodeStatus } from '../../src/cli/node.ts';
import { callControl } from '../../src/control/client.ts';
import type { RecordedEvent } from '../../src/observe/events.ts';
import { NotifyClient } from '../../src/vm/notify-client.ts';
import { Namespaces, whyNoNamespaces } from '../support/netns.ts';

const SCRIPT = fileURLToPath(new URL('../../bin/colo-proxy.js', import.meta.url));
const reason = whyNoNamespaces();
const title = reason === '' ? 'VM layers' : `VM layers (SKIPPED: ${reason})`;

type Name = 'pn' | 'sn';

let namespaces: Namespaces;
let directory: string;
let layers: VmLayer[] = [];

const file = (name: string): string => join(directory, name);

beforeEach(() => {
  if (reason !== '') return;
  directory = mkdtempSync(join(tmpdir(), 'colo-vm-'));
  writeFileSync(file('key'), randomBytes(32).toString('base64'), { mode: 0o600 });
  namespaces = new Namespaces();
  for (const name of ['pn', 'sn'] as const) {
    namespaces.add(name, true);
    for (const port of ['tap0', 'cp0']) {
      namespaces.ip(name, `link add ${port} type veth peer name ${port}-far`);
      namespaces.ip(name, `link set dev ${port} up`);
      namespaces.ip(name, `link set dev ${port}-far up`);
    }
  }
  namespaces.join('pn', 'eth1', 'sn', 'eth1');
  namespaces.ip('pn', 'address add 10.99.0.1/24 dev eth1');
  namespaces.ip('sn', 'address add 10.99.0.2/24 dev eth1');
});

afterEach(async () => {
  for (const layer of layers) layer.kill();
  layers = [];
  await namespaces?.close();
  if (directory !== undefined) rmSync(directory, { recursive: true, force: true });
});

/** Starts a node; its log is kept beside its socket. */
function start(name: Name, ...more: string[]): ChildProcess {
  const role = name === 'pn' ? 'primary' : 'secondary';
  const peer = name === 'pn' ? 'listen:10.99.0.1:9000' : 'connect:10.99.0.1:9000';
  const words = [role, '--guest', 'packet:tap0', '--net', 'packet:cp0', '--peer', peer];
  words.push('--peer-key', file('key'), '--peer-timeout', '1000', '--control', file(name), ...more);
  const shell = ['sh', '-c', 'log=$1; shift; exec "$@" 2>"$log"', 'sh', file(`${name}.log`)];
  return namespaces.start(name, [...shell, process.execPath, SCRIPT, ...words]);
}

/** `colo-proxy ctl --nfnetlink`, a process with its standard input open; what it printed, as JSON lines. */
class VmLayer {
  readonly child: ChildProcess;
  readonly lines: Record<string, unknown>[] = [];
  #rest = '';

  constructor(name: Name, ...words: string[]) {
    const netns = ['netns', 'exec', basename(namespaces.path(name))];
    const command = [process.execPath, SCRIPT, 'ctl', '--json', '--nfnetlink', ...words];
    this.child = spawn('ip', [...netns, ...command], { stdio: ['pipe', 'pipe', 'inherit'] });
    this.child.stdout?.on('data', (chunk) => {
      const lines = (this.#rest + String(chunk)).split('\n');
      this.#rest = lines.pop() ?? '';
      for (const line of lines) this.lines.push(JSON.parse(line));
    });
    layers.push(this);
  }

  say(verb: string): void {
    this.child.stdin?.write(`${verb}\n`);
  }

  /** Waits for a line that has all of `wanted`, from the first not looked at yet. */
  async hears(wanted: Record<string, unknown>): Promise<void> {
    const expected = JSON.stringify(wanted);
    await until(expected, async () => {
      const line = this.lines.shift();
      if (line === undefined) return false;
      return Object.entries(wanted).every(
        ([k, v]) => JSON.stringify(line[k]) === JSON.stringify(v),
      );
    });
  }

  kill(): void {
    this.child.kill('SIGKILL');
  }
}

async function status(name: Name): Promise<NodeStatus> {
  const answer = await callControl(file(name), { command: 'status' });
  if (!answer.ok) throw new Error(answer.error);
  return answer.result as NodeStatus;
}

async function events(name: Name): Promise<RecordedEvent[]> {
  const answer = await callControl(file(name), { command: 'events', count: 1_000 });
  if (!answer.ok) throw new Error(answer.error);
  return answer.result as RecordedEvent[];
}

async function until(what: string, condition: () => Promise<boolean>): Promise<void> {
  const end = performance.now() + 20_000;
  for (;;) {
    if (await condition().catch(() => false)) return;
    if (performance.now() > end) throw new Error(`not in time: ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
}

const reaches = (name: Name, state: string): Promise<void> =>
  until(`${name} ${state}`, async () => (await status(name)).state === state);

const NOTIFY = { notify: { abi: 'nfnetlink', different: true } };

describe.skipIf(reason !== '')(title, () => {
  test.each([
    ['netlink sockets', '4711'],
    ['Unix sockets', 'unix'],
  ])('nfnetlink_colo over %s: sync, checkpoint, takeover', async (_, kind) => {
    const address = (name: Name) => (kind === 'unix' ? `unix:${file(`${name}.nfnl`)}` : kind);
    const primary = start('pn', '--nfnetlink', address('pn'));
    start('sn', '--nfnetlink', address('sn'));
    await reaches('pn', 'syncing');
    await reaches('sn', 'syncing');
    const pvm = new VmLayer('pn', address('pn'), 'init', 'watch');
    const svm = new VmLayer('sn', address('sn'), '--mode', 'secondary', 'init', 'watch');
    // The sync was wanted before the VM layer came.
    await pvm.hears(NOTIFY);
    await svm.hears({ verb: 'init', errno: 0 });
    pvm.say('checkpoint');
    svm.say('checkpoint');
    await pvm.hears({ verb: 'checkpoint', errno: 0 });
    await svm.hears({ verb: 'checkpoint', errno: 0 });
    await reaches('pn', 'protected');
    await reaches('sn', 'protected');

    // A takeover while the primary is there is refused, by its errno.
    svm.say('failover');
    await svm.hears({ verb: 'failover', errno: 16, error: 'EBUSY' });
    primary.kill('SIGKILL');
    await reaches('sn', 'unprotected');
    svm.say('failover');
    await svm.hears({ verb: 'failover', errno: 0 });
    expect((await status('sn')).state).toBe('failed-over');
  });

  test('the node ends with the netlink socket of its owner, and the older ABI starts it anew', async () => {
    start('pn', '--nfnetlink', '4711');
    start('sn');
    await reaches('pn', 'syncing');
    const first = new VmLayer('pn', '4711', 'init', 'checkpoint', 'watch');
    await first.hears({ verb: 'checkpoint', errno: 0 });
    await reaches('pn', 'protected');
    first.kill();
    await reaches('pn', 'unprotected');
    expect((await status('pn')).reason).toMatch(
      /^reset: netlink port .* is gone: its socket is closed$/,
    );

    const second = new VmLayer(
      'pn',
      '4711',
      '--abi',
      'legacy',
      'init',
      'checkpoint',
      'query',
      'watch',
    );
    await second.hears({ verb: 'init', errno: 0 });
    await second.hears({ verb: 'checkpoint', errno: 0 });
    await second.hears({ notify: { abi: 'legacy', different: false } });
    await reaches('pn', 'protected');
    const texts = (await events('pn')).filter(({ kind }) => kind === 'vm').map(({ text }) => text);
    expect(texts.filter((text) => text === 'The VM layer owns the node')).toHaveLength(2);
  });

  test("libxl's notify protocol protects a pair", async () => {
    const path = file('notify');
    start('pn', '--notify', `unix:${path}`);
    start('sn');
    await reaches('pn', 'syncing');
    let wanted = 0;
    const libxl = new NotifyClient({
      endpoint: { kind: 'unix', path },
      onCheckpointWanted: () => wanted++,
    });
    await libxl.open();
    await until('DO_CHECKPOINT', async () => wanted === 1);
    libxl.checkpoint();
    await reaches('pn', 'protected');
    await reaches('sn', 'protected');
    libxl.close();
  });

  test('--on-peer-loss failover: the secondary takes over by itself, and says on what evidence', async () => {
    const primary = start('pn', '--nfnetlink', '4711');
    start('sn', '--on-peer-loss', 'failover');
    await reaches('pn', 'syncing');
    const pvm = new VmLayer('pn', '4711', 'init', 'checkpoint', 'watch');
    await pvm.hears({ verb: 'checkpoint', errno: 0 });
    await reaches('sn', 'protected');
    primary.kill('SIGKILL');
    await reaches('sn', 'failed-over');
    const decision = (await events('sn')).find(({ kind }) => kind === 'arbitration');
    expect(decision?.fields).toMatchObject({
      decision: 'failover',
      state: 'protected',
      epoch: 1,
      failoverReady: true,
    });
  });

  test('--on-peer-loss hold: the primary holds until somebody resets it', async () => {
    start('pn', '--nfnetlink', '4711', '--on-peer-loss', 'hold');
    const secondary = start('sn');
    await reaches('pn', 'syncing');
    const pvm = new VmLayer('pn', '4711', 'init', 'checkpoint', 'watch');
    await pvm.hears({ verb: 'checkpoint', errno: 0 });
    await reaches('pn', 'protected');
    secondary.kill('SIGKILL');
    await until('held', async () => (await status('pn')).reason.includes('output is held'));
    expect((await status('pn')).state).toBe('protected');
    expect((await events('pn')).at(-1)?.fields?.['decision']).toBe('hold');
    pvm.say('reset');
    await pvm.hears({ verb: 'reset', errno: 0 });
    await reaches('pn', 'unprotected');
  });

  test('--on-peer-loss exec: one lock lets one of the two nodes serve', async () => {
    const lock = `exec:mkdir ${file('lock')} && printf %s "$COLO_PEER_LOSS" > ${file('lock')}/evidence`;
    start('pn', '--nfnetlink', '4711', '--on-peer-loss', lock);
    start('sn', '--on-peer-loss', lock);
    await reaches('pn', 'syncing');
    const pvm = new VmLayer('pn', '4711', 'init', 'checkpoint', 'watch');
    await pvm.hears({ verb: 'checkpoint', errno: 0 });
    await reaches('sn', 'protected');
    // Both live, and only the link between them fails.
    namespaces.ip('pn', 'link set dev eth1 down');
    const decisionOf = async (name: Name) =>
      (await events(name))
        .filter(({ kind }) => kind === 'arbitration')
        .map(({ fields }) => String(fields?.['decision']))
        .filter((decision) => decision !== 'ask');
    await until('both decided', async () => {
      const all = [await decisionOf('pn'), await decisionOf('sn')];
      return all.every((decisions) => decisions.length > 0);
    });
    const decisions = [...(await decisionOf('pn')), ...(await decisionOf('sn'))];
    expect([
      ['release', 'wait'],
      ['hold', 'failover'],
    ]).toContainEqual(decisions);
    expect(existsSync(join(file('lock'), 'evidence'))).toBe(true);
    expect(JSON.parse(readFileSync(join(file('lock'), 'evidence'), 'utf8'))).toMatchObject({
      state: 'protected',
      epoch: 1,
    });
  });
});
