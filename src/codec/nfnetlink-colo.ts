/**
 * The messages of the RFC's module `nfnetlink_colo`, and those of the older ABI that libxl still
 * speaks: bytes to values and back. The rules (who may say what, and when) are in `vm/nfnetlink-node.ts`.
 *
 * Sources: nfnetlink_colo.c and .h of coloft/colo-proxy (c23c176, 2015); for the older ABI (January 2015,
 * netlink protocol 28) tools/libs/light/libxl_colo_proxy.c of Xen.
 *
 *     nfnetlink_colo:  nlmsghdr, type = 12 << 8 | message
 *                      nfgenmsg { u8 family = AF_UNSPEC 0, u8 version = 0, be16 res_id = 0 }
 *                      nlattr   { u16 length = 5, u16 type = 1 }  u8 mode  3 bytes of padding
 *     its notification:  the same with message 0 and
 *                      nlattr   { u16 length = 8, u16 type = 1 }  s32 different, in network order
 *     older ABI:       nlmsghdr alone, type 0x11 to 0x15
 *     its notification:  nlmsghdr, type 0x11, u8 checkpoint (a C `bool`)
 *
 * @module
 */
import {
  encodeNetlink,
  HOST_LITTLE_ENDIAN,
  type NetlinkMessage,
  NLA_HDR_BYTES,
  NLMSG_HDR_BYTES,
  netlinkAlign,
  readAttributes,
} from './netlink.ts';

/** Subsystem number of COLO in nfnetlink message types. */
export const NFNL_SUBSYS_COLO = 12;

/** Messages of nfnetlink_colo: the low byte of the type. */
export const NFCOLO = {
  KERNEL_NOTIFY: 0,
  DO_CHECKPOINT: 1,
  DO_FAILOVER: 2,
  PROXY_INIT: 3,
  PROXY_RESET: 4,
} as const;

/** Message types of the older ABI: NLMSG_MIN_TYPE + 1 and on. */
export const LEGACY_COLO = {
  QUERY_CHECKPOINT: 0x11,
  CHECKPOINT: 0x12,
  FAILOVER: 0x13,
  PROXY_INIT: 0x14,
  PROXY_RESET: 0x15,
} as const;

/** Attribute of requests: u8, one of COLO_MODE. */
export const NFNL_COLO_MODE = 1;
/** Attribute of KERNEL_NOTIFY: s32 in network order. */
export const NFNL_COLO_COMPARE_RESULT = 1;

/** Values of NFNL_COLO_MODE; the module calls everything from 3 on invalid. */
export const COLO_MODE = { unprotected: 0, primary: 1, secondary: 2 } as const;
export type ColoMode = (typeof COLO_MODE)[keyof typeof COLO_MODE];

/** Bytes of `struct nfgenmsg`. */
export const NFGENMSG_BYTES = 4;

/** Which of the two protocols a message, and then its sender, speaks. */
export type ColoAbi = 'nfnetlink' | 'legacy';

/** What a client may ask. `query` exists in the older ABI only. */
export type ColoVerb = 'init' | 'checkpoint' | 'failover' | 'reset' | 'query';

/** Why a message is not a request that can be looked at further. */
export type ColoDecodeFailure =
  | 'no-nfgenmsg' // shorter than its fixed part
  | 'unknown-subsystem'
  | 'unknown-message'
  | 'not-for-us' // KERNEL_NOTIFY goes from the proxy to the VM layer only
  | 'mode-missing'
  | 'mode-too-short' // the attribute is there, with an empty payload
  | 'mode-out-of-range';

export type ColoRequest =
  | {
      readonly ok: true;
      readonly abi: ColoAbi;
      readonly verb: ColoVerb;
      /** Undefined in the older ABI, which has none. */
      readonly mode: ColoMode | undefined;
    }
  | { readonly ok: false; readonly failure: ColoDecodeFailure };

const NFNETLINK_VERBS: Readonly<Record<number, ColoVerb>> = {
  [NFCOLO.DO_CHECKPOINT]: 'checkpoint',
  [NFCOLO.DO_FAILOVER]: 'failover',
  [NFCOLO.PROXY_INIT]: 'init',
  [NFCOLO.PROXY_RESET]: 'reset',
};

const LEGACY_VERBS: Readonly<Record<number, ColoVerb>> = {
  [LEGACY_COLO.QUERY_CHECKPOINT]: 'query',
  [LEGACY_COLO.CHECKPOINT]: 'checkpoint',
  [LEGACY_COLO.FAILOVER]: 'failover',
  [LEGACY_COLO.PROXY_INIT]: 'init',
  [LEGACY_COLO.PROXY_RESET]: 'reset',
};

