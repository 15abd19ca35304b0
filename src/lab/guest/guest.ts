/**
 * A guest: the services of one virtual machine, on real kernel sockets, that can be stopped between any two
 * bytes, copied into another network namespace with its open connections, and continued there.
 *
 * The order of a checkpoint: `freeze` both; (the proxies stop and drain); `take` in the PVM, `load` in the SVM;
 * (commit); `resume` both. A frozen guest's kernel still receives, but sends nothing (EgressGate).
 *
 * @module
 */
import { deserialize, serialize } from 'node:v8';
import { SOL_SOCKET } from '../../os/constants.ts';
import { FdWatcher } from '../../os/fd-watcher.ts';
import {
  AF_INET,
  AF_INET6,
  acceptSocket,
  bindSocket,
  checkCall,
  closeSocket,
  connectSocket,
  EINPROGRESS,
  EPOLLERR,
  EPOLLHUP,
  EPOLLIN,
  EPOLLOUT,
  Epoll,
  IPPROTO_IPV6,
  IPPROTO_TCP,
  IPV6_V6ONLY,
  listenSocket,
  openSocket,
  receiveDatagram,
  SO_REUSEADDR,
  SOCK_DGRAM,
  SOCK_STREAM,
  type SocketAddress,
  sendDatagram,
  setIntOption,
  TCP_NODELAY,
  TCP_NOTSENT_LOWAT,
} from '../../os/socket-calls.ts';
import {
  dropConnection,
  isTakeable,
  repairOff,
  repairOn,
  restoreConnection,
  type TcpConnectionImage,
  takeConnection,
  tcpState,
} from '../../os/tcp-repair.ts';
import { ADDRESSES } from '../topology.ts';
import {
  Connection,
  type ConnectionState,
  newConnectionState,
  type Service,
} from './connection.ts';
import { EgressGate } from './egress-gate.ts';
import { createServices, PORTS } from './services.ts';

const LISTEN_BACKLOG = 16_384;
const DATAGRAM_BYTES_MAX = 65_536;
/** Unsent output in the kernel, in one connection: a checkpoint has to copy it. */
const UNSENT_BYTES_MAX = 256 * 1024;
/** How often connections are looked at whose end no readiness tells. */
const LINGER_MS = 5;
/** Rounds of epoll in one turn of the event loop, so that messages are heard under load. */
const ROUNDS_MAX = 16;

interface Pending {
  readonly local: SocketAddress;
  readonly remote: SocketAddress;
}

/** What `take` takes; serialised with node:v8. */
interface GuestImage {
  readonly connections: { readonly tcp: TcpConnectionImage; readonly state: ConnectionState }[];
  /** Connections that the guest was opening: the copy opens them anew. */
  readonly opening: Pending[];
  /** Datagrams received and not yet answered. */
  readonly datagrams: { readonly from: SocketAddress; readonly bytes: Uint8Array }[];
}

export class Guest {
  readonly #epoll = new Epoll();
  readonly #watcher: FdWatcher;
  readonly #gate = new EgressGate('eth0');
  readonly #services: Readonly<Record<string, Service>>;
  readonly #listeners = new Map<number, { address: SocketAddress; service: string }>();
  readonly #datagramSockets = new Map<number, SocketAddress>();
  readonly #connections = new Map<number, Connection>();
  readonly #opening = new Map<number, Pending>();
  #waitingDatagrams: { from: SocketAddress; bytes: Uint8Array }[] = [];
  #linger: NodeJS.Timeout | undefined;
  #frozen = false;
  #muted = false;

