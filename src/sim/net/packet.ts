/**
 * The simulation's own reading and writing of frames, for the model hosts and the checkers. It shares
 * no code with `src/wire` on purpose: a mistake that the engines and their judge had in common would hide itself.
 * Clear rather than fast.
 *
 * A `SimFrame` is the virtio-net header followed by the Ethernet frame, in one byte array of its own.
 * Addresses are lower-case hexadecimal text without separators (12, 8 and 32 digits), which makes them map keys.
 *
 * Sources: RFC 791, 8200, 9293, 768, 792, 4443, 826; virtio 1.2 §5.1.6.
 *
 * @module
 */
import { VNET_HDR_BYTES } from '../../limits.ts';

/** Virtio-net header, then the Ethernet frame. */
export type SimFrame = Uint8Array;

export const ETHER_IPV4 = 0x0800;
export const ETHER_ARP = 0x0806;
export const ETHER_IPV6 = 0x86dd;
export const ETHER_VLAN = 0x8100;
export const PROTOCOL_ICMP = 1;
export const PROTOCOL_TCP = 6;
export const PROTOCOL_UDP = 17;
export const PROTOCOL_ICMPV6 = 58;
export const BROADCAST_MAC = 'ffffffffffff';

/** virtio-net header, flags: the transport checksum holds only the pseudo-header sum. */
export const VNET_NEEDS_CSUM = 1;
export const VNET_GSO_TCPV4 = 1;
export const VNET_GSO_TCPV6 = 4;

/** Everything outside of the upper-layer payload. */
export interface PacketHead {
  dstMac: string;
  srcMac: string;
  /** VID of one 802.1Q tag; 0 = untagged. */
  vlan: number;
  etherType: number;
}

/** An IP packet. Its addresses' length says which IP. */
export interface IpPacket {
  readonly head: PacketHead;
  readonly src: string;
  readonly dst: string;
  readonly protocol: number;
  readonly hopLimit: number;
  /** IPv4 identification or the IPv6 fragment header's. */
  readonly id: number;
  readonly fragmentOffset: number;
  readonly moreFragments: boolean;
  /** What IP carries; part of the frame, not to be changed. */
  readonly payload: Uint8Array;
  /** The virtio-net header asks for a checksum to be completed. */
  readonly partialChecksum: boolean;
  /** The IPv4 header's checksum is right (always true for IPv6). */
  readonly headerChecksumOk: boolean;
}

export interface ArpPacket {
  readonly head: PacketHead;
  /** 1 request, 2 reply. */
  readonly operation: number;
  readonly senderMac: string;
  readonly senderIp: string;
  readonly targetMac: string;
  readonly targetIp: string;
}

const HEX: readonly string[] = Array.from({ length: 256 }, (_, i) =>
  i.toString(16).padStart(2, '0'),
);

/** Bytes as hexadecimal digits. */
export function readHex(bytes: Uint8Array, offset: number, count: number): string {
  let text = '';
  for (let i = 0; i < count; i++) text += HEX[bytes[offset + i]!];
  return text;
}

/** Addresses are few and come again and again. */
const hexCache = new Map<string, Uint8Array>();

function bytesOfHex(text: string): Uint8Array {
  let bytes = hexCache.get(text);
  if (bytes === undefined) {
    bytes = new Uint8Array(text.length / 2);
    for (let i = 0; i < bytes.length; i++) {
      bytes[i] = Number.parseInt(text.slice(i * 2, i * 2 + 2), 16);
    }
    if (hexCache.size > 1_000) hexCache.clear();
    hexCache.set(text, bytes);
  }
  return bytes;
}

/** Writes hexadecimal digits as bytes. */
export function writeHex(bytes: Uint8Array, offset: number, text: string): void {
  bytes.set(bytesOfHex(text), offset);
}

export function readU16(bytes: Uint8Array, offset: number): number {
  return (bytes[offset]! << 8) | bytes[offset + 1]!;
}

export function readU32(bytes: Uint8Array, offset: number): number {
  return ((readU16(bytes, offset) << 16) | readU16(bytes, offset + 2)) >>> 0;
}

export function writeU16(bytes: Uint8Array, offset: number, value: number): void {
  bytes[offset] = value >>> 8;
  bytes[offset + 1] = value;
}

export function writeU32(bytes: Uint8Array, offset: number, value: number): void {
  writeU16(bytes, offset, value >>> 16);
  writeU16(bytes, offset + 2, value & 0xffff);
}

