/**
 * Long transfers, down from the guest or up to it, checked byte by byte and by hash.
 *
 * @module
 */
import { createHash } from 'node:crypto';
import type { Socket } from 'node:net';
import { monotonicMs } from '../clock.ts';
import { contentAt, firstDifference } from '../content.ts';
import { GREETING, PORTS } from '../guest/services.ts';
import { note } from '../messages.ts';
import { acceptFromGuest } from './accept.ts';
import { exchange, type Family, openConnection, requestHead } from './http.ts';
import { type Wait, Waits } from './waits.ts';

export interface TransferRequest {
  readonly family: Family;
  readonly direction: 'download' | 'upload';
  readonly bytes: number;
  /** Of the content; each transfer of a scenario has its own. */
  readonly seed: number;
  /** What the digest must be: `expectedDigest`. Not computed here, it would stop the clients for a while. */
  readonly digest: string;
  /** Who opens the connection; the guest is asked to by a request of its own. */
  readonly openedBy: 'client' | 'guest';
  /** Port of the client that the guest connects to; only when the guest opens. */
  readonly port?: number;
  /** When so many bytes have gone a note `{ reached: seed, clientPort }` is sent; 0: never. */
  readonly tellAtBytes: number;
  /** Not faster than this; 0: as fast as it goes. */
  readonly bytesPerSecondMax: number;
}

export interface TransferResult {
  /** By which the connection is found in a capture. */
  readonly clientPort: number;
  readonly bytes: number;
  readonly sha256Ok: boolean;
  /** Offset of the first wrong byte; -1: none. */
  readonly wrongAt: number;
  /** Longest time without progress. */
  readonly pauseMs: number;
  readonly waits: readonly Wait[];
  readonly seconds: number;
}

/** Longest time without progress until the connection counts as dead. */
const STALL_MS = 30_000;
const UPLOAD_PIECE_BYTES = 256 * 1024;
/** Pieces of a transfer whose speed is bounded: small enough that the bound makes no pauses of its own that matter. */
const PIECES_PER_SECOND = 100;

/** Rejects when the connection fails (reset, closed early, stalled). */
export async function transfer(request: TransferRequest): Promise<TransferResult> {
  const socket =
    request.openedBy === 'client'
      ? await openConnection(request.family, PORTS.http)
      : await openedByGuest(request.family, request.port!);
  const progress = new Progress(request, socket);
  try {
    return request.direction === 'download'
      ? await download(socket, request, progress)
      : await upload(socket, request, progress);
  } finally {
    progress.stop();
    socket.on('error', () => {});
    socket.end();
  }
}

/** Watches how a transfer goes on. */
class Progress {
  readonly #request: TransferRequest;
  readonly #clientPort: number;
  readonly #startMs = monotonicMs();
  readonly #waits = new Waits(this.#startMs);
  readonly #timer: NodeJS.Timeout;
  #told = false;

  constructor(request: TransferRequest, socket: Socket) {
    this.#request = request;
    this.#clientPort = socket.localPort!;
    this.#timer = setInterval(() => {
      if (monotonicMs() - this.#waits.lastMs > STALL_MS) socket.destroy(new Error('stalled'));
    }, 1_000);
  }

  at(bytes: number): void {
    this.#waits.progress(monotonicMs());
    const { tellAtBytes, seed } = this.#request;
    if (tellAtBytes > 0 && bytes >= tellAtBytes && !this.#told) {
      this.#told = true;
      note({ reached: seed, clientPort: this.#clientPort });
    }
  }

  /** How long to wait at `bytes` in order not to be faster than asked for. */
  delayMs(bytes: number): number {
    const { bytesPerSecondMax } = this.#request;
    if (bytesPerSecondMax === 0) return 0;
    return this.#startMs + (bytes / bytesPerSecondMax) * 1_000 - monotonicMs();
  }

  result(bytes: number, wrongAt: number, sha256Ok: boolean): TransferResult {
    const seconds = (monotonicMs() - this.#startMs) / 1_000;
    const { longestMs: pauseMs } = this.#waits;
    return {
      clientPort: this.#clientPort,
      bytes,
      sha256Ok,
      wrongAt,
      pauseMs,
      waits: this.#waits.list(),
      seconds,
    };
  }

  stop(): void {
    clearInterval(this.#timer);
  }
}

async function download(
  socket: Socket,
  request: TransferRequest,
  progress: Progress,
): Promise<TransferResult> {
  const hash = createHash('sha256');
  let bytes = 0;
  let wrongAt = -1;
  const head = requestHead('GET', `/bytes/${request.bytes}?seed=${request.seed}`);
  await exchange(socket, head, (piece) => {
    hash.update(piece);
    if (wrongAt < 0) {
      const at = firstDifference(request.seed, bytes, piece);
      if (at >= 0) wrongAt = bytes + at;
    }
    bytes += piece.length;
    progress.at(bytes);
    const delayMs = progress.delayMs(bytes);
    if (delayMs > 1) {
      socket.pause();
      setTimeout(() => socket.resume(), delayMs);
    }
  });
  return progress.result(bytes, wrongAt, hash.digest('hex') === request.digest);
}

async function upload(
  socket: Socket,
  request: TransferRequest,
  progress: Progress,
): Promise<TransferResult> {
  const parts: Buffer[] = [];
  const head = requestHead('PUT', '/upload', [`Content-Length: ${request.bytes}`]);
  const answered = exchange(socket, head, (piece) => parts.push(piece));
  const sent = sendContent(socket, request, progress);
  // A connection that fails rejects the exchange; the sender then waits in vain.
  await Promise.race([sent, answered]);
  await answered;
  progress.at(request.bytes);
  const wanted = `${request.digest} ${request.bytes}\n`;
  const right = Buffer.concat(parts).toString() === wanted;
  return progress.result(request.bytes, -1, right);
}

async function sendContent(
  socket: Socket,
  { seed, bytes, bytesPerSecondMax }: TransferRequest,
  progress: Progress,
): Promise<void> {
  const pieceBytes =
    bytesPerSecondMax === 0
      ? UPLOAD_PIECE_BYTES
      : Math.min(UPLOAD_PIECE_BYTES, Math.ceil(bytesPerSecondMax / PIECES_PER_SECOND));
  for (let at = 0; at < bytes; ) {
    const piece = contentAt(seed, at, Math.min(pieceBytes, bytes - at));
    // The callback comes when the kernel has taken the piece: with full buffers, when the guest has acknowledged as much.
    await new Promise<void>((resolve) => socket.write(piece, () => resolve()));
    at += piece.length;
    progress.at(at);
    const delayMs = progress.delayMs(at);
    if (delayMs > 1) await new Promise((resolve) => setTimeout(resolve, delayMs));
  }
}

/** A connection that the guest opens, with its greeting read. */
async function openedByGuest(family: Family, port: number): Promise<Socket> {
  const socket = await acceptFromGuest(family, port);
  await expectText(socket, GREETING);
  return socket;
}

function expectText(socket: Socket, wanted: string): Promise<void> {
  return new Promise((resolve, reject) => {
    let text = '';
    const onData = (bytes: Buffer): void => {
      text += bytes.toString('latin1');
      if (text.length < wanted.length) return;
      socket.off('data', onData).off('error', reject);
      if (text === wanted) resolve();
      else reject(new Error(`the guest said ${JSON.stringify(text)}`));
    };
    socket.on('data', onData).on('error', reject);
  });
}
