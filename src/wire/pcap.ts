/**
 * Reads capture files: pcap (draft-ietf-opsawg-pcap) in both byte orders with microseconds or nanoseconds, and
 * pcapng (draft-ietf-opsawg-pcapng) with section headers, interfaces, enhanced, simple and obsolete packet blocks.
 *
 * A streaming decoder: bytes in chunks of any size, packets out. Bad input ends it with an error text; it never throws,
 * and buffers at most one block. Writing is in pcapng-writer.ts.
 *
 * @module
 */
import type { Micros } from '../base/time.ts';
import {
  PCAPNG_BYTE_ORDER_MAGIC,
  PCAPNG_ENHANCED_PACKET,
  PCAPNG_INTERFACE,
  PCAPNG_OBSOLETE_PACKET,
  PCAPNG_OPTION_COMMENT,
  PCAPNG_OPTION_END,
  PCAPNG_OPTION_INTERFACE_NAME,
  PCAPNG_OPTION_TIME_OFFSET,
  PCAPNG_OPTION_TIME_RESOLUTION,
  PCAPNG_SECTION_HEADER,
  PCAPNG_SIMPLE_PACKET,
} from './pcapng-writer.ts';

/** Longest block or packet that is read: libpcap's MAXIMUM_SNAPLEN, and room for options. */
export const CAPTURE_BLOCK_BYTES_MAX = 512 * 1024;
/** Interfaces of one section; a file that declares more is refused. */
export const CAPTURE_INTERFACES_MAX = 4_096;

/** A packet of a capture file. Borrows `bytes` until the handler returns. */
export interface CapturedPacket {
  readonly bytes: Uint8Array;
  readonly offset: number;
  /** Bytes captured. */
  readonly length: number;
  /** Bytes that the packet had when it was seen: more than `length` when it was cut. */
  readonly originalBytes: number;
  /** Since 1970-01-01 UTC; 0 in a simple packet block. Parts of a microsecond are dropped. */
  readonly atUs: Micros;
  /** Counts from 0 within the section; 0 in a pcap file. */
  readonly interfaceId: number;
  /** Name of the interface, empty where the file gives none. */
  readonly interfaceName: string;
  /** LINKTYPE_ value; Ethernet is 1. */
  readonly linkType: number;
  /** Comments joined by line feeds; empty: none. */
  readonly comment: string;
}

export type CapturedPacketHandler = (packet: CapturedPacket) => void;

interface CaptureInterface {
  readonly linkType: number;
  /** 0: no limit. */
  readonly snapBytes: number;
  readonly name: string;
  readonly ticksPerSecond: bigint;
  readonly offsetSeconds: bigint;
}

const PCAP_MAGIC_MICROSECONDS = 0xa1b2c3d4;
const PCAP_MAGIC_NANOSECONDS = 0xa1b23c4d;
const PCAP_HEADER_BYTES = 24;
const PCAP_PACKET_HEADER_BYTES = 16;
const BLOCK_BYTES_MIN = 12;
const MICROSECONDS_PER_SECOND = 1_000_000n;
const TEXT = new TextDecoder();

export class CaptureDecoder {
  /** What is wrong with the input; undefined while nothing is. Nothing more is read after it. */
  error: string | undefined = undefined;
  readonly #handler: CapturedPacketHandler;
  #format: 'unknown' | 'pcap' | 'pcapng' = 'unknown';
  #isLittleEndian = true;
  #isNanoseconds = false;
  #pcapLinkType = 0;
  #interfaces: CaptureInterface[] = [];
  /** Bytes `#start..#end-1` wait to be read. */
  #bytes = new Uint8Array(64 * 1024);
  #view = new DataView(this.#bytes.buffer);
  #start = 0;
  #end = 0;

  constructor(handler: CapturedPacketHandler) {
    this.#handler = handler;
  }

  /** Reads a chunk; calls the handler for each packet that is complete. */
  push(chunk: Uint8Array): void {
    // In parts, so that a chunk of any size is never buffered whole beside an unfinished block.
    for (let at = 0; at < chunk.length && this.error === undefined; ) {
      const count = Math.min(chunk.length - at, CAPTURE_BLOCK_BYTES_MAX);
      this.#append(chunk.subarray(at, at + count));
      at += count;
      while (this.error === undefined && this.#readOne()) {}
    }
  }

  /** The input is over. Sets `error` when it ends within a header or a packet. */
  end(): void {
    if (this.error !== undefined) return;
    if (this.#format === 'unknown' || this.#start !== this.#end) {
      this.error = 'Cannot read the capture to its end: it is cut off';
    }
  }

  #append(chunk: Uint8Array): void {
    const waiting = this.#end - this.#start;
    if (this.#end + chunk.length > this.#bytes.length) {
      const room = Math.max(this.#bytes.length, waiting + chunk.length);
      const grown = room > this.#bytes.length ? new Uint8Array(2 * room) : this.#bytes;
      // copyWithin semantics of TypedArray.set cover the case that both are the same array.
      grown.set(this.#bytes.subarray(this.#start, this.#end));
      if (grown !== this.#bytes) this.#view = new DataView(grown.buffer);
      this.#bytes = grown;
      this.#start = 0;
      this.#end = waiting;
    }
    this.#bytes.set(chunk, this.#end);
    this.#end += chunk.length;
  }

  /** Reads one header, block or packet; false: more bytes are needed. */
  #readOne(): boolean {
    if (this.#format === 'unknown') return this.#readMagic();
    return this.#format === 'pcap' ? this.#readPcapPacket() : this.#readBlock();
  }

  #has(count: number): boolean {
    return this.#end - this.#start >= count;
  }

  #fail(text: string): false {
    this.error = `Cannot read the capture: ${text}`;
    return false;
  }

  #u16(at: number): number {
    return this.#view.getUint16(at, this.#isLittleEndian);
  }

