/**
 * The RFC's topology on one machine, out of network namespaces and veth pairs:
 *
 *     client:eth0 --- switch:sw0 --- pn:eth0 - br0 - cp0-br/cp0 [primary] tap0 --- pvm:eth0
 *                          |           eth1 (peer link)
 *                          |           eth1
 *                          +-------- sn:eth0 - br0 - cp0-br/cp0 [secondary] tap0 --- svm:eth0
 *
 * PVM and SVM have the same MAC and IP addresses. Only hosts have addresses: bridges, node ports and
 * switch ports never speak for themselves. With `impaired`, a namespace `wire` lies in the way of the
 * client and of each guest; what is in it must be carried across by the impairment relay. Attached by packet queues, PN's tap0 is in
 * br0 as it is without a proxy, and there is no cp0:
 *
 *     pn:eth0 - br0 - tap0 --- pvm:eth0       rules of iptables on br0's way hand over to [primary]
 *
 * @module
 */

import type { LabAttach } from '../cli/experiments.ts';
import { attachByQueue } from './attach.ts';
import { Namespace } from './netns.ts';

export const GUEST_MAC = '52:54:00:c0:10:01';
/** Addresses of client and guest, by IP version. */
export const ADDRESSES = {
  4: { client: '10.77.0.9', guest: '10.77.0.2' },
  6: { client: 'fd77::9', guest: 'fd77::2' },
} as const;
/** The nodes' ends of the peer link (eth1 in the RFC). */
export const PEER_ADDRESSES = { pn: '10.78.0.1', sn: '10.78.0.2' } as const;

export interface Topology {
  readonly client: Namespace;
  readonly switch: Namespace;
  readonly pn: Namespace;
  readonly sn: Namespace;
  readonly pvm: Namespace;
  /** Replaced by {@link replaceSvm}. */
  svm: Namespace;
  /** Where the impairment relay runs; undefined without impairment. */
  readonly wire: Namespace | undefined;
}

export interface TopologyOptions {
  /** Frames to and from client and guests go through {@link Topology.wire}. */
  readonly impaired: boolean;
  /** Guest taps join the bridges directly, no proxy: the baseline. The SVM stays unplugged. */
  readonly plain: boolean;
  /** How the primary gets between guest and network. Default: packet */
  readonly attach?: LabAttach;
}

/** Interfaces of the `wire` namespace that the relay joins, by where they lie. */
export const WIRE_PAIRS = [
  ['client-a', 'client-b'],
  ['pvm-a', 'pvm-b'],
  ['svm-a', 'svm-b'],
] as const;

/** Neighbour discovery would otherwise chat from every interface of a switch or node. */
const SILENT = { 'ipv6/conf/all/disable_ipv6': 1, 'ipv6/conf/default/disable_ipv6': 1 };

const HOST = {
  'ipv6/conf/all/disable_ipv6': 0,
  'ipv6/conf/default/accept_dad': 0,
  'ipv6/conf/default/dad_transmits': 0,
  'ipv6/conf/default/accept_ra': 0,
  'ipv6/conf/default/router_solicitations': 0,
  'ipv4/ping_group_range': '0 0',
  'ipv4/tcp_no_metrics_save': 1,
  'core/somaxconn': 16_384,
  'ipv4/tcp_max_syn_backlog': 16_384,
};

/**
 * A guest's kernel keeps no state that a checkpoint cannot copy: no TIME_WAIT, no Fast Open cookies. Buffers
 * start large, because a connection that is made again must hold at once what the old one had grown to hold.
 */
const GUEST = {
  'ipv4/tcp_max_tw_buckets': 0,
  'ipv4/tcp_fastopen': 0,
  'ipv4/tcp_wmem': '4096 8388608 8388608',
  'ipv4/tcp_rmem': '4096 4194304 8388608',
};

