/**
 * The services of a guest: HTTP/1.1 (enough for an untouched curl), echo, and a chargen that speaks first.
 * Each is a state machine over plain data, so that a checkpoint can stop it between any two bytes;
 * what they answer depends on the request alone, except where a guest is meant to differ (`/random`).
 *
 * @module
 */
import { randomBytes } from 'node:crypto';
import { ChainDigest, type ChainState } from '../content.ts';
import type { Connection, Service } from './connection.ts';

/** What a service may ask of the guest it runs in. */
export interface GuestActions {
  /** Opens a connection from the guest, with a fixed local port, and serves HTTP on it. */
  openConnection(address: string, port: number, localPort: number): void;
  /** A token was made up that the other guest cannot know. */
  reportToken(token: string): void;
}

/** TCP ports of the services; the UDP service has the echo port too. */
export const PORTS = { http: 80, echo: 7, greeter: 13 } as const;
/** What the greeter and a connection opened by a guest say first. */
export const GREETING = 'colo-proxy lab guest ready\n';

const HEAD_BYTES_MAX = 16 * 1024;

interface HttpState {
  /** The unfinished request head. */
  head: string;
  /** The request whose body is being read. */
  body:
    | { left: number; readonly bytes: number; digest: ChainState; keepAlive: boolean }
    | undefined;
  /** A `/slow` answer is due; input that came meanwhile waits here. */
  slow: { readonly keepAlive: boolean; waiting: Uint8Array } | undefined;
  /** The client has ended its stream while a `/slow` answer was due. */
  ended: boolean;
}

export function createServices(actions: GuestActions): Readonly<Record<string, Service>> {
  const http = new HttpService(actions, '');
  return {
    http,
    // The same service on connections that the guest opened: it greets first.
    'http-opened': new HttpService(actions, GREETING),
    echo: new EchoService(),
    greeter: new GreeterService(),
  };
}

class EchoService implements Service {
  open(): unknown {
    return undefined;
  }
  onBytes(connection: Connection, bytes: Uint8Array): void {
    connection.write(bytes.slice());
  }
  onEnd(connection: Connection): void {
    connection.end();
  }
  onTimer(): void {}
}

/** Greets, then behaves as echo does. */
class GreeterService extends EchoService {
  override open(connection?: Connection): unknown {
    connection?.write(Buffer.from(GREETING));
    return undefined;
  }
}

class HttpService implements Service {
  readonly #actions: GuestActions;
  readonly #greeting: string;
  /** Digests of bodies in progress; their serialisable form is taken by `suspend`. */
  readonly #digests = new WeakMap<Connection, ChainDigest>();

  constructor(actions: GuestActions, greeting: string) {
    this.#actions = actions;
    this.#greeting = greeting;
  }

  open(connection: Connection): HttpState {
    if (this.#greeting !== '') connection.write(Buffer.from(this.#greeting));
    return { head: '', body: undefined, slow: undefined, ended: false };
  }

  onEnd(connection: Connection): void {
    const state = connection.state.serviceState as HttpState;
    state.ended = true;
    if (state.slow === undefined) connection.end();
  }

  onTimer(connection: Connection): void {
    const state = connection.state.serviceState as HttpState;
    const { slow } = state;
    if (slow === undefined) return;
    state.slow = undefined;
    respond(connection, 200, Buffer.from('slow\n'), slow.keepAlive);
    this.onBytes(connection, slow.waiting);
    if (state.ended && state.slow === undefined) connection.end();
  }

  onBytes(connection: Connection, bytes: Uint8Array): void {
    const state = connection.state.serviceState as HttpState;
    let rest = bytes;
    while (rest.length > 0 && !connection.state.closing) {
      if (state.slow !== undefined) {
        state.slow.waiting = Buffer.concat([state.slow.waiting, rest]);
        return;
      }
      rest =
        state.body === undefined
          ? this.#onHead(connection, state, rest)
          : this.#onBody(connection, state, rest);
    }
  }

  /** Brings the running digest into the state. */
  suspend(connection: Connection): void {
    const { body } = connection.state.serviceState as HttpState;
    const digest = this.#digests.get(connection);
    if (body !== undefined && digest !== undefined) body.digest = digest.state();
  }

  #onBody(connection: Connection, state: HttpState, bytes: Uint8Array): Uint8Array {
    const body = state.body!;
    let digest = this.#digests.get(connection);
    if (digest === undefined) {
      digest = new ChainDigest(body.digest);
      this.#digests.set(connection, digest);
    }
    const count = Math.min(body.left, bytes.length);
    digest.update(bytes.subarray(0, count));
    body.left -= count;
    if (body.left === 0) {
      this.#digests.delete(connection);
      state.body = undefined;
      respond(connection, 200, Buffer.from(`${digest.finish()} ${body.bytes}\n`), body.keepAlive);
    }
    return bytes.subarray(count);
  }

