/**
 * docs/qemu.md, followed to the letter: its commands are run one after the other, with a namespace in the place of each host and other
 * paths and addresses, on the lab's switch and with the lab's guest and clients.
 *
 * @module
 */
import { type ChildProcess, spawnSync } from 'node:child_process';
import {
  chmodSync,
  copyFileSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { callControl } from '../../src/control/client.ts';
import type { EngineStatus } from '../../src/env/engine.ts';
import { Clients } from '../../src/lab/clients.ts';
import { type GuestImage, guestImage, whatIsMissing } from '../../src/lab/qemu/image.ts';
import { buildTopology, closeTopology, type Topology } from '../../src/lab/topology.ts';
import { whyNoNamespaces } from '../support/netns.ts';

const ROOT = fileURLToPath(new URL('../..', import.meta.url));
const PAGE = readFileSync(join(ROOT, 'docs/qemu.md'), 'utf8');

type Host = 'pn' | 'sn';
/** Names of the page, and the hosts they stand for. */
const HOSTS: Readonly<Record<string, readonly Host[]>> = {
  both: ['pn', 'sn'],
  primary: ['pn'],
  secondary: ['sn'],
  survivor: ['sn'],
  repaired: ['pn'],
};

function whyNot(): string {
  const namespaces = whyNoNamespaces();
  if (namespaces !== '') return namespaces;
  const missing = whatIsMissing();
  if (spawnSync('socat', ['-V']).error !== undefined) missing.push('socat');
  return missing.length === 0 ? '' : `needs ${missing.join(', ')}`;
}

const reason = whyNot();
const title = reason === '' ? 'docs/qemu.md' : `docs/qemu.md (SKIPPED: ${reason})`;

let directory: string;
let topology: Topology;
let clients: Clients;
let image: GuestImage;
let shells: { readonly host: Host; readonly shell: ChildProcess }[] = [];

const place = (host: Host, name: string): string => join(directory, host, name);

/** The page's commands as they are run here. */
function adapted(commands: string, host: Host): string {
  return commands
    .replaceAll('/run/colo', place(host, 'run'))
    .replaceAll('/etc/colo-proxy', place(host, 'etc'))
    .replaceAll('/srv/guest/vmlinuz', image.kernel)
    .replaceAll('/srv/guest/initrd.gz', image.initrd)
    .replaceAll('192.0.2.', '10.78.0.');
}

/** Runs the commands of one section, in their order. */
async function follow(section: string): Promise<void> {
  const text = PAGE.split(/^## /m).find((part) => part.startsWith(`${section}\n`));
  expect(text, `the page has no section ${section}`).toBeDefined();
  const blocks = [...text!.matchAll(/^```sh (\w+)\n([\s\S]*?)^```$/gm)];
  expect(blocks.length).toBeGreaterThan(0);
  for (const [, name = '', commands = ''] of blocks) {
    for (const host of HOSTS[name]!) await runOn(host, adapted(commands, host));
  }
}

/** What ends with `&` goes on after this has resolved. */
async function runOn(host: Host, commands: string): Promise<void> {
  const logPath = join(directory, `${host}.log`);
  const log = openSync(logPath, 'a');
  const shell = topology[host].spawn('sh', ['-e', '-c', commands], {
    cwd: ROOT,
    // A group of its own: what it leaves running is ended with it.
    detached: true,
    stdio: ['ignore', log, log],
    env: { ...process.env, PATH: `${directory}/bin:${process.env['PATH']}` },
  });
  shells.push({ host, shell });
  const code = await new Promise((resolve) => shell.once('exit', resolve));
  expect(code, `${commands}\n${readFileSync(logPath, 'utf8')}`).toBe(0);
}

/** Everything on the host dies at one blow. */
function kill(host: Host): void {
  for (const { shell } of shells.filter((one) => one.host === host)) {
    try {
      process.kill(-shell.pid!, 'SIGKILL');
    } catch {
      // ESRCH: nothing of it was left running.
    }
  }
  shells = shells.filter((one) => one.host !== host);
}

async function state(host: Host): Promise<string> {
  const answer = await callControl(place(host, 'run/proxy.sock'), { command: 'status' });
  return answer.ok ? (answer.result as EngineStatus).state : answer.error;
}

async function reaches(host: Host, wanted: string): Promise<void> {
  const end = performance.now() + 60_000;
  for (let last = ''; ; ) {
    last = await state(host).catch((error: Error) => error.message);
    if (last === wanted) return;
    const log = readFileSync(join(directory, `${host}.log`), 'utf8').slice(-3_000);
    if (performance.now() > end) throw new Error(`${host} is ${last}, not ${wanted}\n${log}`);
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
}

/** A guest that boots takes some seconds until it answers. */
async function served(): Promise<void> {
  for (let tries = 0; tries < 10; tries++) if (await clients.reachGuest()) return;
  throw new Error('the client does not reach the guest');
}

async function talk(name: string): Promise<void> {
  await clients.ask({ type: 'session', step: 'talk', name, bytes: 5_000 });
}

describe.skipIf(reason !== '')(title, () => {
  beforeEach(async () => {
    image = guestImage(true, () => {});
    directory = mkdtempSync(join(tmpdir(), 'colo-doc-'));
    mkdirSync(join(directory, 'bin'));
    const tool = join(directory, 'bin/colo-proxy');
    writeFileSync(tool, `#!/bin/sh\nexec ${process.execPath} ${ROOT}/bin/colo-proxy.js "$@"\n`);
    chmodSync(tool, 0o755);
    topology = buildTopology({ impaired: false, plain: false });
    clients = new Clients(topology.client, 4);
    await clients.ready;
  });

  afterEach(async () => {
    kill('pn');
    kill('sn');
    await clients.kill();
    closeTopology(topology);
    rmSync(directory, { recursive: true, force: true });
  });

  test('leads to a protected guest, through a failover, and back', async () => {
    await follow('Both hosts');
    copyFileSync(place('pn', 'etc/peer.key'), place('sn', 'etc/peer.key'));
    await follow('Nodes and machines');
    await served();
    await reaches('pn', 'syncing');
    await follow('COLO');
    await reaches('pn', 'protected');
    await reaches('sn', 'protected');

    await clients.ask({ type: 'session', step: 'open', name: 'open', openedBy: 'client' });
    await talk('open');
    const { tokens } = await clients.ask({ type: 'tokens', count: 2, intervalMs: 150 });
    expect(new Set(tokens.map(({ token }) => token)).size).toBe(2);

    kill('pn');
    topology.pn.ip(['link set eth0 down']);
    await reaches('sn', 'unprotected');
    await follow('Failover');
    await reaches('sn', 'failed-over');
    await talk('open');

    rmSync(place('pn', 'run'), { recursive: true });
    mkdirSync(place('pn', 'run'));
    topology.pn.ip(['link set eth0 up']);
    await follow('And back');
    await reaches('sn', 'protected');
    await reaches('pn', 'protected');
    expect(existsSync(place('sn', 'run/proxy.sock'))).toBe(true);
    const short = await clients.ask({ type: 'short', count: 10, concurrency: 2, bytesEach: 5_000 });
    expect(short).toMatchObject({ completed: 10, wrong: 0 });
  });
});
