/**
 * Messages of the kernel's packet queues (nfnetlink_queue): packets in, verdicts and settings out. Bytes only; sockets
 * are elsewhere.
 *
 * ```text
 * nlmsghdr 16: length, type = 3 << 8 | message, flags, sequence, port id             (host order)
 * nfgenmsg  4: family u8, version u8 = 0, queue number u16                           (network order)
 * attributes:  length u16, type u16 (host order), payload; each begins at a multiple of 4
 *
 *    1 PACKET_HDR      id u32, EtherType u16, hook u8                                (network order)
 *    2 VERDICT_HDR     verdict u32, id u32
 *    9 HWADDR          length u16, 2 bytes of padding, 8 bytes: the source MAC address
 *   10 PAYLOAD         the packet from its layer 3 header on
 *   13 CAP_LEN         u32: its true length, when the payload was cut
 *   14 SKB_INFO        u32 of NFQUEUE_CHECKSUM_NOT_READY, NFQUEUE_GSO
 * ```
 *
 * Sources: Linux include/uapi/linux/netfilter/nfnetlink_queue.h, net/netfilter/nfnetlink_queue.c.
 *
 * @module
 */
import { assert } from '../base/assert.ts';
import {
  encodeNetlink,
  HOST_LITTLE_ENDIAN,
  NLA_HDR_BYTES,
  NLM_F_ACK,
  NLM_F_REQUEST,
  NLMSG_ERROR,
  NLMSG_HDR_BYTES,
  netlinkAlign,
} from './netlink.ts';

const NFNL_SUBSYS_QUEUE = 3;
const TYPE_PACKET = (NFNL_SUBSYS_QUEUE << 8) | 0;
const TYPE_VERDICT = (NFNL_SUBSYS_QUEUE << 8) | 1;
const TYPE_CONFIG = (NFNL_SUBSYS_QUEUE << 8) | 2;
const NFGENMSG_BYTES = 4;

const NFQA_PACKET_HDR = 1;
const NFQA_VERDICT_HDR = 2;
const NFQA_HWADDR = 9;
const NFQA_PAYLOAD = 10;
const NFQA_CAP_LEN = 13;
const NFQA_SKB_INFO = 14;
const PACKET_HDR_BYTES = 7;
const VERDICT_HDR_BYTES = 8;
const MAC_BYTES = 6;

const NFQA_CFG_CMD = 1;
const NFQA_CFG_PARAMS = 2;
const NFQA_CFG_QUEUE_MAXLEN = 3;
const NFQA_CFG_MASK = 4;
const NFQA_CFG_FLAGS = 5;
const NFQNL_CFG_CMD_BIND = 1;
const NFQNL_COPY_PACKET = 2;
const NFQA_CFG_F_FAIL_OPEN = 1;
const NFQA_CFG_F_GSO = 4;

/** SKB_INFO: the transport checksum holds only the sum of the pseudo-header. */
export const NFQUEUE_CHECKSUM_NOT_READY = 1;
/** SKB_INFO: to be cut into segments on its way out; of which size is not told. */
export const NFQUEUE_GSO = 2;

/** Verdict: the packet goes no further. */
export const NF_DROP = 0;
/** Verdict: the packet goes on its way. */
export const NF_ACCEPT = 1;

/** Longest packet that the kernel copies, and that a verdict can replace: an attribute's length has 16 bits, header included. */
export const NFQUEUE_PAYLOAD_BYTES_MAX = 0xffff - NLA_HDR_BYTES;

/** Bytes of a verdict that leaves the packet as it is. */
export const VERDICT_BYTES: number =
  NLMSG_HDR_BYTES + NFGENMSG_BYTES + NLA_HDR_BYTES + VERDICT_HDR_BYTES;

/** What a datagram of a queue's socket is. */
export type NfqueueKind = 'packet' | 'error' | 'other';

