/**
 * `colo-proxy attach` and `detach` on a bridge of its own:
 *
 *     client ns: c0 --- uplink :host ns: br0: tap0 --- g0 :guest ns
 *                                        tap1 (another guest's)
 */
import { spawnSync } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import type { NodeStatus } from '../../src/cli/node.ts';
import { callControl } from '../../src/control/client.ts';
import { Namespaces, whyNoNamespaces } from '../support/netns.ts';

const COLO_PROXY = fileURLToPath(new URL('../../bin/colo-proxy.js', import.meta.url));

/** The two kinds of tables that a host may use. */
const BACKENDS = ['legacy', 'nft'] as const;
type BackendName = (typeof BACKENDS)[number];

function whyNot(): string {
  const missing = BACKENDS.map((name) => `iptables-${name}`).filter(
    (program) => spawnSync(program, ['--version']).status !== 0,
  );
  return whyNoNamespaces() || (missing.length > 0 ? `needs ${missing.join(', ')}` : '');
}

const reason = whyNot();
const title = reason === '' ? 'attach' : `attach (SKIPPED: ${reason})`;

async function until(
  condition: () => boolean | Promise<boolean>,
  timeoutMs = 10_000,
): Promise<void> {
  const end = performance.now() + timeoutMs;
  while (!(await condition())) {
    if (performance.now() > end) throw new Error('condition not met in time');
    await pause(50);
  }
}

const pause = (ms: number) => new Promise((resolve) => setTimeout(resolve, ms));

/** 16 Mbit/s. */
const HTB = ['htb', 'default', '1'];
const HTB_CLASS = ['classid', '1:1', 'htb', 'rate', '16mbit'];

interface Ended {
  readonly code: number | null;
  readonly out: string;
  readonly err: string;
}

