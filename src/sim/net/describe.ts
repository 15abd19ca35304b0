/**
 * One line of text for a frame, for people who follow a run.
 *
 * @module
 */
import { ACK, FIN, PSH, parseSegment, RST, SYN, URG } from '../tcp/segment.ts';
import { PROTOCOL_TCP, PROTOCOL_UDP, parseArp, parseIp, readU16, type SimFrame } from './packet.ts';

const FLAG_NAMES: readonly (readonly [number, string])[] = [
  [SYN, 'S'],
  [FIN, 'F'],
  [RST, 'R'],
  [PSH, 'P'],
  [ACK, '.'],
  [URG, 'U'],
];

/** Addresses end in what tells hosts apart here. */
function shortAddress(address: string): string {
  return `${address.length === 8 ? 'v4' : 'v6'}.${address.slice(-2)}`;
}

/** Who sends what to whom. */
export function describeFrame(frame: SimFrame): string {
  const arp = parseArp(frame);
  if (arp !== undefined) {
    const what = arp.operation === 1 ? 'who-has' : 'is-at';
    return `arp ${what} ${shortAddress(arp.targetIp)} from ${shortAddress(arp.senderIp)}`;
  }
  const packet = parseIp(frame);
  if (packet === undefined) return `${frame.length} bytes`;
  const { payload, protocol } = packet;
  const ends = `${shortAddress(packet.src)} > ${shortAddress(packet.dst)}`;
  const isFragment = packet.fragmentOffset > 0 || packet.moreFragments;
  if (isFragment) return `${ends} protocol ${protocol} fragment at ${packet.fragmentOffset}`;
  if (protocol === PROTOCOL_UDP && payload.length >= 8) {
    return `${ends} udp ${readU16(payload, 0)} > ${readU16(payload, 2)} ${payload.length - 8}`;
  }
  const segment = protocol === PROTOCOL_TCP ? parseSegment(payload) : undefined;
  if (segment === undefined)
    return `${ends} protocol ${protocol} type ${payload[0]} ${payload.length}`;
  const flags = FLAG_NAMES.filter(([bit]) => (segment.flags & bit) !== 0).map(([, name]) => name);
  const sack = segment.sack.length === 0 ? '' : ` sack ${segment.sack.join('-')}`;
  const stamps = segment.timestamps;
  const times = stamps === undefined ? '' : ` ts ${stamps.value}/${stamps.echo}`;
  return `${ends} tcp ${segment.srcPort} > ${segment.dstPort} ${flags.join('')} seq ${segment.seq}+${segment.payload.length} ack ${segment.ack} win ${segment.window}${sack}${times}`;
}
