/**
 * ICMPv6 (RFC 4443) and neighbour discovery (RFC 4861): types, field offsets from the first byte of the ICMPv6
 * header, bounded option reading, and builders of whole frames.
 *
 * ```text
 *  neighbour solicitation / advertisement
 *  | type | code |   checksum   |  0
 *  | R S O flags, reserved      |  4
 *  |      target address (16)   |  8
 *  |  options ...               |  24     type (1), length in units of 8 bytes (1), ...
 * ```
 *
 * @module
 */
import type { FrameBuffer } from '../env/frame.ts';
import { VNET_HDR_BYTES } from '../limits.ts';
import { copyBytes } from './bytes.ts';
import { checksumAdd, checksumOf } from './checksum.ts';
import { ETHER_TYPE_IPV6, emitEthernet, MAC_BYTES } from './ethernet.ts';
import type { FrameInfo } from './frame.ts';
import { IP_PROTOCOL_ICMPV6 } from './ipv4.ts';
import {
  emitIpv6,
  IPV6_ADDRESS_BYTES,
  IPV6_HEADER_BYTES,
  IPV6_HOP_LIMIT,
  IPV6_SRC,
} from './ipv6.ts';
import { clearVnetHeader } from './vnet-hdr.ts';

export const ICMPV6_TYPE = 0;
export const ICMPV6_CODE = 1;
export const ICMPV6_CHECKSUM = 2;

/** Types below 128 are errors and quote the packet that caused them, from byte 8 on (RFC 4443 §2.1). */
export const ICMPV6_UNREACHABLE = 1;
export const ICMPV6_PACKET_TOO_BIG = 2;
export const ICMPV6_TIME_EXCEEDED = 3;
export const ICMPV6_PARAMETER_PROBLEM = 4;
export const ICMPV6_INFORMATIONAL_MIN = 128;
export const ICMPV6_ECHO_REQUEST = 128;
export const ICMPV6_ECHO_REPLY = 129;
/** Multicast listener query, report, done (RFC 2710) and report version 2 (RFC 3810). */
export const MLD_QUERY = 130;
export const MLD_REPORT = 131;
export const MLD_DONE = 132;
export const MLD_REPORT_V2 = 143;
export const ND_ROUTER_SOLICITATION = 133;
export const ND_ROUTER_ADVERTISEMENT = 134;
export const ND_NEIGHBOUR_SOLICITATION = 135;
export const ND_NEIGHBOUR_ADVERTISEMENT = 136;
export const ND_REDIRECT = 137;

export const ND_FLAGS = 4;
export const ND_TARGET = 8;
export const ND_OPTIONS = 24;
/** Flags of an advertisement, in its byte ND_FLAGS (RFC 4861 §4.4). */
export const ND_FLAG_ROUTER = 0x80;
export const ND_FLAG_SOLICITED = 0x40;
export const ND_FLAG_OVERRIDE = 0x20;

export const ND_OPTION_SOURCE_MAC = 1;
export const ND_OPTION_TARGET_MAC = 2;

/** RFC 4861 §7.1: a neighbour message that was forwarded by a router is a forgery. */
const ND_HOP_LIMIT = 255;

/** Is this type one of neighbour or router discovery (133..137)? */
export function isNeighbourDiscovery(type: number): boolean {
  return type >= ND_ROUTER_SOLICITATION && type <= ND_REDIRECT;
}

/**
 * Is a dissected frame a neighbour solicitation or advertisement that passes the validity checks of RFC 4861 §7.1 which need no
 * checksum: hop limit 255, code 0, long enough, target not multicast?
 */
export function isNeighbourMessage(info: FrameInfo): boolean {
  if (info.ipVersion !== 6 || info.protocol !== IP_PROTOCOL_ICMPV6 || info.isFragment) return false;
  if (info.icmpType !== ND_NEIGHBOUR_SOLICITATION && info.icmpType !== ND_NEIGHBOUR_ADVERTISEMENT) {
    return false;
  }
  return (
    info.icmpCode === 0 &&
    info.l4Bytes >= ND_OPTIONS &&
    info.view.getUint8(info.l3Offset + IPV6_HOP_LIMIT) === ND_HOP_LIMIT &&
    info.view.getUint8(info.l4Offset + ND_TARGET) !== 0xff
  );
}

/**
 * Where the MAC address in the first option of this type lies, or -1. Bounded: each option takes at least 8 bytes, and one of
 * length zero ends the search (RFC 4861 §4.6: such a packet is invalid).
 *
 * Precondition: `isNeighbourMessage(info)`.
 */
export function findNeighbourMac(info: FrameInfo, optionType: number): number {
  const end = info.l4Offset + info.l4Bytes;
  let at = info.l4Offset + ND_OPTIONS;
  while (at + 8 <= end) {
    const optionBytes = info.view.getUint8(at + 1) * 8;
    if (optionBytes === 0 || at + optionBytes > end) return -1;
    if (info.view.getUint8(at) === optionType) return at + 2;
    at += optionBytes;
  }
  return -1;
}

