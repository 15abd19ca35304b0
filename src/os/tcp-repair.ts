/**
 * A kernel TCP connection as data: read from one socket, made again in another, without a packet on
 * the wire. This is what lets the lab's checkpoint copy a guest with its open connections.
 *
 * Source: TCP_REPAIR of Linux (net/ipv4/tcp.c), used as CRIU's libsoccr does (soccr/soccr.c). Needs
 * CAP_NET_ADMIN in the user namespace that owns the network namespace.
 *
 * A FIN that was received cannot be set by an option: it is delivered again, as a segment through a
 * raw socket, after the connection has been made.
 *
 * Not covered, because the kernel offers no way: connections in SYN_RECV and TIME_WAIT. Congestion
 * state (cwnd, RTT) is not copied; the new connection slow-starts.
 *
 * @module
 */

import { SOL_SOCKET } from './constants.ts';
import { injectFin } from './inject-segment.ts';
import { destroyConnection } from './sock-destroy.ts';
import {
  AF_INET,
  AF_INET6,
  bindSocket,
  checkCall,
  closeSocket,
  connectSocket,
  EADDRNOTAVAIL,
  EAGAIN,
  getIntOption,
  getOption,
  IPPROTO_TCP,
  ioctlInt,
  localAddress,
  MSG_DONTWAIT,
  MSG_NOSIGNAL,
  MSG_PEEK,
  openSocket,
  receiveBytes,
  remoteAddress,
  SHUT_WR,
  SIOCINQ,
  SIOCOUTQ,
  SIOCOUTQNSD,
  SO_REUSEADDR,
  SOCK_STREAM,
  type SocketAddress,
  sendBytes,
  setIntOption,
  setOption,
  shutdownSocket,
} from './socket-calls.ts';

// linux/tcp.h
const TCP_MAXSEG = 2;
const TCP_INFO = 11;
const TCP_REPAIR = 19;
const TCP_REPAIR_QUEUE = 20;
const TCP_QUEUE_SEQ = 21;
const TCP_REPAIR_OPTIONS = 22;
const TCP_TIMESTAMP = 24;
const TCP_REPAIR_WINDOW = 29;
const REPAIR_ON = 1;
/** Off, without the window probe that would be the first packet of a copied connection. */
const REPAIR_OFF_NO_WP = -1;
const RECV_QUEUE = 1;
const SEND_QUEUE = 2;
const TCPOPT_MSS = 2;
const TCPOPT_WINDOW = 3;
const TCPOPT_SACK_PERMITTED = 4;
const TCPOPT_TIMESTAMP = 8;
/** Lowest bit of TCP_TIMESTAMP (net/ipv4/tcp.c, tcp_usec_ts). */
const TIMESTAMP_IS_MICROSECONDS = 1;
const TCPI_OPT_TIMESTAMPS = 1;
const TCPI_OPT_SACK = 2;
const TCPI_OPT_WSCALE = 4;
/** Bytes of the head of struct tcp_info that is read here. */
const TCP_INFO_BYTES = 8;

/** States of include/net/tcp_states.h. */
export const TCP_STATE = {
  ESTABLISHED: 1,
  SYN_SENT: 2,
  SYN_RECV: 3,
  FIN_WAIT1: 4,
  FIN_WAIT2: 5,
  TIME_WAIT: 6,
  CLOSE: 7,
  CLOSE_WAIT: 8,
  LAST_ACK: 9,
  LISTEN: 10,
  CLOSING: 11,
} as const;

/** We have sent a FIN that is not acknowledged: it is counted in the send queue. */
const FIN_IN_SEND_QUEUE: ReadonlySet<number> = new Set([
  TCP_STATE.FIN_WAIT1,
  TCP_STATE.LAST_ACK,
  TCP_STATE.CLOSING,
]);
/** We have sent a FIN, acknowledged or not. */
const FIN_SENT: ReadonlySet<number> = new Set([...FIN_IN_SEND_QUEUE, TCP_STATE.FIN_WAIT2]);
/** The peer's FIN has come: it is counted in the receive sequence. */
const FIN_RECEIVED: ReadonlySet<number> = new Set([
  TCP_STATE.CLOSE_WAIT,
  TCP_STATE.LAST_ACK,
  TCP_STATE.CLOSING,
]);

