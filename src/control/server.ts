/**
 * The control socket of a node: a Unix stream socket that only its owner may open (mode 0600). Whoever can
 * write to it decides about checkpoints and failover; there is no further authentication.
 *
 * @module
 */
import { chmodSync, existsSync, lstatSync, unlinkSync } from 'node:fs';
import { connect, createServer, type Server, type Socket } from 'node:net';
import { dirname } from 'node:path';
import { ColoError } from '../base/error.ts';
import type { FlowStatus } from '../env/engine.ts';
import type { Log } from '../env/log.ts';
import type { ProxyEvent } from '../env/messages.ts';
import type { VmEvents } from '../env/vm.ts';
import { CONTROL_CONNECTIONS_MAX, CONTROL_UNREAD_BYTES_MAX } from '../limits.ts';
import {
  type ControlRequest,
  type ControlResponse,
  LINE_TOO_LONG,
  LineSplitter,
  parseControlRequest,
} from './protocol.ts';

/** What the socket's commands reach; the commands of a VM layer and the views of an operator. */
export interface ControlHandlers extends Omit<VmEvents, 'report' | 'guestLost'> {
  status(): unknown;
  flows(countMax: number): FlowStatus[];
  /** The last events, oldest first. */
  events(countMax: number): readonly ProxyEvent[];
  /** Calls `listener` for every later event until the returned function is called. */
  followEvents(listener: (event: ProxyEvent) => void): () => void;
}

/** Counters of the socket for `status`. */
export interface ControlCounters {
  connections: number;
  requests: number;
  /** Requests answered with an error, connections refused or ended, by reason. */
  refused: Record<string, number>;
}

/** Room of `sun_path` (unix(7): 108 bytes with the terminating zero). */
const SOCKET_PATH_BYTES_MAX = 107;
/** A live process accepts at once; the socket is local. */
const STALE_CHECK_TIMEOUT_MS = 1_000;
/** Requests that one connection may have waiting; beyond this it is not read. */
const PIPELINED_REQUESTS_MAX = 16;

export class ControlServer {
  readonly path: string;
  readonly counters: ControlCounters = { connections: 0, requests: 0, refused: {} };
  readonly #handlers: ControlHandlers;
  readonly #log: Log;
  readonly #sockets = new Set<Socket>();
  readonly #followers = new WeakSet<Socket>();
  #server: Server | undefined;

  constructor(path: string, handlers: ControlHandlers, log: Log) {
    this.path = path;
    this.#handlers = handlers;
    this.#log = log;
  }

  /**
   * Binds the socket. A file left behind by a dead process is replaced; anything else is not touched.
   *
   * @throws ColoError `COLO_ERR_CONTROL_LISTEN`
   */
  async start(): Promise<void> {
    if (Buffer.byteLength(this.path) > SOCKET_PATH_BYTES_MAX) {
      throw this.#error(`the path is longer than ${SOCKET_PATH_BYTES_MAX} bytes`);
    }
    const server = createServer((socket) => this.#onConnection(socket));
    try {
      await this.#listen(server);
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'EADDRINUSE') throw this.#listenError(error);
      await this.#removeStale();
      try {
        await this.#listen(server);
      } catch (again) {
        throw this.#listenError(again);
      }
    }
    server.on('error', (error) =>
      this.#log.error({ error: error.message }, 'Control socket failed'),
    );
    this.#server = server;
  }

  /** Ends all connections and removes the socket file. */
  close(): Promise<void> {
    const server = this.#server;
    if (server === undefined) return Promise.resolve();
    this.#server = undefined;
    for (const socket of this.#sockets) {
      socket.end();
      setTimeout(() => socket.destroy(), 100).unref();
    }
    return new Promise((resolve) => server.close(() => resolve()));
  }

