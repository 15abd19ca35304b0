/**
 * PORT strings of the command line and the configuration.
 *
 * ```text
 * packet:IFNAME                           frames on an existing interface, through a packet socket
 * tap:IFNAME                              the far side of a tap device, made if need be
 * qemu:unix:PATH[,server][,vnet_hdr]      frame stream of QEMU: `-netdev stream`, or a socket chardev of its filters
 * qemu:tcp:HOST:PORT[,server][,vnet_hdr]  the same over TCP; HOST may be [IPV6]
 * nfqueue:NUM,tap=IF,bridge=IF[,fail-open]   IP packets that rules of iptables queue; guest and network in one: see nfqueue.ts
 * pcap:FILE                               the frames of a capture file, then its end; only for reading
 * ```
 *
 * NUM is the queue of what the guest sends, NUM + 1 that of what goes to it. `server`: listen rather than connect. `vnet_hdr`: the other side has vnet_hdr_support.
 *
 * @module
 */
import { lookup } from 'node:dns/promises';
import { ColoError } from '../base/error.ts';
import type { Port } from '../env/port.ts';
import { type StreamAddress, UNIX_PATH_BYTES_MAX } from '../os/stream-socket.ts';
import { NfqueueTap } from './nfqueue.ts';
import { PacketPort } from './packet.ts';
import { PcapPort } from './pcap.ts';
import { QemuPort } from './qemu.ts';
import { TapPort } from './tap.ts';

/** A PORT string, taken apart. */
export type PortSpec =
  | { readonly kind: 'packet'; readonly interfaceName: string }
  | { readonly kind: 'tap'; readonly interfaceName: string }
  | {
      readonly kind: 'nfqueue';
      readonly queue: number;
      readonly tap: string;
      readonly bridge: string;
      readonly failOpen: boolean;
    }
  | { readonly kind: 'pcap'; readonly path: string }
  | {
      readonly kind: 'qemu';
      readonly endpoint:
        | { readonly kind: 'unix'; readonly path: string }
        | { readonly kind: 'tcp'; readonly host: string; readonly port: number };
      readonly isServer: boolean;
      readonly hasVnetHeader: boolean;
    };

type QemuSpec = Extract<PortSpec, { kind: 'qemu' }>;

const FORMS =
  'packet:IFNAME, tap:IFNAME, nfqueue:NUM,tap=IF,bridge=IF, qemu:unix:PATH[,server], qemu:tcp:HOST:PORT[,server], pcap:FILE';

/**
 * Takes a PORT string apart; opens nothing.
 *
 * @throws ColoError COLO_ERR_PORT_SPEC
 */
export function parsePortSpec(spec: string): PortSpec {
  const colon = spec.indexOf(':');
  const kind = colon < 0 ? spec : spec.slice(0, colon);
  const rest = colon < 0 ? '' : spec.slice(colon + 1);
  switch (kind) {
    case 'packet':
    case 'tap':
      return { kind, interfaceName: checkInterfaceName(spec, rest) };
    case 'qemu':
      return parseQemuSpec(spec, rest);
    case 'nfqueue':
      return parseNfqueueSpec(spec, rest);
    case 'pcap':
      if (rest === '') throw specError(spec, 'a file must follow the colon');
      return { kind, path: rest };
    default:
      throw specError(spec, `there is no port kind "${kind}"; one of ${FORMS} is wanted`);
  }
}

/**
 * Opens a port. It is silent until `start`.
 *
 * @throws ColoError (as a rejection) COLO_ERR_PORT_SPEC, or that of the port kind: COLO_ERR_PACKET_OPEN,
 *   COLO_ERR_TAP_OPEN, COLO_ERR_QEMU_LISTEN, COLO_ERR_PCAP_OPEN
 */
export async function openPort(spec: string): Promise<Port> {
  const parsed = parsePortSpec(spec);
  switch (parsed.kind) {
    case 'packet':
      return new PacketPort(parsed.interfaceName);
    case 'tap':
      return new TapPort(parsed.interfaceName);
    case 'pcap':
      return new PcapPort(parsed.path);
    case 'nfqueue':
      throw specError(spec, 'it is guest and network in one, and no port by itself');
    case 'qemu': {
      const { isServer, hasVnetHeader } = parsed;
      const address = await resolveEndpoint(spec, parsed.endpoint);
      return new QemuPort({ name: spec, address, isServer, hasVnetHeader });
    }
  }
}

/**
 * Opens the two ports of a node: `net` is ignored where `guest` is both.
 *
 * @throws ColoError (as a rejection) as `openPort`; COLO_ERR_NFQUEUE_OPEN
 */
