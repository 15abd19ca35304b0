/**
 * Frames longer than an interface takes, made to fit: TCP segments become GSO frames, which the kernel cuts into
 * segments of the right size on their way out. Anything else cannot be cut without changing what the
 * receiver sees.
 *
 * Such frames come from a guest whose own interface has a larger MTU, or that trusts an offload which
 * this interface lacks.
 *
 * ```text
 * struct virtio_net_hdr, 10 bytes, integers little-endian (Linux include/uapi/linux/virtio_net.h):
 *   0 flags 1 | 1 gso_type 1 | 2 hdr_len 2 | 4 gso_size 2 | 6 csum_start 2 | 8 csum_offset 2
 * csum_start counts from the Ethernet header, csum_offset from csum_start, hdr_len is the length of all headers.
 * ```
 *
 * @module
 */
import type { FrameBuffer } from '../env/frame.ts';
import { VNET_HDR_BYTES } from '../limits.ts';
import { dissect, FRAME_OK, FrameInfo } from '../wire/frame.ts';
import { TCP_CHECKSUM, TCP_CWR } from '../wire/tcp.ts';

const VNET_NEEDS_CSUM = 1;
const VNET_GSO_NONE = 0;
const VNET_GSO_TCPV4 = 1;
const VNET_GSO_TCPV6 = 4;
/** Or-ed to the type: the first segment alone keeps CWR (RFC 3168 §6.1.2). */
const VNET_GSO_ECN = 0x80;

const ETHERNET_BYTES = 14;
const VLAN_TAG_BYTES = 4;
const TYPE_8021Q = 0x8100;
const PROTOCOL_TCP = 6;

/** Smallest payload per segment that is worth sending; a smaller one means a nonsensical MTU. */
const SEGMENT_BYTES_MIN = 8;

/** Longest virtio-net header and frame headers (with IPv6 extension headers) that can be rewritten. */
export const FITTED_HEADER_BYTES_MAX = 512;

/**
 * The longest Ethernet frame that an interface of this MTU takes: one 802.1Q tag may come on top
 * (Linux packet_snd: packet_extra_vlan_len_allowed).
 */
function frameBytesMax(view: DataView, offset: number, mtu: number): number {
  const tagBytes = view.getUint16(offset + 12) === TYPE_8021Q ? VLAN_TAG_BYTES : 0;
  return mtu + ETHERNET_BYTES + tagBytes;
}

/**
 * Does the frame (for a GSO frame: each of its segments) fit an interface of this MTU? Reads nothing but
 * the Ethernet and virtio-net headers for ordinary frames.
 *
 * @param length at least 14
 */
export function fitsMtu(buffer: FrameBuffer, offset: number, length: number, mtu: number): boolean {
  const view = buffer.view;
  if (length <= mtu + ETHERNET_BYTES) return true;
  const vnet = offset - VNET_HDR_BYTES;
  const gsoType = view.getUint8(vnet + 1);
  if (gsoType === VNET_GSO_NONE) return length <= frameBytesMax(view, offset, mtu);
  const l4Bytes = view.getUint16(vnet + 6, true);
  // The transport header: 8 bytes of UDP, or what TCP's data offset says.
  let headerBytes = l4Bytes + 8;
  if (
    (gsoType & ~VNET_GSO_ECN) === VNET_GSO_TCPV4 ||
    (gsoType & ~VNET_GSO_ECN) === VNET_GSO_TCPV6
  ) {
    if (l4Bytes + 13 > length) return false;
    headerBytes = l4Bytes + (view.getUint8(offset + l4Bytes + 12) >> 4) * 4;
  }
  return headerBytes + view.getUint16(vnet + 4, true) <= frameBytesMax(view, offset, mtu);
}

/**
 * Rewrites the headers of frames that do not fit. Only they are copied; the payload stays where it is.
 */
export class FrameFitter {
  /** Where the payload that goes behind the rewritten headers begins, in the frame's buffer. */
  payloadOffset = 0;
  payloadBytes = 0;
  readonly #info = new FrameInfo();

