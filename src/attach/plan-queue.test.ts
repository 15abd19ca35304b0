import { describe, expect, it } from 'vitest';
import { planAttach, planDetach } from './plan.ts';
import { bridge, commands, facts, ON, REQUEST, tables, tap, undos } from './test-facts.ts';
import type { AttachRequest, HostFacts } from './types.ts';

/** The two rules of tap0 as iptables-save prints them, in the order that inserting gives. */
function savedRules(name = 'tap0', queue = 8, tag = `${name}:br0:00`): string[] {
  const end = `-m comment --comment "colo-proxy:${tag}" -j NFQUEUE --queue-num`;
  return [
    `-A PREROUTING -m physdev --physdev-in ${name} ${end} ${queue} --queue-bypass`,
    `-A POSTROUTING -m physdev --physdev-out ${name} --physdev-is-bridged ${end} ${queue + 1} --queue-bypass`,
  ];
}

const by = (queue: number) => ({
  mode: 'nfqueue',
  queue,
  guest: `nfqueue:${queue},tap=tap0,bridge=br0`,
});

const IN = '-m physdev --physdev-in tap0 -m comment --comment colo-proxy:tap0:br0:00';
const OUT =
  '-m physdev --physdev-out tap0 --physdev-is-bridged -m comment --comment colo-proxy:tap0:br0:00';

