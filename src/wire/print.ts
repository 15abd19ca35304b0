/**
 * One line of text for a frame, in the manner of tcpdump: for traces, failing tests and the offline tools.
 *
 * @module
 */
import type { FrameBuffer } from '../env/frame.ts';
import { formatIp, formatIpv4, formatMac } from './address.ts';
import {
  ARP_OPERATION,
  ARP_REQUEST,
  ARP_SENDER_IP,
  ARP_SENDER_MAC,
  ARP_TARGET_IP,
  isArp,
} from './arp.ts';
import { ETHER_TYPE_ARP, ETHERNET_SRC, formatVlan } from './ethernet.ts';
import { DROP_REASON_NAMES, dissect, FRAME_OK, FrameInfo } from './frame.ts';
import { ICMP_SEQUENCE } from './icmpv4.ts';
import { ND_NEIGHBOUR_ADVERTISEMENT, ND_NEIGHBOUR_SOLICITATION, ND_TARGET } from './icmpv6.ts';
import { seqAdd } from './seq.ts';
import { formatTcpFlags, TCP_ACK, TCP_FIN, TCP_RST, TCP_SYN } from './tcp.ts';
import { parseTcpOptions, TcpOptions } from './tcp-options.ts';

/**
 * The frame as a line, e.g. `10.0.0.2.80 > 10.0.0.9.40312: tcp SA seq 100 ack 7 win 65535 [mss 1460] length 0`.
 * Sequence numbers are absolute. Any bytes give a line.
 */
export function printFrame(buffer: FrameBuffer, offset: number, length: number): string {
  const info = new FrameInfo();
  const reason = dissect(buffer, offset, length, info);
  const vlan = info.vlanTags === 0 ? '' : `vlan ${formatVlan(info.vlan)}, `;
  if (reason !== FRAME_OK) {
    return `${vlan}malformed (${DROP_REASON_NAMES[reason]}), length ${length}`;
  }
  return vlan + printInfo(info);
}

/** The same of a frame that is dissected already; tags are not printed. */
export function printInfo(info: FrameInfo): string {
  if (info.ipVersion === 0) return printOther(info);
  const src = printEndpoint(info, info.srcAddressOffset, info.srcPort);
  const dst = printEndpoint(info, info.dstAddressOffset, info.dstPort);
  return `${src} > ${dst}: ${printTransport(info)}`;
}

function printEndpoint(info: FrameInfo, addressOffset: number, port: number): string {
  const address = formatIp(info.ipVersion, info.bytes, addressOffset);
  const hasPort = (info.protocol === 6 || info.protocol === 17) && info.fragmentOffset === 0;
  return hasPort ? `${address}.${port}` : address;
}

function printOther(info: FrameInfo): string {
  const { bytes, view, l3Offset } = info;
  if (
    info.etherType === ETHER_TYPE_ARP &&
    isArp(view, l3Offset, info.frameOffset + info.frameBytes)
  ) {
    const sender = formatIpv4(bytes, l3Offset + ARP_SENDER_IP);
    if (view.getUint16(l3Offset + ARP_OPERATION) !== ARP_REQUEST) {
      return `arp reply ${sender} is-at ${formatMac(bytes, l3Offset + ARP_SENDER_MAC)}`;
    }
    return `arp who-has ${formatIpv4(bytes, l3Offset + ARP_TARGET_IP)} tell ${sender}`;
  }
  const src = formatMac(bytes, info.frameOffset + ETHERNET_SRC);
  const dst = formatMac(bytes, info.frameOffset);
  const type = info.etherType.toString(16).padStart(4, '0');
  return `${src} > ${dst}: ethertype 0x${type}, length ${info.frameBytes}`;
}

function printTransport(info: FrameInfo): string {
  if (info.isFragment) {
    const more = info.moreFragments ? '+' : '';
    const place = `${info.fragmentOffset}${more}`;
    return `frag id ${info.fragmentId} offset ${place}, ip-proto-${info.protocol}, length ${info.l4Bytes}`;
  }
  if (info.protocol === 6) return printTcp(info);
  if (info.protocol === 17) return `udp length ${info.payloadBytes}`;
  if (info.protocol === 1 && info.ipVersion === 4) return printIcmp(info, 'icmp', 8, 0);
  if (info.protocol === 58 && info.ipVersion === 6) return printIcmp(info, 'icmp6', 128, 129);
  return `ip-proto-${info.protocol} length ${info.l4Bytes}`;
}

function printTcp(info: FrameInfo): string {
  const flags = info.tcpFlags;
  const parts = [`tcp ${formatTcpFlags(flags)}`];
  const isShown = info.payloadBytes > 0 || (flags & (TCP_SYN | TCP_FIN | TCP_RST)) !== 0;
  const end = info.payloadBytes > 0 ? `:${seqAdd(info.seq, info.payloadBytes)}` : '';
  if (isShown) parts.push(`seq ${info.seq}${end}`);
  if ((flags & TCP_ACK) !== 0) parts.push(`ack ${info.ack}`);
  parts.push(`win ${info.window}`);
  const options = printOptions(info);
  if (options !== '') parts.push(`[${options}]`);
  parts.push(`length ${info.payloadBytes}`);
  return parts.join(' ');
}

function printOptions(info: FrameInfo): string {
  const options = new TcpOptions();
  parseTcpOptions(info.view, info.l4Offset + 20, info.payloadOffset, options);
  const parts: string[] = [];
  if (options.mssOffset !== 0) parts.push(`mss ${options.mss}`);
  if (options.windowScale >= 0) parts.push(`wscale ${options.windowScale}`);
  if (options.sackPermitted) parts.push('sackOK');
  if (options.hasTimestamps) parts.push(`TS val ${options.tsval} ecr ${options.tsecr}`);
  for (let i = 0; i < options.sackCount; i++) {
    parts.push(`sack ${options.sackLeft(i)}:${options.sackRight(i)}`);
  }
  if (options.malformed) parts.push('malformed');
  return parts.join(', ');
}

function printIcmp(info: FrameInfo, name: string, request: number, reply: number): string {
  const { icmpType: type, icmpCode: code, l4Offset } = info;
  if ((type === request || type === reply) && info.l4Bytes >= 8) {
    const sequence = info.view.getUint16(l4Offset + ICMP_SEQUENCE);
    const kind = type === request ? 'request' : 'reply';
    return `${name} echo ${kind} id ${info.srcPort} seq ${sequence} length ${info.payloadBytes}`;
  }
  if (name === 'icmp6' && info.l4Bytes >= ND_TARGET + 16) {
    const target = formatIp(6, info.bytes, l4Offset + ND_TARGET);
    if (type === ND_NEIGHBOUR_SOLICITATION) return `icmp6 neighbour solicitation who-has ${target}`;
    if (type === ND_NEIGHBOUR_ADVERTISEMENT) return `icmp6 neighbour advertisement of ${target}`;
  }
  return `${name} type ${type} code ${code} length ${info.l4Bytes}`;
}