/** The multicast address that every node answers solicitations on (RFC 4291 §2.7.1), of `ip`'s last 3 bytes. */
export function solicitedNodeAddress(ip: Uint8Array): Uint8Array {
  return Uint8Array.of(...[0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff], ip[13]!, ip[14]!, ip[15]!);
}

/** 33:33 and the last four bytes of a multicast address (RFC 2464 §7). */
export function multicastMac(ip: Uint8Array): Uint8Array {
  return Uint8Array.of(0x33, 0x33, ip[12]!, ip[13]!, ip[14]!, ip[15]!);
}

/** All nodes on the link, ff02::1. */
export const IPV6_ALL_NODES: Uint8Array = Uint8Array.of(
  ...[0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1],
);

/** What `emitNeighbourFrame` writes. */
export interface NeighbourFields {
  readonly type: typeof ND_NEIGHBOUR_SOLICITATION | typeof ND_NEIGHBOUR_ADVERTISEMENT;
  readonly srcMac: Uint8Array;
  readonly dstMac: Uint8Array;
  /** 16 bytes each. */
  readonly src: Uint8Array;
  readonly dst: Uint8Array;
  readonly target: Uint8Array;
  /** ND_FLAG_..., advertisements only. @default 0 */
  readonly flags?: number;
  /** The address in the source (solicitation) or target (advertisement) option. @default srcMac */
  readonly optionMac?: Uint8Array;
  /** As `FrameInfo.vlan`. @default 0 */
  readonly vlan?: number;
}

/** Header, target, and one link-layer address option. */
const NEIGHBOUR_BYTES = ND_OPTIONS + 8;

/**
 * Writes a whole frame with its checksum at `offset`, with a virtio-net header of zeros before it.
 *
 * @returns bytes of the frame
 */
export function emitNeighbourFrame(
  buffer: FrameBuffer,
  offset: number,
  fields: NeighbourFields,
): number {
  const { bytes, view } = buffer;
  clearVnetHeader(bytes, offset - VNET_HDR_BYTES);
  const l3 =
    offset +
    emitEthernet(buffer, offset, {
      dstMac: fields.dstMac,
      srcMac: fields.srcMac,
      etherType: ETHER_TYPE_IPV6,
      vlan: fields.vlan ?? 0,
    });
  emitIpv6(buffer, l3, {
    src: fields.src,
    dst: fields.dst,
    nextHeader: IP_PROTOCOL_ICMPV6,
    payloadBytes: NEIGHBOUR_BYTES,
    hopLimit: ND_HOP_LIMIT,
  });
  const l4 = l3 + IPV6_HEADER_BYTES;
  const isAdvertisement = fields.type === ND_NEIGHBOUR_ADVERTISEMENT;
  view.setUint32(l4, 0);
  view.setUint8(l4 + ICMPV6_TYPE, fields.type);
  view.setUint32(l4 + ND_FLAGS, 0);
  view.setUint8(l4 + ND_FLAGS, fields.flags ?? 0);
  copyBytes(bytes, l4 + ND_TARGET, fields.target, 0, IPV6_ADDRESS_BYTES);
  view.setUint8(l4 + ND_OPTIONS, isAdvertisement ? ND_OPTION_TARGET_MAC : ND_OPTION_SOURCE_MAC);
  view.setUint8(l4 + ND_OPTIONS + 1, 1);
  copyBytes(bytes, l4 + ND_OPTIONS + 2, fields.optionMac ?? fields.srcMac, 0, MAC_BYTES);
  const pseudo = checksumAdd(view, l3 + IPV6_SRC, 2 * IPV6_ADDRESS_BYTES, IP_PROTOCOL_ICMPV6);
  const sum = checksumAdd(view, l4, NEIGHBOUR_BYTES, pseudo + NEIGHBOUR_BYTES);
  view.setUint16(l4 + ICMPV6_CHECKSUM, checksumOf(sum));
  return l4 + NEIGHBOUR_BYTES - offset;
}

/**
 * Writes an unsolicited advertisement to all nodes: `ip` is at `mac` now (RFC 4861 §7.2.6). Switches learn the port from its source.
 *
 * @returns bytes of the frame
 */
export function emitUnsolicitedAdvertisement(
  buffer: FrameBuffer,
  offset: number,
  mac: Uint8Array,
  ip: Uint8Array,
  isRouter = false,
  vlan = 0,
): number {
  return emitNeighbourFrame(buffer, offset, {
    type: ND_NEIGHBOUR_ADVERTISEMENT,
    srcMac: mac,
    dstMac: multicastMac(IPV6_ALL_NODES),
    src: ip,
    dst: IPV6_ALL_NODES,
    target: ip,
    flags: ND_FLAG_OVERRIDE | (isRouter ? ND_FLAG_ROUTER : 0),
    vlan,
  });
}
