import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { frameOf, until } from '../../test/support/link-recorder.ts';
import {
  Bench,
  helloBytes,
  INSECURE,
  joinBytes,
  TIMEOUT_US,
} from '../../test/support/link-sockets.ts';
import { LINK_FRAME_CLIENT } from '../env/messages.ts';

let bench: Bench;

beforeEach(() => {
  bench = new Bench();
});

afterEach(() => bench.close());

/** Sends and checks that frames and messages arrive in order, both ways. */
async function exchange({ primary, secondary }: Awaited<ReturnType<Bench['pair']>>): Promise<void> {
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

describe('a pair over loopback', () => {
  test('plain TCP carries frames and messages in order, both ways', async () => {
    const both = await bench.pair(INSECURE);
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
    const both = await bench.pair({ kind: 'key', keyFile: bench.file('key') });
    await exchange(both);
    expect(both.primary.link.status()).toMatchObject({ connected: true, security: 'tls-psk' });
  });

  test('an idle link stays up', async () => {
    const { primary, secondary } = await bench.pair(INSECURE);
    await new Promise((resolve) => setTimeout(resolve, (3 * TIMEOUT_US) / 1_000));
    expect([...primary.heard.downs, ...secondary.heard.downs]).toEqual([]);
  });

  test('goodbye ends the link at the other end with its reason, after what was sent before', async () => {
    const { primary, secondary } = await bench.pair({ kind: 'key', keyFile: bench.file('key') });
    for (let index = 0; index < 100; index++) {
      const { buffer, offset } = frameOf(60_000, 1);
      primary.link.sendFrame(LINK_FRAME_CLIENT, 0, buffer, offset, 60_000);
    }
    await primary.link.close('maintenance');
    await until(() => secondary.heard.downs.length > 0, 'down');
    expect(secondary.heard.downs).toEqual(['goodbye: maintenance']);
    expect(secondary.heard.frames).toHaveLength(100);
    expect(secondary.heard.log.slice(-2)).toEqual(['batch-end', 'down']);
    // Who closes is told nothing any more.
    expect(primary.heard.downs).toEqual([]);
  });

  test('while the link is down, sending is counted and does nothing', async () => {
    const { link } = await bench.listening(INSECURE);
    const { buffer, offset } = frameOf(60, 1);
    expect(link.sendFrame(LINK_FRAME_CLIENT, 0, buffer, offset, 60)).toBe(false);
    link.sendMessage({ type: 'reset', reason: '' });
    link.flush();
    expect(link.status().dropped).toEqual({ 'not-connected': 2 });
  });

  test('a port in use is an error with its code', async () => {
    const { link } = await bench.listening(INSECURE);
    await expect(bench.listening(INSECURE, { port: link.port })).rejects.toMatchObject({
      code: 'COLO_ERR_PEER_LISTEN',
      errno: 'EADDRINUSE',
    });
  });
});

describe('a peer that dies', () => {
  test('the connecting end finds a primary that comes back', async () => {
    const { primary, secondary } = await bench.pair(INSECURE);
    const { port } = primary.link;
    await primary.link.close('restart');
    await until(() => secondary.heard.downs.length === 1, 'down');
    await until(() => Object.keys(secondary.link.status().refused).length > 0, 'a vain attempt');
    const again = await bench.listening(INSECURE, { port });
    await until(() => again.link.connected && secondary.link.connected, 'up again');
    expect(secondary.heard.log.filter((entry) => entry !== 'batch-end')).toEqual([
      'up',
      'down',
      'up',
    ]);
    expect(secondary.link.status().refused).toHaveProperty('connect-ECONNREFUSED');
    await exchange({ primary: again, secondary });
  });

  test('a hung peer, its socket open, is lost at the deadline', async () => {
    const { link, heard } = await bench.listening(INSECURE);
    const startMs = performance.now();
    const peer = await bench.stranger(link.port, joinBytes('secondary'));
    await until(() => link.connected, 'up');
    await until(() => heard.downs.length > 0, 'down');
    const silentMs = performance.now() - startMs;
    expect(heard.downs).toEqual(['silent for 400 ms']);
    expect(silentMs).toBeGreaterThan(TIMEOUT_US / 1_000 - 1);
    expect(silentMs).toBeLessThan(TIMEOUT_US / 1_000 + 2_000);
    await until(() => peer.isClosed, 'its socket is closed');
  });

  test('a closed socket is noticed at once', async () => {
    const { link, heard } = await bench.listening(INSECURE, { timeoutUs: 10_000_000 });
    const peer = await bench.stranger(link.port, joinBytes('secondary'));
    await until(() => link.connected, 'up');
    peer.socket.destroy();
    await until(() => heard.downs.length > 0, 'down');
    expect(link.status().downs).toEqual({ closed: 1 });
  });

  test('a peer that stops reading costs a bounded queue, and is lost', async () => {
    const queueBytesMax = 8 * 1024 * 1024;
    const { link, heard } = await bench.listening(INSECURE, { queueBytesMax });
    const peer = await bench.stranger(link.port, joinBytes('secondary'));
    await until(() => link.connected, 'up');
    peer.socket.pause();
    // It goes on sending, so that it is not simply silent.
    const beat = setInterval(
      () => peer.socket.write(Uint8Array.of(0, 0, 0, 2, 0x27, 0, 0, 0, 0, 0)),
      50,
    );
    bench.onClose(() => clearInterval(beat));
    const { buffer, offset } = frameOf(65_000, 1);
    const before = process.memoryUsage().arrayBuffers;
    let sent = 0;
    let memoryMax = 0;
    while (heard.downs.length === 0) {
      for (let index = 0; index < 64; index++) {
        if (link.sendFrame(LINK_FRAME_CLIENT, 0, buffer, offset, 65_000)) sent++;
      }
      link.flush();
      expect(link.status().queueBytes).toBeLessThanOrEqual(queueBytesMax);
      memoryMax = Math.max(memoryMax, process.memoryUsage().arrayBuffers);
      await new Promise((resolve) => setTimeout(resolve, 5));
    }
    expect(link.status().downs).toEqual({ 'not-reading': 1 });
    expect(link.status().dropped['queue-full']).toBeGreaterThan(1_000);
    expect(sent).toBeLessThan(1_000);
    expect(memoryMax - before).toBeLessThan(2 * queueBytesMax);
  });
});

describe('a second connection while one is up', () => {
  test('another node is refused, and the live link goes on', async () => {
    const both = await bench.pair(INSECURE);
    const { link } = both.primary;
    const second = await bench.stranger(
      link.port,
      helloBytes('secondary', { nodeId: 'f'.repeat(32) }),
    );
    await until(() => second.isClosed, 'refused');
    expect(Buffer.concat(second.heard).toString('latin1')).toContain('another peer is connected');
    expect(link.status().refused).toEqual({ duplicate: 1 });
    await exchange(both);
    expect(both.primary.heard.downs).toEqual([]);
  });

  test('the same node, newer, takes the place of its old connection', async () => {
    const { link, heard } = await bench.listening(INSECURE);
    const old = await bench.stranger(link.port, joinBytes('secondary', { instance: 1 }));
    await until(() => link.connected, 'up');
    await bench.stranger(link.port, joinBytes('secondary', { instance: 2 }));
    await until(() => heard.ups.length === 2, 'up again');
    expect(heard.log.filter((entry) => entry !== 'batch-end').slice(0, 3)).toEqual([
      'up',
      'down',
      'up',
    ]);
    expect(link.status().downs).toEqual({ replaced: 1 });
    expect(link.status().peer?.instance).toBe(2);
    await until(() => old.isClosed, 'the old one is closed');
    expect(link.connected).toBe(true);
  });

  test('another node takes the place of one that is silent', async () => {
    const { link, heard } = await bench.listening(INSECURE, { timeoutUs: 10_000_000 });
    await bench.stranger(link.port, joinBytes('secondary'));
    await until(() => link.connected, 'up');
    // Its timeout, the shorter one, sets the heartbeats: two of them are missing after half of it.
    await new Promise((resolve) => setTimeout(resolve, (TIMEOUT_US / 2 + 60_000) / 1_000));
    await bench.stranger(link.port, joinBytes('secondary', { nodeId: 'f'.repeat(32) }));
    await until(() => heard.ups.length === 2, 'up again');
    expect(link.status().peer?.nodeId).toBe('f'.repeat(32));
  });
});
