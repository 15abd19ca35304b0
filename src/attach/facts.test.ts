import { describe, expect, it } from 'vitest';
import { orderTables, parseBackend, parseBoundQueues, parseLinks } from './facts.ts';
import { findRules, hasRules } from './rules.ts';
import type { Tables } from './types.ts';

describe('parseLinks', () => {
  const stack = { arp_ignore: '0', disable_ipv6: undefined };
  const none = {
    kind: '',
    master: '',
    peer: '',
    alias: '',
    mac: '',
    mtu: 0,
    isUp: false,
    callsIptables: { 4: false, 6: false },
    isVlanAware: false,
    portSettings: {},
    stack,
  };

  it('reads what iproute2 6.1 prints', () => {
    const json = `[{"ifname":"lo","flags":["LOOPBACK"]},
      {"ifname":"br0","mtu":1500,"flags":["UP"],"linkinfo":{"info_kind":"bridge","info_data":
        {"vlan_filtering":1,"nf_call_iptables":0,"nf_call_ip6tables":1}}},
      {"ifname":"cp-b","link":"cp","master":"br0","address":"fe:54:00:00:00:01","ifalias":"x y","linkinfo":{"info_kind":"veth",
        "info_slave_kind":"bridge","info_slave_data":{"state":"forwarding","priority":8,"cost":2,"hairpin":false,"learning":false,
        "flood":true,"multicast_router":2,"mcast_flood":true,"group_fwd_mask":"0","isolated":true}}},
      {"ifname":"eth0.5","link":"eth0","linkinfo":{"info_kind":"vlan"}},{}]`;
    expect(parseLinks(json, () => stack)).toEqual([
      { ...none, name: 'lo' },
      {
        ...none,
        name: 'br0',
        kind: 'bridge',
        mtu: 1500,
        isUp: true,
        callsIptables: { 4: false, 6: true },
        isVlanAware: true,
      },
      {
        ...none,
        name: 'cp-b',
        kind: 'veth',
        peer: 'cp',
        master: 'br0',
        mac: 'fe:54:00:00:00:01',
        alias: 'x y',
        portSettings: { priority: '8', learning: 'off', mcast_router: '2', isolated: 'on' },
      },
      { ...none, name: 'eth0.5', kind: 'vlan' },
    ]);
    expect(parseLinks('', () => stack)).toEqual([]);
  });
});

describe('parseBoundQueues', () => {
  it('reads the first column', () => {
    const text =
      '    7   1234     0 2 65531     0     0       12  1\n65535 -40 0 2 65531 0 0 0 1\n';
    expect(parseBoundQueues(text)).toEqual([7, 65_535]);
    expect(parseBoundQueues('')).toEqual([]);
  });
});

describe('parseBackend', () => {
  it('tells the two kinds apart', () => {
    expect(parseBackend('iptables v1.8.9 (nf_tables)\n')).toBe('nf_tables');
    expect(parseBackend('iptables v1.8.9 (legacy)\n')).toBe('legacy');
    expect(parseBackend('iptables v1.6.1\n')).toBe('legacy');
  });
});

const nft = { backend: 'nf_tables', programs: {}, saved: { 4: '' } } as const;
const legacy = {
  backend: 'legacy',
  programs: {},
  saved: { 6: '*filter\n-A INPUT -j DROP\n' },
} as const;

describe('orderTables', () => {
  it('prefers the only one with rules, unless the operator has chosen', () => {
    expect(orderTables([nft, legacy], false, hasRules)).toEqual([legacy, nft]);
    expect(orderTables([nft, legacy], true, hasRules)).toEqual([nft, legacy]);
  });

  it("keeps the host's own first where both have rules, or none", () => {
    expect(orderTables([nft, nft], false, hasRules)).toEqual([nft, nft]);
    const used: Tables = { ...nft, saved: legacy.saved };
    expect(orderTables([used, legacy], false, hasRules)).toEqual([used, legacy]);
  });
});

describe('findRules', () => {
  const save = (line: string): Tables => ({
    backend: 'legacy',
    programs: { 4: 'iptables' },
    saved: { 4: `*nat\n${line}\nCOMMIT\n*mangle\n${line}\nCOMMIT\n*filter\n${line}\nCOMMIT\n` },
  });

  it('takes tagged rules of the mangle table only, with the words that delete them', () => {
    const line =
      '-A PREROUTING -m physdev --physdev-in "a\\"b" -m comment --comment "colo-proxy:a\\"b:br0:10" -j NFQUEUE --queue-num 6';
    expect(findRules([save(line)])).toEqual([
      {
        backend: 'legacy',
        program: 'iptables',
        family: 4,
        chain: 'PREROUTING',
        tap: 'a"b',
        bridge: 'br0',
        before: { 4: true, 6: false },
        queue: 6,
        isBypassing: false,
        words: [
          ...['PREROUTING', '-m', 'physdev', '--physdev-in', 'a"b'],
          ...['-m', 'comment', '--comment', 'colo-proxy:a"b:br0:10'],
          ...['-j', 'NFQUEUE', '--queue-num', '6'],
        ],
      },
    ]);
  });

  it.each([
    ['another comment', '-A PREROUTING -m comment --comment "colo-proxy" -j NFQUEUE --queue-num 6'],
    ['another chain', '-A FORWARD -m comment --comment "colo-proxy:a:b:00" -j NFQUEUE'],
    ['no comment', '-A PREROUTING -j NFQUEUE --queue-num 6'],
  ])('leaves alone what has %s', (_, line) => {
    expect(findRules([save(line)])).toEqual([]);
  });
});
