/**
 * One-pass dissection of a frame into the offsets and fields that the engines need.
 *
 * Never throws, never reads outside `[offset, offset + length)` (and the flags byte of the virtio-net
 * header before it), on any bytes. Looks through up to two VLAN tags and through IPv6 extension
 * headers. It proves the bounds of every header that it reports, so later readers need no checks of
 * their own; it verifies no checksum, which is the receiving stack's business.
 *
 * Sources: RFC 791, RFC 8200 §4, RFC 9293 §3.1, RFC 768, RFC 792, RFC 4443, IEEE 802.1Q-2018 §9.
 *
 * @module
 */
import type { FrameBuffer } from '../env/frame.ts';
import { IPV6_EXTENSION_HEADERS_MAX, VNET_HDR_BYTES } from '../limits.ts';

/** Why a frame could not be dissected: index into DROP_REASON_NAMES; 0 (FRAME_OK) is success. */
export type DropReason = number;

export const FRAME_OK = 0;
/** Shorter than an Ethernet header, or than its tags need. */
export const DROP_ETHERNET_TRUNCATED = 1;
/** More than two VLAN tags. */
export const DROP_VLAN_NESTED = 2;
/** Version or header length impossible, or total length shorter than the header. */
export const DROP_IPV4_MALFORMED = 3;
/** The IPv4 packet is longer than the frame, or the frame shorter than an IPv4 header. */
export const DROP_IPV4_TRUNCATED = 4;
/** Version field is not 6. */
export const DROP_IPV6_MALFORMED = 5;
/** The IPv6 packet is longer than the frame, or the frame shorter than an IPv6 header. */
export const DROP_IPV6_TRUNCATED = 6;
/** Payload length 0 in front of a payload: RFC 2675 jumbograms, and Linux' BIG TCP frames. */
export const DROP_IPV6_JUMBO = 7;
/** Extension headers beyond the packet's end, more than IPV6_EXTENSION_HEADERS_MAX, or two fragment headers. */
export const DROP_IPV6_EXTENSIONS = 8;
/** TCP header cut short, or data offset impossible. */
export const DROP_TCP_MALFORMED = 9;
/** UDP header cut short, or its length field impossible. */
export const DROP_UDP_MALFORMED = 10;
/** Shorter than an ICMP header (8 bytes; 4 for ICMPv6, RFC 4443 §2.1). */
export const DROP_ICMP_MALFORMED = 11;

/** Names of the reasons, by number: the keys of the `dropped` counters. */
export const DROP_REASON_NAMES: readonly string[] = [
  'ok',
  'ethernet-truncated',
  'vlan-nested',
  'ipv4-malformed',
  'ipv4-truncated',
  'ipv6-malformed',
  'ipv6-truncated',
  'ipv6-jumbo',
  'ipv6-extensions',
  'tcp-malformed',
  'udp-malformed',
  'icmp-malformed',
];

/**
 * What `dissect` found. One long-lived instance per caller: the fields are overwritten by the next call.
 * All offsets count from the start of `bytes` (not of the frame), in bytes. Fields that do not apply are 0.
 */
