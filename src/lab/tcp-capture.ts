/**
 * What captured frames say about the TCP connections of the lab's clients. Frames are cut to their headers, so lengths come from
 * these; the lab has neither VLAN tags nor IPv6 extension headers.
 *
 * @module
 */
import {
  ETHER_TYPE_IPV4,
  ETHER_TYPE_IPV6,
  ETHERNET_HEADER_BYTES,
  ETHERNET_SRC,
  ETHERNET_TYPE,
  MAC_BYTES,
} from '../wire/ethernet.ts';
import { type Seq, seqAdd, seqBefore, seqDistance, seqMax } from '../wire/seq.ts';
import type { CapturedFrame } from './capture.ts';
import { GUEST_MAC } from './topology.ts';

/** A TCP segment on the clients' cable. */
export interface CapturedSegment {
  readonly atMs: number;
  readonly fromGuest: boolean;
  readonly clientPort: number;
  readonly seq: Seq;
  readonly ack: Seq;
  readonly isSyn: boolean;
  readonly payloadBytes: number;
}

const IPV6_HEADER_BYTES = 40;
const TCP_HEADER_BYTES = 20;
const PROTOCOL_TCP = 6;
const FLAG_SYN = 2;
const GUEST_MAC_HEX = GUEST_MAC.replaceAll(':', '');

/** Undefined when the frame is no TCP. */
export function readSegment({ atMs, bytes }: CapturedFrame): CapturedSegment | undefined {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  const ip = readIp(view);
  if (ip === undefined || ip.tcpOffset + TCP_HEADER_BYTES > bytes.length) return undefined;
  const { tcpOffset, tcpBytes } = ip;
  const source = bytes.subarray(ETHERNET_SRC, ETHERNET_SRC + MAC_BYTES);
  const fromGuest = Buffer.from(source).toString('hex') === GUEST_MAC_HEX;
  return {
    atMs,
    fromGuest,
    clientPort: view.getUint16(tcpOffset + (fromGuest ? 2 : 0)),
    seq: view.getUint32(tcpOffset + 4),
    ack: view.getUint32(tcpOffset + 8),
    isSyn: (view.getUint8(tcpOffset + 13) & FLAG_SYN) !== 0,
    payloadBytes: tcpBytes - (view.getUint8(tcpOffset + 12) >> 4) * 4,
  };
}

function readIp(view: DataView): { tcpOffset: number; tcpBytes: number } | undefined {
  const start = ETHERNET_HEADER_BYTES;
  if (view.byteLength < start + TCP_HEADER_BYTES) return undefined;
  const etherType = view.getUint16(ETHERNET_TYPE);
  if (etherType === ETHER_TYPE_IPV4 && view.getUint8(start + 9) === PROTOCOL_TCP) {
    const headerBytes = (view.getUint8(start) & 15) * 4;
    return { tcpOffset: start + headerBytes, tcpBytes: view.getUint16(start + 2) - headerBytes };
  }
  if (etherType === ETHER_TYPE_IPV6 && view.getUint8(start + 6) === PROTOCOL_TCP) {
    return { tcpOffset: start + IPV6_HEADER_BYTES, tcpBytes: view.getUint16(start + 4) };
  }
  return undefined;
}

/** How a connection went on when its server died. */
export interface Continuation {
  /** The time without anything new from the guest that the death fell into, or that followed it. */
  readonly pauseMs: number;
  /** New bytes for the client, and newly acknowledged ones of the client, from the death on. */
  readonly receivedBytes: number;
  readonly acknowledgedBytes: number;
}

/** What the frames of `clientPort` say about a death at `diedMs`. Something must have come before it. */
export function continuation(
  segments: readonly CapturedSegment[],
  clientPort: number,
  diedMs: number,
): Continuation {
  const own = segments.filter((one) => one.clientPort === clientPort && one.fromGuest);
  let end: Seq | undefined;
  let ack: Seq | undefined;
  let lastMs = diedMs;
  let pauseMs = 0;
  let receivedBytes = 0;
  let acknowledgedBytes = 0;
  for (const segment of own) {
    const segmentEnd = seqAdd(segment.seq, segment.payloadBytes + (segment.isSyn ? 1 : 0));
    end ??= segment.seq;
    ack ??= segment.ack;
    const isNew = seqBefore(end, segmentEnd) || seqBefore(ack, segment.ack);
    if (!isNew) continue;
    if (segment.atMs >= diedMs) {
      pauseMs = Math.max(pauseMs, segment.atMs - lastMs);
      receivedBytes += Math.max(0, seqDistance(end, segmentEnd));
      acknowledgedBytes += Math.max(0, seqDistance(ack, segment.ack));
    }
    lastMs = segment.atMs;
    end = seqMax(end, segmentEnd);
    ack = seqMax(ack, segment.ack);
  }
  return { pauseMs, receivedBytes, acknowledgedBytes };
}
