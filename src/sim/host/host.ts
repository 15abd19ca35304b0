/**
 * A model host: Ethernet, ARP and neighbour discovery, IP with fragments, TCP, UDP, ICMP echo. Clients and
 * guests are hosts with different applications. All its memory is `state`, plain data: copying that is a checkpoint.
 *
 * @module
 */
import type { Prng } from '../../base/prng.ts';
import { type Micros, NEVER } from '../../base/time.ts';
import { Marks, type TcpFeature } from '../marks.ts';
import {
  BROADCAST_MAC,
  ETHER_ARP,
  emitArp,
  emitIp,
  type IpPacket,
  PROTOCOL_ICMP,
  PROTOCOL_ICMPV6,
  PROTOCOL_TCP,
  PROTOCOL_UDP,
  parseArp,
  parseHead,
  parseIp,
  readHex,
  readU16,
  type SimFrame,
  transportChecksumOk,
  writeHex,
  writeU16,
} from '../net/packet.ts';
import {
  createConnection,
  endConnection,
  type TcpConnection,
  type TcpIo,
  type TcpOptions,
  tcpDeadlineUs,
} from '../tcp/connection.ts';
import { acceptSyn, tcpInput } from '../tcp/input.ts';
import { noteSegment } from '../tcp/note-segment.ts';
import { sendSyn, tcpOutput, tcpTimers } from '../tcp/output.ts';
import {
  ACK,
  blankSegment,
  emitSegment,
  parseSegment,
  RST,
  SYN,
  segmentLength,
  type TcpSegment,
} from '../tcp/segment.ts';
import { joinFragments } from './fragments.ts';
import { heedTooBig } from './path-mtu.ts';

/** How often an unanswered ARP or ND question is asked again. */
const ASK_AGAIN_US: Micros = 500_000;
/** Packets that wait for one neighbour's address. */
const WAITING_PACKETS_MAX = 16;
const ASK_TRIES_MAX = 30;
/** A neighbour that was not heard for so long is asked for again (RFC 4861 §7.3, Linux' base_reachable_time). */
const STALE_US: Micros = 10_000_000;

/** A packet that has not been put into a frame yet. */
interface Outgoing {
  dst: string;
  protocol: number;
  payload: Uint8Array;
  gsoBytes: number;
}

interface Neighbour {
  mac: string;
  /** When it was last heard. */
  heardUs: Micros;
  waiting: Outgoing[];
  askAtUs: Micros;
  tries: number;
}

/** Everything that a host remembers. */
export interface HostState {
  mac: string;
  ip4: string;
  ip6: string;
  vlan: number;
  mtu: number;
  tcp: TcpOptions;
  /** Checksums are left to the card. */
  partialChecksums: boolean;
  neighbours: Map<string, Neighbour>;
  connections: Map<string, TcpConnection>;
  listening: Set<number>;
  fragments: Map<string, IpPacket[]>;
  ipId: number;
  ephemeralPort: number;
  /** The application's memory. */
  application: ApplicationState;
}

/** Plain data of the application; see service.ts and client.ts. */
export interface ApplicationState {
  deadlineUs: Micros;
  services: Map<string, ServiceState>;
  datagrams: DelayedDatagram[];
  /** Bytes of requests that were not what a client sent. */
  damage: number;
}

/** One connection of the request service. */
export interface ServiceState {
  /** Bytes read that do not make a whole request header yet. */
  partial: Uint8Array;
  bodyLeft: number;
  bodyRead: number;
  request: { flags: number; bodyBytes: number; answerBytes: number; seed: number } | undefined;
  answers: Answer[];
  /** Above 0: it reads little, and only so often. */
  readEveryUs: Micros;
  nextReadUs: Micros;
}

export interface Answer {
  readyUs: Micros;
  /** Bytes to be written before `content`. */
  prefix: Uint8Array;
  seed: number;
  at: number;
  count: number;
  flags: number;
}

export interface DelayedDatagram {
  atUs: Micros;
  dst: string;
  srcPort: number;
  dstPort: number;
  payload: Uint8Array;
}