export class FrameInfo {
  bytes: Uint8Array = new Uint8Array(0);
  view: DataView = new DataView(new ArrayBuffer(0));
  /** First byte of the Ethernet header; the virtio-net header lies before it. */
  frameOffset = 0;
  frameBytes = 0;
  /** EtherType after all tags, host order. */
  etherType = 0;
  /** 802.1Q/802.1ad tags looked through (0..2). */
  vlanTags = 0;
  /** Identity of the tags for flow keys: outer VID * 4096 + inner VID; one tag: its VID; 0 when untagged. */
  vlan = 0;
  l3Offset = 0;
  /** 4, 6, or 0 when not IP. */
  ipVersion = 0;
  /** Bytes of the IP packet by its own length field (Ethernet padding left out). */
  l3Bytes = 0;
  /** Upper-layer protocol, after IPv6 extension headers. For a non-first fragment as the fragment header says. */
  protocol = 0;
  /** Is this a fragment (offset != 0 or more-fragments)? Then the l4 fields below cover only what is in it, and no port is read unless offset is 0. */
  isFragment = false;
  /** In bytes. */
  fragmentOffset = 0;
  moreFragments = false;
  fragmentId = 0;
  /** Offset of the IPv6 fragment header, or of the IPv4 header, of a fragment. */
  fragmentHeaderOffset = 0;
  /** First byte of the source / destination address (4 or 16 bytes). */
  srcAddressOffset = 0;
  dstAddressOffset = 0;
  l4Offset = 0;
  /** Transport header and payload, bytes. */
  l4Bytes = 0;
  /** TCP, UDP: ports. ICMP and ICMPv6 echo, ICMP timestamp: both are the identifier. Others 0. Host order. */
  srcPort = 0;
  dstPort = 0;
  /** ICMP, ICMPv6. */
  icmpType = 0;
  icmpCode = 0;
  /** TCP. */
  seq = 0;
  ack = 0;
  /** TCP flags: the low 8 bits FIN 1, SYN 2, RST 4, PSH 8, ACK 16, URG 32, ECE 64, CWR 128. */
  tcpFlags = 0;
  /** Window field as on the wire, unscaled. */
  window = 0;
  /** 20..60. */
  tcpHeaderBytes = 0;
  payloadOffset = 0;
  payloadBytes = 0;
  /** virtio-net header says VIRTIO_NET_HDR_F_NEEDS_CSUM: the transport checksum field holds only the pseudo-header sum. */
  checksumPartial = false;
}

const ETHERNET_BYTES = 14;
const TYPE_IPV4 = 0x0800;
const TYPE_IPV6 = 0x86dd;
const TYPE_8021Q = 0x8100;
const TYPE_8021AD = 0x88a8;

const PROTOCOL_HOP_BY_HOP = 0;
const PROTOCOL_ICMP = 1;
const PROTOCOL_TCP = 6;
const PROTOCOL_UDP = 17;
const PROTOCOL_ROUTING = 43;
const PROTOCOL_FRAGMENT = 44;
const PROTOCOL_AH = 51;
const PROTOCOL_ICMPV6 = 58;
const PROTOCOL_NO_NEXT_HEADER = 59;
const PROTOCOL_DESTINATION_OPTIONS = 60;

/** VIRTIO_NET_HDR_F_NEEDS_CSUM in the first byte of the virtio-net header. */
const VNET_NEEDS_CSUM = 1;

/**
 * Dissects one frame into `info`, overwriting every field of it.
 *
 * Frames that are not IP (ARP, LLDP, 802.3 lengths, ...) are FRAME_OK with `ipVersion` 0. Lengths are
 * those of the IP header: Ethernet padding is left out. Of a fragment only what it holds is read:
 * ports of a first fragment that has them, and the payload is everything after the l4 offset.
 *
 * @param offset first byte of the Ethernet header; at least VNET_HDR_BYTES
 * @param length bytes of the frame
 * @returns FRAME_OK, or why not; then the fields after the failing header are 0 or incomplete
 */
export function dissect(
  buffer: FrameBuffer,
  offset: number,
  length: number,
  info: FrameInfo,
): DropReason {
  const view = buffer.view;
  resetInfo(buffer, offset, length, info);
  const end = offset + length;
  let l3 = offset + ETHERNET_BYTES;
  if (length < ETHERNET_BYTES) return DROP_ETHERNET_TRUNCATED;
  let etherType = view.getUint16(offset + 12);
  let tags = 0;
  while (etherType === TYPE_8021Q || etherType === TYPE_8021AD) {
    if (tags === 2) return DROP_VLAN_NESTED;
    if (l3 + 4 > end) return DROP_ETHERNET_TRUNCATED;
    info.vlan = info.vlan * 4096 + (view.getUint16(l3) & 0x0fff);
    etherType = view.getUint16(l3 + 2);
    l3 += 4;
    tags++;
  }
  info.vlanTags = tags;
  info.etherType = etherType;
  info.l3Offset = l3;
  if (etherType === TYPE_IPV4) return dissectIpv4(view, l3, end, info);
  if (etherType === TYPE_IPV6) return dissectIpv6(view, l3, end, info);
  return FRAME_OK;
}

