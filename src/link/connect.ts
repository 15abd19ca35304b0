/**
 * The connecting end of the peer link (the secondary node): one attempt after the other, for ever, until
 * `close`.
 *
 * @module
 */
import { connect, type Socket } from 'node:net';
import { connect as connectTls, TLSSocket } from 'node:tls';
import { type Micros, US_PER_MS } from '../base/time.ts';
import type { FrameBuffer } from '../env/frame.ts';
import type { PeerLink, PeerLinkHandlers, PeerLinkStatus } from '../env/link.ts';
import type { LinkFrameKind, LinkMessage } from '../env/messages.ts';
import { LinkCore, type LinkOptions } from './core.ts';
import { errorCode, tlsFailureReason } from './security.ts';

/** Pause before the next attempt: doubled from the first to the second value, and shortened by up to a quarter at random. */
const RETRY_MS_MIN = 50;
/** See RETRY_MS_MIN. A primary that comes back is found within this time. */
const RETRY_MS_MAX = 1_000;

/** The connecting end. */
export class ConnectingLink implements PeerLink {
  readonly #core: LinkCore;
  #socket: Socket | undefined;
  #timer: NodeJS.Timeout | undefined;
  #retryMs = RETRY_MS_MIN;
  #upSinceUs: Micros | undefined;

  constructor(options: LinkOptions) {
    this.#core = new LinkCore('connect', options);
  }

  get connected(): boolean {
    return this.#core.connected;
  }

  start(handlers: PeerLinkHandlers): Promise<void> {
    this.#core.start(handlers);
    // Not at once: no handler may be called from within start().
    this.#timer = setTimeout(() => this.#attempt(), 0);
    return Promise.resolve();
  }

  sendFrame(
    kind: LinkFrameKind,
    epoch: number,
    buffer: FrameBuffer,
    offset: number,
    length: number,
  ): boolean {
    return this.#core.sendFrame(kind, epoch, buffer, offset, length);
  }

  sendMessage(message: LinkMessage): void {
    this.#core.sendMessage(message);
  }

  flush(): void {
    this.#core.flush();
  }

  status(): PeerLinkStatus {
    return this.#core.status();
  }

  close(reason: string): Promise<void> {
    clearTimeout(this.#timer);
    const isUp = this.#core.connected;
    this.#core.close(reason);
    const socket = this.#socket;
    if (socket === undefined) return Promise.resolve();
    // A connection that is up ends after its goodbye.
    if (!isUp) socket.destroy();
    return new Promise((resolve) => socket.once('close', () => resolve()));
  }

  #attempt(): void {
    const { host, port, security } = this.#core.options;
    const startedUs = this.#core.nowUs();
    const socket =
      security.tls === undefined
        ? connect({ host, port })
        : connectTls({ host, port, ...security.tls.client });
    this.#socket = socket;
    socket.setNoDelay(true);
    let isConnected = false;
    let isAttached = false;
    let failure = 'connect-timeout';
    const { handshakeTimeoutUs } = this.#core;
    const timer = setTimeout(() => socket.destroy(), handshakeTimeoutUs / US_PER_MS);
    socket.on('connect', () => {
      isConnected = true;
      failure = 'handshake-timeout';
    });
    socket.on('error', (error) => {
      failure = isConnected ? tlsFailureReason(error) : `connect-${errorCode(error)}`;
    });
    socket.on('close', () => {
      clearTimeout(timer);
      if (!isAttached) {
        this.#core.countRefused(failure);
        this.#core.setDownReason(`cannot connect to the peer: ${failure}`);
      }
      this.#retry();
    });
    socket.on(security.tls === undefined ? 'connect' : 'secureConnect', () => {
      clearTimeout(timer);
      if (socket instanceof TLSSocket && security.checkPeer(socket) !== undefined) {
        failure = 'untrusted-certificate';
        socket.destroy();
        return;
      }
      isAttached = true;
      const usedUs = this.#core.nowUs() - startedUs;
      this.#attach(socket, Math.max(0, handshakeTimeoutUs - usedUs));
    });
  }

  #attach(socket: Socket, handshakeTimeoutUs: Micros): void {
    const connection = this.#core.attach(socket, handshakeTimeoutUs, () => {
      this.#upSinceUs = this.#core.nowUs();
    });
    connection.open();
  }

  #retry(): void {
    this.#socket = undefined;
    if (this.#core.isClosing) return;
    // Only a link that held for a while makes the next attempts quick again.
    const upUs = this.#upSinceUs === undefined ? 0 : this.#core.nowUs() - this.#upSinceUs;
    this.#upSinceUs = undefined;
    if (upUs >= this.#core.timeoutUs) this.#retryMs = RETRY_MS_MIN;
    const delayMs = this.#retryMs * (1 - Math.random() / 4);
    this.#retryMs = Math.min(2 * this.#retryMs, RETRY_MS_MAX);
    this.#timer = setTimeout(() => this.#attempt(), delayMs);
  }
}
