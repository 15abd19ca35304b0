/**
 * Writes peer link messages into memory of the caller. Layout: `link-msg.ts`.
 *
 * Every `encode...` writes one whole message at `offset` and returns its length in bytes. The caller
 * has seen to the room: LINK_CONTROL_BYTES_MAX is enough for everything but frames
 * (`LINK_FRAME_HEADROOM + length`), progress and guest-addresses (`linkMessageBytesMax`).
 *
 * @module
 */
import { assert } from '../base/assert.ts';
import type { FrameBuffer } from '../env/frame.ts';
import type { PeerHello } from '../env/link.ts';
import type { GuestAddress, LinkMessage, ProgressEntry } from '../env/messages.ts';
import { FRAME_BYTES_MAX, VNET_HDR_BYTES } from '../limits.ts';
import {
  LINK_CAUSE_CODES,
  LINK_FRAME_HEADROOM,
  LINK_FRAME_KIND_MAX,
  LINK_GUEST_ADDRESS_BYTES,
  LINK_GUEST_ADDRESSES_MAX,
  LINK_HEADER_BYTES,
  LINK_HEARTBEAT_BODY_BYTES,
  LINK_HELLO_FIXED_BYTES,
  LINK_HELLO_TEXT_BYTES_MAX,
  LINK_MAGIC,
  LINK_PROGRESS_ENTRIES_MAX,
  LINK_PROGRESS_ENTRY_BYTES,
  LINK_REFUSAL_CODES,
  LINK_ROLE_CODES,
  LINK_STATE_CODES,
  LINK_TEXT_BYTES_MAX,
  LINK_TYPE_CHECKPOINT_ABORT,
  LINK_TYPE_CHECKPOINT_BEGAN,
  LINK_TYPE_CHECKPOINT_BEGIN,
  LINK_TYPE_CHECKPOINT_COMMIT,
  LINK_TYPE_CHECKPOINT_COMMITTED,
  LINK_TYPE_CHECKPOINT_REQUEST,
  LINK_TYPE_FRAME,
  LINK_TYPE_GOODBYE,
  LINK_TYPE_GUEST_ADDRESSES,
  LINK_TYPE_HEARTBEAT,
  LINK_TYPE_HELLO,
  LINK_TYPE_PROGRESS,
  LINK_TYPE_REFUSE,
  LINK_TYPE_RESET,
  LINK_TYPE_WELCOME,
  LINK_VERSION,
  type LinkHeartbeat,
  type LinkRefusal,
} from './link-msg.ts';

/** Room that every message but frames, progress and guest-addresses fits in. */
export const LINK_CONTROL_BYTES_MAX = LINK_HEADER_BYTES + 16 + LINK_TEXT_BYTES_MAX;

const textEncoder = new TextEncoder();

function writeHeader(buffer: FrameBuffer, offset: number, type: number, bodyBytes: number): number {
  buffer.view.setUint32(offset, bodyBytes);
  buffer.view.setUint32(offset + 4, type << 24);
  return LINK_HEADER_BYTES + bodyBytes;
}

/** Writes length and UTF-8 bytes, cut at a character; returns how many bytes both take. */
function writeText(buffer: FrameBuffer, offset: number, text: string, bytesMax: number): number {
  const room = buffer.bytes.subarray(offset + 2, offset + 2 + bytesMax);
  const { written } = textEncoder.encodeInto(text, room);
  buffer.view.setUint16(offset, written);
  return 2 + written;
}

function writeU64(view: DataView, offset: number, value: number): void {
  assert(Number.isSafeInteger(value) && value >= 0, 'a 64-bit field is a whole number below 2^53');
  view.setUint32(offset, Math.floor(value / 0x1_0000_0000));
  view.setUint32(offset + 4, value % 0x1_0000_0000);
}

function writeMagic(buffer: FrameBuffer, offset: number, version: number): void {
  for (let index = 0; index < LINK_MAGIC.length; index++) {
    buffer.bytes[offset + index] = LINK_MAGIC[index]!;
  }
  buffer.view.setUint16(offset + LINK_MAGIC.length, version);
}