/** All fields to those of a frame about which nothing is known yet. */
function resetInfo(buffer: FrameBuffer, offset: number, length: number, info: FrameInfo): void {
  info.bytes = buffer.bytes;
  info.view = buffer.view;
  info.frameOffset = offset;
  info.frameBytes = length;
  info.etherType = 0;
  info.vlanTags = 0;
  info.vlan = 0;
  info.l3Offset = 0;
  info.ipVersion = 0;
  info.l3Bytes = 0;
  info.protocol = 0;
  info.isFragment = false;
  info.fragmentOffset = 0;
  info.moreFragments = false;
  info.fragmentId = 0;
  info.fragmentHeaderOffset = 0;
  info.srcAddressOffset = 0;
  info.dstAddressOffset = 0;
  info.l4Offset = 0;
  info.l4Bytes = 0;
  info.srcPort = 0;
  info.dstPort = 0;
  info.icmpType = 0;
  info.icmpCode = 0;
  info.seq = 0;
  info.ack = 0;
  info.tcpFlags = 0;
  info.window = 0;
  info.tcpHeaderBytes = 0;
  info.payloadOffset = 0;
  info.payloadBytes = 0;
  info.checksumPartial = (buffer.view.getUint8(offset - VNET_HDR_BYTES) & VNET_NEEDS_CSUM) !== 0;
}

/** RFC 791 §3.1. */
function dissectIpv4(view: DataView, l3: number, end: number, info: FrameInfo): DropReason {
  if (l3 + 20 > end) return DROP_IPV4_TRUNCATED;
  const versionAndIhl = view.getUint8(l3);
  const headerBytes = (versionAndIhl & 0x0f) * 4;
  const totalBytes = view.getUint16(l3 + 2);
  if (versionAndIhl >> 4 !== 4 || headerBytes < 20 || totalBytes < headerBytes) {
    return DROP_IPV4_MALFORMED;
  }
  if (l3 + totalBytes > end) return DROP_IPV4_TRUNCATED;
  info.ipVersion = 4;
  info.l3Bytes = totalBytes;
  info.srcAddressOffset = l3 + 12;
  info.dstAddressOffset = l3 + 16;
  const flagsAndOffset = view.getUint16(l3 + 6);
  // RFC 791: more-fragments is bit 13 from the right, the offset counts 8-byte units; don't-fragment is bit 14.
  if ((flagsAndOffset & 0x3fff) !== 0) {
    info.isFragment = true;
    info.fragmentOffset = (flagsAndOffset & 0x1fff) * 8;
    info.moreFragments = (flagsAndOffset & 0x2000) !== 0;
    info.fragmentId = view.getUint16(l3 + 4);
    info.fragmentHeaderOffset = l3;
  }
  return dissectTransport(view, l3 + headerBytes, l3 + totalBytes, view.getUint8(l3 + 9), info);
}

