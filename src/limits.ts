/**
 * Every bound and timeout of the core, with its unit and the reason for its value.
 * What happens at a limit is written beside it; each is counted by name in `status`.
 *
 * @module
 */
import type { Micros } from './base/time.ts';

/**
 * Bytes of the virtio-net header that lies directly before every frame in memory
 * (struct virtio_net_hdr, without num_buffers: what AF_PACKET and tap use).
 */
export const VNET_HDR_BYTES = 10;

/** Longest frame: Ethernet header, two tags, IPv6 header, 64 KiB of payload (a GSO frame). Longer ones are dropped. */
export const FRAME_BYTES_MAX = 65_535 + 40 + 14 + 8;

/** Frames received before the shell turns to its other ports; one recvmmsg. */
export const BATCH_FRAMES_MAX = 64;

/**
 * Socket buffer of a packet port, each way, in bytes of kernel memory: 13 ms of frames at 10 Gbit/s, longer
 * than a garbage collection. At the limit the kernel drops, counted as `kernel-queue-full`.
 */
export const PORT_SOCKET_BUFFER_BYTES = 16 * 1024 * 1024;

/**
 * Packets that stay in a kernel queue while they are held, GSO frames aside; the oldest gives way to its copy. The kernel walks along
 * those that wait to find the one that a verdict names.
 */
export const NFQUEUE_WAITING_MAX = 1_024;

/**
 * Packets in a kernel queue, with or without having been read. Never reached: the socket's buffer holds fewer unread ones, and no
 * more than 65,534 wait for their verdict.
 */
export const NFQUEUE_PACKETS_MAX = 262_144;

/** Frames that a port's kernel side would not take yet. At the limit they are dropped, counted as `send-queue-full`. */
export const PORT_SEND_QUEUE_BYTES_MAX = 8 * 1024 * 1024;

/** How long the proxy waits for the other guest before it asks for a checkpoint (SoCC'13: 200 ms). */
export const COMPARE_TIMEOUT_US: Micros = 200_000;

/**
 * A guest that goes on producing is slow, not silent: while a stream's agreed prefix grows, the compare timeout starts
 * anew, until a segment has waited for this many compare timeouts. In a bulk transfer a whole window (megabytes) may
 * wait its turn behind a slower guest, and a checkpoint would make that guest no faster.
 */
export const COMPARE_LAG_TIMEOUTS = 5;

/**
 * Datagrams that differ may be late answers in another order. When both guests have an unmatched
 * datagram in a flow for this long it is a divergence, without waiting for the whole timeout.
 */
export const DATAGRAM_REORDER_US: Micros = 10_000;

/** The guest runs at least this long between two checkpoints, whatever diverges. */
export const CHECKPOINT_MIN_RUN_US: Micros = 100_000;

/**
 * A checkpoint request that the VM layer does not begin within this time is repeated; after
 * CHECKPOINT_REQUEST_TRIES of them the node goes unprotected rather than stall its clients.
 */
export const CHECKPOINT_REQUEST_TIMEOUT_US: Micros = 2_000_000;
/** See CHECKPOINT_REQUEST_TIMEOUT_US. */
export const CHECKPOINT_REQUEST_TRIES = 5;

/** A checkpoint begun and neither committed nor aborted within this time: unprotected. */
export const CHECKPOINT_COMMIT_TIMEOUT_US: Micros = 30_000_000;

/** Flows tracked. At the limit the least recently used flow with nothing held is forgotten. */
export const FLOWS_MAX = 1_000_000;

/** Half-open TCP flows (one SYN seen, no data): a SYN flood cannot push out established ones. */
export const HALF_OPEN_FLOWS_MAX = 65_536;

/** Bytes of guest output held or waiting for the other guest, in one flow. At the limit: checkpoint. */
export const FLOW_HELD_BYTES_MAX = 32 * 1024 * 1024;
/** The same over all flows. At the limit: checkpoint. */
export const HELD_BYTES_MAX = 512 * 1024 * 1024;

/**
 * Pieces of memory (of 1 MiB) that one stream of QEMU's may have because frames in them wait for the other guest; beyond, frames that wait are
 * copied out. A single frame keeps a whole piece, so this bounds what a stream costs beyond `HELD_BYTES_MAX`.
 */
export const STREAM_PIECES_MAX = 128;

/** Client frames kept between checkpoint begin and commit. At the limit the newest is dropped. */
export const KEPT_CLIENT_BYTES_MAX = 64 * 1024 * 1024;

/** Secondary: output kept until the primary confirms its release. At the limit the oldest is dropped. */
export const RETAINED_BYTES_MAX = 256 * 1024 * 1024;

/**
 * Secondary: clients' segments heard on its own network port before it serves. Only those that a switch floods come there; at the limit
 * the oldest is forgotten. A client sends more than this unanswered over paths of 4 Gbit/s at 16 ms only.
 */
export const OVERHEARD_BYTES_MAX = 8 * 1024 * 1024;
/** One that is older has been sent again by its client (RFC 6298 §2: first after 1 s, Linux after 200 ms). */
export const OVERHEARD_AGE_US_MAX: Micros = 2_000_000;

/** Datagrams being reassembled from fragments, and the bytes they hold (RFC 815, RFC 8200 §4.5). */
export const REASSEMBLIES_MAX = 1_024;
/** See REASSEMBLIES_MAX. */
export const REASSEMBLY_BYTES_MAX = 16 * 1024 * 1024;
/** Fragments of one datagram: 64 KiB in pieces of the smallest IPv4 MTU's 8-byte units is no datagram but an attack. */
export const FRAGMENTS_MAX = 128;
/** RFC 8200 §4.5 allows 60 s; a guest's own fragments arrive back to back. */
export const REASSEMBLY_TIMEOUT_US: Micros = 10_000_000;

