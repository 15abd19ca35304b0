/**
 * What the client of one pair of ports may be told through several connections: a judge of guarantees G1 and G2 that knows
 * nothing of the engine. It reads frames only: those of the SVM as they arrive, those of the PVM as they arrive (what a checkpoint
 * copies), and those that are released. What the SVM has *said* of a connection is what the
 * last committed checkpoint gave it, and what it has sent since.
 *
 * Positions count bytes of a connection's stream from 0; the numbers on the wire are RFC 9293's. The client's initial sequence numbers are
 * far apart, so that an acknowledgement tells which connection a released segment is of; a SYN without one is told by its own number.
 *
 * @module
 */
import { TCP_ACK, TCP_FIN, TCP_RST, TCP_SYN } from '../../src/wire/tcp.ts';
import type { TestFrame } from './frame-builder.ts';
import { optionsOf } from './pair-connection.ts';
import { infoOf } from './recording-output.ts';

/** The client's initial sequence number in connection `index`, from 0. */
export const clientIsnOf = (index: number): number => (index + 1) * CLIENT_ISNS_APART;
const CLIENT_ISNS_APART = 50_000_000;

/** What is fixed for one connection. */
export interface ConnectionFacts {
  /** The PVM's, which the client sees. */
  readonly isn: number;
  /** Window shift of the guests, which counts once the SYNs have passed (RFC 7323 §2.2). */
  readonly shift: number;
}

/** One segment in positions. */
interface Segment {
  readonly flags: number;
  readonly at: number;
  readonly payload: Uint8Array;
  readonly ack: number;
  /** Right edge of the window that it offers. */
  readonly edge: number;
  readonly sacked: readonly (readonly [number, number])[];
  /** What a SYN binds the connection to. */
  readonly binds: string;
}

/** All that one guest has said of one connection. */
class Said {
  bytes: (number | undefined)[] = [];
  /** Of the client's bytes, reported by SACK. */
  sacked = new Set<number>();
  syns = new Set<string>();
  finAt = -1;
  reset = false;
  /** The client knows of the RST: where the guest goes on, another needs another. */
  isResetTold = false;
  ack = -1;
  edge = -1;

  note(segment: Segment): void {
    const { flags, at, payload } = segment;
    if ((flags & TCP_RST) !== 0) {
      this.reset = true;
      this.isResetTold = false;
      return;
    }
    if (this.isResetTold) this.reset = false;
    if ((flags & TCP_SYN) !== 0) this.syns.add(segment.binds);
    for (let i = 0; i < payload.length; i++) this.bytes[at + i] = payload[i];
    if ((flags & TCP_FIN) !== 0) this.finAt = at + payload.length;
    if ((flags & TCP_ACK) === 0) return;
    this.ack = Math.max(this.ack, segment.ack);
    this.edge = Math.max(this.edge, segment.edge);
    for (const [left, right] of segment.sacked) {
      for (let byte = left; byte < right; byte++) this.sacked.add(byte);
    }
  }

  /** A checkpoint: from now on it has said what `other` has, and nothing else. */
  become(other: Said): void {
    this.bytes = [...other.bytes];
    this.sacked = new Set(other.sacked);
    this.syns = new Set(other.syns);
    this.finAt = other.finAt;
    this.reset = other.reset;
    this.isResetTold = false;
    this.ack = other.ack;
    this.edge = other.edge;
  }

  /** Why a segment must not be released; undefined when it may. */
  objection(segment: Segment): string | undefined {
    const { flags, at, payload, ack, edge } = segment;
    // G1: a RST only where the SVM has sent one, too (what it acknowledges is of no use to a connection that it ends).
    if ((flags & TCP_RST) !== 0) return this.reset ? undefined : 'G1: RST';
    // G1: a SYN only where the SVM's binds the connection alike.
    if ((flags & TCP_SYN) !== 0 && !this.syns.has(segment.binds)) return 'G1: SYN';
    // G1: each byte that the SVM has said at this position of the stream, and the FIN behind the same one.
    const wrong = payload.findIndex((byte, i) => this.bytes[at + i] !== byte);
    if (wrong !== -1) return `G1: byte ${at + wrong}`;
    if ((flags & TCP_FIN) !== 0 && at + payload.length !== this.finAt) return 'G1: FIN';
    if ((flags & TCP_ACK) === 0) return undefined;
    // G2: SEG.ACK no further than the SVM's RCV.NXT, SEG.ACK + SEG.WND no further than its RCV.NXT + RCV.WND (RFC 9293 §3.4, §3.8.6).
    if (ack > this.ack) return `G2: ACK ${ack}, the SVM's is ${this.ack}`;
    if (edge > this.edge) return `G2: window edge ${edge}, the SVM's is ${this.edge}`;
    // G2: each byte in a SACK block is one that the SVM has (RFC 2018).
    for (const [left, right] of segment.sacked) {
      for (let byte = left; byte < right; byte++) {
        if (byte >= this.ack && !this.sacked.has(byte)) return `G2: SACK of byte ${byte}`;
      }
    }
    return undefined;
  }
}

