/**
 * Packet queues between real TCP stacks; the server plays the guest:
 *
 *     client ns: c0 --- pc :host ns: br0 : tap0 --- s0 :server ns
 *                         [nfqueue:10,tap=tap0,bridge=br0]   (this process)
 */
import { execFileSync } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import { afterEach, beforeEach, describe, expect, test, vi } from 'vitest';
import type { FrameBuffer } from '../../src/env/frame.ts';
import type { Port } from '../../src/env/port.ts';
import { NfqueueTap } from '../../src/port/nfqueue.ts';
import { setMark } from '../../src/port/queued-frame.ts';
import { setWindow } from '../../src/rewrite/lower.ts';
import { hasTcpHeader } from '../../src/rewrite/tcp-frame.ts';
import { dissect, FRAME_OK, FrameInfo } from '../../src/wire/frame.ts';
import { inNetworkNamespace, Namespaces, whyNoNamespaces } from '../support/netns.ts';

const QUEUE = 10;
const ENDPOINT = fileURLToPath(new URL('../support/tcp-endpoint.mjs', import.meta.url));

function whyNot(): string {
  const reason = whyNoNamespaces();
  if (reason !== '') return reason;
  try {
    execFileSync('iptables', ['-V'], { stdio: 'ignore' });
  } catch {
    return 'needs iptables';
  }
  return '';
}

const reason = whyNot();
const title = reason === '' ? 'nfqueue' : `nfqueue (SKIPPED: ${reason})`;

const pause = (ms: number) => new Promise((resolve) => setTimeout(resolve, ms));

type Visit = (buffer: FrameBuffer, offset: number, length: number) => boolean | undefined;

/** Passes on what `visit` does not return false for. */
function forward(from: Port, to: Port, visit: Visit = () => true): { errors: Error[] } {
  const errors: Error[] = [];
  from.start(
    () => {
      while (
        from.receive((buffer, offset, length) => {
          if (visit(buffer, offset, length) !== false) to.send(buffer, offset, length);
        }) > 0
      ) {
        to.flush();
      }
    },
    (error) => errors.push(error),
  );
  return { errors };
}

const info = new FrameInfo();

/** Changes every segment, as the engine does where it lowers a window. */
const lower: Visit = (buffer, offset, length) => {
  if (dissect(buffer, offset, length, info) === FRAME_OK && hasTcpHeader(info)) {
    if (info.window > 1) setWindow(info, info.window - 1);
  }
  return true;
};