/** RFC 1071: ones' complement sum of 16-bit words, not complemented. */
export function sumWords(bytes: Uint8Array, offset: number, count: number, start: number): number {
  let sum = start;
  const even = offset + (count & ~1);
  for (let i = offset; i < even; i += 2) sum += (bytes[i]! << 8) | bytes[i + 1]!;
  if ((count & 1) === 1) sum += bytes[even]! << 8;
  while (sum > 0xffff) sum = (sum & 0xffff) + Math.floor(sum / 0x1_0000);
  return sum;
}

/** The sum over the pseudo header (RFC 9293 §3.1, RFC 8200 §8.1). */
export function pseudoSum(src: string, dst: string, protocol: number, count: number): number {
  const from = bytesOfHex(src);
  const sum = sumWords(from, 0, from.length, protocol + (count >>> 16) + (count & 0xffff));
  return sumWords(bytesOfHex(dst), 0, from.length, sum);
}

/** Offset of the transport checksum in the payload; -1 when the protocol has none that covers addresses. */
export function checksumOffsetOf(protocol: number): number {
  if (protocol === PROTOCOL_TCP) return 16;
  if (protocol === PROTOCOL_UDP) return 6;
  return protocol === PROTOCOL_ICMPV6 ? 2 : -1;
}

/** Is the transport checksum right, or, where it is partial, exactly the pseudo-header sum? */
export function transportChecksumOk(packet: IpPacket): boolean {
  const { payload, protocol } = packet;
  if (packet.moreFragments || packet.fragmentOffset > 0) return true;
  if (protocol === PROTOCOL_ICMP) return sumWords(payload, 0, payload.length, 0) === 0xffff;
  const offset = checksumOffsetOf(protocol);
  if (offset < 0) return true;
  if (payload.length < offset + 2) return false;
  if (protocol === PROTOCOL_UDP && readU16(payload, offset) === 0) return packet.src.length === 8;
  const pseudo = pseudoSum(packet.src, packet.dst, protocol, payload.length);
  if (packet.partialChecksum) return readU16(payload, offset) === pseudo;
  return sumWords(payload, 0, payload.length, pseudo) === 0xffff;
}

function readHead(frame: SimFrame): { head: PacketHead; l3: number } | undefined {
  const start = VNET_HDR_BYTES;
  if (frame.length < start + 14) return undefined;
  const head: PacketHead = {
    dstMac: readHex(frame, start, 6),
    srcMac: readHex(frame, start + 6, 6),
    vlan: 0,
    etherType: readU16(frame, start + 12),
  };
  if (head.etherType !== ETHER_VLAN) return { head, l3: start + 14 };
  if (frame.length < start + 18) return undefined;
  head.vlan = readU16(frame, start + 14) & 0xfff;
  head.etherType = readU16(frame, start + 16);
  return { head, l3: start + 18 };
}

/** The Ethernet header; undefined when the frame is too short for one. */
export function parseHead(frame: SimFrame): PacketHead | undefined {
  return readHead(frame)?.head;
}

/** The ARP packet (Ethernet, IPv4) in a frame; undefined when there is none. */
export function parseArp(frame: SimFrame): ArpPacket | undefined {
  const at = readHead(frame);
  if (at === undefined || at.head.etherType !== ETHER_ARP || frame.length < at.l3 + 28)
    return undefined;
  if (readHex(frame, at.l3, 6) !== '000108000604') return undefined;
  return {
    head: at.head,
    operation: readU16(frame, at.l3 + 6),
    senderMac: readHex(frame, at.l3 + 8, 6),
    senderIp: readHex(frame, at.l3 + 14, 4),
    targetMac: readHex(frame, at.l3 + 18, 6),
    targetIp: readHex(frame, at.l3 + 24, 4),
  };
}

let parsedFrame: SimFrame | undefined;
let parsedPacket: IpPacket | undefined;

/**
 * The IP packet in a frame; undefined when there is none or its lengths are impossible. Frames do not change once they are
 * sent, so the last one need not be read again for each who looks at it.
 */
export function parseIp(frame: SimFrame): IpPacket | undefined {
  if (frame !== parsedFrame) {
    parsedPacket = parseFresh(frame);
    parsedFrame = frame;
  }
  return parsedPacket;
}

/** Is it a TCP segment (no later fragment) with payload? */
export function hasTcpData(frame: SimFrame): boolean {
  const packet = parseIp(frame);
  if (packet?.protocol !== PROTOCOL_TCP || packet.payload.length < 20) return false;
  return packet.payload.length > (packet.payload[12]! >> 4) * 4;
}