describe('planAttach', () => {
  it('queues both directions of both families, then lets the bridge call iptables', () => {
    const plan = planAttach(REQUEST, facts());
    expect(commands(plan)).toEqual([
      `iptables -w 5 -t mangle -I PREROUTING ${IN} -j NFQUEUE --queue-num 8 --queue-bypass`,
      `iptables -w 5 -t mangle -I POSTROUTING ${OUT} -j NFQUEUE --queue-num 9 --queue-bypass`,
      `ip6tables -w 5 -t mangle -I PREROUTING ${IN} -j NFQUEUE --queue-num 8 --queue-bypass`,
      `ip6tables -w 5 -t mangle -I POSTROUTING ${OUT} -j NFQUEUE --queue-num 9 --queue-bypass`,
      'ip link set dev br0 type bridge nf_call_iptables 1 nf_call_ip6tables 1',
    ]);
    expect(undos(plan)).toEqual([
      `iptables -w 5 -t mangle -D PREROUTING ${IN} -j NFQUEUE --queue-num 8 --queue-bypass`,
      `iptables -w 5 -t mangle -D POSTROUTING ${OUT} -j NFQUEUE --queue-num 9 --queue-bypass`,
      `ip6tables -w 5 -t mangle -D PREROUTING ${IN} -j NFQUEUE --queue-num 8 --queue-bypass`,
      `ip6tables -w 5 -t mangle -D POSTROUTING ${OUT} -j NFQUEUE --queue-num 9 --queue-bypass`,
      'ip link set dev br0 type bridge nf_call_iptables 0 nf_call_ip6tables 0',
    ]);
    expect(plan).toMatchObject({ by: by(8), notes: [] });
  });

  it('drops while no daemon runs, when it is told to', () => {
    const plan = planAttach({ ...REQUEST, isBypassing: false }, facts());
    expect(commands(plan)[0]).toBe(
      `iptables -w 5 -t mangle -I PREROUTING ${IN} -j NFQUEUE --queue-num 8`,
    );
  });

  it('does nothing when everything is done', () => {
    const links = [bridge('br0', ON), tap('tap0')];
    const done = facts({ links, tables: [tables(savedRules())], boundQueues: [8, 9] });
    const nothing = { steps: [], notes: [], by: by(8) };
    expect(planAttach(REQUEST, done)).toEqual(nothing);
    const { queue: _, ...anyQueue } = REQUEST;
    expect(planAttach(anyQueue, done)).toEqual(nothing);
  });

  it('completes what was cut short, with the queues and the memory that it had', () => {
    const links = [bridge('br0', { 4: true, 6: false }), tap('tap0')];
    const [, out = ''] = savedRules();
    const { queue: _, ...anyQueue } = REQUEST;
    const plan = planAttach(anyQueue, facts({ links, tables: [tables([out])] }));
    expect(commands(plan)).toEqual([
      `iptables -w 5 -t mangle -I PREROUTING ${IN} -j NFQUEUE --queue-num 8 --queue-bypass`,
      `ip6tables -w 5 -t mangle -I PREROUTING ${IN} -j NFQUEUE --queue-num 8 --queue-bypass`,
      'ip link set dev br0 type bridge nf_call_ip6tables 1',
    ]);
  });

  it('remembers what the bridge was like before its first tap was attached', () => {
    const links = [bridge('br0', ON), tap('tap0'), tap('tap1')];
    const others = [tables(savedRules('tap1', 64, 'tap1:br0:01'))];
    const { queue: _, ...anyQueue } = REQUEST;
    const plan = planAttach(anyQueue, facts({ links, tables: others }));
    expect(plan.by).toEqual(by(66));
    expect(commands(plan)).toHaveLength(4);
    expect(commands(plan)[0]).toContain('colo-proxy:tap0:br0:01');
  });

  it('uses the backend that has the rules of this tap', () => {
    const [first = ''] = savedRules();
    const both = [tables(), tables([first], 'legacy')];
    expect(commands(planAttach(REQUEST, facts({ tables: both })))[0]).toMatch(
      /^iptables-legacy .* POSTROUTING /,
    );
    const given = facts({ tables: both, isBackendGiven: true });
    expect(() => planAttach(REQUEST, given)).toThrow(/by rules of iptables-legacy: detach it/);
  });

  it('leaves IPv6 alone where the kernel has none', () => {
    const plan = planAttach(REQUEST, facts({ hasIpv6: false }));
    expect(commands(plan).filter((line) => line.includes('ip6'))).toEqual([]);
  });

  it('loads br_netfilter, and keeps the other bridges as they were', () => {
    const plan = planAttach(REQUEST, facts({ allBridgesCall: undefined }));
    expect(commands(plan).slice(0, 4)).toEqual([
      'modprobe br_netfilter',
      'echo 0 > /proc/sys/net/bridge/bridge-nf-call-iptables',
      'echo 0 > /proc/sys/net/bridge/bridge-nf-call-ip6tables',
      'echo 0 > /proc/sys/net/bridge/bridge-nf-call-arptables',
    ]);
    expect(undos(plan).slice(0, 4)).toEqual(['', '', '', '']);
  });

  it('warns of a firewall that the frames of the bridge did not pass so far', () => {
    const filter = '*filter\n:INPUT ACCEPT [0:0]\n:FORWARD DROP [0:0]\nCOMMIT\n';
    const dropping = { ...tables(), saved: { 4: filter, 6: '' } };
    expect(planAttach(REQUEST, facts({ tables: [dropping] })).notes).toEqual([
      'all packets of br0 now pass the chain FORWARD, whose policy is DROP: it needs a rule that accepts them',
    ]);
    const known = facts({ tables: [dropping], allBridgesCall: ON });
    expect(planAttach(REQUEST, known).notes).toEqual([]);
  });

  it.each<[string, Partial<AttachRequest>, Partial<HostFacts>, string, RegExp]>([
    ['no such tap', { tap: 'tap9' }, {}, 'INTERFACE', /There is no interface tap9/],
    ['no such bridge', { bridge: 'br9' }, {}, 'INTERFACE', /There is no bridge br9/],
    ['not a bridge', { bridge: 'tap1' }, {}, 'INTERFACE', /tap1 is not a bridge/],
    [
      'in another bridge',
      {},
      { links: [bridge('br0'), bridge('br1'), tap('tap0', 'br1')] },
      'INTERFACE',
      /tap0 is in br1, not in br0/,
    ],
    [
      'in no bridge',
      {},
      { links: [bridge('br0'), tap('tap0', '')] },
      'INTERFACE',
      /tap0 is in no bridge, not in br0/,
    ],
    [
      'a name that is a pattern',
      { tap: 'tap+' },
      { links: [bridge('br0'), tap('tap+')] },
      'INTERFACE',
      /takes the \+ for any ending/,
    ],
    ['no iptables', {}, { tables: [] }, 'TABLES', /no iptables on this host/],
    [
      'no ip6tables',
      {},
      { tables: [{ ...tables(), programs: { 4: 'iptables' } }] },
      'TABLES',
      /no ip6tables/,
    ],
    [
      'a queue of another tap',
      { queue: 9 },
      { tables: [tables(savedRules('tap1', 10))] },
      'QUEUE',
      /Queue 10 is used by the attached tap1/,
    ],
    [
      'a queue of another rule',
      { queue: 0 },
      { tables: [tables(['-A INPUT -j NFQUEUE --queue-balance 1:3'])] },
      'QUEUE',
      /Queue 1 is used by another rule/,
    ],
    ['a queue of a process', {}, { boundQueues: [9] }, 'QUEUE', /listens on queue 9 already/],
    [
      'other queues than it has',
      { queue: 10 },
      { tables: [tables(savedRules())] },
      'CONFLICT',
      /attached already, in br0, with queue 8, with bypass: detach/,
    ],
    [
      'no bypass where it has one',
      { isBypassing: false },
      { tables: [tables(savedRules())] },
      'CONFLICT',
      /with bypass: detach/,
    ],
  ])('refuses: %s', (_, request, changes, code, text) => {
    const attempt = () => planAttach({ ...REQUEST, ...request }, facts(changes));
    expect(attempt).toThrow(expect.objectContaining({ code: `COLO_ERR_ATTACH_${code}` }));
    expect(attempt).toThrow(text);
  });

  it('takes a queue of a process that is said to be the daemon', () => {
    const plan = planAttach({ ...REQUEST, isListening: true }, facts({ boundQueues: [8, 9] }));
    expect(plan.by).toEqual(by(8));
  });

  it('finds a pair that neither rules nor processes use', () => {
    const { queue: _, ...anyQueue } = REQUEST;
    const used = [tables(['-A FORWARD -j NFQUEUE --queue-num 67'])];
    const plan = planAttach(anyQueue, facts({ boundQueues: [64], tables: used }));
    expect(plan.by).toEqual(by(68));
  });
});

