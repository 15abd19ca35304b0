/**
 * The rules of nfnetlink_colo: who owns the node, what each message does, and which errno answers it.
 * Knows no socket; `vm/nfnetlink.ts` brings the datagrams.
 *
 *                 PROXY_INIT                        PROXY_RESET, DO_CHECKPOINT, DO_FAILOVER
 *     no node  ----------------->  node of client  ----------------------------------------.
 *         ^                          |    ^                                                |
 *         '---- its socket closes ---'    '------------------------------------------------'
 *
 * What differs from the module of 2015, and why:
 * - A message without a node is ENOENT (the module says EEXIST).
 * - The process is one node of one role: a second client's INIT is EEXIST, and a mode that is not the role's is EINVAL
 *   (in the module a DO_CHECKPOINT with a mode other than INIT's is a BUG_ON).
 * - A message whose length field lies, or that is too short for its struct nfgenmsg, is EINVAL (the kernel ignores it).
 * - What the node itself refuses, such as a failover while the peer is alive or a checkpoint without one, is EBUSY
 *   (but a CHECKPOINT of the older ABI never fails).
 *
 * @module
 */

import {
  ERRNO,
  encodeNetlinkError,
  errnoName,
  type NetlinkMessage,
  NLM_F_ACK,
  NLM_F_REQUEST,
  NLMSG_MIN_TYPE,
} from '../codec/netlink.ts';
import {
  COLO_MODE,
  type ColoAbi,
  type ColoDecodeFailure,
  type ColoRequest,
  type ColoVerb,
  decodeColoRequest,
  encodeKernelNotify,
  encodeLegacyNotify,
} from '../codec/nfnetlink-colo.ts';
import type { CommandResult } from '../env/engine.ts';
import type { Role } from '../env/messages.ts';
import type { VmEvents } from '../env/vm.ts';
import { VM_REQUESTS_WAITING_MAX } from '../limits.ts';

/** One end of a socket of the VM layer, as long as it lives. */
export interface ColoClient {
  /** Readable: `netlink port 4711`, `connection 3`. */
  readonly name: string;
  /** May it give orders? The kernel asks for CAP_NET_ADMIN and answers EPERM. */
  readonly trusted: boolean;
  /** What answers carry as the receiver's port id. */
  portId: number;
  /** False: not delivered (its queue is full, it is gone). */
  send(bytes: Uint8Array): boolean;
}

interface OwnedNode {
  readonly client: ColoClient;
  readonly abi: ColoAbi;
  readonly mode: number;
}

const FAILURE_ERRNO: Readonly<Record<ColoDecodeFailure, number>> = {
  'no-nfgenmsg': ERRNO.EINVAL,
  'unknown-subsystem': ERRNO.EINVAL,
  'unknown-message': ERRNO.EINVAL,
  'not-for-us': ERRNO.EINVAL,
  'mode-missing': ERRNO.EINVAL,
  // nla_parse() with the policy NLA_U8.
  'mode-too-short': ERRNO.ERANGE,
  'mode-out-of-range': ERRNO.EINVAL,
};

export interface NfnetlinkNodeOptions {
  readonly role: Role;
  readonly events: VmEvents;
}

type GoodRequest = Extract<ColoRequest, { ok: true }>;

export class NfnetlinkNode {
  readonly #role: Role;
  readonly #events: VmEvents;
  /** All requests and departures, one after the other: their answers keep that order. */
  #queue: Promise<void> = Promise.resolve();
  #waiting = 0;
  #closed = false;
  #node: OwnedNode | undefined;
  /** A checkpoint is wanted: since the engine's request, until one begins or is done. */
  #wanted = false;
  /** The owner has been told of it. */
  #notified = false;
  readonly counters = { requests: 0, refused: 0, notified: 0, undelivered: 0, truncated: 0 };

  constructor(options: NfnetlinkNodeOptions) {
    this.#role = options.role;
    this.#events = options.events;
  }

  get owner(): ColoClient | undefined {
    return this.#node?.client;
  }

  /** `no node`, or who owns it and what it speaks. */
  get state(): string {
    const node = this.#node;
    if (node === undefined) return 'no node';
    return `node of ${node.client.name} (${node.abi}, mode ${node.mode})`;
  }

  /** A whole message from `client`; its memory must not change afterwards. */
  onMessage(client: ColoClient, message: NetlinkMessage): void {
    if (this.#waiting >= VM_REQUESTS_WAITING_MAX) {
      this.#answer(client, message, ERRNO.EBUSY);
      return;
    }
    void this.#enqueue(() => this.#handle(client, message));
  }

