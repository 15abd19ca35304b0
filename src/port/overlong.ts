/**
 * Frames longer than an interface takes, made to fit: TCP segments become GSO frames, which the kernel cuts into
 * segments of the right size on their way out. Anything else cannot be cut without changing what the
 * receiver sees.
 *
 * Such frames come from a guest whose own interface has a larger MTU, or that trusts an offload which
 * this interface lacks.
 *
 * @module
 */
import type { FrameBuffer } from '../env/frame.ts';
import { VNET_HDR_BYTES } from '../limits.ts';
import { checksumFold, pseudoHeaderSum } from '../wire/checksum.ts';
import {
  ETHER_TYPE_VLAN,
  ETHERNET_HEADER_BYTES,
  ETHERNET_TYPE,
  VLAN_TAG_BYTES,
} from '../wire/ethernet.ts';
import { dissect, FRAME_OK, FrameInfo } from '../wire/frame.ts';
import { IP_PROTOCOL_TCP } from '../wire/ipv4.ts';
import { TCP_CHECKSUM, TCP_CWR, TCP_DATA_OFFSET } from '../wire/tcp.ts';
import {
  VNET_CSUM_OFFSET,
  VNET_CSUM_START,
  VNET_FLAGS,
  VNET_GSO_ECN,
  VNET_GSO_NONE,
  VNET_GSO_SIZE,
  VNET_GSO_TCPV4,
  VNET_GSO_TCPV6,
  VNET_GSO_TYPE,
  VNET_HDR_LEN,
  VNET_NEEDS_CSUM,
} from '../wire/vnet-hdr.ts';

/** Smallest payload per segment that is worth sending; a smaller one means a nonsensical MTU. */
const SEGMENT_BYTES_MIN = 8;

/** Longest virtio-net header and frame headers (with IPv6 extension headers) that can be rewritten. */
export const FITTED_HEADER_BYTES_MAX = 512;

/**
 * The longest Ethernet frame that an interface of this MTU takes: one 802.1Q tag may come on top
 * (Linux packet_snd: packet_extra_vlan_len_allowed).
 */
function frameBytesMax(view: DataView, offset: number, mtu: number): number {
  const isTagged = view.getUint16(offset + ETHERNET_TYPE) === ETHER_TYPE_VLAN;
  return mtu + ETHERNET_HEADER_BYTES + (isTagged ? VLAN_TAG_BYTES : 0);
}

/**
 * Does the frame (for a GSO frame: each of its segments) fit an interface of this MTU? Reads nothing but
 * the Ethernet and virtio-net headers for ordinary frames.
 *
 * @param length at least 14
 */
export function fitsMtu(buffer: FrameBuffer, offset: number, length: number, mtu: number): boolean {
  const view = buffer.view;
  if (length <= mtu + ETHERNET_HEADER_BYTES) return true;
  const vnet = offset - VNET_HDR_BYTES;
  const gsoType = view.getUint8(vnet + VNET_GSO_TYPE) & ~VNET_GSO_ECN;
  if (gsoType === VNET_GSO_NONE) return length <= frameBytesMax(view, offset, mtu);
  const l4 = view.getUint16(vnet + VNET_CSUM_START, true);
  // The transport header: 8 bytes of UDP, or what TCP's data offset says.
  let headerBytes = l4 + 8;
  if (gsoType === VNET_GSO_TCPV4 || gsoType === VNET_GSO_TCPV6) {
    if (l4 + TCP_DATA_OFFSET >= length) return false;
    headerBytes = l4 + (view.getUint8(offset + l4 + TCP_DATA_OFFSET) >> 4) * 4;
  }
  const segmentBytes = view.getUint16(vnet + VNET_GSO_SIZE, true);
  return headerBytes + segmentBytes <= frameBytesMax(view, offset, mtu);
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
    if (info.protocol !== IP_PROTOCOL_TCP || info.isFragment || info.tcpHeaderBytes === 0) return 0;
    const view = buffer.view;
    const vnet = offset - VNET_HDR_BYTES;
    const gsoType = view.getUint8(vnet + VNET_GSO_TYPE) & ~VNET_GSO_ECN;
    const tcpGsoType = info.ipVersion === 4 ? VNET_GSO_TCPV4 : VNET_GSO_TCPV6;
    if (gsoType !== VNET_GSO_NONE && gsoType !== tcpGsoType) return 0;
    const frameHeaderBytes = info.payloadOffset - offset;
    const headerBytes = VNET_HDR_BYTES + frameHeaderBytes;
    const segmentBytes = Math.min(
      frameBytesMax(view, offset, mtu) - frameHeaderBytes,
      gsoType === VNET_GSO_NONE ? length : view.getUint16(vnet + VNET_GSO_SIZE, true),
    );
    if (headerBytes > FITTED_HEADER_BYTES_MAX || segmentBytes < SEGMENT_BYTES_MIN) return 0;
    out.bytes.set(buffer.bytes.subarray(vnet, vnet + headerBytes), outOffset);
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
      view.setUint16(checksum, checksumFold(pseudoHeaderSum(info, info.protocol, info.l4Bytes)));
    }
    const needsSegments = info.payloadBytes > segmentBytes;
    const ecn = (info.tcpFlags & TCP_CWR) === 0 ? 0 : VNET_GSO_ECN;
    view.setUint8(vnet + VNET_FLAGS, VNET_NEEDS_CSUM);
    view.setUint8(vnet + VNET_GSO_TYPE, needsSegments ? gsoType | ecn : VNET_GSO_NONE);
    view.setUint16(vnet + VNET_HDR_LEN, needsSegments ? frameHeaderBytes : 0, true);
    view.setUint16(vnet + VNET_GSO_SIZE, needsSegments ? segmentBytes : 0, true);
    view.setUint16(vnet + VNET_CSUM_START, l4, true);
    view.setUint16(vnet + VNET_CSUM_OFFSET, TCP_CHECKSUM, true);
  }
}
