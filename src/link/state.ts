/**
 * One connection of the peer link as a pure state machine: bytes and ticks go in, bytes and calls come
 * out. Time is an argument; the simulator runs the same code as the daemon.
 *
 *     hello --hello or welcome accepted--> up --silence, goodbye, close, bad bytes--> ended
 *       |                                                                              ^
 *       +------------- refused, bad bytes, close, handshake timeout -------------------+
 *
 * The connecting end speaks first, so that a stranger who connects hears nothing. The connecting end is up once it has got the
 * welcome, the listening end once it has heard of that: it may release what it held for a lost peer, and until then the peer
 * may still take over.
 *
 * @module
 */
import { assert } from '../base/assert.ts';
import { type Micros, NEVER, US_PER_MS } from '../base/time.ts';
import { LinkDecoder } from '../codec/link-decode.ts';
import {
  encodeFrame,
  encodeGoodbye,
  encodeHeartbeat,
  encodeHello,
  encodeMessage,
  encodeRefuse,
  LINK_CONTROL_BYTES_MAX,
  linkMessageBytesMax,
} from '../codec/link-encode.ts';
import {
  LINK_FRAME_HEADROOM,
  LINK_PROGRESS_ENTRIES_MAX,
  LINK_VERSION,
  type LinkHeartbeat,
  type LinkRefusal,
  type LinkRefusalReason,
} from '../codec/link-msg.ts';
import type { FrameBuffer } from '../env/frame.ts';
import type { LocalNode, PeerHello } from '../env/link.ts';
import type { LinkFrameKind, LinkMessage } from '../env/messages.ts';
import { FRAME_BYTES_MAX } from '../limits.ts';
import { count, type LinkCounters } from './counters.ts';
import { LinkSendQueue, type LinkWrite, type SendBufferPool } from './send-queue.ts';

/** Heartbeats in one peer timeout: three may be lost or late before a peer is called lost. */
const HEARTBEATS_PER_TIMEOUT = 4;

/**
 * A peer that sends but takes nothing for this many timeouts is lost. More than one, because a slow
 * network takes a whole send buffer only now and then.
 */
const UNREAD_TIMEOUTS = 4;

/** Control messages may exceed the queue's limit up to this factor; then the connection is given up. */
const QUEUE_OVERRUN_FACTOR = 2;

/** What a connection is and may do. */
export interface LinkSessionConfig {
  readonly side: 'listen' | 'connect';
  readonly nodeId: string;
  readonly instance: number;
  readonly software: string;
  /** The peer is lost after this much silence. */
  readonly timeoutUs: Micros;
  /** From `onOpen` to the peer's hello. */
  readonly handshakeTimeoutUs: Micros;
  /** Beyond it frames are dropped. */
  readonly queueBytesMax: number;
}

/** Why and how a connection ended; `code` is what is counted. */
export interface LinkEnd {
  readonly code: string;
  readonly text: string;
  readonly wasUp: boolean;
  /** Last words are on their way: close when they are written. Otherwise at once. */
  readonly isGraceful: boolean;
}

/** What a connection does to the world. Called from `onOpen`, `onBytes`, `onTick`, `onClosed` and `goodbye` only, except `write`. */
export interface LinkSessionOutput {
  readonly write: LinkWrite;
  /** For the hello. */
  localNode(): LocalNode;
  /** Listening end: may this peer come up? The refusal, or `undefined` for yes; an older connection has then been ended. */
  admit(peer: PeerHello): Omit<LinkRefusal, 'version'> | undefined;
  onUp(peer: PeerHello): void;
  /** The last call. */
  onEnd(end: LinkEnd): void;
  /** Lent until `onBatchEnd` returns. */
  onFrame(
    kind: LinkFrameKind,
    epoch: number,
    buffer: FrameBuffer,
    offset: number,
    length: number,
  ): void;
  onMessage(message: LinkMessage): void;
  onBatchEnd(): void;
}

type Phase = 'new' | 'hello' | 'up' | 'ended';

