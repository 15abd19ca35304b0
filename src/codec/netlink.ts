/**
 * Netlink messages: `struct nlmsghdr`, attributes and NLMSG_ERROR, bytes to values and back.
 *
 *      0                   1                   2                   3
 *      0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
 *     +---------------------------------------------------------------+
 *     |                     length (with this header)                 |
 *     +-------------------------------+-------------------------------+
 *     |             type              |             flags             |
 *     +-------------------------------+-------------------------------+
 *     |                            sequence                           |
 *     +---------------------------------------------------------------+
 *     |                     port id of the sender                     |
 *     +---------------------------------------------------------------+
 *
 * All fields are in the byte order of the host (include/uapi/linux/netlink.h, RFC 3549 §2.2): netlink
 * never leaves the machine. Messages and attributes begin at multiples of 4 bytes.
 *
 * @module
 */

/** Is the lowest byte of a number first in memory on this machine? */
export const HOST_LITTLE_ENDIAN: boolean = new Uint8Array(new Uint16Array([1]).buffer)[0] === 1;

/** Bytes of `struct nlmsghdr`. */
export const NLMSG_HDR_BYTES = 16;
/** Bytes of `struct nlattr`. */
export const NLA_HDR_BYTES = 4;

/** Message type: the answer to a request, with an errno (0 = acknowledged). */
export const NLMSG_ERROR = 2;
/** Types below are netlink's own (NOOP, ERROR, DONE, OVERRUN). */
export const NLMSG_MIN_TYPE = 0x10;

/** Flag: this is a request. */
export const NLM_F_REQUEST = 0x01;
/** Flag: answer with NLMSG_ERROR also when all is well. */
export const NLM_F_ACK = 0x04;

/** Bits of an attribute type that say how its payload is encoded, not which attribute it is. */
const NLA_TYPE_MASK = 0x3fff;

/** Errno values of Linux that the protocols here use; sent negated. */
export const ERRNO = {
  EPERM: 1,
  ENOENT: 2,
  ENOMEM: 12,
  EBUSY: 16,
  EEXIST: 17,
  EINVAL: 22,
  ERANGE: 34,
  EMSGSIZE: 90,
} as const;

/** The name of one of the ERRNO values, or `errno N`. */
export function errnoName(errno: number): string {
  for (const [name, value] of Object.entries(ERRNO)) if (value === errno) return name;
  return `errno ${errno}`;
}

/** One message inside `bytes`: where it lies, and its header in host order. */
export interface NetlinkMessage {
  readonly bytes: Uint8Array;
  /** First byte of the header. */
  readonly offset: number;
  /** The header's length field: header and payload, bytes, without padding. */
  readonly length: number;
  readonly type: number;
  readonly flags: number;
  readonly seq: number;
  /** What the sender wrote as its port id; a claim, never an identity. */
  readonly portId: number;
}

/** Rounds up to the next multiple of 4 (NLMSG_ALIGN, NLA_ALIGN). */
export function netlinkAlign(bytes: number): number {
  return (bytes + 3) & ~3;
}

/** A view of `bytes` from the same first byte. */
function viewOf(bytes: Uint8Array): DataView {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}

/** Reads the header at `offset`; undefined when fewer than NLMSG_HDR_BYTES lie there. Does not check its length field. */
export function readNetlinkHeader(bytes: Uint8Array, offset: number): NetlinkMessage | undefined {
  if (offset < 0 || bytes.length - offset < NLMSG_HDR_BYTES) return undefined;
  const view = viewOf(bytes);
  return {
    bytes,
    offset,
    length: view.getUint32(offset, HOST_LITTLE_ENDIAN),
    type: view.getUint16(offset + 4, HOST_LITTLE_ENDIAN),
    flags: view.getUint16(offset + 6, HOST_LITTLE_ENDIAN),
    seq: view.getUint32(offset + 8, HOST_LITTLE_ENDIAN),
    portId: view.getUint32(offset + 12, HOST_LITTLE_ENDIAN),
  };
}

