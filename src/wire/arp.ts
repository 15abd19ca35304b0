/**
 * ARP for IPv4 over Ethernet (RFC 826): field offsets from the first byte after the Ethernet header, a
 * check, and builders of whole frames.
 *
 * @module
 */
import type { FrameBuffer } from '../env/frame.ts';
import { VNET_HDR_BYTES } from '../limits.ts';
import { copyBytes } from './bytes.ts';
import {
  ETHER_TYPE_ARP,
  ETHERNET_FRAME_BYTES_MIN,
  emitEthernet,
  MAC_BROADCAST,
  MAC_BYTES,
} from './ethernet.ts';
import { clearVnetHeader } from './vnet-hdr.ts';

export const ARP_OPERATION = 6;
export const ARP_SENDER_MAC = 8;
export const ARP_SENDER_IP = 14;
export const ARP_TARGET_MAC = 18;
export const ARP_TARGET_IP = 24;
export const ARP_BYTES = 28;

export const ARP_REQUEST = 1;
export const ARP_REPLY = 2;

/** Hardware type Ethernet, protocol type IPv4, address lengths 6 and 4: the first six bytes. */
const ETHERNET_IPV4_HIGH = 0x0001_0800;
const ETHERNET_IPV4_LOW = 0x0604;

/**
 * Is there a whole ARP packet for IPv4 over Ethernet at `offset`?
 *
 * @param end first byte after the frame
 */
export function isArp(view: DataView, offset: number, end: number): boolean {
  return (
    offset + ARP_BYTES <= end &&
    view.getUint32(offset) === ETHERNET_IPV4_HIGH &&
    view.getUint16(offset + 4) === ETHERNET_IPV4_LOW
  );
}

/** What `emitArpFrame` writes. */
export interface ArpFields {
  readonly operation: typeof ARP_REQUEST | typeof ARP_REPLY;
  /** Also the frame's source. */
  readonly senderMac: Uint8Array;
  /** 4 bytes. */
  readonly senderIp: Uint8Array;
  /** Zero in a request. @default 00:00:00:00:00:00 */
  readonly targetMac?: Uint8Array;
  readonly targetIp: Uint8Array;
  /** Where the frame goes. @default the target of a reply; everybody for a request */
  readonly dstMac?: Uint8Array;
  /** As `FrameInfo.vlan`. @default 0 */
  readonly vlan?: number;
}

const MAC_ZERO: Uint8Array = new Uint8Array(MAC_BYTES);

/**
 * Writes a whole frame at `offset`, with a virtio-net header of zeros before it, padded to 60 bytes.
 *
 * @returns bytes of the frame
 */
export function emitArpFrame(buffer: FrameBuffer, offset: number, fields: ArpFields): number {
  const { bytes, view } = buffer;
  const targetMac = fields.targetMac ?? MAC_ZERO;
  const usualDst = fields.operation === ARP_REPLY ? targetMac : MAC_BROADCAST;
  clearVnetHeader(bytes, offset - VNET_HDR_BYTES);
  const l3Offset =
    offset +
    emitEthernet(buffer, offset, {
      dstMac: fields.dstMac ?? usualDst,
      srcMac: fields.senderMac,
      etherType: ETHER_TYPE_ARP,
      vlan: fields.vlan ?? 0,
    });
  view.setUint32(l3Offset, ETHERNET_IPV4_HIGH);
  view.setUint16(l3Offset + 4, ETHERNET_IPV4_LOW);
  view.setUint16(l3Offset + ARP_OPERATION, fields.operation);
  copyBytes(bytes, l3Offset + ARP_SENDER_MAC, fields.senderMac, 0, MAC_BYTES);
  copyBytes(bytes, l3Offset + ARP_SENDER_IP, fields.senderIp, 0, 4);
  copyBytes(bytes, l3Offset + ARP_TARGET_MAC, targetMac, 0, MAC_BYTES);
  copyBytes(bytes, l3Offset + ARP_TARGET_IP, fields.targetIp, 0, 4);
  const end = l3Offset + ARP_BYTES;
  const frameBytes = Math.max(end - offset, ETHERNET_FRAME_BYTES_MIN);
  for (let at = end; at < offset + frameBytes; at++) bytes[at] = 0;
  return frameBytes;
}

/**
 * Writes a gratuitous ARP at `offset`: an announcement that `ip` is at `mac` (RFC 5227 §3: a broadcast
 * request whose sender and target are the same address). Switches learn the port from its source.
 *
 * @returns bytes of the frame
 */
export function emitGratuitousArp(
  buffer: FrameBuffer,
  offset: number,
  mac: Uint8Array,
  ip: Uint8Array,
  vlan = 0,
): number {
  return emitArpFrame(buffer, offset, {
    operation: ARP_REQUEST,
    senderMac: mac,
    senderIp: ip,
    targetIp: ip,
    vlan,
  });
}
