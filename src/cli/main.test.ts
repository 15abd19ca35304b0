import { describe, expect, it } from 'vitest';
import { AssertionError } from '../base/assert.ts';
import { ColoError } from '../base/error.ts';
import type { Actions } from './args.ts';
import { exitCodeOf } from './exit.ts';
import { main } from './main.ts';
import { parseMilliseconds, parsePass, parsePeerAddress } from './values.ts';

interface Run {
  readonly code: number;
  readonly out: string;
  readonly err: string;
  /** Arguments of the action that ran. */
  readonly given: readonly unknown[];
}

/** Runs the command line with actions that only remember what they were given. */
async function run(line: string, result: number | Error = 0): Promise<Run> {
  let given: unknown[] = [];
  const action = async (...args: unknown[]): Promise<number> => {
    given = args;
    if (typeof result !== 'number') throw result;
    return result;
  };
  const actions: Actions = {
    node: action,
    compare: action,
    rewrite: action,
    attach: action,
    detach: action,
    ctl: action,
    nfnetlink: action,
    lab: action,
    sim: action,
  };
  let out = '';
  let err = '';
  const io = {
    out: (text: string) => {
      out += text;
    },
    err: (text: string) => {
      err += text;
    },
  };
  const argv = line === '' ? [] : line.split(' ');
  const code = await main(['node', 'colo-proxy', ...argv], actions, io);
  return { code, out, err, given };
}