/** Writes hello (the connecting end's first message) or, with `isAnswer`, welcome (the listening end's). */
export function encodeHello(
  buffer: FrameBuffer,
  offset: number,
  hello: PeerHello,
  isAnswer: boolean,
): number {
  const { bytes, view } = buffer;
  const body = offset + LINK_HEADER_BYTES;
  assert(hello.nodeId.length === 32, 'a node id has 32 hexadecimal digits');
  writeMagic(buffer, body, LINK_VERSION);
  view.setUint8(body + 10, LINK_ROLE_CODES[hello.role]);
  view.setUint8(body + 11, LINK_STATE_CODES[hello.state]);
  for (let index = 0; index < 16; index++) {
    bytes[body + 12 + index] = Number.parseInt(hello.nodeId.slice(2 * index, 2 * index + 2), 16);
  }
  writeU64(view, body + 28, hello.instance);
  view.setUint32(body + 36, hello.epoch);
  view.setUint32(body + 40, hello.heartbeatUs);
  view.setUint32(body + 44, hello.timeoutUs);
  const textAt = body + LINK_HELLO_FIXED_BYTES;
  const textBytes = writeText(buffer, textAt, hello.software, LINK_HELLO_TEXT_BYTES_MAX);
  const type = isAnswer ? LINK_TYPE_WELCOME : LINK_TYPE_HELLO;
  return writeHeader(buffer, offset, type, LINK_HELLO_FIXED_BYTES + textBytes);
}

/** Writes a refuse. */
export function encodeRefuse(buffer: FrameBuffer, offset: number, refusal: LinkRefusal): number {
  const body = offset + LINK_HEADER_BYTES;
  writeMagic(buffer, body, refusal.version);
  buffer.view.setUint16(body + 10, LINK_REFUSAL_CODES[refusal.reason] << 8);
  const textBytes = writeText(buffer, body + 12, refusal.text, LINK_HELLO_TEXT_BYTES_MAX);
  return writeHeader(buffer, offset, LINK_TYPE_REFUSE, 12 + textBytes);
}

/** Writes a heartbeat. */
export function encodeHeartbeat(buffer: FrameBuffer, offset: number, beat: LinkHeartbeat): number {
  const body = offset + LINK_HEADER_BYTES;
  writeU64(buffer.view, body, beat.sentUs);
  writeU64(buffer.view, body + 8, beat.echoUs);
  writeU64(buffer.view, body + 16, beat.echoDelayUs);
  return writeHeader(buffer, offset, LINK_TYPE_HEARTBEAT, LINK_HEARTBEAT_BODY_BYTES);
}

/** Writes a goodbye. */
export function encodeGoodbye(buffer: FrameBuffer, offset: number, reason: string): number {
  return encodeText(buffer, offset, LINK_TYPE_GOODBYE, reason);
}

/**
 * Writes a frame: `length` bytes at `sourceOffset` of `source`, and the virtio-net header before it.
 * `epoch` is taken modulo 2^32.
 */
export function encodeFrame(
  buffer: FrameBuffer,
  offset: number,
  kind: number,
  epoch: number,
  source: FrameBuffer,
  sourceOffset: number,
  length: number,
): number {
  assert(kind >= 1 && kind <= LINK_FRAME_KIND_MAX, 'frame kinds are 1 to 3');
  assert(length <= FRAME_BYTES_MAX, 'a frame on the link has at most FRAME_BYTES_MAX');
  buffer.view.setUint32(offset + LINK_HEADER_BYTES, epoch);
  buffer.bytes.set(
    source.bytes.subarray(sourceOffset - VNET_HDR_BYTES, sourceOffset + length),
    offset + LINK_HEADER_BYTES + 4,
  );
  const bodyBytes = LINK_FRAME_HEADROOM - LINK_HEADER_BYTES + length;
  return writeHeader(buffer, offset, LINK_TYPE_FRAME + kind, bodyBytes);
}

/** Upper bound of what `encodeMessage` writes for `message`. */
export function linkMessageBytesMax(message: LinkMessage): number {
  if (message.type === 'guest-addresses') {
    return LINK_HEADER_BYTES + 4 + message.addresses.length * LINK_GUEST_ADDRESS_BYTES;
  }
  if (message.type !== 'progress') return LINK_CONTROL_BYTES_MAX;
  return LINK_HEADER_BYTES + 4 + message.entries.length * LINK_PROGRESS_ENTRY_BYTES;
}

/**
 * Writes a control message. Progress: at most LINK_PROGRESS_ENTRIES_MAX entries; addresses: LINK_GUEST_ADDRESSES_MAX.
 * Texts longer than LINK_TEXT_BYTES_MAX are cut.
 */
