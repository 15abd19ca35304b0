/**
 * Reads the bodies of peer link messages. Layout: `link-msg.ts`.
 *
 * @module
 */
import type { FrameBuffer } from '../env/frame.ts';
import type { PeerHello } from '../env/link.ts';
import type { GuestAddress, LinkMessage, ProgressEntry } from '../env/messages.ts';
import {
  LINK_CAUSE_CODES,
  LINK_GUEST_ADDRESS_BYTES,
  LINK_GUEST_ADDRESSES_MAX,
  LINK_HELLO_TEXT_BYTES_MAX,
  LINK_MAGIC,
  LINK_PROGRESS_ENTRIES_MAX,
  LINK_PROGRESS_ENTRY_BYTES,
  LINK_ROLE_CODES,
  LINK_STATE_CODES,
  LINK_TEXT_BYTES_MAX,
  LINK_TIMEOUT_US_MAX,
  LINK_TIMEOUT_US_MIN,
  LINK_TYPE_CHECKPOINT_ABORT,
  LINK_TYPE_CHECKPOINT_BEGAN,
  LINK_TYPE_CHECKPOINT_BEGIN,
  LINK_TYPE_CHECKPOINT_COMMIT,
  LINK_TYPE_CHECKPOINT_COMMITTED,
  LINK_TYPE_CHECKPOINT_REQUEST,
  LINK_TYPE_GUEST_ADDRESSES,
  LINK_TYPE_PROGRESS,
  LINK_TYPE_RESET,
  namesByCode,
} from './link-msg.ts';

const ROLE_NAMES = namesByCode(LINK_ROLE_CODES);
const STATE_NAMES = namesByCode(LINK_STATE_CODES);
const CAUSE_NAMES = namesByCode(LINK_CAUSE_CODES);

const textDecoder = new TextDecoder('utf-8', { ignoreBOM: true });

/**
 * Reads a body field by field. Reading past the end or a value without a meaning gives 0 and makes
 * `isWhole` false, so one check at the end is enough.
 */
export class LinkBodyReader {
  readonly #buffer: FrameBuffer;
  readonly #end: number;
  #at: number;
  #isGood = true;

  constructor(buffer: FrameBuffer, start: number, end: number) {
    this.#buffer = buffer;
    this.#at = start;
    this.#end = end;
  }

  /** Every field had a meaning, and the body ended where its fields did. */
  get isWhole(): boolean {
    return this.#isGood && this.#at === this.#end;
  }