function parseFresh(frame: SimFrame): IpPacket | undefined {
  const at = readHead(frame);
  if (at === undefined) return undefined;
  const partialChecksum = (frame[0]! & VNET_NEEDS_CSUM) !== 0;
  if (at.head.etherType === ETHER_IPV4) return parseIpv4(frame, at.l3, at.head, partialChecksum);
  if (at.head.etherType === ETHER_IPV6) return parseIpv6(frame, at.l3, at.head, partialChecksum);
  return undefined;
}

function parseIpv4(
  frame: SimFrame,
  l3: number,
  head: PacketHead,
  partialChecksum: boolean,
): IpPacket | undefined {
  if (frame.length < l3 + 20 || frame[l3]! >> 4 !== 4) return undefined;
  const headerBytes = (frame[l3]! & 15) * 4;
  const total = readU16(frame, l3 + 2);
  if (headerBytes < 20 || total < headerBytes || frame.length < l3 + total) return undefined;
  const fragment = readU16(frame, l3 + 6);
  return {
    head,
    src: readHex(frame, l3 + 12, 4),
    dst: readHex(frame, l3 + 16, 4),
    protocol: frame[l3 + 9]!,
    hopLimit: frame[l3 + 8]!,
    id: readU16(frame, l3 + 4),
    fragmentOffset: (fragment & 0x1fff) * 8,
    moreFragments: (fragment & 0x2000) !== 0,
    payload: frame.subarray(l3 + headerBytes, l3 + total),
    partialChecksum,
    headerChecksumOk: sumWords(frame, l3, headerBytes, 0) === 0xffff,
  };
}

function parseIpv6(
  frame: SimFrame,
  l3: number,
  head: PacketHead,
  partialChecksum: boolean,
): IpPacket | undefined {
  if (frame.length < l3 + 40 || frame[l3]! >> 4 !== 6) return undefined;
  const end = l3 + 40 + readU16(frame, l3 + 4);
  if (frame.length < end) return undefined;
  let protocol = frame[l3 + 6]!;
  let offset = l3 + 40;
  let fragmentField = 0;
  let id = 0;
  if (protocol === 44) {
    if (end < offset + 8) return undefined;
    protocol = frame[offset]!;
    fragmentField = readU16(frame, offset + 2);
    id = readU32(frame, offset + 4);
    offset += 8;
  }
  return {
    head,
    src: readHex(frame, l3 + 8, 16),
    dst: readHex(frame, l3 + 24, 16),
    protocol,
    hopLimit: frame[l3 + 7]!,
    id,
    fragmentOffset: fragmentField & 0xfff8,
    moreFragments: (fragmentField & 1) !== 0,
    payload: frame.subarray(offset, end),
    partialChecksum,
    headerChecksumOk: true,
  };
}

/** What `emitIp` needs beyond the payload. */
export interface IpOptions {
  readonly srcMac: string;
  readonly dstMac: string;
  readonly vlan: number;
  readonly src: string;
  readonly dst: string;
  readonly protocol: number;
  readonly id: number;
  readonly hopLimit?: number;
  readonly fragmentOffset?: number;
  readonly moreFragments?: boolean;
  /** Leave the transport checksum to the "card": write the pseudo-header sum and VNET_NEEDS_CSUM. */
  readonly partialChecksum?: boolean;
  /** Payload bytes of one wire segment, for a TCP packet that is longer: a GSO frame. 0 = none. */
  readonly gsoBytes?: number;
}

function emitHead(bytes: Uint8Array, options: IpOptions, etherType: number): number {
  let at = VNET_HDR_BYTES;
  writeHex(bytes, at, options.dstMac + options.srcMac);
  at += 12;
  if (options.vlan !== 0) {
    writeU16(bytes, at, ETHER_VLAN);
    writeU16(bytes, at + 2, options.vlan);
    at += 4;
  }
  writeU16(bytes, at, etherType);
  return at + 2;
}

/** Builds a frame around `payload` (a transport header with its checksum field zero, and data). */
export function emitIp(options: IpOptions, payload: Uint8Array): SimFrame {
  const isV4 = options.src.length === 8;
  const fragmented = (options.fragmentOffset ?? 0) > 0 || options.moreFragments === true;
  const l3Bytes = isV4 ? 20 : fragmented ? 48 : 40;
  const tagBytes = options.vlan === 0 ? 0 : 4;
  const frame = new Uint8Array(VNET_HDR_BYTES + 14 + tagBytes + l3Bytes + payload.length);
  const l3 = emitHead(frame, options, isV4 ? ETHER_IPV4 : ETHER_IPV6);
  if (isV4) emitIpv4Header(frame, l3, options, payload.length);
  else emitIpv6Header(frame, l3, options, payload.length, fragmented);
  const l4 = l3 + l3Bytes;
  frame.set(payload, l4);
  if (!fragmented) fillChecksum(frame, l4, options, payload.length);
  return frame;
}