/** One connection. Sequence numbers: host order, modulo 2^32; plain data, fit for structured clone. */
export interface TcpConnectionImage {
  readonly local: SocketAddress;
  readonly remote: SocketAddress;
  /** See TCP_STATE. */
  readonly state: number;
  /** tcpi_options: TCPI_OPT_*. */
  readonly options: number;
  /** Shift counts; 0 when window scaling is off. */
  readonly sendScale: number;
  readonly receiveScale: number;
  readonly mss: number;
  /** Value of TCP_TIMESTAMP at `takenAtMs`: see {@link timestampNow}. */
  readonly timestamp: number;
  /** `process.hrtime`'s clock (CLOCK_MONOTONIC), in ms: the image may only be restored on the same machine. */
  readonly takenAtMs: number;
  /** RCV.NXT without the peer's FIN. */
  readonly receiveSeq: number;
  /** Received, not yet read by the application. */
  readonly receiveQueue: Uint8Array;
  /** SND.NXT including unsent data, without our FIN. */
  readonly sendSeq: number;
  /** Not yet acknowledged; the last `unsentBytes` of it were never sent. */
  readonly sendQueue: Uint8Array;
  readonly unsentBytes: number;
  /** struct tcp_repair_window, as read. */
  readonly window: Uint8Array;
}

/** A connection's state (TCP_STATE), whether in repair mode or not. */
export function tcpState(fd: number): number {
  const info = new Uint8Array(TCP_INFO_BYTES);
  checkCall('getsockopt TCP_INFO', getOption(fd, IPPROTO_TCP, TCP_INFO, info));
  return info[0]!;
}

/** Can {@link takeConnection} read a connection in this state? */
export function isTakeable(state: number): boolean {
  return state === TCP_STATE.ESTABLISHED || FIN_SENT.has(state) || FIN_RECEIVED.has(state);
}

/** Stops the kernel from talking about this socket: closing it then sends neither FIN nor RST. */
export function repairOn(fd: number): void {
  checkCall('setsockopt TCP_REPAIR', setIntOption(fd, IPPROTO_TCP, TCP_REPAIR, REPAIR_ON));
}

/**
 * Ends repair mode; sends nothing. The kernel leaves the socket without SO_REUSEADDR then, and it would keep a listener from its
 * port: it is set again.
 */
export function repairOff(fd: number): void {
  checkCall('setsockopt TCP_REPAIR', setIntOption(fd, IPPROTO_TCP, TCP_REPAIR, REPAIR_OFF_NO_WP));
  checkCall('SO_REUSEADDR', setIntOption(fd, SOL_SOCKET, SO_REUSEADDR, 1));
}

/** Makes a connection vanish from this machine without a packet. Its peer is told nothing. */
export function dropConnection(fd: number): void {
  if (tcpState(fd) !== TCP_STATE.CLOSE) repairOn(fd);
  closeSocket(fd);
}

/**
 * Reads a connection. The socket must be in repair mode, and nothing may arrive for it meanwhile.
 *
 * @throws ColoError when the kernel refuses
 */
