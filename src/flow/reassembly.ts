/**
 * Reassembly of IPv4 (RFC 791 §3.2, RFC 815) and IPv6 fragments (RFC 8200 §4.5), so that datagrams can be compared
 * whole, while the caller keeps the original fragments to pass on.
 *
 * Both families follow RFC 5722 on overlaps, as Linux does since 4.20: the whole datagram is given up, including
 * what of it is still to come. An exact duplicate (same place, same bytes) is no overlap, but belongs to the datagram.
 *
 * Bounded in datagrams, bytes, fragments of one datagram, and age; at a limit the oldest datagram is given up.
 *
 * @module
 */
import { assert } from '../base/assert.ts';
import { bytesEqual } from '../base/equal.ts';
import { type Micros, NEVER } from '../base/time.ts';
import type { FrameBuffer } from '../env/frame.ts';
import {
  FRAGMENTS_MAX,
  REASSEMBLIES_MAX,
  REASSEMBLY_BYTES_MAX,
  REASSEMBLY_TIMEOUT_US,
  VNET_HDR_BYTES,
} from '../limits.ts';
import { createFrameBuffer, toHex } from '../wire/bytes.ts';
import { writeIpv4Checksum } from '../wire/checksum.ts';
import type { FrameInfo } from '../wire/frame.ts';
import {
  IPV4_CHECKSUM,
  IPV4_FLAGS_OFFSET,
  IPV4_HEADER_BYTES_MIN,
  IPV4_TOTAL_LENGTH,
} from '../wire/ipv4.ts';
import {
  IPV6_EXT_AH,
  IPV6_EXT_FRAGMENT,
  IPV6_FRAGMENT_HEADER_BYTES,
  IPV6_HEADER_BYTES,
  IPV6_NEXT_HEADER,
  IPV6_PAYLOAD_LENGTH,
} from '../wire/ipv6.ts';

/** Why a datagram was given up. */
export type ReassemblyFailure =
  | 'timeout'
  /** Too many datagrams, bytes or fragments. */
  | 'limit'
  /** Two fragments claim the same bytes, and are no exact duplicates. */
  | 'overlap'
  /** A length that is no multiple of 8, two ends, or a datagram beyond 65,535 bytes. */
  | 'malformed'
  | 'cleared';

/** Options of a Reassembly; `F` is what the caller keeps of an original fragment. */
export interface ReassemblyInit<F> {
  /**
   * A datagram is whole. It is a frame for `dissect`, no longer fragmented, with a virtio-net header of zeros before it, lent
   * until the next `add`. `fragments` are the handles of all its fragments in order of arrival; they belong to the callee.
   * Neither callback may call into this object.
   */
  readonly onComplete: (
    buffer: FrameBuffer,
    offset: number,
    length: number,
    fragments: F[],
  ) => void;
  /** A datagram was given up: its handles, in order of arrival, go back. */
  readonly onAbandon: (fragments: F[], reason: ReassemblyFailure) => void;
  /** @default REASSEMBLIES_MAX */
  readonly datagramsMax?: number;
  /** @default REASSEMBLY_BYTES_MAX */
  readonly bytesMax?: number;
  /** @default FRAGMENTS_MAX */
  readonly fragmentsMax?: number;
  /** @default REASSEMBLY_TIMEOUT_US */
  readonly timeoutUs?: Micros;
}

/** The fragmentable part of one fragment: bytes `start..end-1` of the datagram's payload. */
interface Piece {
  readonly start: number;
  readonly end: number;
  readonly moreFragments: boolean;
  readonly bytes: Uint8Array;
}

