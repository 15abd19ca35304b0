/**
 * Answers the SVM's questions for neighbours. Before a failover nothing of the SVM reaches the network (G3), so a
 * question that only it asks (its neighbour cache aged differently from the PVM's) would stay without an answer, and
 * its flows would stop. What it asks is known here: client frames carry the answers.
 *
 *     client frames --> learned: who has which address --> answer, written as the neighbour would
 *     SVM question, nobody known yet --> remembered, answered as soon as it is learned
 *
 * What ARP and neighbour discovery state outweighs what the source addresses of IP frames suggest: behind a router
 * many addresses share its MAC address. Probes for duplicate addresses (RFC 5227, RFC 4862 §5.4) get no answer,
 * which is the answer that the guest may keep its address.
 *
 * @module
 */
import type { FrameBuffer } from '../env/frame.ts';
import { NEIGHBOURS_MAX } from '../limits.ts';
import {
  ARP_OPERATION,
  ARP_REPLY,
  ARP_REQUEST,
  ARP_SENDER_IP,
  ARP_SENDER_MAC,
  ARP_TARGET_IP,
  emitArpFrame,
  isArp,
} from '../wire/arp.ts';
import { ETHER_TYPE_ARP } from '../wire/ethernet.ts';
import type { FrameInfo } from '../wire/frame.ts';
import {
  emitNeighbourFrame,
  findNeighbourMac,
  isNeighbourMessage,
  ND_FLAG_OVERRIDE,
  ND_FLAG_ROUTER,
  ND_FLAG_SOLICITED,
  ND_FLAGS,
  ND_NEIGHBOUR_ADVERTISEMENT,
  ND_OPTION_SOURCE_MAC,
  ND_OPTION_TARGET_MAC,
  ND_ROUTER_ADVERTISEMENT,
  ND_TARGET,
} from '../wire/icmpv6.ts';
import { IP_PROTOCOL_ICMPV6 } from '../wire/ipv4.ts';
import { IPV6_HOP_LIMIT } from '../wire/ipv6.ts';
import type { FramePool } from './frame-pool.ts';
import {
  ANNOUNCEMENT_BYTES_MAX,
  addressKey,
  type GuestAddresses,
  isHostAddress,
} from './guest-addresses.ts';

/** Questions without an answer yet. At the limit the oldest is forgotten; the guest asks again. */
const QUESTIONS_MAX = 64;
/** Entries of the direct-mapped cache of sources seen last, a power of two. */
const RECENT_ENTRIES = 256;
/** Words of an entry: VLAN and IP version, MAC address (2), IP address (4). */
const RECENT_WORDS = 7;

/** Router flag of a neighbour, as far as it has shown it. */
type RouterState = 'unknown' | 'host' | 'router';

interface Neighbour {
  mac: Uint8Array;
  isRouter: RouterState;
}

interface Question {
  readonly ipVersion: number;
  readonly vlan: number;
  readonly target: Uint8Array;
  readonly askerMac: Uint8Array;
  readonly askerIp: Uint8Array;
}

export class Neighbours {
  readonly #pool: FramePool;
  readonly #guest: GuestAddresses;
  readonly #sendToGuest: (buffer: FrameBuffer, offset: number, length: number) => void;
  /** Stated by ARP and neighbour discovery, oldest first; and suggested by IP frames. */
  readonly #stated = new Map<string, Neighbour>();
  readonly #suggested = new Map<string, Neighbour>();
  readonly #questions = new Map<string, Question>();
  readonly #recent = new Uint32Array(RECENT_ENTRIES * RECENT_WORDS);
  #answered = 0;

  constructor(
    pool: FramePool,
    guest: GuestAddresses,
    sendToGuest: (buffer: FrameBuffer, offset: number, length: number) => void,
  ) {
    this.#pool = pool;
    this.#guest = guest;
    this.#sendToGuest = sendToGuest;
  }

