/**
 * What the clients run: sessions of requests on TCP with a chosen way of reading and closing, datagrams,
 * echo requests, and listeners for connections that the guest opens.
 *
 * @module
 */
import { type Micros, NEVER } from '../../base/time.ts';
import {
  type IpPacket,
  PROTOCOL_ICMP,
  PROTOCOL_ICMPV6,
  readU32,
  writeU16,
  writeU32,
} from '../net/packet.ts';
import {
  atEndOfStream,
  canWrite,
  type TcpConnection,
  tcpClose,
  tcpRead,
  tcpWrite,
} from '../tcp/connection.ts';
import { tcpAbort } from '../tcp/output.ts';
import { encodeRequest, FLAG_CONNECT_BACK, FLAG_RESET, type Request } from './content.ts';
import { type Application, connectionKey, type Host } from './host.ts';
import { SERVICE_PORT, SIMULTANEOUS_PORT, SIMULTANEOUS_PORTS } from './service.ts';

/** How a session ends once all answers have come: by whom, and how. */
export type Ending =
  | 'client-closes'
  | 'half-close-early'
  | 'both-close'
  | 'guest-closes'
  | 'client-resets'
  | 'client-aborts'
  | 'stays-open';

/** What a session is to do. */
export interface SessionPlan {
  readonly requests: readonly Request[];
  readonly ending: Ending;
  /** All requests at once, rather than one after each answer. */
  readonly isPipelined: boolean;
  /** Between an answer and the next request. */
  readonly pauseUs: Micros;
  /** Reads this many bytes every `readEveryUs`; 0 = all at once. */
  readonly readBytes: number;
  readonly readEveryUs: Micros;
  readonly hasUrgent: boolean;
  /** With `both-close` and `client-aborts`: the client ends it so long after its last request, whatever the guest does. */
  readonly closeAfterUs: Micros;
}

/** A connection as the client's application sees it. */
export interface Session {
  readonly key: string;
  readonly plan: SessionPlan;
  readonly openedAtUs: Micros;
  /** The connection, also after the host has forgotten it. */
  readonly connection: TcpConnection;
  /** Opened by the guest. */
  readonly isInbound: boolean;
  sentRequests: number;
  /** Position (see tcp/connection.ts) of the first byte of `received`. */
  readonly firstPosition: number;
  /** Everything read so far. */
  received: Uint8Array;
  receivedCount: number;
  nextSendUs: Micros;
  nextReadUs: Micros;
  /** With `both-close` and `client-aborts`; NEVER before the last request. */
  closeAtUs: Micros;
  isClosing: boolean;
  isDone: boolean;
  /** How it ended: empty for an ordinary end. */
  error: string;
}

/** A datagram or echo request, repeated until it is answered. */
export interface Probe {
  readonly id: number;
  readonly dst: string;
  readonly payload: Uint8Array;
  readonly isEcho: boolean;
  tries: number;
  triesMax: number;
  nextUs: Micros;
  answers: number;
}

const PROBE_AGAIN_US: Micros = 400_000;

/** Bytes that a plan's answers have together. */
export function expectedBytes(plan: SessionPlan): number {
  let sum = 0;
  for (const request of plan.requests) {
    if ((request.flags & FLAG_CONNECT_BACK) === 0) sum += request.answerBytes;
  }
  return sum;
}

/** Does the client end the session when its time has come, and not by what it has received? */
function endsByItself(plan: SessionPlan): boolean {
  return plan.ending === 'both-close' || plan.ending === 'client-aborts';
}

/** What a client does with a connection that the guest opens: reads until the guest closes. */
const INBOUND_PLAN: SessionPlan = {
  requests: [],
  ending: 'guest-closes',
  isPipelined: false,
  pauseUs: 0,
  readBytes: 0,
  readEveryUs: 0,
  hasUrgent: false,
  closeAfterUs: 0,
};

export class ClientApplication implements Application {
  readonly sessions: Session[] = [];
  /** Sessions that have not ended. */
  open: Session[] = [];
  /** Sessions that have ended and that nobody has looked at since. */
  readonly ended: Session[] = [];
  readonly probes: Probe[] = [];
  /** Slow readers read at full speed, pauses are over (after the heal). */
  isHurried = false;
  readonly #byConnection = new Map<TcpConnection, Session>();
  /** Every host.connect is followed by this, so that the session exists before the first answer. */
  start(host: Host, guest: string, plan: SessionPlan, localPort: number): Session {
    const key = host.connect(guest, SERVICE_PORT, localPort);
    host.marks.hit(guest.length === 8 ? 'session over IPv4' : 'session over IPv6');
    if (host.state.vlan !== 0) host.marks.hit('session in a VLAN');
    return this.#adopt(host, key, host.state.connections.get(key)!, plan, false);
  }

  /** A connection that existed before the run began. */
  adopt(host: Host, key: string, plan: SessionPlan): Session {
    const connection = host.state.connections.get(key)!;
    return this.#adopt(host, key, connection, plan, false, connection.rcvNxt);
  }