interface Datagram<F> {
  readonly key: string;
  readonly ipVersion: number;
  readonly startedUs: Micros;
  /** Sorted by `start`, without overlaps. */
  pieces: Piece[];
  handles: F[];
  /** Bytes of the pieces and the header, for the limit. */
  storedBytes: number;
  /** Bytes in `pieces`. */
  coveredBytes: number;
  /** Bytes of the whole payload; -1 until the last fragment has come. */
  totalBytes: number;
  /** Ethernet header to the end of the unfragmentable part, of the first fragment. */
  header: Uint8Array;
  /** Bytes of `header` before the IP header; 0 until the first fragment has come. */
  l3Bytes: number;
  /** IPv6: the next-header field of the fragment header. */
  nextHeader: number;
  /** Given up; what still comes of it goes back with the same reason. */
  failure: ReassemblyFailure | undefined;
}

/** Largest value of an IP length field. */
const IP_LENGTH_MAX = 65_535;
const EMPTY = new Uint8Array(0);

export class Reassembly<F> {
  readonly #init: ReassemblyInit<F>;
  readonly #datagramsMax: number;
  readonly #bytesMax: number;
  readonly #fragmentsMax: number;
  readonly #timeoutUs: Micros;
  /** In order of their first fragments. Keys are strings, whose hashes the engine seeds: no floods of one bucket. */
  readonly #datagrams = new Map<string, Datagram<F>>();
  readonly #output = createFrameBuffer(VNET_HDR_BYTES + 22 + IPV6_HEADER_BYTES + IP_LENGTH_MAX);
  #bytes = 0;

  constructor(init: ReassemblyInit<F>) {
    this.#init = init;
    this.#datagramsMax = init.datagramsMax ?? REASSEMBLIES_MAX;
    this.#bytesMax = init.bytesMax ?? REASSEMBLY_BYTES_MAX;
    this.#fragmentsMax = init.fragmentsMax ?? FRAGMENTS_MAX;
    this.#timeoutUs = init.timeoutUs ?? REASSEMBLY_TIMEOUT_US;
  }

  /** Datagrams under way, those given up but remembered included. */
  get size(): number {
    return this.#datagrams.size;
  }

  /** Bytes held. */
  get bytes(): number {
    return this.#bytes;
  }

  /**
   * Takes a dissected fragment; what it needs of it is copied. Calls `onComplete` or `onAbandon` at once where it decides.
   *
   * Precondition: `info.isFragment`.
   */
  add(info: FrameInfo, handle: F, nowUs: Micros): void {
    assert(info.isFragment, 'reassembly: only fragments are added');
    const datagram = this.#findOrStart(info, nowUs);
    datagram.handles.push(handle);
    if (datagram.failure !== undefined) {
      this.#abandon(datagram, datagram.failure);
      return;
    }
    const failure = this.#addPiece(datagram, info);
    if (failure !== undefined) {
      this.#abandon(datagram, failure);
      return;
    }
    if (datagram.coveredBytes === datagram.totalBytes) this.#complete(datagram);
    else this.#keepWithinBytes(datagram);
  }

