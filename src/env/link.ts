/**
 * The peer link as the daemon sees it: an ordered, authenticated stream of frames and control
 * messages between the primary and the secondary node. The listening and the connecting end offer
 * the same interface; reconnecting, heartbeats and refusing strangers are the link's own business.
 *
 * @module
 */
import type { Micros } from '../base/time.ts';
import type { FrameBuffer } from './frame.ts';
import type { LinkFrameKind, LinkMessage, NodeState, Role } from './messages.ts';

/** What a node says about itself when the link comes up. */
export interface PeerHello {
  readonly role: Role;
  /** 32 hexadecimal digits, random per installation or per process. */
  readonly nodeId: string;
  /** Grows with every connection that this node id opens or accepts (exact to 2^53). */
  readonly instance: number;
  /** The engine's epoch and state at the moment of the hello. */
  readonly epoch: number;
  readonly state: NodeState;
  /** Version of the program, for people; what must match is the protocol's version. */
  readonly software: string;
  /** The node sends a heartbeat at least this often ... */
  readonly heartbeatUs: Micros;
  /** ... and calls its peer lost when it received nothing for this long. */
  readonly timeoutUs: Micros;
}

/**
 * What the link tells the daemon. Calls are never nested and never come synchronously out of `start`,
 * `sendFrame`, `sendMessage` or `flush`. Order: `onUp`, any number of batches, `onDown`, `onUp`, ...
 */
export interface PeerLinkHandlers {
  /** Both hellos were accepted. From here to `onDown` everything that is sent reaches the peer in order. */
  onUp(peer: PeerHello): void;
  /**
   * The link is gone: readable reason, e.g. `silent for 1000 ms`, `goodbye: shutting down`. Not within a
   * batch; no `onBatchEnd` follows.
   */
  onDown(reason: string): void;
  /**
   * A frame, its virtio-net header directly before it. The memory is lent until `onBatchEnd` returns
   * and may be changed in place.
   */
  onFrame(
    kind: LinkFrameKind,
    epoch: number,
    buffer: FrameBuffer,
    offset: number,
    length: number,
  ): void;
  onMessage(message: LinkMessage): void;
  /**
   * Everything that arrived together was handed over. The place for `engine.flush` and for flushing
   * the ports: afterwards the lent memory is used again.
   */
  onBatchEnd(): void;
}

/** The link's own part of `status`. */
export interface PeerLinkStatus {
  readonly connected: boolean;
  /** `none` until the first connection; otherwise why the link last went down (also while it is up). */
  readonly lastDownReason: string;
  /** Security of the link: `tls-psk`, `tls-certificate` or `insecure`. */
  readonly security: string;
  /** Remote address and port, empty while down. */
  readonly remote: string;
  readonly peer: PeerHello | undefined;
  /** Smoothed round-trip time measured by heartbeats; 0 until known. */
  readonly rttUs: Micros;
  /** Bytes waiting to be written to the socket. */
  readonly queueBytes: number;
  readonly sentBytes: number;
  readonly sentFrames: number;
  readonly sentMessages: number;
  readonly receivedBytes: number;
  readonly receivedFrames: number;
  readonly receivedMessages: number;
  /** Frames and messages not sent, by reason: `queue-full`, `too-long`, `not-connected`. */
  readonly dropped: Record<string, number>;
  /** Connections that were refused or that failed, by reason (`wrong-key`, `garbage`, `duplicate`, ...). */
  readonly refused: Record<string, number>;
  /** How often the link came up, and how often it went down, by reason. */
  readonly ups: number;
  readonly downs: Record<string, number>;
}

/** One end of the link. */
export interface PeerLink {
  readonly connected: boolean;
  /**
   * Listening end: resolves when the port is bound. Connecting end: resolves at once, and connects
   * (again and again, with back-off) until `close`.
   *
   * @throws ColoError `COLO_ERR_PEER_LISTEN` when the address cannot be bound
   */
  start(handlers: PeerLinkHandlers): Promise<void>;
  /**
   * Appends a frame and the VNET_HDR_BYTES before it to the send queue; the memory is copied.
   * False when it was dropped (link down, queue full, too long); each is counted.
   */
  sendFrame(
    kind: LinkFrameKind,
    epoch: number,
    buffer: FrameBuffer,
    offset: number,
    length: number,
  ): boolean;
  /** Appends a control message; it is never dropped while the link is up. While it is down: counted, dropped. */
  sendMessage(message: LinkMessage): void;
  /** Gives everything appended since the last flush to the socket in one write. */
  flush(): void;
  status(): PeerLinkStatus;
  /** Says goodbye, waits (at most one second) until it is written, and ends; no handler is called any more. */
  close(reason: string): Promise<void>;
}

/** What the engine's runner supplies for every hello. */
export interface LocalNode {
  readonly role: Role;
  readonly epoch: number;
  readonly state: NodeState;
}
