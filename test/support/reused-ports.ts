/**
 * Two guests and a client that use one pair of ports for several connections, one after the other, at a primary engine: the steps of
 * `primary-connections.prop.test.ts`. The guests are as simple as TCP can be: they do only what they are told, if their connection is in a
 * state in which a TCP could do it; a step that it could not take does nothing. They never shrink a window, send the same
 * bytes at a position, and nothing behind a FIN or a RST but that again.
 *
 * @module
 */
import { LINK_FRAME_SECONDARY } from '../../src/env/messages.ts';
import { PRIMARY_DEFAULTS } from '../../src/proxy/config.ts';
import { PrimaryEngine } from '../../src/proxy/primary.ts';
import { IPV4_ID } from '../../src/wire/ipv4.ts';
import { TCP_ACK, TCP_FIN, TCP_RST, TCP_SYN } from '../../src/wire/tcp.ts';
import {
  CLIENT_IP,
  CLIENT_MAC,
  fragmentFrame,
  GUEST_IP,
  GUEST_MAC,
  type TcpFrameFields,
  type TestFrame,
  tcpFrame,
  udpFrame,
} from './frame-builder.ts';
import { clientIsnOf, OutputJudge } from './output-judge.ts';
import {
  type Fate,
  type GuestName,
  nobody,
  type Stand,
  type Step,
  type WorldOptions,
} from './port-steps.ts';
import { infoOf, RecordingOutput } from './recording-output.ts';

interface Connection {
  readonly isn: number;
  readonly shift: number;
  readonly total: number;
  readonly byGuests: boolean;
  readonly primary: Stand;
  secondary: Stand;
  /** The SVM's own initial sequence number. */
  secondaryIsn: number;
  /** Bytes of the client. */
  clientSent: number;
  isAnswered: boolean;
  /** A segment of the PVM has come in fragments since the last checkpoint. */
  isCut: boolean;
  /** The engine has the PVM's SYN: the secondary can translate. */
  isTranslated: boolean;
}

const CONNECTIONS_MAX = 6;
const FRAGMENT_BYTES = 48;
/** All that waits has asked by then: five compare timeouts, and the least time between checkpoints. */
const BOUND_US = 1_600_000;
const LONG_US = 3_000_000;

/** What both guests send at position `at` of connection `index`. */
const byteAt = (index: number, at: number): number => 65 + ((index * 7 + at * 3 + (at >> 5)) % 26);

export class ReusedPorts {
  readonly #engine: PrimaryEngine;
  readonly #output = new RecordingOutput();
  readonly #judge = new OutputJudge();
  readonly #options: WorldOptions;
  readonly #connections: Connection[] = [];
  /** Which connection each guest is in. */
  readonly #current = { primary: 0, secondary: 0 };
  readonly #late = new Map<GuestName, () => void>();
  /** What the fragments of a segment were made of, by their IP identification. */
  readonly #whole = new Map<number, TestFrame>();
  /** End of the PVM's last stream. */
  #end = 0x1234_5678;
  #nowUs = 1_000_000;
  #stepsAlone = 0;
  #isProtected = false;
  #requestsBefore = 0;
  #divergencesBefore = 0;
  /** How far runs come, for the property to know that they do. */
  released = 0;
  caughtUp = 0;

