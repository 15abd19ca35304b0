/**
 * ARP over Ethernet (RFC 826) and IPv6 neighbour discovery (RFC 4861 §4): reads what frames say about who has which
 * address, and writes answers and announcements.
 *
 * ```text
 * ARP       hardware type 1 | protocol type 0x0800 | 6 | 4 | operation | sender MAC, IP | target MAC, IP
 * ICMPv6    type | code | checksum | flags (R S O ...) or reserved | target address | options: type, length in 8 bytes, ...
 * ```
 *
 * @module
 */
import type { FrameBuffer } from '../env/frame.ts';
import { VNET_HDR_BYTES } from '../limits.ts';
import type { FrameInfo } from '../wire/frame.ts';
import { foldSum, sumOfBytes } from './checksum-delta.ts';

export const ETHERTYPE_ARP = 0x0806;
export const ARP_REQUEST = 1;
export const ARP_REPLY = 2;
const ARP_BYTES = 28;
/** Hardware type Ethernet, protocol type IPv4, address lengths 6 and 4: the first six bytes. */
const ARP_ETHERNET_IPV4_HIGH = 0x00010800;
const ARP_ETHERNET_IPV4_LOW = 0x0604;

export const ICMPV6_ROUTER_SOLICITATION = 133;
export const ICMPV6_ROUTER_ADVERTISEMENT = 134;
export const ICMPV6_NEIGHBOUR_SOLICITATION = 135;
export const ICMPV6_NEIGHBOUR_ADVERTISEMENT = 136;
const PROTOCOL_ICMPV6 = 58;
const OPTION_SOURCE_LINK_ADDRESS = 1;
const OPTION_TARGET_LINK_ADDRESS = 2;
/** RFC 4861 §7.1: a smaller one was forwarded, thus is from off the link. */
const HOP_LIMIT = 255;

/** Flags of a neighbour advertisement, in its fifth byte (RFC 4861 §4.4). */
export const NA_ROUTER = 0x80;
export const NA_SOLICITED = 0x40;
export const NA_OVERRIDE = 0x20;

/** Bytes of the longest frame written here: Ethernet, two tags, IPv6, advertisement with one option. */
export const NEIGHBOUR_FRAME_BYTES_MAX = 14 + 8 + 40 + 32;

const BROADCAST_MAC = Uint8Array.of(0xff, 0xff, 0xff, 0xff, 0xff, 0xff);
/** RFC 2464 §7: 33:33 and the last four bytes of the group, here all nodes ff02::1. */
const ALL_NODES_MAC = Uint8Array.of(0x33, 0x33, 0, 0, 0, 1);
const ALL_NODES = Uint8Array.of(0xff, 0x02, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1);

/** An ARP packet's fields; offsets within the memory of the frame. Reused by its owner. */
export class ArpFields {
  operation = 0;
  senderMacOffset = 0;
  senderIpOffset = 0;
  targetMacOffset = 0;
  targetIpOffset = 0;
}

/** Reads an ARP packet for IPv4 over Ethernet. False for other frames, and for cut ones. */
export function readArp(info: FrameInfo, out: ArpFields): boolean {
  if (info.etherType !== ETHERTYPE_ARP) return false;
  const at = info.l3Offset;
  if (at + ARP_BYTES > info.frameOffset + info.frameBytes) return false;
  if (info.view.getUint32(at) !== ARP_ETHERNET_IPV4_HIGH) return false;
  if (info.view.getUint16(at + 4) !== ARP_ETHERNET_IPV4_LOW) return false;
  out.operation = info.view.getUint16(at + 6);
  out.senderMacOffset = at + 8;
  out.senderIpOffset = at + 14;
  out.targetMacOffset = at + 18;
  out.targetIpOffset = at + 24;
  return true;
}