  /**
   * Writes the virtio-net header and all headers of a TCP frame, changed so that its segments fit `mtu`, to
   * `out` (FITTED_HEADER_BYTES_MAX bytes from `outOffset`).
   *
   * @returns bytes written; 0 when the frame cannot be made to fit (no TCP, a fragment, malformed)
   */
  fit(
    buffer: FrameBuffer,
    offset: number,
    length: number,
    mtu: number,
    out: FrameBuffer,
    outOffset: number,
  ): number {
    const info = this.#info;
    if (dissect(buffer, offset, length, info) !== FRAME_OK) return 0;
    if (info.protocol !== PROTOCOL_TCP || info.isFragment || info.tcpHeaderBytes === 0) return 0;
    const gsoType = buffer.view.getUint8(offset - VNET_HDR_BYTES + 1) & ~VNET_GSO_ECN;
    const tcpGsoType = info.ipVersion === 4 ? VNET_GSO_TCPV4 : VNET_GSO_TCPV6;
    if (gsoType !== VNET_GSO_NONE && gsoType !== tcpGsoType) return 0;
    const frameHeaderBytes = info.payloadOffset - offset;
    const headerBytes = VNET_HDR_BYTES + frameHeaderBytes;
    const segmentBytes = frameBytesMax(buffer.view, offset, mtu) - frameHeaderBytes;
    if (headerBytes > FITTED_HEADER_BYTES_MAX || segmentBytes < SEGMENT_BYTES_MIN) return 0;
    const start = offset - VNET_HDR_BYTES;
    out.bytes.set(buffer.bytes.subarray(start, start + headerBytes), outOffset);
    this.payloadOffset = info.payloadOffset;
    this.payloadBytes = info.payloadBytes;
    // Too long only by what follows the IP packet: that is cut off, and nothing else changes.
    if (info.payloadBytes <= segmentBytes && gsoType === VNET_GSO_NONE) return headerBytes;
    this.#writeOffload(out.view, outOffset, tcpGsoType, segmentBytes, frameHeaderBytes);
    return headerBytes;
  }

  #writeOffload(
    view: DataView,
    vnet: number,
    gsoType: number,
    segmentBytes: number,
    frameHeaderBytes: number,
  ): void {
    const info = this.#info;
    const l4 = info.l4Offset - info.frameOffset;
    if (!info.checksumPartial) {
      const checksum = vnet + VNET_HDR_BYTES + l4 + TCP_CHECKSUM;
      view.setUint16(checksum, pseudoHeaderSum(info));
    }
    const needsSegments = info.payloadBytes > segmentBytes;
    const ecn = (info.tcpFlags & TCP_CWR) === 0 ? 0 : VNET_GSO_ECN;
    view.setUint8(vnet, VNET_NEEDS_CSUM);
    view.setUint8(vnet + 1, needsSegments ? gsoType | ecn : VNET_GSO_NONE);
    view.setUint16(vnet + 2, needsSegments ? frameHeaderBytes : 0, true);
    view.setUint16(vnet + 4, needsSegments ? segmentBytes : 0, true);
    view.setUint16(vnet + 6, l4, true);
    view.setUint16(vnet + 8, TCP_CHECKSUM, true);
  }
}

/**
 * Ones' complement sum, folded and not inverted, of the TCP pseudo-header (RFC 9293 §3.1, RFC 8200 §8.1): what the
 * checksum field holds when the kernel is to fill it in.
 */
function pseudoHeaderSum(info: FrameInfo): number {
  let sum = PROTOCOL_TCP + info.l4Bytes;
  const addressBytes = info.ipVersion === 4 ? 4 : 16;
  for (let index = 0; index < addressBytes; index += 2) {
    sum += info.view.getUint16(info.srcAddressOffset + index);
    sum += info.view.getUint16(info.dstAddressOffset + index);
  }
  while (sum > 0xffff) sum = (sum & 0xffff) + (sum >>> 16);
  return sum;
}
