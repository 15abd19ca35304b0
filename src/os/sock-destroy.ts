/**
 * Ends a TCP connection of this network namespace by its addresses, whoever owns it: also one that no
 * descriptor refers to, such as a half-open one (SOCK_DESTROY of sock_diag(7), as `ss --kill` uses).
 * Needs a kernel with CONFIG_INET_DIAG_DESTROY, and CAP_NET_ADMIN over the namespace.
 *
 * @module
 */
import { SOCK_RAW } from './constants.ts';
import {
  AF_INET,
  AF_INET6,
  AF_NETLINK,
  addressBytes,
  closeSocket,
  IPPROTO_TCP,
  openSocket,
  receiveBytes,
  type SocketAddress,
  sendBytes,
} from './socket-calls.ts';

const NETLINK_SOCK_DIAG = 4;
const SOCK_DESTROY = 21;
const NLM_F_REQUEST = 0x1;
const NLM_F_ACK = 0x4;
/** struct nlmsghdr (16) and struct inet_diag_req_v2 (56). */
const MESSAGE_BYTES = 72;
const ALL_STATES = 0xffff_ffff;
const NO_COOKIE = 0xffff_ffff;

/**
 * The kernel sends the peer a RST where the connection is established.
 *
 * @returns 0, or -errno (-ENOENT: there is no such connection)
 */
export function destroyConnection(local: SocketAddress, remote: SocketAddress): number {
  const message = new Uint8Array(MESSAGE_BYTES);
  const view = new DataView(message.buffer);
  view.setUint32(0, MESSAGE_BYTES, true);
  view.setUint16(4, SOCK_DESTROY, true);
  view.setUint16(6, NLM_F_REQUEST | NLM_F_ACK, true);
  // struct inet_diag_req_v2
  view.setUint8(16, local.family === 4 ? AF_INET : AF_INET6);
  view.setUint8(17, IPPROTO_TCP);
  view.setUint32(20, ALL_STATES, true);
  // struct inet_diag_sockid: ports and addresses in network order, interface, cookie
  view.setUint16(24, local.port);
  view.setUint16(26, remote.port);
  message.set(addressBytes(local), 28);
  message.set(addressBytes(remote), 44);
  view.setUint32(64, NO_COOKIE, true);
  view.setUint32(68, NO_COOKIE, true);
  const fd = openSocket(AF_NETLINK, SOCK_RAW, NETLINK_SOCK_DIAG);
  try {
    const sent = sendBytes(fd, message);
    if (sent < 0) return sent;
    // The kernel has answered by the time send() returns: struct nlmsghdr, then -errno.
    const answer = new Uint8Array(256);
    const received = receiveBytes(fd, answer);
    return received < 0 ? received : new DataView(answer.buffer).getInt32(16, true);
  } finally {
    closeSocket(fd);
  }
}