/** RFC 8200 §3 and §4. */
function dissectIpv6(view: DataView, l3: number, end: number, info: FrameInfo): DropReason {
  if (l3 + 40 > end) return DROP_IPV6_TRUNCATED;
  if (view.getUint8(l3) >> 4 !== 6) return DROP_IPV6_MALFORMED;
  const payloadBytes = view.getUint16(l3 + 4);
  const nextHeader = view.getUint8(l3 + 6);
  if (payloadBytes === 0 && nextHeader !== PROTOCOL_NO_NEXT_HEADER) return DROP_IPV6_JUMBO;
  const packetEnd = l3 + 40 + payloadBytes;
  if (packetEnd > end) return DROP_IPV6_TRUNCATED;
  info.ipVersion = 6;
  info.l3Bytes = 40 + payloadBytes;
  info.srcAddressOffset = l3 + 8;
  info.dstAddressOffset = l3 + 24;
  if (nextHeader === PROTOCOL_TCP || nextHeader === PROTOCOL_UDP) {
    return dissectTransport(view, l3 + 40, packetEnd, nextHeader, info);
  }
  return walkExtensionHeaders(view, l3 + 40, packetEnd, nextHeader, info);
}

function walkExtensionHeaders(
  view: DataView,
  first: number,
  packetEnd: number,
  firstHeader: number,
  info: FrameInfo,
): DropReason {
  let nextHeader = firstHeader;
  let at = first;
  let count = 0;
  for (;;) {
    const isOptions =
      nextHeader === PROTOCOL_HOP_BY_HOP ||
      nextHeader === PROTOCOL_ROUTING ||
      nextHeader === PROTOCOL_DESTINATION_OPTIONS;
    if (!isOptions && nextHeader !== PROTOCOL_FRAGMENT && nextHeader !== PROTOCOL_AH) {
      return dissectTransport(view, at, packetEnd, nextHeader, info);
    }
    if (++count > IPV6_EXTENSION_HEADERS_MAX) return DROP_IPV6_EXTENSIONS;
    // A chain that a first fragment cuts off (RFC 7112 forbids it) leaves the upper layer unread; the whole is judged once joined.
    if (at + 8 > packetEnd) {
      if (!info.isFragment) return DROP_IPV6_EXTENSIONS;
      return dissectTransport(view, at, packetEnd, nextHeader, info);
    }
    let headerBytes = 8;
    if (nextHeader === PROTOCOL_FRAGMENT) {
      if (info.fragmentHeaderOffset !== 0) return DROP_IPV6_EXTENSIONS;
      readFragmentHeader(view, at, info);
    } else {
      // RFC 8200 §4.3: units of 8 bytes without the first; RFC 4302 §2.2 (AH): units of 4 bytes minus 2.
      const lengthField = view.getUint8(at + 1);
      headerBytes = nextHeader === PROTOCOL_AH ? (lengthField + 2) * 4 : (lengthField + 1) * 8;
    }
    nextHeader = view.getUint8(at);
    if (at + headerBytes > packetEnd) {
      if (!info.isFragment) return DROP_IPV6_EXTENSIONS;
      return dissectTransport(view, packetEnd, packetEnd, nextHeader, info);
    }
    at += headerBytes;
    if (info.fragmentOffset !== 0) return dissectTransport(view, at, packetEnd, nextHeader, info);
  }
}

/** RFC 8200 §4.5. An atomic fragment (offset 0, nothing follows; RFC 6946) is a whole packet. */
function readFragmentHeader(view: DataView, at: number, info: FrameInfo): void {
  const offsetAndMore = view.getUint16(at + 2);
  info.fragmentHeaderOffset = at;
  info.fragmentOffset = offsetAndMore & 0xfff8;
  info.moreFragments = (offsetAndMore & 1) !== 0;
  info.isFragment = info.moreFragments || info.fragmentOffset !== 0;
  info.fragmentId = view.getUint32(at + 4);
}

