/**
 * A raw packet socket on one network interface: packet(7), with virtio-net headers so that GSO frames
 * pass whole, in batches.
 *
 * PACKET_QDISC_BYPASS is not set: between two veth pairs it cost 13 % more CPU time a byte (0.60 against 0.53 s/GB,
 * Node 20.20, Linux 6.18), and it drops where a queueing discipline would wait.
 *
 * Sources: Linux net/packet/af_packet.c, include/uapi/linux/if_packet.h.
 *
 * @module
 */
import { BATCH_FRAMES_MAX } from '../limits.ts';
import {
  AF_PACKET,
  BPF_JEQ_K,
  BPF_JSET_K,
  BPF_LD_B_ABS,
  BPF_LD_B_IND,
  BPF_LD_H_ABS,
  BPF_LD_W_ABS,
  BPF_LDX_B_MSH,
  BPF_RET_K,
  ENODEV,
  ETH_P_ALL,
  IFNAMSIZ,
  MSG_DONTWAIT,
  PACKET_ADD_MEMBERSHIP,
  PACKET_AUXDATA,
  PACKET_IGNORE_OUTGOING,
  PACKET_MR_PROMISC,
  PACKET_OUTGOING,
  PACKET_STATISTICS,
  PACKET_VNET_HDR,
  SKF_AD_PKTTYPE,
  SKF_AD_RANDOM,
  SKF_AD_VLAN_TAG_PRESENT,
  SO_ATTACH_FILTER,
  SO_ERROR,
  SO_RCVBUF,
  SO_RCVBUFFORCE,
  SO_SNDBUF,
  SO_SNDBUFFORCE,
  SOCK_CLOEXEC,
  SOCK_NONBLOCK,
  SOCK_RAW,
  SOL_PACKET,
  SOL_SOCKET,
  TP_STATUS_VLAN_TPID_VALID,
  TP_STATUS_VLAN_VALID,
} from './constants.ts';
import { interfaceMtu, isInterfaceUp } from './interface.ts';
import {
  addressOf,
  bind,
  checkResult,
  close,
  errno,
  getsockname,
  getsockopt,
  ifNameToIndex,
  recvmmsg,
  sendmmsg,
  setsockopt,
  socket,
  systemError,
  writeAddress,
} from './libc.ts';
import type { MessageVector } from './message-vector.ts';

/** struct cmsghdr (16) and struct tpacket_auxdata (20), rounded up to 8. */
export const AUXDATA_CONTROL_BYTES = 40;

/** Stable code of the errors thrown here. */
const CODE = 'COLO_ERR_PACKET_OPEN';

/** struct sockaddr_ll. */
const SOCKADDR_LL_BYTES = 20;

/**
 * What a socket receives: all that the interface receives; of what it sends, the frames that are not IP or have a VLAN tag; the same
 * of what it receives, and of its IP frames a sample, every TCP SYN among them; or nothing, to send only.
 */
export type PacketFrames = 'received' | 'received-sample' | 'sent-besides-ip' | 'none';

/** An open socket; all calls are non-blocking. Failing calls return `-errno`. */
export class PacketSocket {
  readonly fd: number;
  readonly interfaceName: string;

  private constructor(fd: number, interfaceName: string) {
    this.fd = fd;
    this.interfaceName = interfaceName;
  }

  /**
   * Opens a promiscuous socket for all frames that `interfaceName` receives (not those it sends).
   *
   * @param bufferBytes receive and send buffer, bytes of skb memory (the kernel doubles them)
   * @param frames which frames it receives instead
   * @throws ColoError COLO_ERR_PACKET_OPEN
   */
  static open(
    interfaceName: string,
    bufferBytes: number,
    frames: PacketFrames = 'received',
  ): PacketSocket {
    const index = interfaceName.length < IFNAMSIZ ? ifNameToIndex(interfaceName) : 0;
    const action = `Cannot open a packet socket on ${interfaceName}`;
    const failure = (syscall: string) => ({ code: CODE, syscall, action, path: interfaceName });
    if (index === 0) throw systemError(ENODEV, failure('if_nametoindex'));
    // Protocol 0: nothing is received before bind names the interface.
    const fd = checkResult(
      socket(AF_PACKET, SOCK_RAW | SOCK_NONBLOCK | SOCK_CLOEXEC, 0),
      failure('socket'),
    );
    try {
      const check = (result: number) => checkResult(result, failure('setsockopt'));
      configure(fd, index, bufferBytes, frames, check);
      const address = linkAddress(index, frames === 'none' ? 0 : ETH_P_ALL);
      checkResult(bind(fd, address, SOCKADDR_LL_BYTES), failure('bind'));
    } catch (error) {
      close(fd);
      throw error;
    }
    return new PacketSocket(fd, interfaceName);
  }

