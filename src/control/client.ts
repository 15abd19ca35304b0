/**
 * Talks to the control socket of a node.
 *
 * @module
 */
import { connect, type Socket } from 'node:net';
import { ColoError } from '../base/error.ts';
import { type ControlResponse, LINE_TOO_LONG, LineSplitter } from './protocol.ts';

/** A request as it is written: see protocol.ts for the fields. */
export type ControlCall = { readonly command: string } & Record<string, unknown>;

/** Answers hold up to CONTROL_FLOWS_MAX flows. */
const ANSWER_BYTES_MAX = 64 * 1024 * 1024;
/** Longer than the longest command: a begin that waits for the peer. */
const ANSWER_TIMEOUT_MS = 30_000;

/**
 * Sends one request and waits for its answer.
 *
 * @throws ColoError `COLO_ERR_CONTROL_CONNECT` when nobody listens, `COLO_ERR_CONTROL_ANSWER` when the answer does
 * not come or is not one
 */
export async function callControl(
  path: string,
  call: ControlCall,
  timeoutMs: number = ANSWER_TIMEOUT_MS,
): Promise<ControlResponse> {
  const socket = await open(path);
  try {
    return await new Promise<ControlResponse>((resolve, reject) => {
      socket.setTimeout(timeoutMs, () => reject(answerError(path, `none within ${timeoutMs} ms`)));
      readLines(socket, path, reject, (line) => resolve(readResponse(path, line)));
      socket.write(`${JSON.stringify(call)}\n`);
    });
  } finally {
    socket.destroy();
  }
}

/**
 * Calls `onEvent` with every event of the node, the kept ones first, until `signal` aborts or the node ends.
 *
 * @throws ColoError as `callControl`
 */
export async function followControl(
  path: string,
  countMax: number,
  onEvent: (event: Record<string, unknown>) => void,
  signal: AbortSignal,
): Promise<void> {
  const socket = await open(path);
  const stop = (): void => void socket.destroy();
  signal.addEventListener('abort', stop, { once: true });
  try {
    await new Promise<void>((resolve, reject) => {
      socket.once('close', () => resolve());
      readLines(socket, path, reject, (line) => {
        const value = readObject(path, line);
        if (typeof value['event'] === 'object') onEvent(value['event'] as Record<string, unknown>);
        if (value['ok'] === false) reject(answerError(path, String(value['error'])));
        if (Array.isArray(value['result'])) for (const event of value['result']) onEvent(event);
      });
      socket.write(`${JSON.stringify({ command: 'events', count: countMax, follow: true })}\n`);
    });
  } finally {
    signal.removeEventListener('abort', stop);
    socket.destroy();
  }
}

function open(path: string): Promise<Socket> {
  return new Promise((resolve, reject) => {
    const socket = connect(path);
    socket.once('connect', () => {
      socket.removeAllListeners('error');
      resolve(socket);
    });
    socket.once('error', (error: NodeJS.ErrnoException) => {
      const hint: Record<string, string> = {
        ENOENT: 'ENOENT; is the node running, with --control and this path?',
        ECONNREFUSED: 'ECONNREFUSED; the node that made it has ended',
        EACCES: 'EACCES; only the owner of the node may use it',
      };
      const code = error.code ?? error.message;
      const text = `Cannot connect to the control socket ${path}: ${hint[code] ?? code}`;
      reject(new ColoError('COLO_ERR_CONTROL_CONNECT', text, { cause: error, path }));
    });
  });
}

function readLines(
  socket: Socket,
  path: string,
  reject: (error: Error) => void,
  onLine: (line: string) => void,
): void {
  const splitter = new LineSplitter(ANSWER_BYTES_MAX);
  socket.on('error', (error) => reject(answerError(path, error.message)));
  socket.on('close', () => reject(answerError(path, 'the node closed the connection')));
  socket.on('data', (chunk: Buffer) => {
    const lines = splitter.push(chunk);
    if (lines === LINE_TOO_LONG) {
      reject(answerError(path, 'it is too long'));
      return;
    }
    try {
      for (const line of lines) onLine(line);
    } catch (error) {
      reject(error as Error);
    }
  });
}

function readResponse(path: string, line: string): ControlResponse {
  const value = readObject(path, line);
  if (value['ok'] === true) return { ok: true, result: value['result'] };
  if (value['ok'] === false) return { ok: false, error: String(value['error']) };
  throw answerError(path, 'it is not an answer');
}

function readObject(path: string, line: string): Record<string, unknown> {
  try {
    const value: unknown = JSON.parse(line);
    if (typeof value === 'object' && value !== null) return value as Record<string, unknown>;
  } catch {
    // Not JSON: told below.
  }
  throw answerError(path, 'it is not JSON');
}

function answerError(path: string, reason: string): ColoError {
  return new ColoError('COLO_ERR_CONTROL_ANSWER', `No answer from ${path}: ${reason}`, { path });
}