  /** @param onToken told each token that this guest makes up */
  constructor(onToken: (token: string) => void) {
    this.#services = createServices({
      openConnection: (address, port, localPort) => {
        const family = address.includes(':') ? 6 : 4;
        this.#open(
          { family, address: ADDRESSES[family].guest, port: localPort },
          { family, address, port },
        );
      },
      reportToken: onToken,
    });
    this.#watcher = new FdWatcher(this.#epoll.fd, () => this.#turn());
  }

  /** Opens the services and serves. @throws ColoError */
  start(): void {
    for (const family of [4, 6] as const) {
      const address = family === 4 ? '0.0.0.0' : '::';
      for (const [service, port] of Object.entries(PORTS)) {
        this.#listen({ family, address, port }, service);
      }
      this.#bindDatagrams({ family, address, port: PORTS.echo });
    }
    this.#watcher.watch(true, false);
    this.#linger = setInterval(() => this.#closeFinished(), LINGER_MS);
  }

  get connectionCount(): number {
    return this.#connections.size;
  }

  /** Stops serving, and stops the kernel from sending. */
  freeze(): void {
    this.#gate.close();
    this.#frozen = true;
    this.#watcher.watch(false, false);
    clearInterval(this.#linger);
    for (const connection of this.#connections.values()) connection.freeze();
  }

  /** Goes on after {@link freeze}. */
  resume(): void {
    if (!this.#muted) this.#gate.open();
    this.#frozen = false;
    const datagrams = this.#waitingDatagrams;
    this.#waitingDatagrams = [];
    for (const { from, bytes } of datagrams) this.#answerDatagram(from, bytes);
    for (const connection of this.#connections.values()) connection.resume();
    this.#watcher.watch(true, false);
    this.#linger = setInterval(() => this.#closeFinished(), LINGER_MS);
  }

  /** Cuts off (or joins again) what the guest sends; its services go on. */
  mute(muted: boolean): void {
    this.#muted = muted;
    if (muted) this.#gate.close();
    else if (!this.#frozen) this.#gate.open();
  }

  /** A copy of this frozen guest, which itself can go on afterwards. */
  take(): Buffer {
    this.#acceptAll();
    this.#drainDatagrams();
    const connections: GuestImage['connections'] = [];
    for (const [fd, connection] of this.#connections) {
      if (!isTakeable(tcpState(fd))) continue;
      repairOn(fd);
      connections.push({ tcp: takeConnection(fd), state: connection.state });
      repairOff(fd);
    }
    const image: GuestImage = {
      connections,
      opening: [...this.#opening.values()],
      datagrams: this.#waitingDatagrams,
    };
    return serialize(image);
  }

  /** Makes this frozen guest the copy; what it was is gone, without a packet. @throws ColoError */
  load(bytes: Uint8Array): void {
    const image = deserialize(bytes) as GuestImage;
    this.#acceptAll();
    this.#drainDatagrams();
    for (const [fd, connection] of this.#connections) {
      connection.dispose();
      dropConnection(fd);
    }
    this.#connections.clear();
    for (const fd of this.#opening.keys()) {
      this.#epoll.forget(fd);
      closeSocket(fd);
    }
    this.#opening.clear();
    this.#reopenListeners();
    this.#waitingDatagrams = image.datagrams;
    for (const { tcp, state } of image.connections) {
      this.#adopt(restoreConnection(tcp), state);
    }
    for (const { local, remote } of image.opening) this.#open(local, remote);
  }

  /** A half-open connection is the kernel's, not ours; it goes with its listener. */
  #reopenListeners(): void {
    const listeners = [...this.#listeners.values()];
    for (const fd of this.#listeners.keys()) {
      this.#epoll.forget(fd);
      closeSocket(fd);
    }
    this.#listeners.clear();
    for (const { address, service } of listeners) this.#listen(address, service);
  }

  #listen(address: SocketAddress, service: string): void {
    const fd = openSocket(address.family === 4 ? AF_INET : AF_INET6, SOCK_STREAM);
    checkCall('SO_REUSEADDR', setIntOption(fd, SOL_SOCKET, SO_REUSEADDR, 1));
    if (address.family === 6) setIntOption(fd, IPPROTO_IPV6, IPV6_V6ONLY, 1);
    checkCall(`bind port ${address.port}`, bindSocket(fd, address));
    checkCall('listen', listenSocket(fd, LISTEN_BACKLOG));
    this.#listeners.set(fd, { address, service });
    this.#epoll.watch(fd, EPOLLIN);
  }

  #bindDatagrams(address: SocketAddress): void {
    const fd = openSocket(address.family === 4 ? AF_INET : AF_INET6, SOCK_DGRAM);
    if (address.family === 6) setIntOption(fd, IPPROTO_IPV6, IPV6_V6ONLY, 1);
    checkCall(`bind port ${address.port}`, bindSocket(fd, address));
    this.#datagramSockets.set(fd, address);
    this.#epoll.watch(fd, EPOLLIN);
  }

  #open(local: SocketAddress, remote: SocketAddress): void {
    const fd = openSocket(remote.family === 4 ? AF_INET : AF_INET6, SOCK_STREAM);
    setIntOption(fd, SOL_SOCKET, SO_REUSEADDR, 1);
    const bound = bindSocket(fd, local);
    const result = bound < 0 ? bound : connectSocket(fd, remote);
    if (result < 0 && result !== -EINPROGRESS) {
      closeSocket(fd);
      return;
    }
    this.#opening.set(fd, { local, remote });
    this.#epoll.watch(fd, EPOLLOUT);
  }

  #turn(): void {
    for (let round = 0; round < ROUNDS_MAX && !this.#frozen; round++) {
      if (this.#epoll.poll((fd, events) => this.#onReady(fd, events)) === 0) return;
    }
  }

  #onReady(fd: number, events: number): void {
    const connection = this.#connections.get(fd);
    if (connection !== undefined) {
      if (!connection.onReady(events)) this.#closeConnection(fd, connection);
    } else if (this.#listeners.has(fd)) {
      this.#accept(fd);
    } else if (this.#datagramSockets.has(fd)) {
      this.#receiveDatagrams(fd, (from, bytes) => this.#answerDatagram(from, bytes));
    } else if (this.#opening.delete(fd)) {
      this.#epoll.forget(fd);
      if ((events & (EPOLLERR | EPOLLHUP)) !== 0) closeSocket(fd);
      else this.#begin(fd, 'http-opened');
    }
  }

  #accept(listener: number): void {
    const service = this.#listeners.get(listener)!.service;
    for (;;) {
      const fd = acceptSocket(listener);
      if (fd < 0) return;
      this.#begin(fd, service);
    }
  }

  #acceptAll(): void {
    for (const fd of this.#listeners.keys()) this.#accept(fd);
  }

  #begin(fd: number, service: string): void {
    const connection = this.#adopt(fd, newConnectionState(service));
    connection.open();
    if (!this.#frozen) connection.flush();
  }

  #adopt(fd: number, state: ConnectionState): Connection {
    setIntOption(fd, IPPROTO_TCP, TCP_NODELAY, 1);
    setIntOption(fd, IPPROTO_TCP, TCP_NOTSENT_LOWAT, UNSENT_BYTES_MAX);
    const connection = new Connection(fd, state, this.#services[state.service]!, this.#epoll);
    this.#connections.set(fd, connection);
    return connection;
  }

  #closeConnection(fd: number, connection: Connection): void {
    connection.dispose();
    this.#connections.delete(fd);
    closeSocket(fd);
  }

  /** Closing earlier would leave the kernel with a connection that no descriptor, so no checkpoint, reaches. */
  #closeFinished(): void {
    for (const [fd, connection] of this.#connections) {
      if (connection.isOver()) this.#closeConnection(fd, connection);
    }
  }

  #receiveDatagrams(fd: number, take: (from: SocketAddress, bytes: Uint8Array) => void): void {
    const buffer = new Uint8Array(DATAGRAM_BYTES_MAX);
    for (;;) {
      const datagram = receiveDatagram(fd, buffer);
      if (typeof datagram === 'number') return;
      take(datagram.from, buffer.slice(0, datagram.length));
    }
  }

  #drainDatagrams(): void {
    for (const fd of this.#datagramSockets.keys()) {
      this.#receiveDatagrams(fd, (from, bytes) => this.#waitingDatagrams.push({ from, bytes }));
    }
  }

  #answerDatagram(from: SocketAddress, bytes: Uint8Array): void {
    for (const [fd, address] of this.#datagramSockets) {
      if (address.family === from.family) sendDatagram(fd, bytes, from);
    }
  }
}
