/**
 * Values that an operator writes, on the command line and in the configuration file alike.
 * Each function returns what the text means or throws `ColoError` `COLO_ERR_VALUE` with one clear sentence.
 *
 * @module
 */
import { isIP } from 'node:net';
import { ColoError } from '../base/error.ts';
import type { Micros } from '../base/time.ts';
import { US_PER_MS } from '../base/time.ts';
import { LINK_TIMEOUT_US_MAX, LINK_TIMEOUT_US_MIN } from '../codec/link-msg.ts';

/** `--peer`: which end of the peer link this node is. */
export interface PeerAddress {
  readonly mode: 'listen' | 'connect';
  /** A name or an address; IPv6 without brackets. */
  readonly host: string;
  /** 1..65535. */
  readonly port: number;
}

/** `--pass`: an entry of the pass list. */
export interface PassValue {
  /** IP protocol number. */
  readonly protocol: number;
  readonly port: number;
}

/** IP protocol numbers (RFC 9293, RFC 768). */
const PASS_PROTOCOLS: ReadonlyMap<string, number> = new Map([
  ['tcp', 6],
  ['udp', 17],
]);

/** RFC 1123 §2.1 names, and the underscore that people use; lengths are the resolver's business. */
const HOST_NAME = /^[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_.])?$/;

/** One day: longer times are mistakes of the unit. */
const MILLISECONDS_MAX = 86_400_000;

/** Reads `listen:HOST:PORT` or `connect:HOST:PORT`; an IPv6 address in brackets. */
export function parsePeerAddress(text: string): PeerAddress {
  const match = /^(listen|connect):(?:\[([^\]]*)\]|([^:[\]]*)):(\d{1,5})$/.exec(text);
  const [, mode, bracketed, plain, digits] = match ?? [];
  const host = bracketed ?? plain ?? '';
  const port = Number(digits);
  const isHost =
    bracketed === undefined ? HOST_NAME.test(host) : isIP(host.split('%')[0] ?? '') === 6;
  if (match === null || !isHost || port < 1 || port > 65_535) {
    throw valueError('listen:HOST:PORT or connect:HOST:PORT (IPv6 in brackets)', text);
  }
  return { mode: mode as PeerAddress['mode'], host, port };
}

/** Reads `tcp:PORT` or `udp:PORT`. */
export function parsePass(text: string): PassValue {
  const match = /^([a-z]+):(\d{1,5})$/.exec(text);
  const protocol = PASS_PROTOCOLS.get(match?.[1] ?? '');
  const port = Number(match?.[2]);
  if (protocol === undefined || !(port >= 1 && port <= 65_535)) {
    throw valueError('tcp:PORT or udp:PORT', text);
  }
  return { protocol, port };
}

/** Reads a duration in milliseconds, 1 to a day. */
export function parseMilliseconds(text: string): Micros {
  return readMilliseconds(text, 1, MILLISECONDS_MAX);
}

/** Reads the peer timeout in milliseconds; its bounds are the peer link's. */
export function parsePeerTimeout(text: string): Micros {
  return readMilliseconds(text, LINK_TIMEOUT_US_MIN / US_PER_MS, LINK_TIMEOUT_US_MAX / US_PER_MS);
}

function readMilliseconds(text: string, min: number, max: number): Micros {
  const ms = /^\d+$/.test(text) ? Number(text) : -1;
  if (ms < min || ms > max) throw valueError(`whole milliseconds, ${min} to ${max}`, text);
  return ms * US_PER_MS;
}

/** Checks a path: not empty, no zero byte. */
export function parsePath(text: string): string {
  if (text === '' || text.includes('\0')) throw valueError('a path', text);
  return text;
}

/** Reads one of a few words. */
export function parseWord<W extends string>(words: readonly W[], text: string): W {
  const word = words.find((candidate) => candidate === text);
  if (word === undefined) throw valueError(words.join(', '), text);
  return word;
}

/** A whole number within bounds, as the configuration file gives it. */
export function parseCount(text: string, min: number, max: number): number {
  const value = /^\d+$/.test(text) ? Number(text) : -1;
  if (value < min || value > max) throw valueError(`a whole number, ${min} to ${max}`, text);
  return value;
}

function valueError(expected: string, text: string): ColoError {
  return new ColoError('COLO_ERR_VALUE', `Expected ${expected}; got '${text}'`);
}
