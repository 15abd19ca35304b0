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
  ARP_REQUEST,
  ArpFields,
  ICMPV6_NEIGHBOUR_ADVERTISEMENT,
  ICMPV6_NEIGHBOUR_SOLICITATION,
  ICMPV6_ROUTER_ADVERTISEMENT,
  NA_OVERRIDE,
  NA_ROUTER,
  NA_SOLICITED,
  NEIGHBOUR_FRAME_BYTES_MAX,
  NeighbourFields,
  readArp,
  readNeighbourDiscovery,
  writeArpReply,
  writeNeighbourAdvertisement,
} from '../rewrite/neighbour-frames.ts';
import type { FrameInfo } from '../wire/frame.ts';
import type { FramePool } from './frame-pool.ts';
import { addressKey, copyTags, type GuestAddresses, isHostAddress } from './guest-addresses.ts';

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
  readonly tags: Uint8Array;
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
  readonly #arp = new ArpFields();
  readonly #discovery = new NeighbourFields();
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
      if (readNeighbourDiscovery(info, this.#discovery)) this.#onClientDiscovery(info);
      return;
    }
    const arp = this.#arp;
    if (!readArp(info, arp)) return;
    this.#state(info, 4, arp.senderIpOffset, arp.senderMacOffset, 'unknown');
    // A unicast request or a reply is addressed to the guest: whose is the target address.
    const isToOne = (info.bytes[info.frameOffset]! & 1) === 0;
    if (isToOne) this.#guest.learn(info, 4, arp.targetIpOffset, info.frameOffset, true);
  }

  #onClientDiscovery(info: FrameInfo): void {
    const { type, flags, targetOffset, linkAddressOffset } = this.#discovery;
    const isAdvertisement = type === ICMPV6_NEIGHBOUR_ADVERTISEMENT;
    if (linkAddressOffset === 0) return;
    let isRouter: RouterState = 'unknown';
    if (isAdvertisement) isRouter = (flags & NA_ROUTER) === 0 ? 'host' : 'router';
    else if (type === ICMPV6_ROUTER_ADVERTISEMENT) isRouter = 'router';
    const about = isAdvertisement ? targetOffset : info.srcAddressOffset;
    this.#state(info, 6, about, linkAddressOffset, isRouter);
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
    if (!isHostAddress(ipVersion, bytes, ipOffset) || (bytes[macOffset]! & 1) !== 0) return;
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
    if (!isHostAddress(ipVersion, bytes, src) || (bytes[macOffset]! & 1) !== 0) return;
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
    if (info.ipVersion === 0) this.#onGuestArp(info);
    else if (readNeighbourDiscovery(info, this.#discovery)) this.#onGuestDiscovery(info);
  }

  #onGuestArp(info: FrameInfo): void {
    const arp = this.#arp;
    if (!readArp(info, arp)) return;
    const { bytes } = info;
    // RFC 5227 §2.1.1: a probe's sender address is all zero, and isHostAddress refuses it.
    if (!isHostAddress(4, bytes, arp.senderIpOffset)) return;
    this.#guest.learn(info, 4, arp.senderIpOffset, arp.senderMacOffset, true);
    if (arp.operation !== ARP_REQUEST) return;
    this.#ask(addressKey(4, info.vlan, bytes, arp.targetIpOffset), {
      ipVersion: 4,
      tags: copyTags(info),
      target: bytes.slice(arp.targetIpOffset, arp.targetIpOffset + 4),
      askerMac: bytes.slice(arp.senderMacOffset, arp.senderMacOffset + 6),
      askerIp: bytes.slice(arp.senderIpOffset, arp.senderIpOffset + 4),
    });
  }

  #onGuestDiscovery(info: FrameInfo): void {
    const { bytes } = info;
    const { type, flags, targetOffset } = this.#discovery;
    const macOffset = info.frameOffset + 6;
    if (type === ICMPV6_NEIGHBOUR_ADVERTISEMENT) {
      this.#guest.learn(info, 6, targetOffset, macOffset, true);
      this.#guest.isRouter = (flags & NA_ROUTER) !== 0;
      return;
    }
    // RFC 4862 §5.4.2: duplicate address detection asks from the unspecified address.
    if (!isHostAddress(6, bytes, info.srcAddressOffset)) return;
    this.#guest.learn(info, 6, info.srcAddressOffset, macOffset, true);
    if (type !== ICMPV6_NEIGHBOUR_SOLICITATION) return;
    this.#ask(addressKey(6, info.vlan, bytes, targetOffset), {
      ipVersion: 6,
      tags: copyTags(info),
      target: bytes.slice(targetOffset, targetOffset + 16),
      askerMac: bytes.slice(macOffset, macOffset + 6),
      askerIp: bytes.slice(info.srcAddressOffset, info.srcAddressOffset + 16),
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
    const { tags, target, askerMac, askerIp } = question;
    const frame = this.#pool.acquire(NEIGHBOUR_FRAME_BYTES_MAX);
    if (question.ipVersion === 4) {
      frame.length = writeArpReply(frame, tags, neighbour.mac, target, askerMac, askerIp);
    } else {
      // RFC 4861 §7.2.5: a router that loses the flag is struck from the default routers, so without knowing better
      // it is set; on a host it has no effect.
      const router = neighbour.isRouter === 'host' ? 0 : NA_ROUTER;
      const flags = NA_SOLICITED | NA_OVERRIDE | router;
      frame.length = writeNeighbourAdvertisement(
        frame,
        tags,
        neighbour.mac,
        target,
        askerMac,
        askerIp,
        flags,
      );
    }
    this.#sendToGuest(frame.buffer, frame.offset, frame.length);
    this.#pool.release(frame);
    this.#answered++;
  }
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
