/**
 * Stream sockets by descriptor: Unix and TCP, connecting and listening. For streams whose reads and writes go straight
 * between the kernel and frame memory, which `node:net` cannot do.
 *
 * @module
 */
import { STREAM_DEAD_SECONDS } from '../limits.ts';
import { AF_UNIX, SO_ERROR, SOCK_CLOEXEC, SOCK_NONBLOCK, SOL_SOCKET } from './constants.ts';
import {
  accept4,
  bind,
  close,
  connect,
  errno,
  getsockopt,
  listen,
  setsockopt,
  socket,
} from './libc.ts';
import {
  AF_INET,
  AF_INET6,
  encodeAddress,
  IPPROTO_TCP,
  SO_REUSEADDR,
  SOCK_STREAM,
  type SocketAddress,
  TCP_KEEPCNT,
  TCP_KEEPIDLE,
  TCP_KEEPINTVL,
  TCP_NODELAY,
  TCP_USER_TIMEOUT,
} from './socket-calls.ts';

/** Where a stream socket is bound or connected. */
export type StreamAddress =
  | { readonly kind: 'unix'; readonly path: string }
  | ({ readonly kind: 'tcp' } & SocketAddress);

/** Room of `sun_path`, without its terminating zero (unix(7)). */
export const UNIX_PATH_BYTES_MAX = 107;

const SO_KEEPALIVE = 9;
/** One a second, after the rest of STREAM_DEAD_SECONDS. */
const KEEPALIVE_PROBES = 3;
const BACKLOG = 16;

/**
 * A listening socket, or `-errno`. The file of a Unix socket is made with mode 0600; one that is there already
 * is EADDRINUSE.
 */
export function listenStream(address: StreamAddress): number {
  const fd = openStream(address);
  if (fd < 0) return fd;
  if (address.kind === 'tcp') setInt(fd, SOL_SOCKET, SO_REUSEADDR, 1);
  const name = encode(address);
  // The umask decides over the file's mode: at no moment may others connect.
  const mask = process.umask(0o177);
  try {
    if (bind(fd, name, name.length) < 0 || listen(fd, BACKLOG) < 0) return closeFailed(fd);
  } finally {
    process.umask(mask);
  }
  return fd;
}

/** A socket that connects or (Unix) has connected, or `-errno`. When it is writable ask `takeSocketError`. */
export function connectStream(address: StreamAddress): number {
  const fd = openStream(address);
  if (fd < 0) return fd;
  const name = encode(address);
  if (connect(fd, name, name.length) < 0 && errno() !== EINPROGRESS) return closeFailed(fd);
  return fd;
}

/** The next connection of a listening socket, or `-errno`. */
export function acceptStream(listenFd: number, kind: StreamAddress['kind']): number {
  const fd = accept4(listenFd, null, null, SOCK_NONBLOCK | SOCK_CLOEXEC);
  if (fd < 0) return -errno();
  prepare(fd, kind);
  return fd;
}

/** Takes the pending error of a socket; 0 when there is none. */
export function takeSocketError(fd: number): number {
  const value = new Uint8Array(new ArrayBuffer(4));
  const length = new Uint8Array(new Uint32Array([4]).buffer);
  if (getsockopt(fd, SOL_SOCKET, SO_ERROR, value, length) < 0) return errno();
  return new DataView(value.buffer).getInt32(0, true);
}

const EINPROGRESS = 115;

function openStream(address: StreamAddress): number {
  const domain = address.kind === 'unix' ? AF_UNIX : address.family === 4 ? AF_INET : AF_INET6;
  const fd = socket(domain, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  if (fd < 0) return -errno();
  prepare(fd, address.kind);
  return fd;
}

/**
 * A TCP peer whose host is gone is noticed within STREAM_DEAD_SECONDS, whether something is sent or not: a listener that serves
 * one at a time could not take the next one otherwise. Small frames do not wait for others.
 */
function prepare(fd: number, kind: StreamAddress['kind']): void {
  if (kind === 'unix') return;
  setInt(fd, IPPROTO_TCP, TCP_NODELAY, 1);
  setInt(fd, SOL_SOCKET, SO_KEEPALIVE, 1);
  setInt(fd, IPPROTO_TCP, TCP_KEEPIDLE, STREAM_DEAD_SECONDS - KEEPALIVE_PROBES);
  setInt(fd, IPPROTO_TCP, TCP_KEEPINTVL, 1);
  setInt(fd, IPPROTO_TCP, TCP_KEEPCNT, KEEPALIVE_PROBES);
  setInt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, STREAM_DEAD_SECONDS * 1_000);
}

function setInt(fd: number, level: number, option: number, value: number): void {
  setsockopt(fd, level, option, new Uint8Array(new Int32Array([value]).buffer), 4);
}

function closeFailed(fd: number): number {
  const error = errno();
  close(fd);
  return -error;
}

/** struct sockaddr_un: family in host order, path, a zero. */
function encode(address: StreamAddress): Uint8Array {
  if (address.kind === 'tcp') return encodeAddress(address);
  const path = new TextEncoder().encode(address.path);
  const bytes = new Uint8Array(new ArrayBuffer(2 + path.length + 1));
  new DataView(bytes.buffer).setUint16(0, AF_UNIX, true);
  bytes.set(path, 2);
  return bytes;
}