/** What runs on a host. Its memory is in the host's state. */
export interface Application {
  /** Something about a connection has changed. */
  onConnection(host: Host, key: string, connection: TcpConnection): void;
  onDatagram(
    host: Host,
    packet: IpPacket,
    srcPort: number,
    dstPort: number,
    payload: Uint8Array,
  ): void;
  /** An answer to an echo request. */
  onEchoReply(host: Host, packet: IpPacket): void;
  onTimer(host: Host): void;
}

export function connectionKey(remote: string, remotePort: number, localPort: number): string {
  return `${remote}:${remotePort}:${localPort}`;
}

/** What a new host starts with. */
export function createHostState(
  identity: Pick<HostState, 'mac' | 'ip4' | 'ip6' | 'vlan' | 'mtu' | 'tcp' | 'partialChecksums'>,
): HostState {
  return {
    ...identity,
    neighbours: new Map(),
    connections: new Map(),
    listening: new Set(),
    fragments: new Map(),
    ipId: 1,
    ephemeralPort: 40_000,
    application: { deadlineUs: NEVER, services: new Map(), datagrams: [], damage: 0 },
  };
}

export class Host {
  state: HostState;
  readonly name: string;
  readonly #application: Application;
  readonly entropy: Prng;
  readonly #emit: (frame: SimFrame) => void;
  /** Near which number many ISNs lie; see createConnection. */
  readonly #isnAnchor: number;
  marks = new Marks();
  side: 'client' | 'guest' = 'guest';
  /** The host's own clock during a call. */
  nowUs: Micros = 0;

  constructor(
    name: string,
    state: HostState,
    application: Application,
    entropy: Prng,
    emit: (frame: SimFrame) => void,
    isnAnchor = 0x1_0000_0000,
  ) {
    this.#isnAnchor = isnAnchor;
    this.name = name;
    this.state = state;
    this.#application = application;
    this.entropy = entropy;
    this.#emit = emit;
  }

  get io(): TcpIo {
    return {
      nowUs: this.nowUs,
      entropy: this.entropy,
      emit: (connection, segment) => this.#sendSegment(connection, segment),
      note: (feature) => this.noteTcp(feature),
    };
  }

  noteTcp(feature: TcpFeature): void {
    this.marks.hit(`${this.side} ${feature}`);
  }

  /** When `timers` is wanted next, by the host's clock. */
  deadlineUs(): Micros {
    let next = this.state.application.deadlineUs;
    for (const datagram of this.state.application.datagrams) next = Math.min(next, datagram.atUs);
    for (const connection of this.state.connections.values()) {
      next = Math.min(next, tcpDeadlineUs(connection));
    }
    for (const neighbour of this.state.neighbours.values())
      next = Math.min(next, neighbour.askAtUs);
    return next;
  }

  /** Does what is due. */
  timers(nowUs: Micros): void {
    this.nowUs = nowUs;
    for (const [key, connection] of [...this.state.connections]) {
      if (tcpDeadlineUs(connection) <= nowUs) {
        tcpTimers(connection, this.io);
        this.touch(key, connection);
      }
    }
    for (const [ip, neighbour] of [...this.state.neighbours]) {
      if (neighbour.askAtUs <= nowUs) this.#ask(ip, neighbour);
    }
    const due = this.state.application.datagrams.filter((datagram) => datagram.atUs <= nowUs);
    if (due.length > 0) {
      this.state.application.datagrams = this.state.application.datagrams.filter(
        (datagram) => datagram.atUs > nowUs,
      );
      for (const item of due) this.sendDatagram(item.dst, item.srcPort, item.dstPort, item.payload);
    }
    if (this.state.application.deadlineUs <= nowUs) this.#application.onTimer(this);
  }

  /** Lets the application see a connection, sends what it wrote, forgets the connection once it is closed. */
  touch(key: string, connection: TcpConnection): void {
    if (this.state.connections.get(key) !== connection) return;
    this.#application.onConnection(this, key, connection);
    tcpOutput(connection, this.io);
    if (connection.state === 'closed') this.state.connections.delete(key);
  }

  /** Opens a connection; its key. */
  connect(remote: string, remotePort: number, localPort: number): string {
    const connection = createConnection(
      this.state.tcp,
      { local: this.addressFor(remote), remote, localPort, remotePort },
      'syn-sent',
      this.entropy,
      this.#isnAnchor,
    );
    const key = connectionKey(remote, remotePort, localPort);
    this.state.connections.set(key, connection);
    sendSyn(connection, this.io);
    return key;
  }