  /** Gives up datagrams that are older than the timeout. */
  expire(nowUs: Micros): void {
    for (const datagram of this.#datagrams.values()) {
      if (datagram.startedUs + this.#timeoutUs > nowUs) return;
      this.#abandon(datagram, 'timeout');
      this.#datagrams.delete(datagram.key);
    }
  }

  /** When `expire` next has something to do; NEVER when nothing is under way. */
  nextDeadlineUs(): Micros {
    for (const datagram of this.#datagrams.values()) return datagram.startedUs + this.#timeoutUs;
    return NEVER;
  }

  /** Gives up everything. */
  clear(): void {
    for (const datagram of this.#datagrams.values()) this.#abandon(datagram, 'cleared');
    this.#datagrams.clear();
  }

  #findOrStart(info: FrameInfo, nowUs: Micros): Datagram<F> {
    const key = datagramKey(info);
    const known = this.#datagrams.get(key);
    if (known !== undefined && known.startedUs + this.#timeoutUs > nowUs) return known;
    if (known !== undefined) {
      this.#abandon(known, 'timeout');
      this.#datagrams.delete(key);
    }
    if (this.#datagrams.size >= this.#datagramsMax) this.#giveUpOldest(undefined);
    const datagram: Datagram<F> = {
      key,
      ipVersion: info.ipVersion,
      startedUs: nowUs,
      pieces: [],
      handles: [],
      storedBytes: 0,
      coveredBytes: 0,
      totalBytes: -1,
      header: EMPTY,
      l3Bytes: 0,
      nextHeader: 0,
      failure: undefined,
    };
    this.#datagrams.set(key, datagram);
    return datagram;
  }

  /** Enters the fragment's bytes; says why the datagram has to be given up, if it has. */
  #addPiece(datagram: Datagram<F>, info: FrameInfo): ReassemblyFailure | undefined {
    if (datagram.handles.length > this.#fragmentsMax) return 'limit';
    const from = fragmentableOffset(info);
    const length = info.l3Offset + info.l3Bytes - from;
    const start = info.fragmentOffset;
    const end = start + length;
    const unfragmentable = from - info.l3Offset - (info.ipVersion === 6 ? 8 : 0);
    if (length === 0 || (info.moreFragments && length % 8 !== 0)) return 'malformed';
    // IPv4 counts its header in the length field, IPv6 only its extension headers (RFC 8200 §4.5).
    const counted = unfragmentable - (info.ipVersion === 6 ? IPV6_HEADER_BYTES : 0);
    if (counted + end > IP_LENGTH_MAX) return 'malformed';
    const place = findPlace(datagram.pieces, start);
    const same = datagram.pieces[place];
    if (same !== undefined && isDuplicate(same, info, from, end)) return undefined;
    if (same !== undefined && same.start < end) return 'overlap';
    if (place > 0 && datagram.pieces[place - 1]!.end > start) return 'overlap';
    if (!info.moreFragments) {
      if (datagram.totalBytes >= 0 || place < datagram.pieces.length) return 'malformed';
      datagram.totalBytes = end;
    } else if (datagram.totalBytes >= 0 && end > datagram.totalBytes) {
      return 'malformed';
    }
    const bytes = info.bytes.slice(from, from + length);
    datagram.pieces.splice(place, 0, { start, end, moreFragments: info.moreFragments, bytes });
    datagram.coveredBytes += length;
    this.#account(datagram, length);
    if (start === 0) this.#keepHeader(datagram, info);
    return undefined;
  }

  #keepHeader(datagram: Datagram<F>, info: FrameInfo): void {
    const isIpv6 = info.ipVersion === 6;
    const end = isIpv6 ? info.fragmentHeaderOffset : fragmentableOffset(info);
    datagram.header = info.bytes.slice(info.frameOffset, end);
    datagram.l3Bytes = info.l3Offset - info.frameOffset;
    datagram.nextHeader = isIpv6 ? info.bytes[info.fragmentHeaderOffset]! : 0;
    this.#account(datagram, datagram.header.length);
  }

  #complete(datagram: Datagram<F>): void {
    const { bytes, view } = this.#output;
    const { header, handles } = datagram;
    bytes.fill(0, 0, VNET_HDR_BYTES);
    bytes.set(header, VNET_HDR_BYTES);
    const l3 = VNET_HDR_BYTES + datagram.l3Bytes;
    const payload = VNET_HDR_BYTES + header.length;
    for (const piece of datagram.pieces) bytes.set(piece.bytes, payload + piece.start);
    const end = payload + datagram.totalBytes;
    if (datagram.ipVersion === 4) {
      view.setUint16(l3 + IPV4_TOTAL_LENGTH, end - l3);
      view.setUint16(l3 + IPV4_FLAGS_OFFSET, 0);
      view.setUint16(l3 + IPV4_CHECKSUM, 0);
      writeIpv4Checksum(view, l3, payload - l3);
    } else {
      view.setUint16(l3 + IPV6_PAYLOAD_LENGTH, end - l3 - IPV6_HEADER_BYTES);
      view.setUint8(nextHeaderOffset(view, l3), datagram.nextHeader);
    }
    this.#account(datagram, -datagram.storedBytes);
    this.#datagrams.delete(datagram.key);
    this.#init.onComplete(this.#output, VNET_HDR_BYTES, end - VNET_HDR_BYTES, handles);
  }

  /** Hands the fragments back and remembers the datagram as failed, without its bytes. */
  #abandon(datagram: Datagram<F>, reason: ReassemblyFailure): void {
    const { handles } = datagram;
    this.#account(datagram, -datagram.storedBytes);
    datagram.failure = reason;
    datagram.pieces = [];
    datagram.handles = [];
    datagram.header = EMPTY;
    datagram.totalBytes = -1;
    datagram.coveredBytes = 0;
    if (handles.length > 0) this.#init.onAbandon(handles, reason);
  }

  #keepWithinBytes(current: Datagram<F>): void {
    while (this.#bytes > this.#bytesMax) {
      if (this.#giveUpOldest(current)) continue;
      this.#abandon(current, 'limit');
      return;
    }
  }

  /** Makes room by forgetting the oldest datagram but `spared`; false when there is no other. */
  #giveUpOldest(spared: Datagram<F> | undefined): boolean {
    for (const datagram of this.#datagrams.values()) {
      if (datagram === spared) continue;
      this.#abandon(datagram, 'limit');
      this.#datagrams.delete(datagram.key);
      return true;
    }
    return false;
  }

