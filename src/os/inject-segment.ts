/**
 * Delivers one TCP segment to this machine's own stack as if the peer had sent it, for the part of a
 * connection's state that no socket option can set (see tcp-repair.ts; CRIU's soccr does the same).
 *
 * @module
 */
import { SOCK_RAW } from './constants.ts';
import {
  AF_INET,
  AF_INET6,
  addressBytes,
  checkCall,
  closeSocket,
  IPPROTO_RAW,
  IPPROTO_TCP,
  openSocket,
  sendDatagram,
} from './socket-calls.ts';
import type { TcpConnectionImage } from './tcp-repair.ts';

const TCP_HEADER_BYTES = 20;
const FLAG_FIN = 1;
const FLAG_ACK = 16;

/** What the segment says; sequence numbers host order, modulo 2^32. */
export interface InjectedSegment {
  readonly fin: boolean;
  readonly ack: number;
}

/**
 * Sends a segment from `image.remote` to `image.local` through the loopback device: at the connection's
 * receive position, with the window that the peer last offered.
 *
 * @throws ColoError when the raw socket is refused
 */
export function injectFin(image: TcpConnectionImage, segment: InjectedSegment): void {
  const packet = buildPacket(image, segment);
  const v4 = image.local.family === 4;
  const fd = openSocket(v4 ? AF_INET : AF_INET6, SOCK_RAW, IPPROTO_RAW);
  try {
    // IPPROTO_RAW implies IP_HDRINCL. The port of a raw IPv6 address must be 0 or the protocol.
    checkCall('sendto', sendDatagram(fd, packet, { ...image.local, port: 0 }));
  } finally {
    closeSocket(fd);
  }
}

function buildPacket(image: TcpConnectionImage, segment: InjectedSegment): Uint8Array {
  const v4 = image.local.family === 4;
  const ipBytes = v4 ? 20 : 40;
  const packet = new Uint8Array(ipBytes + TCP_HEADER_BYTES);
  const view = new DataView(packet.buffer);
  const source = addressBytes(image.remote);
  const destination = addressBytes(image.local);
  if (v4) {
    view.setUint16(0, 0x4500);
    view.setUint16(2, packet.length);
    view.setUint16(8, (64 << 8) | IPPROTO_TCP);
    packet.set(source, 12);
    packet.set(destination, 16);
    // The kernel fills in an IPv4 header checksum of zero.
  } else {
    view.setUint32(0, 0x6000_0000);
    view.setUint16(4, TCP_HEADER_BYTES);
    view.setUint16(6, (IPPROTO_TCP << 8) | 64);
    packet.set(source, 8);
    packet.set(destination, 24);
  }
  view.setUint16(ipBytes, image.remote.port);
  view.setUint16(ipBytes + 2, image.local.port);
  view.setUint32(ipBytes + 4, image.receiveSeq);
  view.setUint32(ipBytes + 8, segment.ack >>> 0);
  view.setUint8(ipBytes + 12, (TCP_HEADER_BYTES / 4) << 4);
  view.setUint8(ipBytes + 13, FLAG_ACK | (segment.fin ? FLAG_FIN : 0));
  const peerWindow = new Uint32Array(image.window.slice().buffer)[1]!;
  view.setUint16(ipBytes + 14, Math.min(peerWindow >>> image.sendScale, 0xffff));
  // No timestamp option, although the connection may use it: the peer's clock is unknown, a wrong TSval
  // would become TS.Recent and make PAWS reject the peer. Linux takes segments without one (tcp_input.c).
  view.setUint16(ipBytes + 16, checksum(source, destination, packet.subarray(ipBytes)));
  return packet;
}

/** TCP checksum with its pseudo-header (RFC 9293 §3.1, RFC 8200 §8.1). */
function checksum(source: Uint8Array, destination: Uint8Array, segment: Uint8Array): number {
  let sum = IPPROTO_TCP + segment.length;
  for (const bytes of [source, destination, segment]) {
    for (let i = 0; i < bytes.length; i += 2) sum += (bytes[i]! << 8) | (bytes[i + 1] ?? 0);
  }
  while (sum > 0xffff) sum = (sum & 0xffff) + (sum >>> 16);
  return ~sum & 0xffff;
}
