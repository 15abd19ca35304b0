/**
 * Builds complete frames for tests: virtio-net header, Ethernet, tags, IP, transport, right checksums.
 * Addresses are text; the family follows from them. Everything has a default, so a test names only what it is about.
 *
 * @example
 * const frame = tcpFrame({ src: '10.0.0.2', dst: '10.0.0.9', seq: 1001, flags: TCP_ACK, payload: 'hello' });
 * engine.onGuestFrame(frame.buffer, frame.offset, frame.length, nowUs);
 *
 * @module
 */
import type { FrameBuffer } from '../../src/env/frame.ts';
import { VNET_HDR_BYTES } from '../../src/limits.ts';
import { parseIp, parseMac } from '../../src/wire/address.ts';
import { ARP_REPLY, ARP_REQUEST, emitArpFrame } from '../../src/wire/arp.ts';
import { createFrameBuffer } from '../../src/wire/bytes.ts';
import { writeTransportChecksum } from '../../src/wire/checksum.ts';
import { ETHER_TYPE_IPV4, ETHER_TYPE_IPV6, emitEthernet } from '../../src/wire/ethernet.ts';
import { dissect, FRAME_OK, FrameInfo } from '../../src/wire/frame.ts';
import { emitEcho } from '../../src/wire/icmpv4.ts';
import {
  emitNeighbourFrame,
  multicastMac,
  ND_FLAG_OVERRIDE,
  ND_FLAG_SOLICITED,
  ND_NEIGHBOUR_ADVERTISEMENT,
  ND_NEIGHBOUR_SOLICITATION,
  solicitedNodeAddress,
} from '../../src/wire/icmpv6.ts';
import { emitIpv4, IPV4_MORE_FRAGMENTS } from '../../src/wire/ipv4.ts';
import { emitIpv6, emitIpv6Fragment, IPV6_EXT_FRAGMENT } from '../../src/wire/ipv6.ts';
import { emitTcp, TCP_ACK } from '../../src/wire/tcp.ts';
import { emitTcpOptions, type TcpOptionFields } from '../../src/wire/tcp-options.ts';
import { emitUdp } from '../../src/wire/udp.ts';
import { VNET_NEEDS_CSUM, writeVnetHeader } from '../../src/wire/vnet-hdr.ts';

/** A frame in memory of its own, its virtio-net header before it. */
export interface TestFrame {
  readonly buffer: FrameBuffer;
  readonly offset: number;
  readonly length: number;
}

/** Guest (PVM and SVM alike) and client of the examples. */
export const GUEST_MAC = '02:00:00:00:00:02';
export const CLIENT_MAC = '02:00:00:00:00:09';
export const GUEST_IP = '10.0.0.2';
export const CLIENT_IP = '10.0.0.9';
export const GUEST_IP6 = '2001:db8::2';
export const CLIENT_IP6 = '2001:db8::9';

/** What every IP frame has. The defaults are a frame from guest to client. */
export interface IpFrameFields {
  readonly srcMac?: string;
  readonly dstMac?: string;
  /** IPv4 or IPv6 text, the same family as `dst`. @default GUEST_IP */
  readonly src?: string;
  /** @default CLIENT_IP */
  readonly dst?: string;
  /** As `FrameInfo.vlan`: 0 none, below 4096 one tag, else outer * 4096 + inner. */
  readonly vlan?: number;
  readonly ttl?: number;
  /** IPv4 identification. */
  readonly id?: number;
  /** IPv4 options, or IPv6 extension headers with `firstHeader` as the type of the first (the last one's next header must be the protocol). */
  readonly ipOptions?: Uint8Array;
  readonly firstHeader?: number;
  /** Text is UTF-8 (ASCII in practice). */
  readonly payload?: string | Uint8Array;
  /** Leave a partial checksum with NEEDS_CSUM in the virtio-net header. */
  readonly partialChecksum?: boolean;
  /** virtio-net GSO type and segment size. */
  readonly gsoType?: number;
  readonly gsoBytes?: number;
  /** Bytes of zeros after the IP packet, as Ethernet pads short frames. */
  readonly paddingBytes?: number;
}

export interface TcpFrameFields extends IpFrameFields {
  readonly srcPort?: number;
  readonly dstPort?: number;
  readonly seq?: number;
  readonly ack?: number;
  /** TCP_... of src/wire/tcp.ts. @default TCP_ACK */
  readonly flags?: number;
  /** @default 65535 */
  readonly window?: number;
  /** Fields, or the bytes of the options (a multiple of 4). */
  readonly options?: TcpOptionFields | Uint8Array;
}