  /** Receives up to BATCH_FRAMES_MAX frames into `vector`; how many, or `-errno`. */
  receive(vector: MessageVector): number {
    const count = recvmmsg(this.fd, vector.address, BATCH_FRAMES_MAX, MSG_DONTWAIT, 0);
    return count < 0 ? -errno() : count;
  }

  /** Sends messages `[first, first + count)` of `vector`; how many were taken (at least 1), or `-errno`. */
  send(vector: MessageVector, first: number, count: number): number {
    const sent = sendmmsg(this.fd, vector.addressOfMessage(first), count, MSG_DONTWAIT);
    return sent < 0 ? -errno() : sent;
  }

  /** Takes the pending error of the socket; 0 when there is none. */
  takeError(): number {
    return this.#option(SOL_SOCKET, SO_ERROR, 4);
  }

  /** Frames that did not fit into the receive buffer since the last call. */
  takeKernelDrops(): number {
    // struct tpacket_stats: tp_packets, tp_drops; reading resets both.
    return Math.max(0, this.#option(SOL_PACKET, PACKET_STATISTICS, 8, 4));
  }

  /** Has the interface been deleted, or moved to another namespace? The socket stays dead then. */
  isVanished(): boolean {
    const address = new Uint8Array(SOCKADDR_LL_BYTES);
    const bytes = new Uint8Array(new Uint32Array([SOCKADDR_LL_BYTES]).buffer);
    if (getsockname(this.fd, address, bytes) < 0) return true;
    return new DataView(address.buffer).getInt32(4, true) <= 0;
  }

  /** Largest layer 3 packet of the interface in bytes, or `-errno`. */
  mtu(): number {
    return interfaceMtu(this.fd, this.interfaceName);
  }

  /** Is the interface administratively up? */
  isUp(): boolean {
    return isInterfaceUp(this.fd, this.interfaceName);
  }

  close(): void {
    close(this.fd);
  }

  /** The u32 at `offset` of an option's value; `-errno` on failure. */
  #option(level: number, option: number, bytes: number, offset = 0): number {
    const value = new Uint8Array(bytes);
    const length = new Uint8Array(new Uint32Array([bytes]).buffer);
    if (getsockopt(this.fd, level, option, value, length) < 0) return -errno();
    return new DataView(value.buffer).getUint32(offset, true);
  }
}

/**
 * The VLAN tag that the kernel took off received message `index`: TPID * 65536 + TCI, or 0 when there
 * was none. (Linux keeps the outer tag in the skb, and tells packet sockets in PACKET_AUXDATA.)
 *
 * ```text
 * struct cmsghdr:           0 cmsg_len 8, 8 cmsg_level 4, 12 cmsg_type 4
 * struct tpacket_auxdata:  16 tp_status 4, 20 tp_len 4, 24 tp_snaplen 4, 28 tp_mac 2, 30 tp_net 2,
 *                          32 tp_vlan_tci 2, 34 tp_vlan_tpid 2; host order
 * ```
 */
export function strippedVlanTag(vector: MessageVector, index: number): number {
  // A PACKET_AUXDATA message is the only one that was asked for.
  if (vector.controlBytes(index) < AUXDATA_CONTROL_BYTES - 4) return 0;
  const at = vector.controlOffset(index);
  const view = vector.view;
  const status = view.getUint32(at + 16, true);
  if ((status & TP_STATUS_VLAN_VALID) === 0) return 0;
  const tpid = (status & TP_STATUS_VLAN_TPID_VALID) === 0 ? 0x8100 : view.getUint16(at + 34, true);
  return tpid * 0x1_0000 + view.getUint16(at + 32, true);
}

function configure(
  fd: number,
  interfaceIndex: number,
  bufferBytes: number,
  frames: PacketFrames,
  check: (result: number) => number,
): void {
  const set = (level: number, option: number, value: number) =>
    setsockopt(fd, level, option, new Uint8Array(new Int32Array([value]).buffer), 4);
  check(set(SOL_PACKET, PACKET_VNET_HDR, 1));
  check(set(SOL_PACKET, PACKET_AUXDATA, 1));
  // Linux 4.20. Without it every frame that is sent comes back as received.
  check(set(SOL_PACKET, PACKET_IGNORE_OUTGOING, frames === 'sent-besides-ip' ? 0 : 1));
  if (frames === 'received-sample') check(attachFilter(fd, RECEIVED_SAMPLE));
  if (frames === 'sent-besides-ip') check(attachFilter(fd, SENT_BESIDES_IP));
  // Forced, it may exceed net.core.rmem_max; without CAP_NET_ADMIN the kernel takes what that allows.
  if (set(SOL_SOCKET, SO_RCVBUFFORCE, bufferBytes) < 0) set(SOL_SOCKET, SO_RCVBUF, bufferBytes);
  if (set(SOL_SOCKET, SO_SNDBUFFORCE, bufferBytes) < 0) set(SOL_SOCKET, SO_SNDBUF, bufferBytes);
  if (frames !== 'received') return;
  check(setsockopt(fd, SOL_PACKET, PACKET_ADD_MEMBERSHIP, promiscuous(interfaceIndex), 16));
}