  constructor(options: WorldOptions) {
    const { isTiny, seesClients, isSeenOpen, shift } = options;
    const limits = isTiny ? { flowsMax: 2 } : {};
    this.#engine = new PrimaryEngine(
      { ...PRIMARY_DEFAULTS, ...limits, seesClients },
      this.#output,
      0,
    );
    this.#options = options;
    this.#connect(false, 0, shift, 400);
    const first = this.#connections[0]!;
    const open = { sent: 40, acked: 50, window: 200, edge: 50 + (200 << shift) };
    Object.assign(first.primary, open);
    first.clientSent = 100;
    first.isTranslated = true;
    first.isAnswered = true;
    const said = this.#bytesOf('primary', TCP_ACK, 0, 40);
    this.#judge.onPrimary(0, said);
    this.#judge.onReleased(said, false);
    if (isSeenOpen) this.#say('primary', TCP_ACK, 40, 40);
    this.#meetPeer();
    this.#pass(200_000);
  }

  /** @throws Error when the client is told what it must not be told */
  play(step: Step, flushes: boolean): void {
    // Five requests that nothing followed: the node has given up, and says so.
    if (this.#engine.state !== 'protected' && this.#stepsAlone === 0) return;
    this.#do(step);
    if (flushes) this.#engine.flush(this.#nowUs);
    this.#look();
    if (this.#stepsAlone === 0) return;
    if (this.#output.requests.length > this.#requestsBefore) {
      throw new Error('G9: a checkpoint is asked for while nobody can begin one');
    }
    if (--this.#stepsAlone === 0) this.#meetPeer();
  }

  /**
   * No more faults: the SVM catches up, time passes, a checkpoint follows.
   *
   * @throws Error when something is held back, or asked for, without need
   */
  settle(): void {
    const engine = this.#engine;
    if (this.#stepsAlone > 0) this.#meetPeer();
    if (engine.state !== 'protected') return;
    this.#catchUp();
    this.#pass(BOUND_US);
    if (this.#isWaiting() && this.#output.requests.length === this.#requestsBefore) {
      throw new Error('G6: held, and no checkpoint was asked for');
    }
    if (engine.state !== 'protected') return;
    this.#checkpoint(300_000);
    this.#goOn();
    this.#pass(LONG_US);
    if (this.#output.requests.length > this.#requestsBefore) {
      throw new Error('G6: a checkpoint is asked for behind one that has settled all');
    }
    if (this.#engine.status(this.#nowUs).held.frames > 0) {
      throw new Error('G6: held behind a checkpoint');
    }
  }

  // ------------------------------------------------------------------ steps

  #do(step: Step): void {
    switch (step.does) {
      case 'connect':
        if (this.#mayConnect()) {
          this.#connect(step.by === 'guests', step.distance, step.shift, step.total);
          this.#clientSyn(true);
        }
        break;
      case 'connect again':
        this.#clientSyn(false);
        break;
      case 'client':
        this.#client(step.bytes);
        break;
      case 'checkpoint':
        if (this.#stepsAlone === 0) this.#checkpoint(step.lastsUs);
        break;
      case 'lose peer':
        if (this.#stepsAlone > 0) break;
        this.#stepsAlone = step.steps;
        this.#isProtected = false;
        this.#late.delete('secondary');
        this.#engine.onPeerDown('lost', this.#nowUs);
        this.#requestsBefore = this.#output.requests.length;
        break;
      case 'catch up':
        if (this.#stepsAlone === 0) this.#catchUp();
        break;
      case 'pass':
        this.#pass(step.us);
        break;
      case 'datagram': {
        const frame = udpFrame({ dstPort: step.port, payload: 'u' });
        this.#arrive('primary', frame, this.#engine.epoch);
        this.#arrive('secondary', frame, this.#engine.epoch);
        break;
      }
      case 'begin':
        this.#begin(step.guest, step.window, step.hasStamps);
        break;
      default:
        this.#speak(step);
    }
  }

  /** Of a guest in the connection that it has. */
  #speak(step: Exclude<Step, { does: 'begin' }> & { guest: GuestName }): void {
    const { guest } = step;
    const connection = this.#connections[this.#current[guest]]!;
    const stand = connection[guest];
    if (guest === 'secondary' && !connection.isTranslated) return;
    if (step.does === 'begin again') {
      if (stand.hasBegun && !stand.hasReset) this.#saySyn(guest);
      return;
    }
    if (!connection.isAnswered && (step.does !== 'reset' || !stand.hasBegun)) return;
    if (step.does === 'reset') {
      // In SYN-SENT it answers an ACK that is not acceptable, and ends nothing (RFC 9293 §3.10.7.3).
      stand.hasReset = connection.isAnswered;
      stand.hasRefused = !connection.isAnswered;
      this.#say(guest, TCP_RST | TCP_ACK, stand.sent, stand.sent, step.fate);
      return;
    }
    if (stand.hasReset) return;
    if (step.does === 'ack') {
      this.#ack(guest, step.bytes, step.opens, step.sack, step.fate);
    } else if (step.does === 'send' && !stand.hasFin) {
      const from = stand.sent;
      stand.sent = Math.min(connection.total, from + step.bytes);
      stand.hasFin = step.ends && stand.sent === connection.total;
      const fin = stand.hasFin ? TCP_FIN : 0;
      if (stand.sent > from || stand.hasFin) {
        this.#say(guest, TCP_ACK | fin, from, stand.sent, step.fate);
      }
    } else if (step.does === 'repeat' && stand.sent > 0) {
      const from = step.at % stand.sent;
      const to = Math.min(stand.sent, from + step.bytes);
      const fin = stand.hasFin && to === stand.sent ? TCP_FIN : 0;
      this.#say(guest, TCP_ACK | fin, from, to, step.fate, [], step.inFragments);
    }
  }

  #ack(guest: GuestName, bytes: number, opens: number, sack: readonly number[], fate: Fate): void {
    const connection = this.#connections[this.#current[guest]]!;
    const stand = connection[guest];
    stand.acked = Math.min(connection.clientSent, stand.acked + bytes);
    // The edge never moves to the left (RFC 9293 §3.8.6).
    const least = Math.ceil(Math.max(0, stand.edge - stand.acked) / (1 << connection.shift));
    stand.window = Math.min(60_000, least + opens);
    const blocks: [number, number][] = [];
    let at = stand.acked;
    for (let i = 0; i + 1 < sack.length; i += 2) {
      const left = at + sack[i]!;
      at = Math.min(connection.clientSent, left + sack[i + 1]!);
      if (left < at) blocks.push([left, at]);
    }
    const position = stand.sent + (stand.hasFin ? 1 : 0);
    this.#say(guest, TCP_ACK, position, position, fate, blocks);
  }

  // ------------------------------------------------------------------ connections

  #mayConnect(): boolean {
    const last = this.#connections.length - 1;
    const { primary, secondary } = this.#current;
    if (last + 1 === CONNECTIONS_MAX || !this.#connections[last]!.isAnswered) return false;
    return primary === last || secondary === last;
  }

  #connect(byGuests: boolean, distance: number, shift: number, total: number): void {
    let isn = (this.#end + distance) >>> 0;
    // Two SYNs with one number are one SYN.
    while (this.#connections.some((before) => before.isn === isn)) isn = (isn + 1) >>> 0;
    const index = this.#judge.addConnection({ isn, shift });
    this.#connections.push({
      isn,
      shift,
      total,
      byGuests,
      primary: nobody(),
      secondary: nobody(),
      secondaryIsn: (isn ^ 0x2a5a_5a5a) >>> 0,
      clientSent: 0,
      isAnswered: !byGuests,
      isCut: false,
      isTranslated: index === 0,
    });
  }

  /** `isFirst`: the one that the guests answer; another says nothing of window scaling. */
  #clientSyn(isFirst: boolean): void {
    const index = this.#connections.length - 1;
    const { byGuests, shift } = this.#connections[index]!;
    if (byGuests || index === 0) return;
    const options = isFirst && shift > 0 ? { windowScale: 2 } : {};
    this.#fromClient({ seq: clientIsnOf(index), flags: TCP_SYN, options });
  }

  #client(bytes: number): void {
    const index = this.#connections.length - 1;
    const connection = this.#connections[index]!;
    const { end, hasSyn } = this.#judge.client(index);
    const ack = (connection.isn + 1 + end) >>> 0;
    const seq = clientIsnOf(index);
    if (connection.isAnswered) {
      connection.clientSent += bytes;
      this.#fromClient({ seq: seq + 1 + connection.clientSent, ack });
    } else if (hasSyn) {
      connection.isAnswered = true;
      const options = connection.shift > 0 ? { windowScale: 2 } : {};
      this.#fromClient({ seq, ack, flags: TCP_SYN | TCP_ACK, options });
    }
  }

  #begin(guest: GuestName, window: number, hasStamps: boolean): void {
    const last = this.#connections.length - 1;
    if (this.#current[guest] === last) return;
    if (guest === 'secondary' && this.#stepsAlone > 0) return;
    if (guest === 'secondary') {
      this.#connections[this.#current.primary]!.primary.isForgotten = true;
    }
    this.#current[guest] = last;
    const stand = this.#connections[last]![guest];
    stand.hasBegun = true;
    stand.hasStamps = hasStamps;
    stand.window = window;
    stand.edge = window;
    this.#saySyn(guest);
  }

  // ------------------------------------------------------------------ frames

  #saySyn(guest: GuestName): void {
    const index = this.#current[guest];
    const { byGuests, isn, secondaryIsn, shift, ...stands } = this.#connections[index]!;
    const { window, hasStamps } = stands[guest];
    const frame = this.#segment({
      // The SVM's travels with its own number.
      seq: guest === 'primary' ? isn : secondaryIsn,
      ...(byGuests ? { ack: 0 } : { ack: clientIsnOf(index) + 1 }),
      flags: byGuests ? TCP_SYN : TCP_SYN | TCP_ACK,
      window,
      options: {
        mss: 1_000,
        ...(shift > 0 ? { windowScale: shift } : {}),
        ...(hasStamps ? { timestamps: { tsval: 1, tsecr: 0 } } : {}),
      },
    });
    stands[guest].isAckDue = false;
    // Segments of the connection before do not come behind the next SYN.
    this.#late.get(guest)?.();
    this.#late.delete(guest);
    this.#deliver(guest, index, frame);
    if (guest === 'primary') {
      this.#connections[index]!.isTranslated = true;
      this.#end = (isn + 1) >>> 0;
    }
  }

  /** Bytes `from` to `to` of a guest, with its ACK and window. */
  #say(
    guest: GuestName,
    flags: number,
    from: number,
    to: number,
    fate: Fate = 'arrives',
    blocks: readonly (readonly [number, number])[] = [],
    inFragments = false,
  ): void {
    const index = this.#current[guest];
    const connection = this.#connections[index]!;
    const stand = connection[guest];
    const frame = this.#bytesOf(guest, flags, from, to, blocks);
    const isReset = (flags & TCP_RST) !== 0;
    if (this.#judge.client(index).edge >= stand.edge) stand.isEdgeLost = false;
    stand.isAckDue = !isReset;
    const edge = stand.acked + (stand.window << connection.shift);
    if (!isReset) stand.edge = Math.max(stand.edge, edge);
    if (guest === 'primary') this.#end = (connection.isn + 1 + to) >>> 0;
    if (guest === 'secondary' && fate === 'lost') return;
    const epoch = this.#engine.epoch;
    const arrive = () => this.#deliver(guest, index, frame, epoch, inFragments);
    const before = this.#late.get(guest);
    if (before === undefined && fate === 'late') {
      this.#late.set(guest, () => {
        // Of an unknown shift the engine compares windows, not edges.
        const isShiftKnown = index > 0 && (this.#options.seesClients || !connection.byGuests);
        if (!isShiftKnown || !this.#judge.coversAck(index, frame)) stand.isEdgeLost = true;
        arrive();
      });
      return;
    }
    arrive();
    this.#late.delete(guest);
    before?.();
  }

  /** Both guests say the same once more, if they can say anything. */
  #goOn(): void {
    const { isAnswered, primary } = this.#connections[this.#current.primary]!;
    if (!isAnswered || primary.hasReset) return;
    const position = primary.sent + (primary.hasFin ? 1 : 0);
    this.#say('primary', TCP_ACK, position, position);
    this.#say('secondary', TCP_ACK, position, position);
  }

  #bytesOf(
    guest: GuestName,
    flags: number,
    from: number,
    to: number,
    blocks: readonly (readonly [number, number])[] = [],
  ): TestFrame {
    const index = this.#current[guest];
    const connection = this.#connections[index]!;
    const { acked, window } = connection[guest];
    const clientSeq = (at: number) => clientIsnOf(index) + 1 + at;
    return this.#segment({
      seq: (connection.isn + 1 + from) >>> 0,
      ack: clientSeq(acked),
      flags,
      window,
      payload: Uint8Array.from({ length: to - from }, (_, i) => byteAt(index, from + i)),
      options: {
        sack: blocks.map(([left, right]) => [clientSeq(left), clientSeq(right)] as const),
      },
    });
  }

  #segment(fields: TcpFrameFields): TestFrame {
    const id = this.#whole.size + 1;
    const frame = tcpFrame({ id, ...fields });
    this.#whole.set(id, frame);
    return frame;
  }

  #deliver(
    guest: GuestName,
    index: number,
    frame: TestFrame,
    epoch = this.#engine.epoch,
    inFragments = false,
  ): void {
    if (guest === 'secondary') {
      if (this.#stepsAlone > 0) return;
      this.#judge.onSecondary(index, frame);
    } else this.#judge.onPrimary(index, frame);
    const isCut = inFragments && guest === 'primary';
    if (isCut) this.#connections[index]!.isCut = true;
    for (const each of isCut ? cutFrame(frame) : [frame]) this.#arrive(guest, each, epoch);
    this.#look();
  }

  #arrive(guest: GuestName, { buffer, offset, length }: TestFrame, epoch: number): void {
    const now = this.#nowUs;
    if (guest === 'primary') this.#engine.onGuestFrame(buffer, offset, length, now);
    else if (this.#stepsAlone === 0) {
      this.#engine.onPeerFrame(LINK_FRAME_SECONDARY, epoch, buffer, offset, length, now);
    }
  }

  #fromClient(fields: TcpFrameFields): void {
    if (!this.#options.seesClients) return;
    const { buffer, offset, length } = tcpFrame({
      srcMac: CLIENT_MAC,
      dstMac: GUEST_MAC,
      src: CLIENT_IP,
      dst: GUEST_IP,
      srcPort: 40_312,
      dstPort: 80,
      ...fields,
    });
    this.#engine.onNetFrame(buffer, offset, length, this.#nowUs);
  }

  /** What has gone to the client meanwhile. */
  #look(): void {
    for (const frame of this.#output.takeNet()) {
      const info = infoOf(frame);
      if (info.protocol !== 6 || info.fragmentOffset > 0) continue;
      this.released++;
      const whole = info.isFragment ? this.#whole.get(info.fragmentId)! : frame;
      const objection = this.#judge.onReleased(whole, this.#isProtected);
      if (objection !== undefined) throw new Error(objection);
    }
  }

  /** Does a segment of the PVM wait, or its last ACK? */
  #isWaiting(): boolean {
    const index = this.#current.primary;
    const { isAckDue, isForgotten, acked } = this.#connections[index]!.primary;
    if (isAckDue && !isForgotten && this.#judge.client(index).ack < acked) return true;
    return this.#engine.flows(10).some(({ heldFrames }) => heldFrames > 0);
  }

  #divergences(): number {
    return this.#engine.status(this.#nowUs).divergences;
  }

  // ------------------------------------------------------------------ checkpoints and time

  #meetPeer(): void {
    this.#look();
    this.#stepsAlone = 0;
    this.#engine.onPeerUp(0, this.#nowUs);
    this.#engine.flush(this.#nowUs);
    this.#look();
    this.#checkpoint(0);
  }

  #checkpoint(lastsUs: number): void {
    const engine = this.#engine;
    // The port is drained; what is on its way from the SVM is of an epoch that ends.
    this.#late.get('primary')?.();
    this.#late.clear();
    engine.flush(this.#nowUs);
    this.#look();
    engine.checkpointBegin(this.#nowUs);
    const epoch = engine.epoch + 1;
    engine.onPeerMessage({ type: 'checkpoint-began', epoch }, this.#nowUs);
    if (lastsUs > 0) this.#pass(lastsUs);
    engine.checkpointCommit(this.#nowUs);
    this.#look();
    this.#judge.onCommit();
    this.#current.secondary = this.#current.primary;
    this.#connections.forEach((connection, index) => {
      connection.secondary = { ...connection.primary };
      connection.isCut = false;
      if (index <= this.#current.primary) connection.secondaryIsn = connection.isn;
      else connection.secondaryIsn = (connection.secondaryIsn + 777) >>> 0;
    });
    this.#isProtected = true;
    engine.onPeerMessage({ type: 'checkpoint-committed', epoch }, this.#nowUs);
    engine.flush(this.#nowUs);
    this.#requestsBefore = this.#output.requests.length;
    this.#divergencesBefore = this.#divergences();
    this.#look();
  }

  /** Time passes between batches. */
  #pass(us: number): void {
    const end = this.#nowUs + us;
    this.#engine.flush(this.#nowUs);
    for (let next = 0; ; ) {
      next = this.#engine.nextDeadlineUs();
      if (next > end) break;
      this.#nowUs = Math.max(this.#nowUs, next);
      this.#engine.onTick(this.#nowUs);
    }
    this.#nowUs = end;
    this.#engine.flush(end);
    this.#look();
  }

  /** The guests say everything that the other has said, the SVM last, if they can. Then nothing is held, and the client knows it all. */
  #catchUp(): void {
    for (const arrive of this.#late.values()) arrive();
    this.#late.clear();
    this.#engine.flush(this.#nowUs);
    this.#look();
    const index = this.#current.primary;
    const connection = this.#connections[index]!;
    const { primary, secondary } = connection;
    const { isTiny, isSeenOpen } = this.#options;
    // What is picked up in the middle may have a gap that the PVM does not fill again.
    // Nor is a header in fragments lowered: where the window shift is not known it waits for a checkpoint.
    if (connection.isCut) return;
    const isKnown = !isTiny && (index === 0 ? isSeenOpen : primary.hasBegun);
    if (this.#current.secondary !== index || !connection.isAnswered) return;
    if (!isKnown) return;
    if (primary.hasReset || secondary.hasReset || primary.hasRefused) return;
    const hasAgreed = () => this.#divergences() === this.#divergencesBefore;
    if (!hasAgreed()) return;
    if (secondary.hasBegun) this.#saySyn('secondary');
    const sent = Math.max(primary.sent, secondary.sent);
    const acked = Math.max(primary.acked, secondary.acked);
    const edge = Math.max(primary.edge, secondary.edge);
    const window = Math.ceil((edge - acked) / (1 << connection.shift));
    const hasFin = primary.hasFin || secondary.hasFin;
    const flags = TCP_ACK | (hasFin ? TCP_FIN : 0);
    const from = primary.sent;
    // Where the PVM has nothing to add it says nothing: what it has said must have been enough.
    const isBehind = from < sent || primary.acked < acked || primary.edge < edge;
    const adds = isBehind || primary.hasFin !== hasFin;
    Object.assign(primary, adds ? { sent, acked, window, hasFin } : {});
    if (adds) this.#say('primary', flags, from, sent);
    Object.assign(secondary, { sent, acked, window: primary.window, hasFin });
    this.#say('secondary', flags, 0, sent);
    this.#engine.flush(this.#nowUs);
    this.#look();
    if (!hasAgreed()) return;
    this.caughtUp++;
    if (this.#isWaiting()) throw new Error('G6: held, although the SVM has said the same');
    const client = this.#judge.client(index);
    if (
      primary.isAckDue &&
      !primary.isForgotten &&
      !primary.isEdgeLost &&
      client.edge !== primary.edge
    ) {
      throw new Error(`G6: both offer ${primary.edge}, but the client knows of ${client.edge}`);
    }
  }
}

function cutFrame(frame: TestFrame): TestFrame[] {
  const id = frame.buffer.view.getUint16(infoOf(frame).l3Offset + IPV4_ID);
  return fragmentFrame(frame, FRAGMENT_BYTES, id);
}
