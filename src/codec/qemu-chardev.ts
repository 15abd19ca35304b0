/**
 * The byte stream that carries frames between QEMU's network filters, colo-compare, stream netdevs and their peers.
 *
 * ```text
 * u32 size | frame                               -netdev stream; filters without vnet_hdr_support
 * u32 size | u32 N | virtio-net header | frame   filters with vnet_hdr_support: N bytes of header,
 *                                                which `size` counts too
 * ```
 *
 * Integers are big-endian. Sizes above QEMU_FRAME_BYTES_MAX are protocol errors after which the stream cannot
 * be read on. Source: QEMU net/net.c (net_fill_rstate), net/colo-compare.c, net/filter-mirror.c.
 *
 * @module
 */
import { assert } from '../base/assert.ts';
import type { FrameBuffer, LendingBuffer } from '../env/frame.ts';
import { STREAM_PIECES_MAX, VNET_HDR_BYTES } from '../limits.ts';

/** NET_BUFSIZE: the largest `size`. */
export const QEMU_FRAME_BYTES_MAX = 4_096 + 65_536;

/** Bytes before the frame (or its virtio-net header). */
export const QEMU_HEAD_BYTES = 4;
/** The same with vnet_hdr_support. */
export const QEMU_VNET_HEAD_BYTES = 8;

/**
 * Longest virtio-net header that is taken: struct virtio_net_hdr_v1_hash has 20 bytes; later ones may
 * grow. Its first 10 bytes are those of every version.
 */
export const QEMU_VNET_HEADER_BYTES_MAX = 64;

/** What stands at the decoder's place in the stream. */
export type DecodeResult =
  /** A frame: see `frameBuffer`, `frameOffset`, `frameBytes`. */
  | 'frame'
  /** More bytes of the stream are needed. */
  | 'more'
  /** There is one, but no room for it beside those that are lent: call `reclaim`. */
  | 'full'
  /** Not this protocol: close the connection. */
  | 'error';

/** Room for the stream; several frames of the greatest size. */
const STREAM_BYTES = 1024 * 1024;
/** So much of the stream is always moved to the front: memory that was just used is the faster one. */
const MOVED_BYTES_MAX = 16 * 1024;
/** More is moved only when there is less room behind the stream's end, which is more than one frame. */
const AHEAD_BYTES = STREAM_BYTES / 4;
/** Free pieces of memory that are kept for use: a new one costs 0.2 ms of page faults, and the garbage collector's attention. */
const PIECES_FREE_MAX = 16;
/** Room for frames that had to be copied. */
const COPY_BYTES = 512 * 1024;

/**
 * Cuts a stream into frames. The reader writes the stream's bytes into `stream` at `writeOffset` itself, so they
 * are not copied on their way in.
 *
 * With virtio-net headers frames stay where they are. Without them each is copied behind a header of zeros, because the bytes
 * before it belong to the frame before, which may still be lent.
 *
 * Who has looked at a frame in place may leave it there beyond the batch: the stream goes on in another piece of memory.
 */
export class QemuFrameDecoder {
  /** Memory for the stream; another after `makeRoom`. */
  stream: LendingBuffer;
  /** May `stream.lent` be raised: is there a piece of memory in which the stream could go on? */
  mayLend = true;
  /** The other pieces, in the order of their last use. */
  readonly #pieces: LendingBuffer[] = [];
  /** The frame that `next` found: its memory, the Ethernet header's first byte, its length (which may be nonsense: 0 or above FRAME_BYTES_MAX). */
  frameBuffer: FrameBuffer;
  frameOffset = 0;
  frameBytes = 0;
  /** Bytes of the last virtio-net header: answers must have the same. */
  vnetHeaderBytes = 0;
  /** See `look`. */
  recordOffset = 0;
  recordBytes = 0;
  rawOffset = 0;
  rawBytes = 0;
  headerOffset = -1;
  readonly #hasVnetHeader: boolean;
  readonly #copies: FrameBuffer;
  #copiesEnd = 0;
  #start = VNET_HDR_BYTES;
  #end = VNET_HDR_BYTES;
  #isBroken = false;

  /** @param hasVnetHeader vnet_hdr_support at the other side */
  constructor(hasVnetHeader: boolean) {
    this.#hasVnetHeader = hasVnetHeader;
    this.stream = streamPiece();
    this.#copies = frameBuffer(hasVnetHeader ? 0 : COPY_BYTES);
    this.frameBuffer = this.stream;
  }

