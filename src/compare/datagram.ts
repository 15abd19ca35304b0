/**
 * What of a datagram the guests control, i.e. what must be equal: UDP and unknown protocols their payload; ICMP and
 * ICMPv6 everything but the checksum; an ICMP error quotes the packet it answers, of which only what identifies
 * that packet counts (the quoted header carries numbers that were adjusted on the way to the SVM).
 *
 * Left out everywhere: the IP header's identification, TTL, DSCP and checksum, which replicas choose on their own.
 *
 * @module
 */
import { bytesEqual } from '../base/equal.ts';
import type { FrameInfo } from '../wire/frame.ts';

const PROTOCOL_ICMP = 1;
const PROTOCOL_UDP = 17;
const PROTOCOL_ICMPV6 = 58;

/** Bytes of a quoted transport header that name the packet: ports, and TCP's sequence number (RFC 792). */
const QUOTED_TRANSPORT_BYTES = 8;

/** Up to four ranges of a datagram, in order. Reused: overwritten by the next `describe`. */
export class ComparedRanges {
  bytes: Uint8Array = new Uint8Array(0);
  count = 0;
  readonly offset: [number, number, number, number] = [0, 0, 0, 0];
  readonly length: [number, number, number, number] = [0, 0, 0, 0];

  /** Bytes in all ranges. */
  get total(): number {
    let total = 0;
    for (let i = 0; i < this.count; i++) total += this.length[i as 0]!;
    return total;
  }

  #add(offset: number, length: number): void {
    const i = this.count++ as 0;
    this.offset[i] = offset;
    this.length[i] = length;
  }

  /** Finds the ranges of the datagram that `info` describes. */
  describe(info: FrameInfo): void {
    this.bytes = info.bytes;
    this.count = 0;
    const { l4Offset, l4Bytes } = info;
    if (info.ipVersion === 0) {
      // No IP: the whole frame, addresses included.
      this.#add(info.frameOffset, info.frameBytes);
    } else if (info.protocol === PROTOCOL_UDP) {
      this.#add(info.payloadOffset, info.payloadBytes);
    } else if (info.protocol === PROTOCOL_ICMP && info.ipVersion === 4) {
      this.#describeIcmp(info, isIcmpv4Error(info.icmpType), 4);
    } else if (info.protocol === PROTOCOL_ICMPV6 && info.ipVersion === 6) {
      this.#describeIcmp(info, info.icmpType < 128, 6);
    } else {
      this.#add(l4Offset, l4Bytes);
    }
  }

  /** Type and code, then all behind the checksum; of an error's quotation only what names the packet. */
  #describeIcmp(info: FrameInfo, isError: boolean, version: 4 | 6): void {
    const { l4Offset, l4Bytes, bytes } = info;
    this.#add(l4Offset, Math.min(2, l4Bytes));
    const inner = l4Offset + 8;
    const end = l4Offset + l4Bytes;
    const headerBytes = version === 4 ? ((bytes[inner] ?? 0) & 0x0f) * 4 : 40;
    const addresses = version === 4 ? 12 : 8;
    const addressBytes = version === 4 ? 8 : 32;
    if (!isError || headerBytes < 20 || inner + headerBytes > end) {
      this.#add(l4Offset + 4, Math.max(0, l4Bytes - 4));
      return;
    }
    this.#add(l4Offset + 4, 4);
    this.#add(inner + addresses, addressBytes);
    const transport = inner + headerBytes;
    this.#add(transport, Math.min(QUOTED_TRANSPORT_BYTES, end - transport));
  }
}

function isIcmpv4Error(type: number): boolean {
  // RFC 1122 §3.2.2: unreachable, source quench, redirect, time exceeded, parameter problem.
  return type === 3 || type === 4 || type === 5 || type === 11 || type === 12;
}

/** Are the compared bytes of two datagrams equal? */
export function rangesEqual(a: ComparedRanges, b: ComparedRanges): boolean {
  if (a.count !== b.count) return false;
  for (let i = 0; i < a.count; i++) {
    const length = a.length[i as 0]!;
    if (length !== b.length[i as 0]!) return false;
    if (!bytesEqual(a.bytes, a.offset[i as 0]!, b.bytes, b.offset[i as 0]!, length)) return false;
  }
  return true;
}

/** The first bytes of what is compared, hexadecimal. */
export function rangesExcerpt(ranges: ComparedRanges, bytesMax: number): string {
  let text = '';
  let left = bytesMax;
  for (let i = 0; i < ranges.count && left > 0; i++) {
    const from = ranges.offset[i as 0]!;
    const to = from + Math.min(ranges.length[i as 0]!, left);
    left -= to - from;
    for (let at = from; at < to; at++) text += ranges.bytes[at]!.toString(16).padStart(2, '0');
  }
  return text;
}