  #u32(at: number): number {
    return this.#view.getUint32(at, this.#isLittleEndian);
  }

  #readMagic(): boolean {
    if (!this.#has(4)) return false;
    const magic = this.#view.getUint32(this.#start);
    if (magic === PCAPNG_SECTION_HEADER) {
      this.#format = 'pcapng';
      return true;
    }
    if (!this.#has(PCAP_HEADER_BYTES)) return isPcapMagic(magic) ? false : this.#fail('no magic');
    for (const isLittleEndian of [false, true]) {
      const value = this.#view.getUint32(this.#start, isLittleEndian);
      if (value !== PCAP_MAGIC_MICROSECONDS && value !== PCAP_MAGIC_NANOSECONDS) continue;
      this.#format = 'pcap';
      this.#isLittleEndian = isLittleEndian;
      this.#isNanoseconds = value === PCAP_MAGIC_NANOSECONDS;
      // The upper bits say whether frames carry a check sequence.
      this.#pcapLinkType = this.#u32(this.#start + 20) & 0xffff;
      this.#start += PCAP_HEADER_BYTES;
      return true;
    }
    return this.#fail('no magic');
  }

  #readPcapPacket(): boolean {
    if (!this.#has(PCAP_PACKET_HEADER_BYTES)) return false;
    const at = this.#start;
    const length = this.#u32(at + 8);
    if (length > CAPTURE_BLOCK_BYTES_MAX) return this.#fail('packet too long');
    if (!this.#has(PCAP_PACKET_HEADER_BYTES + length)) return false;
    const fraction = this.#u32(at + 4);
    const fractionUs = this.#isNanoseconds ? Math.floor(fraction / 1_000) : fraction;
    this.#start += PCAP_PACKET_HEADER_BYTES + length;
    this.#handler({
      bytes: this.#bytes,
      offset: at + PCAP_PACKET_HEADER_BYTES,
      length,
      originalBytes: this.#u32(at + 12),
      atUs: this.#u32(at) * 1_000_000 + fractionUs,
      interfaceId: 0,
      interfaceName: '',
      linkType: this.#pcapLinkType,
      comment: '',
    });
    return true;
  }

  #readBlock(): boolean {
    if (!this.#has(BLOCK_BYTES_MIN)) return false;
    const at = this.#start;
    const isSection = this.#view.getUint32(at) === PCAPNG_SECTION_HEADER;
    if (isSection && !this.#readByteOrder(at + 8)) return false;
    const blockBytes = this.#u32(at + 4);
    if (blockBytes % 4 !== 0 || blockBytes < BLOCK_BYTES_MIN) return this.#fail('bad block length');
    if (blockBytes > CAPTURE_BLOCK_BYTES_MAX) return this.#fail('block too long');
    if (!this.#has(blockBytes)) return false;
    const end = at + blockBytes - 4;
    if (this.#u32(end) !== blockBytes) return this.#fail('block lengths differ');
    this.#start += blockBytes;
    return isSection ? this.#startSection(at, end) : this.#readBody(this.#u32(at), at + 8, end);
  }

  #readByteOrder(at: number): boolean {
    for (const isLittleEndian of [false, true]) {
      if (this.#view.getUint32(at, isLittleEndian) !== PCAPNG_BYTE_ORDER_MAGIC) continue;
      this.#isLittleEndian = isLittleEndian;
      return true;
    }
    return this.#fail('no byte order magic');
  }

  #startSection(at: number, end: number): boolean {
    if (at + 24 > end || this.#u16(at + 12) !== 1) return this.#fail('unknown pcapng version');
    this.#interfaces = [];
    return true;
  }

  /** `[at, end)`: the body without type and lengths. Unknown types are skipped. */
  #readBody(type: number, at: number, end: number): boolean {
    if (type === PCAPNG_INTERFACE) return this.#readInterface(at, end);
    if (type === PCAPNG_ENHANCED_PACKET || type === PCAPNG_OBSOLETE_PACKET) {
      if (at + 20 > end) return this.#fail('packet block too short');
      const isObsolete = type === PCAPNG_OBSOLETE_PACKET;
      return this.#readPacket(isObsolete ? this.#u16(at) : this.#u32(at), at, end);
    }
    if (type === PCAPNG_SIMPLE_PACKET) return this.#readSimplePacket(at, end);
    return true;
  }

  #readInterface(at: number, end: number): boolean {
    if (at + 8 > end) return this.#fail('interface block too short');
    if (this.#interfaces.length >= CAPTURE_INTERFACES_MAX) return this.#fail('too many interfaces');
    let ticksPerSecond = MICROSECONDS_PER_SECOND;
    let offsetSeconds = 0n;
    let name = '';
    this.#forEachOption(at + 8, end, (code, value, bytes) => {
      if (code === PCAPNG_OPTION_INTERFACE_NAME) name = this.#text(value, bytes);
      else if (code === PCAPNG_OPTION_TIME_RESOLUTION && bytes === 1) {
        const exponent = this.#view.getUint8(value);
        const base = (exponent & 0x80) !== 0 ? 2n : 10n;
        ticksPerSecond = base ** BigInt(exponent & 0x7f);
      } else if (code === PCAPNG_OPTION_TIME_OFFSET && bytes === 8) {
        offsetSeconds = this.#view.getBigInt64(value, this.#isLittleEndian);
      }
    });
    this.#interfaces.push({
      linkType: this.#u16(at),
      snapBytes: this.#u32(at + 4),
      name,
      ticksPerSecond,
      offsetSeconds,
    });
    return true;
  }

  #readPacket(interfaceId: number, at: number, end: number): boolean {
    const source = this.#interfaces[interfaceId];
    if (source === undefined) return this.#fail('packet of an unknown interface');
    const length = this.#u32(at + 12);
    if (at + 20 + length > end) return this.#fail('packet beyond its block');
    const comments: string[] = [];
    this.#forEachOption(at + 20 + padded(length), end, (code, value, bytes) => {
      if (code === PCAPNG_OPTION_COMMENT) comments.push(this.#text(value, bytes));
    });
    this.#handler({
      bytes: this.#bytes,
      offset: at + 20,
      length,
      originalBytes: this.#u32(at + 16),
      atUs: ticksToMicros(source, this.#u32(at + 4), this.#u32(at + 8)),
      interfaceId,
      interfaceName: source.name,
      linkType: source.linkType,
      comment: comments.join('\n'),
    });
    return true;
  }

  /** A simple packet block belongs to the first interface; its captured length follows from the snap length. */
  #readSimplePacket(at: number, end: number): boolean {
    const source = this.#interfaces[0];
    if (source === undefined) return this.#fail('packet of an unknown interface');
    if (at + 4 > end) return this.#fail('packet block too short');
    const originalBytes = this.#u32(at);
    const snapBytes = source.snapBytes === 0 ? originalBytes : source.snapBytes;
    const length = Math.min(originalBytes, snapBytes);
    if (at + 4 + length > end) return this.#fail('packet beyond its block');
    this.#handler({
      bytes: this.#bytes,
      offset: at + 4,
      length,
      originalBytes,
      atUs: 0,
      interfaceId: 0,
      interfaceName: source.name,
      linkType: source.linkType,
      comment: '',
    });
    return true;
  }

  /** Options that run past `end` are left out. Every step moves forward by 4 bytes or more. */
  #forEachOption(
    start: number,
    end: number,
    onOption: (code: number, valueOffset: number, valueBytes: number) => void,
  ): void {
    for (let at = start; at + 4 <= end; ) {
      const code = this.#u16(at);
      const bytes = this.#u16(at + 2);
      if (code === PCAPNG_OPTION_END || at + 4 + bytes > end) return;
      onOption(code, at + 4, bytes);
      at += 4 + padded(bytes);
    }
  }

  #text(offset: number, bytes: number): string {
    return TEXT.decode(this.#bytes.subarray(offset, offset + bytes));
  }
}

/** The next multiple of 4. */
function padded(bytes: number): number {
  return Math.ceil(bytes / 4) * 4;
}

function isPcapMagic(bigEndian: number): boolean {
  return [0xa1b2c3d4, 0xd4c3b2a1, 0xa1b23c4d, 0x4d3cb2a1].includes(bigEndian);
}

/** Times of nanosecond files do not fit into 53 bits as ticks; a bigint does not mind. */
function ticksToMicros(source: CaptureInterface, high: number, low: number): Micros {
  const ticks = (BigInt(high) << 32n) | BigInt(low);
  const micros = (ticks * MICROSECONDS_PER_SECOND) / source.ticksPerSecond;
  return Number(micros + source.offsetSeconds * MICROSECONDS_PER_SECOND);
}