function emitIpv4Header(frame: SimFrame, l3: number, options: IpOptions, count: number): void {
  frame[l3] = 0x45;
  writeU16(frame, l3 + 2, 20 + count);
  writeU16(frame, l3 + 4, options.id & 0xffff);
  const more = options.moreFragments === true ? 0x2000 : 0;
  writeU16(frame, l3 + 6, more | ((options.fragmentOffset ?? 0) >> 3));
  frame[l3 + 8] = options.hopLimit ?? 64;
  frame[l3 + 9] = options.protocol;
  writeHex(frame, l3 + 12, options.src + options.dst);
  writeU16(frame, l3 + 10, ~sumWords(frame, l3, 20, 0) & 0xffff);
}

function emitIpv6Header(
  frame: SimFrame,
  l3: number,
  options: IpOptions,
  count: number,
  fragmented: boolean,
): void {
  frame[l3] = 0x60;
  writeU16(frame, l3 + 4, count + (fragmented ? 8 : 0));
  frame[l3 + 6] = fragmented ? 44 : options.protocol;
  frame[l3 + 7] = options.hopLimit ?? 64;
  writeHex(frame, l3 + 8, options.src + options.dst);
  if (!fragmented) return;
  frame[l3 + 40] = options.protocol;
  writeU16(
    frame,
    l3 + 42,
    (options.fragmentOffset ?? 0) | (options.moreFragments === true ? 1 : 0),
  );
  writeU32(frame, l3 + 44, options.id);
}

function fillChecksum(frame: SimFrame, l4: number, options: IpOptions, count: number): void {
  if (options.protocol === PROTOCOL_ICMP) {
    writeU16(frame, l4 + 2, ~sumWords(frame, l4, count, 0) & 0xffff);
    return;
  }
  const offset = checksumOffsetOf(options.protocol);
  if (offset < 0) return;
  const pseudo = pseudoSum(options.src, options.dst, options.protocol, count);
  if (options.partialChecksum === true) {
    frame[0] = VNET_NEEDS_CSUM;
    frame[1] = 0;
    // virtio-net header fields are in the guest's own (little-endian) order.
    writeLittle16(frame, 6, l4 - VNET_HDR_BYTES);
    writeLittle16(frame, 8, offset);
    writeU16(frame, l4 + offset, pseudo);
    if ((options.gsoBytes ?? 0) > 0) {
      frame[1] = options.src.length === 8 ? VNET_GSO_TCPV4 : VNET_GSO_TCPV6;
      writeLittle16(frame, 2, l4 - VNET_HDR_BYTES + (frame[l4 + 12]! >> 4) * 4);
      writeLittle16(frame, 4, options.gsoBytes ?? 0);
    }
    return;
  }
  const sum = ~sumWords(frame, l4, count, pseudo) & 0xffff;
  writeU16(frame, l4 + offset, sum === 0 && options.protocol === PROTOCOL_UDP ? 0xffff : sum);
}

function writeLittle16(bytes: Uint8Array, offset: number, value: number): void {
  bytes[offset] = value;
  bytes[offset + 1] = value >>> 8;
}

/** What `emitArp` needs. */
export interface ArpOptions {
  readonly srcMac: string;
  readonly dstMac: string;
  readonly vlan: number;
  readonly operation: number;
  readonly senderMac: string;
  readonly senderIp: string;
  readonly targetMac: string;
  readonly targetIp: string;
}

/** Builds an ARP frame (Ethernet, IPv4). */
export function emitArp(options: ArpOptions): SimFrame {
  const tagBytes = options.vlan === 0 ? 0 : 4;
  const frame = new Uint8Array(VNET_HDR_BYTES + 14 + tagBytes + 28);
  const at = emitHead(frame, { ...options, src: '', dst: '', protocol: 0, id: 0 }, ETHER_ARP);
  writeHex(frame, at, '000108000604');
  writeU16(frame, at + 6, options.operation);
  writeHex(frame, at + 8, options.senderMac + options.senderIp);
  writeHex(frame, at + 18, options.targetMac + options.targetIp);
  return frame;
}
