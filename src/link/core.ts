/**
 * What both ends of the peer link have in common: the live connection, the counters, sending, and the
 * order of the handlers. How connections come about is in `listen.ts` and `connect.ts`.
 *
 * @module
 */
import { randomBytes } from 'node:crypto';
import type { Socket } from 'node:net';
import { performance } from 'node:perf_hooks';
import { type Micros, US_PER_MS } from '../base/time.ts';
import { LINK_TIMEOUT_US_MAX, LINK_TIMEOUT_US_MIN, type LinkRefusal } from '../codec/link-msg.ts';
import type { FrameBuffer } from '../env/frame.ts';
import type { LocalNode, PeerHello, PeerLinkHandlers, PeerLinkStatus } from '../env/link.ts';
import type { LinkFrameKind, LinkMessage } from '../env/messages.ts';
import { LINK_QUEUE_BYTES_MAX, PEER_TIMEOUT_US } from '../limits.ts';
import { type ConnectionContext, LinkConnection } from './connection.ts';
import { count, LinkCounters } from './counters.ts';
import type { LinkSecurity } from './security.ts';
import { SendBufferPool } from './send-queue.ts';
import { admitNewcomer } from './state.ts';

/** From the accepted (or attempted) connection to the peer's hello, TLS included. */
export const HANDSHAKE_TIMEOUT_US: Micros = 2_000_000;

/** What both ends of a link are made from. */
export interface LinkOptions {
  readonly host: string;
  readonly port: number;
  readonly security: LinkSecurity;
  /** Asked at every hello; an engine fits. Its role does not change. */
  readonly localNode: () => LocalNode;
  /** Version of the program, for the peer's status. */
  readonly software: string;
  /** Silence after which the peer is lost. Default PEER_TIMEOUT_US. */
  readonly timeoutUs?: Micros;
  /** Default HANDSHAKE_TIMEOUT_US. */
  readonly handshakeTimeoutUs?: Micros;
  /** Default LINK_QUEUE_BYTES_MAX. */
  readonly queueBytesMax?: number;
  /** 32 lower-case hexadecimal digits. Default: random for each process. */
  readonly nodeId?: string;
  /** Monotonic clock. Default: that of the process. */
  readonly nowUs?: () => Micros;
}

/** Shared half of both ends. */
export class LinkCore {
  readonly options: LinkOptions;
  readonly counters = new LinkCounters();
  readonly timeoutUs: Micros;
  readonly handshakeTimeoutUs: Micros;
  readonly #side: 'listen' | 'connect';
  readonly #nodeId: string;
  readonly #context: ConnectionContext;
  #handlers: PeerLinkHandlers | undefined;
  #live: LinkConnection | undefined;
  #lastInstance = 0;
  #lastDownReason = 'none';
  #isClosing = false;

