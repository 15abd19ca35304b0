import { describe, expect, it } from 'vitest';
import { planAttach, planDetach } from './plan.ts';
import { bridge, commands, facts, REQUEST, tables, tap, undos } from './test-facts.ts';
import type { AttachRequest, HostFacts, Link } from './types.ts';

const { queue: _, ...NO_QUEUE } = REQUEST;
const PACKET: AttachRequest = { ...NO_QUEUE, mode: 'packet' };
const BY = { mode: 'packet', guest: 'packet:tap0', net: 'packet:cp-tap0' };
const TAG = 'colo-proxy:tap0:br0:0:0';
const SILENT = { arp_ignore: '8', disable_ipv6: '1' };

const V4 = '/proc/sys/net/ipv4/conf';
const V6 = '/proc/sys/net/ipv6/conf';

/** The pair of an attached tap0, as it is at the end. */
function pair(near: Partial<Link> = {}, far: Partial<Link> = {}): Link[] {
  const common = { kind: 'veth', stack: SILENT };
  return [
    tap('cp-tap0', '', { ...common, peer: 'cp-tap0-b', alias: TAG, ...near }),
    tap('cp-tap0-b', 'br0', { ...common, peer: 'cp-tap0', ...far }),
  ];
}

const ATTACHED = facts({
  links: [bridge('br0'), tap('tap0', '', { stack: SILENT }), ...pair()],
});

describe('planAttach in packet mode', () => {
  it('puts a veth pair into the place of the tap, which is the last to move', () => {
    const plan = planAttach(PACKET, facts());
    expect(commands(plan)).toEqual([
      'ip link add cp-tap0 mtu 1500 type veth peer name cp-tap0-b address fe:54:00:00:00:01 mtu 1500',
      `ip link set dev cp-tap0 alias ${TAG}`,
      `echo 8 > ${V4}/cp-tap0/arp_ignore`,
      `echo 1 > ${V6}/cp-tap0/disable_ipv6`,
      `echo 8 > ${V4}/cp-tap0-b/arp_ignore`,
      `echo 1 > ${V6}/cp-tap0-b/disable_ipv6`,
      'ip link set dev cp-tap0-b master br0',
      'ip link set dev cp-tap0 up',
      'ip link set dev cp-tap0-b up',
      `echo 8 > ${V4}/tap0/arp_ignore`,
      `echo 1 > ${V6}/tap0/disable_ipv6`,
      'ip link set dev tap0 nomaster',
    ]);
    expect(undos(plan).slice(-3)).toEqual([
      `echo 0 > ${V4}/tap0/arp_ignore`,
      `echo 0 > ${V6}/tap0/disable_ipv6`,
      'ip link set dev tap0 master br0',
    ]);
    expect(undos(plan)[0]).toBe('ip link del dev cp-tap0');
    expect(plan.by).toEqual(BY);
  });

  it('does nothing when everything is done', () => {
    expect(planAttach(PACKET, ATTACHED)).toEqual({ steps: [], notes: [], by: BY });
  });

  it('needs no iptables', () => {
    expect(planAttach(PACKET, facts({ tables: [] })).steps).toHaveLength(12);
  });

  it('takes the name that it is given', () => {
    const plan = planAttach({ ...PACKET, veth: 'cp0' }, facts());
    expect(commands(plan)[0]).toMatch(/^ip link add cp0 mtu 1500 type veth peer name cp0-b /);
    expect(plan.by).toEqual({ ...BY, net: 'packet:cp0' });
  });

  it('gives the veth the settings that the tap has in the bridge, and the MTU of the tap', () => {
    const portSettings = { learning: 'off', isolated: 'on' };
    const plan = planAttach(
      PACKET,
      facts({ links: [bridge('br0'), tap('tap0', 'br0', { portSettings, mtu: 9000 })] }),
    );
    expect(commands(plan)[0]).toContain('mtu 9000 type veth');
    expect(commands(plan)[7]).toBe(
      'ip link set dev cp-tap0-b type bridge_slave learning off isolated on',
    );
    expect(undos(plan).at(-1)).toBe(
      'ip link set dev tap0 master br0 type bridge_slave learning off isolated on',
    );
  });

  it('leaves IPv6 alone where the kernel has none', () => {
    const stack = { arp_ignore: '1', disable_ipv6: undefined };
    const links = [bridge('br0'), tap('tap0', 'br0', { stack })];
    const lines = commands(planAttach(PACKET, facts({ links, hasIpv6: false })));
    expect(lines.filter((line) => line.includes('ipv6'))).toEqual([]);
    expect(lines).toContain('ip link set dev cp-tap0 alias colo-proxy:tap0:br0:1:-');
  });

  it('completes what was cut short', () => {
    const stack = { arp_ignore: '0', disable_ipv6: '0' };
    const untagged = pair({ alias: '', isUp: false, stack }, { master: '', isUp: false, stack });
    const links = (...more: Link[]) => facts({ links: [bridge('br0'), ...more] });
    const whole = commands(planAttach(PACKET, facts()));
    expect(commands(planAttach(PACKET, links(tap('tap0'), ...untagged)))).toEqual(whole.slice(1));
    const half = [tap('tap0', 'br0', { stack: SILENT }), ...pair()];
    expect(commands(planAttach(PACKET, links(...half)))).toEqual(whole.slice(-1));
  });

  it.each<[string, Partial<AttachRequest>, Partial<HostFacts>, string, RegExp]>([
    [
      'in no bridge',
      {},
      { links: [bridge('br0'), tap('tap0', '')] },
      'INTERFACE',
      /tap0 is in no bridge, not in br0/,
    ],
    [
      'a name that is too long',
      { tap: 'tap0123456789' },
      { links: [bridge('br0'), tap('tap0123456789')] },
      'INTERFACE',
      /cp-tap0123456789-b is too long .* --veth of at most 13 bytes/,
    ],
    ['a name that cannot be', { veth: 'a/b' }, {}, 'INTERFACE', /No interface can have the name/],
    [
      'a name that is taken',
      { veth: 'tap1' },
      {},
      'CONFLICT',
      /an interface tap1 already: choose another --veth/,
    ],
    [
      'a far end that is taken',
      {},
      { links: [bridge('br0'), tap('tap0'), tap('cp-tap0-b', '')] },
      'CONFLICT',
      /an interface cp-tap0-b already/,
    ],
    [
      'a bridge with VLANs',
      {},
      { links: [{ ...bridge('br0'), isVlanAware: true }, tap('tap0')] },
      'CONFLICT',
      /br0 filters VLANs/,
    ],
    [
      'attached by another pair',
      { veth: 'cp0' },
      ATTACHED,
      'CONFLICT',
      /attached already, in br0 by cp-tap0: detach it first/,
    ],
    ['attached by wire, asked for rules', { mode: 'nfqueue' }, ATTACHED, 'CONFLICT', /by cp-tap0/],
    [
      'attached by rules',
      {},
      {
        tables: [
          tables([
            '-A PREROUTING -m comment --comment "colo-proxy:tap0:br0:00" -j NFQUEUE --queue-num 8',
          ]),
        ],
      },
      'CONFLICT',
      /attached already, by rules: detach it first/,
    ],
  ])('refuses: %s', (_name, request, changes, code, text) => {
    const attempt = () => planAttach({ ...PACKET, ...request }, facts(changes));
    expect(attempt).toThrow(expect.objectContaining({ code: `COLO_ERR_ATTACH_${code}` }));
    expect(attempt).toThrow(text);
  });
});