describe('command line', () => {
  it('reads every flag of compare', async () => {
    const { given, code } = await run(
      'compare --primary-in qemu:tcp:127.0.0.1:9001 --secondary-in qemu:tcp:0.0.0.0:9004,server ' +
        '--out qemu:unix:/o --vnet-hdr-support --vm qmp:unix:/q --notify 127.0.0.1:9000 --compare-timeout 3000 ' +
        '--expired-scan-cycle 1000 --max-queue-size 1024 --min-run 50 --pass tcp:3389 --on-peer-loss hold ' +
        '--control /c --log-level warn --json',
    );
    expect(code).toBe(0);
    expect(given).toEqual([
      {
        primaryIn: 'qemu:tcp:127.0.0.1:9001',
        secondaryIn: 'qemu:tcp:0.0.0.0:9004,server',
        out: 'qemu:unix:/o',
        vnetHdrSupport: true,
        vm: { kind: 'qmp', endpoint: { kind: 'unix', path: '/q' } },
        notify: { kind: 'tcp', host: '127.0.0.1', port: 9_000 },
        compareTimeout: 3_000_000,
        expiredScanCycle: 1_000_000,
        maxQueueSize: 1_024,
        minRun: 50_000,
        pass: [{ protocol: 6, port: 3_389 }],
        onPeerLoss: { kind: 'hold' },
        control: '/c',
        logLevel: 'warn',
        json: true,
      },
    ]);
  });

  it('reads every flag of rewrite', async () => {
    const { given, code } = await run(
      'rewrite --guest qemu:unix:/a --to-guest qemu:unix:/b --net qemu:unix:/c --to-net qemu:unix:/d ' +
        '--vnet-hdr-support --vm qmp:unix:/q --control /r --log-level warn --json',
    );
    expect(code).toBe(0);
    expect(given).toEqual([
      {
        guest: 'qemu:unix:/a',
        toGuest: 'qemu:unix:/b',
        net: 'qemu:unix:/c',
        toNet: 'qemu:unix:/d',
        vnetHdrSupport: true,
        vm: { kind: 'qmp', endpoint: { kind: 'unix', path: '/q' } },
        control: '/r',
        logLevel: 'warn',
        json: true,
      },
    ]);
  });

  it('reads the forward device of both nodes', async () => {
    for (const role of ['primary', 'secondary']) {
      const { given } = await run(`${role} --guest packet:a --net packet:b --forward-dev eth1`);
      const flags = { guest: 'packet:a', net: 'packet:b', forwardDev: 'eth1' };
      expect(given).toEqual([role, flags, undefined]);
    }
  });

  it('reads every flag of attach and detach', async () => {
    const attach = await run(
      'attach primary --tap tap0 --bridge br0 --queue 8 --no-bypass --listening --iptables /sbin/iptables-legacy --dry-run -v --json',
    );
    const common = { tap: 'tap0', iptables: '/sbin/iptables-legacy', dryRun: true };
    const flags = { ...common, verbose: true, json: true };
    expect(attach.given).toEqual([
      'primary',
      { ...flags, bridge: 'br0', queue: 8, bypass: false, listening: true },
    ]);
    const secondary = await run(
      'attach secondary --tap tap0 --bridge br0 --mode packet --veth cp0 --forward-dev eth1',
    );
    expect(secondary.given).toEqual([
      'secondary',
      {
        tap: 'tap0',
        bridge: 'br0',
        mode: 'packet',
        veth: 'cp0',
        forwardDev: 'eth1',
        bypass: true,
      },
    ]);
    const plain = await run('attach primary --tap tap0 --bridge br0');
    expect(plain.given).toEqual(['primary', { tap: 'tap0', bridge: 'br0', bypass: true }]);
    const detach = await run(
      'detach --tap tap0 --iptables /sbin/iptables-legacy --dry-run --verbose --json',
    );
    expect(detach.given).toEqual([flags]);
  });

  it('wants to know tap and bridge, and a pair of queues that fits', async () => {
    expect(await run('attach primary --tap tap0')).toMatchObject({ code: 64 });
    expect(await run('attach primary --bridge br0')).toMatchObject({ code: 64 });
    expect(await run('detach')).toMatchObject({ code: 64 });
    const { code, err } = await run('attach primary --tap t --bridge b --queue 65535');
    expect(code).toBe(64);
    expect(err).toMatch(/0 to 65534/);
  });

  it('wants the three ports of compare', async () => {
    const { code, err } = await run('compare --primary-in qemu:unix:/p --out qemu:unix:/o');
    expect(code).toBe(64);
    expect(err).toMatch(/--secondary-in/);
  });

  it('reads every flag of primary', async () => {
    const { given, code } = await run(
      'primary --guest packet:tap0 --net packet:eth0 --peer listen:[2001:db8::1]:9000 --peer-key /k ' +
        '--peer-timeout 400 --compare-timeout 150 --min-run 80 --pass tcp:3389 --pass udp:53 ' +
        '--vm exec:sync --control /run/c --config /etc/c.yaml --log-level debug --json',
    );
    expect(code).toBe(0);
    expect(given).toEqual([
      'primary',
      {
        guest: 'packet:tap0',
        net: 'packet:eth0',
        peer: { mode: 'listen', host: '2001:db8::1', port: 9000 },
        peerKey: '/k',
        peerTimeoutUs: 400_000,
        compareTimeoutUs: 150_000,
        minRunUs: 80_000,
        pass: [
          { protocol: 6, port: 3389 },
          { protocol: 17, port: 53 },
        ],
        vm: { kind: 'exec', command: 'sync' },
        control: '/run/c',
        logLevel: 'debug',
        json: true,
      },
      '/etc/c.yaml',
    ]);
  });

  it('reads ctl --nfnetlink as a command line of its own', async () => {
    const { given, code } = await run(
      'ctl --nfnetlink 4711 --mode secondary init checkpoint watch',
    );
    expect(code).toBe(0);
    expect(given).toEqual([
      ['init', 'checkpoint', 'watch'],
      { nfnetlink: { kind: 'netlink', portId: 4711 }, mode: 'secondary', abi: 'nfnetlink' },
    ]);
    for (const line of ['--nfnetlink 4711', '--nfnetlink 0 init', '--nfnetlink=1 status']) {
      expect((await run(`ctl ${line}`)).code).toBe(64);
    }
  });

  it('reads the VM layers and what to do without a peer, by role', async () => {
    const vm = '--nfnetlink unix:/n --notify 127.0.0.1:9009 --vm qmp:unix:/q';
    const { given } = await run(`secondary ${vm} --on-peer-loss failover`);
    expect(given[1]).toEqual({
      nfnetlink: { kind: 'unix', path: '/n' },
      notify: { kind: 'tcp', host: '127.0.0.1', port: 9009 },
      vm: { kind: 'qmp', endpoint: { kind: 'unix', path: '/q' } },
      onPeerLoss: { kind: 'failover' },
    });
    expect((await run('primary --on-peer-loss failover')).code).toBe(64);
    expect((await run('primary --on-peer-loss hold')).code).toBe(0);
  });

  it('gives nothing for flags that were not given, so that the file counts', async () => {
    const { given } = await run('secondary --config /etc/c.yaml');
    expect(given).toEqual(['secondary', {}, '/etc/c.yaml']);
  });

  it.each([
    ['ctl --control /c status', { command: 'status' }],
    ['ctl status --control /c', { command: 'status' }],
    ['ctl --control /c flows -n 5', { command: 'flows', count: 5 }],
    ['ctl --control /c flows', { command: 'flows', count: 1_000 }],
    ['ctl --control /c checkpoint begin', { command: 'checkpoint', step: 'begin' }],
    ['ctl --control /c checkpoint commit', { command: 'checkpoint', step: 'commit' }],
    ['ctl --control /c failover', { command: 'failover', force: false }],
    ['ctl --control /c failover --force', { command: 'failover', force: true }],
    ['ctl --control /c reset', { command: 'reset' }],
    ['ctl --control /c reset --reason x', { command: 'reset', reason: 'x' }],
    ['ctl --control /c events --follow', { command: 'events', count: 1_024, follow: true }],
    [
      'ctl --control /c checkpoint abort --reason disk',
      { command: 'checkpoint', step: 'abort', reason: 'disk' },
    ],
  ])('%s', async (line, command) => {
    const { given, code } = await run(line);
    expect(code).toBe(0);
    expect(given[0]).toEqual(command);
    expect(given[1]).toEqual({ control: '/c' });
  });

  it('takes --json of ctl before and after the command', async () => {
    for (const line of ['ctl --json --control /c status', 'ctl --control /c status --json']) {
      expect((await run(line)).given[1]).toEqual({ control: '/c', json: true });
    }
  });

  it.each([
    'fly',
    'primary --gust x',
    'primary --peer nowhere',
    'primary --peer listen:h:0',
    'primary --compare-timeout soon',
    'primary --pass ftp:21',
    'primary --vm magic',
    'primary --guest',
    'primary extra',
    'secondary --pass tcp:80',
    'primary --log-level loud',
    'ctl status',
    'ctl --control /c fly',
    'ctl --control /c checkpoint sideways',
    'ctl --control /c flows --count 0',
    'sim --seed x',
    'sim --scenario',
  ])('refuses "%s" with one line and exit code 64', async (line) => {
    const saved = process.env['COLO_CONTROL'];
    delete process.env['COLO_CONTROL'];
    const { code, err, out, given } = await run(line);
    if (saved !== undefined) process.env['COLO_CONTROL'] = saved;
    expect(code).toBe(64);
    expect(err).toMatch(/^colo-proxy: .+\n$/);
    expect(out).toBe('');
    expect(given).toEqual([]);
  });

  it('without a command shows the help as a fault', async () => {
    const { code, err } = await run('');
    expect(code).toBe(64);
    expect(err).toContain('Usage: colo-proxy');
  });

  it('shows help and version as answers', async () => {
    const help = await run('--help');
    expect(help).toMatchObject({ code: 0, err: '' });
    expect(help.out).toContain('Examples:');
    expect((await run('primary --help')).out).toContain('--peer-key');
    expect((await run('--version')).out).toMatch(/^\d+\.\d+\.\d+\n$/);
  });

  it('ends with the code of the action, or of its error', async () => {
    expect((await run('sim', 128)).code).toBe(128);
    const missing = new ColoError('COLO_ERR_PACKET_OPEN', 'Cannot open tap0: ENODEV');
    expect(await run('lab', missing)).toMatchObject({
      code: 71,
      err: 'colo-proxy: Cannot open tap0: ENODEV\n',
    });
    const config = new ColoError('COLO_ERR_CONFIG', 'c:1: a: b\nc:2: d: e');
    expect(await run('primary', config)).toMatchObject({
      code: 78,
      err: 'colo-proxy: c:1: a: b\ncolo-proxy: c:2: d: e\n',
    });
    expect((await run('primary', new TypeError('oops'))).code).toBe(70);
  });
});

