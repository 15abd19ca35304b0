/**
 * What the parts of a node say to each other: states, checkpoint requests, events, and the control
 * messages of the peer link. Types only.
 *
 * @module
 */
import type { Micros } from '../base/time.ts';

export type Role = 'primary' | 'secondary';

/** DESIGN: states of a node. `checkpointing` lies between a checkpoint's begin and its commit. */
export type NodeState = 'unprotected' | 'syncing' | 'protected' | 'checkpointing' | 'failed-over';

/** Why a checkpoint is asked for. */
export type CheckpointCause =
  | 'sync' // a peer has joined: the secondary needs the primary's state
  | 'different-bytes'
  | 'different-length'
  | 'different-options' // SYN options that bind the connection (window scale)
  | 'reset-mismatch' // RST of one guest only
  | 'fin-mismatch'
  | 'secondary-silent' // compare timeout: the secondary has not produced what the primary has
  | 'primary-silent' // compare timeout: the secondary has produced what the primary has not
  | 'acknowledgement-behind' // G2: the secondary has not acknowledged what the primary has
  | 'window-closed' // G2: the secondary offers no window while the primary does
  | 'limit' // a hold queue or table is full
  | 'unverifiable' // output that can no longer be compared (e.g. a retransmission from before the flow was known)
  | 'secondary-request' // the secondary's engine asks (its own limits)
  | 'operator'; // ctl

/** One request, given to the VM driver, to events and to `exec:` (as JSON in COLO_REQUEST). */
export interface CheckpointRequest {
  /** Counts from 1 in this process. */
  readonly id: number;
  readonly cause: CheckpointCause;
  /** Readable flow, e.g. `tcp 10.0.0.2:80 > 10.0.0.9:40312`; empty when no flow is meant. */
  readonly flow: string;
  /** Where the streams part: bytes after the ISN (TCP) or the datagram's index; -1 when it has no place. */
  readonly offset: number;
  /** Hexadecimal excerpts, at most 16 bytes, of what each guest sent there. */
  readonly primaryExcerpt: string;
  readonly secondaryExcerpt: string;
  /** From the differing packet (or the deadline) to this request. */
  readonly delayUs: Micros;
  /** How many further causes were coalesced into it while it waited for the minimum run time. */
  readonly coalesced: number;
}

/** Something an operator may want to know; kept in a ring for `ctl events` and written to the log. */
export interface ProxyEvent {
  readonly atUs: Micros;
  readonly kind:
    | 'state'
    | 'divergence'
    | 'checkpoint-requested'
    | 'checkpoint-begun'
    | 'checkpoint-committed'
    | 'checkpoint-aborted'
    | 'peer-up'
    | 'peer-down'
    | 'failover'
    | 'limit'
    | 'reset'
    | 'vm' // what a VM driver saw, and each change of its state
    | 'arbitration'; // what was decided about a lost peer, and on what evidence
  readonly text: string;
  readonly fields?: Record<string, string | number | boolean>;
}

/** Progress of one flow: what the primary has released to the client, so the secondary can forget it. */
export interface ProgressEntry {
  /** 4 or 6. */
  readonly ipVersion: number;
  /** IP protocol number. */
  readonly protocol: number;
  readonly vlan: number;
  readonly guestPort: number;
  readonly clientPort: number;
  /** 16 bytes each; IPv4 in the first 4. */
  readonly guestAddress: Uint8Array;
  readonly clientAddress: Uint8Array;
  /** TCP: the sequence number up to which everything is released. Others: datagrams of this epoch settled. */
  readonly position: number;
}

/** An address of the guest and the MAC address behind it, for the announcements of a failover. */
export interface GuestAddress {
  /** 4 or 6. */
  readonly ipVersion: number;
  /** Outer VLAN id * 4096 + inner id. */
  readonly vlan: number;
  /** 4 or 16 bytes. */
  readonly ip: Uint8Array;
  /** 6 bytes. */
  readonly mac: Uint8Array;
  /** The guest has said so itself (ARP, neighbour discovery); otherwise it only sends from there. */
  readonly certain: boolean;
}

/** Control messages between the engines of the two nodes, over the peer link. Frames travel beside them. */
export type LinkMessage =
  | { readonly type: 'checkpoint-begin'; readonly epoch: number }
  | { readonly type: 'checkpoint-began'; readonly epoch: number }
  | { readonly type: 'checkpoint-commit'; readonly epoch: number }
  | { readonly type: 'checkpoint-committed'; readonly epoch: number }
  | { readonly type: 'checkpoint-abort'; readonly epoch: number; readonly reason: string }
  | { readonly type: 'checkpoint-request'; readonly cause: CheckpointCause; readonly text: string }
  | { readonly type: 'progress'; readonly entries: readonly ProgressEntry[] }
  | {
      readonly type: 'guest-addresses';
      /** The guest's neighbour advertisements carry the router flag. */
      readonly isRouter: boolean;
      readonly addresses: readonly GuestAddress[];
    }
  | { readonly type: 'reset'; readonly reason: string };

/** Which frames travel on the link. */
export const LINK_FRAME_CLIENT = 1; // primary to secondary: a client's frame, for the SVM
export const LINK_FRAME_SECONDARY = 2; // secondary to primary: the SVM's output, sequence-adjusted
export const LINK_FRAME_PRIMARY_SYN = 3; // primary to secondary: a copy of the PVM's SYN or SYN-ACK, to learn its ISN
export type LinkFrameKind =
  | typeof LINK_FRAME_CLIENT
  | typeof LINK_FRAME_SECONDARY
  | typeof LINK_FRAME_PRIMARY_SYN;
