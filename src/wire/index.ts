/**
 * Packet formats: dissecting, reading, building and printing frames, checksums, capture files.
 * Pure functions over bytes; they never throw on bad input and never read outside of what they are given.
 *
 * @module
 */
export {
  formatIp,
  formatIpv4,
  formatIpv6,
  formatMac,
  parseIp,
  parseIpv4,
  parseIpv6,
  parseMac,
} from './address.ts';
export { emitArpFrame, emitGratuitousArp, isArp } from './arp.ts';
export { createFrameBuffer, frameBufferOf, fromHex, toHex } from './bytes.ts';
export {
  checksumAdd,
  checksumFold,
  checksumOf,
  checksumUpdate16,
  checksumUpdate32,
  completePartialChecksum,
  isTransportChecksumRight,
  pseudoHeaderSum,
  writeIpv4Checksum,
  writeTransportChecksum,
} from './checksum.ts';
export { type EthernetFields, emitEthernet, isGroupMac } from './ethernet.ts';
export { DROP_REASON_NAMES, type DropReason, dissect, FRAME_OK, FrameInfo } from './frame.ts';
export { emitEcho, isIcmpError } from './icmpv4.ts';
export {
  emitNeighbourFrame,
  emitUnsolicitedAdvertisement,
  findNeighbourMac,
  isNeighbourDiscovery,
  isNeighbourMessage,
} from './icmpv6.ts';
export { emitIpv4, type Ipv4Fields } from './ipv4.ts';
export { emitIpv6, emitIpv6Fragment, type Ipv6Fields } from './ipv6.ts';
export { CaptureDecoder, type CapturedPacket, type CapturedPacketHandler } from './pcap.ts';
export {
  encodeInterface,
  encodePacket,
  encodeSectionHeader,
  LINK_TYPE_ETHERNET,
  type PacketFields,
} from './pcapng-writer.ts';
export { printFrame, printInfo } from './print.ts';
export {
  type Seq,
  seqAdd,
  seqBefore,
  seqBeforeOrEqual,
  seqDistance,
  seqMax,
  seqMin,
} from './seq.ts';
export {
  emitTcp,
  formatTcpFlags,
  TCP_ACK,
  TCP_CWR,
  TCP_ECE,
  TCP_FIN,
  TCP_PSH,
  TCP_RST,
  TCP_SYN,
  TCP_URG,
  type TcpFields,
} from './tcp.ts';
export {
  emitTcpOptions,
  parseTcpOptions,
  type TcpOptionFields,
  TcpOptions,
} from './tcp-options.ts';
export { emitUdp } from './udp.ts';
export { clearVnetHeader, readVnetHeader, type VnetHeader, writeVnetHeader } from './vnet-hdr.ts';
