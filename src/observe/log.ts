/**
 * The node's log: pino. JSON lines for machines (one object a line, `level` as a word, `time` in ISO 8601), or
 * short readable lines for a terminal. Always to standard error, so that standard output belongs to
 * answers.
 *
 * Writing is asynchronous and bounded: a reader that stops reading must never stop the packets. What does
 * not fit is dropped and counted.
 *
 * @module
 */
import { type DestinationStream, destination, type Logger, pino, stdTimeFunctions } from 'pino';
import type { Log } from '../env/log.ts';
import type { LogLevel } from './levels.ts';

/** Bytes of log that wait for a slow reader. */
const LOG_UNWRITTEN_BYTES_MAX = 4 * 1024 * 1024;

export interface LogOptions {
  readonly level: LogLevel;
  /** JSON lines rather than readable ones. */
  readonly json: boolean;
  /** In every line: the node's role. */
  readonly role?: string;
  /** Where lines go instead of standard error; for tests. */
  readonly write?: (line: string) => void;
}

/** A log that can be brought to an end. */
export interface NodeLog extends Log {
  /** Writes out what waits; call it before leaving the process. */
  flush(): void;
  /** Lines lost because nobody read them. */
  readonly dropped: number;
}

/** Makes the log of a process. */
export function createLog(options: LogOptions): NodeLog {
  let dropped = 0;
  const sink = options.write === undefined ? createStandardError(() => dropped++) : undefined;
  const write = options.write ?? ((line: string) => void sink?.write(line));
  const stream: DestinationStream = {
    write: options.json ? write : (line) => write(formatLogLine(line)),
  };
  const logger: Logger = pino(
    {
      level: options.level,
      base: options.role === undefined ? null : { role: options.role },
      timestamp: stdTimeFunctions.isoTime,
      formatters: { level: (label) => ({ level: label }) },
    },
    stream,
  );
  return {
    debug: (fields, text) => logger.debug(fields, text),
    info: (fields, text) => logger.info(fields, text),
    warn: (fields, text) => logger.warn(fields, text),
    error: (fields, text) => logger.error(fields, text),
    flush: () => {
      try {
        sink?.flushSync();
      } catch {
        // Standard error is closed or full: nobody is left to tell.
      }
    },
    get dropped() {
      return dropped;
    },
  };
}

function createStandardError(onDrop: () => void): ReturnType<typeof destination> {
  const sink = destination({ dest: 2, sync: false, maxLength: LOG_UNWRITTEN_BYTES_MAX });
  sink.on('drop', onDrop);
  sink.on('error', () => undefined); // EPIPE: the reader is gone; the node goes on
  return sink;
}

/**
 * One JSON line of pino as people read it: `12:00:01.250 warn  Peer lost (reason=silent for 1000 ms)`.
 * A line that is not JSON is given back unchanged.
 */
export function formatLogLine(line: string): string {
  let record: Record<string, unknown>;
  try {
    record = JSON.parse(line) as Record<string, unknown>;
  } catch {
    return line;
  }
  const { time, level, msg, role, ...fields } = record;
  const clock = String(time).slice(11, 23);
  const names = Object.entries(fields)
    .filter(([, value]) => value !== '' && value !== undefined)
    .map(([name, value]) => `${name}=${typeof value === 'string' ? value : JSON.stringify(value)}`);
  const details = names.length === 0 ? '' : ` (${names.join(', ')})`;
  const who = role === undefined ? '' : `${String(role)}: `;
  return `${clock} ${String(level).padEnd(5)} ${who}${String(msg)}${escapeControls(details)}\n`;
}

/** Output of commands and texts of peers may hold terminal escapes; they must not reach a terminal. */
function escapeControls(text: string): string {
  return text.replace(/\p{Cc}/gu, (c) => `\\x${c.charCodeAt(0).toString(16).padStart(2, '0')}`);
}
