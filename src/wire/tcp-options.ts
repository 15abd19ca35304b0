/**
 * TCP options: maximum segment size (RFC 9293 §3.7.1), window scale and timestamps (RFC 7323 §2, §3),
 * SACK-permitted and SACK (RFC 2018 §2, §3). Unknown kinds are skipped.
 *
 * @module
 */
import type { Seq } from './seq.ts';

export const TCP_OPTION_END = 0;
export const TCP_OPTION_NOP = 1;
export const TCP_OPTION_MSS = 2;
export const TCP_OPTION_WINDOW_SCALE = 3;
export const TCP_OPTION_SACK_PERMITTED = 4;
export const TCP_OPTION_SACK = 5;
export const TCP_OPTION_TIMESTAMPS = 8;

/** RFC 7323 §2.3: larger shifts count as this one. */
export const TCP_WINDOW_SCALE_MAX = 14;

/** As many as fit into 40 bytes of options (RFC 2018 §3). */
export const TCP_SACK_BLOCKS_MAX = 4;

/** NOP NOP TIMESTAMPS 10: how nearly every stack lays out segments after the handshake (RFC 7323 appendix A). */
const ALIGNED_TIMESTAMPS = 0x0101080a;

/** What `parseTcpOptions` found. One long-lived instance per caller; overwritten by the next call. */
export class TcpOptions {
  /** Maximum segment size in bytes; 0: no such option. */
  mss = 0;
  /** Shift count 0..14; -1: no such option. */
  windowScale = -1;
  /** Offset of the shift count's byte; 0: no such option. */
  windowScaleOffset = 0;
  /** Offset of the MSS value; 0: no such option. */
  mssOffset = 0;
  sackPermitted = false;
  /** Offset of the SACK-permitted option's kind byte; 0: no such option. */
  sackPermittedOffset = 0;
  hasTimestamps = false;
  /** Offset of TSval in the view; TSecr follows 4 bytes later. */
  timestampsOffset = 0;
  /** Unsigned 32 bits, host order. */
  tsval = 0;
  tsecr = 0;
  /** SACK blocks, 0..4. */
  sackCount = 0;
  /** Offset of the SACK option's kind byte; its first edge lies 2 bytes later. */
  sackOffset = 0;
  /** Left and right edges by turns: block i is [2i] to [2i + 1], right edge excluded. */
  readonly sackEdges: Uint32Array = new Uint32Array(2 * TCP_SACK_BLOCKS_MAX);
  /** An option that runs past the header, has an impossible length, or comes twice with other blocks. */
  malformed = false;

  /** Left edge of block `index`: first sequence number received. */
  sackLeft(index: number): Seq {
    return this.sackEdges[2 * index] ?? 0;
  }

  /** Right edge of block `index`: the sequence number after the last received. */
  sackRight(index: number): Seq {
    return this.sackEdges[2 * index + 1] ?? 0;
  }

  reset(): void {
    this.mss = 0;
    this.windowScale = -1;
    this.windowScaleOffset = 0;
    this.mssOffset = 0;
    this.sackPermitted = false;
    this.sackPermittedOffset = 0;
    this.hasTimestamps = false;
    this.timestampsOffset = 0;
    this.tsval = 0;
    this.tsecr = 0;
    this.sackCount = 0;
    this.sackOffset = 0;
    this.malformed = false;
  }
}

/**
 * Parses the options in `[start, end)` of `view` into `out`. Every step moves forward by at least one
 * byte, so the work is bounded by the 40 bytes of options.
 *
 * As Linux does (`tcp_parse_options`), what stands before a malformed option stays valid, the rest is ignored;
 * an option of a known kind with a wrong length is ignored by itself. Of options that repeat the last counts,
 * except SACK, where the first does.
 *
 * Precondition: `[start, end)` lies within the view (`dissect` has proved it).
 */
export function parseTcpOptions(view: DataView, start: number, end: number, out: TcpOptions): void {
  out.reset();
  // Linux `tcp_parse_aligned_timestamp` takes the same short way.
  if (end - start === 12 && view.getUint32(start) === ALIGNED_TIMESTAMPS) {
    readTimestamps(view, start + 2, out);
    return;
  }
  let at = start;
  while (at < end) {
    const kind = view.getUint8(at);
    if (kind === TCP_OPTION_END) return;
    if (kind === TCP_OPTION_NOP) {
      at++;
      continue;
    }
    if (at + 2 > end) {
      out.malformed = true;
      return;
    }
    const optionBytes = view.getUint8(at + 1);
    if (optionBytes < 2 || at + optionBytes > end) {
      out.malformed = true;
      return;
    }
    readOption(view, at, kind, optionBytes, out);
    at += optionBytes;
  }
}

