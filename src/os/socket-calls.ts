/**
 * Plain BSD sockets and epoll, as the kernel offers them: what a program needs that must know its file
 * descriptors (a checkpoint of TCP connections cannot be taken through `node:net`).
 *
 * All sockets are non-blocking and close-on-exec. Calls that fail in the ordinary course of things
 * (EAGAIN, ECONNRESET, ...) return `-errno`, like the kernel; set-up calls throw `ColoError`.
 *
 * @module
 */
import { SOCK_CLOEXEC, SOCK_NONBLOCK } from './constants.ts';
import * as libc from './libc.ts';

export const AF_INET = 2;
export const AF_NETLINK = 16;
export const AF_INET6 = 10;
export const SOCK_STREAM = 1;
export const SOCK_DGRAM = 2;

export const IPPROTO_ICMP = 1;
export const IPPROTO_TCP = 6;
export const IPPROTO_IPV6 = 41;
export const IPPROTO_ICMPV6 = 58;
export const IPPROTO_RAW = 255;
export const SO_REUSEADDR = 2;
export const IPV6_V6ONLY = 26;
export const TCP_NODELAY = 1;
export const TCP_KEEPIDLE = 4;
export const TCP_KEEPINTVL = 5;
export const TCP_KEEPCNT = 6;
export const TCP_USER_TIMEOUT = 18;
/** Unsent bytes above which a socket is not writable. */
export const TCP_NOTSENT_LOWAT = 25;

export const MSG_PEEK = 2;
export const MSG_DONTWAIT = 0x40;
export const MSG_NOSIGNAL = 0x4000;

export const SHUT_WR = 1;

export const EAGAIN = 11;
export const EADDRNOTAVAIL = 99;
export const EINTR = 4;
export const EINPROGRESS = 115;

export const SIOCINQ = 0x541b;
export const SIOCOUTQ = 0x5411;
/** Bytes in the send queue that were never sent (linux/sockios.h). */
export const SIOCOUTQNSD = 0x894b;

/** An IP socket address. `family` 4 or 6; `port` host order. */
export interface SocketAddress {
  readonly family: 4 | 6;
  readonly address: string;
  readonly port: number;
}

/** @throws ColoError `COLO_ERR_SYSCALL` when `result` is negative; otherwise returns it */
export function checkCall(syscall: string, result: number): number {
  if (result >= 0) return result;
  throw libc.systemError(-result, {
    code: 'COLO_ERR_SYSCALL',
    syscall,
    action: `Cannot ${syscall}`,
  });
}

function outcome(result: number): number {
  return result < 0 ? -libc.errno() : Number(result);
}

/** Bytes of the largest address used here, sockaddr_in6. */
const SOCKADDR_BYTES = 28;

/** `struct sockaddr_in` or `sockaddr_in6`: family in host order, the rest in network order. */
export function encodeAddress(address: SocketAddress): Uint8Array {
  const bytes = new Uint8Array(address.family === 4 ? 16 : SOCKADDR_BYTES);
  new Uint16Array(bytes.buffer, 0, 1)[0] = address.family === 4 ? AF_INET : AF_INET6;
  bytes[2] = address.port >>> 8;
  bytes[3] = address.port & 0xff;
  bytes.set(addressBytes(address), address.family === 4 ? 4 : 8);
  return bytes;
}

/** The 4 or 16 address bytes, network order. */
export function addressBytes(address: SocketAddress): Uint8Array {
  if (address.family === 4) return Uint8Array.from(address.address.split('.').map(Number));
  const [head = '', tail] = address.address.split('::');
  const groups = (text: string) =>
    text === '' ? [] : text.split(':').map((group) => Number.parseInt(group, 16));
  const front = groups(head);
  const back = tail === undefined ? [] : groups(tail);
  const all = [...front, ...new Array<number>(8 - front.length - back.length).fill(0), ...back];
  return Uint8Array.from(all.flatMap((group) => [group >>> 8, group & 0xff]));
}