/** A neighbour discovery message's fields; offsets within the memory of the frame, 0: not there. */
export class NeighbourFields {
  /** ICMPV6_ROUTER_SOLICITATION ... ICMPV6_NEIGHBOUR_ADVERTISEMENT. */
  type = 0;
  /** Of an advertisement: NA_ROUTER | NA_SOLICITED | NA_OVERRIDE. */
  flags = 0;
  /** Of a neighbour solicitation or advertisement: the address that it is about. */
  targetOffset = 0;
  /** MAC address in the source (solicitations, router advertisement) or target (advertisement) option. */
  linkAddressOffset = 0;
}

/** Where options begin, after the ICMPv6 header's first byte (RFC 4861 §4.1-4.4). */
function optionsAt(type: number): number {
  if (type === ICMPV6_ROUTER_SOLICITATION) return 8;
  return type === ICMPV6_ROUTER_ADVERTISEMENT ? 16 : 24;
}

/**
 * Reads a router or neighbour solicitation or advertisement. False for other frames and for messages that RFC 4861
 * §7.1 tells receivers to discard (hop limit, code, length, options).
 */
export function readNeighbourDiscovery(info: FrameInfo, out: NeighbourFields): boolean {
  if (info.ipVersion !== 6 || info.protocol !== PROTOCOL_ICMPV6 || info.isFragment) return false;
  const type = info.icmpType;
  if (type < ICMPV6_ROUTER_SOLICITATION || type > ICMPV6_NEIGHBOUR_ADVERTISEMENT) return false;
  const { bytes } = info;
  if (bytes[info.l3Offset + 7] !== HOP_LIMIT || info.icmpCode !== 0) return false;
  const end = info.l4Offset + info.l4Bytes;
  let at = info.l4Offset + optionsAt(type);
  if (at > end) return false;
  const isAboutTarget = type >= ICMPV6_NEIGHBOUR_SOLICITATION;
  out.type = type;
  out.flags = type === ICMPV6_NEIGHBOUR_ADVERTISEMENT ? bytes[info.l4Offset + 4]! : 0;
  out.targetOffset = isAboutTarget ? info.l4Offset + 8 : 0;
  out.linkAddressOffset = 0;
  const wanted =
    type === ICMPV6_NEIGHBOUR_ADVERTISEMENT
      ? OPTION_TARGET_LINK_ADDRESS
      : OPTION_SOURCE_LINK_ADDRESS;
  while (at < end) {
    if (at + 8 > end) return false;
    const optionBytes = bytes[at + 1]! * 8;
    if (optionBytes === 0 || at + optionBytes > end) return false;
    if (bytes[at] === wanted) out.linkAddressOffset = at + 2;
    at += optionBytes;
  }
  return true;
}

/** Where a frame is written: its VLAN tags (0, 4 or 8 bytes: TPID and TCI each) come after the MAC addresses. */
export interface FrameTarget {
  readonly buffer: FrameBuffer;
  /** First byte of the frame; the VNET_HDR_BYTES before it are cleared. */
  readonly offset: number;
}

/** Writes virtio-net and Ethernet headers; returns the offset after them. */
function writeEthernet(
  target: FrameTarget,
  tags: Uint8Array,
  dstMac: Uint8Array,
  srcMac: Uint8Array,
  etherType: number,
): number {
  const { bytes, view } = target.buffer;
  const offset = target.offset;
  bytes.fill(0, offset - VNET_HDR_BYTES, offset);
  bytes.set(dstMac, offset);
  bytes.set(srcMac, offset + 6);
  bytes.set(tags, offset + 12);
  view.setUint16(offset + 12 + tags.length, etherType);
  return offset + 14 + tags.length;
}

/**
 * Writes an ARP reply: `ip` is at `mac`, told to `dstMac` / `dstIp`. Returns the frame's length.
 * MAC addresses are 6 bytes, `ip` and `dstIp` 4.
 */
export function writeArpReply(
  target: FrameTarget,
  tags: Uint8Array,
  mac: Uint8Array,
  ip: Uint8Array,
  dstMac: Uint8Array,
  dstIp: Uint8Array,
): number {
  return writeArp(target, tags, ARP_REPLY, dstMac, mac, ip, dstMac, dstIp);
}

