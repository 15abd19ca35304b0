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

/** Longest frame: a 64 KiB IP packet (a GSO frame), Ethernet header, two tags. Longer ones are dropped. */
export const FRAME_BYTES_MAX = 65_535 + 14 + 8;

/** Frames received before the shell turns to its other ports; one recvmmsg. */
export const BATCH_FRAMES_MAX = 64;

/** How long the proxy waits for the other guest before it asks for a checkpoint (SoCC'13: 200 ms). */
export const COMPARE_TIMEOUT_US: Micros = 200_000;

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

/** Client frames kept between checkpoint begin and commit. At the limit the newest is dropped. */
export const KEPT_CLIENT_BYTES_MAX = 64 * 1024 * 1024;

/** Secondary: output kept until the primary confirms its release. At the limit the oldest is dropped. */
export const RETAINED_BYTES_MAX = 256 * 1024 * 1024;

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
