/**
 * What the guests run: a request service on TCP (see content.ts), a datagram service on UDP, and connections
 * that the guest opens itself. All memory is in the host's state; all that makes two guests differ comes from
 * the host's `entropy` and clock, which a checkpoint does not copy.
 *
 * @module
 */
import { type Micros, NEVER } from '../../base/time.ts';
import { type IpPacket, readU16, readU32, writeU32 } from '../net/packet.ts';
import {
  atEndOfStream,
  canWrite,
  type TcpConnection,
  tcpClose,
  tcpRead,
  tcpWrite,
} from '../tcp/connection.ts';
import { tcpAbort } from '../tcp/output.ts';
import {
  bodyByte,
  content,
  decodeRequest,
  FLAG_CLOCK,
  FLAG_CLOSE,
  FLAG_CONNECT_BACK,
  FLAG_READ_SLOWLY,
  FLAG_RESET,
  FLAG_SLOW,
  FLAG_TOKEN,
  FLAG_URGENT,
  REQUEST_HEADER_BYTES,
} from './content.ts';
import type { Answer, Application, Host, ServiceState } from './host.ts';

/** The port of the request service, and of the datagram service. */
export const SERVICE_PORT = 80;
/** Ports that a simultaneous open uses on both sides. */
export const SIMULTANEOUS_PORT = 7_000;
/** How many there are. */
export const SIMULTANEOUS_PORTS = 1_000;

/** The application stops writing above this, as with a socket buffer. */
const SEND_BUFFER_BYTES_MAX = 65_536;
const SLOW_READ_BYTES = 700;
const SLOW_READ_EVERY_US: Micros = 30_000;
/** So long that the other side probes the closed window. */
const VERY_SLOW_READ_EVERY_US: Micros = 450_000;

/** Instance properties of one guest: not copied by a checkpoint. */
export interface ServiceMood {
  /** Nothing is read or answered before this (the guest's clock). */
  stuckUntilUs: Micros;
  /** Longest thinking time of a slow answer. */
  thinkUsMax: Micros;
  /** Probability that an answer is wrong by itself: memory of the guests has diverged. */
  divergence: number;
  /** Slow readers read at full speed (after the heal). */
  isHurried: boolean;
  /** Probability that a port the guest chooses is not the next one. */
  randomPort: number;
}

function blankService(): ServiceState {
  return {
    partial: new Uint8Array(0),
    bodyLeft: 0,
    bodyRead: 0,
    request: undefined,
    answers: [],
    readEveryUs: 0,
    nextReadUs: 0,
  };
}

/** The guests' application. */
export class GuestService implements Application {
  readonly mood: ServiceMood;

  constructor(mood: ServiceMood) {
    this.mood = mood;
  }

  onConnection(host: Host, key: string, connection: TcpConnection): void {
    // Closed already, or by the service itself: whoever has these ports next begins anew.
    if (connection.state !== 'closed') this.#serve(host, key, connection);
    if (connection.state === 'closed') host.state.application.services.delete(key);
    else this.#schedule(host);
  }

