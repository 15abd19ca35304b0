/**
 * Which MAC address an IP address was last seen at: for frames that come without an Ethernet header. A table of fixed size without
 * an allocation per entry; where it is full, the oldest of a few makes room.
 *
 * @module
 */
import { MAC_BYTES } from '../wire/ethernet.ts';

/** Sets of WAYS entries; a power of two. 65,536 addresses in all. */
const SETS = 16_384;
const WAYS = 4;
/** Words of an entry: the IP address (an IPv4 address in the last, as ::ffff:a.b.c.d has it), the MAC address in two. */
const WORDS = 6;
const IPV4_MAPPED = 0xffff;
/** High half of a MAC address of which no bit is set means: unused. */
const MAC_HIGH = 4;
const MAC_LOW = 5;

export class HardwareAddresses {
  readonly #words = new Uint32Array(SETS * WAYS * WORDS);
  /** The way of each set that is overwritten next. */
  readonly #next = new Uint8Array(SETS);

  /** Notes that the IP address at `ipOffset` of `view` (4 or 16 bytes, by `ipVersion`) is at the MAC address at `macOffset` of `macView`. */
  learn(
    view: DataView,
    ipVersion: number,
    ipOffset: number,
    macView: DataView,
    macOffset: number,
  ): void {
    const macHigh = macView.getUint16(macOffset);
    const macLow = macView.getUint32(macOffset + 2);
    // A group address is nobody's; zero is not known.
    if ((macHigh & 0x0100) !== 0 || (macHigh === 0 && macLow === 0)) return;
    const words = this.#words;
    let at = this.#find(view, ipVersion, ipOffset);
    if (at < 0) {
      const set = -1 - at;
      const way = this.#next[set]!;
      this.#next[set] = (way + 1) % WAYS;
      at = (set * WAYS + way) * WORDS;
      const isIpv4 = ipVersion === 4;
      words[at] = isIpv4 ? 0 : view.getUint32(ipOffset);
      words[at + 1] = isIpv4 ? 0 : view.getUint32(ipOffset + 4);
      words[at + 2] = isIpv4 ? IPV4_MAPPED : view.getUint32(ipOffset + 8);
      words[at + 3] = view.getUint32(isIpv4 ? ipOffset : ipOffset + 12);
    }
    words[at + MAC_HIGH] = macHigh;
    words[at + MAC_LOW] = macLow;
  }

  /** Writes the MAC address of the IP address at `ipOffset` to `view` at `macOffset`; six zeros and false when it is not known. */
  write(view: DataView, ipVersion: number, ipOffset: number, macOffset: number): boolean {
    const at = this.#find(view, ipVersion, ipOffset);
    view.setUint16(macOffset, at < 0 ? 0 : this.#words[at + MAC_HIGH]!);
    view.setUint32(macOffset + MAC_BYTES - 4, at < 0 ? 0 : this.#words[at + MAC_LOW]!);
    return at >= 0;
  }

  /** Index of the entry's first word; `-1 - set` when there is none. */
  #find(view: DataView, ipVersion: number, ipOffset: number): number {
    const isIpv4 = ipVersion === 4;
    const a = isIpv4 ? 0 : view.getUint32(ipOffset);
    const b = isIpv4 ? 0 : view.getUint32(ipOffset + 4);
    const c = isIpv4 ? IPV4_MAPPED : view.getUint32(ipOffset + 8);
    const d = view.getUint32(isIpv4 ? ipOffset : ipOffset + 12);
    const set = Math.imul(a ^ Math.imul(b, 31) ^ Math.imul(c, 17) ^ d, 0x9e3779b1) >>> 18;
    const words = this.#words;
    for (let way = 0; way < WAYS; way++) {
      const at = (set * WAYS + way) * WORDS;
      const isHere =
        words[at + 3] === d && words[at + 2] === c && words[at + 1] === b && words[at] === a;
      if (isHere && (words[at + MAC_HIGH] !== 0 || words[at + MAC_LOW] !== 0)) return at;
    }
    return -1 - set;
  }
}