function decodeAddress(bytes: Uint8Array): SocketAddress {
  const family = new Uint16Array(bytes.buffer, bytes.byteOffset, 1)[0];
  const port = (bytes[2]! << 8) | bytes[3]!;
  if (family === AF_INET) return { family: 4, address: bytes.slice(4, 8).join('.'), port };
  const groups: string[] = [];
  for (let i = 8; i < 24; i += 2) groups.push(((bytes[i]! << 8) | bytes[i + 1]!).toString(16));
  return { family: 6, address: groups.join(':'), port };
}

/** @throws ColoError when the kernel refuses */
export function openSocket(domain: number, type: number, protocol = 0): number {
  return checkCall(
    'socket',
    outcome(libc.socket(domain, type | SOCK_NONBLOCK | SOCK_CLOEXEC, protocol)),
  );
}

/** Returns 0 or -errno. */
export function bindSocket(fd: number, address: SocketAddress): number {
  const bytes = encodeAddress(address);
  return outcome(libc.bind(fd, bytes, bytes.length));
}

/** Returns 0 or -errno. */
export function listenSocket(fd: number, backlog: number): number {
  return outcome(libc.listen(fd, backlog));
}

/** Returns the new connection's descriptor, or -errno (-EAGAIN: none waits). */
export function acceptSocket(fd: number): number {
  return outcome(libc.accept4(fd, null, null, SOCK_NONBLOCK | SOCK_CLOEXEC));
}

/** Returns 0 or -errno (-EINPROGRESS: on its way). */
export function connectSocket(fd: number, address: SocketAddress): number {
  const bytes = encodeAddress(address);
  return outcome(libc.connect(fd, bytes, bytes.length));
}

const addressScratch = new Uint8Array(SOCKADDR_BYTES);
const lengthScratch = new Uint32Array(1);
const lengthBytes = new Uint8Array(lengthScratch.buffer);

/** This end of a socket. @throws ColoError */
export function localAddress(fd: number): SocketAddress {
  lengthScratch[0] = SOCKADDR_BYTES;
  checkCall('getsockname', outcome(libc.getsockname(fd, addressScratch, lengthBytes)));
  return decodeAddress(addressScratch);
}

/** The other end of a connection, or undefined when it is not connected (any more). */
export function remoteAddress(fd: number): SocketAddress | undefined {
  lengthScratch[0] = SOCKADDR_BYTES;
  if (libc.getpeername(fd, addressScratch, lengthBytes) < 0) return undefined;
  return decodeAddress(addressScratch);
}

/** Returns the number of bytes taken, or -errno. */
export function sendBytes(fd: number, bytes: Uint8Array, flags = MSG_NOSIGNAL): number {
  return outcome(libc.send(fd, bytes, bytes.length, flags));
}

/** Returns the number of bytes read (0: the peer's end of stream), or -errno. */
export function receiveBytes(fd: number, bytes: Uint8Array, flags = 0): number {
  return outcome(libc.recv(fd, bytes, bytes.length, flags));
}

/** Sends one datagram. Returns its length or -errno. */
export function sendDatagram(fd: number, bytes: Uint8Array, to: SocketAddress): number {
  const address = encodeAddress(to);
  return outcome(libc.sendto(fd, bytes, bytes.length, MSG_NOSIGNAL, address, address.length));
}

/** Receives one datagram into `bytes`: its length and sender, or the negative errno. */
export function receiveDatagram(
  fd: number,
  bytes: Uint8Array,
): { readonly length: number; readonly from: SocketAddress } | number {
  lengthScratch[0] = SOCKADDR_BYTES;
  const length = outcome(libc.recvfrom(fd, bytes, bytes.length, 0, addressScratch, lengthBytes));
  return length < 0 ? length : { length, from: decodeAddress(addressScratch) };
}

/** Ends one or both directions. Returns 0 or -errno. */
export function shutdownSocket(fd: number, how: number): number {
  return outcome(libc.shutdown(fd, how));
}

export function closeSocket(fd: number): void {
  libc.close(fd);
}