/**
 * Writes a gratuitous ARP (RFC 5227 §3, RFC 5944 §4.6) by which everyone on the link moves `ip` to `mac`. Some stacks
 * heed only the request form, some only the reply: an announcer sends both. Returns the frame's length.
 */
export function writeGratuitousArp(
  target: FrameTarget,
  tags: Uint8Array,
  operation: typeof ARP_REQUEST | typeof ARP_REPLY,
  mac: Uint8Array,
  ip: Uint8Array,
): number {
  const targetMac = operation === ARP_REQUEST ? new Uint8Array(6) : mac;
  return writeArp(target, tags, operation, BROADCAST_MAC, mac, ip, targetMac, ip);
}

function writeArp(
  target: FrameTarget,
  tags: Uint8Array,
  operation: number,
  dstMac: Uint8Array,
  srcMac: Uint8Array,
  senderIp: Uint8Array,
  targetMac: Uint8Array,
  targetIp: Uint8Array,
): number {
  const { bytes, view } = target.buffer;
  const at = writeEthernet(target, tags, dstMac, srcMac, ETHERTYPE_ARP);
  view.setUint32(at, ARP_ETHERNET_IPV4_HIGH);
  view.setUint16(at + 4, ARP_ETHERNET_IPV4_LOW);
  view.setUint16(at + 6, operation);
  bytes.set(srcMac, at + 8);
  bytes.set(senderIp, at + 14);
  bytes.set(targetMac, at + 18);
  bytes.set(targetIp, at + 24);
  return at + ARP_BYTES - target.offset;
}

/**
 * Writes a neighbour advertisement (RFC 4861 §4.4): `ip` is at `mac`. It goes from `ip` to `dstIp` at `dstMac`.
 * MAC addresses are 6 bytes, the others 16. Returns the frame's length.
 *
 * @param flags NA_ROUTER | NA_SOLICITED | NA_OVERRIDE
 */
export function writeNeighbourAdvertisement(
  target: FrameTarget,
  tags: Uint8Array,
  mac: Uint8Array,
  ip: Uint8Array,
  dstMac: Uint8Array,
  dstIp: Uint8Array,
  flags: number,
): number {
  const { bytes, view } = target.buffer;
  const at = writeEthernet(target, tags, dstMac, mac, 0x86dd);
  const icmpBytes = 32;
  view.setUint32(at, 0x60000000);
  view.setUint16(at + 4, icmpBytes);
  bytes[at + 6] = PROTOCOL_ICMPV6;
  bytes[at + 7] = HOP_LIMIT;
  bytes.set(ip, at + 8);
  bytes.set(dstIp, at + 24);
  const icmp = at + 40;
  bytes[icmp] = ICMPV6_NEIGHBOUR_ADVERTISEMENT;
  bytes[icmp + 1] = 0;
  view.setUint16(icmp + 2, 0);
  view.setUint32(icmp + 4, (flags << 24) >>> 0);
  bytes.set(ip, icmp + 8);
  bytes[icmp + 24] = OPTION_TARGET_LINK_ADDRESS;
  bytes[icmp + 25] = 1;
  bytes.set(mac, icmp + 26);
  // RFC 8200 §8.1: the addresses, the length and the next header are summed too.
  const sum =
    sumOfBytes(bytes, at + 8, at + 40, false) +
    icmpBytes +
    PROTOCOL_ICMPV6 +
    sumOfBytes(bytes, icmp, icmp + icmpBytes, false);
  view.setUint16(icmp + 2, ~foldSum(sum) & 0xffff);
  return icmp + icmpBytes - target.offset;
}

/** Writes an unsolicited neighbour advertisement to all nodes (RFC 4861 §7.2.6). Returns the frame's length. */
export function writeUnsolicitedAdvertisement(
  target: FrameTarget,
  tags: Uint8Array,
  mac: Uint8Array,
  ip: Uint8Array,
  isRouter: boolean,
): number {
  const flags = NA_OVERRIDE | (isRouter ? NA_ROUTER : 0);
  return writeNeighbourAdvertisement(target, tags, mac, ip, ALL_NODES_MAC, ALL_NODES, flags);
}
