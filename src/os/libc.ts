/**
 * The C library, as far as Node does not offer it: raw sockets, batched I/O, ioctl, namespaces.
 *
 * Each function returns what C returns; after
 * -1 ask `errno()` before any other foreign call, or hand the result to `checkResult`.
 *
 * Two kinds of pointers. Cold calls take a `Uint8Array` (or null). Hot calls take an address as a
 * `number` from `addressOf`: user space ends at 2^47, and a number costs 150 ns a call less than a
 * typed array (bench: koffi 3.3, Node 20.20, 0.32 against 0.48 us). Only memory of an explicit
 * `new ArrayBuffer(n)` has a fixed address; V8 keeps typed arrays of up to 64 bytes in its moving heap.
 *
 * Layouts and constants are those of 64-bit little-endian Linux (x86-64, arm64).
 *
 * @module
 */
import { getSystemErrorName } from 'node:util';
import koffi from 'koffi';
import { ColoError } from '../base/error.ts';

/** Memory for a cold call; null is the null pointer. */
export type Memory = Uint8Array | null;
/** An address in this process; 0 is the null pointer. */
export type Address = number;

const c = koffi.load(null);

/** socket(2). */
export const socket: (domain: number, type: number, protocol: number) => number = c.func(
  'int socket(int domain, int type, int protocol)',
);
/** bind(2). */
export const bind: (fd: number, address: Uint8Array, addressBytes: number) => number = c.func(
  'int bind(int fd, const void *address, uint32_t bytes)',
);
/** connect(2). */
export const connect: (fd: number, address: Uint8Array, addressBytes: number) => number = c.func(
  'int connect(int fd, const void *address, uint32_t bytes)',
);
/** listen(2). */
export const listen: (fd: number, backlog: number) => number = c.func(
  'int listen(int fd, int backlog)',
);
/** accept4(2); `addressBytes` is a u32 in host order, changed by the call. */
export const accept4: (fd: number, address: Memory, addressBytes: Memory, flags: number) => number =
  c.func('int accept4(int fd, void *address, void *bytes, int flags)');
/** getsockname(2); `addressBytes` as for accept4. */
export const getsockname: (fd: number, address: Uint8Array, addressBytes: Uint8Array) => number =
  c.func('int getsockname(int fd, void *address, void *bytes)');
/** getpeername(2); `addressBytes` as for accept4. */
export const getpeername: (fd: number, address: Uint8Array, addressBytes: Uint8Array) => number =
  c.func('int getpeername(int fd, void *address, void *bytes)');
/** sendto(2); returns bytes. */
export const sendto: (
  fd: number,
  memory: Uint8Array,
  bytes: number,
  flags: number,
  address: Uint8Array,
  addressBytes: number,
) => number = c.func(
  'intptr_t sendto(int fd, const void *memory, size_t bytes, int flags, const void *address, uint32_t addressBytes)',
);
/** recvfrom(2); returns bytes; `addressBytes` as for accept4. */
export const recvfrom: (
  fd: number,
  memory: Uint8Array,
  bytes: number,
  flags: number,
  address: Uint8Array,
  addressBytes: Uint8Array,
) => number = c.func(
  'intptr_t recvfrom(int fd, void *memory, size_t bytes, int flags, void *address, void *addressBytes)',
);
/** setsockopt(2). */
export const setsockopt: (
  fd: number,
  level: number,
  option: number,
  value: Memory,
  valueBytes: number,
) => number = c.func(
  'int setsockopt(int fd, int level, int option, const void *value, uint32_t bytes)',
);
/** getsockopt(2); `valueBytes` is a u32 in host order, changed by the call. */
export const getsockopt: (
  fd: number,
  level: number,
  option: number,
  value: Uint8Array,
  valueBytes: Uint8Array,
) => number = c.func('int getsockopt(int fd, int level, int option, void *value, void *bytes)');
/** recv(2); returns bytes. */
export const recv: (fd: number, memory: Uint8Array, bytes: number, flags: number) => number =
  c.func('intptr_t recv(int fd, void *memory, size_t bytes, int flags)');
/** send(2); returns bytes. Signals are not blocked: pass MSG_NOSIGNAL on streams. */
export const send: (fd: number, memory: Uint8Array, bytes: number, flags: number) => number =
  c.func('intptr_t send(int fd, const void *memory, size_t bytes, int flags)');
/** shutdown(2). */
export const shutdown: (fd: number, how: number) => number = c.func(
  'int shutdown(int fd, int how)',
);
/** open(2); `mode` is used only with O_CREAT. */
export const open: (path: string, flags: number, mode: number) => number = c.func(
  'int open(const char *path, int flags, uint32_t mode)',
);
/** close(2). */
export const close: (fd: number) => number = c.func('int close(int fd)');
/** fcntl(2) with an integer argument. */
export const fcntl: (fd: number, command: number, argument: number) => number = c.func(
  'int fcntl(int fd, int command, intptr_t argument)',
);
/** ioctl(2). */
export const ioctl: (fd: number, request: number, argument: Memory) => number = c.func(
  'int ioctl(int fd, unsigned long request, void *argument)',
);
/** ioctl(2) whose argument is a number, not memory. */
export const ioctlNumber: (fd: number, request: number, argument: number) => number = c.func(
  'ioctl',
  'int',
  ['int', 'unsigned long', 'uintptr_t'],
);
/** poll(2); `fds` holds `count` struct pollfd of 8 bytes. Blocks: use FdWatcher in the event loop. */
export const poll: (fds: Uint8Array, count: number, timeoutMs: number) => number = c.func(
  'int poll(void *fds, unsigned long count, int timeout)',
);
/** epoll_create1(2). */
export const epollCreate1: (flags: number) => number = c.func('int epoll_create1(int flags)');
/** epoll_ctl(2); struct epoll_event is packed to 12 bytes on x86-64 and has 16 on arm64. */
export const epollCtl: (epollFd: number, operation: number, fd: number, event: Memory) => number =
  c.func('int epoll_ctl(int epfd, int operation, int fd, void *event)');