/** Guest port 80 to client port 40312 by default. */
export function tcpFrame(fields: TcpFrameFields = {}): TestFrame {
  const payload = payloadBytes(fields.payload);
  const options =
    fields.options instanceof Uint8Array ? fields.options : emitTcpOptions(fields.options ?? {});
  return ipFrame(fields, 6, 20 + options.length + payload.length, (buffer, l4) => {
    const headerBytes = emitTcp(buffer, l4, {
      srcPort: fields.srcPort ?? 80,
      dstPort: fields.dstPort ?? 40_312,
      seq: fields.seq ?? 0,
      ack: fields.ack ?? 0,
      flags: fields.flags ?? TCP_ACK,
      window: fields.window ?? 65_535,
      options,
    });
    buffer.bytes.set(payload, l4 + headerBytes);
  });
}

export interface UdpFrameFields extends IpFrameFields {
  readonly srcPort?: number;
  readonly dstPort?: number;
}

/** Guest port 53 to client port 40312 by default. */
export function udpFrame(fields: UdpFrameFields = {}): TestFrame {
  const payload = payloadBytes(fields.payload);
  return ipFrame(fields, 17, 8 + payload.length, (buffer, l4) => {
    emitUdp(buffer, l4, fields.srcPort ?? 53, fields.dstPort ?? 40_312, payload.length);
    buffer.bytes.set(payload, l4 + 8);
  });
}

export interface EchoFrameFields extends IpFrameFields {
  /** @default false: a request */
  readonly isReply?: boolean;
  readonly identifier?: number;
  readonly sequence?: number;
}

/** An ICMP or ICMPv6 echo. */
export function icmpEcho(fields: EchoFrameFields = {}): TestFrame {
  const payload = payloadBytes(fields.payload);
  const isIpv6 = (fields.src ?? fields.dst ?? GUEST_IP).includes(':');
  const isReply = fields.isReply ?? false;
  const type = isIpv6 ? (isReply ? 129 : 128) : isReply ? 0 : 8;
  return ipFrame(fields, isIpv6 ? 58 : 1, 8 + payload.length, (buffer, l4) => {
    emitEcho(buffer, l4, type, fields.identifier ?? 1, fields.sequence ?? 1);
    buffer.bytes.set(payload, l4 + 8);
  });
}

/** Any other IP protocol: `payload` is all of the transport. Its checksum, if it has one, is filled in. */
export function rawIpFrame(protocol: number, fields: IpFrameFields = {}): TestFrame {
  const payload = payloadBytes(fields.payload);
  return ipFrame(fields, protocol, payload.length, (buffer, l4) => {
    buffer.bytes.set(payload, l4);
  });
}

export interface ArpTestFields {
  /** @default false: a request */
  readonly isReply?: boolean;
  readonly senderMac?: string;
  readonly senderIp?: string;
  readonly targetMac?: string;
  readonly targetIp?: string;
  readonly vlan?: number;
}

/** By default: guest asks for the client's MAC. */
export function arpFrame(fields: ArpTestFields = {}): TestFrame {
  const buffer = createFrameBuffer(VNET_HDR_BYTES + 128);
  const isReply = fields.isReply ?? false;
  const length = emitArpFrame(buffer, VNET_HDR_BYTES, {
    operation: isReply ? ARP_REPLY : ARP_REQUEST,
    senderMac: mac(fields.senderMac ?? GUEST_MAC),
    senderIp: ip(fields.senderIp ?? GUEST_IP),
    targetMac: mac(fields.targetMac ?? (isReply ? CLIENT_MAC : '00:00:00:00:00:00')),
    targetIp: ip(fields.targetIp ?? CLIENT_IP),
    vlan: fields.vlan ?? 0,
  });
  return { buffer, offset: VNET_HDR_BYTES, length };
}

export interface NeighbourTestFields {
  /** @default false: a solicitation */
  readonly isAdvertisement?: boolean;
  readonly srcMac?: string;
  readonly src?: string;
  /** Whom a solicitation asks for, or who answers. */
  readonly target?: string;
  /** Receiver of an advertisement. */
  readonly dst?: string;
  readonly dstMac?: string;
  readonly vlan?: number;
}