/** What `readNfqueue` found; overwritten by the next call. Offsets count from the view's first byte. */
export class NfqueueMessage {
  /** 'packet'. Wraps at 2^32. */
  id = 0;
  /** EtherType, host order. */
  etherType = 0;
  /** First byte of the source MAC address; -1 when it was not told. */
  macOffset = 0;
  /** Bits as NFQUEUE_GSO. */
  info = 0;
  payloadOffset = 0;
  payloadBytes = 0;
  /** The payload is only the beginning of the packet. */
  isCut = false;
  /** 'error': positive errno, 0 = acknowledged. */
  errno = 0;
}

/**
 * Reads the message at the beginning of a datagram, which may be any bytes: nothing beyond `offset + length` is read.
 *
 * @param length bytes of the datagram that are there
 */
export function readNfqueue(
  view: DataView,
  offset: number,
  length: number,
  out: NfqueueMessage,
): NfqueueKind {
  if (length < NLMSG_HDR_BYTES) return 'other';
  const messageBytes = view.getUint32(offset, HOST_LITTLE_ENDIAN);
  if (messageBytes < NLMSG_HDR_BYTES || messageBytes > length) return 'other';
  const type = view.getUint16(offset + 4, HOST_LITTLE_ENDIAN);
  const end = offset + messageBytes;
  if (type === NLMSG_ERROR) {
    if (messageBytes < NLMSG_HDR_BYTES + 4) return 'other';
    // `0 - x` rather than `-x`: the negation of 0 would be -0.
    out.errno = 0 - view.getInt32(offset + NLMSG_HDR_BYTES, HOST_LITTLE_ENDIAN);
    return 'error';
  }
  if (type !== TYPE_PACKET) return 'other';
  return readPacket(view, offset + NLMSG_HDR_BYTES + NFGENMSG_BYTES, end, out) ? 'packet' : 'other';
}

/** Attributes, as nla_parse() of the kernel walks them; false when the identity or the payload is missing. */
function readPacket(view: DataView, first: number, end: number, out: NfqueueMessage): boolean {
  let hasId = false;
  let capBytes = 0;
  out.macOffset = -1;
  out.info = 0;
  out.payloadOffset = 0;
  for (let at = first; end - at >= NLA_HDR_BYTES; ) {
    const bytes = view.getUint16(at, HOST_LITTLE_ENDIAN) - NLA_HDR_BYTES;
    const payload = at + NLA_HDR_BYTES;
    if (bytes < 0 || payload + bytes > end) break;
    switch (view.getUint16(at + 2, HOST_LITTLE_ENDIAN)) {
      case NFQA_PACKET_HDR:
        if (bytes < PACKET_HDR_BYTES) break;
        hasId = true;
        out.id = view.getUint32(payload);
        out.etherType = view.getUint16(payload + 4);
        break;
      case NFQA_HWADDR:
        if (bytes >= 4 + MAC_BYTES && view.getUint16(payload) === MAC_BYTES) {
          out.macOffset = payload + 4;
        }
        break;
      case NFQA_PAYLOAD:
        out.payloadOffset = payload;
        out.payloadBytes = bytes;
        break;
      case NFQA_CAP_LEN:
        if (bytes >= 4) capBytes = view.getUint32(payload);
        break;
      case NFQA_SKB_INFO:
        if (bytes >= 4) out.info = view.getUint32(payload);
        break;
    }
    at = payload + netlinkAlign(bytes);
  }
  out.isCut = capBytes > out.payloadBytes;
  return hasId && out.payloadOffset !== 0;
}

/**
 * Writes a verdict at `at`, a multiple of 4. With `payloadBytes` an attribute follows for the packet that takes the place of the
 * queued one: its bytes are the caller's to write, at the returned offset minus `netlinkAlign(payloadBytes)`.
 *
 * Preconditions: VERDICT_BYTES (and with a payload 4 + its aligned length) from `at`; `payloadBytes` at most NFQUEUE_PAYLOAD_BYTES_MAX.
 *
 * @returns the first byte after it
 */
