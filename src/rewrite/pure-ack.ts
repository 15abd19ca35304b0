/**
 * Writes a pure ACK from numbers alone: a segment without data, such as the probe by which the secondary makes a
 * client tell at once what it has received (RFC 9293 §3.10.7.4: an unacceptable segment is answered by an ACK).
 *
 * @module
 */
import { VNET_HDR_BYTES } from '../limits.ts';
import type { Seq } from '../wire/seq.ts';
import {
  TCP_ACK,
  TCP_ACK_NUMBER,
  TCP_CHECKSUM,
  TCP_DATA_OFFSET,
  TCP_FLAGS,
  TCP_HEADER_BYTES_MIN,
  TCP_SEQ,
  TCP_WINDOW,
} from '../wire/tcp.ts';
import { foldSum, sumOfBytes } from './checksum-delta.ts';
import type { FrameTarget } from './neighbour-frames.ts';
import { IP_PROTOCOL_TCP } from './tcp-frame.ts';

/** Longest frame written here: Ethernet, two tags, IPv6, TCP with timestamps. */
export const PURE_ACK_BYTES_MAX = 14 + 8 + 40 + 32;

/** What the frame says. MAC addresses are 6 bytes, IP addresses 16 (IPv4 in the first 4). */
export interface PureAck {
  readonly dstMac: Uint8Array;
  readonly srcMac: Uint8Array;
  /** VLAN tags: 0, 4 or 8 bytes, TPID and TCI each. */
  readonly tags: Uint8Array;
  /** 4 or 6. */
  readonly ipVersion: number;
  readonly srcAddress: Uint8Array;
  readonly dstAddress: Uint8Array;
  readonly srcPort: number;
  readonly dstPort: number;
  readonly seq: Seq;
  readonly ack: Seq;
  /** As on the wire, unscaled. */
  readonly window: number;
  /** TSval and TSecr; undefined when the connection does not use them (RFC 7323 §3.2: all segments or none). */
  readonly timestamps: { readonly tsval: number; readonly tsecr: number } | undefined;
}

/** Writes the frame with full checksums and returns its length. */
export function writePureAck(target: FrameTarget, fields: PureAck): number {
  const { bytes, view } = target.buffer;
  const { offset } = target;
  const tcpBytes = TCP_HEADER_BYTES_MIN + (fields.timestamps === undefined ? 0 : 12);
  bytes.fill(0, offset - VNET_HDR_BYTES, offset);
  bytes.set(fields.dstMac, offset);
  bytes.set(fields.srcMac, offset + 6);
  bytes.set(fields.tags, offset + 12);
  const l3 = offset + 14 + fields.tags.length;
  view.setUint16(l3 - 2, fields.ipVersion === 4 ? 0x0800 : 0x86dd);
  const l4 = fields.ipVersion === 4 ? writeIpv4(target, l3, tcpBytes, fields) : l3 + 40;
  if (fields.ipVersion === 6) {
    view.setUint32(l3, 0x60000000);
    view.setUint16(l3 + 4, tcpBytes);
    bytes[l3 + 6] = IP_PROTOCOL_TCP;
    bytes[l3 + 7] = 64;
    bytes.set(fields.srcAddress, l3 + 8);
    bytes.set(fields.dstAddress, l3 + 24);
  }
  view.setUint16(l4, fields.srcPort);
  view.setUint16(l4 + 2, fields.dstPort);
  view.setUint32(l4 + TCP_SEQ, fields.seq);
  view.setUint32(l4 + TCP_ACK_NUMBER, fields.ack);
  bytes[l4 + TCP_DATA_OFFSET] = (tcpBytes / 4) << 4;
  bytes[l4 + TCP_FLAGS] = TCP_ACK;
  view.setUint16(l4 + TCP_WINDOW, fields.window);
  view.setUint32(l4 + TCP_CHECKSUM, 0);
  if (fields.timestamps !== undefined) {
    // NOP NOP TIMESTAMPS 10, as in RFC 7323 appendix A.
    view.setUint32(l4 + 20, 0x0101080a);
    view.setUint32(l4 + 24, fields.timestamps.tsval);
    view.setUint32(l4 + 28, fields.timestamps.tsecr);
  }
  // The addresses lie right before the TCP header in both versions (IPv4 without options).
  const addresses = l4 - (fields.ipVersion === 4 ? 8 : 32);
  const sum = IP_PROTOCOL_TCP + tcpBytes + sumOfBytes(bytes, addresses, l4 + tcpBytes, false);
  view.setUint16(l4 + TCP_CHECKSUM, ~foldSum(sum) & 0xffff);
  return l4 + tcpBytes - offset;
}

/** Returns the offset after the header. Identification 0 with don't-fragment (RFC 6864 §4.1: an atomic datagram). */
function writeIpv4(target: FrameTarget, l3: number, tcpBytes: number, fields: PureAck): number {
  const { bytes, view } = target.buffer;
  view.setUint16(l3, 0x4500);
  view.setUint16(l3 + 2, 20 + tcpBytes);
  view.setUint32(l3 + 4, 0x00004000);
  bytes[l3 + 8] = 64;
  bytes[l3 + 9] = IP_PROTOCOL_TCP;
  view.setUint16(l3 + 10, 0);
  bytes.set(fields.srcAddress.subarray(0, 4), l3 + 12);
  bytes.set(fields.dstAddress.subarray(0, 4), l3 + 16);
  view.setUint16(l3 + 10, ~sumOfBytes(bytes, l3, l3 + 20, false) & 0xffff);
  return l3 + 20;
}
