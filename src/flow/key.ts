/**
 * Flow keys: who talks to whom, seen from the guest. A key is KEY_WORDS 32-bit words, the same for both
 * directions of a flow, because it names the *guest* and the *client*, not source and destination.
 *
 * ```text
 * word 0   VLAN identity (24 bits) | protocol (8 bits)
 * word 1   IP version, 4 or 6
 * word 2   guest port (16 bits) | client port (16 bits); ICMP echo: the identifier twice
 * word 3   guest address, first four bytes         word 4   client address, first four bytes
 * word 5-7 the rest of an IPv6 guest address       word 8-10 of an IPv6 client address
 * ```
 *
 * An IPv4 key ends after word 4; the version word keeps it apart from every IPv6 key.
 *
 * @module
 */
import { formatIp } from '../wire/address.ts';
import { formatVlan } from '../wire/ethernet.ts';
import type { FrameInfo } from '../wire/frame.ts';

/** Words of a key, IPv6. */
export const KEY_WORDS = 11;
/** Words of an IPv4 key that carry anything. */
export const KEY_WORDS_IPV4 = 5;

/** A key as fields; `ProgressEntry` of the peer link has this shape. Host order. */
export interface FlowKey {
  /** 4 or 6. */
  readonly ipVersion: number;
  /** IP protocol number. */
  readonly protocol: number;
  /** As `FrameInfo.vlan`. */
  readonly vlan: number;
  readonly guestPort: number;
  readonly clientPort: number;
  /** 16 bytes each; IPv4 in the first 4. */
  readonly guestAddress: Uint8Array;
  readonly clientAddress: Uint8Array;
}

/** Words that matter in the key at `at`: fewer for IPv4. */
export function keyWordCount(words: Uint32Array, at: number): number {
  return words[at + 1] === 4 ? KEY_WORDS_IPV4 : KEY_WORDS;
}

/**
 * Writes the key of a dissected IP frame to `words` at 0.
 *
 * Precondition: `info.ipVersion` is 4 or 6. `guestIsSource`: the guest sent the frame.
 */
export function writeFrameKey(words: Uint32Array, info: FrameInfo, guestIsSource: boolean): void {
  const view = info.view;
  const guest = guestIsSource ? info.srcAddressOffset : info.dstAddressOffset;
  const client = guestIsSource ? info.dstAddressOffset : info.srcAddressOffset;
  const guestPort = guestIsSource ? info.srcPort : info.dstPort;
  const clientPort = guestIsSource ? info.dstPort : info.srcPort;
  words[0] = (info.vlan << 8) | info.protocol;
  words[1] = info.ipVersion;
  words[2] = (guestPort << 16) | clientPort;
  words[3] = view.getUint32(guest);
  words[4] = view.getUint32(client);
  if (info.ipVersion === 4) return;
  words[5] = view.getUint32(guest + 4);
  words[6] = view.getUint32(guest + 8);
  words[7] = view.getUint32(guest + 12);
  words[8] = view.getUint32(client + 4);
  words[9] = view.getUint32(client + 8);
  words[10] = view.getUint32(client + 12);
}

/** Writes a key given as fields to `words` at 0. Fields out of range are cut to their width. */
export function writeKey(words: Uint32Array, key: FlowKey): void {
  words[0] = (key.vlan << 8) | (key.protocol & 0xff);
  words[1] = key.ipVersion;
  words[2] = (key.guestPort << 16) | (key.clientPort & 0xffff);
  words[3] = readWord(key.guestAddress, 0);
  words[4] = readWord(key.clientAddress, 0);
  for (let i = 1; i < 4; i++) {
    words[4 + i] = key.ipVersion === 4 ? 0 : readWord(key.guestAddress, 4 * i);
    words[7 + i] = key.ipVersion === 4 ? 0 : readWord(key.clientAddress, 4 * i);
  }
}

/** The key at `at` as fields. Allocates: for reports and link messages, not for each frame. */
export function readKey(words: Uint32Array, at: number): FlowKey {
  const guestAddress = new Uint8Array(16);
  const clientAddress = new Uint8Array(16);
  const ipVersion = words[at + 1]!;
  writeWord(guestAddress, 0, words[at + 3]!);
  writeWord(clientAddress, 0, words[at + 4]!);
  for (let i = 1; ipVersion === 6 && i < 4; i++) {
    writeWord(guestAddress, 4 * i, words[at + 4 + i]!);
    writeWord(clientAddress, 4 * i, words[at + 7 + i]!);
  }
  return {
    ipVersion,
    protocol: words[at]! & 0xff,
    vlan: words[at]! >>> 8,
    guestPort: words[at + 2]! >>> 16,
    clientPort: words[at + 2]! & 0xffff,
    guestAddress,
    clientAddress,
  };
}

/**
 * `tcp 10.0.0.2:80 > 10.0.0.9:40312`: guest, then client. IPv6 addresses in brackets where a port follows;
 * ICMP echo with its identifier; a VLAN at the end.
 */
export function formatKey(key: FlowKey): string {
  const name = PROTOCOL_NAMES.get(key.protocol) ?? `ip-${key.protocol}`;
  const hasPorts = key.protocol === 6 || key.protocol === 17;
  const guest = formatEndpoint(key.ipVersion, key.guestAddress, hasPorts ? key.guestPort : -1);
  const client = formatEndpoint(key.ipVersion, key.clientAddress, hasPorts ? key.clientPort : -1);
  const identifier = !hasPorts && key.guestPort !== 0 ? ` id ${key.guestPort}` : '';
  const vlan = key.vlan === 0 ? '' : ` vlan ${formatVlan(key.vlan)}`;
  return `${name} ${guest} > ${client}${identifier}${vlan}`;
}

const PROTOCOL_NAMES: ReadonlyMap<number, string> = new Map([
  [1, 'icmp'],
  [6, 'tcp'],
  [17, 'udp'],
  [58, 'icmp6'],
]);

function formatEndpoint(ipVersion: number, address: Uint8Array, port: number): string {
  const text = formatIp(ipVersion, address, 0);
  if (port < 0) return text;
  return ipVersion === 4 ? `${text}:${port}` : `[${text}]:${port}`;
}

function readWord(bytes: Uint8Array, offset: number): number {
  return (
    (bytes[offset]! << 24) |
    (bytes[offset + 1]! << 16) |
    (bytes[offset + 2]! << 8) |
    bytes[offset + 3]!
  );
}

function writeWord(bytes: Uint8Array, offset: number, word: number): void {
  bytes[offset] = word >>> 24;
  bytes[offset + 1] = word >>> 16;
  bytes[offset + 2] = word >>> 8;
  bytes[offset + 3] = word;
}
