/**
 * A netlink socket for messages between programs (NETLINK_USERSOCK): unicast datagrams addressed by port id.
 *
 * Measured on Linux 6.18: unicast works in both directions between unprivileged processes of one network namespace
 * (only multicast needs a capability), so the receiver has to look at the sender's credentials itself; they
 * come with every datagram, written by the kernel (SO_PASSCRED). A datagram to a port without a socket fails with ECONNREFUSED.
 * There is no NETLINK_URELEASE for programs: `netlinkSocketInodes` tells whether a port's socket is still the same.
 *
 * @module
 */
import { readFileSync } from 'node:fs';
import { FdWatcher } from './fd-watcher.ts';
import {
  addressOf,
  bind,
  checkResult,
  close,
  errno,
  errnoName,
  getsockname,
  recvmmsg,
  sendmmsg,
  setsockopt,
  socket,
  systemError,
  writeAddress,
} from './libc.ts';
import { MessageVector } from './message-vector.ts';

const AF_NETLINK = 16;
const SOCK_RAW = 3;
const SOCK_NONBLOCK = 0o4000;
const SOCK_CLOEXEC = 0o2000000;
const SOL_SOCKET = 1;
const SO_PASSCRED = 16;
const SCM_CREDENTIALS = 2;
const MSG_TRUNC = 0x20;
const EINTR = 4;
const EAGAIN = 11;
const ENOBUFS = 105;

/** Netlink's protocol for user programs (include/uapi/linux/netlink.h). */
export const NETLINK_USERSOCK = 2;

/** struct sockaddr_nl: u16 family, u16 zero, u32 port id, u32 groups; host order. */
const SOCKADDR_NL_BYTES = 12;
/** struct cmsghdr (8 + 4 + 4) and struct ucred (pid, uid, gid), padded to 8. */
const CONTROL_BYTES = 32;
const CMSG_HDR_BYTES = 16;
/** Offsets in struct msghdr. */
const MSG_NAMELEN = 8;
/** Datagrams taken in one turn of the event loop, so that a flood cannot keep it. */
const DATAGRAMS_PER_TURN = 64;

/** Who sent a datagram, by the kernel's word. */
export interface NetlinkSender {
  readonly portId: number;
  /** Undefined when the kernel gave no credentials. Ids of another user namespace appear as 65534. */
  readonly credentials: { readonly pid: number; readonly uid: number } | undefined;
}

export interface NetlinkHandlers {
  /** `bytes` is lent for the call. `cut`: the datagram was longer than the buffer. */
  onDatagram(bytes: Uint8Array, sender: NetlinkSender, cut: boolean): void;
  /** The kernel dropped datagrams because this end was too slow. */
  onOverrun(): void;
  /** The socket has failed and is closed. */
  onFailed(error: Error): void;
}

export class NetlinkSocket {
  readonly #fd: number;
  readonly #vector = new MessageVector(1, CONTROL_BYTES);
  readonly #sendVector = new MessageVector(1, 0);
  readonly #name = new DataView(new ArrayBuffer(64));
  readonly #buffer: Uint8Array;
  readonly #sendBuffer: Uint8Array;
  #watcher: FdWatcher | undefined;
  #closed = false;
  /** This socket's port id; never 0. */
  readonly portId: number;