export function takeConnection(fd: number): TcpConnectionImage {
  const info = new Uint8Array(TCP_INFO_BYTES);
  checkCall('getsockopt TCP_INFO', getOption(fd, IPPROTO_TCP, TCP_INFO, info));
  const state = info[0]!;
  const options = info[5]!;
  const scales = info[6]!;
  const remote = remoteAddress(fd);
  const finInSendQueue = FIN_IN_SEND_QUEUE.has(state);
  // The kernel counts an unacknowledged FIN as a byte of the queue.
  const outBytes = Math.max(ioctlInt(fd, SIOCOUTQ) - (finInSendQueue ? 1 : 0), 0);
  const unsentBytes = Math.max(ioctlInt(fd, SIOCOUTQNSD) - (finInSendQueue ? 1 : 0), 0);
  const inBytes = ioctlInt(fd, SIOCINQ);
  const window = new Uint8Array(20);
  checkCall('TCP_REPAIR_WINDOW', getOption(fd, IPPROTO_TCP, TCP_REPAIR_WINDOW, window));
  const receive = readQueue(fd, RECV_QUEUE, inBytes);
  const send = readQueue(fd, SEND_QUEUE, outBytes);
  return {
    local: localAddress(fd),
    remote: remote ?? { family: 4, address: '0.0.0.0', port: 0 },
    state,
    options,
    sendScale: (options & TCPI_OPT_WSCALE) === 0 ? 0 : scales & 0x0f,
    receiveScale: (options & TCPI_OPT_WSCALE) === 0 ? 0 : scales >>> 4,
    mss: getIntOption(fd, IPPROTO_TCP, TCP_MAXSEG),
    timestamp: getIntOption(fd, IPPROTO_TCP, TCP_TIMESTAMP) >>> 0,
    takenAtMs: monotonicMs(),
    receiveSeq: (receive.seq - (FIN_RECEIVED.has(state) ? 1 : 0)) >>> 0,
    receiveQueue: receive.bytes,
    sendSeq: (send.seq - (FIN_SENT.has(state) ? 1 : 0)) >>> 0,
    sendQueue: send.bytes,
    unsentBytes,
    window,
  };
}

/**
 * Makes the connection in this network namespace and returns its descriptor. The local address must be
 * the namespace's own. What the kernel still knows of a connection with the same addresses (a half-open one, mostly) is
 * destroyed, which may send a RST to its peer. No other packet is sent.
 *
 * @throws ColoError when the kernel refuses; nothing is left behind then
 */
export function restoreConnection(image: TcpConnectionImage): number {
  const fd = openSocket(image.local.family === 4 ? AF_INET : AF_INET6, SOCK_STREAM);
  try {
    fillConnection(fd, image);
    return fd;
  } catch (error) {
    dropConnection(fd);
    throw error;
  }
}

function fillConnection(fd: number, image: TcpConnectionImage): void {
  repairOn(fd);
  setQueueSeq(fd, RECV_QUEUE, image.receiveSeq - image.receiveQueue.length);
  setQueueSeq(fd, SEND_QUEUE, image.sendSeq - image.sendQueue.length);
  checkCall('bind', bindSocket(fd, image.local));
  // In repair mode connect() makes an established connection without a handshake.
  let connected = connectSocket(fd, image.remote);
  if (connected === -EADDRNOTAVAIL && destroyConnection(image.local, image.remote) === 0) {
    connected = connectSocket(fd, image.remote);
  }
  checkCall('connect', connected);
  restoreOptions(fd, image);
  writeQueue(fd, RECV_QUEUE, image.receiveQueue);
  const sentBytes = image.sendQueue.length - image.unsentBytes;
  writeQueue(fd, SEND_QUEUE, image.sendQueue.subarray(0, sentBytes));
  checkCall('TCP_REPAIR_WINDOW', setOption(fd, IPPROTO_TCP, TCP_REPAIR_WINDOW, windowFor(image)));
  repairOff(fd);
  // What was never sent goes the ordinary way, so that it is not counted as lost in flight.
  writeAll(fd, image.sendQueue.subarray(sentBytes));
  if (FIN_SENT.has(image.state)) checkCall('shutdown', shutdownSocket(fd, SHUT_WR));
  const finAcknowledged = image.state === TCP_STATE.FIN_WAIT2;
  if (FIN_RECEIVED.has(image.state) || finAcknowledged) {
    injectFin(image, {
      fin: FIN_RECEIVED.has(image.state),
      // LAST_ACK, CLOSING: our FIN is still unacknowledged; what was acknowledged before it stays so.
      ack: finAcknowledged ? image.sendSeq + 1 : image.sendSeq - image.sendQueue.length,
    });
  }
}