/** What a datagram holds. */
export interface NetlinkSplit {
  /** Whole messages in their order. They borrow the datagram. */
  readonly messages: readonly NetlinkMessage[];
  /**
   * A header whose length field is impossible (below 16, or past the end); parsing stopped there, since
   * the next message's place is unknown. `length` is what really lies there.
   */
  readonly truncated: NetlinkMessage | undefined;
  /** Bytes at the end that are too few for a header, padding left out. Nobody can be answered for them. */
  readonly strayBytes: number;
}

/**
 * Splits a datagram into its messages, as netlink_rcv_skb() of the kernel walks it.
 * Never throws; at most `bytes.length / 16` messages.
 */
export function splitNetlink(bytes: Uint8Array): NetlinkSplit {
  const messages: NetlinkMessage[] = [];
  let offset = 0;
  for (;;) {
    const header = readNetlinkHeader(bytes, offset);
    if (header === undefined) {
      return { messages, truncated: undefined, strayBytes: Math.max(0, bytes.length - offset) };
    }
    const rest = bytes.length - offset;
    if (header.length < NLMSG_HDR_BYTES || header.length > rest) {
      return { messages, truncated: { ...header, length: rest }, strayBytes: 0 };
    }
    messages.push(header);
    offset += netlinkAlign(header.length);
  }
}

/** One attribute: `struct nlattr` and its payload. */
export interface NetlinkAttribute {
  /** Without the flag bits. */
  readonly type: number;
  /** Borrows the message. */
  readonly payload: Uint8Array;
}

/**
 * Attributes in `bytes[offset, end)`, as nla_parse() of the kernel finds them: it stops at the first whose
 * length is impossible. Of several of one type the last counts. Preconditions: `end <= bytes.length`.
 */
export function readAttributes(bytes: Uint8Array, offset: number, end: number): NetlinkAttribute[] {
  const attributes: NetlinkAttribute[] = [];
  const view = viewOf(bytes);
  let at = offset;
  while (end - at >= NLA_HDR_BYTES) {
    const length = view.getUint16(at, HOST_LITTLE_ENDIAN);
    if (length < NLA_HDR_BYTES || length > end - at) break;
    attributes.push({
      type: view.getUint16(at + 2, HOST_LITTLE_ENDIAN) & NLA_TYPE_MASK,
      payload: bytes.subarray(at + NLA_HDR_BYTES, at + length),
    });
    at += netlinkAlign(length);
  }
  return attributes;
}

/** Fields of a header to write; `length` comes from the payload. */
export interface NetlinkFields {
  readonly type: number;
  readonly flags: number;
  readonly seq: number;
  readonly portId: number;
}

/** A message of its own memory: header, payload, zero padding to a multiple of 4. */
export function encodeNetlink(fields: NetlinkFields, payload: Uint8Array): Uint8Array {
  const length = NLMSG_HDR_BYTES + payload.length;
  const bytes = new Uint8Array(netlinkAlign(length));
  const view = viewOf(bytes);
  view.setUint32(0, length, HOST_LITTLE_ENDIAN);
  view.setUint16(4, fields.type, HOST_LITTLE_ENDIAN);
  view.setUint16(6, fields.flags, HOST_LITTLE_ENDIAN);
  view.setUint32(8, fields.seq, HOST_LITTLE_ENDIAN);
  view.setUint32(12, fields.portId, HOST_LITTLE_ENDIAN);
  bytes.set(payload, NLMSG_HDR_BYTES);
  return bytes;
}

/**
 * The answer to `request`: NLMSG_ERROR with `-errno` (0 acknowledges) and the request's header; with an
 * error, all of the request. Layout of netlink_ack() in Linux 3.18-4.2, net/netlink/af_netlink.c:
 *
 *     nlmsghdr { length, NLMSG_ERROR, flags 0, the request's seq, port id of the receiver }
 *     s32 error, nlmsghdr of the request [, payload of the request]
 */
