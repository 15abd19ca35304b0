/**
 * The driver `--nfnetlink PORTID | unix:PATH`: nfnetlink_colo and its older ABI, served on a netlink socket
 * (NETLINK_USERSOCK, bound to PORTID) or on a Unix stream socket (mode 0600).
 *
 * A user-space program cannot register a netfilter subsystem, so the VM layer sends the same bytes to PORTID on
 * NETLINK_USERSOCK instead of to the kernel on NETLINK_NETFILTER. Two things that the kernel would do are done here:
 *
 * - Permission: every datagram carries its sender's uid (SO_PASSCRED). Only root and the user of this process may give
 *   orders; others get EPERM.
 * - The end of the owner's socket: no NETLINK_URELEASE reaches programs. The inode of the socket that sent INIT is
 *   remembered, and looked up in /proc/net/netlink every NETLINK_OWNER_PROBE_US and before each message of that port
 *   id: gone or another inode means closed, also when a new socket has taken the port id at once.
 *   Nothing is sent to the owner for it. A notification refused with ECONNREFUSED tells the same sooner.
 *
 * @module
 */
import { createServer, type Server, type Socket } from 'node:net';
import { US_PER_MS } from '../base/time.ts';
import { ERRNO, NetlinkStreamDecoder, NLMSG_HDR_BYTES, splitNetlink } from '../codec/netlink.ts';
import type { Log } from '../env/log.ts';
import type { ProxyEvent, Role } from '../env/messages.ts';
import type { VmDriver, VmEvents, VmStatus } from '../env/vm.ts';
import {
  NETLINK_DATAGRAM_BYTES_MAX,
  NETLINK_OWNER_PROBE_US,
  VM_CLIENTS_MAX,
  VM_UNREAD_BYTES_MAX,
} from '../limits.ts';
import { type NetlinkSender, NetlinkSocket, netlinkSocketInodes } from '../os/netlink.ts';
import { type Endpoint, endpointText, listenEndpoint } from './endpoint.ts';
import { type ColoClient, NfnetlinkNode } from './nfnetlink-node.ts';
import type { NfnetlinkSpec } from './spec.ts';

export interface NfnetlinkOptions {
  readonly spec: NfnetlinkSpec;
  readonly role: Role;
  readonly log: Log;
}

/** What the driver needs of a way in. */
interface Transport {
  start(): Promise<void>;
  close(): Promise<void>;
  readonly status: VmStatus;
}

export class NfnetlinkDriver implements VmDriver {
  readonly name: string;
  readonly #options: NfnetlinkOptions;
  #node: NfnetlinkNode | undefined;
  #transport: Transport | undefined;

  constructor(options: NfnetlinkOptions) {
    const { spec } = options;
    this.name = `nfnetlink:${spec.kind === 'netlink' ? spec.portId : endpointText(spec)}`;
    this.#options = options;
  }

  /** @throws ColoError `COLO_ERR_NETLINK_OPEN`, `COLO_ERR_VM_LISTEN` */
  async start(events: VmEvents): Promise<void> {
    const { spec, role, log } = this.#options;
    this.#node = new NfnetlinkNode({ role, events });
    this.#transport =
      spec.kind === 'netlink'
        ? new NetlinkTransport(spec.portId, this.#node, log)
        : new UnixTransport(spec, this.#node, log);
    await this.#transport.start();
  }

  requestCheckpoint(): void {
    this.#node?.requestCheckpoint();
  }

  onEvent(event: ProxyEvent): void {
    if (event.kind === 'checkpoint-begun') this.#node?.checkpointBegun();
  }

  status(): VmStatus {
    const node = this.#node;
    return {
      driver: this.name,
      node: node?.state ?? '',
      ...node?.counters,
      ...this.#transport?.status,
    };
  }

  async close(): Promise<void> {
    const ended = this.#node?.close();
    await this.#transport?.close();
    await ended;
  }
}

/** A sender of netlink datagrams: one socket, told apart by its inode. */
interface NetlinkPeer {
  readonly client: ColoClient;
  readonly inode: number | undefined;
}

/** The netlink way in. There are no connections: a sender is remembered for as long as its socket exists. */
class NetlinkTransport implements Transport {
  readonly #portId: number;
  readonly #node: NfnetlinkNode;
  readonly #log: Log;
  readonly status = { datagrams: 0, overruns: 0, stray: 0 };
  #socket: NetlinkSocket | undefined;
  #timer: NodeJS.Timeout | undefined;
  /** By port id; trusted senders only. */
  readonly #peers = new Map<number, NetlinkPeer>();

  constructor(portId: number, node: NfnetlinkNode, log: Log) {
    this.#portId = portId;
    this.#node = node;
    this.#log = log;
  }

  async start(): Promise<void> {
    this.#socket = new NetlinkSocket(this.#portId, NETLINK_DATAGRAM_BYTES_MAX);
    if (netlinkSocketInodes() === undefined) {
      const text =
        'Cannot read /proc/net/netlink: the end of the owner shows only when it is notified';
      this.#log.warn({}, text);
    }
    this.#socket.start({
      onDatagram: (bytes, sender) => this.#onDatagram(bytes, sender),
      onOverrun: () => {
        this.status.overruns++;
      },
      onFailed: (error) => this.#log.error({ error: error.message }, 'The netlink socket failed'),
    });
    this.#timer = setInterval(() => this.#probe(), NETLINK_OWNER_PROBE_US / US_PER_MS);
    this.#timer.unref();
  }

