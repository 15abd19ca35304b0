/**
 * What a guest has put on its network card, flow by flow: the truth that the checkers judge by. Made from the
 * guests' frames alone, before any proxy sees them. Plain data: when a checkpoint copies the guest, this is copied with it,
 * so a guest's record always says what the guest itself remembers having sent.
 *
 * @module
 */
import { joinFragments } from '../host/fragments.ts';
import {
  type IpPacket,
  PROTOCOL_ICMPV6,
  PROTOCOL_TCP,
  PROTOCOL_UDP,
  readHex,
} from '../net/packet.ts';
import { finPositionOf, sendEnd, type TcpConnection } from '../tcp/connection.ts';
import { ACK, FIN, parseSegment, RST, SYN, type TcpSegment } from '../tcp/segment.ts';

/** One connection's stream, guest to client. Positions as in tcp/connection.ts; sequence numbers unsigned 32-bit. */
export interface StreamRecord {
  isn: number;
  hasIsn: boolean;
  /** The client's ISN tells generations of a connection apart. */
  clientIsn: number;
  hasClientIsn: boolean;
  base: number;
  bytes: Uint8Array;
  count: number;
  fin: number;
  resets: number;
  hasAck: boolean;
  /** Highest acknowledgement number sent. */
  ackMax: number;
  /** Highest window edge offered. */
  edgeMax: number;
  /** Every SACK block ever reported, edges in pairs. */
  sacked: number[];
  scale: number;
  /** The connection before this one at the same ports: of it the primary may still hold something. */
  previous: StreamRecord | undefined;
}

export interface GuestRecord {
  streams: Map<string, StreamRecord>;
  /** Datagrams sent: flow and content to count. */
  datagrams: Map<string, number>;
  fragments: Map<string, IpPacket[]>;
}

export function createRecord(): GuestRecord {
  return { streams: new Map(), datagrams: new Map(), fragments: new Map() };
}

/** Is `a` after `b`, both 32-bit sequence numbers? */
export function isAfter(a: number, b: number): boolean {
  return ((a - b) | 0) > 0;
}

function blankStream(): StreamRecord {
  return {
    isn: 0,
    hasIsn: false,
    clientIsn: 0,
    hasClientIsn: false,
    base: 1,
    bytes: new Uint8Array(256),
    count: 0,
    fin: -1,
    resets: 0,
    hasAck: false,
    ackMax: 0,
    edgeMax: 0,
    sacked: [],
    scale: 0,
    previous: undefined,
  };
}

/** Key of a stream: as the guest keys its connections. */
export function streamKey(packet: IpPacket, segment: TcpSegment): string {
  return `${packet.dst}:${segment.dstPort}:${segment.srcPort}`;
}

/** Position after the last byte sent (the FIN not counted). */
export function sentEnd(stream: StreamRecord): number {
  return stream.base + stream.count;
}

/** Position of a sequence number of the guest, near the end of what it has sent. */
export function positionOf(stream: StreamRecord, seq: number): number {
  const end = sentEnd(stream);
  return end + ((seq - ((stream.isn + end) >>> 0)) | 0);
}

/**
 * What both guests have sent on the connection that a segment of the PVM is of: the one that is there, or the one before it, of
 * which the primary may still hold something. An old SYN of a client can begin another one in the SVM, with the client's number as before,
 * after a checkpoint has brought it the PVM's, which was over by then.
 */
export function recordsOf(
  pvm: GuestRecord,
  svm: GuestRecord,
  key: string,
  seq: number,
): { own: StreamRecord | undefined; other: StreamRecord | undefined } {
  const newest = pvm.streams.get(key);
  const own = newest === undefined ? undefined : generationOf(newest, seq);
  const other = svm.streams.get(key);
  const isSame = (stream?: StreamRecord): boolean =>
    stream?.hasClientIsn === true && own?.clientIsn === stream.clientIsn;
  const isCopied = (stream?: StreamRecord): boolean =>
    stream?.hasIsn === true && stream.isn === own?.isn;
  const isOld =
    (!isSame(other) && isSame(other?.previous)) || (!isCopied(other) && isCopied(other?.previous));
  return { own, other: isOld ? other?.previous : other };
}

function generationOf(stream: StreamRecord, seq: number): StreamRecord {
  const { previous } = stream;
  if (previous === undefined || isOf(stream, seq) || !isOf(previous, seq)) return stream;
  return previous;
}

