/**
 * Which addresses the guest has, so that a failover can move them: gratuitous ARP and unsolicited neighbour
 * advertisements tell switches and neighbours that they are now behind this node.
 *
 * Two kinds of evidence. *Certain*: the guest said so itself in ARP or neighbour discovery, or a neighbour's answer was
 * addressed to it. *Likely*: it sends from the address. A guest that routes sends from the addresses of others,
 * which must not be taken from them: likely addresses of a VLAN count only while they are few, and not when a
 * neighbour was seen to have them.
 *
 * Both nodes learn from their own guest. The primary tells what it has learned before each commit: a secondary that has just
 * been started must be able to announce the guest before that has sent a frame there.
 *
 * @module
 */
import type { FrameBuffer } from '../env/frame.ts';
import type { GuestAddress } from '../env/messages.ts';
import { ARP_REPLY, ARP_REQUEST, emitArpFrame } from '../wire/arp.ts';
import { MAC_BROADCAST } from '../wire/ethernet.ts';
import type { FrameInfo } from '../wire/frame.ts';
import { emitUnsolicitedAdvertisement } from '../wire/icmpv6.ts';
import type { FramePool } from './frame-pool.ts';

/** Addresses remembered; further ones are not announced (a guest with more is rare, and they age in its neighbours). */
const GUEST_ADDRESSES_MAX = 256;
/** More likely addresses than this in a VLAN: the guest routes for others. A host has a link-local and a few more. */
const LIKELY_ADDRESSES_MAX = 8;
/** Longest ARP or neighbour discovery frame: Ethernet, two tags, IPv6, advertisement with one option. */
export const ANNOUNCEMENT_BYTES_MAX = 14 + 8 + 40 + 32;

/** A table key for an address in a VLAN. Allocates: not for each frame. */
export function addressKey(
  ipVersion: number,
  vlan: number,
  bytes: Uint8Array,
  offset: number,
): string {
  let key = `${ipVersion}.${vlan}.`;
  const end = offset + (ipVersion === 4 ? 4 : 16);
  for (let i = offset; i < end; i++) key += String.fromCharCode(bytes[i]!);
  return key;
}

/** Is the address one that a single host can have: not unspecified, not multicast, not the limited broadcast, not loopback? */
export function isHostAddress(ipVersion: number, bytes: Uint8Array, offset: number): boolean {
  const first = bytes[offset]!;
  if (ipVersion === 4) return first !== 0 && first !== 127 && first < 224;
  if (first === 0xff) return false;
  for (let i = 0; i < 15; i++) if (bytes[offset + i] !== 0) return true;
  return bytes[offset + 15]! > 1;
}

/** MAC addresses of the guest remembered; it has one for each interface. */
const GUEST_MACS_MAX = 16;

export class GuestAddresses {
  readonly #addresses = new Map<string, GuestAddress>();
  /** MAC addresses that the guest was seen to send from, as numbers. */
  readonly #macs = new Set<number>();
  /** Last source seen by IP version: nearly every frame repeats it. */
  readonly #last: Uint32Array[] = [new Uint32Array(7), new Uint32Array(7)];
  #isRouter = false;
  #changes = 0;

  /** Grows whenever there is something new to be told. */
  get changes(): number {
    return this.#changes;
  }

  /** Has the guest said that it is a router? */
  get isRouter(): boolean {
    return this.#isRouter;
  }

  get size(): number {
    return this.#addresses.size;
  }