/** By default: the guest solicits the client's MAC. */
export function neighbourFrame(fields: NeighbourTestFields = {}): TestFrame {
  const buffer = createFrameBuffer(VNET_HDR_BYTES + 128);
  const isAdvertisement = fields.isAdvertisement ?? false;
  const src = ip(fields.src ?? GUEST_IP6);
  const target =
    fields.target === undefined ? (isAdvertisement ? src : ip(CLIENT_IP6)) : ip(fields.target);
  const group = solicitedNodeAddress(target);
  const length = emitNeighbourFrame(buffer, VNET_HDR_BYTES, {
    type: isAdvertisement ? ND_NEIGHBOUR_ADVERTISEMENT : ND_NEIGHBOUR_SOLICITATION,
    srcMac: mac(fields.srcMac ?? GUEST_MAC),
    dstMac: isAdvertisement ? mac(fields.dstMac ?? CLIENT_MAC) : multicastMac(group),
    src,
    dst: isAdvertisement ? ip(fields.dst ?? CLIENT_IP6) : group,
    target,
    flags: isAdvertisement ? ND_FLAG_SOLICITED | ND_FLAG_OVERRIDE : 0,
    vlan: fields.vlan ?? 0,
  });
  return { buffer, offset: VNET_HDR_BYTES, length };
}

/**
 * Cuts an IP frame into fragments, in order. Every fragment but the last carries `fragmentBytes` (a multiple of 8).
 * The frame must not be a fragment, nor (IPv6) have extension headers.
 */
export function fragmentFrame(frame: TestFrame, fragmentBytes: number, id = 1): TestFrame[] {
  const info = dissectFrame(frame);
  const headerBytes = info.l4Offset - info.l3Offset;
  const ethernetBytes = info.l3Offset - frame.offset;
  const source = frame.buffer.bytes;
  const fragments: TestFrame[] = [];
  for (let at = 0; at < info.l4Bytes; at += fragmentBytes) {
    const partBytes = Math.min(fragmentBytes, info.l4Bytes - at);
    const more = at + partBytes < info.l4Bytes;
    const part = source.subarray(info.l4Offset + at, info.l4Offset + at + partBytes);
    const extra = info.ipVersion === 6 ? 8 : 0;
    const length = ethernetBytes + headerBytes + extra + partBytes;
    const buffer = createFrameBuffer(VNET_HDR_BYTES + length);
    const l3 = VNET_HDR_BYTES + ethernetBytes;
    buffer.bytes.set(source.subarray(frame.offset, info.l4Offset), VNET_HDR_BYTES);
    buffer.bytes.set(part, l3 + headerBytes + extra);
    const addresses = {
      src: source.slice(info.srcAddressOffset, info.dstAddressOffset),
      dst: source.slice(info.dstAddressOffset, info.dstAddressOffset + (extra === 0 ? 4 : 16)),
    };
    if (info.ipVersion === 4) {
      const flagsAndOffset = (at / 8) | (more ? IPV4_MORE_FRAGMENTS : 0);
      const options = source.slice(info.l3Offset + 20, info.l4Offset);
      const { protocol } = info;
      emitIpv4(buffer, l3, {
        ...addresses,
        protocol,
        payloadBytes: partBytes,
        id,
        flagsAndOffset,
        options,
      });
    } else {
      const payloadBytes = 8 + partBytes;
      emitIpv6(buffer, l3, { ...addresses, nextHeader: IPV6_EXT_FRAGMENT, payloadBytes });
      emitIpv6Fragment(buffer, l3 + 40, info.protocol, at, more, id);
    }
    fragments.push({ buffer, offset: VNET_HDR_BYTES, length });
  }
  return fragments;
}

/** Any bytes as a frame. */
export function rawFrame(bytes: Uint8Array): TestFrame {
  const buffer = createFrameBuffer(VNET_HDR_BYTES + bytes.length);
  buffer.bytes.set(bytes, VNET_HDR_BYTES);
  return { buffer, offset: VNET_HDR_BYTES, length: bytes.length };
}

/** A frame of its own with the same bytes, virtio-net header included. */
export function cloneFrame(frame: TestFrame): TestFrame {
  const buffer = createFrameBuffer(VNET_HDR_BYTES + frame.length);
  const from = frame.offset - VNET_HDR_BYTES;
  buffer.bytes.set(frame.buffer.bytes.subarray(from, frame.offset + frame.length));
  return { buffer, offset: VNET_HDR_BYTES, length: frame.length };
}