  /** This host's address in the family of `other`. */
  addressFor(other: string): string {
    return other.length === 8 ? this.state.ip4 : this.state.ip6;
  }

  /** Takes a frame from the card. */
  input(frame: SimFrame, nowUs: Micros): void {
    this.nowUs = nowUs;
    const head = parseHead(frame);
    if (head === undefined || head.vlan !== this.state.vlan) return;
    const isMulticast = (Number.parseInt(head.dstMac.slice(0, 2), 16) & 1) === 1;
    if (!isMulticast && head.dstMac !== this.state.mac) return;
    if (head.etherType === ETHER_ARP) {
      this.#inputArp(frame);
      return;
    }
    const packet = parseIp(frame);
    if (packet === undefined || !packet.headerChecksumOk) return;
    const isMine = packet.dst === this.state.ip4 || packet.dst === this.state.ip6;
    if (!isMine && !(packet.dst.startsWith('ff02') && packet.protocol === PROTOCOL_ICMPV6)) return;
    const neighbour = this.state.neighbours.get(packet.src);
    if (neighbour !== undefined && neighbour.askAtUs === NEVER) neighbour.heardUs = this.nowUs;
    const whole = this.#reassemble(packet);
    if (whole !== undefined && transportChecksumOk(whole)) this.#inputTransport(whole);
  }