  #adopt(
    host: Host,
    key: string,
    connection: TcpConnection,
    plan: SessionPlan,
    isInbound: boolean,
    firstPosition = 1,
  ): Session {
    const session: Session = {
      key,
      plan,
      openedAtUs: host.nowUs,
      connection,
      isInbound,
      sentRequests: 0,
      firstPosition,
      received: new Uint8Array(1024),
      receivedCount: 0,
      nextSendUs: 0,
      nextReadUs: 0,
      closeAtUs: NEVER,
      isClosing: false,
      isDone: false,
      error: '',
    };
    this.sessions.push(session);
    this.open.push(session);
    this.#byConnection.set(connection, session);
    return session;
  }

  onConnection(host: Host, key: string, connection: TcpConnection): void {
    let session = this.#byConnection.get(connection);
    if (session === undefined) {
      session = this.#adopt(host, key, connection, INBOUND_PLAN, true);
    }
    if (session.isDone) return;
    if (connection.state !== 'closed') {
      this.#read(host, session);
      this.#write(host, session);
      this.#end(host, session);
    } else {
      // What arrived before the end is still the application's.
      this.#take(session, tcpRead(connection, 1 << 30));
    }
    if (connection.state === 'closed') {
      session.isDone = true;
      session.error = connection.error;
      this.ended.push(session);
      this.open = this.open.filter((item) => item !== session);
      this.#byConnection.delete(connection);
    }
    this.#schedule(host);
  }

  #take(session: Session, bytes: Uint8Array): void {
    if (bytes.length === 0) return;
    const needed = session.receivedCount + bytes.length;
    if (needed > session.received.length) {
      const larger = new Uint8Array(Math.max(needed, session.received.length * 2));
      larger.set(session.received.subarray(0, session.receivedCount));
      session.received = larger;
    }
    session.received.set(bytes, session.receivedCount);
    session.receivedCount = needed;
  }

  #read(host: Host, session: Session): void {
    const { readBytes, readEveryUs } = session.plan;
    if (readBytes === 0 || this.isHurried) {
      this.#take(session, tcpRead(session.connection, 1 << 30));
      return;
    }
    if (host.nowUs < session.nextReadUs || session.connection.received.length === 0) return;
    this.#take(session, tcpRead(session.connection, readBytes));
    session.nextReadUs = host.nowUs + readEveryUs;
  }

  #write(host: Host, session: Session): void {
    const { plan, connection } = session;
    while (session.sentRequests < plan.requests.length) {
      if (!this.#maySend(session)) return;
      if (!plan.isPipelined && session.receivedCount < this.#expectedSoFar(session)) return;
      if (session.sentRequests > 0 && plan.pauseUs > 0 && !this.isHurried) {
        if (session.nextSendUs === 0) session.nextSendUs = host.nowUs + plan.pauseUs;
        if (host.nowUs < session.nextSendUs) return;
      }
      session.nextSendUs = 0;
      const request = plan.requests[session.sentRequests++]!;
      const isUrgent = plan.hasUrgent && session.sentRequests % 3 === 1;
      tcpWrite(connection, encodeRequest(request), isUrgent);
      if (session.sentRequests === plan.requests.length)
        session.closeAtUs = host.nowUs + plan.closeAfterUs;
      this.#openSimultaneously(host, connection.remoteAddress, request);
    }
  }

  /** When the guest is asked to connect to such a port, the client connects from it at the same moment. */
  #openSimultaneously(host: Host, guest: string, request: Request): void {
    const port = request.seed & 0xffff;
    if ((request.flags & FLAG_CONNECT_BACK) === 0 || port < SIMULTANEOUS_PORT) return;
    if (port >= SIMULTANEOUS_PORT + SIMULTANEOUS_PORTS) return;
    if (host.state.connections.has(connectionKey(guest, port, port))) return;
    const key = host.connect(guest, port, port);
    this.#adopt(host, key, host.state.connections.get(key)!, INBOUND_PLAN, true);
  }

  /** Answers to the requests sent so far, in bytes. */
  #expectedSoFar(session: Session): number {
    return expectedBytes({
      ...session.plan,
      requests: session.plan.requests.slice(0, session.sentRequests),
    });
  }

  #end(host: Host, session: Session): void {
    const { connection, plan } = session;
    if (atEndOfStream(connection)) {
      tcpClose(connection);
      session.isClosing = true;
    }
    if (session.isClosing || session.isInbound) return;
    const isAllSent = session.sentRequests === plan.requests.length;
    const isAllHere = session.receivedCount >= expectedBytes(plan);
    if (!isAllSent) return;
    const isTime = endsByItself(plan) && host.nowUs >= session.closeAtUs;
    const isAborted = plan.ending === 'client-aborts' && isTime;
    if (isAborted && !isAllHere) host.marks.hit('client resets in the middle');
    const isEarly = plan.ending === 'half-close-early' || (isTime && !isAborted);
    if (isEarly || (plan.ending === 'client-closes' && isAllHere)) {
      tcpClose(connection);
      session.isClosing = true;
    } else if (isAborted || (plan.ending === 'client-resets' && isAllHere)) {
      tcpAbort(connection, host.io);
      session.isClosing = true;
    }
  }

  /** The end of the run: sessions that would stay open are closed. */
  closeAll(host: Host): void {
    for (const session of this.open) {
      if (session.isDone || session.connection.state === 'closed') continue;
      const isIdle =
        session.plan.ending === 'stays-open' &&
        session.sentRequests === session.plan.requests.length;
      if (isIdle && session.receivedCount >= expectedBytes(session.plan)) {
        tcpClose(session.connection);
        session.isClosing = true;
        host.touch(session.key, session.connection);
      }
    }
  }

  /** Repeats `payload` to the guest's datagram service (or as an echo request) until it is answered. */
  probe(host: Host, dst: string, payload: Uint8Array, isEcho: boolean, triesMax: number): Probe {
    const probe: Probe = {
      id: this.probes.length + 1,
      dst,
      payload,
      isEcho,
      tries: 0,
      triesMax,
      nextUs: host.nowUs,
      answers: 0,
    };
    this.probes.push(probe);
    this.#sendProbe(host, probe);
    this.#schedule(host);
    return probe;
  }

  #sendProbe(host: Host, probe: Probe): void {
    probe.tries++;
    probe.nextUs = probe.tries < probe.triesMax ? host.nowUs + PROBE_AGAIN_US : NEVER;
    if (!probe.isEcho) {
      const payload = probe.payload.slice();
      payload[1] = probe.id;
      host.marks.hit('datagram');
      host.sendDatagram(probe.dst, 20_000 + (probe.id % 2), SERVICE_PORT, payload);
      return;
    }
    host.marks.hit('echo request');
    const body = new Uint8Array(8 + probe.payload.length);
    body[0] = probe.dst.length === 8 ? 8 : 128;
    writeU16(body, 4, probe.id);
    writeU16(body, 6, probe.tries);
    body.set(probe.payload, 8);
    const protocol = probe.dst.length === 8 ? PROTOCOL_ICMP : PROTOCOL_ICMPV6;
    host.send({ dst: probe.dst, protocol, payload: body, gsoBytes: 0 });
  }

  onDatagram(
    _host: Host,
    _packet: IpPacket,
    _srcPort: number,
    _dstPort: number,
    payload: Uint8Array,
  ): void {
    if (payload.length < 8) return;
    this.#answered(false, payload[1]!, readU32(payload, 4));
  }

  onEchoReply(_host: Host, packet: IpPacket): void {
    this.#answered(true, (packet.payload[4]! << 8) | packet.payload[5]!, 0);
  }

  #answered(isEcho: boolean, id: number, seed: number): void {
    for (const probe of this.probes) {
      if (probe.isEcho !== isEcho || (probe.id & (isEcho ? 0xffff : 0xff)) !== id) continue;
      if (!isEcho && readU32(probe.payload, 4) !== seed) continue;
      probe.answers++;
      probe.nextUs = NEVER;
    }
  }

  onTimer(host: Host): void {
    for (const probe of this.probes) {
      if (probe.nextUs <= host.nowUs && probe.answers === 0) this.#sendProbe(host, probe);
    }
    for (const session of this.open) {
      if (!session.isDone) host.touch(session.key, session.connection);
    }
    this.#schedule(host);
  }

  #maySend(session: Session): boolean {
    const { state } = session.connection;
    const isOpen = state === 'established' || state === 'close-wait';
    return isOpen && !session.isClosing && canWrite(session.connection);
  }

  #schedule(host: Host): void {
    let next: Micros = NEVER;
    for (const probe of this.probes) if (probe.answers === 0) next = Math.min(next, probe.nextUs);
    for (const session of this.open) {
      if (session.isDone) continue;
      if (session.nextSendUs > 0 && this.#maySend(session))
        next = Math.min(next, session.nextSendUs);
      if (endsByItself(session.plan) && !session.isClosing)
        next = Math.min(next, session.closeAtUs);
      if (session.connection.received.length > 0) next = Math.min(next, session.nextReadUs);
    }
    host.state.application.deadlineUs = next === NEVER ? NEVER : Math.max(next, host.nowUs + 1);
  }
}

/** The bytes of a datagram request. */
export function datagramRequest(
  flags: number,
  answerBytes: number,
  seed: number,
  padBytes: number,
): Uint8Array {
  const bytes = new Uint8Array(8 + padBytes);
  bytes[0] = flags;
  writeU16(bytes, 2, answerBytes);
  writeU32(bytes, 4, seed);
  return bytes;
}

/** Does the plan end by a reset that the guest was asked for? */
export function isResetPlanned(plan: SessionPlan): boolean {
  return (
    plan.ending === 'client-resets' ||
    plan.ending === 'client-aborts' ||
    plan.requests.some((request) => (request.flags & FLAG_RESET) !== 0)
  );
}
