/**
 * The peer link in virtual time: the shipping session state machine and codec at both ends, and between them an
 * ordered byte stream with delay, stalls and cuts in the place of TCP and TLS. The secondary connects, again and again.
 *
 * @module
 */
import type { Prng } from '../base/prng.ts';
import { type Micros, NEVER } from '../base/time.ts';
import { LINK_FRAME_SECONDARY, type Role } from '../env/messages.ts';
import { VNET_HDR_BYTES } from '../limits.ts';
import { LinkCounters } from '../link/counters.ts';
import { SendBufferPool } from '../link/send-queue.ts';
import { admitNewcomer, type LinkEnd, LinkSession } from '../link/state.ts';
import type { EventQueue } from './event-queue.ts';
import type { Marks } from './marks.ts';
import type { SimFrame } from './net/packet.ts';
import type { ProxyNode } from './node.ts';

/** How the stream behaves. */
export interface PeerLinkOptions {
  readonly delayUsMin: Micros;
  readonly delayUsMax: Micros;
  readonly timeoutUs: Micros;
  readonly reconnectUs: Micros;
  readonly queueBytesMax: number;
}

const HANDSHAKE_TIMEOUT_US: Micros = 1_000_000;
/** The stream arrives in pieces of at most this, whatever was written. */
const PIECE_BYTES_MAX = 4_000;

interface End {
  readonly node: ProxyNode;
  readonly session: LinkSession;
  /** Pieces towards this end, in order. */
  readonly arriving: Uint8Array[];
  lastUs: Micros;
}

/** One connection: two sessions and the stream between them. */
interface Connection {
  readonly ends: readonly [End, End];
  isBroken: boolean;
}

type Direction = 'to-primary' | 'to-secondary';

export class PeerLink {
  readonly #queue: EventQueue;
  readonly #prng: Prng;
  readonly #options: PeerLinkOptions;
  readonly #follow: (node: ProxyNode, kind: number, frame: SimFrame) => void;
  readonly #primary: ProxyNode;
  readonly #secondary: ProxyNode;
  readonly #marks: Marks;
  readonly #counters = new LinkCounters();
  readonly #pool = new SendBufferPool();
  #connections: Connection[] = [];
  /** The ends at each node. */
  readonly #ends: Record<Role, End[]> = { primary: [], secondary: [] };
  /** Nothing arrives in this direction until then; NEVER = until healed. */
  readonly #stalledUntilUs: Record<Direction, Micros> = { 'to-primary': 0, 'to-secondary': 0 };
  #instance = 0;
  #isConnecting = false;
  /** The session through which each node sends: what its daemon calls the live connection. */
  readonly #live = new Map<ProxyNode, LinkSession>();
  /** When the stream last became unable to carry anything, for the honest-state checker; NEVER while it can. */
  brokenSinceUs: Micros = NEVER;
  /** When the primary last got bytes of its peer, however late. */
  primaryHeardUs: Micros = 0;
  isAllowed = true;

  constructor(
    queue: EventQueue,
    prng: Prng,
    options: PeerLinkOptions,
    primary: ProxyNode,
    secondary: ProxyNode,
    follow: (node: ProxyNode, kind: number, frame: SimFrame) => void,
    marks: Marks,
  ) {
    this.#marks = marks;
    this.#follow = follow;
    this.#queue = queue;
    this.#prng = prng;
    this.#options = options;
    this.#primary = primary;
    this.#secondary = secondary;
    for (const node of [primary, secondary]) this.#attach(node);
  }

  /** Does the node's own session say that the link is up? */
  isUp(node: ProxyNode): boolean {
    return this.#live.has(node);
  }