/** Precondition: `[at, at + optionBytes)` lies within the options, `optionBytes >= 2`. */
function readOption(
  view: DataView,
  at: number,
  kind: number,
  optionBytes: number,
  out: TcpOptions,
): void {
  switch (kind) {
    case TCP_OPTION_MSS:
      if (optionBytes !== 4) break;
      out.mss = view.getUint16(at + 2);
      out.mssOffset = at + 2;
      return;
    case TCP_OPTION_WINDOW_SCALE:
      if (optionBytes !== 3) break;
      out.windowScale = Math.min(view.getUint8(at + 2), TCP_WINDOW_SCALE_MAX);
      out.windowScaleOffset = at + 2;
      return;
    case TCP_OPTION_SACK_PERMITTED:
      if (optionBytes !== 2) break;
      out.sackPermitted = true;
      out.sackPermittedOffset = at;
      return;
    case TCP_OPTION_TIMESTAMPS:
      if (optionBytes !== 10) break;
      readTimestamps(view, at, out);
      return;
    case TCP_OPTION_SACK:
      if (optionBytes < 10 || (optionBytes - 2) % 8 !== 0 || out.sackCount !== 0) break;
      readSack(view, at, optionBytes, out);
      return;
    default:
      return;
  }
  out.malformed = true;
}

/** `at`: kind byte of a timestamps option. */
function readTimestamps(view: DataView, at: number, out: TcpOptions): void {
  out.hasTimestamps = true;
  out.timestampsOffset = at + 2;
  out.tsval = view.getUint32(at + 2);
  out.tsecr = view.getUint32(at + 6);
}

function readSack(view: DataView, at: number, optionBytes: number, out: TcpOptions): void {
  const count = Math.min((optionBytes - 2) / 8, TCP_SACK_BLOCKS_MAX);
  for (let i = 0; i < 2 * count; i++) out.sackEdges[i] = view.getUint32(at + 2 + 4 * i);
  out.sackCount = count;
  out.sackOffset = at;
}

/** What `emitTcpOptions` writes; host order. */
export interface TcpOptionFields {
  readonly mss?: number | undefined;
  readonly windowScale?: number | undefined;
  readonly sackPermitted?: boolean | undefined;
  readonly timestamps?: { readonly tsval: number; readonly tsecr: number } | undefined;
  /** Left edge, right edge. At most 4 blocks, 3 beside timestamps. */
  readonly sack?: readonly (readonly [Seq, Seq])[] | undefined;
}

/**
 * Options as Linux lays them out (`tcp_options_write`): MSS; timestamps, filled up by SACK-permitted on a SYN; window scale;
 * SACK; each padded in front with NOPs to 4 bytes.
 *
 * @throws RangeError when they take more than 40 bytes
 */
export function emitTcpOptions(fields: TcpOptionFields): Uint8Array {
  const out: number[] = [];
  if (fields.mss !== undefined) out.push(TCP_OPTION_MSS, 4, ...bytes16(fields.mss));
  if (fields.timestamps !== undefined) {
    if (fields.sackPermitted === true) out.push(TCP_OPTION_SACK_PERMITTED, 2);
    else out.push(TCP_OPTION_NOP, TCP_OPTION_NOP);
    out.push(TCP_OPTION_TIMESTAMPS, 10);
    out.push(...bytes32(fields.timestamps.tsval), ...bytes32(fields.timestamps.tsecr));
  } else if (fields.sackPermitted === true) {
    out.push(TCP_OPTION_NOP, TCP_OPTION_NOP, TCP_OPTION_SACK_PERMITTED, 2);
  }
  if (fields.windowScale !== undefined) {
    out.push(TCP_OPTION_NOP, TCP_OPTION_WINDOW_SCALE, 3, fields.windowScale);
  }
  const sack = fields.sack ?? [];
  if (sack.length > 0) {
    out.push(TCP_OPTION_NOP, TCP_OPTION_NOP, TCP_OPTION_SACK, 2 + 8 * sack.length);
    for (const [left, right] of sack) out.push(...bytes32(left), ...bytes32(right));
  }
  if (out.length > 40) throw new RangeError('Cannot write TCP options: more than 40 bytes');
  return Uint8Array.from(out);
}

function bytes16(value: number): number[] {
  return [(value >>> 8) & 0xff, value & 0xff];
}

function bytes32(value: number): number[] {
  return [value >>> 24, (value >>> 16) & 0xff, (value >>> 8) & 0xff, value & 0xff];
}
