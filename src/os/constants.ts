/**
 * Numbers of the Linux system call interface, as in the kernel's uapi headers, for x86-64 and arm64.
 *
 * @module
 */

// sys/socket.h
export const AF_UNIX = 1;
export const AF_PACKET = 17;
export const SOCK_DGRAM = 2;
export const SOCK_RAW = 3;
export const SOCK_NONBLOCK = 0o4000;
export const SOCK_CLOEXEC = 0o2000000;
export const SOL_SOCKET = 1;
export const SO_ERROR = 4;
export const SO_SNDBUF = 7;
export const SO_RCVBUF = 8;
export const SO_ATTACH_FILTER = 26;
export const SO_SNDBUFFORCE = 32;
export const SO_RCVBUFFORCE = 33;
export const MSG_DONTWAIT = 0x40;
export const MSG_TRUNC = 0x20;

// errno.h
export const EINTR = 4;
export const EIO = 5;
export const ENXIO = 6;
export const EBADF = 9;
export const EAGAIN = 11;
export const ENODEV = 19;
export const EINVAL = 22;
export const EMSGSIZE = 90;
export const EADDRINUSE = 98;
export const ENETDOWN = 100;
export const ENOBUFS = 105;
export const ECONNREFUSED = 111;

// fcntl.h
export const O_RDONLY = 0;
export const O_RDWR = 2;
export const O_NONBLOCK = 0o4000;
export const O_CLOEXEC = 0o2000000;

// linux/if_ether.h
export const ETH_P_ALL = 3;

// linux/filter.h, linux/bpf_common.h: instructions of classic BPF, and what it knows of a packet besides its bytes
export const BPF_LD_W_ABS = 0x20;
export const BPF_LD_H_ABS = 0x28;
export const BPF_LD_B_ABS = 0x30;
export const BPF_LD_B_IND = 0x50;
export const BPF_LDX_B_MSH = 0xb1;
export const BPF_JEQ_K = 0x15;
export const BPF_JSET_K = 0x45;
export const BPF_RET_K = 0x06;
export const SKF_AD_PKTTYPE = 0xffff_f004;
export const SKF_AD_VLAN_TAG_PRESENT = 0xffff_f030;
export const SKF_AD_RANDOM = 0xffff_f038;

// linux/if_packet.h
export const PACKET_OUTGOING = 4;
export const SOL_PACKET = 263;
export const PACKET_ADD_MEMBERSHIP = 1;
export const PACKET_STATISTICS = 6;
export const PACKET_AUXDATA = 8;
export const PACKET_VNET_HDR = 15;
export const PACKET_IGNORE_OUTGOING = 23;
export const PACKET_MR_PROMISC = 1;
/** struct tpacket_auxdata, tp_status: tp_vlan_tci is valid. */
export const TP_STATUS_VLAN_VALID = 1 << 4;
/** struct tpacket_auxdata, tp_status: tp_vlan_tpid is valid. */
export const TP_STATUS_VLAN_TPID_VALID = 1 << 6;

// linux/if.h, linux/sockios.h
export const IFNAMSIZ = 16;
/** struct ifreq: 16 bytes of name, a union of 24 bytes. */
export const IFREQ_BYTES = 40;
export const SIOCGIFMTU = 0x8921;
export const SIOCGIFFLAGS = 0x8913;
export const SIOCSIFFLAGS = 0x8914;
export const IFF_UP = 1;

// linux/if_tun.h
export const TUNSETIFF = 0x400454ca;
export const TUNSETOFFLOAD = 0x400454d0;
export const TUNGETIFF = 0x800454d2;
export const TUNSETVNETHDRSZ = 0x400454d8;
export const IFF_TAP = 0x0002;
export const IFF_NO_PI = 0x1000;
export const IFF_VNET_HDR = 0x4000;
export const TUN_F_CSUM = 1;
export const TUN_F_TSO4 = 2;
export const TUN_F_TSO6 = 4;

// sched.h
export const CLONE_NEWNET = 0x40000000;
