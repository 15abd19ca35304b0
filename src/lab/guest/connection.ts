/**
 * One TCP connection of a guest's services: socket in, service, queued output, socket out. All that a
 * checkpoint must carry is in `state`, plain data; the socket is taken and made again by `os/tcp-repair`.
 *
 * @module
 */
import {
  EAGAIN,
  EPOLLERR,
  EPOLLHUP,
  EPOLLIN,
  EPOLLOUT,
  type Epoll,
  receiveBytes,
  SHUT_WR,
  sendBytes,
  shutdownSocket,
} from '../../os/socket-calls.ts';
import { TCP_STATE, tcpState } from '../../os/tcp-repair.ts';
import { contentAt } from '../content.ts';

/** Something to be sent, in order. */
export type OutputItem =
  | { readonly kind: 'bytes'; bytes: Uint8Array }
  | { readonly kind: 'content'; readonly seed: number; offset: number; left: number };

/** Plain data: everything about a connection but its socket. */
export interface ConnectionState {
  /** Which service speaks here. */
  readonly service: string;
  /** The service's own state. */
  serviceState: unknown;
  output: OutputItem[];
  /** The peer's end of stream was read. */
  readEnded: boolean;
  /** After the output: end of stream. */
  closing: boolean;
  /** Our end of stream was given to the kernel. */
  writeEnded: boolean;
  /** The service waits for its timer: milliseconds left when the state was taken; -1 without a timer. */
  timerMs: number;
}

export interface Service {
  /** State of a new connection; may queue output. */
  open(connection: Connection): unknown;
  /** Bytes of the peer; borrowed for the call. */
  onBytes(connection: Connection, bytes: Uint8Array): void;
  /** The peer ended its stream. */
  onEnd(connection: Connection): void;
  onTimer(connection: Connection): void;
  /** Called before the state is taken: brings into it what the service keeps elsewhere. */
  suspend?(connection: Connection): void;
}

/** Output queued at which a connection stops reading, so that a peer cannot make it grow without bound. */
const OUTPUT_BYTES_MAX = 1024 * 1024;
const READ_BYTES = 256 * 1024;
/** Read from or write to one connection before the others have their turn. */
const TURN_BYTES_MAX = 1024 * 1024;
const readBuffer = new Uint8Array(new ArrayBuffer(READ_BYTES));

export function newConnectionState(service: string): ConnectionState {
  return {
    service,
    serviceState: undefined,
    output: [],
    readEnded: false,
    closing: false,
    writeEnded: false,
    timerMs: -1,
  };
}

export class Connection {
  readonly fd: number;
  readonly state: ConnectionState;
  readonly #service: Service;
  readonly #epoll: Epoll;
  #timer: NodeJS.Timeout | undefined;
  #timerAtMs = 0;

  constructor(fd: number, state: ConnectionState, service: Service, epoll: Epoll) {
    this.fd = fd;
    this.state = state;
    this.#service = service;
    this.#epoll = epoll;
  }

  /** Begins a new connection. */
  open(): void {
    this.state.serviceState = this.#service.open(this);
  }

  /** Queues bytes; they must not change afterwards. */
  write(bytes: Uint8Array): void {
    this.state.output.push({ kind: 'bytes', bytes });
  }

  /** Queues `bytes` bytes of content. */
  writeContent(seed: number, offset: number, bytes: number): void {
    if (bytes > 0) this.state.output.push({ kind: 'content', seed, offset, left: bytes });
  }

  /** Ends the stream once all output is sent. */
  end(): void {
    this.state.closing = true;
  }

  /** Calls the service's `onTimer` once, after `delayMs`. */
  startTimer(delayMs: number): void {
    this.#timerAtMs = performance.now() + delayMs;
    this.#timer = setTimeout(() => {
      this.#timer = undefined;
      this.state.timerMs = -1;
      this.#service.onTimer(this);
      this.flush();
    }, delayMs);
  }

  /** Stops; afterwards everything is in `state`. */
  freeze(): void {
    this.#service.suspend?.(this);
    if (this.#timer === undefined) return;
    clearTimeout(this.#timer);
    this.#timer = undefined;
    this.state.timerMs = Math.max(this.#timerAtMs - performance.now(), 0);
  }

  /** Goes on after {@link freeze}, or in another guest. */
  resume(): void {
    if (this.state.timerMs >= 0) this.startTimer(this.state.timerMs);
    this.flush();
  }

  /** Handles readiness. Returns false when the connection is over and its socket may be closed. */
  onReady(events: number): boolean {
    if ((events & EPOLLERR) !== 0) return false;
    if ((events & (EPOLLIN | EPOLLHUP)) !== 0 && !this.#read()) return false;
    return this.flush();
  }

  #read(): boolean {
    for (let total = 0; total < TURN_BYTES_MAX && !this.state.readEnded; ) {
      if (this.#outputBytes() > OUTPUT_BYTES_MAX) return true;
      const count = receiveBytes(this.fd, readBuffer);
      if (count === -EAGAIN) return true;
      if (count < 0) return false;
      if (count === 0) {
        this.state.readEnded = true;
        this.#service.onEnd(this);
        return true;
      }
      total += count;
      this.#service.onBytes(this, readBuffer.subarray(0, count));
    }
    return true;
  }

  /** Only `bytes` items count: content costs nothing until it is sent. */
  #outputBytes(): number {
    let sum = 0;
    for (const item of this.state.output) sum += item.kind === 'bytes' ? item.bytes.length : 0;
    return sum;
  }

  /** Sends what the socket takes, and says what to wait for. Returns false when the connection is over. */
  flush(): boolean {
    const { state } = this;
    let blocked = false;
    for (let total = 0; state.output.length > 0 && !blocked && total < TURN_BYTES_MAX; ) {
      const sent = this.#sendSome(state.output[0]!);
      if (sent < 0 && sent !== -EAGAIN) return false;
      blocked = sent === -EAGAIN;
      total += Math.max(sent, 0);
    }
    if (state.output.length === 0 && state.closing && !state.writeEnded) {
      shutdownSocket(this.fd, SHUT_WR);
      state.writeEnded = true;
    }
    if (state.readEnded && state.writeEnded) {
      // The kernel would call this readiness; when it is really over is asked for by time (isOver).
      this.#epoll.forget(this.fd);
      return true;
    }
    const reading = !state.readEnded && this.#outputBytes() <= OUTPUT_BYTES_MAX;
    this.#epoll.watch(this.fd, (reading ? EPOLLIN : 0) | (state.output.length > 0 ? EPOLLOUT : 0));
    return true;
  }

  /** Both ends have ended their streams, and our end of stream is acknowledged. */
  isOver(): boolean {
    const { state } = this;
    return state.readEnded && state.writeEnded && tcpState(this.fd) === TCP_STATE.CLOSE;
  }

  #sendSome(item: OutputItem): number {
    const bytes = item.kind === 'bytes' ? item.bytes : contentAt(item.seed, item.offset, item.left);
    const sent = bytes.length === 0 ? 0 : sendBytes(this.fd, bytes);
    if (sent < 0) return sent;
    if (item.kind === 'bytes') {
      item.bytes = item.bytes.subarray(sent);
      if (item.bytes.length === 0) this.state.output.shift();
    } else {
      item.offset += sent;
      item.left -= sent;
      if (item.left === 0) this.state.output.shift();
    }
    return sent;
  }

  dispose(): void {
    clearTimeout(this.#timer);
    this.#epoll.forget(this.fd);
  }
}
