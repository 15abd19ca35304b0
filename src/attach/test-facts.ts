/**
 * A host with a bridge and two taps, for the tests of planning.
 *
 * @module
 */
import { describeAction } from './run.ts';
import type { AttachRequest, HostFacts, Link, Plan, Tables } from './types.ts';

export const OFF = { 4: false, 6: false };
export const ON = { 4: true, 6: true };

const LINK: Link = {
  name: '',
  kind: 'tun',
  master: '',
  peer: '',
  alias: '',
  mac: 'fe:54:00:00:00:01',
  mtu: 1500,
  isUp: true,
  callsIptables: OFF,
  isVlanAware: false,
  portSettings: {},
  stack: { arp_ignore: '0', disable_ipv6: '0' },
};

export const bridge = (name: string, callsIptables = OFF): Link => ({
  ...LINK,
  name,
  kind: 'bridge',
  callsIptables,
});

export const tap = (name: string, master = 'br0', changes: Partial<Link> = {}): Link => ({
  ...LINK,
  name,
  master,
  ...changes,
});

export function tables(
  saved: readonly string[] = [],
  backend: Tables['backend'] = 'nf_tables',
): Tables {
  const suffix = backend === 'legacy' ? '-legacy' : '';
  const text = ['*mangle', ':PREROUTING ACCEPT [0:0]', ...saved, 'COMMIT', ''].join('\n');
  const programs = { 4: `iptables${suffix}`, 6: `ip6tables${suffix}` };
  return { backend, programs, saved: { 4: text, 6: text } };
}

export function facts(changes: Partial<HostFacts> = {}): HostFacts {
  return {
    links: [bridge('br0'), tap('tap0'), tap('tap1')],
    tables: [tables()],
    isBackendGiven: false,
    boundQueues: [],
    allBridgesCall: OFF,
    hasIpv6: true,
    ...changes,
  };
}

export const REQUEST: AttachRequest = {
  mode: 'nfqueue',
  tap: 'tap0',
  bridge: 'br0',
  queue: 8,
  isBypassing: true,
  isListening: false,
};

export const commands = ({ steps }: Plan): string[] =>
  steps.map(({ action }) => describeAction(action));

export const undos = ({ steps }: Plan): string[] =>
  steps.map(({ undo }) => (undo === undefined ? '' : describeAction(undo)));
