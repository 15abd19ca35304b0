/**
 * The state of one TCP connection of the model stack, and what an application may do with it.
 *
 * Plain data, so that a checkpoint can copy it. Positions are *unwrapped*: 0 is the SYN, 1 the first
 * byte of the stream, without end; only segments hold 32-bit numbers (`wire = isn + position` modulo
 * 2^32). That makes order trivially right here, and comparable between two replicas with different ISNs.
 *
 * One implementation serves clients and guests. Congestion control is Reno (RFC 5681, 6582), the rest
 * RFC 9293, 7323 and 2018 as far as a peer can see it.
 *
 * @module
 */
import { assert } from '../../base/assert.ts';
import type { Prng } from '../../base/prng.ts';
import { type Micros, NEVER } from '../../base/time.ts';
import type { TcpFeature } from '../marks.ts';
import type { TcpSegment } from './segment.ts';

export type TcpState =
  | 'syn-sent'
  | 'syn-received'
  | 'established'
  | 'fin-wait-1'
  | 'fin-wait-2'
  | 'close-wait'
  | 'closing'
  | 'last-ack'
  | 'time-wait'
  | 'closed';

/** How a host's TCP behaves; the same on both guests, as they run the same system. */
export interface TcpOptions {
  /** Largest segment payload this host receives, announced in its SYN. */
  mss: number;
  windowScale: number;
  sack: boolean;
  timestamps: boolean;
  receiveBytesMax: number;
  delayedAck: boolean;
  /** Segments per GSO frame at most; 1 = none. */
  gsoSegments: number;
  /** Probe a closed window with a byte beyond it (BSD), or with an old sequence number (Linux). */
  probeWithByte: boolean;
  keepaliveUs: Micros;
}

/** Bytes received out of order, not overlapping, sorted. */
export interface Gap {
  start: number;
  bytes: Uint8Array;
}

export interface TcpConnection {
  state: TcpState;
  localAddress: string;
  remoteAddress: string;
  localPort: number;
  remotePort: number;
  options: TcpOptions;
  openedActively: boolean;

  iss: number;
  sndUna: number;
  sndNxt: number;
  /** Highest position ever sent, exclusive. */
  sndMax: number;
  sndWnd: number;
  /** Position and acknowledgement of the segment that set `sndWnd` (RFC 9293: WL1, WL2). */
  sndWl1: number;
  sndWl2: number;
  /** Unacknowledged and unsent bytes; the first one is at `sendBase`. */
  sendBytes: Uint8Array;
  sendCount: number;
  sendBase: number;
  /** The application has closed its side: a FIN follows the last byte. */
  finQueued: boolean;
  /** Position after the last urgent byte; 0 = none. */
  sendUrgent: number;
  /** What the receiver reported by SACK: start, end in pairs. */
  scoreboard: number[];

  irs: number;
  rcvNxt: number;
  /** Highest window edge ever advertised. */
  rcvEdge: number;
  /** In order, not read by the application yet. */
  received: Uint8Array;
  gaps: Gap[];
  finPosition: number;
  peerUrgent: number;
  /** Start of the segment that arrived last out of order: its block is reported first. */
  lastGapStart: number;

  mss: number;
  sackOk: boolean;
  timestampsOk: boolean;
  timestampOffset: number;
  tsRecent: number;
  lastAckSent: number;
  sndScale: number;
  rcvScale: number;

  cwnd: number;
  ssthresh: number;
  duplicateAcks: number;
  /** Fast recovery lasts until this is acknowledged; -1 = not in recovery. */
  recover: number;
  srttUs: number;
  rttvarUs: number;
  rtoUs: Micros;
  /** Position whose acknowledgement is timed (Karn), -1 = none, and when it was sent. */
  timedPosition: number;
  timedAtUs: Micros;
  retries: number;

  retransmitAtUs: Micros;
  persistAtUs: Micros;
  ackAtUs: Micros;
  keepaliveAtUs: Micros;
  timeWaitUntilUs: Micros;
  segmentsToAck: number;
  ackNow: boolean;
  /** Why the connection ended other than by FINs: `reset`, `timeout`, `aborted`; empty otherwise. */
  error: string;
}

/** What a connection needs from its host for the time of a call. */
export interface TcpIo {
  readonly nowUs: Micros;
  /** Randomness of this machine; not part of the cloned state. */
  readonly entropy: Prng;
  emit(connection: TcpConnection, segment: TcpSegment): void;
  /** Something that not every run reaches has happened. */
  note(feature: TcpFeature): void;
}

export const RTO_MIN_US: Micros = 200_000;
export const RTO_MAX_US: Micros = 3_000_000;
export const RTO_START_US: Micros = 1_000_000;
export const DELAYED_ACK_US: Micros = 40_000;
/** Short, so that a run ends; Linux has 60 s. */
export const TIME_WAIT_US: Micros = 2_000_000;
/** Retransmissions without an answer before a connection is given up. */
export const RETRIES_MAX = 25;

