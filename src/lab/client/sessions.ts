/**
 * Connections that stay open between the lab's steps: opened before a failover, used again after it.
 *
 * @module
 */
import type { Socket } from 'node:net';
import { GREETING, PORTS } from '../guest/services.ts';
import { acceptFromGuest } from './accept.ts';
import { type Family, getText, openConnection } from './http.ts';

export interface SessionRequest {
  readonly step: 'open' | 'talk' | 'close';
  readonly name: string;
  /** For `open`. */
  readonly family?: Family;
  readonly openedBy?: 'client' | 'guest';
  /** For `open` by the guest: the port it connects to. */
  readonly port?: number;
  /** For `talk`: bytes sent and wanted back. */
  readonly bytes?: number;
}

export interface SessionResult {
  /** By which the connection is found in a capture. */
  readonly clientPort: number;
  /** `talk`: from the first byte sent to the last one back. */
  readonly ms: number;
}

interface Session {
  readonly socket: Socket;
  readonly clientPort: number;
  readonly talk: (bytes: number) => Promise<void>;
  /** Why it ended; undefined while it lives. */
  ended: string | undefined;
}

const TALK_MS_MAX = 20_000;

export class Sessions {
  readonly #sessions = new Map<string, Session>();

  /** Rejects when the session's connection has ended in any way. */
  async carryOut(request: SessionRequest): Promise<SessionResult> {
    const startMs = performance.now();
    if (request.step === 'open') {
      const session = await this.#open(request);
      this.#sessions.set(request.name, session);
      return { clientPort: session.clientPort, ms: performance.now() - startMs };
    }
    const session = this.#sessions.get(request.name);
    if (session === undefined) throw new Error(`no session ${request.name}`);
    if (session.ended !== undefined) throw new Error(`${request.name}: ${session.ended}`);
    if (request.step === 'talk') await session.talk(request.bytes ?? 64);
    else {
      this.#sessions.delete(request.name);
      session.socket.end();
    }
    return { clientPort: session.clientPort, ms: performance.now() - startMs };
  }

  async #open(request: SessionRequest): Promise<Session> {
    const family = request.family ?? 4;
    const byGuest = request.openedBy === 'guest';
    const socket = byGuest
      ? await acceptFromGuest(family, request.port!)
      : await openConnection(family, PORTS.greeter);
    await readExactly(socket, Buffer.from(GREETING));
    const session: Session = {
      socket,
      clientPort: socket.localPort!,
      ended: undefined,
      // What the guest opened speaks HTTP, what we opened echoes.
      talk: (bytes) => (byGuest ? talkHttp(socket) : echo(socket, bytes)),
    };
    socket.on('error', (error) => {
      session.ended ??= error.message;
    });
    socket.on('close', () => {
      session.ended ??= 'closed by the guest';
    });
    return session;
  }
}

async function talkHttp(socket: Socket): Promise<void> {
  const text = await getText(socket, '/bytes/16');
  if (Buffer.byteLength(text) === 0) throw new Error('an empty answer');
}

async function echo(socket: Socket, bytes: number): Promise<void> {
  const sent = Buffer.alloc(bytes, 'echo?');
  const back = readExactly(socket, sent);
  socket.write(sent);
  await back;
}

/** Reads `wanted`, no more and nothing else. */
export function readExactly(socket: Socket, wanted: Buffer): Promise<void> {
  return new Promise((resolve, reject) => {
    let received = Buffer.alloc(0);
    const done = (error?: Error): void => {
      clearTimeout(timer);
      socket.off('data', onData).off('error', done).off('close', onClose);
      if (error === undefined) resolve();
      else reject(error);
    };
    const timer = setTimeout(
      () => done(new Error(`only ${received.length} of ${wanted.length} bytes came`)),
      TALK_MS_MAX,
    );
    const onClose = (): void => done(new Error('closed by the guest'));
    const onData = (bytes: Buffer): void => {
      received = Buffer.concat([received, bytes]);
      if (received.length < wanted.length) return;
      done(received.equals(wanted) ? undefined : new Error('the guest said something else'));
    };
    socket.on('data', onData).on('error', done).on('close', onClose);
  });
}