  /** Neighbours known. */
  get size(): number {
    return this.#stated.size + this.#suggested.size;
  }

  /** Questions of the guest that were answered. */
  get answered(): number {
    return this.#answered;
  }

  /** Is a neighbour known by `addressKey`? */
  has(key: string): boolean {
    return this.#stated.has(key) || this.#suggested.has(key);
  }

  // ------------------------------------------------------------------ learning

  /** A frame of the client side. */
  onClientFrame(info: FrameInfo): void {
    if (info.ipVersion !== 0) {
      this.#onClientIp(info);
      if (info.protocol === IP_PROTOCOL_ICMPV6) this.#onClientDiscovery(info);
      return;
    }
    if (!isArpFrame(info)) return;
    const arp = info.l3Offset;
    this.#state(info, 4, arp + ARP_SENDER_IP, arp + ARP_SENDER_MAC, 'unknown');
    // A unicast request or a reply goes to whoever has the target address.
    this.#guest.onClientTarget(info, 4, arp + ARP_TARGET_IP);
  }

  #onClientDiscovery(info: FrameInfo): void {
    if (isRouterAdvertisement(info)) {
      this.#state(info, 6, info.srcAddressOffset, info.frameOffset + 6, 'router');
      return;
    }
    if (!isNeighbourMessage(info)) return;
    if (info.icmpType === ND_NEIGHBOUR_ADVERTISEMENT) {
      const mac = findNeighbourMac(info, ND_OPTION_TARGET_MAC);
      const isRouter = (info.bytes[info.l4Offset + ND_FLAGS]! & ND_FLAG_ROUTER) !== 0;
      // RFC 4861 §4.4: the option may be left out of an answer to a unicast question; the frame has the address.
      const at = mac < 0 ? info.frameOffset + 6 : mac;
      this.#state(info, 6, info.l4Offset + ND_TARGET, at, isRouter ? 'router' : 'host');
      return;
    }
    const mac = findNeighbourMac(info, ND_OPTION_SOURCE_MAC);
    if (mac >= 0) this.#state(info, 6, info.srcAddressOffset, mac, 'unknown');
  }

  /** ARP or neighbour discovery states who has an address. */
  #state(
    info: FrameInfo,
    ipVersion: number,
    ipOffset: number,
    macOffset: number,
    isRouter: RouterState,
  ): void {
    const { bytes } = info;
    if (!isHostAddress(ipVersion, bytes, ipOffset) || !isHostMac(info, macOffset)) return;
    if (this.#guest.has(ipVersion, info.vlan, bytes, ipOffset)) return;
    const key = addressKey(ipVersion, info.vlan, bytes, ipOffset);
    const before = this.#stated.get(key);
    const neighbour: Neighbour = {
      mac: bytes.slice(macOffset, macOffset + 6),
      isRouter: isRouter === 'unknown' ? (before?.isRouter ?? 'unknown') : isRouter,
    };
    this.#suggested.delete(key);
    remember(this.#stated, key, neighbour);
    this.#answerWaiting(key, neighbour);
  }

  /** The source addresses of an IP frame. The common case, a source seen just before, costs a comparison. */
  #onClientIp(info: FrameInfo): void {
    const { view, frameOffset, srcAddressOffset: src } = info;
    const isIpv4 = info.ipVersion === 4;
    const low = view.getUint32(isIpv4 ? src : src + 12);
    const hash = Math.imul(low ^ info.vlan, 0x9e3779b1) >>> 24;
    const recent = this.#recent;
    const at = (hash & (RECENT_ENTRIES - 1)) * RECENT_WORDS;
    const kind = info.vlan * 16 + info.ipVersion;
    const macHigh = view.getUint16(frameOffset + 6);
    const macLow = view.getUint32(frameOffset + 8);
    if (
      recent[at] === kind &&
      recent[at + 1] === macHigh &&
      recent[at + 2] === macLow &&
      recent[at + 3] === low &&
      (isIpv4 ||
        (recent[at + 4] === view.getUint32(src) &&
          recent[at + 5] === view.getUint32(src + 4) &&
          recent[at + 6] === view.getUint32(src + 8)))
    ) {
      return;
    }
    recent[at] = kind;
    recent[at + 1] = macHigh;
    recent[at + 2] = macLow;
    recent[at + 3] = low;
    for (let i = 0; i < 3; i++) recent[at + 4 + i] = isIpv4 ? 0 : view.getUint32(src + 4 * i);
    this.#suggest(info);
  }

  #suggest(info: FrameInfo): void {
    const { bytes, ipVersion, srcAddressOffset: src } = info;
    const macOffset = info.frameOffset + 6;
    if (!isHostAddress(ipVersion, bytes, src) || !isHostMac(info, macOffset)) return;
    if (this.#guest.has(ipVersion, info.vlan, bytes, src)) return;
    const key = addressKey(ipVersion, info.vlan, bytes, src);
    if (this.#stated.has(key)) return;
    const neighbour: Neighbour = {
      mac: bytes.slice(macOffset, macOffset + 6),
      isRouter: 'unknown',
    };
    remember(this.#suggested, key, neighbour);
    this.#answerWaiting(key, neighbour);
  }

  // ------------------------------------------------------------------ answering

  /**
   * An ARP or neighbour discovery frame of the guest: learns the guest's addresses from it and, when it is a
   * question, answers it or keeps it in mind.
   */
  onGuestFrame(info: FrameInfo): void {
    learnOwnAddresses(info, this.#guest);
    if (isArpFrame(info)) this.#onGuestArp(info);
    else if (isNeighbourMessage(info)) this.#onGuestDiscovery(info);
  }

  #onGuestArp(info: FrameInfo): void {
    const { bytes, l3Offset: arp, vlan } = info;
    const sender = arp + ARP_SENDER_IP;
    const target = arp + ARP_TARGET_IP;
    // RFC 5227 §2.1.1: a probe's sender address is all zero, and isHostAddress refuses it.
    if (!isHostAddress(4, bytes, sender)) return;
    if (info.view.getUint16(arp + ARP_OPERATION) !== ARP_REQUEST) return;
    this.#ask(addressKey(4, vlan, bytes, target), {
      ipVersion: 4,
      vlan,
      target: bytes.slice(target, target + 4),
      askerMac: bytes.slice(arp + ARP_SENDER_MAC, arp + ARP_SENDER_MAC + 6),
      askerIp: bytes.slice(sender, sender + 4),
    });
  }

  #onGuestDiscovery(info: FrameInfo): void {
    const { bytes, srcAddressOffset: src, vlan } = info;
    const target = info.l4Offset + ND_TARGET;
    const mac = info.frameOffset + 6;
    if (info.icmpType === ND_NEIGHBOUR_ADVERTISEMENT) return;
    // RFC 4862 §5.4.2: duplicate address detection asks from the unspecified address.
    if (!isHostAddress(6, bytes, src)) return;
    this.#ask(addressKey(6, vlan, bytes, target), {
      ipVersion: 6,
      vlan,
      target: bytes.slice(target, target + 16),
      askerMac: bytes.slice(mac, mac + 6),
      askerIp: bytes.slice(src, src + 16),
    });
  }

  #ask(key: string, question: Question): void {
    // A gratuitous request asks for the sender's own address.
    if (this.#guest.hasKey(key)) return;
    const neighbour = this.#stated.get(key) ?? this.#suggested.get(key);
    if (neighbour !== undefined) {
      this.#answer(question, neighbour);
      return;
    }
    this.#questions.delete(key);
    if (this.#questions.size >= QUESTIONS_MAX) {
      const [oldest] = this.#questions.keys();
      if (oldest !== undefined) this.#questions.delete(oldest);
    }
    this.#questions.set(key, question);
    // The address may have been forgotten while its frames still pass the short way.
    this.#recent.fill(0);
  }

  #answerWaiting(key: string, neighbour: Neighbour): void {
    if (this.#questions.size === 0) return;
    const question = this.#questions.get(key);
    if (question === undefined) return;
    this.#questions.delete(key);
    this.#answer(question, neighbour);
  }

  #answer(question: Question, neighbour: Neighbour): void {
    const { vlan, target, askerMac, askerIp } = question;
    const { mac } = neighbour;
    const frame = this.#pool.acquire(ANNOUNCEMENT_BYTES_MAX);
    if (question.ipVersion === 4) {
      frame.length = emitArpFrame(frame.buffer, frame.offset, {
        operation: ARP_REPLY,
        senderMac: mac,
        senderIp: target,
        targetMac: askerMac,
        targetIp: askerIp,
        vlan,
      });
    } else {
      // RFC 4861 §7.2.5: a router that loses the flag is struck from the default routers, so without knowing better
      // it is set; on a host it has no effect.
      const router = neighbour.isRouter === 'host' ? 0 : ND_FLAG_ROUTER;
      frame.length = emitNeighbourFrame(frame.buffer, frame.offset, {
        type: ND_NEIGHBOUR_ADVERTISEMENT,
        srcMac: mac,
        dstMac: askerMac,
        src: target,
        dst: askerIp,
        target,
        flags: ND_FLAG_SOLICITED | ND_FLAG_OVERRIDE | router,
        vlan,
      });
    }
    this.#sendToGuest(frame.buffer, frame.offset, frame.length);
    this.#pool.release(frame);
    this.#answered++;
  }
}