/** Decodes a request of either ABI. Never throws. Preconditions: `message` is whole. */
export function decodeColoRequest(message: NetlinkMessage): ColoRequest {
  const legacy = LEGACY_VERBS[message.type];
  if (legacy !== undefined) return { ok: true, abi: 'legacy', verb: legacy, mode: undefined };
  // nfnetlink_rcv_msg() looks at the length first. It calls a shorter message done, without an error;
  // here the sender is told that nothing was done.
  if (message.length < NLMSG_HDR_BYTES + NFGENMSG_BYTES)
    return { ok: false, failure: 'no-nfgenmsg' };
  if (message.type >> 8 !== NFNL_SUBSYS_COLO) return { ok: false, failure: 'unknown-subsystem' };
  const verb = NFNETLINK_VERBS[message.type & 0xff];
  if (verb === undefined) {
    const notify = (message.type & 0xff) === NFCOLO.KERNEL_NOTIFY;
    return { ok: false, failure: notify ? 'not-for-us' : 'unknown-message' };
  }
  const end = message.offset + message.length;
  const first = message.offset + NLMSG_HDR_BYTES + NFGENMSG_BYTES;
  let mode: number | undefined;
  for (const attribute of readAttributes(message.bytes, first, end)) {
    if (attribute.type !== NFNL_COLO_MODE) continue;
    // The module's policy is NLA_U8; nla_parse() lets longer payloads pass and reads the first byte.
    if (attribute.payload.length < 1) return { ok: false, failure: 'mode-too-short' };
    mode = attribute.payload[0];
  }
  if (mode === undefined) return { ok: false, failure: 'mode-missing' };
  if (mode !== 0 && mode !== 1 && mode !== 2) return { ok: false, failure: 'mode-out-of-range' };
  return { ok: true, abi: 'nfnetlink', verb, mode };
}

/** Fields of a request to write. */
export interface ColoRequestFields {
  readonly flags: number;
  readonly seq: number;
  readonly portId: number;
}

/** A request of nfnetlink_colo, as the client of 2015 (net/colo-nic.c) sends it: 28 bytes. */
export function encodeColoRequest(
  verb: Exclude<ColoVerb, 'query'>,
  mode: number,
  fields: ColoRequestFields,
): Uint8Array {
  const message = {
    init: NFCOLO.PROXY_INIT,
    checkpoint: NFCOLO.DO_CHECKPOINT,
    failover: NFCOLO.DO_FAILOVER,
    reset: NFCOLO.PROXY_RESET,
  }[verb];
  const payload = new Uint8Array(NFGENMSG_BYTES + netlinkAlign(NLA_HDR_BYTES + 1));
  const view = new DataView(payload.buffer);
  view.setUint16(NFGENMSG_BYTES, NLA_HDR_BYTES + 1, HOST_LITTLE_ENDIAN);
  view.setUint16(NFGENMSG_BYTES + 2, NFNL_COLO_MODE, HOST_LITTLE_ENDIAN);
  payload[NFGENMSG_BYTES + NLA_HDR_BYTES] = mode;
  return encodeNetlink({ type: (NFNL_SUBSYS_COLO << 8) | message, ...fields }, payload);
}

/** A request of the older ABI: 16 bytes. */
export function encodeLegacyRequest(verb: ColoVerb, fields: ColoRequestFields): Uint8Array {
  const type = {
    query: LEGACY_COLO.QUERY_CHECKPOINT,
    checkpoint: LEGACY_COLO.CHECKPOINT,
    failover: LEGACY_COLO.FAILOVER,
    init: LEGACY_COLO.PROXY_INIT,
    reset: LEGACY_COLO.PROXY_RESET,
  }[verb];
  return encodeNetlink({ type, ...fields }, new Uint8Array(0));
}

/** KERNEL_NOTIFY, "the outputs differ, please checkpoint": 28 bytes. `portId` is the receiver's. */
export function encodeKernelNotify(portId: number, different: boolean): Uint8Array {
  const payload = new Uint8Array(NFGENMSG_BYTES + NLA_HDR_BYTES + 4);
  const view = new DataView(payload.buffer);
  view.setUint16(NFGENMSG_BYTES, NLA_HDR_BYTES + 4, HOST_LITTLE_ENDIAN);
  view.setUint16(NFGENMSG_BYTES + 2, NFNL_COLO_COMPARE_RESULT, HOST_LITTLE_ENDIAN);
  // The module writes htonl(1): the one field of the protocol in network order.
  view.setInt32(NFGENMSG_BYTES + NLA_HDR_BYTES, different ? 1 : 0, false);
  const type = (NFNL_SUBSYS_COLO << 8) | NFCOLO.KERNEL_NOTIFY;
  return encodeNetlink({ type, flags: 0, seq: 0, portId }, payload);
}

/** The older ABI's notification, and its answer to a query (then with the query's `seq`): length 17, sent as 20 bytes. */
export function encodeLegacyNotify(portId: number, checkpoint: boolean, seq = 0): Uint8Array {
  const payload = new Uint8Array([checkpoint ? 1 : 0]);
  return encodeNetlink({ type: LEGACY_COLO.QUERY_CHECKPOINT, flags: 0, seq, portId }, payload);
}

/** Decodes a notification of either ABI on the VM layer's side; undefined when it is none. */
export function decodeColoNotify(
  message: NetlinkMessage,
): { readonly abi: ColoAbi; readonly different: boolean } | undefined {
  const body = message.offset + NLMSG_HDR_BYTES;
  if (message.type === LEGACY_COLO.QUERY_CHECKPOINT) {
    if (message.length < NLMSG_HDR_BYTES + 1) return undefined;
    return { abi: 'legacy', different: message.bytes[body] !== 0 };
  }
  if (message.type !== ((NFNL_SUBSYS_COLO << 8) | NFCOLO.KERNEL_NOTIFY)) return undefined;
  const end = message.offset + message.length;
  let different: boolean | undefined;
  for (const attribute of readAttributes(message.bytes, body + NFGENMSG_BYTES, end)) {
    if (attribute.type !== NFNL_COLO_COMPARE_RESULT || attribute.payload.length < 4) continue;
    different = attribute.payload.subarray(0, 4).some((byte) => byte !== 0);
  }
  return different === undefined ? undefined : { abi: 'nfnetlink', different };
}