describe('planDetach', () => {
  const attached = { links: [bridge('br0', ON), tap('tap0')], tables: [tables(savedRules())] };

  it('gives the bridge its switches back, then takes the rules out', () => {
    const plan = planDetach('tap0', facts(attached));
    expect(commands(plan)).toEqual([
      'ip link set dev br0 type bridge nf_call_iptables 0 nf_call_ip6tables 0',
      `iptables -w 5 -t mangle -D PREROUTING ${IN} -j NFQUEUE --queue-num 8 --queue-bypass`,
      `iptables -w 5 -t mangle -D POSTROUTING ${OUT} -j NFQUEUE --queue-num 9 --queue-bypass`,
      `ip6tables -w 5 -t mangle -D PREROUTING ${IN} -j NFQUEUE --queue-num 8 --queue-bypass`,
      `ip6tables -w 5 -t mangle -D POSTROUTING ${OUT} -j NFQUEUE --queue-num 9 --queue-bypass`,
    ]);
  });

  it('does nothing for a tap that is not attached', () => {
    expect(planDetach('tap1', facts(attached)).steps).toEqual([]);
  });

  it('leaves the switches to the last tap of the bridge', () => {
    const both = [tables([...savedRules(), ...savedRules('tap1', 10)])];
    const plan = planDetach('tap0', facts({ ...attached, tables: both }));
    expect(commands(plan)).toHaveLength(4);
    expect(commands(plan).every((line) => line.includes('--physdev-'))).toBe(true);
  });

  it('needs neither the tap nor its bridge', () => {
    const plan = planDetach('tap0', facts({ ...attached, links: [] }));
    expect(commands(plan)).toHaveLength(4);
  });

  it('finds the rules in whatever backend they are', () => {
    const both = [tables(), tables(savedRules(), 'legacy')];
    const plan = planDetach('tap0', facts({ ...attached, tables: both }));
    expect(commands(plan)[1]).toMatch(/^iptables-legacy .* -D PREROUTING /);
  });

  it('keeps a switch that was on before', () => {
    const was = [tables(savedRules('tap0', 8, 'tap0:br0:10'))];
    const plan = planDetach('tap0', facts({ ...attached, tables: was }));
    expect(commands(plan)[0]).toBe('ip link set dev br0 type bridge nf_call_ip6tables 0');
  });
});
