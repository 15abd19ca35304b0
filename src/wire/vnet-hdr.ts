/**
 * The virtio-net header before each frame (virtio 1.2 §5.1.6; Linux include/uapi/linux/virtio_net.h
 * `struct virtio_net_hdr`). The kernel writes it in the machine's byte order on packet sockets and taps: little-endian here.
 *
 * ```text
 * 0 flags (u8) | 1 gso_type (u8) | 2 hdr_len | 4 gso_size | 6 csum_start | 8 csum_offset   (u16 each)
 * ```
 *
 * Offsets are from the header's first byte, which lies VNET_HDR_BYTES before the frame. `csum_start` and
 * `hdr_len` count from the Ethernet header.
 *
 * @module
 */

export const VNET_FLAGS = 0;
export const VNET_GSO_TYPE = 1;
export const VNET_HDR_LEN = 2;
export const VNET_GSO_SIZE = 4;
export const VNET_CSUM_START = 6;
export const VNET_CSUM_OFFSET = 8;

/** The transport checksum is partial: sum from csum_start, result at csum_start + csum_offset. */
export const VNET_NEEDS_CSUM = 1;
/** The transport checksum was verified and need not be right in the frame. */
export const VNET_DATA_VALID = 2;

export const VNET_GSO_NONE = 0;
export const VNET_GSO_TCPV4 = 1;
/** UDP fragmentation offload (obsolete). */
export const VNET_GSO_UDP = 3;
export const VNET_GSO_TCPV6 = 4;
export const VNET_GSO_UDP_L4 = 5;
/** Flag in gso_type: CWR belongs to the first segment only. */
export const VNET_GSO_ECN = 0x80;

/** Fields of a header, in host order. */
export interface VnetHeader {
  flags: number;
  /** Without VNET_GSO_ECN. */
  gsoType: number;
  /** Bytes of all headers, a hint. */
  headerBytes: number;
  /** Payload bytes of each segment but the last. */
  gsoBytes: number;
  csumStart: number;
  csumOffset: number;
}

/** Reads the header at `offset`. Allocates unless `out` is given. */
export function readVnetHeader(
  view: DataView,
  offset: number,
  out: VnetHeader = {
    flags: 0,
    gsoType: 0,
    headerBytes: 0,
    gsoBytes: 0,
    csumStart: 0,
    csumOffset: 0,
  },
): VnetHeader {
  out.flags = view.getUint8(offset + VNET_FLAGS);
  out.gsoType = view.getUint8(offset + VNET_GSO_TYPE) & ~VNET_GSO_ECN;
  out.headerBytes = view.getUint16(offset + VNET_HDR_LEN, true);
  out.gsoBytes = view.getUint16(offset + VNET_GSO_SIZE, true);
  out.csumStart = view.getUint16(offset + VNET_CSUM_START, true);
  out.csumOffset = view.getUint16(offset + VNET_CSUM_OFFSET, true);
  return out;
}

/** Writes the header at `offset`. */
export function writeVnetHeader(view: DataView, offset: number, header: VnetHeader): void {
  view.setUint8(offset + VNET_FLAGS, header.flags);
  view.setUint8(offset + VNET_GSO_TYPE, header.gsoType);
  view.setUint16(offset + VNET_HDR_LEN, header.headerBytes, true);
  view.setUint16(offset + VNET_GSO_SIZE, header.gsoBytes, true);
  view.setUint16(offset + VNET_CSUM_START, header.csumStart, true);
  view.setUint16(offset + VNET_CSUM_OFFSET, header.csumOffset, true);
}

/** Writes the header of a frame with nothing offloaded: all zero. */
export function clearVnetHeader(bytes: Uint8Array, offset: number): void {
  for (let i = 0; i < 10; i++) bytes[offset + i] = 0;
}
