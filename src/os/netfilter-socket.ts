/**
 * A netlink socket to the kernel's netfilter (NETLINK_NETFILTER): requests out, datagrams in, in batches.
 *
 * The kernel carries a request out within the call that sends it, and its answer waits when that call returns.
 *
 * Sources: Linux net/netlink/af_netlink.c, net/netfilter/nfnetlink.c.
 *
 * @module
 */
import {
  EINTR,
  MSG_DONTWAIT,
  SO_RCVBUF,
  SO_RCVBUFFORCE,
  SO_SNDBUF,
  SO_SNDBUFFORCE,
  SOCK_CLOEXEC,
  SOCK_NONBLOCK,
  SOCK_RAW,
  SOL_SOCKET,
} from './constants.ts';
import {
  bind,
  checkResult,
  close,
  errno,
  recv,
  recvmmsg,
  send,
  setsockopt,
  socket,
} from './libc.ts';
import type { MessageVector } from './message-vector.ts';

const AF_NETLINK = 16;
const NETLINK_NETFILTER = 12;
const SOL_NETLINK = 270;
const NETLINK_NO_ENOBUFS = 5;
const SOCKADDR_NL_BYTES = 12;
/** Send buffer: requests are carried out at once, so it need only hold the largest. */
const SEND_BUFFER_BYTES = 1024 * 1024;

export class NetfilterSocket {
  readonly fd: number;

  /**
   * @param receiveBufferBytes of kernel memory (the kernel doubles it). A datagram that finds no room is lost without an error:
   *   the reader has to see the gap
   * @throws ColoError `code`
   */
  constructor(code: string, receiveBufferBytes: number) {
    const failure = (syscall: string) => ({
      code,
      syscall,
      action: 'Cannot open a socket to netfilter',
    });
    const type = SOCK_RAW | SOCK_NONBLOCK | SOCK_CLOEXEC;
    this.fd = checkResult(socket(AF_NETLINK, type, NETLINK_NETFILTER), failure('socket'));
    const set = (level: number, option: number, value: number): number =>
      setsockopt(this.fd, level, option, new Uint8Array(Int32Array.of(value).buffer), 4);
    try {
      // Forced, it may exceed net.core.rmem_max.
      if (set(SOL_SOCKET, SO_RCVBUFFORCE, receiveBufferBytes) < 0) {
        set(SOL_SOCKET, SO_RCVBUF, receiveBufferBytes);
      }
      if (set(SOL_SOCKET, SO_SNDBUFFORCE, SEND_BUFFER_BYTES) < 0) {
        set(SOL_SOCKET, SO_SNDBUF, SEND_BUFFER_BYTES);
      }
      // Without it one lost datagram stops the socket until it has been read empty.
      checkResult(set(SOL_NETLINK, NETLINK_NO_ENOBUFS, 1), failure('setsockopt'));
      const address = new Uint8Array(SOCKADDR_NL_BYTES);
      new DataView(address.buffer).setUint16(0, AF_NETLINK, true);
      checkResult(bind(this.fd, address, SOCKADDR_NL_BYTES), failure('bind'));
    } catch (error) {
      close(this.fd);
      throw error;
    }
  }

  /** Sends one datagram to the kernel, which may hold several requests; 0, or `-errno`. */
  send(bytes: Uint8Array): number {
    for (;;) {
      if (send(this.fd, bytes, bytes.length, MSG_DONTWAIT) >= 0) return 0;
      const error = errno();
      if (error !== EINTR) return -error;
    }
  }

  /** Receives one datagram into `bytes`: how long it is, or `-errno`. */
  receiveOne(bytes: Uint8Array): number {
    const count = recv(this.fd, bytes, bytes.length, MSG_DONTWAIT);
    return count < 0 ? -errno() : Number(count);
  }

  /** Receives up to `count` datagrams into `vector`; how many, or `-errno`. */
  receive(vector: MessageVector, count: number): number {
    const received = recvmmsg(this.fd, vector.address, count, MSG_DONTWAIT, 0);
    return received < 0 ? -errno() : received;
  }

  close(): void {
    close(this.fd);
  }
}
