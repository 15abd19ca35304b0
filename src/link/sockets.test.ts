import { randomBytes } from 'node:crypto';
import { chmodSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { connect, createServer, type Server, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { LinkDecoder } from '../codec/link-decode.ts';
import { encodeHello } from '../codec/link-encode.ts';
import type { PeerHello } from '../env/link.ts';
import { LINK_FRAME_CLIENT, LINK_FRAME_SECONDARY } from '../env/messages.ts';
import { ConnectingLink } from './connect.ts';
import type { LinkOptions } from './core.ts';
import { ListeningLink } from './listen.ts';
import { type LinkSecurityOptions, loadLinkSecurity } from './security.ts';
import { frameOf, nodeOf, Recorder, until } from './test-peers.ts';

const TIMEOUT_US = 400_000;
const INSECURE: LinkSecurityOptions = { kind: 'insecure' };

let directory = '';
let cleanUps: (() => unknown)[] = [];

beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), 'colo-link-'));
  cleanUps = [];
});

afterEach(async () => {
  for (const cleanUp of cleanUps.reverse()) await cleanUp();
  rmSync(directory, { recursive: true });
});

/** Writes a key file of mode 0600. */
function keyFile(name: string, content: Uint8Array | string = randomBytes(32)): string {
  const path = join(directory, name);
  writeFileSync(path, content, { mode: 0o600 });
  return path;
}

type Overrides = Partial<Omit<LinkOptions, 'security'>>;

async function listening(security: LinkSecurityOptions, overrides: Overrides = {}) {
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
  cleanUps.push(() => link.close('test over'));
  return { link, heard };
}

async function connecting(security: LinkSecurityOptions, port: number, overrides: Overrides = {}) {
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
  cleanUps.push(() => link.close('test over'));
  return { link, heard };
}

/** Both ends up. */
async function pair(security: LinkSecurityOptions, overrides: Overrides = {}) {
  const primary = await listening(security, overrides);
  const secondary = await connecting(security, primary.link.port, overrides);
  await until(() => primary.link.connected && secondary.link.connected, 'link up');
  return { primary, secondary };
}

/** A raw TCP client that records whether anything was said to it. */
async function stranger(
  port: number,
  bytes: Uint8Array | string = '',
): Promise<Socket & { heardBytes: number }> {
  const socket = Object.assign(connect(port, '127.0.0.1'), { heardBytes: 0 });
  socket.on('error', () => {});
  socket.on('data', (chunk) => {
    socket.heardBytes += chunk.length;
  });
  await new Promise((resolve) => socket.once('connect', resolve));
  if (bytes.length > 0) socket.write(bytes);
  cleanUps.push(() => socket.destroy());
  return socket;
}

function helloBytes(role: 'primary' | 'secondary', overrides: Partial<PeerHello> = {}): Uint8Array {
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
  const length = encodeHello(buffer, 0, hello, false);
  return buffer.bytes.slice(0, length);
}

/** Sends and checks that frames and messages arrive in order, both ways. */
async function exchange({ primary, secondary }: Awaited<ReturnType<typeof pair>>): Promise<void> {
  for (const [from, to] of [
    [primary, secondary],
    [secondary, primary],
  ] as const) {
    const seen = to.heard.log.length;
    for (const length of [60, 1_400, 65_549]) {
      const { buffer, offset } = frameOf(length, length & 0xff);
      expect(from.link.sendFrame(LINK_FRAME_CLIENT, 3, buffer, offset, length)).toBe(true);
      // The memory was copied: what happens to it now does not matter.
      buffer.bytes.fill(0xee);
    }
    from.link.sendMessage({ type: 'checkpoint-begin', epoch: 4 });
    from.link.flush();
    await until(() => to.heard.log.slice(seen).includes('checkpoint-begin'), 'message');
    const order = to.heard.log.slice(seen).filter((entry) => entry !== 'batch-end');
    expect(order).toEqual(['frame 1', 'frame 1', 'frame 1', 'checkpoint-begin']);
    const frames = to.heard.frames.slice(-3);
    expect(frames.map((frame) => frame.bytes.length)).toEqual([60, 1_400, 65_549]);
    for (const frame of frames) {
      expect([...frame.vnet]).toEqual([1, 2, 3, 4, 5, 6, 7, 8, 9, 10]);
      expect(frame.epoch).toBe(3);
      expect(frame.bytes.every((byte) => byte === (frame.bytes.length & 0xff))).toBe(true);
    }
  }
}

describe('both ends over loopback', () => {
  test('plain TCP carries frames and messages in order, both ways', async () => {
    const both = await pair(INSECURE);
    await exchange(both);
    expect(both.primary.heard.ups[0]).toMatchObject({
      role: 'secondary',
      epoch: 7,
      software: 'test',
    });
    expect(both.secondary.heard.ups[0]).toMatchObject({ role: 'primary', state: 'unprotected' });
    await until(() => both.primary.link.status().rttUs > 0, 'round-trip time');
  });

  test('a pre-shared key carries the same', async () => {
    const both = await pair({ kind: 'key', keyFile: keyFile('key') });
    await exchange(both);
    expect(both.primary.link.status().security).toBe('tls-psk');
  });

  test('goodbye ends the link at the other end with its reason', async () => {
    const { primary, secondary } = await pair({ kind: 'key', keyFile: keyFile('key') });
    await primary.link.close('maintenance');
    await until(() => secondary.heard.downs.length > 0, 'down');
    expect(secondary.heard.downs).toEqual(['goodbye: maintenance']);
    // Who closes is told nothing any more.
    expect(primary.heard.downs).toEqual([]);
  });
});