function restoreOptions(fd: number, image: TcpConnectionImage): void {
  const pairs: number[] = [];
  if ((image.options & TCPI_OPT_SACK) !== 0) pairs.push(TCPOPT_SACK_PERMITTED, 0);
  if ((image.options & TCPI_OPT_WSCALE) !== 0) {
    pairs.push(TCPOPT_WINDOW, image.sendScale | (image.receiveScale << 16));
  }
  if ((image.options & TCPI_OPT_TIMESTAMPS) !== 0) pairs.push(TCPOPT_TIMESTAMP, 0);
  pairs.push(TCPOPT_MSS, image.mss);
  const bytes = new Uint8Array(Uint32Array.from(pairs).buffer);
  checkCall('TCP_REPAIR_OPTIONS', setOption(fd, IPPROTO_TCP, TCP_REPAIR_OPTIONS, bytes));
  if ((image.options & TCPI_OPT_TIMESTAMPS) === 0) return;
  const now = timestampNow(image.timestamp, monotonicMs() - image.takenAtMs);
  checkCall('TCP_TIMESTAMP', setIntOption(fd, IPPROTO_TCP, TCP_TIMESTAMP, now | 0));
}

/**
 * The value of TCP_TIMESTAMP `elapsedMs` after it was `taken`. The clock went on while the image travelled, and a timestamp that
 * steps back would fail PAWS (RFC 7323 §5), so it is rounded up. Since Linux 6.7 the lowest bit is no part of the
 * time: it says that the clock ticks in microseconds, not milliseconds.
 */
export function timestampNow(taken: number, elapsedMs: number): number {
  const unit = taken & TIMESTAMP_IS_MICROSECONDS;
  const ticks = Math.ceil(unit === 0 ? elapsedMs : elapsedMs * 1_000);
  return (((taken + ticks + 1) & ~TIMESTAMP_IS_MICROSECONDS) | unit) >>> 0;
}

/** struct tcp_repair_window counts a received FIN in rcv_wup; before the FIN is delivered again it must not. */
function windowFor(image: TcpConnectionImage): Uint8Array {
  if (!FIN_RECEIVED.has(image.state)) return image.window;
  const fields = new Uint32Array(image.window.slice().buffer);
  fields[3] = (fields[3]! + 1) >>> 0;
  fields[4] = (fields[4]! - 1) >>> 0;
  return new Uint8Array(fields.buffer);
}

function selectQueue(fd: number, queue: number): void {
  checkCall('TCP_REPAIR_QUEUE', setIntOption(fd, IPPROTO_TCP, TCP_REPAIR_QUEUE, queue));
}

function setQueueSeq(fd: number, queue: number, seq: number): void {
  selectQueue(fd, queue);
  checkCall('TCP_QUEUE_SEQ', setIntOption(fd, IPPROTO_TCP, TCP_QUEUE_SEQ, seq | 0));
}

function readQueue(fd: number, queue: number, length: number): { seq: number; bytes: Uint8Array } {
  selectQueue(fd, queue);
  const seq = getIntOption(fd, IPPROTO_TCP, TCP_QUEUE_SEQ) >>> 0;
  const bytes = new Uint8Array(length);
  if (length === 0) return { seq, bytes };
  const count = receiveBytes(fd, bytes, MSG_PEEK | MSG_DONTWAIT);
  checkCall('recv MSG_PEEK', count);
  return { seq, bytes: count === length ? bytes : bytes.subarray(0, count) };
}

/** Largest piece given to a queue at once; the kernel wants contiguous memory for the receive queue. */
const QUEUE_PIECE_BYTES = 64 * 1024;

function writeQueue(fd: number, queue: number, bytes: Uint8Array): void {
  selectQueue(fd, queue);
  writeAll(fd, bytes);
}

function writeAll(fd: number, bytes: Uint8Array): void {
  for (let at = 0; at < bytes.length; ) {
    const end = Math.min(at + QUEUE_PIECE_BYTES, bytes.length);
    const count = sendBytes(fd, bytes.subarray(at, end), MSG_DONTWAIT | MSG_NOSIGNAL);
    // EAGAIN here: the send buffer is smaller than where the image was taken; nothing will drain it.
    checkCall(count === -EAGAIN ? 'send (buffer too small)' : 'send', count);
    at += count;
  }
}

function monotonicMs(): number {
  return Number(process.hrtime.bigint() / 1000n) / 1000;
}
