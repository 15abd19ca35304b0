/**
 * The listening end of the peer link (the primary node).
 *
 * Strangers: at most PENDING_CONNECTIONS_MAX connections have not yet said a valid hello; when one more comes, the oldest is
 * closed, so that a peer gets through while somebody keeps the table full. Each has until the handshake
 * timeout for TLS and hello together. They are counted by reason, and never touch the live connection.
 *
 * @module
 */
import { createServer, type Server, type Socket } from 'node:net';
import {
  createServer as createTlsServer,
  type TLSSocket,
  type Server as TlsServer,
} from 'node:tls';
import { ColoError } from '../base/error.ts';
import { type Micros, US_PER_MS, US_PER_S } from '../base/time.ts';
import type { FrameBuffer } from '../env/frame.ts';
import type { PeerLink, PeerLinkHandlers, PeerLinkStatus } from '../env/link.ts';
import type { LinkFrameKind, LinkMessage } from '../env/messages.ts';
import type { LinkConnection } from './connection.ts';
import { LinkCore, type LinkOptions } from './core.ts';
import { errorCode, tlsFailureReason } from './security.ts';

/** Connections that have not yet said hello. */
const PENDING_CONNECTIONS_MAX = 8;

/**
 * Connections looked at in one second while a peer is up; the rest is closed unseen. A TLS handshake costs some
 * tenths of a millisecond of the processor that the live link needs. While no peer is up all are looked at.
 */
const STRANGERS_PER_SECOND_MAX = 50;

/** A connection from accept to hello. */
interface Pending {
  readonly key: string;
  readonly socket: Socket;
  readonly acceptedUs: Micros;
  /** Ends it in time; a session has its own deadline. */
  readonly timer: NodeJS.Timeout;
  /** Once TLS is done. It counts its own end. */
  connection: LinkConnection | undefined;
}

/** The listening end. */
export class ListeningLink implements PeerLink {
  readonly #core: LinkCore;
  /** By remote address and port (unique on one listening socket), oldest first. */
  readonly #pending = new Map<string, Pending>();
  #server: Server | undefined;
  /** The current second, and how many strangers came in it. */
  #second = 0;
  #strangersInSecond = 0;
  #tlsServer: TlsServer | undefined;

  constructor(options: LinkOptions) {
    this.#core = new LinkCore('listen', options);
  }

  get connected(): boolean {
    return this.#core.connected;
  }

  /** The bound port (useful when 0 was asked for); 0 before `start`. */
  get port(): number {
    const address = this.#server?.address();
    return typeof address === 'object' && address !== null ? address.port : 0;
  }

  start(handlers: PeerLinkHandlers): Promise<void> {
    this.#core.start(handlers);
    const { host, port, security } = this.#core.options;
    if (security.tls !== undefined) this.#tlsServer = this.#createTlsServer(security.tls.server);
    const server = createServer((socket) => this.#onAccepted(socket));
    this.#server = server;
    return new Promise((resolve, reject) => {
      server.once('error', (cause) => {
        const errno = errorCode(cause);
        const text = `Cannot listen for the peer on ${host}:${port}: ${errno}`;
        reject(new ColoError('COLO_ERR_PEER_LISTEN', text, { cause, errno, syscall: 'listen' }));
      });
      server.listen({ host, port }, () => {
        // Out of descriptors (accept: EMFILE) is counted and passes; the socket goes on listening.
        server.removeAllListeners('error');
        server.on('error', (error) => this.#core.countRefused(`accept-${errorCode(error)}`));
        resolve();
      });
    });
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

  async close(reason: string): Promise<void> {
    for (const pending of this.#pending.values()) this.#dismiss(pending, 'closing');
    this.#core.close(reason);
    const server = this.#server;
    if (server === undefined) return;
    // Resolves when the live connection, too, has ended: after its goodbye, or LAST_WORDS_MS.
    await new Promise<void>((resolve) => server.close(() => resolve()));
  }

  #createTlsServer(options: NonNullable<LinkOptions['security']['tls']>['server']): TlsServer {
    // It never listens: it is given accepted sockets, after they were counted.
    const tlsServer = createTlsServer(options);
    tlsServer.on('secureConnection', (socket) => this.#onSecure(socket));
    tlsServer.on('tlsClientError', (error, socket) => {
      const pending = this.#pending.get(keyOf(socket));
      if (pending !== undefined) this.#dismiss(pending, tlsFailureReason(error));
    });
    return tlsServer;
  }

  #onAccepted(socket: Socket): void {
    socket.setNoDelay(true);
    // Every end of a socket is seen in 'close'.
    socket.on('error', () => {});
    // Without an address it was reset before it was accepted.
    if (socket.remotePort === undefined || this.#isTooFast()) {
      this.#core.countRefused(socket.remotePort === undefined ? 'closed' : 'too-fast');
      socket.destroy();
      return;
    }
    if (this.#pending.size >= PENDING_CONNECTIONS_MAX) {
      for (const oldest of this.#pending.values()) {
        this.#dismiss(oldest, 'too-many');
        break;
      }
    }
    const { handshakeTimeoutUs } = this.#core;
    const pending: Pending = {
      key: keyOf(socket),
      socket,
      acceptedUs: this.#core.nowUs(),
      timer: setTimeout(
        () => this.#dismiss(pending, 'handshake-timeout'),
        handshakeTimeoutUs / US_PER_MS,
      ),
      connection: undefined,
    };
    this.#pending.set(pending.key, pending);
    const isTls = this.#tlsServer !== undefined;
    socket.on('close', () => this.#dismiss(pending, isTls ? 'tls-incomplete' : 'closed'));
    if (this.#tlsServer === undefined) this.#attach(socket, pending);
    else this.#tlsServer.emit('connection', socket);
  }

  #isTooFast(): boolean {
    const second = Math.floor(this.#core.nowUs() / US_PER_S);
    if (second !== this.#second) this.#strangersInSecond = 0;
    this.#second = second;
    this.#strangersInSecond++;
    return this.#core.connected && this.#strangersInSecond > STRANGERS_PER_SECOND_MAX;
  }

  /** Ends a pending connection and counts why. Nothing when it is no longer pending. */
  #dismiss(pending: Pending, reason: string): void {
    clearTimeout(pending.timer);
    if (this.#pending.get(pending.key) !== pending) return;
    this.#pending.delete(pending.key);
    if (pending.connection === undefined) this.#core.countRefused(reason);
    else pending.connection.session.abandon(`dismissed: ${reason}`, reason);
    pending.socket.destroy();
  }

  #onSecure(socket: TLSSocket): void {
    const pending = this.#pending.get(keyOf(socket));
    const problem = this.#core.options.security.checkPeer(socket);
    if (pending !== undefined && problem === undefined) {
      this.#attach(socket, pending);
      return;
    }
    socket.on('error', () => {});
    socket.destroy();
    if (pending !== undefined) this.#dismiss(pending, 'untrusted-certificate');
  }

  /** The stranger is authenticated (or nobody asks for that); what is left is its hello. */
  #attach(socket: Socket, pending: Pending): void {
    clearTimeout(pending.timer);
    const usedUs = this.#core.nowUs() - pending.acceptedUs;
    const leftUs = Math.max(0, this.#core.handshakeTimeoutUs - usedUs);
    // A refused connection stays in the table until its socket is gone: that, too, is bounded.
    const connection = this.#core.attach(socket, leftUs, () => {
      this.#pending.delete(pending.key);
    });
    pending.connection = connection;
    connection.open();
  }
}

function keyOf(socket: Socket): string {
  return `${socket.remoteAddress} ${socket.remotePort}`;
}