  /** Position of the next `bytes`, or -1. */
  #take(bytes: number): number {
    if (!this.#isGood || this.#end - this.#at < bytes) {
      this.#isGood = false;
      return -1;
    }
    const at = this.#at;
    this.#at += bytes;
    return at;
  }

  u8(): number {
    const at = this.#take(1);
    return at < 0 ? 0 : this.#buffer.view.getUint8(at);
  }

  u16(): number {
    const at = this.#take(2);
    return at < 0 ? 0 : this.#buffer.view.getUint16(at);
  }

  u32(): number {
    const at = this.#take(4);
    return at < 0 ? 0 : this.#buffer.view.getUint32(at);
  }

  /** Values of 2^53 and more are not exact in a number and have no meaning here. */
  u64(): number {
    const value = this.u32() * 0x1_0000_0000 + this.u32();
    if (Number.isSafeInteger(value)) return value;
    this.#isGood = false;
    return 0;
  }

  text(bytesMax: number): string {
    const bytes = this.u16();
    const at = bytes > bytesMax ? -1 : this.#take(bytes);
    if (at < 0) {
      this.#isGood = false;
      return '';
    }
    return printable(textDecoder.decode(this.#buffer.bytes.subarray(at, at + bytes)));
  }

  /** The version after the magic; 0 when the magic is not there. */
  magicAndVersion(): number {
    const at = this.#take(LINK_MAGIC.length);
    const isThere = at >= 0 && LINK_MAGIC.every((byte, i) => this.#buffer.bytes[at + i] === byte);
    return isThere ? this.u16() : 0;
  }

  hello(): PeerHello | undefined {
    const role = ROLE_NAMES[this.u8()];
    const state = STATE_NAMES[this.u8()];
    let nodeId = '';
    for (let index = 0; index < 16; index++) nodeId += this.u8().toString(16).padStart(2, '0');
    const instance = this.u64();
    const epoch = this.u32();
    const heartbeatUs = this.u32();
    const timeoutUs = this.u32();
    const software = this.text(LINK_HELLO_TEXT_BYTES_MAX);
    if (!this.isWhole || role === undefined || state === undefined) return undefined;
    if (timeoutUs < LINK_TIMEOUT_US_MIN || timeoutUs > LINK_TIMEOUT_US_MAX) return undefined;
    return { role, nodeId, instance, epoch, state, software, heartbeatUs, timeoutUs };
  }

  /** A control message; the caller checks `isWhole` afterwards. */
  message(type: number): LinkMessage | undefined {
    switch (type) {
      case LINK_TYPE_CHECKPOINT_BEGIN:
        return { type: 'checkpoint-begin', epoch: this.u32() };
      case LINK_TYPE_CHECKPOINT_BEGAN:
        return { type: 'checkpoint-began', epoch: this.u32() };
      case LINK_TYPE_CHECKPOINT_COMMIT:
        return { type: 'checkpoint-commit', epoch: this.u32() };
      case LINK_TYPE_CHECKPOINT_COMMITTED:
        return { type: 'checkpoint-committed', epoch: this.u32() };
      case LINK_TYPE_CHECKPOINT_ABORT:
        return {
          type: 'checkpoint-abort',
          epoch: this.u32(),
          reason: this.text(LINK_TEXT_BYTES_MAX),
        };
      case LINK_TYPE_CHECKPOINT_REQUEST: {
        const cause = CAUSE_NAMES[this.u8()];
        this.u8();
        const text = this.text(LINK_TEXT_BYTES_MAX);
        return cause === undefined ? undefined : { type: 'checkpoint-request', cause, text };
      }
      case LINK_TYPE_PROGRESS:
        return this.#progress();
      case LINK_TYPE_GUEST_ADDRESSES:
        return this.#guestAddresses();
      case LINK_TYPE_RESET:
        return { type: 'reset', reason: this.text(LINK_TEXT_BYTES_MAX) };
      default:
        return undefined;
    }
  }

  #progress(): LinkMessage | undefined {
    const count = this.u16();
    this.u16();
    const isCountTrue = this.#end - this.#at === count * LINK_PROGRESS_ENTRY_BYTES;
    if (!isCountTrue || count > LINK_PROGRESS_ENTRIES_MAX) return undefined;
    const entries: ProgressEntry[] = [];
    for (let index = 0; index < count; index++) {
      const ipVersion = this.u8();
      if (ipVersion !== 4 && ipVersion !== 6) return undefined;
      const protocol = this.u8();
      const guestPort = this.u16();
      const clientPort = this.u16();
      this.u16();
      const vlan = this.u32();
      const position = this.u32();
      const addresses = this.#take(32);
      // Copied: an engine may keep an entry longer than the chunk lives.
      const guestAddress = this.#buffer.bytes.slice(addresses, addresses + 16);
      const clientAddress = this.#buffer.bytes.slice(addresses + 16, addresses + 32);
      const ports = { guestPort, clientPort, guestAddress, clientAddress };
      entries.push({ ipVersion, protocol, vlan, position, ...ports });
    }
    return { type: 'progress', entries };
  }

  #guestAddresses(): LinkMessage | undefined {
    const count = this.u16();
    const flags = this.u16();
    const isCountTrue = this.#end - this.#at === count * LINK_GUEST_ADDRESS_BYTES;
    if (!isCountTrue || count > LINK_GUEST_ADDRESSES_MAX || flags > 1) return undefined;
    const addresses: GuestAddress[] = [];
    for (let index = 0; index < count; index++) {
      const ipVersion = this.u8();
      const addressFlags = this.u8();
      if ((ipVersion !== 4 && ipVersion !== 6) || addressFlags > 1) return undefined;
      const macAt = this.#take(6);
      const vlan = this.u32();
      const at = this.#take(16);
      const mac = this.#buffer.bytes.slice(macAt, macAt + 6);
      const ip = this.#buffer.bytes.slice(at, at + (ipVersion === 4 ? 4 : 16));
      addresses.push({ ipVersion, vlan, ip, mac, certain: addressFlags === 1 });
    }
    return { type: 'guest-addresses', isRouter: flags === 1, addresses };
  }
}

/** Texts go to logs and terminals: control characters become question marks. */
function printable(text: string): string {
  let result = '';
  for (const character of text) {
    const code = character.codePointAt(0)!;
    result += code < 0x20 || (code >= 0x7f && code < 0xa0) ? '?' : character;
  }
  return result;
}