/** Builds everything; takes about a tenth of a second. @throws ColoError */
export function buildTopology(options: TopologyOptions): Topology {
  const [client, switchNs, pn, sn, pvm, svm] = ['client', 'switch', 'pn', 'sn', 'pvm', 'svm'].map(
    (name) => new Namespace(name),
  ) as [Namespace, Namespace, Namespace, Namespace, Namespace, Namespace];
  const wire = options.impaired ? new Namespace('wire') : undefined;
  for (const ns of [switchNs, pn, sn, ...(wire === undefined ? [] : [wire])]) ns.sysctl(SILENT);
  client.sysctl(HOST);
  for (const guest of [pvm, svm]) guest.sysctl({ ...HOST, ...GUEST });

  buildSwitch(switchNs, pn, sn);
  const isQueued = options.attach === 'nfqueue' && !options.plain;
  buildNode(pn, options.plain || isQueued ? 'plain' : 'proxied');
  buildNode(sn, options.plain ? 'unplugged' : 'proxied');
  pn.ip(['link add eth1 type veth peer name eth1 netns @sn'], [sn]);
  for (const [node, address] of [
    [pn, PEER_ADDRESSES.pn],
    [sn, PEER_ADDRESSES.sn],
  ] as const) {
    node.ip([`addr add ${address}/24 dev eth1`, 'link set eth1 up', 'link set lo up']);
  }
  connect(client, 'eth0', switchNs, 'p-client', wire, 'client');
  connect(pvm, 'eth0', pn, 'tap0', wire, 'pvm');
  connect(svm, 'eth0', sn, 'tap0', wire, 'svm');
  switchNs.ip(['link set p-client master sw0', 'link set p-client up']);
  const isBridged = options.plain || isQueued;
  pn.ip([...(isBridged ? ['link set tap0 master br0'] : []), 'link set tap0 up']);
  if (isQueued) attachByQueue(pn);
  sn.ip(['link set tap0 up']);
  for (const guest of [pvm, svm]) addHost(guest, 'guest', GUEST_MAC);
  addHost(client, 'client', undefined);
  return { client, switch: switchNs, pn, sn, pvm, svm, wire };
}

/** All namespaces, for tearing down and for telling the user. */
export function namespacesOf(topology: Topology): Namespace[] {
  const { client, switch: switchNs, pn, sn, pvm, svm, wire } = topology;
  return [client, switchNs, pn, sn, pvm, svm, ...(wire === undefined ? [] : [wire])];
}

/** Gives up all namespaces; processes in them must have ended, or keep theirs alive. */
export function closeTopology(topology: Topology): void {
  for (const ns of namespacesOf(topology)) ns.close();
}

/**
 * A new machine in the place of the SVM. The old one's kernel still holds its connections (they outlive the
 * process that owned them), so it must go as a whole. Only without impairment.
 */
export function replaceSvm(topology: Topology): void {
  topology.sn.ip(['link del tap0']);
  topology.svm.close();
  topology.svm = new Namespace('svm');
  topology.svm.sysctl({ ...HOST, ...GUEST });
  connect(topology.svm, 'eth0', topology.sn, 'tap0', undefined, 'svm');
  topology.sn.ip(['link set tap0 up']);
  addHost(topology.svm, 'guest', GUEST_MAC);
}

const BRIDGE = 'type bridge stp_state 0 forward_delay 0 mcast_snooping 0';

function buildSwitch(switchNs: Namespace, pn: Namespace, sn: Namespace): void {
  const ports = [pn, sn].flatMap((node) => [
    `link add p-${node.name} type veth peer name eth0 netns @${node.name}`,
    `link set p-${node.name} master sw0`,
    `link set p-${node.name} up`,
  ]);
  switchNs.ip([`link add sw0 ${BRIDGE}`, 'link set sw0 up', ...ports], [pn, sn]);
}

function buildNode(node: Namespace, wiring: 'proxied' | 'plain' | 'unplugged'): void {
  const proxyPort = [
    'link add cp0 type veth peer name cp0-br',
    'link set cp0-br master br0',
    'link set cp0-br up',
    'link set cp0 up',
    // A broadcast of the guest comes by here too. A bridge that learned its place from that would keep from the secondary what clients
    // send to it while nobody serves.
    'link set eth0 type bridge_slave learning off',
  ];
  node.ip([
    `link add br0 ${BRIDGE}`,
    'link set br0 up',
    'link set eth0 master br0',
    'link set eth0 up',
    ...(wiring === 'proxied' ? proxyPort : []),
  ]);
}

/** A cable between two namespaces, through `wire` when there is one. */
function connect(
  from: Namespace,
  fromPort: string,
  to: Namespace,
  toPort: string,
  wire: Namespace | undefined,
  name: string,
): void {
  if (wire === undefined) {
    from.ip([`link add ${fromPort} type veth peer name ${toPort} netns @${to.name}`], [to]);
    return;
  }
  wire.ip(
    [
      `link add ${name}-a type veth peer name ${fromPort} netns @${from.name}`,
      `link add ${name}-b type veth peer name ${toPort} netns @${to.name}`,
      `link set ${name}-a up`,
      `link set ${name}-b up`,
    ],
    [from, to],
  );
}

/** Makes `eth0` of a namespace that of the client or of a guest, with its addresses, and up. @param mac default: as it is */
export function addHost(ns: Namespace, role: 'client' | 'guest', mac: string | undefined): void {
  ns.ip([
    ...(mac === undefined ? [] : [`link set eth0 address ${mac}`]),
    // Without a link-local address a host says nothing of its own accord.
    'link set eth0 addrgenmode none',
    'link set lo up',
    'link set eth0 up',
    `addr add ${ADDRESSES[4][role]}/24 dev eth0`,
    `addr add ${ADDRESSES[6][role]}/64 dev eth0 nodad`,
  ]);
}
