/**
 * A peer link without a second node: `compare` and `rewrite` stand between sockets of QEMU, whose protocol has frames only, as a raw forward device has.
 * The peer is there while the port is connected; what a second node would answer is answered here.
 *
 * @module
 */
import type { FrameBuffer } from '../env/frame.ts';
import type { PeerHello, PeerLink, PeerLinkHandlers, PeerLinkStatus } from '../env/link.ts';
import type { LinkFrameKind, LinkMessage, Role } from '../env/messages.ts';
import type { Port } from '../env/port.ts';

export interface SocketPeerOptions {
  /** The role that is played. */
  readonly role: Role;
  /** Whose connection stands for the peer's. Another part starts, reads and closes it. */
  readonly port: Port;
  /** A frame for the peer; absent: it needs none. The memory is borrowed until the port's `flush`. */
  readonly send?: (
    buffer: FrameBuffer,
    offset: number,
    length: number,
    kind: LinkFrameKind,
  ) => void;
  /** The engine has begun a checkpoint, or ended one in whatever way. */
  readonly onCheckpoint?: (isUnderWay: boolean) => void;
}

export class SocketPeer implements PeerLink {
  readonly #options: SocketPeerOptions;
  #handlers: PeerLinkHandlers | undefined;
  #isUp = false;
  #ups = 0;
  #downs = 0;
  #lastDownReason = 'none';
  #isClosed = false;

  constructor(options: SocketPeerOptions) {
    this.#options = options;
    // The port is started before the link, and may be connected at once.
    options.port.onConnection?.((isConnected) => setImmediate(() => this.#onChange(isConnected)));
  }

  get connected(): boolean {
    return this.#isUp;
  }

  start(handlers: PeerLinkHandlers): Promise<void> {
    this.#handlers = handlers;
    if (this.#options.port.onConnection === undefined) setImmediate(() => this.#onChange(true));
    else if (this.#isUp) setImmediate(() => this.#tellUp());
    return Promise.resolve();
  }

  sendFrame(
    kind: LinkFrameKind,
    _epoch: number,
    buffer: FrameBuffer,
    offset: number,
    length: number,
  ): boolean {
    this.#options.send?.(buffer, offset, length, kind);
    return true;
  }

  sendMessage(message: LinkMessage): void {
    const { onCheckpoint } = this.#options;
    switch (message.type) {
      case 'checkpoint-begin':
        onCheckpoint?.(true);
        this.#answer({ type: 'checkpoint-began', epoch: message.epoch });
        return;
      case 'checkpoint-commit':
        onCheckpoint?.(false);
        this.#answer({ type: 'checkpoint-committed', epoch: message.epoch });
        return;
      case 'checkpoint-abort':
      case 'reset':
        onCheckpoint?.(false);
        return;
      default: // progress, and what a secondary tells its primary: nobody is there who would use it
    }
  }

  flush(): void {}

  status(): PeerLinkStatus {
    const { name, counters } = this.#options.port;
    return {
      connected: this.#isUp,
      lastDownReason: this.#lastDownReason,
      security: 'insecure',
      remote: this.#isUp ? name : '',
      peer: undefined,
      rttUs: 0,
      queueBytes: 0,
      sentBytes: counters.sentBytes,
      sentFrames: counters.sentFrames,
      sentMessages: 0,
      receivedBytes: counters.receivedBytes,
      receivedFrames: counters.receivedFrames,
      receivedMessages: 0,
      dropped: counters.dropped,
      refused: {},
      ups: this.#ups,
      downs: this.#downs === 0 ? {} : { closed: this.#downs },
    };
  }

  close(): Promise<void> {
    this.#isClosed = true;
    return Promise.resolve();
  }

  #onChange(isConnected: boolean): void {
    if (this.#isClosed || this.#isUp === isConnected) return;
    this.#isUp = isConnected;
    if (isConnected) {
      this.#tellUp();
      return;
    }
    this.#downs++;
    this.#lastDownReason = 'closed';
    this.#options.onCheckpoint?.(false);
    this.#handlers?.onDown('closed');
  }

  #tellUp(): void {
    if (this.#isClosed || this.#handlers === undefined) return;
    this.#ups++;
    const { role } = this.#options;
    const hello: PeerHello = {
      role,
      nodeId: '0'.repeat(32),
      instance: this.#ups,
      epoch: 0,
      state: 'unprotected',
      software: '',
      heartbeatUs: 0,
      timeoutUs: 0,
    };
    this.#handlers.onUp(hello);
  }

  /** When the engine has returned; it is inside of a call now. */
  #answer(message: LinkMessage): void {
    queueMicrotask(() => {
      if (this.#isClosed || !this.#isUp) return;
      this.#handlers?.onMessage(message);
      this.#handlers?.onBatchEnd();
    });
  }
}