function dissectTransport(
  view: DataView,
  l4: number,
  end: number,
  protocol: number,
  info: FrameInfo,
): DropReason {
  info.protocol = protocol;
  info.l4Offset = l4;
  info.l4Bytes = end - l4;
  info.payloadOffset = l4;
  info.payloadBytes = end - l4;
  if (info.isFragment) {
    if (info.fragmentOffset === 0) readFirstFragment(view, l4, end, protocol, info);
    return FRAME_OK;
  }
  if (protocol === PROTOCOL_TCP) return dissectTcp(view, l4, end, info);
  if (protocol === PROTOCOL_UDP) return dissectUdp(view, l4, end, info);
  if (info.ipVersion === 4 ? protocol === PROTOCOL_ICMP : protocol === PROTOCOL_ICMPV6) {
    if (l4 + (info.ipVersion === 4 ? 8 : 4) > end) return DROP_ICMP_MALFORMED;
    readIcmp(view, l4, end, info);
  }
  return FRAME_OK;
}

/** What a first fragment shows of the transport header, as far as it goes. */
function readFirstFragment(
  view: DataView,
  l4: number,
  end: number,
  protocol: number,
  info: FrameInfo,
): void {
  if (l4 + 4 > end) return;
  if (protocol === PROTOCOL_TCP || protocol === PROTOCOL_UDP) {
    info.srcPort = view.getUint16(l4);
    info.dstPort = view.getUint16(l4 + 2);
  } else if (info.ipVersion === 4 ? protocol === PROTOCOL_ICMP : protocol === PROTOCOL_ICMPV6) {
    readIcmp(view, l4, end, info);
  }
}

/** RFC 9293 §3.1. */
function dissectTcp(view: DataView, l4: number, end: number, info: FrameInfo): DropReason {
  if (l4 + 20 > end) return DROP_TCP_MALFORMED;
  const offsetAndFlags = view.getUint16(l4 + 12);
  const headerBytes = (offsetAndFlags >> 12) * 4;
  if (headerBytes < 20 || l4 + headerBytes > end) return DROP_TCP_MALFORMED;
  info.srcPort = view.getUint16(l4);
  info.dstPort = view.getUint16(l4 + 2);
  info.seq = view.getUint32(l4 + 4);
  info.ack = view.getUint32(l4 + 8);
  info.tcpFlags = offsetAndFlags & 0xff;
  info.window = view.getUint16(l4 + 14);
  info.tcpHeaderBytes = headerBytes;
  info.payloadOffset = l4 + headerBytes;
  info.payloadBytes = end - l4 - headerBytes;
  return FRAME_OK;
}

/** RFC 768. Bytes between the UDP length and the end of the IP packet are not payload. */
function dissectUdp(view: DataView, l4: number, end: number, info: FrameInfo): DropReason {
  if (l4 + 8 > end) return DROP_UDP_MALFORMED;
  const udpBytes = view.getUint16(l4 + 4);
  if (udpBytes < 8 || l4 + udpBytes > end) return DROP_UDP_MALFORMED;
  info.srcPort = view.getUint16(l4);
  info.dstPort = view.getUint16(l4 + 2);
  info.payloadOffset = l4 + 8;
  info.payloadBytes = udpBytes - 8;
  return FRAME_OK;
}

/**
 * RFC 792, RFC 4443 §2.1. The payload begins after the four bytes that follow the checksum (identifier and
 * sequence number, MTU, pointer, ...), or after the checksum where there are none.
 *
 * Precondition: `l4 + 4 <= end`.
 */
function readIcmp(view: DataView, l4: number, end: number, info: FrameInfo): void {
  const type = view.getUint8(l4);
  info.icmpType = type;
  info.icmpCode = view.getUint8(l4 + 1);
  if (l4 + 8 > end) {
    info.payloadOffset = l4 + 4;
    info.payloadBytes = end - l4 - 4;
    return;
  }
  info.payloadOffset = l4 + 8;
  info.payloadBytes = end - l4 - 8;
  const hasIdentifier =
    info.ipVersion === 4
      ? type === 8 || type === 0 || type === 13 || type === 14
      : type === 128 || type === 129;
  if (hasIdentifier) {
    info.srcPort = view.getUint16(l4 + 4);
    info.dstPort = info.srcPort;
  }
}