  /** Are both nodes connected to each other? */
  get isJoined(): boolean {
    return this.isUp(this.#primary) && this.isUp(this.#secondary);
  }

  #attach(node: ProxyNode): void {
    node.link = {
      sendFrame: (...frame) => {
        const session = this.#live.get(node);
        if (session !== undefined && !session.sendFrame(...frame)) {
          this.#marks.hit('peer link: queue full');
        }
      },
      sendMessage: (message) => this.#live.get(node)?.sendMessage(message),
      flush: () => this.#live.get(node)?.flush(),
      onTick: (nowUs) => {
        for (const end of [...this.#ends[node.role]]) end.session.onTick(nowUs);
      },
      nextDeadlineUs: () => {
        let next: Micros = NEVER;
        for (const end of this.#ends[node.role]) {
          next = Math.min(next, end.session.nextDeadlineUs());
        }
        return next;
      },
    };
  }

  /** The secondary tries to connect, now and whenever it has lost the link. */
  start(): void {
    this.#connectLater(0);
  }

  #connectLater(delayUs: Micros): void {
    if (this.#isConnecting) return;
    this.#isConnecting = true;
    this.#queue.after(delayUs, 'link-connect', () => {
      this.#isConnecting = false;
      const { isAlive, isHung } = this.#secondary;
      const hasSession = this.#ends.secondary.some((end) => !end.session.hasEnded);
      if (!isAlive || hasSession || !this.#primary.isAlive) return;
      const isReachable = this.#primary.isAlive && this.isAllowed && !this.#isStalled();
      if (isHung || this.#primary.isHung || !isReachable)
        this.#connectLater(this.#options.reconnectUs);
      else this.#connect();
    });
  }

  #isStalled(): boolean {
    const { nowUs } = this.#queue;
    return (
      this.#stalledUntilUs['to-primary'] > nowUs || this.#stalledUntilUs['to-secondary'] > nowUs
    );
  }

  #connect(): void {
    const connection: { ends: [End, End] | undefined; isBroken: boolean } = {
      ends: undefined,
      isBroken: false,
    };
    const primaryEnd = this.#makeEnd(this.#primary, 'listen', () => connection as Connection);
    const secondaryEnd = this.#makeEnd(this.#secondary, 'connect', () => connection as Connection);
    connection.ends = [primaryEnd, secondaryEnd];
    if (this.#instance > 2) this.#marks.hit('peer link made again');
    this.#connections.push(connection as Connection);
    this.#ends.primary.push(primaryEnd);
    this.#ends.secondary.push(secondaryEnd);
    this.brokenSinceUs = NEVER;
    primaryEnd.session.onOpen(this.#primary.nowUs);
    secondaryEnd.session.onOpen(this.#secondary.nowUs);
    this.#primary.reschedule();
    this.#secondary.reschedule();
  }

  #makeEnd(node: ProxyNode, side: 'listen' | 'connect', connection: () => Connection): End {
    this.#instance++;
    const { engine } = node;
    const session: LinkSession = new LinkSession(
      {
        side,
        nodeId: (side === 'listen' ? '1' : '2').repeat(32),
        instance: this.#instance,
        software: 'sim',
        timeoutUs: this.#options.timeoutUs,
        handshakeTimeoutUs: HANDSHAKE_TIMEOUT_US,
        queueBytesMax: this.#options.queueBytesMax,
      },
      {
        write: (bytes, onWritten) => this.#write(connection(), node, bytes, onWritten),
        localNode: () => node.engine,
        admit: (peer) => {
          const live = this.#live.get(node);
          const livePeer = live?.peer;
          if (live === undefined || livePeer === undefined) return undefined;
          const isSilent = live.isSilent(node.nowUs);
          if (admitNewcomer({ peer: livePeer, isSilent }, peer) === 'refuse') {
            return { reason: 'duplicate', text: 'another peer is connected' };
          }
          live.abandon('replaced', 'replaced by a new connection');
          return undefined;
        },
        onUp: (peer) => {
          // Of a process that has ended since.
          if (node.engine !== engine) return;
          this.#live.set(node, session);
          engine.onPeerUp(peer.epoch, node.nowUs);
          node.settle();
        },
        onEnd: (end) => this.#onEnd(connection(), node, session, end),
        onFrame: (kind, epoch, buffer, offset, length) => {
          if (node.engine !== engine) return;
          this.#follow(node, kind, buffer.bytes.subarray(offset - VNET_HDR_BYTES, offset + length));
          if (node.pairWaitUs > 0 && kind === LINK_FRAME_SECONDARY) {
            const frame = buffer.bytes.slice(offset - VNET_HDR_BYTES, offset + length);
            node.receiveOfPeer(frame, epoch);
          } else engine.onPeerFrame(kind, epoch, buffer, offset, length, node.nowUs);
        },
        onMessage: (message) => {
          if (node.engine !== engine) return;
          node.drainPeer();
          node.beforeMessage(message);
          engine.onPeerMessage(message, node.nowUs);
        },
        onBatchEnd: () => node.settle(),
      },
      this.#counters,
      this.#pool,
    );
    return { node, session, arriving: [], lastUs: 0 };
  }

  #onEnd(connection: Connection, node: ProxyNode, session: LinkSession, end: LinkEnd): void {
    if (this.#live.get(node) === session) this.#live.delete(node);
    const isCurrent =
      node.isAlive && this.#ends[node.role].some((item) => item.session === session);
    if (end.wasUp && isCurrent) {
      node.drainPeer();
      node.engine.onPeerDown(end.text, node.nowUs);
      node.settle();
    }
    // The socket is closed: the other end reads what was under way, then the end of the stream.
    const other = connection.ends.find((item) => item.node !== node)!;
    const delayUs = Math.max(other.lastUs - this.#queue.nowUs, 0) + this.#options.delayUsMax;
    const { nowUs } = this.#queue;
    const isNewest = this.#connections.at(-1) === connection;
    if (isNewest && !connection.isBroken && this.brokenSinceUs === NEVER && end.wasUp) {
      this.brokenSinceUs = nowUs;
    }
    this.#queue.after(delayUs, 'link-close', () => {
      const direction = this.#directionTo(other);
      const isStalled = this.#stalledUntilUs[direction] > this.#queue.nowUs;
      if (!connection.isBroken && !isStalled && this.#canHear(other)) {
        other.session.onClosed('the peer closed the connection');
        this.#forget(connection);
      }
    });
    if (node === this.#secondary) this.#connectLater(this.#options.reconnectUs);
  }

  #directionTo(end: End): Direction {
    return end.node === this.#primary ? 'to-primary' : 'to-secondary';
  }

  #canHear(end: End): boolean {
    return end.node.isAlive && !end.node.isHung;
  }