  /**
   * A message whose length field cannot be true; `errno` is EINVAL, or EMSGSIZE for one beyond the limit.
   * Resolves when it has been answered.
   */
  onTruncated(client: ColoClient, message: NetlinkMessage, errno: number): Promise<void> {
    this.counters.truncated++;
    return this.#enqueue(async () => {
      this.#answer(client, message, client.trusted ? errno : ERRNO.EPERM);
    });
  }

  /** The client's socket is closed: if it owned the node, the node ends (NETLINK_URELEASE in the module). */
  onClientGone(client: ColoClient, why: string): void {
    void this.#enqueue(async () => {
      if (this.#node?.client !== client) return;
      this.#node = undefined;
      this.#notified = false;
      this.#events.report(`The owner of the node is gone: ${why}`, { client: client.name });
      const result = await this.#events.reset(`${client.name} is gone: ${why}`);
      this.#reportRefusal('reset', result);
    });
  }

  /** The engine asks for a checkpoint; asking again means that nothing has happened since. */
  requestCheckpoint(): void {
    // libxl reads one notification after each checkpoint: a second one that waits in its socket would be a
    // needless checkpoint later. The client of nfnetlink_colo keeps a flag only, so repeating is safe.
    if (this.#node?.abi !== 'legacy') this.#notified = false;
    this.#wanted = true;
    this.#notify();
  }

  /** A checkpoint has begun, by whatever way: nothing is wanted any more. */
  checkpointBegun(): void {
    this.#wanted = false;
    this.#notified = false;
  }

  /** Nothing is handled or answered any more. Resolves when what runs has ended. */
  close(): Promise<void> {
    this.#closed = true;
    return this.#queue;
  }

  #enqueue(work: () => Promise<void>): Promise<void> {
    this.#waiting++;
    this.#queue = this.#queue.then(async () => {
      this.#waiting--;
      if (!this.#closed) await work();
    });
    return this.#queue;
  }

  #answer(client: ColoClient, message: NetlinkMessage, errno: number): void {
    if (errno !== 0) this.counters.refused++;
    // netlink_rcv_skb(): success is told to those who asked for it, an error to everybody.
    if (errno === 0 && (message.flags & NLM_F_ACK) === 0) return;
    if (!client.send(encodeNetlinkError(message, errno, client.portId)))
      this.counters.undelivered++;
  }

  async #handle(client: ColoClient, message: NetlinkMessage): Promise<void> {
    this.counters.requests++;
    if (!client.trusted) {
      this.#answer(client, message, ERRNO.EPERM);
      return;
    }
    // As in netlink_rcv_skb(): what is no request, and netlink's own messages, are not looked at.
    if ((message.flags & NLM_F_REQUEST) === 0 || message.type < NLMSG_MIN_TYPE) {
      this.#answer(client, message, 0);
      return;
    }
    const request = decodeColoRequest(message);
    const errno = request.ok
      ? await this.#carryOut(client, message, request)
      : FAILURE_ERRNO[request.failure];
    if (errno !== 0) {
      const what = request.ok ? request.verb : request.failure;
      const fields = { client: client.name, type: message.type, errno: errnoName(errno) };
      this.#events.report(`Refused a message of the VM layer: ${what}`, fields);
    }
    this.#answer(client, message, errno);
  }

  /** Returns the errno, 0 for success. */
  #carryOut(client: ColoClient, message: NetlinkMessage, request: GoodRequest): Promise<number> {
    if (request.verb === 'init') return Promise.resolve(this.#init(client, request));
    const node = this.#node;
    if (node?.client !== client) return Promise.resolve(ERRNO.ENOENT);
    const mode = request.mode ?? node.mode;
    switch (request.verb) {
      case 'query': {
        if (!client.send(encodeLegacyNotify(client.portId, this.#wanted, message.seq))) {
          this.counters.undelivered++;
        }
        return Promise.resolve(0);
      }
      case 'checkpoint':
        return mode === node.mode ? this.#checkpoint(node) : Promise.resolve(ERRNO.EINVAL);
      case 'failover':
        if (mode !== COLO_MODE.secondary || node.mode !== mode)
          return Promise.resolve(ERRNO.EINVAL);
        return this.#command('failover', this.#events.failover(false));
      case 'reset':
        this.#wanted = false;
        this.#notified = false;
        return this.#command('reset', this.#events.reset(`PROXY_RESET of ${client.name}`));
    }
  }

  #init(client: ColoClient, request: GoodRequest): number {
    const roleMode = COLO_MODE[this.#role];
    const mode = request.mode ?? roleMode;
    if (mode !== roleMode && mode !== COLO_MODE.unprotected) return ERRNO.EINVAL;
    if (this.#node !== undefined) return ERRNO.EEXIST;
    this.#node = { client, abi: request.abi, mode };
    this.#notified = false;
    const fields = { client: client.name, abi: request.abi, mode };
    this.#events.report('The VM layer owns the node', fields);
    this.#notify();
    return 0;
  }

  /**
   * Both guests are paused and the state is copied: both edges at once. The secondary hears of it from the primary too,
   * over the peer link, and whichever comes first counts.
   */
  async #checkpoint(node: OwnedNode): Promise<number> {
    if (node.mode === COLO_MODE.unprotected) return 0;
    this.checkpointBegun();
    const errno = await this.#command('checkpoint', this.#events.checkpointCommit());
    // libxl takes any NLMSG_ERROR that it finds at its next wait for the end of the replication. A checkpoint without
    // a peer must not end it: the older ABI's checkpoint succeeds, as in the module, and the event tells.
    return node.abi === 'legacy' ? 0 : errno;
  }

  async #command(verb: ColoVerb, result: Promise<CommandResult>): Promise<number> {
    const outcome = await result;
    this.#reportRefusal(verb, outcome);
    return outcome.ok ? 0 : ERRNO.EBUSY;
  }

  #reportRefusal(verb: string, result: CommandResult): void {
    if (!result.ok) this.#events.report(`The node refused ${verb}: ${result.error}`);
  }

  #notify(): void {
    const node = this.#node;
    if (!this.#wanted || this.#notified || node === undefined) return;
    // The secondary's VM layer cannot start a checkpoint, and one in mode `unprotected` is not replicated.
    if (node.mode !== COLO_MODE.primary) return;
    const { client } = node;
    const encode = node.abi === 'legacy' ? encodeLegacyNotify : encodeKernelNotify;
    if (client.send(encode(client.portId, true))) {
      this.counters.notified++;
      this.#notified = true;
    } else {
      this.counters.undelivered++;
      this.#events.report('The VM layer could not be notified', { client: client.name });
    }
  }
}
