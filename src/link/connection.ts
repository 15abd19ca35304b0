/**
 * One socket of the peer link with its session: bytes, timers and closing.
 *
 * @module
 */
import type { Socket } from 'node:net';
import { type Micros, NEVER, US_PER_MS } from '../base/time.ts';
import type { LinkCounters } from './counters.ts';
import { errorCode } from './security.ts';
import type { SendBufferPool } from './send-queue.ts';
import { LinkSession, type LinkSessionConfig, type LinkSessionOutput } from './state.ts';

/** Last words (goodbye, refuse) get this long to be written and read; then the socket is destroyed. */
const LAST_WORDS_MS = 1_000;

/** What the successive connections of one link share. */
export interface ConnectionContext {
  readonly nowUs: () => Micros;
  readonly counters: LinkCounters;
  readonly pool: SendBufferPool;
}

/** The session's output, without what the socket takes over. */
export type ConnectionOutput = Omit<LinkSessionOutput, 'write'>;

/** A connected (and, with TLS, authenticated) socket and its session. */
export class LinkConnection {
  readonly session: LinkSession;
  /** Remote address and port, for people. */
  readonly remote: string;
  readonly #socket: Socket;
  readonly #context: ConnectionContext;
  #timer: NodeJS.Timeout | undefined;
  #armedUs: Micros = NEVER;
  #isEnding = false;
  #failure = '';

  constructor(
    socket: Socket,
    config: LinkSessionConfig,
    context: ConnectionContext,
    output: ConnectionOutput,
  ) {
    this.#socket = socket;
    this.#context = context;
    this.remote = `${socket.remoteAddress ?? ''}:${socket.remotePort ?? ''}`;
    const write = (bytes: Uint8Array, onWritten: () => void) => this.#write(bytes, onWritten);
    const onEnd: LinkSessionOutput['onEnd'] = (end) => {
      this.#onSessionEnd(end.isGraceful);
      output.onEnd(end);
    };
    this.session = new LinkSession(
      config,
      { ...output, write, onEnd },
      context.counters,
      context.pool,
    );
    socket.on('data', (chunk: Uint8Array) => {
      // A plain Uint8Array keeps the decoder and the engines at one kind of array (a Buffer is another).
      const bytes = new Uint8Array(chunk.buffer, chunk.byteOffset, chunk.length);
      this.session.onBytes(bytes, context.nowUs());
      // Traffic moves the deadline later, which the timer finds out by itself; the hello moves it nearer.
      if (this.session.nextDeadlineUs() < this.#armedUs) this.#arm();
    });
    socket.on('error', (error) => {
      this.#failure = errorCode(error);
    });
    socket.on('end', () => this.session.onClosed('the peer closed the connection'));
    socket.on('close', () => {
      clearTimeout(this.#timer);
      this.session.onClosed(`connection lost: ${this.#failure || 'closed'}`);
    });
  }

  /** Starts the handshake. After this the output may be called. */
  open(): void {
    this.session.onOpen(this.#context.nowUs());
    this.#arm();
  }

  /** One timer, set to the session's next deadline. */
  #arm(): void {
    if (this.session.hasEnded) return;
    clearTimeout(this.#timer);
    this.#armedUs = this.session.nextDeadlineUs();
    const delayUs = this.#armedUs - this.#context.nowUs();
    this.#timer = setTimeout(
      () => {
        this.session.onTick(this.#context.nowUs());
        this.#arm();
      },
      Math.max(1, Math.ceil(delayUs / US_PER_MS)),
    );
  }

  #write(bytes: Uint8Array, onWritten: () => void): void {
    if (this.#socket.destroyed) return;
    this.#socket.write(bytes, (error) => {
      if (error) return;
      onWritten();
      this.#closeWhenWritten();
    });
  }

  #onSessionEnd(isGraceful: boolean): void {
    clearTimeout(this.#timer);
    if (!isGraceful) {
      this.#socket.destroy();
      return;
    }
    this.#isEnding = true;
    // The socket is still read (and ignored): closing it with unread bytes would be a reset that overtakes the last words.
    this.#timer = setTimeout(() => this.#socket.destroy(), LAST_WORDS_MS);
    this.#closeWhenWritten();
  }

  #closeWhenWritten(): void {
    if (this.#isEnding && this.session.queueBytes === 0) this.#socket.end();
  }
}