type Instruction = readonly [code: number, jumpTrue: number, jumpFalse: number, operand: number];

/** Offsets count from the Ethernet header; a tag is not among the bytes. A jump counts from the next instruction. */
const SENT_BESIDES_IP: readonly Instruction[] = [
  [BPF_LD_W_ABS, 0, 0, SKF_AD_PKTTYPE],
  [BPF_JEQ_K, 0, 6, PACKET_OUTGOING],
  [BPF_LD_W_ABS, 0, 0, SKF_AD_VLAN_TAG_PRESENT],
  [BPF_JEQ_K, 0, 3, 0],
  [BPF_LD_H_ABS, 0, 0, 12],
  [BPF_JEQ_K, 2, 0, 0x0800],
  [BPF_JEQ_K, 1, 0, 0x86dd],
  [BPF_RET_K, 0, 0, 0x0004_0000],
  [BPF_RET_K, 0, 0, 0],
];

/** Of the IP frames that are no SYN one in 32. */
const RECEIVED_SAMPLE: readonly Instruction[] = [
  [BPF_LD_W_ABS, 0, 0, SKF_AD_VLAN_TAG_PRESENT],
  [BPF_JEQ_K, 0, 16, 0],
  [BPF_LD_H_ABS, 0, 0, 12],
  [BPF_JEQ_K, 1, 0, 0x0800],
  [BPF_JEQ_K, 7, 13, 0x86dd],
  [BPF_LD_B_ABS, 0, 0, 23],
  [BPF_JEQ_K, 0, 9, 6],
  [BPF_LD_H_ABS, 0, 0, 20],
  [BPF_JSET_K, 7, 0, 0x1fff],
  [BPF_LDX_B_MSH, 0, 0, 14],
  [BPF_LD_B_IND, 0, 0, 14 + 13],
  [BPF_JSET_K, 6, 4, 2],
  [BPF_LD_B_ABS, 0, 0, 20],
  [BPF_JEQ_K, 0, 2, 6],
  [BPF_LD_B_ABS, 0, 0, 14 + 40 + 13],
  [BPF_JSET_K, 2, 0, 2],
  [BPF_LD_W_ABS, 0, 0, SKF_AD_RANDOM],
  [BPF_JSET_K, 1, 0, 31],
  [BPF_RET_K, 0, 0, 0x0004_0000],
  [BPF_RET_K, 0, 0, 0],
];

/**
 * Gives the socket a program for the kernel's packet filter (struct sock_filter: code u16, jump if true u8, if false u8, operand
 * u32; struct sock_fprog: count u16, address).
 */
function attachFilter(fd: number, program: readonly Instruction[]): number {
  const headBytes = 16;
  const view = new DataView(new ArrayBuffer(headBytes + program.length * 8));
  view.setUint16(0, program.length, true);
  writeAddress(view, 8, addressOf(view.buffer) + headBytes);
  for (const [index, [operation, jumpTrue, jumpFalse, operand]] of program.entries()) {
    const at = headBytes + index * 8;
    view.setUint16(at, operation, true);
    view.setUint8(at + 2, jumpTrue);
    view.setUint8(at + 3, jumpFalse);
    view.setUint32(at + 4, operand, true);
  }
  return setsockopt(fd, SOL_SOCKET, SO_ATTACH_FILTER, new Uint8Array(view.buffer), headBytes);
}

/** struct sockaddr_ll: family (host order), protocol (network order), interface index. */
function linkAddress(interfaceIndex: number, protocol: number): Uint8Array {
  const view = new DataView(new ArrayBuffer(SOCKADDR_LL_BYTES));
  view.setUint16(0, AF_PACKET, true);
  view.setUint16(2, protocol);
  view.setInt32(4, interfaceIndex, true);
  return new Uint8Array(view.buffer);
}

/** struct packet_mreq: interface index, type, address length, address. */
function promiscuous(interfaceIndex: number): Uint8Array {
  const view = new DataView(new ArrayBuffer(16));
  view.setInt32(0, interfaceIndex, true);
  view.setUint16(4, PACKET_MR_PROMISC, true);
  return new Uint8Array(view.buffer);
}