  async close(): Promise<void> {
    clearInterval(this.#timer);
    this.#socket?.close();
  }

  #onDatagram(lent: Uint8Array, sender: NetlinkSender): void {
    this.status.datagrams++;
    const client = this.#clientOf(sender);
    const split = splitNetlink(lent.slice());
    for (const message of split.messages) this.#node.onMessage(client, message);
    if (split.truncated !== undefined)
      void this.#node.onTruncated(client, split.truncated, ERRNO.EINVAL);
    if (split.strayBytes > 0) this.status.stray++;
  }

  #clientOf(sender: NetlinkSender): ColoClient {
    const { portId, credentials } = sender;
    const uid = credentials?.uid;
    const trusted = uid !== undefined && (uid === 0 || uid === process.geteuid?.());
    const client: ColoClient = {
      name: `netlink port ${portId} (pid ${credentials?.pid ?? '?'}, uid ${uid ?? '?'})`,
      trusted,
      portId,
      send: (bytes) => this.#send(portId, bytes),
    };
    if (!trusted) return client;
    const inode = netlinkSocketInodes()?.get(portId);
    const known = this.#peers.get(portId);
    if (known !== undefined && known.inode === inode) return known.client;
    if (known !== undefined) this.#gone(portId, 'another socket has its port id');
    this.#peers.set(portId, { client, inode });
    return client;
  }

  #send(portId: number, bytes: Uint8Array): boolean {
    const error = this.#socket?.send(portId, bytes);
    if (error === undefined) return true;
    this.#log.warn({ portId, error }, 'Cannot send to the VM layer');
    if (error === 'ECONNREFUSED') this.#gone(portId, 'no socket has its port id');
    return false;
  }

  #probe(): void {
    if (this.#peers.size === 0) return;
    const inodes = netlinkSocketInodes();
    if (inodes === undefined) return;
    for (const [portId, peer] of this.#peers) {
      const inode = inodes.get(portId);
      // Without one at its first message it was closed before that was read.
      if (inode === undefined || inode !== peer.inode) this.#gone(portId, 'its socket is closed');
    }
  }

  #gone(portId: number, why: string): void {
    const peer = this.#peers.get(portId);
    this.#peers.delete(portId);
    if (peer !== undefined) this.#node.onClientGone(peer.client, why);
  }
}

/** The Unix way in: each connection is a client; its messages follow each other, padded to 4 bytes. */
class UnixTransport implements Transport {
  readonly #endpoint: Endpoint;
  readonly #node: NfnetlinkNode;
  readonly #log: Log;
  readonly #server: Server;
  readonly #sockets = new Set<Socket>();
  #lastNumber = 0;
  readonly status = { connections: 0, refusedConnections: 0 };

  constructor(endpoint: Endpoint, node: NfnetlinkNode, log: Log) {
    this.#endpoint = endpoint;
    this.#node = node;
    this.#log = log;
    this.#server = createServer((socket) => this.#onConnection(socket));
  }

  async start(): Promise<void> {
    await listenEndpoint(this.#server, this.#endpoint);
    this.#server.on('error', (error) =>
      this.#log.error({ error: error.message }, 'The nfnetlink socket failed'),
    );
  }

  close(): Promise<void> {
    const closed = new Promise<void>((resolve) => this.#server.close(() => resolve()));
    for (const socket of this.#sockets) socket.destroy();
    return closed;
  }

  #onConnection(socket: Socket): void {
    if (this.#sockets.size >= VM_CLIENTS_MAX) {
      this.status.refusedConnections++;
      socket.destroy();
      return;
    }
    this.status.connections++;
    this.#sockets.add(socket);
    const number = ++this.#lastNumber;
    const client: ColoClient = {
      name: `connection ${number}`,
      // Who may open the socket file may give orders.
      trusted: true,
      portId: 0,
      send: (bytes) => send(socket, bytes),
    };
    const decoder = new NetlinkStreamDecoder(NETLINK_DATAGRAM_BYTES_MAX);
    socket.on('data', (chunk) => {
      const { messages, broken } = decoder.push(chunk);
      for (const message of messages) {
        // There is no kernel here that knows the client's port id: its own word is only echoed.
        client.portId = message.portId;
        this.#node.onMessage(client, message);
      }
      if (broken === undefined) return;
      client.portId = broken.portId;
      const errno = broken.length < NLMSG_HDR_BYTES ? ERRNO.EINVAL : ERRNO.EMSGSIZE;
      socket.removeAllListeners('data').resume();
      void this.#node.onTruncated(client, broken, errno).then(() => socket.destroySoon());
    });
    socket.on('error', () => socket.destroy());
    socket.on('close', () => {
      this.#sockets.delete(socket);
      this.#node.onClientGone(client, 'its connection is closed');
    });
  }
}

/** Writes unless the client has left too much unread: then it is disconnected. */
function send(socket: Socket, bytes: Uint8Array): boolean {
  if (socket.destroyed || !socket.writable) return false;
  if (socket.writableLength > VM_UNREAD_BYTES_MAX) {
    socket.destroy();
    return false;
  }
  socket.write(bytes);
  return true;
}