  #serve(host: Host, key: string, connection: TcpConnection): void {
    const { services } = host.state.application;
    let service = services.get(key);
    if (service === undefined) {
      service = blankService();
      services.set(key, service);
    }
    this.#read(host, service, connection);
    this.#write(host, service, connection);
    const isIdle = service.answers.length === 0 && service.request === undefined;
    if (atEndOfStream(connection) && isIdle) tcpClose(connection);
  }

  onTimer(host: Host): void {
    for (const key of [...host.state.application.services.keys()]) {
      const connection = host.state.connections.get(key);
      if (connection === undefined) host.state.application.services.delete(key);
      else host.touch(key, connection);
    }
    this.#schedule(host);
  }

  /** The earliest time at which some service can go on by itself. */
  #schedule(host: Host): void {
    let next: Micros = NEVER;
    for (const [key, service] of host.state.application.services) {
      const connection = host.state.connections.get(key);
      if (connection === undefined) continue;
      if (connection.received.length > 0)
        next = Math.min(next, Math.max(service.nextReadUs, this.mood.stuckUntilUs));
      if (connection.sendCount >= SEND_BUFFER_BYTES_MAX) continue;
      for (const answer of service.answers) {
        next = Math.min(next, Math.max(answer.readyUs, this.mood.stuckUntilUs));
      }
    }
    host.state.application.deadlineUs = next === NEVER ? NEVER : Math.max(next, host.nowUs + 1);
  }

  #read(host: Host, service: ServiceState, connection: TcpConnection): void {
    if (host.nowUs < this.mood.stuckUntilUs) return;
    const isSlow = service.readEveryUs > 0 && !this.mood.isHurried;
    if (isSlow) {
      if (host.nowUs < service.nextReadUs) return;
      service.nextReadUs = host.nowUs + service.readEveryUs;
      if (connection.received.length > SLOW_READ_BYTES) host.marks.hit('service reads slowly');
    }
    const bytes = tcpRead(connection, isSlow ? SLOW_READ_BYTES : 1 << 30);
    let at = 0;
    while (at < bytes.length) {
      if (service.request !== undefined) {
        const count = Math.min(service.bodyLeft, bytes.length - at);
        this.#checkBody(host, service, bytes.subarray(at, at + count));
        at += count;
      } else {
        const count = Math.min(REQUEST_HEADER_BYTES - service.partial.length, bytes.length - at);
        service.partial = Uint8Array.from([...service.partial, ...bytes.subarray(at, at + count)]);
        at += count;
        if (service.partial.length === REQUEST_HEADER_BYTES) this.#beginRequest(host, service);
      }
      if (service.request !== undefined && service.bodyLeft === 0)
        this.#answer(host, service, connection);
    }
  }

  #beginRequest(host: Host, service: ServiceState): void {
    const request = decodeRequest(service.partial);
    service.partial = new Uint8Array(0);
    if (request === undefined) {
      host.state.application.damage++;
      return;
    }
    service.request = { ...request };
    service.bodyLeft = request.bodyBytes;
    service.bodyRead = 0;
    if ((request.flags & FLAG_READ_SLOWLY) === 0) return;
    service.readEveryUs = (request.seed & 3) === 3 ? VERY_SLOW_READ_EVERY_US : SLOW_READ_EVERY_US;
  }

  #checkBody(host: Host, service: ServiceState, bytes: Uint8Array): void {
    for (const byte of bytes) {
      const expected = bodyByte(service.request!.seed, service.bodyRead++);
      if (byte !== expected) host.state.application.damage++;
    }
    service.bodyLeft -= bytes.length;
  }

  #answer(host: Host, service: ServiceState, connection: TcpConnection): void {
    const { flags, seed, answerBytes } = service.request!;
    service.request = undefined;
    if ((flags & FLAG_CONNECT_BACK) !== 0) {
      this.#connectBack(host, connection.remoteAddress, seed, answerBytes);
      return;
    }
    const slow = (flags & FLAG_SLOW) !== 0;
    if (slow) host.marks.hit('answer slow');
    service.answers.push(this.#makeAnswer(host, flags, seed, answerBytes, slow));
  }

  #makeAnswer(host: Host, flags: number, seed: number, count: number, slow: boolean): Answer {
    let end = flags;
    const prefix = new Uint8Array(Math.min(8, count));
    prefix.set(content(seed, 0, prefix.length));
    if ((flags & FLAG_TOKEN) !== 0) {
      host.entropy.fill(prefix);
      host.marks.hit('answer with a token');
    }
    if ((flags & FLAG_CLOCK) !== 0 && count >= 8) {
      writeU32(prefix, 4, Math.floor(host.nowUs / 1000) >>> 0);
      host.marks.hit('answer with the clock');
    }
    if (this.mood.divergence > 0 && count > 0 && host.entropy.chance(this.mood.divergence)) {
      if (host.entropy.chance(0.5)) end |= FLAG_CLOSE;
      else prefix[host.entropy.nextBelow(prefix.length)]! ^= 0x40;
      host.marks.hit('answer wrong by itself');
    }
    return {
      readyUs: host.nowUs + (slow ? host.entropy.nextBelow(this.mood.thinkUsMax + 1) : 0),
      prefix,
      seed,
      at: 0,
      count,
      flags: end,
    };
  }

  #connectBack(host: Host, remote: string, seed: number, count: number): void {
    const remotePort = seed & 0xffff;
    if (remotePort >= SIMULTANEOUS_PORT && remotePort < SIMULTANEOUS_PORT + SIMULTANEOUS_PORTS) {
      this.#open(host, remote, remotePort, remotePort, seed, count);
      return;
    }
    let localPort = host.state.ephemeralPort++;
    if (this.mood.randomPort > 0 && host.entropy.chance(this.mood.randomPort)) {
      localPort = host.entropy.nextBetween(50_000, 60_000);
      host.marks.hit('port chosen at random');
    }
    this.#open(host, remote, remotePort, localPort, seed, count);
  }

  #open(
    host: Host,
    remote: string,
    remotePort: number,
    localPort: number,
    seed: number,
    count: number,
  ): void {
    const key = `${remote}:${remotePort}:${localPort}`;
    if (host.state.connections.has(key)) return;
    const service = blankService();
    service.answers.push(this.#makeAnswer(host, FLAG_CLOSE, seed, count, false));
    host.state.application.services.set(key, service);
    host.marks.hit('connection back to a client');
    host.connect(remote, remotePort, localPort);
  }

  /** Writes what is ready. An answer that was begun is finished before another one. */
  #write(host: Host, service: ServiceState, connection: TcpConnection): void {
    if (host.nowUs < this.mood.stuckUntilUs) {
      if (service.answers.length > 0) host.marks.hit('service stuck');
      return;
    }
    for (;;) {
      if (!canWrite(connection)) break;
      const begun = service.answers.find((answer) => answer.at > 0);
      const ready = service.answers.filter((answer) => answer.readyUs <= host.nowUs);
      const answer = begun ?? ready.sort((a, b) => a.readyUs - b.readyUs)[0];
      if (answer === undefined || connection.sendCount >= SEND_BUFFER_BYTES_MAX) return;
      if (answer !== service.answers[0]) host.marks.hit('answers in another order');
      this.#writeSome(answer, connection);
      if (answer.at < answer.count) return;
      service.answers = service.answers.filter((item) => item !== answer);
      if ((answer.flags & FLAG_RESET) !== 0) {
        tcpAbort(connection, host.io);
        return;
      }
      if ((answer.flags & FLAG_CLOSE) !== 0) tcpClose(connection);
    }
    if (!canWrite(connection)) service.answers = [];
  }

  #writeSome(answer: Answer, connection: TcpConnection): void {
    const room = SEND_BUFFER_BYTES_MAX - connection.sendCount;
    const count = Math.min(answer.count - answer.at, Math.max(room, 1));
    const bytes = content(answer.seed, answer.at, count);
    for (let i = answer.at; i < Math.min(answer.prefix.length, answer.at + count); i++) {
      bytes[i - answer.at] = answer.prefix[i]!;
    }
    tcpWrite(connection, bytes, (answer.flags & FLAG_URGENT) !== 0);
    answer.at += count;
  }

  onDatagram(
    host: Host,
    packet: IpPacket,
    srcPort: number,
    dstPort: number,
    payload: Uint8Array,
  ): void {
    if (dstPort !== SERVICE_PORT || payload.length < 8) return;
    const flags = payload[0]!;
    const count = readU16(payload, 2);
    const seed = readU32(payload, 4);
    const answer = content(seed, 0, count);
    // The number of the request, so that the client can tell answers apart.
    if (count >= 16) answer.set(payload.subarray(0, 8));
    if ((flags & FLAG_TOKEN) !== 0 && count >= 16) host.entropy.fill(answer.subarray(8, 16));
    if ((flags & FLAG_CLOCK) !== 0 && count >= 16)
      writeU32(answer, 8, Math.floor(host.nowUs / 1000) >>> 0);
    const slow = (flags & FLAG_SLOW) !== 0 ? host.entropy.nextBelow(this.mood.thinkUsMax + 1) : 0;
    const atUs = Math.max(host.nowUs + slow, this.mood.stuckUntilUs);
    host.state.application.datagrams.push({
      atUs,
      dst: packet.src,
      srcPort: dstPort,
      dstPort: srcPort,
      payload: answer,
    });
  }

  onEchoReply(): void {
    // A guest does not ask.
  }
}
