/**
 * QMP, the QEMU Machine Protocol: lines of JSON to typed messages and back.
 *
 * Source: docs/interop/qmp-spec.txt of QEMU 7.2. The server sends a greeting, then answers and events, each on a
 * line of its own (CR LF). Everything beyond the fields named here is kept as `unknown`; messages of
 * other kinds are `unknown` too, never an error: QEMU adds events and fields with each version.
 *
 * @module
 */

/** A JSON object of which nothing is known yet. */
export type QmpObject = Readonly<Record<string, unknown>>;

export type QmpMessage =
  | {
      readonly kind: 'greeting';
      /** Of QEMU: `7.2.22`. */
      readonly version: string;
    }
  | {
      readonly kind: 'event';
      readonly name: string;
      readonly data: QmpObject;
      /** QEMU's wall clock, microseconds since 1970; 0 when it gave none (seconds = -1). */
      readonly atUs: number;
    }
  | {
      readonly kind: 'return';
      /** What the client wrote as `id`; undefined when there is none. */
      readonly id: unknown;
      readonly value: unknown;
    }
  | {
      readonly kind: 'error';
      /** Undefined also when QEMU could not read the command at all. */
      readonly id: unknown;
      /** `GenericError`, `CommandNotFound`, `DeviceNotFound`, ... */
      readonly errorClass: string;
      readonly description: string;
    }
  | {
      readonly kind: 'unknown';
      /** Why it is none of the above; for counting and for the log. */
      readonly reason: 'not-json' | 'not-an-object' | 'no-known-member';
    };

function isObject(value: unknown): value is QmpObject {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

function numberOf(value: unknown): number {
  return typeof value === 'number' && Number.isFinite(value) ? value : 0;
}

function stringOf(value: unknown): string {
  return typeof value === 'string' ? value : '';
}

/** `7.2.22` out of the greeting's `{qemu: {major, minor, micro}, package}`. */
function versionOf(greeting: unknown): string {
  const version = isObject(greeting) ? greeting['version'] : undefined;
  const qemu = isObject(version) ? version['qemu'] : undefined;
  if (!isObject(qemu)) return '';
  return [qemu['major'], qemu['minor'], qemu['micro']].map(numberOf).join('.');
}

/** Decodes one line, without its line end. Never throws. */
export function decodeQmp(line: string): QmpMessage {
  let value: unknown;
  try {
    value = JSON.parse(line);
  } catch {
    // Also a RangeError for nesting deeper than the stack.
    return { kind: 'unknown', reason: 'not-json' };
  }
  if (!isObject(value)) return { kind: 'unknown', reason: 'not-an-object' };
  if (typeof value['event'] === 'string') {
    const data = value['data'];
    const stamp = isObject(value['timestamp']) ? value['timestamp'] : {};
    const seconds = numberOf(stamp['seconds']);
    return {
      kind: 'event',
      name: value['event'],
      data: isObject(data) ? data : {},
      atUs: seconds > 0 ? seconds * 1_000_000 + numberOf(stamp['microseconds']) : 0,
    };
  }
  if ('return' in value) return { kind: 'return', id: value['id'], value: value['return'] };
  const error = value['error'];
  if (isObject(error)) {
    return {
      kind: 'error',
      id: value['id'],
      errorClass: stringOf(error['class']),
      description: stringOf(error['desc']),
    };
  }
  if ('QMP' in value) return { kind: 'greeting', version: versionOf(value['QMP']) };
  return { kind: 'unknown', reason: 'no-known-member' };
}

/** A command as a line of ASCII, ready to be sent; QMP takes `\uXXXX` for everything else. */
export function encodeQmpCommand(execute: string, id: number, args?: QmpObject): Uint8Array {
  const message = args === undefined ? { execute, id } : { execute, arguments: args, id };
  const text = `${JSON.stringify(message)}\n`.replace(
    /[\u007f-\uffff]/g,
    (character) => `\\u${character.charCodeAt(0).toString(16).padStart(4, '0')}`,
  );
  return Uint8Array.from(text, (character) => character.charCodeAt(0));
}

/** What a chunk of the stream has brought. */
export interface QmpLines {
  readonly lines: readonly string[];
  /** Lines longer than the limit; they are skipped to their end. */
  readonly tooLong: number;
}

const LF = 0x0a;
const CR = 0x0d;

/** Cuts a byte stream into lines (LF or CR LF; empty ones are left out); holds at most one line of `lineBytesMax`. */
export class QmpLineDecoder {
  readonly #lineBytesMax: number;
  readonly #decoder = new TextDecoder();
  /** Pieces of the unfinished line. */
  #pieces: Uint8Array[] = [];
  #heldBytes = 0;
  #skipping = false;

  constructor(lineBytesMax: number) {
    if (!(lineBytesMax > 0)) throw new RangeError('lineBytesMax must be positive');
    this.#lineBytesMax = lineBytesMax;
  }

  /** Takes the next bytes; what has to wait is copied. */
  push(chunk: Uint8Array): QmpLines {
    const lines: string[] = [];
    let tooLong = 0;
    let at = 0;
    while (at < chunk.length) {
      const lineFeed = chunk.indexOf(LF, at);
      const end = lineFeed < 0 ? chunk.length : lineFeed;
      if (!this.#skipping && this.#heldBytes + (end - at) > this.#lineBytesMax) {
        tooLong++;
        this.#skipping = true;
        this.#clear();
      }
      if (!this.#skipping && end > at) {
        this.#pieces.push(chunk.slice(at, end));
        this.#heldBytes += end - at;
      }
      if (lineFeed < 0) break;
      const line = this.#skipping ? '' : this.#take();
      if (line !== '') lines.push(line);
      this.#skipping = false;
      at = lineFeed + 1;
    }
    return { lines, tooLong };
  }

  #clear(): void {
    this.#pieces = [];
    this.#heldBytes = 0;
  }

  #take(): string {
    const bytes = new Uint8Array(this.#heldBytes);
    let at = 0;
    for (const piece of this.#pieces) {
      bytes.set(piece, at);
      at += piece.length;
    }
    this.#clear();
    const end =
      bytes.length > 0 && bytes[bytes.length - 1] === CR ? bytes.length - 1 : bytes.length;
    return this.#decoder.decode(bytes.subarray(0, end));
  }
}
