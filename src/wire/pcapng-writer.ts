/**
 * Writes pcapng (draft-ietf-opsawg-pcapng), little-endian, with microseconds: blocks as bytes, for whoever owns the file.
 * A file is one section header, then its interfaces, then packets; the n-th interface has id n - 1.
 *
 * ```text
 * | type (4) | total length (4) | body, padded to 4 | total length (4) |
 * ```
 *
 * @module
 */
import type { Micros } from '../base/time.ts';

export const PCAPNG_SECTION_HEADER = 0x0a0d0d0a;
export const PCAPNG_INTERFACE = 1;
export const PCAPNG_OBSOLETE_PACKET = 2;
export const PCAPNG_SIMPLE_PACKET = 3;
export const PCAPNG_ENHANCED_PACKET = 6;
export const PCAPNG_BYTE_ORDER_MAGIC = 0x1a2b3c4d;

export const PCAPNG_OPTION_END = 0;
export const PCAPNG_OPTION_COMMENT = 1;
/** Of a section header. */
export const PCAPNG_OPTION_APPLICATION = 4;
/** Of an interface. */
export const PCAPNG_OPTION_INTERFACE_NAME = 2;
export const PCAPNG_OPTION_TIME_RESOLUTION = 9;
export const PCAPNG_OPTION_TIME_OFFSET = 14;
/** Of an enhanced packet; the low two bits are the direction. */
export const PCAPNG_OPTION_FLAGS = 2;

/** LINKTYPE_ETHERNET. */
export const LINK_TYPE_ETHERNET = 1;

/** An option: code and value. */
type Option = readonly [code: number, value: Uint8Array];

const ENCODER = new TextEncoder();
/** The length field of an option has 16 bits. */
const OPTION_BYTES_MAX = 65_535;

/** The block that begins a file. */
export function encodeSectionHeader(fields: {
  readonly application?: string;
  readonly comment?: string;
}): Uint8Array {
  const options = textOptions([
    [PCAPNG_OPTION_COMMENT, fields.comment],
    [PCAPNG_OPTION_APPLICATION, fields.application],
  ]);
  const { block, view } = createBlock(PCAPNG_SECTION_HEADER, 16, options);
  view.setUint32(8, PCAPNG_BYTE_ORDER_MAGIC, true);
  view.setUint16(12, 1, true);
  // Section length -1: not known in advance.
  view.setUint32(16, 0xffff_ffff);
  view.setUint32(20, 0xffff_ffff);
  return block;
}

/** The block that declares an interface. Times are in microseconds, the default resolution. */
export function encodeInterface(fields: {
  readonly name?: string;
  readonly comment?: string;
  /** @default LINK_TYPE_ETHERNET */
  readonly linkType?: number;
  /** Longest packet captured; 0: no limit. @default 0 */
  readonly snapBytes?: number;
}): Uint8Array {
  const options = textOptions([
    [PCAPNG_OPTION_COMMENT, fields.comment],
    [PCAPNG_OPTION_INTERFACE_NAME, fields.name],
  ]);
  const { block, view } = createBlock(PCAPNG_INTERFACE, 8, options);
  view.setUint16(8, fields.linkType ?? LINK_TYPE_ETHERNET, true);
  view.setUint32(12, fields.snapBytes ?? 0, true);
  return block;
}

/** What `encodePacket` writes. */
export interface PacketFields {
  readonly interfaceId: number;
  /** Whole microseconds since 1970-01-01 UTC, 0..2^53. */
  readonly atUs: Micros;
  readonly bytes: Uint8Array;
  /** @default 0 */
  readonly offset?: number;
  /** @default the rest of `bytes` */
  readonly length?: number;
  /** @default length */
  readonly originalBytes?: number;
  readonly comment?: string;
  /** Seen from the capturing interface. */
  readonly direction?: 'inbound' | 'outbound';
}

/** An enhanced packet block. Copies the packet. */
export function encodePacket(fields: PacketFields): Uint8Array {
  const offset = fields.offset ?? 0;
  const length = fields.length ?? fields.bytes.length - offset;
  const options = textOptions([[PCAPNG_OPTION_COMMENT, fields.comment]]);
  if (fields.direction !== undefined) {
    const flags = fields.direction === 'inbound' ? 1 : 2;
    options.push([PCAPNG_OPTION_FLAGS, Uint8Array.of(flags, 0, 0, 0)]);
  }
  const { block, view } = createBlock(PCAPNG_ENHANCED_PACKET, 20 + length, options);
  view.setUint32(8, fields.interfaceId, true);
  view.setUint32(12, Math.floor(fields.atUs / 0x1_0000_0000), true);
  view.setUint32(16, fields.atUs % 0x1_0000_0000, true);
  view.setUint32(20, length, true);
  view.setUint32(24, fields.originalBytes ?? length, true);
  block.set(fields.bytes.subarray(offset, offset + length), 28);
  return block;
}

/** Options of texts that are given, in UTF-8, cut to what an option holds. */
function textOptions(texts: readonly (readonly [number, string | undefined])[]): Option[] {
  const options: Option[] = [];
  for (const [code, text] of texts) {
    if (text === undefined) continue;
    options.push([code, ENCODER.encode(text).subarray(0, OPTION_BYTES_MAX)]);
  }
  return options;
}

/** A block of zeros with its type, lengths and options; the body begins at byte 8. */
function createBlock(
  type: number,
  bodyBytes: number,
  options: readonly Option[],
): { block: Uint8Array; view: DataView } {
  let optionBytes = options.length === 0 ? 0 : 4;
  for (const [, value] of options) optionBytes += 4 + padded(value.length);
  const blockBytes = 12 + padded(bodyBytes) + optionBytes;
  const block = new Uint8Array(blockBytes);
  const view = new DataView(block.buffer);
  view.setUint32(0, type, true);
  view.setUint32(4, blockBytes, true);
  view.setUint32(blockBytes - 4, blockBytes, true);
  let at = 8 + padded(bodyBytes);
  for (const [code, value] of options) {
    view.setUint16(at, code, true);
    view.setUint16(at + 2, value.length, true);
    block.set(value, at + 4);
    at += 4 + padded(value.length);
  }
  return { block, view };
}

/** The next multiple of 4. */
function padded(bytes: number): number {
  return Math.ceil(bytes / 4) * 4;
}