  /** Where the next bytes of the stream go in `stream`. */
  get writeOffset(): number {
    return this.#end;
  }

  /** How many bytes there is room for. */
  get writeBytesMax(): number {
    return this.stream.bytes.length - this.#end;
  }

  /** Bytes that belong to a frame which has not come whole. */
  get pendingBytes(): number {
    return this.#end - this.#start;
  }

  /**
   * Would reading on move frames that are there already, because of others that are in use before them? It is better to take them first.
   */
  get isCrowded(): boolean {
    if (this.stream.lent === 0 || this.writeBytesMax >= AHEAD_BYTES) return false;
    return this.pendingBytes > MOVED_BYTES_MAX && this.look();
  }

  /** `bytes` bytes of the stream have been written at `writeOffset`. */
  onBytes(bytes: number): void {
    assert(bytes >= 0 && bytes <= this.writeBytesMax, 'the bytes lie within the stream memory');
    this.#end += bytes;
  }

  /** All frames so far are no longer lent: makes room for copies again. */
  reclaim(): void {
    this.#copiesEnd = 0;
  }

  /**
   * Moves what is left of the stream to the front, so that at least one frame of any size has room. Only while no
   * frame is lent; cheap when `next` has said `more`.
   */
  makeRoom(): void {
    if (this.stream.lent > 0) {
      if (this.writeBytesMax < AHEAD_BYTES) this.#goOnElsewhere();
      return;
    }
    if (!this.mayLend) this.mayLend = this.#hasSpare();
    const pending = this.pendingBytes;
    if (pending > MOVED_BYTES_MAX && this.writeBytesMax >= AHEAD_BYTES) return;
    if (pending > 0 && this.#start > VNET_HDR_BYTES) {
      this.stream.bytes.copyWithin(VNET_HDR_BYTES, this.#start, this.#end);
    }
    this.#start = VNET_HDR_BYTES;
    this.#end = VNET_HDR_BYTES + pending;
  }

  /** Frames of this piece of memory are in use: takes another, with what is left of the stream. */
  #goOnElsewhere(): void {
    const before = this.stream;
    const pieces = this.#pieces;
    const free = pieces.findIndex((piece) => piece.lent === 0);
    // `mayLend` has seen to it that there is one, or may be one.
    this.stream = free === -1 ? streamPiece() : pieces.splice(free, 1)[0]!;
    pieces.push(before);
    const pending = this.pendingBytes;
    this.stream.bytes.set(before.bytes.subarray(this.#start, this.#end), VNET_HDR_BYTES);
    this.#start = VNET_HDR_BYTES;
    this.#end = VNET_HDR_BYTES + pending;
    this.mayLend = this.#hasSpare();
    if (this.#freePieces() > PIECES_FREE_MAX) {
      pieces.splice(
        pieces.findIndex((piece) => piece.lent === 0),
        1,
      );
    }
  }

  #hasSpare(): boolean {
    return this.#pieces.length + 1 < STREAM_PIECES_MAX || this.#freePieces() > 0;
  }

  #freePieces(): number {
    let count = 0;
    for (const piece of this.#pieces) if (piece.lent === 0) count++;
    return count;
  }

  /**
   * Where the next frame lies in `stream`, without taking it: `recordOffset`, `recordBytes` (with its head), `rawOffset`, `rawBytes` (the frame
   * alone; there is no room for a virtio-net header of ours before it), `headerOffset` (its virtio-net header; -1: none). False when there is no whole frame, or no more of this protocol.
   */
  look(): boolean {
    const { view } = this.stream;
    const start = this.#start;
    const available = this.#end - start;
    if (available < QEMU_VNET_HEAD_BYTES || this.#isBroken) return false;
    const size = view.getUint32(start);
    let headBytes = QEMU_HEAD_BYTES;
    let vnetBytes = 0;
    if (this.#hasVnetHeader) {
      headBytes = QEMU_VNET_HEAD_BYTES;
      vnetBytes = view.getUint32(start + 4);
    }
    if (size > QEMU_FRAME_BYTES_MAX || available < headBytes + size || vnetBytes > size)
      return false;
    this.headerOffset = vnetBytes >= VNET_HDR_BYTES ? start + QEMU_VNET_HEAD_BYTES : -1;
    this.recordOffset = start;
    this.recordBytes = headBytes + size;
    this.rawOffset = start + headBytes + vnetBytes;
    this.rawBytes = size - vnetBytes;
    return true;
  }

  /** Takes the frame that `look` has found out of the stream, where it stays as it is until `makeRoom`. */
  skip(): void {
    this.#start += this.recordBytes;
  }

  /** Takes the next frame out of the stream. It stays valid until `reclaim` or `makeRoom`. */
  next(): DecodeResult {
    if (this.#isBroken) return 'error';
    const { view } = this.stream;
    const headBytes = this.#hasVnetHeader ? QEMU_VNET_HEAD_BYTES : QEMU_HEAD_BYTES;
    const available = this.#end - this.#start;
    if (available < QEMU_HEAD_BYTES) return 'more';
    const size = view.getUint32(this.#start);
    if (size > QEMU_FRAME_BYTES_MAX) return this.#break();
    if (available < headBytes) return 'more';
    let vnetBytes = 0;
    if (this.#hasVnetHeader) {
      vnetBytes = view.getUint32(this.#start + 4);
      if (vnetBytes > size || vnetBytes > QEMU_VNET_HEADER_BYTES_MAX) return this.#break();
      if (vnetBytes > 0 && vnetBytes < VNET_HDR_BYTES) return this.#break();
    }
    if (available < headBytes + size) return 'more';
    const body = this.#start + headBytes;
    if (this.#hasVnetHeader) this.#lend(body, size, vnetBytes);
    else if (!this.#copy(body, size)) return 'full';
    this.#start = body + size;
    return 'frame';
  }

  #break(): DecodeResult {
    this.#isBroken = true;
    return 'error';
  }

  /** Leaves the frame in place; the first 10 bytes of its header are moved next to it. */
  #lend(body: number, size: number, vnetBytes: number): void {
    const { bytes } = this.stream;
    const offset = body + vnetBytes;
    if (vnetBytes === 0) {
      // The head (8 bytes) lies there, and 2 bytes of the frame before, whose place is not known to be free.
      this.#lendWithoutHeader(offset, size);
      return;
    }
    if (vnetBytes > VNET_HDR_BYTES) {
      bytes.copyWithin(offset - VNET_HDR_BYTES, body, body + VNET_HDR_BYTES);
    }
    this.vnetHeaderBytes = vnetBytes;
    this.frameBuffer = this.stream;
    this.frameOffset = offset;
    this.frameBytes = size - vnetBytes;
  }

  /** Moved 2 bytes on it would overwrite its successor: so the frame gets memory of its own, which is rare. */
  #lendWithoutHeader(offset: number, size: number): void {
    const copy = frameBuffer(VNET_HDR_BYTES + size);
    copy.bytes.set(this.stream.bytes.subarray(offset, offset + size), VNET_HDR_BYTES);
    this.vnetHeaderBytes = 0;
    this.frameBuffer = copy;
    this.frameOffset = VNET_HDR_BYTES;
    this.frameBytes = size;
  }

  #copy(body: number, size: number): boolean {
    const copies = this.#copies;
    const at = this.#copiesEnd;
    if (at + VNET_HDR_BYTES + size > copies.bytes.length) return false;
    for (let index = 0; index < VNET_HDR_BYTES; index++) copies.bytes[at + index] = 0;
    copies.bytes.set(this.stream.bytes.subarray(body, body + size), at + VNET_HDR_BYTES);
    this.#copiesEnd = at + VNET_HDR_BYTES + size;
    this.frameBuffer = copies;
    this.frameOffset = at + VNET_HDR_BYTES;
    this.frameBytes = size;
    return true;
  }
}

/** Writes the head of a frame without virtio-net header; QEMU_HEAD_BYTES. */
export function writeQemuHead(view: DataView, offset: number, frameBytes: number): void {
  view.setUint32(offset, frameBytes);
}

/**
 * Writes the head of a frame with virtio-net header, QEMU_VNET_HEAD_BYTES. The header follows it, then
 * the frame.
 */
export function writeQemuVnetHead(
  view: DataView,
  offset: number,
  vnetBytes: number,
  frameBytes: number,
): void {
  view.setUint32(offset, vnetBytes + frameBytes);
  view.setUint32(offset + 4, vnetBytes);
}

function streamPiece(): LendingBuffer {
  return { ...frameBuffer(VNET_HDR_BYTES + STREAM_BYTES), lent: 0 };
}

function frameBuffer(byteCount: number): FrameBuffer {
  const memory = new ArrayBuffer(byteCount);
  return { bytes: new Uint8Array(memory), view: new DataView(memory) };
}