  #forget(connection: Connection): void {
    if (connection.ends.every((end) => end.session.hasEnded || !end.node.isAlive)) {
      this.#connections = this.#connections.filter((item) => item !== connection);
      const isOther = (end: End): boolean => !connection.ends.includes(end);
      this.#ends.primary = this.#ends.primary.filter(isOther);
      this.#ends.secondary = this.#ends.secondary.filter(isOther);
    }
  }

  #write(connection: Connection, from: ProxyNode, bytes: Uint8Array, onWritten: () => void): void {
    const end = connection.ends.find((item) => item.node !== from)!;
    const { delayUsMin, delayUsMax } = this.#options;
    const copy = bytes.slice();
    const atUs = Math.max(
      end.lastUs,
      this.#queue.nowUs + this.#prng.nextBetween(delayUsMin, delayUsMax),
    );
    end.lastUs = atUs;
    this.#queue.at(atUs, 'link', () => {
      end.arriving.push(copy);
      if (from.isAlive && !connection.isBroken) onWritten();
      this.#deliver(connection, end);
    });
  }

  /** Gives the end what has arrived, in pieces; waits while it hangs or the direction is stalled. */
  #deliver(connection: Connection, end: End): void {
    if (connection.isBroken || !end.node.isAlive || end.arriving.length === 0) return;
    const stalledUntilUs = this.#stalledUntilUs[this.#directionTo(end)];
    const until = Math.max(stalledUntilUs, end.node.isHung ? end.node.hungUntilUs : 0);
    if (until === NEVER) return;
    if (until > this.#queue.nowUs) {
      this.#queue.at(until, 'link', () => this.#deliver(connection, end));
      return;
    }
    const isHeard = end.node === this.#primary && !end.session.hasEnded;
    if (isHeard) this.primaryHeardUs = this.#queue.nowUs;
    for (const bytes of end.arriving.splice(0)) {
      let at = 0;
      while (at < bytes.length && !end.session.hasEnded && end.node.isAlive) {
        const count = this.#prng.nextBetween(1, PIECE_BYTES_MAX);
        end.session.onBytes(bytes.slice(at, at + count), end.node.nowUs);
        at += count;
      }
    }
    end.node.reschedule();
  }

  /** Nothing arrives in one direction for a while (a one-way partition that heals within TCP's patience). */
  stall(direction: Direction, durationUs: Micros): void {
    this.#marks.hit(`peer link stalls ${direction}`);
    this.#stalledUntilUs[direction] = this.#queue.nowUs + durationUs;
    if (this.brokenSinceUs === NEVER) this.brokenSinceUs = this.#queue.nowUs;
    this.#queue.after(durationUs, 'link-heals', () => this.#onHealed());
  }

  #onHealed(): void {
    if (this.#isStalled()) return;
    if (this.#connections.some((item) => !item.isBroken)) this.brokenSinceUs = NEVER;
    for (const connection of this.#connections) {
      for (const end of connection.ends) this.#deliver(connection, end);
    }
  }

  /**
   * The connection breaks. What was under way is lost.
   *
   * @param isNoticed do the ends hear of it (a reset), or only by silence
   */
  cut(isNoticed: boolean): void {
    if (this.brokenSinceUs === NEVER) this.brokenSinceUs = this.#queue.nowUs;
    for (const connection of this.#connections) {
      if (connection.isBroken) continue;
      connection.isBroken = true;
      this.#marks.hit(isNoticed ? 'peer link cut, noticed' : 'peer link cut, unnoticed');
      for (const end of connection.ends) {
        if (!isNoticed) continue;
        this.#queue.after(this.#prng.nextBelow(20_000), 'link-reset', () => {
          if (this.#canHear(end)) end.session.onClosed('connection lost: ECONNRESET');
        });
      }
    }
  }

  /**
   * A node's process or host has died.
   *
   * @param isHostDead nobody closes the socket: the other end learns it by silence
   */
  onNodeDead(node: ProxyNode, isHostDead: boolean): void {
    if (this.brokenSinceUs === NEVER) this.brokenSinceUs = this.#queue.nowUs;
    this.#live.delete(node);
    for (const connection of [...this.#connections]) {
      const other = connection.ends.find((end) => end.node !== node)!;
      if (isHostDead) {
        connection.isBroken = connection.isBroken || this.#prng.chance(0.7);
        continue;
      }
      const delayUs = Math.max(other.lastUs - this.#queue.nowUs, 0) + this.#options.delayUsMax;
      this.#queue.after(delayUs, 'link-close', () => {
        if (!connection.isBroken && this.#canHear(other)) {
          other.session.onClosed('the peer closed the connection');
        }
      });
    }
    const own = this.#connections.filter((item) => item.ends.some((end) => end.node === node));
    this.#queue.after(0, 'link-gone', () => {
      for (const connection of own) this.#forget(connection);
    });
  }

  /** A node's process runs again: nothing of its old connections exists. */
  onNodeStarted(node: ProxyNode): void {
    for (const connection of this.#connections) connection.isBroken = true;
    this.#ends[node.role] = [];
    if (node === this.#secondary) this.#connectLater(this.#options.reconnectUs);
  }
}