export function encodeMessage(buffer: FrameBuffer, offset: number, message: LinkMessage): number {
  switch (message.type) {
    case 'checkpoint-begin':
      return encodeEpoch(buffer, offset, LINK_TYPE_CHECKPOINT_BEGIN, message.epoch);
    case 'checkpoint-began':
      return encodeEpoch(buffer, offset, LINK_TYPE_CHECKPOINT_BEGAN, message.epoch);
    case 'checkpoint-commit':
      return encodeEpoch(buffer, offset, LINK_TYPE_CHECKPOINT_COMMIT, message.epoch);
    case 'checkpoint-committed':
      return encodeEpoch(buffer, offset, LINK_TYPE_CHECKPOINT_COMMITTED, message.epoch);
    case 'checkpoint-abort': {
      const body = offset + LINK_HEADER_BYTES;
      buffer.view.setUint32(body, message.epoch);
      const textBytes = writeText(buffer, body + 4, message.reason, LINK_TEXT_BYTES_MAX);
      return writeHeader(buffer, offset, LINK_TYPE_CHECKPOINT_ABORT, 4 + textBytes);
    }
    case 'checkpoint-request': {
      const body = offset + LINK_HEADER_BYTES;
      buffer.view.setUint16(body, LINK_CAUSE_CODES[message.cause] << 8);
      const textBytes = writeText(buffer, body + 2, message.text, LINK_TEXT_BYTES_MAX);
      return writeHeader(buffer, offset, LINK_TYPE_CHECKPOINT_REQUEST, 2 + textBytes);
    }
    case 'progress':
      return encodeProgress(buffer, offset, message.entries);
    case 'guest-addresses':
      return encodeGuestAddresses(buffer, offset, message.isRouter, message.addresses);
    case 'reset':
      return encodeText(buffer, offset, LINK_TYPE_RESET, message.reason);
  }
}

function encodeEpoch(buffer: FrameBuffer, offset: number, type: number, epoch: number): number {
  buffer.view.setUint32(offset + LINK_HEADER_BYTES, epoch);
  return writeHeader(buffer, offset, type, 4);
}

function encodeText(buffer: FrameBuffer, offset: number, type: number, text: string): number {
  const textBytes = writeText(buffer, offset + LINK_HEADER_BYTES, text, LINK_TEXT_BYTES_MAX);
  return writeHeader(buffer, offset, type, textBytes);
}

function encodeProgress(
  buffer: FrameBuffer,
  offset: number,
  entries: readonly ProgressEntry[],
): number {
  assert(entries.length <= LINK_PROGRESS_ENTRIES_MAX, 'the sender splits long progress lists');
  const { bytes, view } = buffer;
  view.setUint32(offset + LINK_HEADER_BYTES, entries.length << 16);
  let at = offset + LINK_HEADER_BYTES + 4;
  for (const entry of entries) {
    view.setUint8(at, entry.ipVersion);
    view.setUint8(at + 1, entry.protocol);
    view.setUint16(at + 2, entry.guestPort);
    view.setUint16(at + 4, entry.clientPort);
    view.setUint16(at + 6, 0);
    view.setUint32(at + 8, entry.vlan);
    view.setUint32(at + 12, entry.position);
    bytes.set(entry.guestAddress, at + 16);
    bytes.set(entry.clientAddress, at + 32);
    at += LINK_PROGRESS_ENTRY_BYTES;
  }
  const bodyBytes = 4 + entries.length * LINK_PROGRESS_ENTRY_BYTES;
  return writeHeader(buffer, offset, LINK_TYPE_PROGRESS, bodyBytes);
}

function encodeGuestAddresses(
  buffer: FrameBuffer,
  offset: number,
  isRouter: boolean,
  addresses: readonly GuestAddress[],
): number {
  assert(addresses.length <= LINK_GUEST_ADDRESSES_MAX, 'an engine remembers no more addresses');
  const { bytes, view } = buffer;
  view.setUint16(offset + LINK_HEADER_BYTES, addresses.length);
  view.setUint16(offset + LINK_HEADER_BYTES + 2, isRouter ? 1 : 0);
  let at = offset + LINK_HEADER_BYTES + 4;
  for (const { ipVersion, certain, mac, vlan, ip } of addresses) {
    view.setUint8(at, ipVersion);
    view.setUint8(at + 1, certain ? 1 : 0);
    bytes.set(mac, at + 2);
    view.setUint32(at + 8, vlan);
    bytes.fill(0, at + 12, at + LINK_GUEST_ADDRESS_BYTES);
    bytes.set(ip, at + 12);
    at += LINK_GUEST_ADDRESS_BYTES;
  }
  const bodyBytes = 4 + addresses.length * LINK_GUEST_ADDRESS_BYTES;
  return writeHeader(buffer, offset, LINK_TYPE_GUEST_ADDRESSES, bodyBytes);
}