/** The frame's bytes, from the Ethernet header on. */
export function frameBytes(frame: TestFrame): Uint8Array {
  return frame.buffer.bytes.slice(frame.offset, frame.offset + frame.length);
}

/**
 * Dissects a frame that must be well-formed.
 *
 * @throws Error when it is not
 */
export function dissectFrame(frame: TestFrame): FrameInfo {
  const info = new FrameInfo();
  const reason = dissect(frame.buffer, frame.offset, frame.length, info);
  if (reason !== FRAME_OK) throw new Error(`Cannot dissect the frame: reason ${reason}`);
  return info;
}

function ipFrame(
  fields: IpFrameFields,
  protocol: number,
  l4Bytes: number,
  emitTransport: (buffer: FrameBuffer, l4: number) => void,
): TestFrame {
  const isIpv6 = (fields.src ?? fields.dst ?? GUEST_IP).includes(':');
  const src = ip(fields.src ?? (isIpv6 ? GUEST_IP6 : GUEST_IP));
  const dst = ip(fields.dst ?? (isIpv6 ? CLIENT_IP6 : CLIENT_IP));
  const options = fields.ipOptions ?? new Uint8Array(0);
  const room = VNET_HDR_BYTES + 22 + 40 + options.length + l4Bytes + (fields.paddingBytes ?? 0);
  const buffer = createFrameBuffer(room);
  const l3 =
    VNET_HDR_BYTES +
    emitEthernet(buffer, VNET_HDR_BYTES, {
      srcMac: mac(fields.srcMac ?? GUEST_MAC),
      dstMac: mac(fields.dstMac ?? CLIENT_MAC),
      etherType: isIpv6 ? ETHER_TYPE_IPV6 : ETHER_TYPE_IPV4,
      vlan: fields.vlan ?? 0,
    });
  const ttl = fields.ttl ?? 64;
  let l4 = l3;
  if (isIpv6) {
    const nextHeader = fields.firstHeader ?? protocol;
    const payloadBytes = options.length + l4Bytes;
    l4 += emitIpv6(buffer, l3, { src, dst, nextHeader, payloadBytes, hopLimit: ttl });
    buffer.bytes.set(options, l4);
    l4 += options.length;
  } else {
    const id = fields.id ?? 0;
    l4 += emitIpv4(buffer, l3, { src, dst, protocol, payloadBytes: l4Bytes, ttl, id, options });
  }
  emitTransport(buffer, l4);
  const length = l4 + l4Bytes - VNET_HDR_BYTES + (fields.paddingBytes ?? 0);
  const frame = { buffer, offset: VNET_HDR_BYTES, length };
  finishFrame(frame, fields, l4, protocol);
  return frame;
}

/** The virtio-net header, then the transport checksum, partial or whole. */
function finishFrame(frame: TestFrame, fields: IpFrameFields, l4: number, protocol: number): void {
  const isPartial = fields.partialChecksum ?? false;
  const { buffer, offset } = frame;
  const info = new FrameInfo();
  writeVnetHeader(buffer.view, 0, {
    flags: isPartial ? VNET_NEEDS_CSUM : 0,
    gsoType: fields.gsoType ?? 0,
    headerBytes: 0,
    gsoBytes: fields.gsoBytes ?? 0,
    csumStart: isPartial ? l4 - offset : 0,
    csumOffset: isPartial ? (protocol === 6 ? 16 : 6) : 0,
  });
  if (dissect(buffer, offset, frame.length, info) === FRAME_OK && !info.isFragment) {
    writeTransportChecksum(info);
    if (fields.gsoType !== undefined) buffer.view.setUint16(2, info.payloadOffset - offset, true);
  }
}

function payloadBytes(payload: string | Uint8Array | undefined): Uint8Array {
  return typeof payload === 'string'
    ? new TextEncoder().encode(payload)
    : (payload ?? new Uint8Array(0));
}

function mac(text: string): Uint8Array {
  const bytes = parseMac(text);
  if (bytes === undefined) throw new RangeError(`Cannot read MAC address ${text}`);
  return bytes;
}

function ip(text: string): Uint8Array {
  const bytes = parseIp(text);
  if (bytes === undefined) throw new RangeError(`Cannot read IP address ${text}`);
  return bytes;
}