describe.skipIf(reason !== '')(title, () => {
  let spaces: Namespaces;

  beforeEach(async () => {
    spaces = new Namespaces();
    spaces.add('client');
    spaces.add('host', true);
    spaces.add('guest');
    spaces.join('client', 'c0', 'host', 'uplink');
    spaces.join('guest', 'g0', 'host', 'tap0');
    spaces.ip('host', 'tuntap add tap1 mode tap');
    spaces.ip('host', 'link add br0 type bridge forward_delay 0 mcast_snooping 0');
    for (const name of ['uplink', 'tap0', 'tap1']) spaces.ip('host', `link set ${name} master br0`);
    for (const name of ['tap1', 'br0']) spaces.ip('host', `link set ${name} up`);
    for (const [name, device, last] of [
      ['client', 'c0', 1],
      ['guest', 'g0', 2],
    ] as const) {
      spaces.ip(name, `addr add 10.77.0.${last}/24 dev ${device}`);
      spaces.ip(name, `addr add fd77::${last}/64 dev ${device} nodad`);
    }
    // As on a host where nothing sends bridged packets through iptables.
    const off = 'for f in /proc/sys/net/bridge/bridge-nf-call-*; do echo 0 > $f; done';
    spaces.run('host', ['sh', '-c', off]);
    // The kernel keeps a table that was used once: make them, so that before and after can be equal.
    for (const backend of BACKENDS) {
      for (const program of [`iptables-${backend}`, `ip6tables-${backend}`]) {
        spaces.run('host', [program, '-t', 'mangle', '-N', 'x']);
        spaces.run('host', [program, '-t', 'mangle', '-X', 'x']);
      }
    }
    // Carriers come up by themselves, a moment later.
    await until(() => answers(4) && answers(6) && /br0: .* state UP/.test(hostState()));
  });
  afterEach(() => spaces.close());

  function coloProxy(...words: readonly string[]): Ended {
    const path = spaces.path('host');
    const command = [`--net=${path}`, process.execPath, COLO_PROXY, ...words];
    const { status, stdout, stderr } = spawnSync('nsenter', command, { encoding: 'utf8' });
    return { code: status, out: stdout, err: stderr };
  }

  /** Everything that attach may touch, without what counts or passes by itself. */
  function hostState(): string {
    const script = [
      'iptables-legacy-save; ip6tables-legacy-save; iptables-nft-save; ip6tables-nft-save',
      'ip -d link; bridge -d link; bridge vlan; ip -d addr',
      'grep . /proc/sys/net/bridge/* /proc/sys/net/ipv*/conf/*/arp_ignore /proc/sys/net/ipv6/conf/*/disable_ipv6',
    ].join('\n');
    return spaces
      .run('host', ['sh', '-c', `(${script}) 2>/dev/null`])
      .replace(/^#.*$/gm, '')
      .replace(/\[\d+:\d+\]/g, '')
      .replace(/_timer +\d+\.\d+/g, '');
  }

  /** Packets that the rules of a chain have matched. */
  function matched(backend: BackendName, family: 4 | 6, chain: string): number {
    const program = family === 4 ? `iptables-${backend}` : `ip6tables-${backend}`;
    const text = spaces.run('host', [program, '-t', 'mangle', '-nvxL', chain]);
    return Number(/^ *(\d+) .*NFQUEUE/m.exec(text)?.[1]);
  }

  /** Whether the guest's kernel answers: it refuses a connection to a port where nobody listens. */
  const answers = (family: 4 | 6): boolean => {
    const address = family === 4 ? '10.77.0.2' : 'fd77::2';
    const words = ['timeout', '1', 'bash', '-c', `exec 3<>/dev/tcp/${address}/9`];
    const { stderr } = spawnSync('nsenter', [`--net=${spaces.path('client')}`, ...words]);
    return stderr.includes('Connection refused');
  };

  describe.each(BACKENDS)('iptables-%s', (backend) => {
    const iptables = ['--iptables', `iptables-${backend}`];
    const attach = (tap: string, ...words: readonly string[]) =>
      coloProxy('attach', 'primary', '--tap', tap, '--bridge', 'br0', ...iptables, ...words);

    test('leaves the host as it was', () => {
      const before = hostState();
      expect(attach('tap0', '--dry-run')).toMatchObject({ code: 0, err: '' });
      expect(hostState()).toBe(before);

      expect(attach('tap0', '--queue', '8')).toEqual({
        code: 0,
        err: '',
        out: 'tap0 of br0 attached: the daemon takes --guest nfqueue:8,tap=tap0,bridge=br0\n',
      });
      const attached = hostState();
      expect(attached).not.toBe(before);
      expect(attach('tap0', '--queue', '8').out).toMatch(/is attached already/);
      expect(hostState()).toBe(attached);

      expect(coloProxy('detach', '--tap', 'tap0')).toEqual({
        code: 0,
        err: '',
        out: 'detached tap0\n',
      });
      expect(hostState()).toBe(before);
      expect(coloProxy('detach', '--tap', 'tap0').out).toBe('tap0 is not attached\n');
      expect(hostState()).toBe(before);
    });

    test('prints with --dry-run what a shell can run', () => {
      const script = attach('tap0', '--dry-run', '--queue', '8').out;
      const before = hostState();
      spaces.run('host', ['sh', '-e', '-c', script]);
      const pasted = hostState();
      expect(attach('tap0').out).toMatch(/is attached already: .* nfqueue:8,/);
      expect(hostState()).toBe(pasted);
      const undo = coloProxy('detach', '--tap', 'tap0', '--dry-run').out;
      spaces.run('host', ['sh', '-e', '-c', undo]);
      expect(hostState()).toBe(before);
    });

    test('keeps several guests apart, and the last one gives the bridge its switches back', () => {
      const before = hostState();
      attach('tap0');
      const one = hostState();
      const { out } = attach('tap1', '--json');
      expect(JSON.parse(out)).toMatchObject({ ok: true, tap: 'tap1', queue: 66 });
      expect(coloProxy('detach', '--tap', 'tap1').code).toBe(0);
      expect(hostState()).toBe(one);
      attach('tap1');
      coloProxy('detach', '--tap', 'tap0');
      expect(hostState()).toContain('nf_call_iptables 1 nf_call_ip6tables 1');
      coloProxy('detach', '--tap', 'tap1');
      expect(hostState()).toBe(before);
    });

    test('detaches a tap that is gone', () => {
      attach('tap1');
      spaces.ip('host', 'link del tap1');
      const gone = coloProxy('detach', '--tap', 'tap1');
      expect(gone).toMatchObject({ code: 0, out: 'detached tap1\n' });
      expect(hostState()).not.toMatch(/colo-proxy|nf_call_ip6?tables 1/);
    });

    test('completes what was cut short', () => {
      attach('tap0');
      const complete = hostState();
      const rules = coloProxy('detach', '--tap', 'tap0', '--dry-run').out.trim().split('\n');
      for (const count of [1, 2, 3, 4, 5]) {
        spaces.run('host', ['sh', '-e', '-c', rules.slice(0, count).join('\n')]);
        expect(hostState()).not.toBe(complete);
        expect(attach('tap0').code).toBe(0);
        // The order of rules of one chain does not matter: only one matches a packet.
        expect(hostState()).toBe(complete);
      }
    });

    test('steers the packets of both directions and families, and passes them without a daemon', () => {
      attach('tap0');
      expect([answers(4), answers(6)]).toEqual([true, true]);
      for (const family of [4, 6] as const) {
        expect(matched(backend, family, 'PREROUTING')).toBeGreaterThan(0);
        expect(matched(backend, family, 'POSTROUTING')).toBeGreaterThan(0);
      }
    });

    test('stops them without a daemon, where it is told so', async () => {
      attach('tap0', '--no-bypass');
      expect([answers(4), answers(6)]).toEqual([false, false]);
      coloProxy('detach', '--tap', 'tap0');
      // Neighbour discovery has failed meanwhile, and tries again in its own time.
      await until(() => answers(4) && answers(6));
    });
  });

  describe('in packet mode', () => {
    const attach = (...words: readonly string[]) =>
      coloProxy('attach', 'secondary', '--tap', 'tap0', '--bridge', 'br0', ...words);

    test('leaves the host as it was', async () => {
      spaces.ip('host', 'link set dev tap0 type bridge_slave isolated on learning off');
      spaces.run('host', ['sh', '-c', 'echo 0 > /proc/sys/net/ipv6/conf/tap0/disable_ipv6']);
      await until(
        () => /fe80.*\n.*\n.*tap1/.test(hostState()) && !hostState().includes('tentative'),
      );
      const before = hostState();
      expect(attach('--dry-run')).toMatchObject({ code: 0, err: '' });
      expect(hostState()).toBe(before);

      expect(attach()).toEqual({
        code: 0,
        err: '',
        out: 'tap0 of br0 attached: the daemon takes --guest packet:tap0 --net packet:cp-tap0\n',
      });
      expect(answers(4)).toBe(false);
      const links = spaces.ip('host', '-d link show cp-tap0-b');
      expect(links).toMatch(/master br0 .*isolated on/s);
      await until(() => /cp-tap0-b@cp-tap0: .*LOWER_UP.* state UP/.test(hostState()));
      const attached = hostState();
      expect(attach().out).toMatch(/is attached already/);
      expect(hostState()).toBe(attached);

      expect(coloProxy('detach', '--tap', 'tap0')).toMatchObject({ code: 0, err: '' });
      // The link-local address comes back by itself.
      await until(() => hostState() === before);
      expect(coloProxy('detach', '--tap', 'tap0').out).toBe('tap0 is not attached\n');
    });

    test('prints with --dry-run what a shell can run', async () => {
      const before = hostState();
      spaces.run('host', ['sh', '-e', '-c', attach('--dry-run').out]);
      expect(attach().out).toMatch(/is attached already/);
      const undo = coloProxy('detach', '--tap', 'tap0', '--dry-run').out;
      spaces.run('host', ['sh', '-e', '-c', undo]);
      await until(() => hostState() === before);
    });

    test('completes what was cut short, at any step', () => {
      const steps = attach('--dry-run').out.trim().split('\n');
      attach();
      const complete = spaces.ip('host', 'link').replace(/^\d+: |link\/ether \S+/gm, '');
      coloProxy('detach', '--tap', 'tap0');
      for (let count = 1; count < steps.length; count++) {
        spaces.run('host', ['sh', '-e', '-c', steps.slice(0, count).join('\n')]);
        expect(attach()).toMatchObject({ code: 0, err: '' });
        const links = spaces.ip('host', 'link').replace(/^\d+: |link\/ether \S+/gm, '');
        expect(links.replace(/state \S+/g, '')).toBe(complete.replace(/state \S+/g, ''));
        expect(coloProxy('detach', '--tap', 'tap0').code).toBe(0);
      }
    });

    test('takes back what it has done when a step fails', async () => {
      const before = hostState();
      const folder = mkdtempSync(join(tmpdir(), 'colo-attach-'));
      try {
        // An `ip` that cannot take the tap out of its bridge: the last step fails.
        const script = `#!/bin/sh\ncase "$*" in *"dev tap0 nomaster") echo broken >&2; exit 2;; *) PATH=${process.env['PATH']} exec ip "$@";; esac\n`;
        writeFileSync(join(folder, 'ip'), script, { mode: 0o755 });
        const words = ['attach', 'secondary', '--tap', 'tap0', '--bridge', 'br0', '-v'];
        const env = { ...process.env, PATH: `${folder}:${process.env['PATH']}` };
        const command = [`--net=${spaces.path('host')}`, process.execPath, COLO_PROXY, ...words];
        const ended = spawnSync('nsenter', command, { encoding: 'utf8', env });
        expect(ended.status).toBe(71);
        expect(ended.stderr).toMatch(/Failed: ip link set dev tap0 nomaster: broken\n/);
        expect(ended.stderr).toMatch(/\ncolo-proxy: Nothing has been changed\n$/);
        await until(() => hostState() === before);
      } finally {
        rmSync(folder, { recursive: true });
      }
    });
  });

  describe('while a guest is downloaded from', () => {
    const BYTES = 60_000_000;

    /** A download that is under way, for half a minute, or until the rest is taken as fast as it comes. */
    async function startDownload() {
      spaces.run('guest', ['tc', 'qdisc', 'add', 'dev', 'g0', 'root', 'handle', '1:', ...HTB]);
      spaces.run('guest', ['tc', 'class', 'add', 'dev', 'g0', 'parent', '1:', ...HTB_CLASS]);
      await spaces.serve('guest', '10.77.0.2', 80);
      const done = spaces.endpoint('client', 'download', '10.77.0.2', 80, BYTES);
      const counter = ['cat', '/sys/class/net/c0/statistics/rx_bytes'];
      await until(() => Number(spaces.run('client', counter)) > 100_000);
      const rest = () => {
        spaces.run('guest', ['tc', 'qdisc', 'del', 'dev', 'g0', 'root']);
        return done;
      };
      return { rest };
    }

    test('rules come and go without a daemon', async () => {
      const download = await startDownload();
      for (let round = 0; round < 3; round++) {
        const words = ['--tap', 'tap0', '--bridge', 'br0', '--iptables', 'iptables-nft'];
        expect(coloProxy('attach', 'primary', ...words).code).toBe(0);
        await until(() => matched('nft', 4, 'PREROUTING') > 10);
        expect(coloProxy('detach', '--tap', 'tap0').code).toBe(0);
      }
      expect(await download.rest()).toMatchObject({ ok: true, bytes: BYTES });
    });

    test.each([
      [
        'nfqueue',
        'tap0 of br0 attached: the daemon takes --guest nfqueue:64,tap=tap0,bridge=br0\n',
      ],
      [
        'packet',
        'tap0 of br0 attached: the daemon takes --guest packet:tap0 --net packet:cp-tap0\n',
      ],
    ])('a daemon comes and goes, in mode %s', async (mode, said) => {
      const before = hostState();
      const download = await startDownload();
      const place = ['--tap', 'tap0', '--bridge', 'br0', '--mode', mode];
      const { out, err } = coloProxy('attach', 'primary', ...place);
      expect({ out, err }).toEqual({ out: said, err: '' });
      const ports = said
        .trim()
        .replace(/^.* takes /, '')
        .split(' ');
      const peer = ['--peer', 'listen:127.0.0.1:9000', '--peer-insecure'];
      const control = join(mkdtempSync(join(tmpdir(), 'colo-attach-')), 'control');
      const node = ['primary', ...ports, ...peer, '--control', control, '--log-level', 'error'];
      const daemon = spaces.start('host', [process.execPath, COLO_PROXY, ...node]);
      const ended = new Promise((resolve) => daemon.once('exit', resolve));
      const released = () =>
        callControl(control, { command: 'status' }).then(
          (answer) => (answer.ok ? (answer.result as NodeStatus).released : 0),
          () => 0,
        );
      await until(async () => (await released()) > 20);
      daemon.kill('SIGTERM');
      expect(await ended).toBe(0);
      rmSync(dirname(control), { recursive: true });
      expect(coloProxy('detach', '--tap', 'tap0').code).toBe(0);
      expect(await download.rest()).toMatchObject({ ok: true, bytes: BYTES });
      await until(() => hostState() === before);
    });
  });

  test('leaves the forward device as it was', () => {
    spaces.run('host', ['ip', 'link', 'set', 'tap1', 'nomaster', 'down', 'alias', 'to the sn']);
    const before = hostState();
    const place = ['--tap', 'tap0', '--bridge', 'br0', '--forward-dev', 'tap1'];
    expect(coloProxy('attach', 'primary', ...place)).toEqual({
      code: 0,
      err: '',
      out: 'tap0 of br0 attached: the daemon takes --guest nfqueue:64,tap=tap0,bridge=br0 --forward-dev tap1\n',
    });
    const attached = hostState();
    expect(attached).toMatch(/tap1: <[^>]*\bUP\b/);
    expect(coloProxy('attach', 'primary', ...place).out).toMatch(/is attached already/);
    expect(hostState()).toBe(attached);
    expect(coloProxy('detach', '--tap', 'tap0').code).toBe(0);
    expect(hostState()).toBe(before);
  });

  test('uses the tables that the host uses', () => {
    spaces.run('host', ['iptables-legacy', '-A', 'INPUT', '-j', 'ACCEPT']);
    const { out } = coloProxy('attach', 'primary', '--tap', 'tap0', '--bridge', 'br0', '--dry-run');
    expect(out).toMatch(/^iptables-legacy -w 5 -t mangle/);
  });

  test('takes back what it has done when a step fails', () => {
    const before = hostState();
    // A program that knows IPv4 only: the third step fails.
    const script = `mkdir -p $D && ln -s $(command -v iptables-nft) $D/iptables && ln -s $(command -v iptables-nft-save) $D/iptables-save &&
      printf '#!/bin/sh\\ncase "$*" in *-I*) echo broken >&2; exit 4;; *) exec ip6tables-nft "$@";; esac' > $D/ip6tables && chmod +x $D/ip6tables &&
      printf '#!/bin/sh\\nexec ip6tables-nft-save' > $D/ip6tables-save && chmod +x $D/ip6tables-save`;
    const folder = spawnSync('mktemp', ['-d'], { encoding: 'utf8' }).stdout.trim();
    try {
      const env = { ...process.env, D: folder };
      expect(spawnSync('sh', ['-c', script], { env }).status).toBe(0);
      const words = ['attach', 'primary', '--tap', 'tap0', '--bridge', 'br0'];
      const ended = coloProxy(...words, '--iptables', `${folder}/iptables`);
      expect(ended).toMatchObject({ code: 71, out: '' });
      expect(ended.err).toMatch(/^colo-proxy: Failed: .*ip6tables .*: broken \(/);
      expect(ended.err).toMatch(/\ncolo-proxy: Nothing has been changed\n$/);
      expect(hostState()).toBe(before);
    } finally {
      spawnSync('rm', ['-r', folder]);
    }
  });

  test('refuses without rights', () => {
    const words = ['attach', 'primary', '--tap', 'tap0', '--bridge', 'br0'];
    const command = ['--bounding-set=-net_admin', '--inh-caps=-all', '--', process.execPath];
    const ended = spawnSync('setpriv', [...command, COLO_PROXY, ...words], { encoding: 'utf8' });
    expect(ended.status).toBe(71);
    expect(ended.stderr).toMatch(/CAP_NET_ADMIN/);
  });
});