  #listen(server: Server): Promise<void> {
    return new Promise<void>((resolve, reject) => {
      server.once('error', reject);
      // The socket is bound inside listen(), so this mask is what the file is created with: there is no
      // moment at which others may open it.
      const mask = process.umask(0o177);
      try {
        server.listen(this.path, () => {
          server.removeListener('error', reject);
          resolve();
        });
      } finally {
        process.umask(mask);
      }
    }).then(() => chmodSync(this.path, 0o600));
  }

  /** Unlinks the file at the path when it is a socket on which nobody listens. */
  async #removeStale(): Promise<void> {
    if (!lstatSync(this.path).isSocket()) throw this.#error('the path exists and is not a socket');
    if (await isAnswered(this.path)) throw this.#error('another process is listening there');
    this.#log.warn({ path: this.path }, 'Removed a control socket that a dead process left behind');
    unlinkSync(this.path);
  }

  #listenError(error: unknown): ColoError {
    // libuv turns a bind's ENOENT into EACCES (src/unix/pipe.c, for the sake of Windows).
    const hasDirectory = existsSync(dirname(this.path));
    const code = (error as NodeJS.ErrnoException).code ?? String(error);
    const hint = hasDirectory ? code : 'ENOENT; create its directory first';
    return this.#error(hint, error);
  }

  #error(reason: string, cause?: unknown): ColoError {
    return new ColoError(
      'COLO_ERR_CONTROL_LISTEN',
      `Cannot listen on the control socket ${this.path}: ${reason}`,
      { cause, path: this.path },
    );
  }

  #refuse(reason: string): void {
    this.counters.refused[reason] = (this.counters.refused[reason] ?? 0) + 1;
  }

  #onConnection(socket: Socket): void {
    socket.on('error', () => socket.destroy()); // EPIPE, ECONNRESET: the other end is gone
    if (this.#sockets.size >= CONTROL_CONNECTIONS_MAX) {
      this.#refuse('too-many-connections');
      socket.destroy();
      return;
    }
    this.counters.connections++;
    this.#sockets.add(socket);
    const connection = new Connection(socket, (request) => this.#answer(socket, request), {
      onRequest: () => this.counters.requests++,
      onRefused: (reason) => this.#refuse(reason),
    });
    socket.on('data', (chunk: Buffer) => connection.onData(chunk));
    socket.on('close', () => {
      this.#sockets.delete(socket);
      connection.close();
    });
  }

  async #answer(socket: Socket, request: ControlRequest): Promise<ControlResponse> {
    const handlers = this.#handlers;
    switch (request.command) {
      case 'status':
        return { ok: true, result: handlers.status() };
      case 'flows':
        return { ok: true, result: handlers.flows(request.count) };
      case 'events':
        if (request.follow) this.#follow(socket);
        return { ok: true, result: handlers.events(request.count) };
      case 'checkpoint':
        if (request.step === 'begin') return handlers.checkpointBegin();
        if (request.step === 'commit') return handlers.checkpointCommit();
        return handlers.checkpointAbort(request.reason);
      case 'failover':
        return handlers.failover(request.force);
      case 'reset':
        return handlers.reset(request.reason);
    }
  }

  #follow(socket: Socket): void {
    if (this.#followers.has(socket)) return;
    this.#followers.add(socket);
    const stop = this.#handlers.followEvents((event) => {
      // An event may come between the request and its answer; the answer line must be first.
      setImmediate(() => {
        if (socket.destroyed) return;
        socket.write(`${JSON.stringify({ event })}\n`);
        if (socket.writableLength <= CONTROL_UNREAD_BYTES_MAX) return;
        this.#refuse('reader-too-slow');
        socket.destroy();
      });
    });
    socket.once('close', stop);
  }
}

interface ConnectionObserver {
  onRequest(): void;
  onRefused(reason: string): void;
}

/** One client: lines in, answers out, one after the other. */
class Connection {
  readonly #socket: Socket;
  readonly #answer: (request: ControlRequest) => Promise<ControlResponse>;
  readonly #observer: ConnectionObserver;
  readonly #splitter = new LineSplitter();
  readonly #lines: string[] = [];
  #busy = false;
  #closed = false;

  constructor(
    socket: Socket,
    answer: (request: ControlRequest) => Promise<ControlResponse>,
    observer: ConnectionObserver,
  ) {
    this.#socket = socket;
    this.#answer = answer;
    this.#observer = observer;
  }

  onData(chunk: Uint8Array): void {
    const lines = this.#splitter.push(chunk);
    if (lines === LINE_TOO_LONG) {
      this.#observer.onRefused('line-too-long');
      this.#socket.end(`${JSON.stringify({ ok: false, error: 'Request line is too long' })}\n`);
      this.close();
      return;
    }
    if (this.#closed) return;
    this.#lines.push(...lines);
    if (this.#lines.length > PIPELINED_REQUESTS_MAX) this.#socket.pause();
    if (!this.#busy) void this.#work();
  }

  close(): void {
    this.#closed = true;
    this.#lines.length = 0;
  }

  async #work(): Promise<void> {
    this.#busy = true;
    for (let line = this.#lines.shift(); line !== undefined; line = this.#lines.shift()) {
      const response = await this.#handle(line);
      if (this.#socket.writable) this.#socket.write(`${JSON.stringify(response)}\n`);
      if (this.#socket.writableLength > CONTROL_UNREAD_BYTES_MAX) {
        this.#observer.onRefused('reader-too-slow');
        this.#socket.destroy();
      }
    }
    this.#busy = false;
    if (!this.#closed) this.#socket.resume();
  }

  async #handle(line: string): Promise<ControlResponse> {
    this.#observer.onRequest();
    const request = parseControlRequest(line);
    if (typeof request === 'string') {
      this.#observer.onRefused('bad-request');
      return { ok: false, error: request };
    }
    try {
      return await this.#answer(request);
    } catch (error) {
      // The handlers report a bug in the engine to the daemon themselves; this client gets the plain text.
      this.#observer.onRefused('internal-error');
      return { ok: false, error: `Internal error: ${(error as Error).message}` };
    }
  }
}

/** Does anybody accept connections at `path`? */
function isAnswered(path: string): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = connect(path);
    const end = (answered: boolean): void => {
      socket.destroy();
      resolve(answered);
    };
    socket.setTimeout(STALE_CHECK_TIMEOUT_MS, () => end(true)); // hung, but alive
    socket.once('connect', () => end(true));
    socket.once('error', (error: NodeJS.ErrnoException) => end(error.code !== 'ECONNREFUSED'));
  });
}