export async function openNodePorts(
  guest: string,
  net: string,
): Promise<{ guest: Port; net: Port }> {
  const parsed = parsePortSpec(guest);
  if (parsed.kind === 'nfqueue') return new NfqueueTap({ name: guest, ...parsed });
  const guestPort = await openPort(guest);
  try {
    return { guest: guestPort, net: await openPort(net) };
  } catch (error) {
    await guestPort.close();
    throw error;
  }
}

/** Does this PORT carry both the guest's and the network's side? */
export function isBothSides(spec: string): boolean {
  return spec.startsWith('nfqueue:');
}

async function resolveEndpoint(
  spec: string,
  endpoint: QemuSpec['endpoint'],
): Promise<StreamAddress> {
  if (endpoint.kind === 'unix') return endpoint;
  try {
    const { address, family } = await lookup(endpoint.host);
    return { kind: 'tcp', family: family === 6 ? 6 : 4, address, port: endpoint.port };
  } catch (cause) {
    const text = `Cannot use the port "${spec}": there is no host "${endpoint.host}"`;
    throw new ColoError('COLO_ERR_PORT_HOST', text, { cause, path: endpoint.host });
  }
}

/** Queues have 16 bits, and there are two of them. */
const QUEUE_MAX = 65_534;

function parseNfqueueSpec(spec: string, rest: string): PortSpec {
  const [number = '', ...options] = rest.split(',');
  if (!/^\d{1,5}$/.test(number) || Number(number) > QUEUE_MAX) {
    throw specError(spec, `a queue number, 0 to ${QUEUE_MAX}, must follow the colon`);
  }
  const values = new Map<string, string>();
  for (const option of options) {
    const [, name = option, value = ''] = /^(tap|bridge)=(.*)$/.exec(option) ?? [];
    if (value === '' && option !== 'fail-open') {
      throw specError(spec, `"${option}" is none of its options: tap=IF, bridge=IF, fail-open`);
    }
    if (values.has(name)) throw specError(spec, `${name} is given twice`);
    values.set(name, value);
  }
  const tap = values.get('tap');
  const bridge = values.get('bridge');
  if (tap === undefined || bridge === undefined) {
    throw specError(spec, 'it needs tap=IF, the interface of the guest, and bridge=IF, its bridge');
  }
  for (const name of [tap, bridge]) checkInterfaceName(spec, name);
  const failOpen = values.has('fail-open');
  return { kind: 'nfqueue', queue: Number(number), tap, bridge, failOpen };
}

function parseQemuSpec(spec: string, rest: string): QemuSpec {
  const [place = '', ...options] = rest.split(',');
  for (const option of options) {
    if (option !== 'server' && option !== 'vnet_hdr') {
      throw specError(spec, `there is no option "${option}"; server and vnet_hdr are known`);
    }
  }
  return {
    kind: 'qemu',
    endpoint: parseQemuEndpoint(spec, place),
    isServer: options.includes('server'),
    hasVnetHeader: options.includes('vnet_hdr'),
  };
}

function parseQemuEndpoint(spec: string, place: string): QemuSpec['endpoint'] {
  if (place.startsWith('unix:')) {
    const path = place.slice('unix:'.length);
    if (path === '' || path.includes('\0')) throw specError(spec, 'a path must follow unix:');
    if (new TextEncoder().encode(path).length > UNIX_PATH_BYTES_MAX) {
      throw specError(spec, `the path is longer than ${UNIX_PATH_BYTES_MAX} bytes`);
    }
    return { kind: 'unix', path };
  }
  const match = /^tcp:(?:\[([^\]]+)\]|([^:[\]\s]+)):(\d{1,5})$/.exec(place);
  if (match === null) throw specError(spec, 'unix:PATH or tcp:HOST:PORT must follow qemu:');
  const port = Number(match[3]);
  if (port < 1 || port > 65_535) throw specError(spec, 'the TCP port must be 1 to 65535');
  return { kind: 'tcp', host: match[1] ?? match[2] ?? '', port };
}

/** As the kernel's dev_valid_name: 1..15 bytes, no slash, colon or white space, not `.` or `..`. */
function checkInterfaceName(spec: string, name: string): string {
  if (name === '') throw specError(spec, 'an interface name must follow the colon');
  if (new TextEncoder().encode(name).length > 15) {
    throw specError(spec, 'an interface name has at most 15 bytes');
  }
  if (/[/:\s\0]/.test(name) || name === '.' || name === '..') {
    throw specError(spec, `"${name}" cannot be the name of an interface`);
  }
  return name;
}

function specError(spec: string, reason: string): ColoError {
  return new ColoError('COLO_ERR_PORT_SPEC', `Cannot use the port "${spec}": ${reason}`);
}
