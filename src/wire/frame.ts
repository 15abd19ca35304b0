/**
 * One-pass dissection of a frame into the offsets and fields that the engines need.
 *
 * Never throws, never reads outside `[offset, offset + length)`, on any bytes.
 *
 * @module
 */

/** Why a frame could not be dissected; 0 is success. Names are the keys of the `dropped` counters. */
export const FRAME_OK = 0;

/**
 * What `dissect` found. One long-lived instance per caller: the fields are overwritten by the next call.
 * All offsets count from the start of `bytes` (not of the frame), in bytes. Fields that do not apply are 0.
 */
export class FrameInfo {
  bytes: Uint8Array = new Uint8Array(0);
  view: DataView = new DataView(new ArrayBuffer(0));
  /** First byte of the Ethernet header; the virtio-net header lies before it. */
  frameOffset = 0;
  frameBytes = 0;
  /** EtherType after all tags, host order. */
  etherType = 0;
  /** 802.1Q/802.1ad tags looked through (0..2). */
  vlanTags = 0;
  /** Identity of the tags for flow keys: outer VID * 4096 + inner VID; VID 0..4094; 0 when untagged. */
  vlan = 0;
  l3Offset = 0;
  /** 4, 6, or 0 when not IP. */
  ipVersion = 0;
  /** Bytes of the IP packet by its own length field (Ethernet padding left out). */
  l3Bytes = 0;
  /** Upper-layer protocol, after IPv6 extension headers. For a non-first fragment as the fragment header says. */
  protocol = 0;
  /** Is this a fragment (offset != 0 or more-fragments)? Then the l4 fields below cover only what is in it, and no port is read unless offset is 0. */
  isFragment = false;
  /** In bytes. */
  fragmentOffset = 0;
  moreFragments = false;
  fragmentId = 0;
  /** Offset of the IPv6 fragment header, or of the IPv4 header, of a fragment. */
  fragmentHeaderOffset = 0;
  /** First byte of the source / destination address (4 or 16 bytes). */
  srcAddressOffset = 0;
  dstAddressOffset = 0;
  l4Offset = 0;
  /** Transport header and payload, bytes. */
  l4Bytes = 0;
  /** TCP, UDP: ports. ICMP and ICMPv6 echo: both are the identifier. Others 0. Host order. */
  srcPort = 0;
  dstPort = 0;
  /** ICMP, ICMPv6. */
  icmpType = 0;
  icmpCode = 0;
  /** TCP. */
  seq = 0;
  ack = 0;
  /** TCP flags: the low 8 bits FIN 1, SYN 2, RST 4, PSH 8, ACK 16, URG 32, ECE 64, CWR 128. */
  tcpFlags = 0;
  /** Window field as on the wire, unscaled. */
  window = 0;
  /** 20..60. */
  tcpHeaderBytes = 0;
  payloadOffset = 0;
  payloadBytes = 0;
  /** virtio-net header says VIRTIO_NET_HDR_F_NEEDS_CSUM: the transport checksum field holds only the pseudo-header sum. */
  checksumPartial = false;
}