  #onHead(connection: Connection, state: HttpState, bytes: Uint8Array): Uint8Array {
    const before = state.head.length;
    state.head += Buffer.from(bytes.subarray(0, HEAD_BYTES_MAX)).toString('latin1');
    const end = state.head.indexOf('\r\n\r\n');
    if (end < 0) {
      if (state.head.length > HEAD_BYTES_MAX) respond(connection, 431, Buffer.alloc(0), false);
      return bytes.subarray(HEAD_BYTES_MAX);
    }
    const request = parseHead(state.head.slice(0, end));
    state.head = '';
    if (request === undefined) respond(connection, 400, Buffer.alloc(0), false);
    else this.#onRequest(connection, state, request);
    return bytes.subarray(end + 4 - before);
  }

  #onRequest(connection: Connection, state: HttpState, request: Request): void {
    const { method, url, keepAlive } = request;
    const [, verb, argument] = url.pathname.split('/');
    if (method === 'PUT' || method === 'POST') {
      this.#onUpload(connection, state, request);
    } else if (method !== 'GET' && method !== 'HEAD') {
      respond(connection, 405, Buffer.alloc(0), keepAlive);
    } else if (verb === 'bytes') {
      const bytes = Number(argument);
      const seed = Number(url.searchParams.get('seed') ?? 1);
      const offset = Number(url.searchParams.get('offset') ?? 0);
      if (![bytes, seed, offset].every((n) => Number.isSafeInteger(n) && n >= 0)) {
        respond(connection, 400, Buffer.alloc(0), keepAlive);
        return;
      }
      writeHead(connection, 200, bytes, keepAlive);
      if (method === 'GET') connection.writeContent(seed, offset, bytes);
      if (!keepAlive) connection.end();
    } else if (verb === 'random') {
      const token = randomBytes(16).toString('hex');
      this.#actions.reportToken(token);
      respond(connection, 200, Buffer.from(`${token}\n`), keepAlive);
    } else if (verb === 'slow') {
      state.slow = { keepAlive, waiting: new Uint8Array(0) };
      connection.startTimer(Math.min(Number(argument ?? 1000) || 1000, 60_000));
    } else if (verb === 'open') {
      const { searchParams: query } = url;
      respond(connection, 200, Buffer.from('opening\n'), keepAlive);
      this.#actions.openConnection(
        query.get('address') ?? '',
        Number(query.get('port')),
        Number(query.get('local')),
      );
    } else {
      respond(connection, 404, Buffer.from('not found\n'), keepAlive);
    }
  }

  #onUpload(connection: Connection, state: HttpState, request: Request): void {
    const length = Number(request.headers.get('content-length') ?? Number.NaN);
    if (!Number.isSafeInteger(length) || length < 0) {
      respond(connection, 411, Buffer.from('Content-Length is required\n'), false);
      return;
    }
    if (request.headers.get('expect')?.toLowerCase() === '100-continue') {
      connection.write(Buffer.from('HTTP/1.1 100 Continue\r\n\r\n'));
    }
    const digest = new ChainDigest();
    if (length === 0) {
      respond(connection, 200, Buffer.from(`${digest.finish()} 0\n`), request.keepAlive);
      return;
    }
    state.body = {
      left: length,
      bytes: length,
      digest: digest.state(),
      keepAlive: request.keepAlive,
    };
    this.#digests.delete(connection);
  }
}

interface Request {
  readonly method: string;
  readonly url: URL;
  readonly headers: ReadonlyMap<string, string>;
  readonly keepAlive: boolean;
}

function parseHead(text: string): Request | undefined {
  const [first = '', ...lines] = text.split('\r\n');
  const [method = '', target = '', version = ''] = first.split(' ');
  if (!target.startsWith('/') || !/^HTTP\/1\.[01]$/.test(version)) return undefined;
  const headers = new Map<string, string>();
  for (const line of lines) {
    const colon = line.indexOf(':');
    if (colon > 0) headers.set(line.slice(0, colon).toLowerCase(), line.slice(colon + 1).trim());
  }
  const connection = headers.get('connection')?.toLowerCase();
  const keepAlive = version === 'HTTP/1.1' ? connection !== 'close' : connection === 'keep-alive';
  return { method, url: new URL(target, 'http://guest'), headers, keepAlive };
}

const REASONS: Readonly<Record<number, string>> = {
  200: 'OK',
  400: 'Bad Request',
  404: 'Not Found',
  405: 'Method Not Allowed',
  411: 'Length Required',
  431: 'Request Header Fields Too Large',
};

/** No Date and no other header that two guests would fill differently. */
function writeHead(
  connection: Connection,
  status: number,
  bytes: number,
  keepAlive: boolean,
): void {
  const lines = [
    `HTTP/1.1 ${status} ${REASONS[status]}`,
    'Server: colo-proxy-lab',
    'Content-Type: application/octet-stream',
    `Content-Length: ${bytes}`,
    `Connection: ${keepAlive ? 'keep-alive' : 'close'}`,
  ];
  connection.write(Buffer.from(`${lines.join('\r\n')}\r\n\r\n`));
}

function respond(
  connection: Connection,
  status: number,
  body: Uint8Array,
  keepAlive: boolean,
): void {
  writeHead(connection, status, body.length, keepAlive);
  connection.write(body);
  if (!keepAlive) connection.end();
}