/** What the guest says of its own addresses in ARP and neighbour discovery. */
export function learnOwnAddresses(info: FrameInfo, guest: GuestAddresses): void {
  if (isArpFrame(info)) {
    guest.learn(info, 4, info.l3Offset + ARP_SENDER_IP, info.l3Offset + ARP_SENDER_MAC, true);
  } else if (isNeighbourMessage(info)) {
    const mac = info.frameOffset + 6;
    if (info.icmpType === ND_NEIGHBOUR_ADVERTISEMENT) {
      guest.learn(info, 6, info.l4Offset + ND_TARGET, mac, true);
      guest.isRouter = (info.bytes[info.l4Offset + ND_FLAGS]! & ND_FLAG_ROUTER) !== 0;
    } else guest.learn(info, 6, info.srcAddressOffset, mac, true);
  }
}

/** Somebody's own address: no group's, and not the zeros of a frame whose header was not known. */
function isHostMac({ bytes, view }: FrameInfo, offset: number): boolean {
  const isZero = view.getUint16(offset) === 0 && view.getUint32(offset + 2) === 0;
  return !isZero && (bytes[offset]! & 1) === 0;
}

/** Is the frame ARP for IPv4, whole? */
function isArpFrame(info: FrameInfo): boolean {
  if (info.etherType !== ETHER_TYPE_ARP) return false;
  return isArp(info.view, info.l3Offset, info.frameOffset + info.frameBytes);
}

/** A router advertisement from the link itself (RFC 4861 §6.1.2). */
function isRouterAdvertisement(info: FrameInfo): boolean {
  return (
    info.icmpType === ND_ROUTER_ADVERTISEMENT &&
    info.ipVersion === 6 &&
    !info.isFragment &&
    info.bytes[info.l3Offset + IPV6_HOP_LIMIT] === 255
  );
}

/** Enters as the newest; each of the two maps may hold half of NEIGHBOURS_MAX, the oldest gives way. */
function remember(map: Map<string, Neighbour>, key: string, neighbour: Neighbour): void {
  map.delete(key);
  if (map.size >= NEIGHBOURS_MAX / 2) {
    const [oldest] = map.keys();
    if (oldest !== undefined) map.delete(oldest);
  }
  map.set(key, neighbour);
}