/** See the module. Methods may not be called from within an output, except `send...`, `flush`, `goodbye` and `abandon`. */
export class LinkSession {
  readonly #config: LinkSessionConfig;
  readonly #output: LinkSessionOutput;
  readonly #counters: LinkCounters;
  readonly #queue: LinkSendQueue;
  readonly #decoder: LinkDecoder;
  #phase: Phase = 'new';
  /** Listening end: the welcome is sent, and nothing has shown that it has come. */
  #isUnconfirmed = false;
  /** The hello says that this node has failed over. */
  #hasSaidFailover = false;
  #nowUs: Micros = 0;
  #openedUs: Micros = 0;
  #peer: PeerHello | undefined;
  #heartbeatUs: Micros = 0;
  #heartbeatDueUs: Micros = 0;
  #receivedUs: Micros = 0;
  #tickedUs: Micros = 0;
  /** Has this silence been excused by a stall of our own? */
  #isExcused = false;
  #progressUs: Micros = 0;
  #progressBytes = 0;
  #isOverrun = false;
  /** `sentUs` of the peer's last heartbeat, and when it came. */
  #echoUs: Micros = 0;
  #echoReceivedUs: Micros = 0;
  #rttUs: Micros = 0;

  constructor(
    config: LinkSessionConfig,
    output: LinkSessionOutput,
    counters: LinkCounters,
    pool: SendBufferPool,
  ) {
    this.#config = config;
    this.#output = output;
    this.#counters = counters;
    this.#queue = new LinkSendQueue(pool, output.write);
    this.#decoder = new LinkDecoder({
      onHello: (hello, isAnswer) => this.#onHello(hello, isAnswer),
      onRefuse: (refusal) => this.#onRefuse(refusal),
      onHeartbeat: (heartbeat) => {
        if (this.#confirm()) this.#onHeartbeat(heartbeat);
      },
      onGoodbye: (reason) => {
        if (!this.#confirm()) return;
        // What came before it in the same chunk was lent only for this batch.
        if (this.#phase === 'up') output.onBatchEnd();
        this.#end('goodbye', `goodbye: ${reason}`);
      },
      onFrame: (kind, epoch, buffer, offset, length) => {
        if (!this.#confirm()) return;
        counters.receivedFrames++;
        output.onFrame(kind, epoch, buffer, offset, length);
      },
      onMessage: (message) => {
        if (!this.#confirm()) return;
        counters.receivedMessages++;
        output.onMessage(message);
      },
      onBatchEnd: () => {
        if (this.#phase === 'up' && !this.#isUnconfirmed) output.onBatchEnd();
      },
    });
  }

  /** The peer's hello while the connection is up. */
  get peer(): PeerHello | undefined {
    return this.#phase === 'up' && !this.#isUnconfirmed ? this.#peer : undefined;
  }

  /** Smoothed as TCP does (RFC 6298 §2, alpha 1/8); 0 until the first echo. */
  get rttUs(): Micros {
    return this.#rttUs;
  }

  get queueBytes(): number {
    return this.#queue.queuedBytes;
  }

  /** The transport (with its own authentication) is there. */
  onOpen(nowUs: Micros): void {
    assert(this.#phase === 'new', 'a connection opens once');
    this.#phase = 'hello';
    this.#nowUs = nowUs;
    this.#openedUs = nowUs;
    if (this.#config.side === 'connect') this.#sendHello(false);
  }

  /** Bytes from the transport, borrowed until it returns. */
  onBytes(bytes: Uint8Array, nowUs: Micros): void {
    if (this.#phase !== 'hello' && this.#phase !== 'up') return;
    this.#nowUs = nowUs;
    this.#receivedUs = nowUs;
    this.#isExcused = false;
    this.#counters.receivedBytes += bytes.length;
    const error = this.#decoder.push(bytes);
    if (error === undefined || this.hasEnded) return;
    if (error.error === 'version') {
      const text = `this node speaks link version ${LINK_VERSION}, its peer version ${error.version}`;
      this.#refuse('version', text);
    } else {
      this.#end(error.error === 'not-colo' ? 'garbage' : error.error, error.text);
    }
  }

  get hasEnded(): boolean {
    return this.#phase === 'ended';
  }

  /** The transport was closed or failed; `text` says how. */
  onClosed(text: string): void {
    this.#end('closed', text);
  }

  /** Does what is due; wanted at `nextDeadlineUs`, harmless at any other time. */
  onTick(nowUs: Micros): void {
    this.#nowUs = nowUs;
    if (this.#phase === 'hello') {
      if (nowUs >= this.#openedUs + this.#config.handshakeTimeoutUs) {
        this.#end('handshake-timeout', 'the peer did not say hello in time');
      }
      return;
    }
    if (this.#phase !== 'up') return;
    this.#excuseOwnStall(nowUs);
    const { timeoutUs } = this.#config;
    if (nowUs >= this.#receivedUs + timeoutUs) {
      this.#end('silent', `silent for ${Math.round(timeoutUs / US_PER_MS)} ms`);
    } else if (this.#isOverrun) {
      this.#end('queue-overrun', 'the peer takes its control messages too slowly');
    } else if (this.#isUnread(nowUs)) {
      this.#end('not-reading', 'the peer sends but takes nothing');
    } else if (nowUs >= this.#heartbeatDueUs) {
      this.#sendHeartbeat(nowUs);
    }
  }

  /** When `onTick` is wanted next. */
  nextDeadlineUs(): Micros {
    if (this.#phase === 'hello') return this.#openedUs + this.#config.handshakeTimeoutUs;
    if (this.#phase !== 'up') return NEVER;
    return Math.min(this.#heartbeatDueUs, this.#receivedUs + this.#config.timeoutUs);
  }

  /** Is the peer silent for so long that a newcomer may take its place? Two heartbeats are missing. */
  isSilent(nowUs: Micros): boolean {
    return this.#phase === 'up' && nowUs > this.#receivedUs + 2 * this.#heartbeatUs;
  }

  /** See `PeerLink.sendFrame`. */
  sendFrame(
    kind: LinkFrameKind,
    epoch: number,
    buffer: FrameBuffer,
    offset: number,
    length: number,
  ): boolean {
    const bytes = LINK_FRAME_HEADROOM + length;
    if (this.#phase !== 'up') return this.#drop('not-connected');
    if (length > FRAME_BYTES_MAX) return this.#drop('too-long');
    if (this.#queue.queuedBytes + bytes > this.#config.queueBytesMax)
      return this.#drop('queue-full');
    const room = this.#queue.reserve(bytes);
    this.#commit(encodeFrame(room.buffer, room.offset, kind, epoch, buffer, offset, length));
    this.#counters.sentFrames++;
    return true;
  }

  /** See `PeerLink.sendMessage`. */
  sendMessage(message: LinkMessage): void {
    if (this.#phase !== 'up') {
      this.#drop('not-connected');
    } else if (this.#queue.queuedBytes > QUEUE_OVERRUN_FACTOR * this.#config.queueBytesMax) {
      // Nothing may be missing from the order of control messages, so the connection as a whole goes, at the next tick.
      this.#isOverrun = true;
      this.#drop('overrun');
    } else if (message.type === 'progress') {
      for (let start = 0; start < message.entries.length; start += LINK_PROGRESS_ENTRIES_MAX) {
        const entries = message.entries.slice(start, start + LINK_PROGRESS_ENTRIES_MAX);
        this.#appendMessage({ type: 'progress', entries });
      }
    } else this.#appendMessage(message);
  }

  /** See `PeerLink.flush`. */
  flush(): void {
    this.#queue.flush();
  }

  /** Ends the connection from this side; the peer is told why. */
  goodbye(reason: string): void {
    if (this.#phase === 'up') {
      const room = this.#queue.reserve(LINK_CONTROL_BYTES_MAX);
      this.#commit(encodeGoodbye(room.buffer, room.offset, reason));
      this.#queue.flush();
    }
    this.#end('local', reason, true);
  }

  /** Ends the connection at once and without a word, for a reason outside of it. */
  abandon(text: string, code = 'replaced'): void {
    this.#end(code, text);
  }

  #drop(name: string): false {
    count(this.#counters.dropped, name);
    return false;
  }

  #commit(bytes: number): void {
    this.#queue.commit(bytes);
    this.#counters.sentBytes += bytes;
  }

  #appendMessage(message: LinkMessage): void {
    const room = this.#queue.reserve(linkMessageBytesMax(message));
    this.#commit(encodeMessage(room.buffer, room.offset, message));
    this.#counters.sentMessages++;
  }

  #end(code: string, text: string, isGraceful = false): void {
    if (this.#phase === 'ended') return;
    const wasUp = this.#phase === 'up' && !this.#isUnconfirmed;
    this.#phase = 'ended';
    this.#decoder.stop();
    // Graceful: the last words are still to be written.
    if (!isGraceful) this.#queue.clear();
    count(wasUp ? this.#counters.downs : this.#counters.refused, code);
    this.#output.onEnd({ code, text, wasUp, isGraceful });
  }

  #sendHello(isAnswer: boolean): void {
    const { role, epoch, state } = this.#output.localNode();
    this.#hasSaidFailover = state === 'failed-over';
    const { nodeId, instance, software, timeoutUs } = this.#config;
    const heartbeatUs = Math.floor(timeoutUs / HEARTBEATS_PER_TIMEOUT);
    const hello = { role, nodeId, instance, epoch, state, software, heartbeatUs, timeoutUs };
    const room = this.#queue.reserve(LINK_CONTROL_BYTES_MAX);
    this.#commit(encodeHello(room.buffer, room.offset, hello, isAnswer));
    this.#queue.flush();
  }

  /** Tells the peer why not, and ends. */
  #refuse(reason: LinkRefusalReason, text: string): void {
    const refusal = { reason, version: LINK_VERSION, text };
    const room = this.#queue.reserve(LINK_CONTROL_BYTES_MAX);
    this.#commit(encodeRefuse(room.buffer, room.offset, refusal));
    this.#queue.flush();
    this.#end(reason, text, true);
  }

  #onHello(hello: PeerHello, isAnswer: boolean): void {
    const { side, timeoutUs } = this.#config;
    if (isAnswer !== (side === 'connect')) {
      this.#end('garbage', isAnswer ? 'welcome to a listening node' : 'hello to a connecting node');
      return;
    }
    if (hello.role === this.#output.localNode().role) {
      this.#refuse('role', `both nodes are ${hello.role}`);
      return;
    }
    if (side === 'listen') {
      if (!this.#isAdmitted(hello)) return;
      this.#sendHello(true);
      this.#isUnconfirmed = true;
    } else if (!this.#hasSaidFailover && this.#output.localNode().state === 'failed-over') {
      this.#end('stale', 'this node has taken over since its hello');
      return;
    }
    this.#phase = 'up';
    this.#peer = hello;
    this.#decoder.open();
    // The end with the shorter timeout sets how often both send.
    this.#heartbeatUs = Math.floor(Math.min(timeoutUs, hello.timeoutUs) / HEARTBEATS_PER_TIMEOUT);
    this.#heartbeatDueUs = this.#nowUs;
    this.#tickedUs = this.#nowUs;
    this.#progressUs = this.#nowUs;
    if (this.#isUnconfirmed) return;
    this.#counters.ups++;
    this.#output.onUp(hello);
    if (this.hasEnded) return;
    // The answer for which the listening end waits; the first that measures is due as well.
    this.#sendHeartbeat(this.#nowUs);
    this.#heartbeatDueUs = this.#nowUs;
  }

  /** Something has come after the welcome. False: the connection has ended, as when another one has come up meanwhile. */
  #confirm(): boolean {
    const peer = this.#peer;
    if (!this.#isUnconfirmed || peer === undefined) return true;
    if (!this.#isAdmitted(peer)) return false;
    this.#isUnconfirmed = false;
    this.#counters.ups++;
    this.#output.onUp(peer);
    return !this.hasEnded;
  }

  #isAdmitted(hello: PeerHello): boolean {
    const refusal = this.#output.admit(hello);
    if (refusal !== undefined) this.#refuse(refusal.reason, refusal.text);
    return refusal === undefined;
  }

  #onRefuse(refusal: LinkRefusal): void {
    this.#end(`peer-refused-${refusal.reason}`, `refused by the peer: ${refusal.text}`);
  }

  #sendHeartbeat(nowUs: Micros): void {
    this.#heartbeatDueUs = nowUs + this.#heartbeatUs;
    const echoDelayUs = this.#echoUs === 0 ? 0 : nowUs - this.#echoReceivedUs;
    const heartbeat = { sentUs: nowUs, echoUs: this.#echoUs, echoDelayUs };
    const room = this.#queue.reserve(LINK_CONTROL_BYTES_MAX);
    this.#commit(encodeHeartbeat(room.buffer, room.offset, heartbeat));
    this.#queue.flush();
  }

  #onHeartbeat(heartbeat: LinkHeartbeat): void {
    this.#echoUs = heartbeat.sentUs;
    this.#echoReceivedUs = this.#nowUs;
    if (heartbeat.echoUs === 0) return;
    const rttUs = this.#nowUs - heartbeat.echoUs - heartbeat.echoDelayUs;
    // Outside of this the peer echoes what we never sent.
    if (rttUs < 0 || rttUs > UNREAD_TIMEOUTS * this.#config.timeoutUs) return;
    this.#rttUs = this.#rttUs === 0 ? rttUs : Math.round((7 * this.#rttUs + rttUs) / 8);
  }

  /**
   * After a stall of this process (SIGSTOP, a paused host) the timer runs before the socket is served, and
   * the peer looks silent although its bytes wait. Once per silence that is excused for one heartbeat.
   */
  #excuseOwnStall(nowUs: Micros): void {
    const isStalled = nowUs - this.#tickedUs > 2 * this.#heartbeatUs;
    this.#tickedUs = nowUs;
    if (!isStalled || this.#isExcused) return;
    this.#isExcused = true;
    const graceUs = nowUs + this.#heartbeatUs;
    const { timeoutUs } = this.#config;
    this.#receivedUs = Math.max(this.#receivedUs, graceUs - timeoutUs);
    this.#progressUs = Math.max(this.#progressUs, graceUs - UNREAD_TIMEOUTS * timeoutUs);
  }

  /** Has the transport taken nothing of what waits for UNREAD_TIMEOUTS? Looked at once a tick. */
  #isUnread(nowUs: Micros): boolean {
    const { queuedBytes, writtenBytes } = this.#queue;
    if (queuedBytes === 0 || writtenBytes !== this.#progressBytes) {
      this.#progressBytes = writtenBytes;
      this.#progressUs = nowUs;
    }
    return nowUs >= this.#progressUs + UNREAD_TIMEOUTS * this.#config.timeoutUs;
  }
}

/**
 * What the listening end does with a peer that says hello while another connection is up: an
 * attacker with the key could do anything; this is about our own peer coming back before we noticed that it was gone.
 *
 * @param live the hello of the connection that is up, and whether it is silent
 */
export function admitNewcomer(
  live: { readonly peer: PeerHello; readonly isSilent: boolean } | undefined,
  newcomer: PeerHello,
): 'admit' | 'replace' | 'refuse' {
  if (live === undefined) return 'admit';
  if (live.isSilent) return 'replace';
  const isSameNode = newcomer.nodeId === live.peer.nodeId;
  return isSameNode && newcomer.instance > live.peer.instance ? 'replace' : 'refuse';
}