function isOf(stream: StreamRecord, seq: number): boolean {
  const position = positionOf(stream, seq);
  // A FIN has a position too.
  return position >= 0 && position <= Math.max(sentEnd(stream), stream.fin + 1);
}

/** The byte at `position`; -1 when it was never sent. */
export function byteAt(stream: StreamRecord, position: number): number {
  const index = position - stream.base;
  return index >= 0 && index < stream.count ? stream.bytes[index]! : -1;
}

/** A connection that existed before the run: what the guest knows of it counts as sent. */
export function adoptStream(record: GuestRecord, key: string, connection: TcpConnection): void {
  const stream = blankStream();
  stream.isn = connection.iss;
  stream.hasIsn = true;
  stream.clientIsn = connection.irs;
  stream.hasClientIsn = true;
  stream.base = connection.sndNxt;
  stream.hasAck = true;
  stream.ackMax = (connection.irs + connection.rcvNxt) >>> 0;
  stream.edgeMax = (connection.irs + connection.rcvEdge) >>> 0;
  stream.scale = connection.rcvScale;
  record.streams.set(key, stream);
}

/** Notes a segment that the guest has sent. `connection`: the guest's, when it has one. */
export function recordSegment(
  record: GuestRecord,
  key: string,
  segment: TcpSegment,
  connection: TcpConnection | undefined,
): void {
  const isSyn = (segment.flags & SYN) !== 0;
  let stream = record.streams.get(key);
  const isNew = isSyn && stream?.hasIsn === true && stream.isn !== segment.seq;
  if (stream === undefined || isNew) {
    // A RST of the connection before this one may still be on its way.
    const resets = stream?.resets ?? 0;
    const previous = stream === undefined ? undefined : { ...stream, previous: undefined };
    stream = { ...blankStream(), resets, previous };
    record.streams.set(key, stream);
  }
  if (isSyn && !stream.hasIsn) {
    stream.isn = segment.seq;
    stream.hasIsn = true;
  }
  if ((segment.flags & RST) !== 0) {
    stream.resets++;
    return;
  }
  if (connection !== undefined) stream.scale = connection.rcvScale;
  if ((segment.flags & ACK) !== 0) recordAck(stream, segment, connection);
  if (!stream.hasIsn || isSyn) return;
  if (connection?.iss === stream.isn) recordSent(stream, connection);
  recordBytes(stream, segment);
}

function recordAck(
  stream: StreamRecord,
  segment: TcpSegment,
  connection: TcpConnection | undefined,
): void {
  const edge = edgeOf(stream, segment);
  if (!stream.hasAck) {
    stream.hasAck = true;
    stream.ackMax = segment.ack;
    stream.edgeMax = edge;
  }
  if (isAfter(segment.ack, stream.ackMax)) stream.ackMax = segment.ack;
  if (isAfter(edge, stream.edgeMax)) stream.edgeMax = edge;
  if (!stream.hasClientIsn && connection !== undefined) {
    stream.clientIsn = connection.irs;
    stream.hasClientIsn = true;
  }
  stream.sacked.push(...segment.sack);
  if (stream.sacked.length > 400) dropCovered(stream);
}

/** The window edge that a segment offers. A SYN's window is never scaled. */
export function edgeOf(stream: StreamRecord, segment: TcpSegment): number {
  const scale = (segment.flags & SYN) !== 0 ? 0 : stream.scale;
  return (segment.ack + segment.window * 2 ** scale) >>> 0;
}

function dropCovered(stream: StreamRecord): void {
  const kept: number[] = [];
  for (let i = 0; i < stream.sacked.length; i += 2) {
    const right = stream.sacked[i + 1]!;
    if (isAfter(right, stream.ackMax)) kept.push(stream.sacked[i]!, right);
  }
  // Blocks repeat; the latest say the same as the oldest.
  stream.sacked = kept.slice(-300);
}

/** Is `[left, right)` acknowledged or was it reported by SACK? */
export function isReported(stream: StreamRecord, left: number, right: number): boolean {
  let at = isAfter(stream.ackMax, left) ? stream.ackMax : left;
  let hasMoved = true;
  while (isAfter(right, at) && hasMoved) {
    hasMoved = false;
    for (let i = 0; i < stream.sacked.length; i += 2) {
      const start = stream.sacked[i]!;
      const end = stream.sacked[i + 1]!;
      if (!isAfter(start, at) && isAfter(end, at)) {
        at = end;
        hasMoved = true;
      }
    }
  }
  return !isAfter(right, at);
}

