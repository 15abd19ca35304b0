/**
 * What applications send to each other in the simulation. A request is a header and a body; its answer is made from
 * the header alone, except where the request asks the guest to be nondeterministic.
 *
 *     0       1      2      3     4          8            12       16
 *     +-------+------+------+-----+----------+------------+--------+------
 *     | magic | kind | flags|  0  | bodyBytes| answerBytes|  seed  | body
 *     +-------+------+------+-----+----------+------------+--------+------
 *
 * @module
 */
import { readU32, writeU32 } from '../net/packet.ts';

export const REQUEST_HEADER_BYTES = 16;
const MAGIC = 0xc0;

/** The answer begins with 8 bytes that no other machine would choose. */
export const FLAG_TOKEN = 1;
/** The answer begins with the guest's clock. */
export const FLAG_CLOCK = 2;
/** The guest closes after the answer. */
export const FLAG_CLOSE = 4;
/** The guest resets the connection after the answer. */
export const FLAG_RESET = 8;
/** The guest thinks for a random time first; answers of one connection may overtake each other. */
export const FLAG_SLOW = 16;
/** The guest reads the rest of this connection slowly: the window closes. */
export const FLAG_READ_SLOWLY = 32;
/** The answer is urgent data. */
export const FLAG_URGENT = 64;
/** The guest opens a connection back to the client, to port `seed & 0xffff`, and sends the answer there. */
export const FLAG_CONNECT_BACK = 128;

export interface Request {
  readonly flags: number;
  readonly bodyBytes: number;
  readonly answerBytes: number;
  readonly seed: number;
}

/** The byte at `index` of the content named by `seed`. */
export function contentByte(seed: number, index: number): number {
  const word = Math.imul((seed ^ 0x5bd1e995) + index, 0x9e3779b1);
  return ((word >>> 24) ^ (word >>> 11)) & 0xff;
}

/** Bytes `[start, start + count)` of the content named by `seed`. */
export function content(seed: number, start: number, count: number): Uint8Array {
  const bytes = new Uint8Array(count);
  for (let i = 0; i < count; i++) bytes[i] = contentByte(seed, start + i);
  return bytes;
}

/** Header and body. */
export function encodeRequest(request: Request): Uint8Array {
  const bytes = new Uint8Array(REQUEST_HEADER_BYTES + request.bodyBytes);
  bytes[0] = MAGIC;
  bytes[2] = request.flags;
  writeU32(bytes, 4, request.bodyBytes);
  writeU32(bytes, 8, request.answerBytes);
  writeU32(bytes, 12, request.seed);
  bytes.set(content(~request.seed, 0, request.bodyBytes), REQUEST_HEADER_BYTES);
  return bytes;
}

/** Reads a header; undefined when these bytes do not begin one. */
export function decodeRequest(bytes: Uint8Array): Request | undefined {
  if (bytes.length < REQUEST_HEADER_BYTES || bytes[0] !== MAGIC) return undefined;
  return {
    flags: bytes[2]!,
    bodyBytes: readU32(bytes, 4),
    answerBytes: readU32(bytes, 8),
    seed: readU32(bytes, 12),
  };
}

/** The byte of a request's body at `index`: what the guest checks uploads against. */
export function bodyByte(seed: number, index: number): number {
  return contentByte(~seed, index);
}