/** A connection with nothing sent yet. */
export function createConnection(
  options: TcpOptions,
  addresses: { local: string; remote: string; localPort: number; remotePort: number },
  state: TcpState,
  entropy: Prng,
  isnAnchor = 0x1_0000_0000,
): TcpConnection {
  // A third of all ISNs lie so close to 2^32 (or another place of interest) that the stream passes it at once.
  const iss = entropy.chance(0.33)
    ? (isnAnchor - entropy.nextBetween(1, 20_000)) >>> 0
    : entropy.nextU32();
  const timestampOffset = entropy.chance(0.2)
    ? (0x1_0000_0000 - entropy.nextBetween(1, 5_000)) >>> 0
    : entropy.nextU32();
  return {
    state,
    localAddress: addresses.local,
    remoteAddress: addresses.remote,
    localPort: addresses.localPort,
    remotePort: addresses.remotePort,
    options,
    openedActively: state === 'syn-sent',
    iss,
    sndUna: 0,
    sndNxt: 0,
    sndMax: 0,
    sndWnd: 0,
    sndWl1: 0,
    sndWl2: 0,
    sendBytes: new Uint8Array(1024),
    sendCount: 0,
    sendBase: 1,
    finQueued: false,
    sendUrgent: 0,
    scoreboard: [],
    irs: 0,
    rcvNxt: 0,
    rcvEdge: 0,
    received: new Uint8Array(0),
    gaps: [],
    finPosition: -1,
    peerUrgent: 0,
    lastGapStart: -1,
    mss: 536,
    sackOk: false,
    timestampsOk: false,
    timestampOffset,
    tsRecent: 0,
    lastAckSent: 0,
    sndScale: 0,
    rcvScale: 0,
    cwnd: 0,
    ssthresh: 1 << 20,
    duplicateAcks: 0,
    recover: -1,
    srttUs: 0,
    rttvarUs: 0,
    rtoUs: RTO_START_US,
    timedPosition: -1,
    timedAtUs: 0,
    retries: 0,
    retransmitAtUs: NEVER,
    persistAtUs: NEVER,
    ackAtUs: NEVER,
    keepaliveAtUs: NEVER,
    timeWaitUntilUs: NEVER,
    segmentsToAck: 0,
    ackNow: false,
    error: '',
  };
}

/** Position after the last byte that the application has written. */
export function sendEnd(connection: TcpConnection): number {
  return connection.sendBase + connection.sendCount;
}

/** The FIN's position, when the application has closed; else -1. */
export function finPositionOf(connection: TcpConnection): number {
  return connection.finQueued ? sendEnd(connection) : -1;
}

/** May the application still write? */
export function canWrite(connection: TcpConnection): boolean {
  if (connection.finQueued || connection.error !== '') return false;
  const { state } = connection;
  return state === 'established' || state === 'close-wait' || state.startsWith('syn');
}

/** The application writes; the caller runs `tcpOutput` afterwards. */
export function tcpWrite(connection: TcpConnection, bytes: Uint8Array, urgent = false): void {
  assert(canWrite(connection), 'sim: write on a connection that cannot');
  const needed = connection.sendCount + bytes.length;
  if (needed > connection.sendBytes.length) {
    const larger = new Uint8Array(Math.max(needed, connection.sendBytes.length * 2));
    larger.set(connection.sendBytes.subarray(0, connection.sendCount));
    connection.sendBytes = larger;
  }
  connection.sendBytes.set(bytes, connection.sendCount);
  connection.sendCount = needed;
  if (urgent) connection.sendUrgent = sendEnd(connection);
}

/** The application reads at most `countMax` bytes; the window opens by as much. */
export function tcpRead(connection: TcpConnection, countMax: number): Uint8Array {
  const bytes = connection.received.slice(0, countMax);
  if (bytes.length === 0) return bytes;
  connection.received = connection.received.slice(bytes.length);
  // Tell the peer when the window was (nearly) closed; otherwise the next segment says it.
  const offered = connection.rcvEdge - connection.rcvNxt;
  if (
    windowOf(connection) - offered >=
    Math.min(connection.mss, connection.options.receiveBytesMax / 2)
  ) {
    if (offered < connection.options.receiveBytesMax / 2) connection.ackNow = true;
  }
  return bytes;
}

/** Has the peer closed its side, and has the application read everything before that? */
export function atEndOfStream(connection: TcpConnection): boolean {
  return (
    connection.finPosition >= 0 &&
    connection.rcvNxt > connection.finPosition &&
    connection.received.length === 0
  );
}

/** The application closes its side; before the connection is established that waits (RFC 9293 §3.10.4 allows both). */
export function tcpClose(connection: TcpConnection): void {
  if (connection.finQueued || connection.state === 'closed') return;
  connection.finQueued = true;
}

/** Bytes of receive window, before scaling. */
export function windowOf(connection: TcpConnection): number {
  return Math.max(0, connection.options.receiveBytesMax - connection.received.length);
}

/** Ends a connection at once; nothing is sent. */
export function endConnection(connection: TcpConnection, error: string): void {
  connection.state = 'closed';
  if (connection.error === '') connection.error = error;
  connection.retransmitAtUs = NEVER;
  connection.persistAtUs = NEVER;
  connection.ackAtUs = NEVER;
  connection.keepaliveAtUs = NEVER;
  connection.timeWaitUntilUs = NEVER;
  connection.ackNow = false;
}

/** When the connection wants `tcpTimers` next. */
export function tcpDeadlineUs(connection: TcpConnection): Micros {
  return Math.min(
    connection.retransmitAtUs,
    connection.persistAtUs,
    connection.ackAtUs,
    connection.keepaliveAtUs,
    connection.timeWaitUntilUs,
  );
}

/** The timestamp clock of a connection: milliseconds, its own offset (RFC 7323 §5.4 allows 1 ms). */
export function timestampNow(connection: TcpConnection, nowUs: Micros): number {
  return (connection.timestampOffset + Math.floor(nowUs / 1000)) >>> 0;
}

/** Takes a position for a sequence number of the peer, the nearest to `rcvNxt`. */
export function peerPosition(connection: TcpConnection, seq: number): number {
  const expected = (connection.irs + connection.rcvNxt) >>> 0;
  return connection.rcvNxt + ((seq - expected) | 0);
}

/** Takes a position for an acknowledgement number, the nearest to `sndUna`. */
export function ownPosition(connection: TcpConnection, ack: number): number {
  const expected = (connection.iss + connection.sndUna) >>> 0;
  return connection.sndUna + ((ack - expected) | 0);
}
