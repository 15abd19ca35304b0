/**
 * The client's half of HTTP/1.1 on a socket that the caller holds: one request at a time, body handed on
 * as it comes. (`node:http` hides the socket, and with it when bytes came and how a connection ended.)
 *
 * @module
 */
import { connect, type Socket } from 'node:net';
import { ADDRESSES } from '../topology.ts';

export type Family = 4 | 6;

export interface Answer {
  readonly status: number;
  readonly bodyBytes: number;
}

/** Opens a connection to a port of the guest. Rejects when it is refused or does not come about in time. */
export function openConnection(family: Family, port: number, timeoutMs = 10_000): Promise<Socket> {
  return new Promise((resolve, reject) => {
    const socket = connect({ host: ADDRESSES[family].guest, port, noDelay: true });
    const timer = setTimeout(() => socket.destroy(new Error('connect timed out')), timeoutMs);
    socket.once('error', reject);
    socket.once('connect', () => {
      clearTimeout(timer);
      socket.off('error', reject);
      resolve(socket);
    });
  });
}

/**
 * Sends `head` (with its empty line) and reads one answer. `onBody` is given the body as it comes.
 * Rejects when the connection ends or fails before the answer is whole.
 */
export function exchange(
  socket: Socket,
  head: string,
  onBody: (bytes: Buffer) => void,
): Promise<Answer> {
  return new Promise((resolve, reject) => {
    let header = Buffer.alloc(0);
    let answer: Answer | undefined;
    let received = 0;
    const done = (error: Error | undefined): void => {
      socket.off('data', onData).off('error', done).off('close', onClose);
      if (error !== undefined) reject(error);
      else resolve(answer!);
    };
    const onClose = (): void => done(new Error(`connection closed after ${received} body bytes`));
    const onPiece = (bytes: Buffer): void => {
      received += bytes.length;
      if (bytes.length > 0) onBody(bytes);
      if (received >= answer!.bodyBytes) done(undefined);
    };
    const onData = (bytes: Buffer): void => {
      if (answer !== undefined) {
        onPiece(bytes);
        return;
      }
      header = Buffer.concat([header, bytes]);
      const end = header.indexOf('\r\n\r\n');
      if (end < 0) return;
      answer = parseAnswer(header.toString('latin1', 0, end));
      onPiece(header.subarray(end + 4));
    };
    socket.on('data', onData).on('error', done).on('close', onClose);
    if (head !== '') socket.write(head);
  });
}

/** One small request; resolves with the body's text. Throws when the status is not 200. */
export async function getText(socket: Socket, path: string): Promise<string> {
  const parts: Buffer[] = [];
  const answer = await exchange(socket, requestHead('GET', path), (bytes) => parts.push(bytes));
  const text = Buffer.concat(parts).toString();
  if (answer.status !== 200) throw new Error(`${path}: HTTP ${answer.status} ${text.trim()}`);
  return text;
}

export function requestHead(method: string, path: string, more: readonly string[] = []): string {
  return [`${method} ${path} HTTP/1.1`, 'Host: guest', ...more, '', ''].join('\r\n');
}

function parseAnswer(head: string): Answer {
  const status = Number(/^HTTP\/1\.1 (\d{3})/.exec(head)?.[1] ?? Number.NaN);
  const bodyBytes = Number(/^content-length: (\d+)/im.exec(head)?.[1] ?? Number.NaN);
  if (!Number.isInteger(status) || !Number.isInteger(bodyBytes)) {
    throw new Error(`not an HTTP answer: ${JSON.stringify(head.slice(0, 200))}`);
  }
  return { status, bodyBytes };
}