/** IPv6 extension headers walked before a frame is called malformed. */
export const IPV6_EXTENSION_HEADERS_MAX = 8;

/** Neighbours (IP to MAC) the secondary remembers in order to answer the SVM's ARP / ND. */
export const NEIGHBOURS_MAX = 4_096;

/** Peer silent for this long: lost (a hung peer is noticed as a dead one is). */
export const PEER_TIMEOUT_US: Micros = 1_000_000;

/** Bytes waiting in the peer link's send queue. At the limit frames are dropped, control messages never. */
export const LINK_QUEUE_BYTES_MAX = 64 * 1024 * 1024;

/** Ageing of flows without traffic, by TCP state; values of Linux' nf_conntrack_proto_tcp.c. */
export const FLOW_TIMEOUT_HALF_OPEN_US: Micros = 60_000_000;
/** Established: Linux' 5 days; keepalives refresh it, and the table is bounded anyway. */
export const FLOW_TIMEOUT_ESTABLISHED_US: Micros = 432_000_000_000;
/** After both FINs (TIME_WAIT) or a RST. */
export const FLOW_TIMEOUT_CLOSED_US: Micros = 120_000_000;
/** UDP, ICMP and others (nf_conntrack_udp_timeout_stream). */
export const FLOW_TIMEOUT_DATAGRAM_US: Micros = 120_000_000;

/** Events kept for `ctl events`; the oldest is forgotten. */
export const EVENTS_KEPT_MAX = 1_024;

/** One line of the control socket, either direction of requests. A longer one ends the connection. */
export const CONTROL_LINE_BYTES_MAX = 64 * 1024;
/** Connections to the control socket at a time; further ones are closed at once. */
export const CONTROL_CONNECTIONS_MAX = 32;
/** Bytes that a follower of events may leave unread before it is disconnected. */
export const CONTROL_UNREAD_BYTES_MAX = 4 * 1024 * 1024;
/** Flows that one `ctl flows` may ask for: about 3 MiB of answer. */
export const CONTROL_FLOWS_MAX = 10_000;

/** How long a `checkpoint begin` or `commit` waits for the peer's answer before the command is refused. */
export const CHECKPOINT_ANSWER_TIMEOUT_US: Micros = 5_000_000;

/** A checkpoint command (`--vm exec:`) that runs longer is ended: it would block all later requests. */
export const VM_EXEC_TIMEOUT_US: Micros = 60_000_000;
/** Characters of a checkpoint command's output that reach the log. */
export const VM_EXEC_OUTPUT_BYTES_MAX = 4_096;

/** One netlink message or datagram of a VM layer; the protocol's own messages have 16 to 28 bytes. */
export const NETLINK_DATAGRAM_BYTES_MAX = 8_192;
/** Connections to a driver's Unix socket at a time; further ones are closed at once. */
export const VM_CLIENTS_MAX = 16;
/** Requests of VM layers that wait for their turn; further ones are answered with EBUSY. */
export const VM_REQUESTS_WAITING_MAX = 256;
/** Bytes that a VM layer may leave unread before it is disconnected. */
export const VM_UNREAD_BYTES_MAX = 64 * 1024;
/** How often it is looked whether the netlink socket of the owner is still open. */
export const NETLINK_OWNER_PROBE_US: Micros = 200_000;

/** A notify client that has not introduced itself within this time is disconnected (libxl does so at once). */
export const NOTIFY_INIT_TIMEOUT_US: Micros = 2_000_000;

/** A frame stream over TCP whose other host is silent for so long is given up. Seconds: what the kernel counts its probes in. */
export const STREAM_DEAD_SECONDS = 6;

/** One line of QMP; the longest answer, query-qmp-schema, has about 200 KB. Longer ones are skipped. */
export const QMP_LINE_BYTES_MAX = 4 * 1024 * 1024;
/** A QMP command that is not answered within this time counts as failed: QEMU hangs. */
export const QMP_COMMAND_TIMEOUT_US: Micros = 2_000_000;
/** Between two questions whether QEMU is alive; one that is not answered within QMP_COMMAND_TIMEOUT_US: it hangs. */
export const QMP_LIVENESS_INTERVAL_US: Micros = 500_000;
/** No greeting within this time: QEMU hangs, or its monitor serves another client. Tried again. */
export const QMP_GREETING_TIMEOUT_US: Micros = 2_000_000;
/** Between two attempts to connect: doubles from the first to the second. */
export const QMP_RECONNECT_MIN_US: Micros = 100_000;
/** See QMP_RECONNECT_MIN_US. */
export const QMP_RECONNECT_MAX_US: Micros = 2_000_000;
/** A request without a STOP within this time was swallowed (measured: STOP after 0.8 to 5.1 ms), and is repeated. */
export const QMP_STOP_TIMEOUT_US: Micros = 1_000_000;
/** A guest stopped for longer than this: QEMU hangs in the checkpoint (measured: 1.6 to 14 ms for 128 MiB). */
export const QMP_RESUME_TIMEOUT_US: Micros = 10_000_000;

/** A `--on-peer-loss exec:` command that runs longer counts as "no". */
export const ARBITER_EXEC_TIMEOUT_US: Micros = 10_000_000;
/** Between two runs of an arbiter command that has asked to be run again. */
export const ARBITER_RETRY_US: Micros = 1_000_000;
