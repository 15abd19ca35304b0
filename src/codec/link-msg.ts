/**
 * The peer link's binary layout: constants and tables shared by encoder (`link-encode.ts`) and decoder
 * (`link-decode.ts`). Source: docs/PROTOCOLS.md, "Peer link". No sockets, no clocks.
 *
 * All integers are big-endian except the virtio-net header, which is as the hosts have it
 * (little-endian, struct virtio_net_hdr of linux/virtio_net.h). Every message is a header and a body:
 *
 *      0       1       2       3       4       5       6       7
 *     +-------+-------+-------+-------+-------+-------+-------+-------+
 *     |          body length          | type  |        zero           |
 *     +-------+-------+-------+-------+-------+-------+-------+-------+
 *
 *     type                     body
 *     0x01 hello               magic[8] "COLOPEER", version u16, role u8 (1 primary, 2 secondary), state u8,
 *     0x02 welcome               node id [16], instance u64, epoch u32, heartbeat us u32, timeout us u32,
 *                                software text
 *     0x03 refuse              magic[8], version u16, reason u8, zero u8, text
 *     0x04 heartbeat           sender's time u64, echoed time u64, echo delay u64 (microseconds; echo 0: none yet)
 *     0x05 goodbye             text
 *     0x11 client frame        epoch u32, virtio-net header [10], Ethernet frame
 *     0x12 secondary frame     the same
 *     0x13 primary-syn frame   the same
 *     0x20 checkpoint-begin    epoch u32
 *     0x21 checkpoint-began    epoch u32
 *     0x22 checkpoint-commit   epoch u32
 *     0x23 checkpoint-committed  epoch u32
 *     0x24 checkpoint-abort    epoch u32, text
 *     0x25 checkpoint-request  cause u8, zero u8, text
 *     0x26 progress            count u16, zero u16, count times 48 bytes:
 *                                IP version u8, protocol u8, guest port u16, client port u16, zero u16,
 *                                vlan u32, position u32, guest address [16], client address [16]
 *     0x27 reset               text
 *     0x28 guest-addresses     count u16, flags u16 (1: the guest is a router), count times 28 bytes:
 *                                IP version u8, flags u8 (1: certain), MAC address [6], vlan u32, address [16]
 *
 *     text: length u16, UTF-8 bytes
 *
 * Header, magic, version and the whole refuse message keep their place in every later version, so that
 * two versions can tell each other apart.
 *
 * @module
 */
import type { CheckpointCause, NodeState, Role } from '../env/messages.ts';
import { FRAME_BYTES_MAX, VNET_HDR_BYTES } from '../limits.ts';

/** Raised with every change of the layout or of what a message means. */
export const LINK_VERSION = 2;

/** "COLOPEER", the first bytes of the hello's body. */
export const LINK_MAGIC: readonly number[] = [0x43, 0x4f, 0x4c, 0x4f, 0x50, 0x45, 0x45, 0x52];

/** Bytes of the message header. */
export const LINK_HEADER_BYTES = 8;

/** From the first byte of a frame message to the Ethernet header: header, epoch, virtio-net header. */
export const LINK_FRAME_HEADROOM = LINK_HEADER_BYTES + 4 + VNET_HDR_BYTES;

/** Longest body before the handshake is done: a stranger makes us keep at most this. */
export const LINK_HELLO_BODY_BYTES_MAX = 512;

/** Longest body afterwards: a frame of FRAME_BYTES_MAX. Every control message is shorter. */
export const LINK_BODY_BYTES_MAX = 4 + VNET_HDR_BYTES + FRAME_BYTES_MAX;

/** UTF-8 bytes of a text; longer ones are cut at a character. */
export const LINK_TEXT_BYTES_MAX = 1_024;

/** UTF-8 bytes of the software version in a hello, and of the text in a refuse. */
export const LINK_HELLO_TEXT_BYTES_MAX = 256;

/** Entries of one progress message (49 kB); the sender splits longer lists. */
export const LINK_PROGRESS_ENTRIES_MAX = 1_024;

/** Bytes of one progress entry. */
export const LINK_PROGRESS_ENTRY_BYTES = 48;