describe('exitCodeOf()', () => {
  it.each([
    ['COLO_ERR_USAGE', 64],
    ['COLO_ERR_PORT_SPEC', 64],
    ['COLO_ERR_CONFIG_READ', 78],
    ['COLO_ERR_PEER_KEY_MODE', 78],
    ['COLO_ERR_PEER_CERTIFICATE', 78],
    ['COLO_ERR_PEER_LISTEN', 71],
    ['COLO_ERR_CONTROL_LISTEN', 71],
  ])('%s is %i', (code, exitCode) => {
    expect(exitCodeOf(new ColoError(code, 'x'))).toBe(exitCode);
  });

  it('an assertion is 70', () => {
    expect(exitCodeOf(new AssertionError('x'))).toBe(70);
  });
});

describe('values', () => {
  it('parsePeerAddress() reads names, addresses and bracketed IPv6', () => {
    expect(parsePeerAddress('connect:node-2.example:9000')).toEqual({
      mode: 'connect',
      host: 'node-2.example',
      port: 9000,
    });
    expect(parsePeerAddress('listen:[::]:1').host).toBe('::');
    expect(parsePeerAddress('connect:[fe80::1%eth1]:65535').host).toBe('fe80::1%eth1');
  });

  it.each([
    '',
    'listen',
    'listen:9000',
    'listen::9000',
    'listen:h:65536',
    'listen:h:',
    'listen:::1:9000',
    'listen:[h]:9000',
    'bind:h:1',
    'listen:a b:1',
    'listen:h:1:2',
  ])('parsePeerAddress() refuses %j', (text) => {
    expect(() => parsePeerAddress(text)).toThrow('Expected listen:HOST:PORT');
  });

  it('parsePass() refuses what is not tcp or udp with a port', () => {
    for (const text of ['tcp', 'tcp:', 'tcp:0', 'tcp:65536', 'icmp:1', 'constructor:1', 'tcp:1x']) {
      expect(() => parsePass(text)).toThrow('Expected tcp:PORT');
    }
  });

  it('parseMilliseconds() gives microseconds', () => {
    expect(parseMilliseconds('200')).toBe(200_000);
    for (const text of ['', '0', '-1', '1.5', '1e3', '86400001', 'NaN']) {
      expect(() => parseMilliseconds(text)).toThrow('whole milliseconds');
    }
  });
});
