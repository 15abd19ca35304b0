/**
 * Links over loopback sockets for the link's tests, with their cleaning up.
 *
 * @module
 */
import { randomBytes } from 'node:crypto';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { connect, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { encodeHeartbeat, encodeHello } from '../../src/codec/link-encode.ts';
import type { PeerHello } from '../../src/env/link.ts';
import type { Role } from '../../src/env/messages.ts';
import { ConnectingLink } from '../../src/link/connect.ts';
import type { LinkOptions } from '../../src/link/core.ts';
import { ListeningLink } from '../../src/link/listen.ts';
import { type LinkSecurityOptions, loadLinkSecurity } from '../../src/link/security.ts';
import { frameOf, nodeOf, Recorder, until } from './link-recorder.ts';

/** Peer timeout of the links here: short, for tests of silence. */
export const TIMEOUT_US = 400_000;

export const INSECURE: LinkSecurityOptions = { kind: 'insecure' };

type Overrides = Partial<Omit<LinkOptions, 'security'>>;

/** A socket that is no link, and what it heard. */
export interface Stranger {
  readonly socket: Socket;
  readonly heard: Uint8Array[];
  isClosed: boolean;
}

/** What one test opens; `close` ends all of it. */
export class Bench {
  readonly directory = mkdtempSync(join(tmpdir(), 'colo-link-'));
  readonly #cleanUps: (() => unknown)[] = [];

  onClose(cleanUp: () => unknown): void {
    this.#cleanUps.push(cleanUp);
  }

  async close(): Promise<void> {
    for (const cleanUp of this.#cleanUps.reverse()) await cleanUp();
    rmSync(this.directory, { recursive: true });
  }

  /** Writes a file, by default a random key, of mode 0600. */
  file(name: string, content: Uint8Array | string = randomBytes(32).toString('base64')): string {
    const path = join(this.directory, name);
    writeFileSync(path, content, { mode: 0o600 });
    return path;
  }

  async listening(security: LinkSecurityOptions, overrides: Overrides = {}) {
    const link = new ListeningLink({
      host: '127.0.0.1',
      port: 0,
      security: loadLinkSecurity(security, 'primary'),
      localNode: nodeOf('primary'),
      software: 'test',
      timeoutUs: TIMEOUT_US,
      ...overrides,
    });
    const heard = new Recorder();
    await link.start(heard);
    this.onClose(() => link.close('test over'));
    return { link, heard };
  }

  async connecting(security: LinkSecurityOptions, port: number, overrides: Overrides = {}) {
    const link = new ConnectingLink({
      host: '127.0.0.1',
      port,
      security: loadLinkSecurity(security, 'secondary'),
      localNode: nodeOf('secondary'),
      software: 'test',
      timeoutUs: TIMEOUT_US,
      ...overrides,
    });
    const heard = new Recorder();
    await link.start(heard);
    this.onClose(() => link.close('test over'));
    return { link, heard };
  }

  /** Both ends up. */
  async pair(security: LinkSecurityOptions, overrides: Overrides = {}) {
    const primary = await this.listening(security, overrides);
    const secondary = await this.connecting(security, primary.link.port, overrides);
    await until(() => primary.link.connected && secondary.link.connected, 'link up');
    return { primary, secondary };
  }

  /** A raw TCP client that has sent `bytes`. */
  async stranger(port: number, bytes: Uint8Array | string = ''): Promise<Stranger> {
    const socket = connect(port, '127.0.0.1');
    const stranger: Stranger = { socket, heard: [], isClosed: false };
    socket.on('error', () => {});
    socket.on('data', (chunk) => stranger.heard.push(chunk));
    socket.on('close', () => {
      stranger.isClosed = true;
    });
    this.onClose(() => socket.destroy());
    await new Promise((resolve) => socket.once('connect', resolve));
    if (bytes.length > 0) socket.write(bytes);
    return stranger;
  }
}

/** A hello as a node of this role would send it. */
export function helloBytes(role: Role, overrides: Partial<PeerHello> = {}): Uint8Array {
  const { buffer } = frameOf(1_000, 0);
  const hello: PeerHello = {
    role,
    nodeId: '00112233445566778899aabbccddeeff',
    instance: 1,
    epoch: 0,
    state: 'unprotected',
    software: 'raw',
    heartbeatUs: TIMEOUT_US / 4,
    timeoutUs: TIMEOUT_US,
    ...overrides,
  };
  return buffer.bytes.slice(0, encodeHello(buffer, 0, hello, false));
}

/** What a node sends to come up at a listening end: its hello, and something after the welcome. */
export function joinBytes(role: Role, overrides: Partial<PeerHello> = {}): Uint8Array {
  const { buffer } = frameOf(1_000, 0);
  const beat = { sentUs: 1, echoUs: 0, echoDelayUs: 0 };
  const heartbeat = buffer.bytes.slice(0, encodeHeartbeat(buffer, 0, beat));
  return Buffer.concat([helloBytes(role, overrides), heartbeat]);
}
