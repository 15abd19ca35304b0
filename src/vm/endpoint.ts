/**
 * Addresses of VM layers, `unix:PATH` or `HOST:PORT`: reading them, listening and connecting there.
 *
 * A Unix socket is made with mode 0600; a TCP port has no authentication at all (neither protocol knows one),
 * which is said in the log unless it is bound to a loopback address.
 *
 * @module
 */
import { lstatSync, unlinkSync } from 'node:fs';
import { connect, isIP, type Server, type Socket } from 'node:net';
import { ColoError } from '../base/error.ts';

export type Endpoint =
  | { readonly kind: 'unix'; readonly path: string }
  | { readonly kind: 'tcp'; readonly host: string; readonly port: number };

/** Room of `sun_path` (unix(7): 108 bytes with the terminating zero). */
const SOCKET_PATH_BYTES_MAX = 107;
/** A live process accepts at once; the socket is local. */
const STALE_CHECK_TIMEOUT_MS = 1_000;
/** A dead peer is noticed although nothing is sent for hours. */
const KEEPALIVE_IDLE_MS = 10_000;

/**
 * Reads `unix:PATH`, `HOST:PORT` or `[IPV6]:PORT`.
 *
 * @throws ColoError `COLO_ERR_VM_SPEC`
 */
export function parseEndpoint(text: string): Endpoint {
  const fail = (why: string) =>
    new ColoError('COLO_ERR_VM_SPEC', `Expected unix:PATH or HOST:PORT; got '${text}': ${why}`);
  if (text.startsWith('unix:')) {
    const path = text.slice('unix:'.length);
    if (path === '' || path.includes('\0')) throw fail('the path is empty or holds a NUL');
    if (Buffer.byteLength(path) > SOCKET_PATH_BYTES_MAX) {
      throw fail(`the path is longer than ${SOCKET_PATH_BYTES_MAX} bytes`);
    }
    return { kind: 'unix', path };
  }
  const match = /^(?:\[([^\]]+)\]|([^:[\]\s]+)):(\d{1,5})$/.exec(text);
  const port = Number(match?.[3]);
  if (match === null || port < 1 || port > 65_535) throw fail('the port must be 1 to 65535');
  const host = match[1] ?? match[2] ?? '';
  if (match[1] !== undefined && isIP(host) !== 6) throw fail('the brackets hold no IPv6 address');
  return { kind: 'tcp', host, port };
}

/** As `parseEndpoint` reads it. */
export function endpointText(endpoint: Endpoint): string {
  if (endpoint.kind === 'unix') return `unix:${endpoint.path}`;
  const host = endpoint.host.includes(':') ? `[${endpoint.host}]` : endpoint.host;
  return `${host}:${endpoint.port}`;
}

/** Can only programs of this machine reach it? */
export function isLocal(endpoint: Endpoint): boolean {
  if (endpoint.kind === 'unix') return true;
  return endpoint.host === 'localhost' || endpoint.host === '::1' || /^127\./.test(endpoint.host);
}

/** Connects; the caller handles `connect`, `error` and `close`. */
export function connectEndpoint(endpoint: Endpoint): Socket {
  const socket =
    endpoint.kind === 'unix'
      ? connect({ path: endpoint.path })
      : connect({ host: endpoint.host, port: endpoint.port, noDelay: true });
  if (endpoint.kind === 'tcp') socket.setKeepAlive(true, KEEPALIVE_IDLE_MS);
  return socket;
}

/** Sets what every accepted TCP connection needs. */
export function prepareAccepted(socket: Socket): void {
  socket.setNoDelay(true);
  socket.setKeepAlive(true, KEEPALIVE_IDLE_MS);
}

/**
 * Binds `server`. A socket file left behind by a dead process is replaced; anything else is not touched.
 *
 * @throws ColoError `COLO_ERR_VM_LISTEN`
 */
export async function listenEndpoint(server: Server, endpoint: Endpoint): Promise<void> {
  try {
    await listen(server, endpoint);
  } catch (error) {
    const stale = endpoint.kind === 'unix' && codeOf(error) === 'EADDRINUSE';
    if (!stale) throw listenError(endpoint, codeOf(error), error);
    await removeStale(endpoint.path, endpoint);
    try {
      await listen(server, endpoint);
    } catch (again) {
      throw listenError(endpoint, codeOf(again), again);
    }
  }
}

function codeOf(error: unknown): string {
  const { code, message } = error as NodeJS.ErrnoException;
  return code ?? message;
}

function listenError(endpoint: Endpoint, why: string, cause?: unknown): ColoError {
  const path = endpointText(endpoint);
  return new ColoError('COLO_ERR_VM_LISTEN', `Cannot listen on ${path}: ${why}`, { cause, path });
}

function listen(server: Server, endpoint: Endpoint): Promise<void> {
  return new Promise((resolve, reject) => {
    const done = () => {
      server.removeListener('error', reject);
      resolve();
    };
    server.once('error', reject);
    if (endpoint.kind === 'tcp') {
      server.listen({ host: endpoint.host, port: endpoint.port }, done);
      return;
    }
    // The socket is bound inside listen(): at no moment may others open it.
    const mask = process.umask(0o177);
    try {
      server.listen(endpoint.path, done);
    } finally {
      process.umask(mask);
    }
  });
}

async function removeStale(path: string, endpoint: Endpoint): Promise<void> {
  let isSocket: boolean;
  try {
    isSocket = lstatSync(path).isSocket();
  } catch (error) {
    // Gone meanwhile: all the better.
    if (codeOf(error) === 'ENOENT') return;
    throw listenError(endpoint, codeOf(error), error);
  }
  if (!isSocket) throw listenError(endpoint, 'the path exists and is not a socket');
  if (await isAnswered(path)) throw listenError(endpoint, 'another process is listening there');
  unlinkSync(path);
}

/** Does somebody accept connections at this path? */
function isAnswered(path: string): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = connect({ path, timeout: STALE_CHECK_TIMEOUT_MS });
    const finish = (answered: boolean) => {
      socket.destroy();
      resolve(answered);
    };
    socket.once('connect', () => finish(true));
    socket.once('timeout', () => finish(true));
    socket.once('error', (error) => finish(codeOf(error) !== 'ECONNREFUSED'));
  });
}
