/**
 * The control protocol: JSON lines over a Unix stream socket, one answer line for each request line.
 *
 *     {"command":"checkpoint","step":"begin"}      {"ok":true}
 *     {"command":"status"}                         {"ok":true,"result":{...}}
 *     {"command":"failover"}                       {"ok":false,"error":"Refused: the peer link is up"}
 *     {"command":"events","follow":true}           {"ok":true,"result":[...]} then one {"event":{...}} a line
 *
 * Unknown commands and unknown fields are refused rather than ignored, so that a misspelt `force` is noticed.
 * No sockets here; see server.ts and client.ts.
 *
 * @module
 */
import { CONTROL_FLOWS_MAX, CONTROL_LINE_BYTES_MAX, EVENTS_KEPT_MAX } from '../limits.ts';

/** What may be asked of a node. */
export type ControlRequest =
  | { readonly command: 'status' }
  | { readonly command: 'flows'; readonly count: number }
  | { readonly command: 'events'; readonly count: number; readonly follow: boolean }
  | { readonly command: 'checkpoint'; readonly step: 'begin' }
  | { readonly command: 'checkpoint'; readonly step: 'commit' }
  | { readonly command: 'checkpoint'; readonly step: 'abort'; readonly reason: string }
  | { readonly command: 'failover'; readonly force: boolean }
  | { readonly command: 'reset'; readonly reason: string };

/** The answer to one request. */
export type ControlResponse =
  | { readonly ok: true; readonly result?: unknown }
  | { readonly ok: false; readonly error: string };

/** Flows in an answer when the request names no count. */
export const CONTROL_FLOWS_DEFAULT = 1_000;

/** Longest reason that an operator may give, in UTF-16 units. */
const REASON_LENGTH_MAX = 256;

type Fields = Record<string, unknown>;

/**
 * Reads one request line. Never throws.
 *
 * @returns the request, or what is wrong with it
 */
export function parseControlRequest(line: string): ControlRequest | string {
  let value: unknown;
  try {
    value = JSON.parse(line);
  } catch {
    return 'Request is not JSON';
  }
  if (typeof value !== 'object' || value === null || Array.isArray(value)) {
    return 'Request is not an object';
  }
  const fields = value as Fields;
  const command = fields['command'];
  switch (command) {
    case 'status':
      return onlyFields(fields, []) ?? { command };
    case 'flows':
      return parseFlows(fields);
    case 'events':
      return parseEvents(fields);
    case 'checkpoint':
      return parseCheckpoint(fields);
    case 'failover':
      return parseFailover(fields);
    case 'reset':
      return parseReset(fields);
    default:
      return typeof command === 'string'
        ? `Unknown command '${command.slice(0, 32)}'`
        : 'Request has no command';
  }
}

function parseFlows(fields: Fields): ControlRequest | string {
  const count = fields['count'] ?? CONTROL_FLOWS_DEFAULT;
  if (!isCount(count, CONTROL_FLOWS_MAX)) return `count is a whole number 1..${CONTROL_FLOWS_MAX}`;
  return onlyFields(fields, ['count']) ?? { command: 'flows', count };
}

function parseEvents(fields: Fields): ControlRequest | string {
  const count = fields['count'] ?? EVENTS_KEPT_MAX;
  if (!isCount(count, EVENTS_KEPT_MAX)) return `count is a whole number 1..${EVENTS_KEPT_MAX}`;
  const follow = fields['follow'] ?? false;
  if (typeof follow !== 'boolean') return 'follow is true or false';
  return onlyFields(fields, ['count', 'follow']) ?? { command: 'events', count, follow };
}

function parseCheckpoint(fields: Fields): ControlRequest | string {
  const step = fields['step'];
  if (step === 'begin' || step === 'commit') {
    return onlyFields(fields, ['step']) ?? { command: 'checkpoint', step };
  }
  if (step !== 'abort') return 'step is begin, commit or abort';
  const reason = readReason(fields, 'aborted by the operator');
  if (reason === undefined) return `reason is a text of at most ${REASON_LENGTH_MAX} characters`;
  return onlyFields(fields, ['step', 'reason']) ?? { command: 'checkpoint', step, reason };
}

function parseFailover(fields: Fields): ControlRequest | string {
  const force = fields['force'] ?? false;
  if (typeof force !== 'boolean') return 'force is true or false';
  return onlyFields(fields, ['force']) ?? { command: 'failover', force };
}

function parseReset(fields: Fields): ControlRequest | string {
  const reason = readReason(fields, 'reset by the operator');
  if (reason === undefined) return `reason is a text of at most ${REASON_LENGTH_MAX} characters`;
  return onlyFields(fields, ['reason']) ?? { command: 'reset', reason };
}

function readReason(fields: Fields, otherwise: string): string | undefined {
  const reason = fields['reason'] ?? otherwise;
  return typeof reason === 'string' && reason.length <= REASON_LENGTH_MAX ? reason : undefined;
}

function isCount(value: unknown, max: number): value is number {
  return Number.isSafeInteger(value) && (value as number) >= 1 && (value as number) <= max;
}

/** Text about the first field that is not expected, or undefined. */
function onlyFields(fields: Fields, names: readonly string[]): string | undefined {
  for (const name of Object.keys(fields)) {
    if (name !== 'command' && !names.includes(name)) return `Unknown field '${name.slice(0, 32)}'`;
  }
  return undefined;
}

/** What `LineSplitter.push` gives when a line grows too long; nothing after it can be read. */
export const LINE_TOO_LONG = Symbol('line too long');

/** Cuts a byte stream into lines of bounded length. Newlines are ASCII LF and never part of a UTF-8 sequence. */
export class LineSplitter {
  readonly #bytesMax: number;
  #parts: Uint8Array[] = [];
  #bytes = 0;

  /** @param bytesMax longest line, without its newline */
  constructor(bytesMax: number = CONTROL_LINE_BYTES_MAX) {
    this.#bytesMax = bytesMax;
  }

  /** Takes a piece of the stream (it is kept, not copied); returns the lines that it completes. */
  push(chunk: Uint8Array): string[] | typeof LINE_TOO_LONG {
    const lines: string[] = [];
    let start = 0;
    for (;;) {
      const end = chunk.indexOf(0x0a, start);
      const piece = chunk.subarray(start, end === -1 ? chunk.length : end);
      if (this.#bytes + piece.length > this.#bytesMax) return LINE_TOO_LONG;
      if (piece.length > 0) this.#parts.push(piece);
      this.#bytes += piece.length;
      if (end === -1) return lines;
      lines.push(this.#take());
      start = end + 1;
    }
  }

  #take(): string {
    const decoder = new TextDecoder();
    let line = '';
    for (const part of this.#parts) line += decoder.decode(part, { stream: true });
    line += decoder.decode();
    this.#parts = [];
    this.#bytes = 0;
    return line;
  }
}