describe.skipIf(reason !== '')(title, () => {
  let spaces: Namespaces;
  let tap: NfqueueTap | undefined;

  beforeEach(() => {
    spaces = new Namespaces();
    spaces.add('client');
    spaces.add('host', true);
    spaces.add('server');
    spaces.join('client', 'c0', 'host', 'pc');
    spaces.join('host', 'tap0', 'server', 's0');
    spaces.ip('host', 'link add br0 type bridge mcast_snooping 0');
    spaces.ip('host', 'link set br0 type bridge nf_call_iptables 1 nf_call_ip6tables 1');
    for (const line of ['pc master br0', 'tap0 master br0', 'br0 up']) {
      spaces.ip('host', `link set dev ${line}`);
    }
    for (const [name, device, last] of [
      ['client', 'c0', 9],
      ['server', 's0', 2],
    ] as const) {
      spaces.ip(name, `addr add 10.77.0.${last}/24 dev ${device}`);
      spaces.ip(name, `addr add fd77::${last}/64 dev ${device} nodad`);
    }
  });
  afterEach(async () => {
    tap?.close();
    tap = undefined;
    await spaces.close();
  });

  /** The rules of `colo-proxy attach`. */
  function attach(chain: 'FORWARD' | 'POSTROUTING' = 'POSTROUTING', bypass = true): void {
    for (const program of ['iptables', 'ip6tables']) {
      for (const rule of [
        `PREROUTING -m physdev --physdev-in tap0 -j NFQUEUE --queue-num ${QUEUE}`,
        `${chain} -m physdev --physdev-out tap0 --physdev-is-bridged -j NFQUEUE --queue-num ${QUEUE + 1}`,
      ]) {
        const words = `${rule}${bypass ? ' --queue-bypass' : ''}`.split(' ');
        spaces.run('host', [program, '-t', 'mangle', '-A', ...words]);
      }
    }
  }

  function open(failOpen = false): NfqueueTap {
    const options = { name: 'nfqueue', queue: QUEUE, tap: 'tap0', bridge: 'br0', failOpen };
    tap = inNetworkNamespace(spaces.path('host'), () => new NfqueueTap(options));
    return tap;
  }

  /** Does a connection carry an echo? @param isExpected what is not expected is waited for a second and a half only */
  async function reaches(isExpected = true): Promise<boolean> {
    const client = [process.execPath, ENDPOINT, 'echo', '10.77.0.2', '7001', '1', '64'];
    const words = ['timeout', isExpected ? '20' : '1.5', ...client];
    return (await spaces.command('client', words)).includes('"ok":true');
  }

  /** Packets that wait in the kernel, by queue: the third column of its table. */
  function waiting(): number[] {
    const table = spaces.run('host', ['cat', '/proc/net/netfilter/nfnetlink_queue']);
    return table
      .trim()
      .split('\n')
      .map((line) => Number(line.trim().split(/\s+/)[2]));
  }

  /** A packet that comes while the table is read waits in it, too: looked at until none does, since one that is forgotten stays. */
  async function expectNoneWaits(): Promise<void> {
    await vi.waitFor(() => expect(waiting()).toEqual([0, 0]), { timeout: 5_000, interval: 50 });
  }

  function checksumErrors(name: string): number {
    const table = spaces.run(name, ['cat', '/proc/net/snmp']);
    const [names = [], values = []] = table
      .split('\n')
      .filter((line) => line.startsWith('Tcp:'))
      .map((line) => line.split(' '));
    const value = Number(values[names.indexOf('InCsumErrors')]);
    expect(value).toBeGreaterThanOrEqual(0);
    return value;
  }

  test.each([
    ['10.77.0.2', 'as it is', 'POSTROUTING', undefined],
    ['fd77::2', 'as it is', 'FORWARD', undefined],
    ['10.77.0.2', 'with other windows', 'FORWARD', lower],
    ['fd77::2', 'with other windows', 'POSTROUTING', lower],
  ] as const)(
    'carry TCP to %s %s, queued in %s, GSO frames whole',
    async (host, _how, chain, visit) => {
      attach(chain);
      const { guest, net } = open();
      const longest = { up: 0, down: 0 };
      forward(guest, net, (buffer, offset, length) => {
        longest.down = Math.max(longest.down, length);
        return visit?.(buffer, offset, length);
      });
      forward(net, guest, (buffer, offset, length) => {
        longest.up = Math.max(longest.up, length);
        return visit?.(buffer, offset, length);
      });
      await spaces.serve('server', host, 7_001);
      for (const direction of ['upload', 'download']) {
        const result = await spaces.endpoint('client', direction, host, 7_001, 30_000_000);
        expect(result).toMatchObject({ ok: true });
      }
      expect(longest.up).toBeGreaterThan(20_000);
      expect(longest.down).toBeGreaterThan(20_000);
      expect(guest.counters.dropped).toEqual({});
      expect(net.counters.dropped).toEqual({});
      expect([checksumErrors('client'), checksumErrors('server')]).toEqual([0, 0]);
      await expectNoneWaits();
    },
  );

  test('send frames of their own, whole ones and GSO frames: every packet as a copy', async () => {
    attach();
    const { guest, net } = open();
    // Without its mark a frame is one of the engine's own; the packet itself is dropped.
    const copy: Visit = (buffer, offset, length) => {
      dissect(buffer, offset, length, info);
      if (info.ipVersion !== 0) setMark(buffer.view, offset, 0);
      return true;
    };
    forward(guest, net, copy);
    forward(net, guest, copy);
    await spaces.serve('server', '10.77.0.2', 7_001);
    for (const direction of ['upload', 'download']) {
      const result = await spaces.endpoint('client', direction, '10.77.0.2', 7_001, 10_000_000);
      expect(result).toMatchObject({ ok: true });
    }
    expect([checksumErrors('client'), checksumErrors('server')]).toEqual([0, 0]);
    await expectNoneWaits();
  });

  test('see ARP of both directions, which the bridge carries by itself', async () => {
    attach();
    const { guest, net } = open();
    const heard: string[] = [];
    const listen =
      (name: string): Visit =>
      (buffer, offset) => {
        if (buffer.view.getUint16(offset + 12) === 0x0806) {
          heard.push(`${name} ${buffer.view.getUint16(offset + 14 + 6)}`);
        }
        return true;
      };
    forward(guest, net, listen('guest'));
    forward(net, guest, listen('net'));
    await spaces.serve('server', '10.77.0.2', 7_001);
    expect(await reaches()).toBe(true);
    expect(heard).toContain('net 1');
    expect(heard).toContain('guest 2');
    expect(net.counters.sentFrames).toBeGreaterThan(1);
  });

  test('tell the source of client packets, for the copies that the peer gets', async () => {
    attach();
    const { guest, net } = open();
    const ends = new Set<string>();
    forward(guest, net);
    forward(net, guest, (buffer, offset, length) => {
      // Hosts multicast over IPv6 unasked.
      if (dissect(buffer, offset, length, info) !== FRAME_OK || info.ipVersion !== 4) return true;
      ends.add(Buffer.from(buffer.bytes.subarray(offset, offset + 12)).toString('hex'));
      return true;
    });
    await spaces.serve('server', '10.77.0.2', 7_001);
    expect(await reaches()).toBe(true);
    const mac = (name: string, device: string): string =>
      /link\/ether (\S+)/.exec(spaces.ip(name, `link show ${device}`))![1]!.replaceAll(':', '');
    expect([...ends]).toEqual([mac('server', 's0') + mac('client', 'c0')]);
  });

  test('hold a packet in the kernel, and drop it when nobody sends it', async () => {
    attach();
    const { guest, net } = open();
    let isOpen = false;
    forward(guest, net, () => isOpen);
    forward(net, guest);
    await spaces.serve('server', '10.77.0.2', 7_001);
    expect(await reaches(false)).toBe(false);
    isOpen = true;
    expect(await reaches()).toBe(true);
    await expectNoneWaits();
  });

  test.each([
    [true, true],
    [false, false],
  ])('when they close, packets pass only by the bypass (%s)', async (bypass, passes) => {
    attach('POSTROUTING', bypass);
    const { guest, net } = open();
    forward(guest, net);
    forward(net, guest);
    await spaces.serve('server', '10.77.0.2', 7_001);
    expect(await reaches()).toBe(true);
    tap?.close();
    expect(await reaches(passes)).toBe(passes);
  });

  test('are owned once, and say so', () => {
    open();
    const again = { name: 'nfqueue', queue: QUEUE, tap: 'tap0', bridge: 'br0', failOpen: false };
    expect(() => inNetworkNamespace(spaces.path('host'), () => new NfqueueTap(again))).toThrow(
      'Cannot open packet queue 10 (another program has it',
    );
  });

  test('end when the tap is deleted', async () => {
    attach();
    const { guest, net } = open();
    const { errors } = forward(guest, net);
    forward(net, guest);
    spaces.ip('host', 'link del tap0');
    for (let tries = 0; tries < 100 && errors.length === 0; tries++) await pause(100);
    expect(errors[0]?.message).toBe('Interface tap0 has been deleted or moved');
  });

  test('count what the kernel had no room for, and pass it only with fail-open', async () => {
    attach();
    const { guest, net } = open(true);
    // Nothing is read until the socket is full.
    const datagrams = 60_000;
    const flood = `const s = require('dgram').createSocket('udp4'); let left = ${datagrams};
      for (let i = 0; i < ${datagrams}; i++) s.send(Buffer.alloc(1000), 9, '10.77.0.2', () => --left || s.close());`;
    spaces.run('client', [process.execPath, '-e', flood]);
    forward(guest, net);
    forward(net, guest);
    await spaces.serve('server', '10.77.0.2', 7_001);
    expect(await reaches()).toBe(true);
    expect(net.counters.dropped['passed-unchecked']).toBeGreaterThan(0);
    expect(net.counters.dropped['kernel-queue-full']).toBeUndefined();
  }, 60_000);
});