function recordBytes(stream: StreamRecord, segment: TcpSegment): void {
  const start = positionOf(stream, segment.seq);
  const end = start + segment.payload.length;
  if ((segment.flags & FIN) !== 0) stream.fin = end;
  addBytes(stream, start, segment.payload);
}

/**
 * What the connection has sent, as far as it knows itself. A segment can be lost inside the guest (while it asks for a
 * neighbour's address) and never reach its card; to the guest, and to a copy of it, it is sent all the same.
 */
function recordSent(stream: StreamRecord, connection: TcpConnection): void {
  const { sendBase, sndMax, sendBytes } = connection;
  const end = Math.min(sndMax, sendEnd(connection));
  const from = sentEnd(stream);
  if (from >= sendBase && from < end) {
    addBytes(stream, from, sendBytes.subarray(from - sendBase, end - sendBase));
  }
  const fin = finPositionOf(connection);
  if (fin >= 0 && sndMax > fin) stream.fin = fin;
}

function addBytes(stream: StreamRecord, start: number, bytes: Uint8Array): void {
  const known = sentEnd(stream);
  if (start + bytes.length <= known) return;
  if (start > known) return;
  const fresh = bytes.subarray(known - start);
  const needed = stream.count + fresh.length;
  if (needed > stream.bytes.length) {
    const larger = new Uint8Array(Math.max(needed, stream.bytes.length * 2));
    larger.set(stream.bytes.subarray(0, stream.count));
    stream.bytes = larger;
  }
  stream.bytes.set(fresh, stream.count);
  stream.count = needed;
}

/** Neighbour and router discovery: never compared. */
export function isDiscovery(packet: IpPacket): boolean {
  if (packet.protocol !== PROTOCOL_ICMPV6) return false;
  const type = packet.payload[0] ?? 0;
  return type >= 130 && type <= 137;
}

/** Flow and content of a whole datagram, as one text. */
export function datagramKey(packet: IpPacket): string {
  let low = 0x811c9dc5;
  let high = 0x01000193;
  for (const byte of packet.payload) {
    low = Math.imul(low ^ byte, 0x01000193);
    high = Math.imul(high ^ (byte + 0x9e37), 0x85ebca6b);
  }
  return `${datagramFlow(packet)} ${(low >>> 0).toString(16)}${(high >>> 0).toString(16)} ${packet.payload.length}`;
}

/** The flow of a datagram: addresses, protocol, ports or echo identifier. */
export function datagramFlow(packet: IpPacket): string {
  const { payload, protocol } = packet;
  let ports = '';
  if (protocol === PROTOCOL_UDP && payload.length >= 4) ports = readHex(payload, 0, 4);
  else if (payload.length >= 6) ports = readHex(payload, 4, 2);
  return `${packet.src}>${packet.dst} ${protocol} ${ports}`;
}

/** The datagram that this packet is or completes; undefined while fragments are missing. */
export function completeDatagram(
  fragments: Map<string, IpPacket[]>,
  packet: IpPacket,
): IpPacket | undefined {
  if (packet.fragmentOffset === 0 && !packet.moreFragments) return packet;
  const key = `${packet.src} ${packet.dst} ${packet.protocol} ${packet.id}`;
  const pieces = fragments.get(key) ?? [];
  pieces.push(packet);
  fragments.set(key, pieces);
  const whole = joinFragments(pieces);
  if (whole !== undefined) fragments.delete(key);
  return whole;
}

/** Notes an IP packet that the guest has sent. */
export function recordPacket(
  record: GuestRecord,
  packet: IpPacket,
  connectionOf: (key: string) => TcpConnection | undefined,
): void {
  if (packet.protocol === PROTOCOL_TCP) {
    const segment = parseSegment(packet.payload);
    if (segment === undefined) return;
    const key = streamKey(packet, segment);
    recordSegment(record, key, segment, connectionOf(key));
    return;
  }
  if (isDiscovery(packet)) return;
  const whole = completeDatagram(record.fragments, packet);
  if (whole === undefined) return;
  const key = datagramKey(whole);
  record.datagrams.set(key, (record.datagrams.get(key) ?? 0) + 1);
}