  /**
   * Opens a NETLINK_USERSOCK and binds it to `portId`; 0 lets the kernel choose.
   *
   * @param datagramBytesMax longer datagrams are cut
   * @throws ColoError `COLO_ERR_NETLINK_OPEN` (EADDRINUSE: the port id is taken in this network namespace)
   */
  constructor(portId: number, datagramBytesMax: number) {
    this.#buffer = new Uint8Array(new ArrayBuffer(datagramBytesMax));
    this.#sendBuffer = new Uint8Array(new ArrayBuffer(datagramBytesMax));
    const action = `Cannot open netlink port ${portId}`;
    const failure = (syscall: string) => ({ code: 'COLO_ERR_NETLINK_OPEN', syscall, action });
    const type = SOCK_RAW | SOCK_NONBLOCK | SOCK_CLOEXEC;
    this.#fd = checkResult(socket(AF_NETLINK, type, NETLINK_USERSOCK), failure('socket'));
    try {
      const on = new Uint8Array(Int32Array.of(1).buffer);
      checkResult(setsockopt(this.#fd, SOL_SOCKET, SO_PASSCRED, on, 4), failure('setsockopt'));
      checkResult(bind(this.#fd, sockaddr(portId), SOCKADDR_NL_BYTES), failure('bind'));
      this.portId = this.#localPortId(failure('getsockname'));
    } catch (error) {
      close(this.#fd);
      throw error;
    }
  }

  #localPortId(failure: Parameters<typeof checkResult>[1]): number {
    const address = sockaddr(0);
    const bytes = new Uint8Array(Uint32Array.of(SOCKADDR_NL_BYTES).buffer);
    checkResult(getsockname(this.#fd, address, bytes), failure);
    return new DataView(address.buffer).getUint32(4, true);
  }

  /** Begins to receive. */
  start(handlers: NetlinkHandlers): void {
    const watcher = new FdWatcher(this.#fd, () => this.#receive(handlers));
    this.#watcher = watcher;
    watcher.watch(true, false);
  }

  /**
   * Sends one datagram, now or not at all. Undefined when it is in the receiver's queue, otherwise the name of the
   * error: `ECONNREFUSED` (no socket has that port id), `EAGAIN` (the receiver's queue is full), ...
   */
  send(portId: number, bytes: Uint8Array): string | undefined {
    if (this.#closed) return 'EBADF';
    if (bytes.length > this.#sendBuffer.length) return 'EMSGSIZE';
    this.#sendBuffer.set(bytes);
    const vector = this.#sendVector;
    // A name of its own: the receiving one holds the last sender.
    const name = new ArrayBuffer(64);
    new Uint8Array(name).set(sockaddr(portId));
    writeAddress(vector.view, 0, addressOf(name));
    vector.view.setUint32(MSG_NAMELEN, SOCKADDR_NL_BYTES, true);
    vector.setSegment(0, addressOf(this.#sendBuffer.buffer), bytes.length);
    for (;;) {
      if (sendmmsg(this.#fd, vector.address, 1, 0) === 1) return undefined;
      const error = errno();
      if (error !== EINTR) return errnoName(error);
    }
  }

  /** Ends receiving and closes the socket; no handler is called any more. */
  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    this.#watcher?.close();
    close(this.#fd);
  }

  #receive(handlers: NetlinkHandlers): void {
    const vector = this.#vector;
    const nameAddress = addressOf(this.#name.buffer);
    for (let count = 0; count < DATAGRAMS_PER_TURN && !this.#closed; count++) {
      writeAddress(vector.view, 0, nameAddress);
      vector.view.setUint32(MSG_NAMELEN, SOCKADDR_NL_BYTES, true);
      vector.setSegment(0, addressOf(this.#buffer.buffer), this.#buffer.length);
      vector.rearm(0);
      if (recvmmsg(this.#fd, vector.address, 1, 0, 0) < 0) {
        const error = errno();
        if (error === EAGAIN) return;
        if (error === EINTR) continue;
        if (error === ENOBUFS) {
          handlers.onOverrun();
          continue;
        }
        this.close();
        const action = 'Cannot receive from the netlink socket';
        const failure = { code: 'COLO_ERR_NETLINK_RECEIVE', syscall: 'recvmmsg', action };
        handlers.onFailed(systemError(error, failure));
        return;
      }
      const cut = (vector.flags(0) & MSG_TRUNC) !== 0;
      const sender = { portId: this.#name.getUint32(4, true), credentials: this.#credentials() };
      handlers.onDatagram(this.#buffer.subarray(0, vector.bytes(0)), sender, cut);
    }
  }

  #credentials(): NetlinkSender['credentials'] {
    const vector = this.#vector;
    if (vector.controlBytes(0) < CMSG_HDR_BYTES + 12) return undefined;
    const at = vector.controlOffset(0);
    const level = vector.view.getInt32(at + 8, true);
    const type = vector.view.getInt32(at + 12, true);
    if (level !== SOL_SOCKET || type !== SCM_CREDENTIALS) return undefined;
    return {
      pid: vector.view.getInt32(at + CMSG_HDR_BYTES, true),
      uid: vector.view.getUint32(at + CMSG_HDR_BYTES + 4, true),
    };
  }
}

function sockaddr(portId: number): Uint8Array<ArrayBuffer> {
  const bytes = new Uint8Array(SOCKADDR_NL_BYTES);
  const view = new DataView(bytes.buffer);
  view.setUint16(0, AF_NETLINK, true);
  view.setUint32(4, portId, true);
  return bytes;
}

/**
 * The inodes of all NETLINK_USERSOCKs of this network namespace by port id. An inode is the identity of a
 * socket, which a later one with the same port id does not share. Undefined: /proc/net/netlink cannot be read.
 */
export function netlinkSocketInodes(): Map<number, number> | undefined {
  try {
    return parseNetlinkInodes(readFileSync('/proc/net/netlink', 'latin1'));
  } catch {
    return undefined;
  }
}

/** `netlinkSocketInodes` on the text of /proc/net/netlink (net/netlink/af_netlink.c, netlink_native_seq_show). */
export function parseNetlinkInodes(text: string): Map<number, number> {
  const inodes = new Map<number, number>();
  for (const line of text.split('\n')) {
    // sk Eth Pid Groups Rmem Wmem Dump Locks Drops Inode
    const columns = line.trim().split(/\s+/);
    if (columns[1] !== `${NETLINK_USERSOCK}` || columns[9] === undefined) continue;
    const portId = Number(columns[2]);
    const inode = Number(columns[9]);
    if (Number.isSafeInteger(portId) && Number.isSafeInteger(inode)) inodes.set(portId, inode);
  }
  return inodes;
}
