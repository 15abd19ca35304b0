/**
 * TCP segments of the simulation: bytes <-> fields. Independent of `src/wire` (see net/packet.ts).
 * Source: RFC 9293 §3.1, RFC 7323 (window scale, timestamps), RFC 2018 (SACK).
 *
 * @module
 */
import { readU16, readU32, writeU16, writeU32 } from '../net/packet.ts';

export const FIN = 1;
export const SYN = 2;
export const RST = 4;
export const PSH = 8;
export const ACK = 16;
export const URG = 32;

/** Blocks of one SACK option beside timestamps (RFC 2018 §3). */
export const SACK_BLOCKS_MAX = 3;

/** One segment. Sequence numbers as on the wire, unsigned 32-bit. */
export interface TcpSegment {
  srcPort: number;
  dstPort: number;
  seq: number;
  ack: number;
  flags: number;
  /** Unscaled window field. */
  window: number;
  urgentPointer: number;
  /** 0 = absent. */
  mss: number;
  /** -1 = absent. */
  windowScale: number;
  sackPermitted: boolean;
  /** Left and right edges in pairs. */
  sack: number[];
  /** Undefined = absent. */
  timestamps: { value: number; echo: number } | undefined;
  payload: Uint8Array;
}

/** A segment with nothing in it. */
export function blankSegment(): TcpSegment {
  return {
    srcPort: 0,
    dstPort: 0,
    seq: 0,
    ack: 0,
    flags: 0,
    window: 0,
    urgentPointer: 0,
    mss: 0,
    windowScale: -1,
    sackPermitted: false,
    sack: [],
    timestamps: undefined,
    payload: new Uint8Array(0),
  };
}

/** Sequence space that the segment takes: payload, SYN and FIN. */
export function segmentLength(segment: TcpSegment): number {
  const control = ((segment.flags & SYN) !== 0 ? 1 : 0) + ((segment.flags & FIN) !== 0 ? 1 : 0);
  return segment.payload.length + control;
}

/** Reads header and options; undefined when the header does not fit. */
export function parseSegment(bytes: Uint8Array): TcpSegment | undefined {
  if (bytes.length < 20) return undefined;
  const headerBytes = (bytes[12]! >> 4) * 4;
  if (headerBytes < 20 || headerBytes > bytes.length) return undefined;
  const segment = blankSegment();
  segment.srcPort = readU16(bytes, 0);
  segment.dstPort = readU16(bytes, 2);
  segment.seq = readU32(bytes, 4);
  segment.ack = readU32(bytes, 8);
  segment.flags = bytes[13]!;
  segment.window = readU16(bytes, 14);
  segment.urgentPointer = readU16(bytes, 18);
  segment.payload = bytes.subarray(headerBytes);
  parseOptions(bytes, headerBytes, segment);
  return segment;
}

function parseOptions(bytes: Uint8Array, end: number, segment: TcpSegment): void {
  let at = 20;
  while (at < end && bytes[at] !== 0) {
    if (bytes[at] === 1) {
      at++;
      continue;
    }
    const length = at + 1 < end ? bytes[at + 1]! : 0;
    if (length < 2 || at + length > end) return;
    parseOption(bytes, at, length, segment);
    at += length;
  }
}

function parseOption(bytes: Uint8Array, at: number, length: number, segment: TcpSegment): void {
  const kind = bytes[at]!;
  if (kind === 2 && length === 4) segment.mss = readU16(bytes, at + 2);
  if (kind === 3 && length === 3) segment.windowScale = Math.min(bytes[at + 2]!, 14);
  if (kind === 4 && length === 2) segment.sackPermitted = true;
  if (kind === 5) {
    for (let i = 2; i + 8 <= length; i += 8) {
      segment.sack.push(readU32(bytes, at + i), readU32(bytes, at + i + 4));
    }
  }
  if (kind === 8 && length === 10) {
    segment.timestamps = { value: readU32(bytes, at + 2), echo: readU32(bytes, at + 6) };
  }
}

function emitOptions(segment: TcpSegment): number[] {
  const out: number[] = [];
  const word = (value: number): void => {
    out.push(value >>> 24, (value >>> 16) & 255, (value >>> 8) & 255, value & 255);
  };
  if (segment.mss > 0) out.push(2, 4, segment.mss >>> 8, segment.mss & 255);
  if (segment.sackPermitted) out.push(4, 2, 1, 1);
  if (segment.timestamps !== undefined) {
    out.push(1, 1, 8, 10);
    word(segment.timestamps.value);
    word(segment.timestamps.echo);
  }
  if (segment.windowScale >= 0) out.push(1, 3, 3, segment.windowScale);
  if (segment.sack.length > 0) {
    out.push(1, 1, 5, 2 + segment.sack.length * 4);
    for (const edge of segment.sack) word(edge);
  }
  return out;
}

/** Builds header, options and payload, with a zero checksum. */
export function emitSegment(segment: TcpSegment): Uint8Array {
  const options = emitOptions(segment);
  const headerBytes = 20 + options.length;
  const bytes = new Uint8Array(headerBytes + segment.payload.length);
  writeU16(bytes, 0, segment.srcPort);
  writeU16(bytes, 2, segment.dstPort);
  writeU32(bytes, 4, segment.seq);
  writeU32(bytes, 8, segment.ack);
  bytes[12] = (headerBytes / 4) << 4;
  bytes[13] = segment.flags;
  writeU16(bytes, 14, segment.window);
  writeU16(bytes, 18, segment.urgentPointer);
  bytes.set(options, 20);
  bytes.set(segment.payload, headerBytes);
  return bytes;
}
