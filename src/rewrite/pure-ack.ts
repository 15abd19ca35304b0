/**
 * Writes a pure ACK from numbers alone: a segment without data, such as the probe by which the secondary makes a
 * client tell at once what it has received (RFC 9293 §3.10.7.4: an unacceptable segment is answered by an ACK).
 *
 * @module
 */
import { assert } from '../base/assert.ts';
import type { FrameBuffer } from '../env/frame.ts';
import { VNET_HDR_BYTES } from '../limits.ts';
import { writeTransportChecksum } from '../wire/checksum.ts';
import { ETHER_TYPE_IPV4, ETHER_TYPE_IPV6, emitEthernet } from '../wire/ethernet.ts';
import { dissect, FRAME_OK, FrameInfo } from '../wire/frame.ts';
import { emitIpv4, IP_PROTOCOL_TCP } from '../wire/ipv4.ts';
import { emitIpv6 } from '../wire/ipv6.ts';
import type { Seq } from '../wire/seq.ts';
import { emitTcp, TCP_ACK, TCP_HEADER_BYTES_MIN } from '../wire/tcp.ts';
import { emitTcpOptions } from '../wire/tcp-options.ts';
import { clearVnetHeader } from '../wire/vnet-hdr.ts';

/** Longest frame written here: Ethernet, two tags, IPv6, TCP with timestamps. */
export const PURE_ACK_BYTES_MAX = 14 + 8 + 40 + 32;

/** What the frame says. MAC addresses are 6 bytes, IP addresses 16 (IPv4 in the first 4). */
export interface PureAck {
  readonly dstMac: Uint8Array;
  readonly srcMac: Uint8Array;
  /** As `FrameInfo.vlan`. */
  readonly vlan: number;
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

const scratch = new FrameInfo();

/**
 * Writes the frame with full checksums, a virtio-net header of zeros before it, and returns its length.
 *
 * Precondition: PURE_ACK_BYTES_MAX bytes from `offset`, and VNET_HDR_BYTES before it.
 */
export function writePureAck(buffer: FrameBuffer, offset: number, fields: PureAck): number {
  const { dstMac, srcMac, vlan } = fields;
  const isIpv4 = fields.ipVersion === 4;
  const addressBytes = isIpv4 ? 4 : 16;
  const src = fields.srcAddress.subarray(0, addressBytes);
  const dst = fields.dstAddress.subarray(0, addressBytes);
  const { timestamps } = fields;
  const options = timestamps === undefined ? new Uint8Array(0) : emitTcpOptions({ timestamps });
  const payloadBytes = TCP_HEADER_BYTES_MIN + options.length;
  clearVnetHeader(buffer.bytes, offset - VNET_HDR_BYTES);
  const etherType = isIpv4 ? ETHER_TYPE_IPV4 : ETHER_TYPE_IPV6;
  let at = offset + emitEthernet(buffer, offset, { dstMac, srcMac, etherType, vlan });
  at += isIpv4
    ? emitIpv4(buffer, at, { src, dst, protocol: IP_PROTOCOL_TCP, payloadBytes })
    : emitIpv6(buffer, at, { src, dst, nextHeader: IP_PROTOCOL_TCP, payloadBytes });
  at += emitTcp(buffer, at, { ...fields, flags: TCP_ACK, options });
  const length = at - offset;
  assert(dissect(buffer, offset, length, scratch) === FRAME_OK, 'a built frame is well-formed');
  writeTransportChecksum(scratch);
  return length;
}
