/**
 * The raw forward device in the place of a peer link, on hosts with bridges as in the RFC; the proxies are put in by `attach`.
 *
 *     client ns: sw0 --- pn: uplink - br0 - tap0 --- g0 :pvm ns
 *                 |            eth1
 *                 |            eth1
 *                 +----- sn: uplink - br0 - tap0 --- g0 :svm ns
 */
import { spawnSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import type { NodeStatus } from '../../src/cli/node.ts';
import { callControl } from '../../src/control/client.ts';
import type { ControlRequest } from '../../src/control/protocol.ts';
import { Namespaces, whyNoNamespaces } from '../support/netns.ts';

const COLO_PROXY = fileURLToPath(new URL('../../bin/colo-proxy.js', import.meta.url));
const hasSocat = spawnSync('socat', ['-V']).status === 0;
const reason = whyNoNamespaces() || (hasSocat ? '' : 'needs socat');
const title = reason === '' ? 'raw forward device' : `raw forward device (SKIPPED: ${reason})`;

const GUEST = '10.77.0.2';
const NODES = ['pn', 'sn'] as const;
const GUESTS = ['pvm', 'svm'] as const;
type NodeName = (typeof NODES)[number];

const pause = (ms: number) => new Promise((resolve) => setTimeout(resolve, ms));

async function until(condition: () => boolean | Promise<boolean>): Promise<void> {
  const end = performance.now() + 10_000;
  while (!(await condition())) {
    if (performance.now() > end) throw new Error('condition not met in time');
    await pause(50);
  }
}

describe.skipIf(reason !== '').each(['packet', 'nfqueue'])(`${title}, primary by %s`, (mode) => {
  let spaces: Namespaces;
  let directory: string;

  const socketOf = (name: NodeName): string => join(directory, name);

  function coloProxy(name: NodeName, ...words: readonly string[]): void {
    const command = [`--net=${spaces.path(name)}`, process.execPath, COLO_PROXY, ...words];
    const { status, stderr } = spawnSync('nsenter', command, { encoding: 'utf8' });
    expect({ status, stderr }).toEqual({ status: 0, stderr: '' });
  }

  async function call(name: NodeName, request: ControlRequest): Promise<unknown> {
    const answer = await callControl(socketOf(name), request);
    if (!answer.ok) throw new Error(answer.error);
    return answer.result;
  }

  const status = async (name: NodeName) => (await call(name, { command: 'status' })) as NodeStatus;

  /** What a VM layer does, but for the copying. */
  async function checkpoint(): Promise<void> {
    for (const step of ['begin', 'commit'] as const) {
      for (const name of NODES) await call(name, { command: 'checkpoint', step });
    }
  }

  beforeEach(async () => {
    directory = mkdtempSync(join(tmpdir(), 'colo-forward-'));
    spaces = new Namespaces();
    for (const name of ['client', 'pvm', 'svm']) spaces.add(name);
    spaces.ip('client', 'link add sw0 type bridge forward_delay 0 mcast_snooping 0');
    spaces.ip('client', 'link set sw0 up');
    spaces.ip('client', 'addr add 10.77.0.1/24 dev sw0');
    for (const name of NODES) spaces.add(name, true);
    spaces.join('pn', 'eth1', 'sn', 'eth1');
    for (const [name, guest] of [
      ['pn', 'pvm'],
      ['sn', 'svm'],
    ] as const) {
      spaces.join('client', `p-${name}`, name, 'uplink');
      spaces.ip('client', `link set p-${name} master sw0`);
      spaces.join(guest, 'g0', name, 'tap0');
      spaces.ip(name, 'link add br0 type bridge forward_delay 0 mcast_snooping 0');
      spaces.ip(name, 'link set br0 up');
      for (const port of ['uplink', 'tap0']) spaces.ip(name, `link set ${port} master br0`);
    }
    // The secondary's guest first: from then on only one of the two is heard.
    const place = ['--tap', 'tap0', '--bridge', 'br0', '--forward-dev', 'eth1'];
    coloProxy('sn', 'attach', 'secondary', ...place);
    coloProxy('pn', 'attach', 'primary', '--mode', mode, ...place);
    for (const guest of GUESTS) {
      spaces.ip(guest, 'link set g0 address 52:54:00:c0:10:01');
      spaces.ip(guest, `addr add ${GUEST}/24 dev g0`);
      await spaces.serve(guest, GUEST, 80);
    }
    for (const name of NODES) {
      const role = name === 'pn' ? 'primary' : 'secondary';
      const ports =
        name === 'pn' && mode === 'nfqueue'
          ? ['--guest', 'nfqueue:64,tap=tap0,bridge=br0']
          : ['--guest', 'packet:tap0', '--net', 'packet:cp-tap0'];
      const words = [
        role,
        ...ports,
        '--forward-dev',
        'eth1',
        '--control',
        socketOf(name),
        '--json',
      ];
      const command = 'log=$1; shift; exec "$@" 2>"$log"';
      const program = [process.execPath, COLO_PROXY, ...words];
      spaces.start(name, ['sh', '-c', command, 'sh', `${socketOf(name)}.log`, ...program]);
    }
    for (const name of NODES) {
      await until(() =>
        status(name).then(
          ({ state }) => state === 'syncing',
          () => false,
        ),
      );
    }
    // A guest of which nothing was ever heard has no MAC address for a port of queues.
    spaces.run('pvm', ['bash', '-c', '{ echo > /dev/tcp/10.77.0.1/9; } 2>&1 || :']);
    await checkpoint();
  });
  afterEach(async () => {
    await spaces.close();
    rmSync(directory, { recursive: true, force: true });
  });

  test('carries both guests, and what they say is compared', async () => {
    const bytes = 3_000_000;
    for (const kind of ['download', 'upload']) {
      const result = await spaces.endpoint('client', kind, GUEST, 80, bytes, 10_000);
      expect(result).toMatchObject({ ok: true, bytes });
    }
    const { state, compared, divergences, ports } = await status('pn');
    expect({ state, divergences }).toEqual({ state: 'protected', divergences: 0 });
    expect(compared).toBeGreaterThan(40);
    expect(ports.net.sentBytes).toBeGreaterThan(bytes);
    const secondary = await status('sn');
    expect(secondary.state).toBe('protected');
    // G3: silent on the network.
    expect(secondary.ports.net.sentFrames).toBe(0);
    expect(secondary.link.sentBytes).toBeGreaterThan(bytes);
  });

  test('asks for a checkpoint when the guests differ, and releases at its commit', async () => {
    const { checkpoints } = await status('pn');
    for (const guest of GUESTS) {
      const server = ['TCP-LISTEN:81,reuseaddr,fork', `SYSTEM:echo I am the ${guest}`];
      spaces.start(guest, ['socat', ...server]);
    }
    for (const guest of GUESTS) await spaces.listens(guest, 'tcp', 81);
    const heard = spaces.command('client', ['bash', '-c', `exec cat < /dev/tcp/${GUEST}/81`]);
    await until(async () => (await status('pn')).checkpoints.requested > checkpoints.requested);
    expect(await Promise.race([heard, pause(300)])).toBeUndefined();
    expect((await status('pn')).divergences).toBe(1);
    expect(readFileSync(`${socketOf('pn')}.log`, 'utf8')).toContain('different-bytes');
    await checkpoint();
    expect(await heard).toBe('I am the pvm\n');
  });

  test('needs no daemon on the secondary for datagrams, but for TCP', async () => {
    process.kill((await status('sn')).process.pid, 'SIGTERM');
    await until(() =>
      status('sn').then(
        () => false,
        () => true,
      ),
    );
    coloProxy('sn', 'detach', '--tap', 'tap0');
    // The RFC's isolated bridge, and nobody who translates.
    spaces.ip('sn', 'link add br1 type bridge forward_delay 0 mcast_snooping 0');
    spaces.ip('sn', 'link set br1 up');
    for (const port of ['tap0', 'eth1']) spaces.ip('sn', `link set ${port} master br1`);
    for (const guest of GUESTS) {
      spaces.start(guest, ['socat', 'UDP-LISTEN:82,fork', 'SYSTEM:cat']);
    }
    for (const guest of GUESTS) await spaces.listens(guest, 'udp', 82);
    // Nobody answers the SVM's ARP either: it has to hear that of the client.
    spaces.ip('client', 'neigh flush dev sw0');
    const before = (await status('pn')).compared;
    const datagram = ['sh', '-c', `echo hello | socat -t 2 - UDP:${GUEST}:82`];
    expect(await spaces.command('client', datagram)).toBe('hello\n');
    const { compared, divergences, state } = await status('pn');
    expect({ divergences, state }).toEqual({ divergences: 0, state: 'protected' });
    expect(compared).toBe(before + 1);
    const segment = spaces.endpoint('client', 'download', GUEST, 80, 1_000);
    await until(async () => (await status('pn')).divergences > 0);
    await call('pn', { command: 'reset', reason: 'seen' });
    await segment;
  });

  test('goes on with an open connection after a failover', async () => {
    for (const guest of GUESTS) {
      const htb = 'qdisc add dev g0 root handle 1: htb default 1';
      const rate = 'class add dev g0 parent 1: classid 1:1 htb rate 40mbit';
      for (const line of [htb, rate]) spaces.run(guest, ['tc', ...line.split(' ')]);
    }
    const bytes = 20_000_000;
    const download = spaces.endpoint('client', 'download', GUEST, 80, bytes);
    await until(async () => (await status('pn')).compared > 50);
    // The whole host is dead: with queues that are bypassed its guest would serve on.
    spaces.ip('pn', 'link set uplink down');
    process.kill((await status('pn')).process.pid, 'SIGKILL');
    await call('sn', { command: 'failover', force: false });
    expect(await download).toMatchObject({ ok: true, bytes });
    const { state, ports } = await status('sn');
    expect(state).toBe('failed-over');
    expect(ports.net.sentBytes).toBeGreaterThan(bytes / 2);
  });
});