  #account(datagram: Datagram<F>, bytes: number): void {
    datagram.storedBytes += bytes;
    this.#bytes += bytes;
    assert(this.#bytes >= 0, 'reassembly: bytes held cannot be negative');
  }
}

/** What tells datagrams apart: IPv4 counts the protocol in (RFC 791 §3.2), IPv6 does not (RFC 8200 §4.5). */
function datagramKey(info: FrameInfo): string {
  const isIpv4 = info.ipVersion === 4;
  const addressBytes = isIpv4 ? 4 : 16;
  const addresses =
    toHex(info.bytes, info.srcAddressOffset, addressBytes) +
    toHex(info.bytes, info.dstAddressOffset, addressBytes);
  return `${addresses}/${info.vlan}/${info.fragmentId}/${isIpv4 ? info.protocol : ''}`;
}

/** First byte that the fragment offset counts. */
function fragmentableOffset(info: FrameInfo): number {
  if (info.ipVersion === 6) return info.fragmentHeaderOffset + IPV6_FRAGMENT_HEADER_BYTES;
  return info.l3Offset + Math.max((info.bytes[info.l3Offset]! & 0x0f) * 4, IPV4_HEADER_BYTES_MIN);
}

/** Index of the first piece that begins at or after `start`. */
function findPlace(pieces: readonly Piece[], start: number): number {
  let place = pieces.length;
  while (place > 0 && pieces[place - 1]!.start >= start) place--;
  return place;
}

/** Same place, same flag, same bytes: RFC 8200 §4.5 lets these pass. */
function isDuplicate(piece: Piece, info: FrameInfo, from: number, end: number): boolean {
  return (
    piece.start === info.fragmentOffset &&
    piece.end === end &&
    piece.moreFragments === info.moreFragments &&
    bytesEqual(piece.bytes, 0, info.bytes, from, end - piece.start)
  );
}

/**
 * Where the next-header field that announced the fragment header lies. The chain was walked by `dissect`, and is whole.
 */
function nextHeaderOffset(view: DataView, l3: number): number {
  let field = l3 + IPV6_NEXT_HEADER;
  let at = l3 + IPV6_HEADER_BYTES;
  while (view.getUint8(field) !== IPV6_EXT_FRAGMENT) {
    const isAh = view.getUint8(field) === IPV6_EXT_AH;
    field = at;
    const lengthField = view.getUint8(at + 1);
    at += isAh ? (lengthField + 2) * 4 : (lengthField + 1) * 8;
  }
  return field;
}