/** epoll_wait(2). */
export const epollWait: (
  epollFd: number,
  events: Uint8Array,
  countMax: number,
  timeoutMs: number,
) => number = c.func('int epoll_wait(int epfd, void *events, int count, int timeout)');
/** unshare(2): new namespaces for the calling thread. */
export const unshare: (flags: number) => number = c.func('int unshare(int flags)');
/** setns(2): moves the calling thread into the namespace of `fd`. */
export const setns: (fd: number, type: number) => number = c.func('int setns(int fd, int type)');
/** if_nametoindex(3); 0 when there is no such interface. */
export const ifNameToIndex: (name: string) => number = c.func(
  'unsigned int if_nametoindex(const char *name)',
);

/** recvmmsg(2) without a timeout; `vector` is the address of `count` struct mmsghdr. */
export const recvmmsg: (
  fd: number,
  vector: Address,
  count: number,
  flags: number,
  timeout: Address,
) => number = c.func(
  'int recvmmsg(int fd, uintptr_t vector, unsigned int count, int flags, uintptr_t timeout)',
);
/** sendmmsg(2); `vector` as for recvmmsg. */
export const sendmmsg: (fd: number, vector: Address, count: number, flags: number) => number =
  c.func('int sendmmsg(int fd, uintptr_t vector, unsigned int count, int flags)');
/** read(2); returns bytes. */
export const read: (fd: number, memory: Address, bytes: number) => number = c.func(
  'intptr_t read(int fd, uintptr_t memory, size_t bytes)',
);
/** write(2); returns bytes. */
export const write: (fd: number, memory: Address, bytes: number) => number = c.func(
  'intptr_t write(int fd, uintptr_t memory, size_t bytes)',
);
/** readv(2); `iovec` is the address of `count` struct iovec of 16 bytes; returns bytes. */
export const readv: (fd: number, iovec: Address, count: number) => number = c.func(
  'intptr_t readv(int fd, uintptr_t iovec, int count)',
);
/** writev(2); `iovec` as for readv. */
export const writev: (fd: number, iovec: Address, count: number) => number = c.func(
  'intptr_t writev(int fd, uintptr_t iovec, int count)',
);

/** The error number of the last foreign call of this thread that returned -1; positive. */
export function errno(): number {
  return koffi.errno();
}

/** The symbolic name of a positive error number: `EPERM`. */
export function errnoName(value: number): string {
  return value > 0 ? getSystemErrorName(-value) : `errno ${value}`;
}

const addresses = new WeakMap<ArrayBufferLike, Address>();

/**
 * The address of an ArrayBuffer's first byte, which stays the same for its whole life. The caller
 * must keep the buffer reachable for as long as the kernel may use the address.
 */
export function addressOf(memory: ArrayBufferLike): Address {
  let address = addresses.get(memory);
  if (address === undefined) {
    address = Number(koffi.address(memory));
    addresses.set(memory, address);
  }
  return address;
}

/** The kernel's struct pointers are 8 bytes: writes an address into one, in host order. */
export function writeAddress(view: DataView, offset: number, address: Address): void {
  view.setUint32(offset, address >>> 0, true);
  view.setUint32(offset + 4, Math.floor(address / 0x1_0000_0000), true);
}

/** What is needed to tell the user about a failed system call. */
export interface Failure {
  /** Stable code of the ColoError. */
  readonly code: string;
  readonly syscall: string;
  /** What could not be done: `Cannot open /dev/net/tun`. */
  readonly action: string;
  readonly path?: string;
}

const HINTS: Readonly<Record<string, string>> = {
  EPERM: '; needs root or the capability CAP_NET_ADMIN / CAP_NET_RAW',
  EACCES: '; needs root or the capability CAP_NET_ADMIN / CAP_NET_RAW',
  ENODEV: '; there is no such interface in this network namespace',
  ENXIO: '; there is no such interface in this network namespace',
  EBUSY: '; another program uses it',
};

/** The ColoError for a system call that failed with the positive error number `value`. */
export function systemError(value: number, failure: Failure): ColoError {
  const name = errnoName(value);
  return new ColoError(failure.code, `${failure.action}: ${name}${HINTS[name] ?? ''}`, {
    syscall: failure.syscall,
    errno: name,
    ...(failure.path === undefined ? {} : { path: failure.path }),
  });
}

/**
 * Passes on the result of a system call.
 *
 * @throws ColoError with `failure.code` when it is negative; call it at once, before errno changes
 */
export function checkResult(result: number, failure: Failure): number {
  if (result < 0) throw systemError(errno(), failure);
  return result;
}