describe('planDetach in packet mode', () => {
  it('takes the tap back first, and the pair away last', () => {
    const plan = planDetach('tap0', ATTACHED);
    expect(commands(plan)).toEqual([
      'ip link set dev tap0 master br0',
      `echo 0 > ${V4}/tap0/arp_ignore`,
      `echo 0 > ${V6}/tap0/disable_ipv6`,
      'ip link del dev cp-tap0',
    ]);
    expect(undos(plan)[0]).toBe('ip link set dev tap0 nomaster');
  });

  it('gives the tap the settings back that the veth has in the bridge', () => {
    const [near, far] = pair({}, { portSettings: { isolated: 'on' } });
    const links = [bridge('br0'), tap('tap0', '', { stack: SILENT }), near!, far!];
    expect(commands(planDetach('tap0', facts({ links })))[1]).toBe(
      'ip link set dev tap0 type bridge_slave isolated on',
    );
  });

  it('needs neither the tap nor the bridge', () => {
    const [near, far] = pair();
    expect(commands(planDetach('tap0', facts({ links: [bridge('br0'), near!, far!] })))).toEqual([
      'ip link del dev cp-tap0',
    ]);
    const links = [tap('tap0', '', { stack: SILENT }), near!, { ...far!, master: '' }];
    const plan = planDetach('tap0', facts({ links }));
    expect(commands(plan)).toHaveLength(3);
    expect(plan.notes).toEqual(['there is no bridge br0 any more: tap0 stays in none']);
  });

  it('leaves a tap where somebody else has put it', () => {
    const links = [bridge('br0'), tap('tap0', 'br1', { stack: SILENT }), ...pair()];
    expect(commands(planDetach('tap0', facts({ links })))[0]).toBe(
      `echo 0 > ${V4}/tap0/arp_ignore`,
    );
  });

  it('does nothing for a tap that is not attached', () => {
    expect(planDetach('tap1', ATTACHED)).toEqual({ steps: [], notes: [] });
  });
});