  constructor(side: 'listen' | 'connect', options: LinkOptions) {
    this.options = options;
    this.timeoutUs = options.timeoutUs ?? PEER_TIMEOUT_US;
    this.handshakeTimeoutUs = options.handshakeTimeoutUs ?? HANDSHAKE_TIMEOUT_US;
    this.#side = side;
    this.#nodeId = options.nodeId ?? randomBytes(16).toString('hex');
    if (!/^[0-9a-f]{32}$/.test(this.#nodeId)) {
      throw new RangeError('nodeId: 32 lower-case hexadecimal digits are needed');
    }
    if (!(this.timeoutUs >= LINK_TIMEOUT_US_MIN && this.timeoutUs <= LINK_TIMEOUT_US_MAX)) {
      throw new RangeError(
        `timeoutUs: ${LINK_TIMEOUT_US_MIN} to ${LINK_TIMEOUT_US_MAX} microseconds are possible`,
      );
    }
    const nowUs = options.nowUs ?? (() => Math.round(performance.now() * US_PER_MS));
    this.#context = { nowUs, counters: this.counters, pool: new SendBufferPool() };
  }

  get isClosing(): boolean {
    return this.#isClosing;
  }

  get connected(): boolean {
    return this.#live !== undefined;
  }

  nowUs(): Micros {
    return this.#context.nowUs();
  }

  start(handlers: PeerLinkHandlers): void {
    this.#handlers = handlers;
  }

  /** Why the last attempt or connection failed; shown in the status. */
  setDownReason(reason: string): void {
    this.#lastDownReason = reason;
  }

  /** Counts a connection that never got as far as a session. */
  countRefused(reason: string): void {
    count(this.counters.refused, reason);
  }

  /**
   * Gives a connected socket to a new session; `open` starts it.
   *
   * @param handshakeTimeoutUs what is left of it
   * @param onUp called before the handlers' `onUp`
   */
  attach(socket: Socket, handshakeTimeoutUs: Micros, onUp: () => void): LinkConnection {
    const config = {
      side: this.#side,
      nodeId: this.#nodeId,
      instance: this.#nextInstance(),
      software: this.options.software,
      timeoutUs: this.timeoutUs,
      handshakeTimeoutUs,
      queueBytesMax: this.options.queueBytesMax ?? LINK_QUEUE_BYTES_MAX,
    };
    const handlers = this.#handlers;
    if (handlers === undefined) throw new TypeError('start() comes first');
    const connection: LinkConnection = new LinkConnection(socket, config, this.#context, {
      localNode: this.options.localNode,
      admit: (peer) => this.#admit(peer),
      onUp: (peer) => {
        this.#live = connection;
        onUp();
        handlers.onUp(peer);
      },
      onEnd: (end) => {
        if (this.#live === connection) this.#live = undefined;
        this.#lastDownReason = end.text;
        if (end.wasUp && !this.#isClosing) handlers.onDown(end.text);
      },
      onFrame: handlers.onFrame.bind(handlers),
      onMessage: handlers.onMessage.bind(handlers),
      onBatchEnd: handlers.onBatchEnd.bind(handlers),
    });
    return connection;
  }

  sendFrame(
    kind: LinkFrameKind,
    epoch: number,
    buffer: FrameBuffer,
    offset: number,
    length: number,
  ): boolean {
    if (this.#live !== undefined) {
      return this.#live.session.sendFrame(kind, epoch, buffer, offset, length);
    }
    count(this.counters.dropped, 'not-connected');
    return false;
  }

  sendMessage(message: LinkMessage): void {
    if (this.#live === undefined) count(this.counters.dropped, 'not-connected');
    else this.#live.session.sendMessage(message);
  }

  flush(): void {
    this.#live?.session.flush();
  }

  status(): PeerLinkStatus {
    const session = this.#live?.session;
    return {
      connected: session !== undefined,
      lastDownReason: this.#lastDownReason,
      security: this.options.security.name,
      remote: this.#live?.remote ?? '',
      peer: session?.peer,
      rttUs: session?.rttUs ?? 0,
      queueBytes: session?.queueBytes ?? 0,
      ...this.counters,
      dropped: { ...this.counters.dropped },
      refused: { ...this.counters.refused },
      downs: { ...this.counters.downs },
    };
  }

  /** From here on no handler is called; the live connection says goodbye. */
  close(reason: string): void {
    this.#isClosing = true;
    this.#live?.session.goodbye(reason);
  }

  /** Strictly growing in this process, and from one process of this host to the next. */
  #nextInstance(): number {
    this.#lastInstance = Math.max(this.#lastInstance + 1, Date.now() * US_PER_MS);
    return this.#lastInstance;
  }

  /** The listening end's policy for a second connection; see `admitNewcomer`. */
  #admit(peer: PeerHello): Omit<LinkRefusal, 'version'> | undefined {
    if (this.#isClosing) return { reason: 'closing', text: 'this node is shutting down' };
    const session = this.#live?.session;
    const livePeer = session?.peer;
    if (session === undefined || livePeer === undefined) return undefined;
    const isSilent = session.isSilent(this.nowUs());
    if (admitNewcomer({ peer: livePeer, isSilent }, peer) === 'refuse') {
      return { reason: 'duplicate', text: 'another peer is connected' };
    }
    session.abandon(`replaced by a new connection of ${peer.role}`);
    return undefined;
  }
}
