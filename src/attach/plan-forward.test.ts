import { describe, expect, it } from 'vitest';
import { planAttach, planDetach } from './plan.ts';
import { bridge, commands, facts, REQUEST, tap, undos } from './test-facts.ts';
import type { AttachRequest, HostFacts, Link } from './types.ts';

const WITH: AttachRequest = { ...REQUEST, forwardDev: 'eth1' };
const SILENT = { arp_ignore: '8', disable_ipv6: '1' };
const V4 = '/proc/sys/net/ipv4/conf/eth1/arp_ignore';
const V6 = '/proc/sys/net/ipv6/conf/eth1/disable_ipv6';

const eth1 = (changes: Partial<Link> = {}): Link =>
  tap('eth1', '', { kind: '', isUp: false, ...changes });
const host = (...more: Link[]): HostFacts =>
  facts({ links: [bridge('br0'), tap('tap0'), tap('tap1'), ...more] });

/** As attach leaves it. */
const ATTACHED = eth1({ alias: 'colo-proxy:tap0:forward:0:0:0', stack: SILENT, isUp: true });

describe('planAttach with a forward device', () => {
  it('keeps the IP stack away from it and puts it up, before all else', () => {
    const plan = planAttach(WITH, host(eth1()));
    expect(commands(plan).slice(0, 4)).toEqual([
      'ip link set dev eth1 alias colo-proxy:tap0:forward:0:0:0',
      `echo 8 > ${V4}`,
      `echo 1 > ${V6}`,
      'ip link set dev eth1 up',
    ]);
    expect(undos(plan).slice(0, 4)).toEqual([
      "ip link set dev eth1 alias ''",
      `echo 0 > ${V4}`,
      `echo 0 > ${V6}`,
      'ip link set dev eth1 down',
    ]);
    expect(commands(plan).slice(4)).toEqual(commands(planAttach(REQUEST, host())));
  });

  it('keeps an alias that it had', () => {
    const plan = planAttach(WITH, host(eth1({ alias: 'to sn', isUp: true })));
    expect(commands(plan)[0]).toBe(
      "ip link set dev eth1 alias 'colo-proxy:tap0:forward:0:0:1 to sn'",
    );
    expect(undos(plan)[0]).toBe("ip link set dev eth1 alias 'to sn'");
  });

  it('does nothing more when it is done, and completes what was cut short', () => {
    const rest = commands(planAttach(REQUEST, host()));
    expect(commands(planAttach(WITH, host(ATTACHED)))).toEqual(rest);
    const half = { ...ATTACHED, isUp: false };
    expect(commands(planAttach(WITH, host(half)))).toEqual(['ip link set dev eth1 up', ...rest]);
  });

  it.each<[string, Partial<AttachRequest>, Link[], string, RegExp]>([
    ['no such interface', {}, [], 'INTERFACE', /There is no interface eth1/],
    ['in a bridge', {}, [eth1({ master: 'br0' })], 'INTERFACE', /eth1 is in br0: .* no bridge/],
    ['the tap', { forwardDev: 'tap0' }, [], 'INTERFACE', /cannot be tap0 as well/],
    ['the bridge', { forwardDev: 'br0' }, [], 'INTERFACE', /cannot be br0 as well/],
    [
      'of another tap',
      {},
      [eth1({ alias: 'colo-proxy:tap1:forward:0:0:1' })],
      'CONFLICT',
      /eth1 is the forward device of tap1 already/,
    ],
    [
      'another one than it has',
      { forwardDev: 'eth2' },
      [ATTACHED, eth1({ name: 'eth2' })],
      'CONFLICT',
      /tap0 has the forward device eth1: detach it first/,
    ],
    ['no room', {}, [eth1({ alias: 'x'.repeat(250) })], 'CONFLICT', /leaves no room/],
  ])('refuses: %s', (_, request, links, code, text) => {
    const attempt = () => planAttach({ ...WITH, ...request }, host(...links));
    expect(attempt).toThrow(expect.objectContaining({ code: `COLO_ERR_ATTACH_${code}` }));
    expect(attempt).toThrow(text);
  });
});

describe('planDetach with a forward device', () => {
  it('leaves it as it was', () => {
    expect(commands(planDetach('tap0', host(ATTACHED)))).toEqual([
      'ip link set dev eth1 down',
      `echo 0 > ${V4}`,
      `echo 0 > ${V6}`,
      "ip link set dev eth1 alias ''",
    ]);
    const named = { ...ATTACHED, alias: 'colo-proxy:tap0:forward:1:-:1 to: sn' };
    expect(commands(planDetach('tap0', host(named)))).toEqual([
      `echo 1 > ${V4}`,
      "ip link set dev eth1 alias 'to: sn'",
    ]);
  });

  it('leaves that of another tap alone', () => {
    expect(planDetach('tap1', host(ATTACHED)).steps).toEqual([]);
  });
});