  #inputTransport(packet: IpPacket): void {
    if (packet.protocol === PROTOCOL_TCP) this.#inputTcp(packet);
    else if (heedTooBig(this, packet)) return;
    else if (packet.protocol === PROTOCOL_UDP && packet.payload.length >= 8) {
      const { payload } = packet;
      const count = Math.min(readU16(payload, 4), payload.length);
      if (count < 8) return;
      this.#application.onDatagram(
        this,
        packet,
        readU16(payload, 0),
        readU16(payload, 2),
        payload.slice(8, count),
      );
    } else if (packet.protocol === PROTOCOL_ICMP) this.#inputEcho(packet, 8, 0);
    else if (packet.protocol === PROTOCOL_ICMPV6) this.#inputIcmpv6(packet);
  }

  #inputEcho(packet: IpPacket, request: number, reply: number): void {
    if (packet.payload.length < 8) return;
    if (packet.payload[0] === reply) this.#application.onEchoReply(this, packet);
    if (packet.payload[0] !== request) return;
    const answer = packet.payload.slice();
    answer[0] = reply;
    writeU16(answer, 2, 0);
    this.send({ dst: packet.src, protocol: packet.protocol, payload: answer, gsoBytes: 0 });
  }

  #inputIcmpv6(packet: IpPacket): void {
    const { payload } = packet;
    if (payload.length < 24 || (payload[0] !== 135 && payload[0] !== 136)) {
      this.#inputEcho(packet, 128, 129);
      return;
    }
    const target = readHex(payload, 8, 16);
    const optionMac = payload.length >= 32 ? readHex(payload, 26, 6) : packet.head.srcMac;
    if (payload[0] === 136) {
      // RFC 4861 §7.2.5: an override (or an answer to a question that is open) is taken.
      if (this.state.neighbours.has(target)) this.#learn(target, optionMac);
      return;
    }
    if (target !== this.state.ip6) return;
    if (payload[24] === 1) this.#learn(packet.src, optionMac);
    this.send({
      dst: packet.src,
      protocol: PROTOCOL_ICMPV6,
      payload: this.#neighbourBody(136, target),
      gsoBytes: 0,
    });
  }

  #neighbourBody(type: number, target: string): Uint8Array {
    const body = new Uint8Array(32);
    body[0] = type;
    if (type === 136) body[4] = 0x60;
    writeHex(body, 8, target);
    body[24] = type === 135 ? 1 : 2;
    body[25] = 1;
    writeHex(body, 26, this.state.mac);
    return body;
  }

  #inputArp(frame: SimFrame): void {
    const arp = parseArp(frame);
    if (arp === undefined) return;
    const isForMe = arp.targetIp === this.state.ip4;
    // RFC 826: an entry that exists is updated; a new one is made only by a packet that is for us.
    if (this.state.neighbours.has(arp.senderIp) || isForMe)
      this.#learn(arp.senderIp, arp.senderMac);
    if (!isForMe || arp.operation !== 1) return;
    this.#emit(
      emitArp({
        srcMac: this.state.mac,
        dstMac: arp.senderMac,
        vlan: this.state.vlan,
        operation: 2,
        senderMac: this.state.mac,
        senderIp: this.state.ip4,
        targetMac: arp.senderMac,
        targetIp: arp.senderIp,
      }),
    );
  }

  #learn(ip: string, mac: string): void {
    const known = this.state.neighbours.get(ip);
    const waiting = known?.waiting ?? [];
    const entry = { mac, heardUs: this.nowUs, waiting: [], askAtUs: NEVER, tries: 0 };
    this.state.neighbours.set(ip, entry);
    for (const item of waiting) this.#sendTo(mac, item);
  }

  #reassemble(packet: IpPacket): IpPacket | undefined {
    if (packet.fragmentOffset === 0 && !packet.moreFragments) return packet;
    const key = `${packet.src}:${packet.id}:${packet.protocol}`;
    const pieces = this.state.fragments.get(key) ?? [];
    pieces.push(packet);
    this.state.fragments.set(key, pieces);
    if (this.state.fragments.size > 64) {
      this.state.fragments.delete(this.state.fragments.keys().next().value!);
    }
    const whole = joinFragments(pieces);
    if (whole !== undefined) this.state.fragments.delete(key);
    return whole;
  }

  #inputTcp(packet: IpPacket): void {
    const segment = parseSegment(packet.payload);
    if (segment === undefined) return;
    const key = connectionKey(packet.src, segment.srcPort, segment.dstPort);
    let connection = this.state.connections.get(key);
    if (connection?.state === 'time-wait' && this.#mayReplace(connection, segment)) {
      // The application must see the end of the old one, or it goes on in the new one with what it remembers of it.
      endConnection(connection, '');
      this.touch(key, connection);
      connection = undefined;
    }
    if (connection === undefined) {
      if (
        !this.state.listening.has(segment.dstPort) ||
        (segment.flags & (SYN | ACK | RST)) !== SYN
      ) {
        this.#refuse(packet, segment);
        return;
      }
      connection = createConnection(
        this.state.tcp,
        {
          local: packet.dst,
          remote: packet.src,
          localPort: segment.dstPort,
          remotePort: segment.srcPort,
        },
        'syn-received',
        this.entropy,
        this.#isnAnchor,
      );
      acceptSyn(connection, segment);
      this.state.connections.set(key, connection);
      sendSyn(connection, this.io);
      return;
    }
    tcpInput(connection, segment, this.io);
    this.touch(key, connection);
  }

  /** RFC 6191: a SYN beyond the old connection's numbers may take its place. */
  #mayReplace(connection: TcpConnection, segment: TcpSegment): boolean {
    const expected = (connection.irs + connection.rcvNxt) >>> 0;
    return (segment.flags & (SYN | ACK | RST)) === SYN && ((segment.seq - expected) | 0) > 0;
  }

  /** RFC 9293 §3.10.7.1: a segment for no connection. */
  #refuse(packet: IpPacket, segment: TcpSegment): void {
    if ((segment.flags & RST) !== 0) return;
    const answer = blankSegment();
    answer.srcPort = segment.dstPort;
    answer.dstPort = segment.srcPort;
    answer.flags = RST;
    if ((segment.flags & ACK) !== 0) {
      answer.seq = segment.ack;
    } else {
      answer.flags = RST | ACK;
      answer.ack = (segment.seq + segmentLength(segment)) >>> 0;
    }
    this.send({
      dst: packet.src,
      protocol: PROTOCOL_TCP,
      payload: emitSegment(answer),
      gsoBytes: 0,
    });
  }

  #sendSegment(connection: TcpConnection, segment: TcpSegment): void {
    const isLong = segment.payload.length > connection.mss;
    noteSegment(connection, segment, this.io);
    this.send({
      dst: connection.remoteAddress,
      protocol: PROTOCOL_TCP,
      payload: emitSegment(segment),
      gsoBytes: isLong ? connection.mss : 0,
    });
  }

  /** Sends a UDP datagram, in fragments when it is long. */
  sendDatagram(dst: string, srcPort: number, dstPort: number, payload: Uint8Array): void {
    const bytes = new Uint8Array(8 + payload.length);
    writeU16(bytes, 0, srcPort);
    writeU16(bytes, 2, dstPort);
    writeU16(bytes, 4, bytes.length);
    bytes.set(payload, 8);
    this.send({ dst, protocol: PROTOCOL_UDP, payload: bytes, gsoBytes: 0 });
  }

  /** Sends an IP packet, after asking for the neighbour's address when it is not known. */
  send(item: Outgoing): void {
    const known = this.state.neighbours.get(item.dst);
    if (known !== undefined && known.mac !== '') {
      this.#sendTo(known.mac, item);
      if (this.nowUs - known.heardUs > STALE_US && known.askAtUs === NEVER)
        this.#ask(item.dst, known);
      return;
    }
    const neighbour = known ?? { mac: '', heardUs: 0, waiting: [], askAtUs: NEVER, tries: 0 };
    if (neighbour.waiting.length < WAITING_PACKETS_MAX) neighbour.waiting.push(item);
    if (known !== undefined) return;
    this.state.neighbours.set(item.dst, neighbour);
    this.#ask(item.dst, neighbour);
  }

  #ask(ip: string, neighbour: Neighbour): void {
    neighbour.tries++;
    neighbour.askAtUs = this.nowUs + ASK_AGAIN_US;
    if (neighbour.tries > ASK_TRIES_MAX) {
      // The next packet for it asks anew.
      this.state.neighbours.delete(ip);
      return;
    }
    const { mac, ip4, vlan } = this.state;
    if (ip.length === 8) {
      this.marks.hit('address resolution by ARP');
      this.#emit(
        emitArp({
          srcMac: mac,
          dstMac: BROADCAST_MAC,
          vlan,
          operation: 1,
          senderMac: mac,
          senderIp: ip4,
          targetMac: '000000000000',
          targetIp: ip,
        }),
      );
      return;
    }
    this.marks.hit('address resolution by neighbour discovery');
    const tail = ip.slice(-6);
    this.#emitPacket(
      `3333ff${tail}`,
      `ff0200000000000000000001ff${tail}`,
      PROTOCOL_ICMPV6,
      this.#neighbourBody(135, ip),
      255,
    );
  }

  #emitPacket(
    dstMac: string,
    dst: string,
    protocol: number,
    payload: Uint8Array,
    hopLimit: number,
  ): void {
    this.#emit(
      emitIp(
        {
          srcMac: this.state.mac,
          dstMac,
          vlan: this.state.vlan,
          src: this.addressFor(dst),
          dst,
          protocol,
          id: this.state.ipId++ & 0xffff,
          hopLimit,
        },
        payload,
      ),
    );
  }

  #sendTo(dstMac: string, item: Outgoing): void {
    const { state } = this;
    const isNeighbour = item.protocol === PROTOCOL_ICMPV6 && (item.payload[0]! & 0xfe) === 0x86;
    const base = {
      srcMac: state.mac,
      dstMac,
      vlan: state.vlan,
      src: this.addressFor(item.dst),
      dst: item.dst,
      protocol: item.protocol,
      id: state.ipId++ & 0xffff,
      hopLimit: isNeighbour || item.payload[0] === 136 ? 255 : 64,
    };
    const isTcp = item.protocol === PROTOCOL_TCP;
    const headerBytes = item.dst.length === 8 ? 20 : 40;
    if (isTcp || item.payload.length + headerBytes <= state.mtu) {
      const partialChecksum = isTcp && (state.partialChecksums || item.gsoBytes > 0);
      this.#emit(emitIp({ ...base, partialChecksum, gsoBytes: item.gsoBytes }, item.payload));
      return;
    }
    this.marks.hit('datagram in fragments');
    // The checksum covers the whole datagram: build it once, then cut.
    const whole = parseIp(emitIp(base, item.payload))!;
    const pieceBytes = (state.mtu - headerBytes - 8) & ~7;
    for (let at = 0; at < whole.payload.length; at += pieceBytes) {
      const moreFragments = at + pieceBytes < whole.payload.length;
      const piece = whole.payload.slice(at, at + pieceBytes);
      this.#emit(emitIp({ ...base, fragmentOffset: at, moreFragments }, piece));
    }
  }
}