/** Addresses of one guest-addresses message: as many as an engine remembers. */
export const LINK_GUEST_ADDRESSES_MAX = 256;

/** Bytes of one of them. */
export const LINK_GUEST_ADDRESS_BYTES = 28;

/** Shortest and longest peer timeout a hello may ask for: it sets how often the other end sends. */
export const LINK_TIMEOUT_US_MIN = 20_000;
/** See LINK_TIMEOUT_US_MIN. */
export const LINK_TIMEOUT_US_MAX = 600_000_000;

/** Bytes of the fixed part of a hello's body, before the software text. */
export const LINK_HELLO_FIXED_BYTES = 48;

/** Bytes of a heartbeat's body. */
export const LINK_HEARTBEAT_BODY_BYTES = 24;

export const LINK_TYPE_HELLO = 0x01;
export const LINK_TYPE_WELCOME = 0x02;
export const LINK_TYPE_REFUSE = 0x03;
export const LINK_TYPE_HEARTBEAT = 0x04;
export const LINK_TYPE_GOODBYE = 0x05;
/** Plus the frame's kind, 1 to 3. */
export const LINK_TYPE_FRAME = 0x10;
export const LINK_TYPE_CHECKPOINT_BEGIN = 0x20;
export const LINK_TYPE_CHECKPOINT_BEGAN = 0x21;
export const LINK_TYPE_CHECKPOINT_COMMIT = 0x22;
export const LINK_TYPE_CHECKPOINT_COMMITTED = 0x23;
export const LINK_TYPE_CHECKPOINT_ABORT = 0x24;
export const LINK_TYPE_CHECKPOINT_REQUEST = 0x25;
export const LINK_TYPE_PROGRESS = 0x26;
export const LINK_TYPE_RESET = 0x27;
export const LINK_TYPE_GUEST_ADDRESSES = 0x28;

/** Frame kinds are 1 to this. */
export const LINK_FRAME_KIND_MAX = 3;

/** Role to its byte. A code, once given, never changes its meaning; this holds for all the tables below. */
export const LINK_ROLE_CODES: Readonly<Record<Role, number>> = { primary: 1, secondary: 2 };

/** Node state to its byte. */
export const LINK_STATE_CODES: Readonly<Record<NodeState, number>> = {
  unprotected: 1,
  syncing: 2,
  protected: 3,
  checkpointing: 4,
  'failed-over': 5,
};

/** Cause of a checkpoint request to its byte. */
export const LINK_CAUSE_CODES: Readonly<Record<CheckpointCause, number>> = {
  sync: 1,
  'different-bytes': 2,
  'different-length': 3,
  'different-options': 4,
  'reset-mismatch': 5,
  'fin-mismatch': 6,
  'secondary-silent': 7,
  'primary-silent': 8,
  'acknowledgement-behind': 9,
  'window-closed': 10,
  limit: 11,
  unverifiable: 12,
  'secondary-request': 13,
  operator: 14,
};

/** Why a hello was refused. */
export type LinkRefusalReason = 'version' | 'role' | 'duplicate' | 'closing';

/** Refusal to its byte. */
export const LINK_REFUSAL_CODES: Readonly<Record<LinkRefusalReason, number>> = {
  version: 1,
  role: 2,
  duplicate: 3,
  closing: 4,
};

/** Byte to name, the inverse of one of the tables above; `undefined` at every code without a meaning. */
export function namesByCode<Name extends string>(
  codes: Readonly<Record<Name, number>>,
): readonly (Name | undefined)[] {
  const names: (Name | undefined)[] = [];
  for (const name in codes) names[codes[name]] = name;
  return names;
}

/** A refuse message. */
export interface LinkRefusal {
  readonly reason: LinkRefusalReason;
  /** Protocol version of the refusing end. */
  readonly version: number;
  readonly text: string;
}

/** A heartbeat message; all times in microseconds, exact to 2^53. */
export interface LinkHeartbeat {
  /** The sender's clock (its own origin). */
  readonly sentUs: number;
  /** `sentUs` of the last heartbeat that the sender received; 0 when there was none. */
  readonly echoUs: number;
  /** How long the sender had kept that one before it sent this. */
  readonly echoDelayUs: number;
}