interface Heard {
  readonly primary: Said;
  readonly secondary: Said;
  readonly client: Said;
}

export class OutputJudge {
  readonly #connections: ConnectionFacts[] = [];
  readonly #heard: Heard[] = [];

  /** Returns its index. */
  addConnection(facts: ConnectionFacts): number {
    this.#heard.push({ primary: new Said(), secondary: new Said(), client: new Said() });
    return this.#connections.push(facts) - 1;
  }

  /** A segment of connection `index` has arrived from the PVM. */
  onPrimary(index: number, frame: TestFrame): void {
    this.#heard[index]!.primary.note(this.#read(index, frame));
  }

  /** The same from the SVM. */
  onSecondary(index: number, frame: TestFrame): void {
    this.#heard[index]!.secondary.note(this.#read(index, frame));
  }

  /** Does the SVM cover what a segment of connection `index` says of the client's bytes? */
  coversAck(index: number, frame: TestFrame): boolean {
    const { secondary } = this.#heard[index]!;
    const pureAck = { ...this.#read(index, frame), flags: TCP_ACK, payload: new Uint8Array(0) };
    return secondary.objection(pureAck) === undefined;
  }

  /** A checkpoint was committed: the SVM goes on from what the PVM was when it began. */
  onCommit(): void {
    for (const { primary, secondary } of this.#heard) secondary.become(primary);
  }

  /** A frame reaches the client. Returns what is wrong with that, where the node claims to protect. */
  onReleased(frame: TestFrame, isProtected: boolean): string | undefined {
    const index = this.#indexOf(frame);
    const heard = this.#heard[index];
    if (heard === undefined) return 'G4: a segment of no connection';
    const segment = this.#read(index, frame);
    heard.client.note(segment);
    const objection = isProtected ? heard.secondary.objection(segment) : undefined;
    if ((segment.flags & TCP_RST) !== 0) heard.secondary.isResetTold = true;
    return objection === undefined ? undefined : `${objection}, in connection ${index}`;
  }

  /** What the client has been told of connection `index`: how many bytes without a gap, ACK number and window edge (-1: none), a SYN. */
  client(index: number) {
    const { bytes, ack, edge, syns } = this.#heard[index]!.client;
    let end = 0;
    while (bytes[end] !== undefined) end++;
    return { end, ack, edge, hasSyn: syns.size > 0 };
  }

  #indexOf(frame: TestFrame): number {
    const { tcpFlags, seq, ack } = infoOf(frame);
    if ((tcpFlags & TCP_ACK) !== 0) return Math.floor(ack / CLIENT_ISNS_APART) - 1;
    return this.#connections.findLastIndex(({ isn }) => isn === seq);
  }

  #read(index: number, frame: TestFrame): Segment {
    const info = infoOf(frame);
    const options = optionsOf(frame)!;
    const { isn, shift } = this.#connections[index]!;
    const flags = info.tcpFlags;
    const position = (clientSeq: number) => clientSeq - clientIsnOf(index) - 1;
    const ack = position(info.ack);
    const isSyn = (flags & TCP_SYN) !== 0;
    return {
      flags,
      at: (info.seq - isn - 1) | 0,
      payload: info.bytes.slice(info.payloadOffset, info.payloadOffset + info.payloadBytes),
      ack,
      edge: ack + (isSyn ? info.window : info.window << shift),
      sacked: Array.from({ length: options.sackCount }, (_, i) => [
        position(options.sackLeft(i)),
        position(options.sackRight(i)),
      ]),
      binds: `ACK ${flags & TCP_ACK}, scale ${options.windowScale}, stamps ${options.hasTimestamps}`,
    };
  }
}