export function writeVerdict(
  view: DataView,
  at: number,
  queue: number,
  id: number,
  verdict: number,
  payloadBytes = 0,
): number {
  assert(payloadBytes <= NFQUEUE_PAYLOAD_BYTES_MAX, 'a packet fits into an attribute');
  const attribute = at + NLMSG_HDR_BYTES + NFGENMSG_BYTES;
  let end = at + VERDICT_BYTES;
  if (payloadBytes > 0) {
    view.setUint16(end, NLA_HDR_BYTES + payloadBytes, HOST_LITTLE_ENDIAN);
    view.setUint16(end + 2, NFQA_PAYLOAD, HOST_LITTLE_ENDIAN);
    end += NLA_HDR_BYTES + netlinkAlign(payloadBytes);
  }
  view.setUint32(at, end - at, HOST_LITTLE_ENDIAN);
  view.setUint16(at + 4, TYPE_VERDICT, HOST_LITTLE_ENDIAN);
  view.setUint16(at + 6, NLM_F_REQUEST, HOST_LITTLE_ENDIAN);
  view.setUint32(at + 8, 0, HOST_LITTLE_ENDIAN);
  view.setUint32(at + 12, 0, HOST_LITTLE_ENDIAN);
  view.setUint16(at + NLMSG_HDR_BYTES, 0);
  view.setUint16(at + NLMSG_HDR_BYTES + 2, queue);
  view.setUint16(attribute, NLA_HDR_BYTES + VERDICT_HDR_BYTES, HOST_LITTLE_ENDIAN);
  view.setUint16(attribute + 2, NFQA_VERDICT_HDR, HOST_LITTLE_ENDIAN);
  view.setUint32(attribute + 4, verdict);
  view.setUint32(attribute + 8, id);
  return end;
}

/** The request to own queue `queue`. Nothing is queued before `encodeStart`. */
export function encodeBind(queue: number): Uint8Array {
  return encodeConfig(queue, NLM_F_ACK, [[NFQA_CFG_CMD, [NFQNL_CFG_CMD_BIND, 0, 0, 0]]]);
}

/** How many packets may wait, and in which form they come. `failOpen`: what finds no room passes, instead of being dropped. */
export function encodeLimits(queue: number, packetsMax: number, failOpen: boolean): Uint8Array {
  const flags = NFQA_CFG_F_GSO | (failOpen ? NFQA_CFG_F_FAIL_OPEN : 0);
  return encodeConfig(queue, NLM_F_ACK, [
    [NFQA_CFG_QUEUE_MAXLEN, bigEndian(packetsMax)],
    [NFQA_CFG_MASK, bigEndian(NFQA_CFG_F_GSO | NFQA_CFG_F_FAIL_OPEN)],
    [NFQA_CFG_FLAGS, bigEndian(flags)],
  ]);
}

/** Packets come from now on. Not acknowledged: the answer would stand among the first of them. */
export function encodeStart(queue: number): Uint8Array {
  const range = bigEndian(NFQUEUE_PAYLOAD_BYTES_MAX);
  return encodeConfig(queue, 0, [[NFQA_CFG_PARAMS, [...range, NFQNL_COPY_PACKET]]]);
}

function bigEndian(value: number): number[] {
  return [value >>> 24, (value >>> 16) & 0xff, (value >>> 8) & 0xff, value & 0xff];
}

function encodeConfig(
  queue: number,
  flags: number,
  attributes: readonly (readonly [type: number, payload: readonly number[]])[],
): Uint8Array {
  const sizes = attributes.map(([, payload]) => netlinkAlign(NLA_HDR_BYTES + payload.length));
  const bytes = new Uint8Array(NFGENMSG_BYTES + sizes.reduce((sum, size) => sum + size, 0));
  const view = new DataView(bytes.buffer);
  view.setUint16(2, queue);
  let at = NFGENMSG_BYTES;
  for (const [index, [type, payload]] of attributes.entries()) {
    view.setUint16(at, NLA_HDR_BYTES + payload.length, HOST_LITTLE_ENDIAN);
    view.setUint16(at + 2, type, HOST_LITTLE_ENDIAN);
    bytes.set(payload, at + NLA_HDR_BYTES);
    at += sizes[index]!;
  }
  const fields = { type: TYPE_CONFIG, flags: NLM_F_REQUEST | flags, seq: 0, portId: 0 };
  return encodeNetlink(fields, bytes);
}