/** Reads an option into `value`; returns how many bytes the kernel wrote, or -errno. */
export function getOption(fd: number, level: number, name: number, value: Uint8Array): number {
  lengthScratch[0] = value.length;
  const result = outcome(libc.getsockopt(fd, level, name, value, lengthBytes));
  return result < 0 ? result : lengthScratch[0]!;
}

/** Returns 0 or -errno. */
export function setOption(fd: number, level: number, name: number, value: Uint8Array): number {
  return outcome(libc.setsockopt(fd, level, name, value, value.length));
}

const intScratch = new Int32Array(1);
const intBytes = new Uint8Array(intScratch.buffer);

/** A 32-bit option, signed. @throws ColoError */
export function getIntOption(fd: number, level: number, name: number): number {
  checkCall('getsockopt', getOption(fd, level, name, intBytes));
  return intScratch[0]!;
}

/** Sets a 32-bit option. Returns 0 or -errno. */
export function setIntOption(fd: number, level: number, name: number, value: number): number {
  intScratch[0] = value;
  return setOption(fd, level, name, intBytes);
}

/** An ioctl that yields one int. @throws ColoError */
export function ioctlInt(fd: number, request: number): number {
  checkCall('ioctl', outcome(libc.ioctl(fd, request, intBytes)));
  return intScratch[0]!;
}

export const EPOLLIN = 1;
export const EPOLLOUT = 4;
export const EPOLLERR = 8;
export const EPOLLHUP = 0x10;

/** Bytes of struct epoll_event: packed on x86-64 only (linux/eventpoll.h). */
const EPOLL_EVENT_BYTES = process.arch === 'x64' ? 12 : 16;
const EPOLL_DATA_OFFSET = process.arch === 'x64' ? 4 : 8;
const EPOLL_EVENTS_MAX = 256;
const EPOLL_CTL_ADD = 1;
const EPOLL_CTL_DEL = 2;
const EPOLL_CTL_MOD = 3;

/** Level-triggered readiness of many sockets. */
export class Epoll {
  readonly #fd: number;
  readonly #events = new DataView(new ArrayBuffer(EPOLL_EVENT_BYTES * EPOLL_EVENTS_MAX));
  readonly #eventBytes = new Uint8Array(this.#events.buffer);
  readonly #interest = new Map<number, number>();
  readonly #one = new DataView(new ArrayBuffer(EPOLL_EVENT_BYTES));
  readonly #oneBytes = new Uint8Array(this.#one.buffer);

  constructor() {
    this.#fd = checkCall('epoll_create1', outcome(libc.epollCreate1(SOCK_CLOEXEC)));
  }

  /** Watches `fd` for `events` (EPOLLIN, EPOLLOUT, ...), replacing what it was watched for. */
  watch(fd: number, events: number): void {
    const before = this.#interest.get(fd);
    if (before === events) return;
    this.#one.setUint32(0, events, true);
    this.#one.setInt32(EPOLL_DATA_OFFSET, fd, true);
    const operation = before === undefined ? EPOLL_CTL_ADD : EPOLL_CTL_MOD;
    checkCall('epoll_ctl', outcome(libc.epollCtl(this.#fd, operation, fd, this.#oneBytes)));
    this.#interest.set(fd, events);
  }

  /** To be called before `fd` is closed. */
  forget(fd: number): void {
    if (!this.#interest.delete(fd)) return;
    libc.epollCtl(this.#fd, EPOLL_CTL_DEL, fd, this.#oneBytes);
  }

  /** Hands what is ready now to `onReady`, without blocking; returns how many there were. */
  poll(onReady: (fd: number, events: number) => void): number {
    const count = libc.epollWait(this.#fd, this.#eventBytes, EPOLL_EVENTS_MAX, 0);
    for (let i = 0; i < count; i++) {
      const at = i * EPOLL_EVENT_BYTES;
      const fd = this.#events.getInt32(at + EPOLL_DATA_OFFSET, true);
      // An earlier handler of this round may have closed it.
      if (this.#interest.has(fd)) onReady(fd, this.#events.getUint32(at, true));
    }
    return Math.max(count, 0);
  }

  /** The descriptor of the set itself: readable while something in it is ready. */
  get fd(): number {
    return this.#fd;
  }
}
