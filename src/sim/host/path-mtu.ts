/**
 * A path that became narrower: ICMP "fragmentation needed" (RFC 792, RFC 1191) and ICMPv6 "packet too big" (RFC 4443 §3.2),
 * as a router on the client's side sends them, and what a host does about them. They quote the packet that was too
 * long, with the numbers that it had on the wire.
 *
 * @module
 */
import {
  type IpPacket,
  PROTOCOL_ICMP,
  PROTOCOL_ICMPV6,
  PROTOCOL_TCP,
  parseIp,
  readHex,
  readU16,
  readU32,
  type SimFrame,
  writeU32,
} from '../net/packet.ts';
import type { Host } from './host.ts';

const UNREACHABLE = 3;
const FRAGMENTATION_NEEDED = 4;
const PACKET_TOO_BIG = 2;
/** Type, code, checksum, MTU. */
const ICMP_HEADER_BYTES = 8;
/** Of the quoted packet's payload. */
const QUOTED_BYTES = 64;
/** IPv4 and IPv6 without options, TCP with timestamps. */
const TCP_HEADER_BYTES = 32;
const MSS_MIN = 200;

/** What an ICMP error quotes of a TCP segment: the sender's own view. */
export interface TcpQuote {
  readonly remote: string;
  readonly localPort: number;
  readonly remotePort: number;
  readonly seq: number;
  readonly mtu: number;
}

function ipHeaderBytes(address: string): number {
  return address.length === 8 ? 20 : 40;
}

/** The error about a frame that was received; undefined when it is no IP packet. Its sum is filled in on the way. */
export function packetTooBig(
  frame: SimFrame,
  mtu: number,
): { dst: string; protocol: number; payload: Uint8Array } | undefined {
  const packet = parseIp(frame);
  if (packet === undefined) return undefined;
  const l4 = packet.payload.byteOffset - frame.byteOffset;
  const start = l4 - ipHeaderBytes(packet.src);
  const quote = frame.subarray(start, Math.min(l4 + QUOTED_BYTES, frame.length));
  const payload = new Uint8Array(ICMP_HEADER_BYTES + quote.length);
  const isV4 = packet.src.length === 8;
  payload[0] = isV4 ? UNREACHABLE : PACKET_TOO_BIG;
  payload[1] = isV4 ? FRAGMENTATION_NEEDED : 0;
  writeU32(payload, 4, mtu);
  payload.set(quote, ICMP_HEADER_BYTES);
  return { dst: packet.src, protocol: isV4 ? PROTOCOL_ICMP : PROTOCOL_ICMPV6, payload };
}

/** The TCP segment that an ICMP error of this kind quotes; undefined when the packet is none. */
export function tcpQuoteOf(packet: IpPacket): TcpQuote | undefined {
  const { payload, protocol } = packet;
  const isV4 = packet.src.length === 8;
  const isError = isV4
    ? protocol === PROTOCOL_ICMP &&
      payload[0] === UNREACHABLE &&
      payload[1] === FRAGMENTATION_NEEDED
    : protocol === PROTOCOL_ICMPV6 && payload[0] === PACKET_TOO_BIG;
  const l3 = ICMP_HEADER_BYTES;
  const l4 = l3 + ipHeaderBytes(packet.src);
  if (!isError || payload.length < l4 + 8) return undefined;
  if (payload[l3 + (isV4 ? 9 : 6)] !== PROTOCOL_TCP) return undefined;
  return {
    remote: isV4 ? readHex(payload, l3 + 16, 4) : readHex(payload, l3 + 24, 16),
    localPort: readU16(payload, l4),
    remotePort: readU16(payload, l4 + 2),
    seq: readU32(payload, l4 + 4),
    mtu: readU32(payload, 4),
  };
}

/**
 * Lowers the MSS of the connection that the error is about; true when the packet is such an error. As with Linux, one that quotes a
 * number which is not under way is ignored (RFC 5927 §4.1).
 */
export function heedTooBig(host: Host, packet: IpPacket): boolean {
  const quote = tcpQuoteOf(packet);
  if (quote === undefined) return false;
  const key = `${quote.remote}:${quote.remotePort}:${quote.localPort}`;
  const connection = host.state.connections.get(key);
  if (connection === undefined) return true;
  const { iss, sndMax, sndUna } = connection;
  const position = sndMax + ((quote.seq - iss - sndMax) | 0);
  if (position < sndUna || position >= sndMax) return true;
  const fits = quote.mtu - ipHeaderBytes(quote.remote) - TCP_HEADER_BYTES;
  if (fits < connection.mss) host.noteTcp('lowers its MSS for a narrow path');
  connection.mss = Math.min(connection.mss, Math.max(fits, MSS_MIN));
  return true;
}