export function encodeNetlinkError(
  request: NetlinkMessage,
  errno: number,
  portId: number,
): Uint8Array {
  const available = request.bytes.length - request.offset;
  const quoted = errno === 0 ? NLMSG_HDR_BYTES : Math.min(request.length, available);
  const payload = new Uint8Array(4 + Math.max(quoted, NLMSG_HDR_BYTES));
  viewOf(payload).setInt32(0, -errno, HOST_LITTLE_ENDIAN);
  payload.set(request.bytes.subarray(request.offset, request.offset + quoted), 4);
  return encodeNetlink({ type: NLMSG_ERROR, flags: 0, seq: request.seq, portId }, payload);
}

/** What an NLMSG_ERROR says. */
export interface NetlinkErrorAnswer {
  /** Positive errno; 0 = acknowledged. */
  readonly errno: number;
  /** Type and sequence of the request that it answers. */
  readonly requestType: number;
  readonly requestSeq: number;
}

/** Decodes an NLMSG_ERROR; undefined when it is none, or too short. */
export function decodeNetlinkError(message: NetlinkMessage): NetlinkErrorAnswer | undefined {
  if (message.type !== NLMSG_ERROR) return undefined;
  if (message.length < NLMSG_HDR_BYTES + 4 + NLMSG_HDR_BYTES) return undefined;
  const at = message.offset + NLMSG_HDR_BYTES;
  const request = readNetlinkHeader(message.bytes, at + 4);
  if (request === undefined) return undefined;
  // `0 - x` rather than `-x`: the negation of 0 would be -0.
  const errno = 0 - viewOf(message.bytes).getInt32(at, HOST_LITTLE_ENDIAN);
  return { errno, requestType: request.type, requestSeq: request.seq };
}

/** What a stream of messages (a Unix socket) has brought. */
export interface NetlinkStreamChunk {
  /** Whole messages; each has its own memory. */
  readonly messages: readonly NetlinkMessage[];
  /**
   * The stream is broken for good: the length field of this header is impossible. `length` is that of the
   * header (16) when it said too much, and what it said when that is less.
   */
  readonly broken: NetlinkMessage | undefined;
}

/**
 * Cuts a byte stream into netlink messages. On a stream every message is followed by its padding, also
 * the last one. Holds at most one message of `messageBytesMax`.
 */
export class NetlinkStreamDecoder {
  readonly #messageBytesMax: number;
  #held: Uint8Array = new Uint8Array(0);
  #broken: NetlinkMessage | undefined;

  constructor(messageBytesMax: number) {
    if (!(messageBytesMax >= NLMSG_HDR_BYTES)) {
      throw new RangeError(`messageBytesMax must be at least ${NLMSG_HDR_BYTES}`);
    }
    this.#messageBytesMax = messageBytesMax;
  }

  /** Takes the next bytes, borrowed only for this call. After a broken header everything is ignored. */
  push(chunk: Uint8Array): NetlinkStreamChunk {
    const messages: NetlinkMessage[] = [];
    if (this.#broken !== undefined) return { messages, broken: this.#broken };
    const bytes = new Uint8Array(this.#held.length + chunk.length);
    bytes.set(this.#held);
    bytes.set(chunk, this.#held.length);
    let offset = 0;
    for (;;) {
      const header = readNetlinkHeader(bytes, offset);
      if (header === undefined) break;
      if (header.length < NLMSG_HDR_BYTES || header.length > this.#messageBytesMax) {
        this.#broken = { ...header, length: Math.min(header.length, NLMSG_HDR_BYTES) };
        break;
      }
      const padded = netlinkAlign(header.length);
      if (bytes.length - offset < padded) break;
      messages.push({ ...header, bytes: bytes.slice(offset, offset + padded), offset: 0 });
      offset += padded;
    }
    this.#held = this.#broken === undefined ? bytes.slice(offset) : new Uint8Array(0);
    return { messages, broken: this.#broken };
  }
}
