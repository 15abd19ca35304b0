/**
 * An array of struct mmsghdr with its iovecs and control buffers, built once and reused for every
 * recvmmsg(2) / sendmmsg(2): no allocation per batch.
 *
 * ```text
 * struct mmsghdr, 64 bytes (64-bit ABI):      struct iovec, 16 bytes:
 *    0 msg_name        8                          0 iov_base   8
 *    8 msg_namelen     4 (+ 4 padding)            8 iov_len    8
 *   16 msg_iov         8
 *   24 msg_iovlen      8
 *   32 msg_control     8
 *   40 msg_controllen  8
 *   48 msg_flags       4 (+ 4 padding)
 *   56 msg_len         4 (+ 4 padding)
 * ```
 *
 * @module
 */
import { type Address, addressOf, writeAddress } from './libc.ts';

const MESSAGE_BYTES = 64;
const IOVEC_BYTES = 16;
const OFFSET_IOV = 16;
const OFFSET_IOVLEN = 24;
const OFFSET_CONTROL = 32;
const OFFSET_CONTROLLEN = 40;
const OFFSET_FLAGS = 48;
const OFFSET_LEN = 56;

/** Segments (iovecs) of one message. */
const SEGMENTS_PER_MESSAGE = 2;

/** `count` messages of one or two memory segments each, and optionally control data. */
export class MessageVector {
  /** Address of the first struct mmsghdr. */
  readonly address: Address;
  /** Over the whole structure; control data of message `i` begins at `controlOffset(i)`. */
  readonly view: DataView;
  readonly #count: number;
  readonly #controlBytes: number;

  /** @param controlBytes of each message; a multiple of 8 */
  constructor(count: number, controlBytes: number) {
    const perMessage = MESSAGE_BYTES + SEGMENTS_PER_MESSAGE * IOVEC_BYTES + controlBytes;
    const memory = new ArrayBuffer(count * perMessage);
    this.address = addressOf(memory);
    this.view = new DataView(memory);
    this.#count = count;
    this.#controlBytes = controlBytes;
    for (let index = 0; index < count; index++) {
      const at = index * MESSAGE_BYTES;
      writeAddress(this.view, at + OFFSET_IOV, this.address + this.#iovecOffset(index, 0));
      this.view.setUint32(at + OFFSET_IOVLEN, 1, true);
      if (controlBytes === 0) continue;
      writeAddress(this.view, at + OFFSET_CONTROL, this.address + this.controlOffset(index));
      this.rearm(index);
    }
  }

  /** The address of message `index`, for a call that begins there. */
  addressOfMessage(index: number): Address {
    return this.address + index * MESSAGE_BYTES;
  }

  /** The address of the iovecs of message `index`, for writev. */
  addressOfSegments(index: number): Address {
    return this.address + this.#iovecOffset(index, 0);
  }

  /** How many segments message `index` consists of. */
  segmentCount(index: number): number {
    return this.view.getUint32(index * MESSAGE_BYTES + OFFSET_IOVLEN, true);
  }

  /** Where the control data of message `index` begins in `view`. */
  controlOffset(index: number): number {
    return (
      this.#count * (MESSAGE_BYTES + SEGMENTS_PER_MESSAGE * IOVEC_BYTES) +
      index * this.#controlBytes
    );
  }

  /** Lets message `index` consist of one segment. */
  setSegment(index: number, address: Address, bytes: number): void {
    this.view.setUint32(index * MESSAGE_BYTES + OFFSET_IOVLEN, 1, true);
    this.#writeIovec(index, 0, address, bytes);
  }

  /** Lets message `index` consist of two segments, one after the other. */
  setSegments(
    index: number,
    address: Address,
    bytes: number,
    address2: Address,
    bytes2: number,
  ): void {
    this.view.setUint32(index * MESSAGE_BYTES + OFFSET_IOVLEN, 2, true);
    this.#writeIovec(index, 0, address, bytes);
    this.#writeIovec(index, 1, address2, bytes2);
  }

  /** Bytes that were received into message `index`. */
  bytes(index: number): number {
    return this.view.getUint32(index * MESSAGE_BYTES + OFFSET_LEN, true);
  }

  /** msg_flags of a received message: MSG_TRUNC, ... */
  flags(index: number): number {
    return this.view.getUint32(index * MESSAGE_BYTES + OFFSET_FLAGS, true);
  }

  /** Bytes of control data that were received; reset by `rearm`. */
  controlBytes(index: number): number {
    return this.view.getUint32(index * MESSAGE_BYTES + OFFSET_CONTROLLEN, true);
  }

  /** Makes the control buffer of message `index`, which the kernel has used, wholly available again. */
  rearm(index: number): void {
    this.view.setUint32(index * MESSAGE_BYTES + OFFSET_CONTROLLEN, this.#controlBytes, true);
  }

  #iovecOffset(index: number, segment: number): number {
    return this.#count * MESSAGE_BYTES + (index * SEGMENTS_PER_MESSAGE + segment) * IOVEC_BYTES;
  }

  #writeIovec(index: number, segment: number, address: Address, bytes: number): void {
    const at = this.#iovecOffset(index, segment);
    writeAddress(this.view, at, address);
    this.view.setUint32(at + 8, bytes, true);
  }
}