  /** The guest's neighbour advertisements carry the router flag. */
  set isRouter(value: boolean) {
    if (value !== this.#isRouter) this.#changes++;
    this.#isRouter = value;
  }

  /** All addresses; not to be changed. */
  list(): GuestAddress[] {
    return [...this.#addresses.values()];
  }

  /**
   * The primary's word about an address, in memory that stays. What this node has seen of its own guest outweighs what is merely
   * likely there.
   */
  adopt(address: GuestAddress): void {
    const { ipVersion, vlan, ip, mac, certain } = address;
    if (!isHostAddress(ipVersion, ip, 0) || (mac[0]! & 1) !== 0) return;
    const key = addressKey(ipVersion, vlan, ip, 0);
    const known = this.#addresses.get(key);
    if (known === undefined && this.#addresses.size >= GUEST_ADDRESSES_MAX) return;
    if (known !== undefined && !certain) return;
    if (this.#macs.size < GUEST_MACS_MAX) this.#macs.add(macNumber(mac));
    this.#addresses.set(key, address);
    this.#changes++;
  }

  /** Has the guest this address? */
  has(ipVersion: number, vlan: number, bytes: Uint8Array, offset: number): boolean {
    return this.#addresses.has(addressKey(ipVersion, vlan, bytes, offset));
  }

  /** The same by `addressKey`. */
  hasKey(key: string): boolean {
    return this.#addresses.has(key);
  }

  /** The guest sent this IP frame. Precondition: `info.ipVersion` is 4 or 6. */
  onGuestIp(info: FrameInfo): void {
    const { view, frameOffset, srcAddressOffset: src } = info;
    const isIpv4 = info.ipVersion === 4;
    const last = this.#last[isIpv4 ? 0 : 1]!;
    const macHigh = view.getUint16(frameOffset + 6);
    const macLow = view.getUint32(frameOffset + 8);
    if (
      last[0] === macHigh &&
      last[1] === macLow &&
      last[2] === info.vlan &&
      last[3] === view.getUint32(src) &&
      (isIpv4 ||
        (last[4] === view.getUint32(src + 4) &&
          last[5] === view.getUint32(src + 8) &&
          last[6] === view.getUint32(src + 12)))
    ) {
      return;
    }
    last[0] = macHigh;
    last[1] = macLow;
    last[2] = info.vlan;
    for (let i = 0; i < (isIpv4 ? 1 : 4); i++) last[3 + i] = view.getUint32(src + 4 * i);
    this.learn(info, info.ipVersion, src, frameOffset + 6, false);
  }

  /**
   * A client's frame is addressed to the guest as the owner of the address at `ipOffset`: a unicast ARP. Not believed unless
   * it goes to a MAC address that the guest itself has used; a switch also floods frames that are for others.
   */
  onClientTarget(info: FrameInfo, ipVersion: number, ipOffset: number): void {
    if (!this.#macs.has(macNumber(info.bytes, info.frameOffset))) return;
    this.learn(info, ipVersion, ipOffset, info.frameOffset, true);
  }

  /**
   * The guest has the address at `ipOffset`, with the MAC address at `macOffset` (both in the memory of `info`).
   * `certain`: see the module's comment.
   */
  learn(
    info: FrameInfo,
    ipVersion: number,
    ipOffset: number,
    macOffset: number,
    certain: boolean,
  ): void {
    const { bytes } = info;
    if (!isHostAddress(ipVersion, bytes, ipOffset) || (bytes[macOffset]! & 1) !== 0) return;
    if (this.#macs.size < GUEST_MACS_MAX) this.#macs.add(macNumber(bytes, macOffset));
    const key = addressKey(ipVersion, info.vlan, bytes, ipOffset);
    const known = this.#addresses.get(key);
    if (known === undefined && this.#addresses.size >= GUEST_ADDRESSES_MAX) return;
    if (known?.certain && !certain) return;
    if (
      known !== undefined &&
      known.certain === certain &&
      macEquals(known.mac, bytes, macOffset)
    ) {
      return;
    }
    this.#changes++;
    this.#addresses.set(key, {
      ipVersion,
      vlan: info.vlan,
      ip: bytes.slice(ipOffset, ipOffset + (ipVersion === 4 ? 4 : 16)),
      mac: bytes.slice(macOffset, macOffset + 6),
      certain,
    });
  }

  /**
   * Emits the announcements of all addresses. For IPv4 both forms of gratuitous ARP (RFC 5944 §4.6), since some stacks heed
   * only the request and some only the reply; for IPv6 an unsolicited neighbour advertisement that overrides. Returns how many frames.
   *
   * @param isNeighbour has a neighbour this address, as far as is known?
   */
  announce(
    pool: FramePool,
    isNeighbour: (key: string) => boolean,
    emit: (buffer: FrameBuffer, offset: number, length: number) => void,
  ): number {
    const likely = new Map<string, number>();
    for (const { ipVersion, vlan, certain } of this.#addresses.values()) {
      const group = `${ipVersion}.${vlan}`;
      if (!certain) likely.set(group, (likely.get(group) ?? 0) + 1);
    }
    let frames = 0;
    for (const [key, address] of this.#addresses) {
      const { ipVersion, vlan, certain } = address;
      const many = (likely.get(`${ipVersion}.${vlan}`) ?? 0) > LIKELY_ADDRESSES_MAX;
      if (!certain && (many || isNeighbour(key))) continue;
      for (let form = 0; form < (ipVersion === 4 ? 2 : 1); form++) {
        const frame = pool.acquire(ANNOUNCEMENT_BYTES_MAX);
        frame.length = this.#write(frame.buffer, frame.offset, address, form);
        emit(frame.buffer, frame.offset, frame.length);
        pool.release(frame);
        frames++;
      }
    }
    return frames;
  }

  #write(buffer: FrameBuffer, offset: number, address: GuestAddress, form: number): number {
    const { ipVersion, mac, ip, vlan } = address;
    if (ipVersion === 6) {
      return emitUnsolicitedAdvertisement(buffer, offset, mac, ip, this.#isRouter, vlan);
    }
    const isRequest = form === 0;
    return emitArpFrame(buffer, offset, {
      operation: isRequest ? ARP_REQUEST : ARP_REPLY,
      senderMac: mac,
      senderIp: ip,
      ...(isRequest ? {} : { targetMac: mac }),
      targetIp: ip,
      dstMac: MAC_BROADCAST,
      vlan,
    });
  }
}

/** The six bytes at `offset` as one number. */
function macNumber(bytes: Uint8Array, offset = 0): number {
  let number = 0;
  for (let i = 0; i < 6; i++) number = number * 256 + bytes[offset + i]!;
  return number;
}

function macEquals(mac: Uint8Array, bytes: Uint8Array, offset: number): boolean {
  for (let i = 0; i < 6; i++) if (mac[i] !== bytes[offset + i]) return false;
  return true;
}
