/**
 * Ethernet II header and VLAN tags (IEEE 802.3, 802.1Q-2018 §9): constants and a builder.
 *
 * ```text
 * | destination (6) | source (6) | [ 88a8 TCI (4) ] [ 8100 TCI (4) ] | EtherType (2) | payload
 * ```
 *
 * @module
 */
import type { FrameBuffer } from '../env/frame.ts';
import { copyBytes } from './bytes.ts';

export const ETHERNET_DST = 0;
export const ETHERNET_SRC = 6;
export const ETHERNET_TYPE = 12;
/** Bytes of a header without tags. */
export const ETHERNET_HEADER_BYTES = 14;
/** Shortest frame on a wire, without its check sequence; shorter ones are padded by the sender. */
export const ETHERNET_FRAME_BYTES_MIN = 60;
export const VLAN_TAG_BYTES = 4;
export const MAC_BYTES = 6;

export const ETHER_TYPE_IPV4 = 0x0800;
export const ETHER_TYPE_ARP = 0x0806;
export const ETHER_TYPE_VLAN = 0x8100;
export const ETHER_TYPE_IPV6 = 0x86dd;
export const ETHER_TYPE_PROVIDER_VLAN = 0x88a8;

/** ff:ff:ff:ff:ff:ff */
export const MAC_BROADCAST: Uint8Array = new Uint8Array(6).fill(0xff);

/** Is the address at `offset` a group address (multicast, broadcast)? */
export function isGroupMac(bytes: Uint8Array, offset: number): boolean {
  return (bytes[offset]! & 1) !== 0;
}

/** A VLAN identity (`FrameInfo.vlan`) as text: `5`, or `7.5` for tag 5 inside tag 7. */
export function formatVlan(vlan: number): string {
  return vlan < 4096 ? String(vlan) : `${vlan >>> 12}.${vlan & 0x0fff}`;
}

/** What `emitEthernet` writes. */
export interface EthernetFields {
  readonly dstMac: Uint8Array;
  readonly srcMac: Uint8Array;
  readonly etherType: number;
  /** As `FrameInfo.vlan`: 0 no tag, below 4096 one tag, else two. @default 0 */
  readonly vlan?: number;
}

/**
 * Writes the header and its tags at `offset`.
 *
 * @returns bytes written: 14, 18 or 22
 */
export function emitEthernet(buffer: FrameBuffer, offset: number, fields: EthernetFields): number {
  const view = buffer.view;
  const vlan = fields.vlan ?? 0;
  copyBytes(buffer.bytes, offset + ETHERNET_DST, fields.dstMac, 0, MAC_BYTES);
  copyBytes(buffer.bytes, offset + ETHERNET_SRC, fields.srcMac, 0, MAC_BYTES);
  let at = offset + ETHERNET_TYPE;
  if (vlan >= 4096) {
    view.setUint16(at, ETHER_TYPE_PROVIDER_VLAN);
    view.setUint16(at + 2, vlan >>> 12);
    at += VLAN_TAG_BYTES;
  }
  if (vlan !== 0) {
    view.setUint16(at, ETHER_TYPE_VLAN);
    view.setUint16(at + 2, vlan & 0x0fff);
    at += VLAN_TAG_BYTES;
  }
  view.setUint16(at, fields.etherType);
  return at + 2 - offset;
}
