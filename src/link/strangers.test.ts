import { randomBytes } from 'node:crypto';
import { chmodSync } from 'node:fs';
import { connect as connectTls, createServer as createTlsServer } from 'node:tls';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { createCertificate, type TestCertificate } from '../../test/support/certificates.ts';
import { frameOf, until } from '../../test/support/link-recorder.ts';
import { Bench, helloBytes, INSECURE, type Stranger } from '../../test/support/link-sockets.ts';
import { LINK_FRAME_CLIENT } from '../env/messages.ts';
import { type LinkSecurityOptions, loadLinkSecurity } from './security.ts';

let bench: Bench;

beforeEach(() => {
  bench = new Bench();
});

afterEach(() => bench.close());

const sum = (counts: Record<string, number>): number =>
  Object.values(counts).reduce((total, count) => total + count, 0);

describe('with a pre-shared key', () => {
  test('a wrong key is refused at both ends by that name', async () => {
    const primary = await bench.listening({ kind: 'key', keyFile: bench.file('right') });
    const keyFile = bench.file('wrong');
    const secondary = await bench.connecting({ kind: 'key', keyFile }, primary.link.port);
    await until(() => sum(secondary.link.status().refused) >= 2, 'refused, again and again');
    expect(Object.keys(primary.link.status().refused)).toEqual(['wrong-key']);
    expect(Object.keys(secondary.link.status().refused)).toEqual(['wrong-key']);
    expect(secondary.link.status().lastDownReason).toBe('cannot connect to the peer: wrong-key');
    expect([...primary.heard.log, ...secondary.heard.log]).toEqual([]);
  });

  test('the right key of a node with the same role is refused', async () => {
    const keyFile = bench.file('key');
    const primary = await bench.listening({ kind: 'key', keyFile });
    const other = await bench.connecting({ kind: 'key', keyFile }, primary.link.port, {
      security: loadLinkSecurity({ kind: 'key', keyFile }, 'primary'),
    } as object);
    await until(() => sum(other.link.status().refused) >= 1, 'refused');
    expect(Object.keys(primary.link.status().refused)).toEqual(['no-key']);
  });

  test.each([
    ['TLS without a key', {}, 'no-key'],
    ['TLS without a key that would trust anybody', { rejectUnauthorized: false }, 'no-key'],
    ['TLS 1.2', { maxVersion: 'TLSv1.2' }, 'tls-version'],
  ] as const)('%s is refused', async (_what, options, reason) => {
    const { link } = await bench.listening({ kind: 'key', keyFile: bench.file('key') });
    const socket = connectTls({ host: '127.0.0.1', port: link.port, ...options });
    socket.on('error', () => {});
    await until(() => sum(link.status().refused) > 0, 'refused');
    expect(link.status().refused).toEqual({ [reason]: 1 });
  });

  test.each([
    ['garbage', randomBytes(300).fill(0x41, 0, 5), 'not-tls'],
    ['HTTP', 'GET / HTTP/1.1\r\n\r\n', 'not-tls'],
    ['a link in plain text', helloBytes('secondary'), 'not-tls'],
  ])('%s is refused, counted, and hears nothing but a TLS alert', async (_what, bytes, reason) => {
    const { link } = await bench.listening({ kind: 'key', keyFile: bench.file('key') });
    const stranger = await bench.stranger(link.port, bytes);
    await until(() => stranger.isClosed, 'closed');
    expect(link.status().refused).toEqual({ [reason]: 1 });
    expect(Buffer.concat(stranger.heard).length).toBeLessThanOrEqual(7);
  });

  test('the connecting end refuses a server that has a certificate instead of the key', async () => {
    const rogue = createCertificate('rogue');
    const server = createTlsServer({ cert: rogue.cert, key: rogue.key });
    server.on('tlsClientError', () => {});
    let heardBytes = 0;
    server.on('secureConnection', (socket) => {
      socket.on('error', () => {});
      socket.on('data', (chunk) => {
        heardBytes += chunk.length;
      });
    });
    await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
    bench.onClose(() => server.close());
    const address = server.address();
    const port = typeof address === 'object' && address !== null ? address.port : 0;
    const { link, heard } = await bench.connecting(
      { kind: 'key', keyFile: bench.file('key') },
      port,
    );
    await until(() => sum(link.status().refused) >= 2, 'refused');
    expect(Object.keys(link.status().refused)).toEqual(['untrusted-certificate']);
    expect(heard.log).toEqual([]);
    expect(heardBytes).toBe(0);
  });

  test('a link with a key does not come up with one in plain text, whichever listens', async () => {
    const key: LinkSecurityOptions = { kind: 'key', keyFile: bench.file('key') };
    const plain = await bench.listening(INSECURE);
    const secured = await bench.connecting(key, plain.link.port);
    await until(() => sum(plain.link.status().refused) >= 1, 'refused');
    expect(Object.keys(plain.link.status().refused)).toEqual(['garbage']);
    await until(() => sum(secured.link.status().refused) >= 1, 'failed');
    expect([...plain.heard.log, ...secured.heard.log]).toEqual([]);
  });
});

describe('while a link is up', () => {
  test('strangers of every kind do not disturb it', async () => {
    const key: LinkSecurityOptions = { kind: 'key', keyFile: bench.file('key') };
    const { primary, secondary } = await bench.pair(key, { handshakeTimeoutUs: 300_000 });
    const { port } = primary.link;
    const intruder = await bench.connecting({ kind: 'key', keyFile: bench.file('other') }, port);
    for (let round = 0; round < 10; round++) {
      await bench.stranger(port, randomBytes(100).fill(0x30, 0, 3));
      await bench.stranger(port);
      // The first bytes of a TLS record that never goes on.
      await bench.stranger(port, Uint8Array.of(0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc));
      const { buffer, offset } = frameOf(1_000, round);
      primary.link.sendFrame(LINK_FRAME_CLIENT, 0, buffer, offset, 1_000);
      primary.link.flush();
    }
    await until(() => secondary.heard.frames.length === 10, 'frames arrive meanwhile');
    await until(() => (primary.link.status().refused['wrong-key'] ?? 0) > 0, 'wrong key counted');
    // Ten that speak no TLS, twenty that say nothing or too little.
    const dismissed = () => {
      const { refused } = primary.link.status();
      const late = (refused['too-many'] ?? 0) + (refused['handshake-timeout'] ?? 0);
      return { notTls: refused['not-tls'] ?? 0, late };
    };
    await until(() => dismissed().late >= 20, 'all strangers dismissed');
    expect(dismissed().notTls).toBe(10);
    expect(intruder.heard.log).toEqual([]);
    expect([...primary.heard.downs, ...secondary.heard.downs]).toEqual([]);
  });
});

describe('strangers before the hello', () => {
  test('while a peer is up a flood of them is closed unseen', async () => {
    const key: LinkSecurityOptions = { kind: 'key', keyFile: bench.file('key') };
    const { primary, secondary } = await bench.pair(key);
    const garbage = randomBytes(100).fill(0x30, 0, 3);
    const flood = Array.from({ length: 200 }, () => bench.stranger(primary.link.port, garbage));
    await Promise.all(flood);
    await until(() => sum(primary.link.status().refused) === 200, 'all refused');
    // The flood may lie in two seconds of the clock, or three on a slow machine.
    expect(primary.link.status().refused['too-fast']).toBeGreaterThanOrEqual(50);
    expect([...primary.heard.downs, ...secondary.heard.downs]).toEqual([]);
  });

  test.each(['plain', 'TLS'])('silent ones are dismissed in time (%s)', async (kind) => {
    const security: LinkSecurityOptions =
      kind === 'plain' ? INSECURE : { kind: 'key', keyFile: bench.file('key') };
    const { link } = await bench.listening(security, { handshakeTimeoutUs: 150_000 });
    const stranger = await bench.stranger(link.port);
    // One byte at a time does not help it.
    const drip = setInterval(
      () => stranger.socket.write(Uint8Array.of(kind === 'plain' ? 0 : 0x16)),
      40,
    );
    bench.onClose(() => clearInterval(drip));
    const startMs = performance.now();
    await until(() => stranger.isClosed, 'dismissed');
    expect(performance.now() - startMs).toBeLessThan(2_000);
    const { refused } = link.status();
    expect(refused).toEqual({ 'handshake-timeout': 1 });
    expect(stranger.heard).toEqual([]);
  });

  test('half a hello and then nothing is dismissed in time', async () => {
    const { link } = await bench.listening(INSECURE, { handshakeTimeoutUs: 150_000 });
    const stranger = await bench.stranger(link.port, helloBytes('secondary').subarray(0, 30));
    await until(() => stranger.isClosed, 'dismissed');
    expect(link.status().refused).toEqual({ 'handshake-timeout': 1 });
    expect(stranger.heard).toEqual([]);
  });

  test('when there are too many the oldest goes, so the peer gets in', async () => {
    const key: LinkSecurityOptions = { kind: 'key', keyFile: bench.file('key') };
    const primary = await bench.listening(key, { handshakeTimeoutUs: 10_000_000 });
    const strangers: Stranger[] = [];
    for (let index = 0; index < 20; index++)
      strangers.push(await bench.stranger(primary.link.port));
    await until(
      () => strangers.filter((stranger) => stranger.isClosed).length === 12,
      'only 8 stay',
    );
    expect(primary.link.status().refused).toEqual({ 'too-many': 12 });
    expect(strangers[0]!.isClosed).toBe(true);
    expect(strangers[19]!.isClosed).toBe(false);
    const secondary = await bench.connecting(key, primary.link.port);
    await until(() => primary.link.connected && secondary.link.connected, 'up');
  });

  test('a burst in one turn of the event loop keeps the bound, too', async () => {
    const { link } = await bench.listening(INSECURE, { handshakeTimeoutUs: 10_000_000 });
    const strangers = await Promise.all(
      Array.from({ length: 60 }, () => bench.stranger(link.port)),
    );
    await until(() => strangers.filter((stranger) => !stranger.isClosed).length === 8, '8 stay');
    expect(link.status().refused).toEqual({ 'too-many': 52 });
  });

  test('another version is refused with both versions named', async () => {
    const { link } = await bench.listening(INSECURE);
    const hello = helloBytes('secondary');
    hello[17] = 9;
    const stranger = await bench.stranger(link.port, hello);
    await until(() => stranger.isClosed, 'refused');
    expect(Buffer.concat(stranger.heard).toString('latin1')).toContain(
      'this node speaks link version 2, its peer version 9',
    );
    expect(link.status().refused).toEqual({ version: 1 });
  });
});

describe('key files', () => {
  const load = (keyFile: string) => loadLinkSecurity({ kind: 'key', keyFile }, 'primary');

  test.each(['640', '604', '660', '620', '601'])('mode %s is refused', (mode) => {
    const keyFile = bench.file('key');
    chmodSync(keyFile, Number.parseInt(mode, 8));
    expect(() => load(keyFile)).toThrow(
      expect.objectContaining({ code: 'COLO_ERR_PEER_KEY_MODE', path: keyFile }),
    );
  });

  test.each(['600', '400'])('mode %s is accepted', (mode) => {
    const keyFile = bench.file('key');
    chmodSync(keyFile, Number.parseInt(mode, 8));
    expect(load(keyFile).name).toBe('tls-psk');
  });

  test('31 bytes and a newline are too few, 32 are enough', () => {
    const short = bench.file('short', `${'k'.repeat(31)}\n`);
    expect(() => load(short)).toThrow(expect.objectContaining({ code: 'COLO_ERR_PEER_KEY_SIZE' }));
    expect(load(bench.file('enough', 'k'.repeat(32))).name).toBe('tls-psk');
    const long = bench.file('long', 'k'.repeat(5_000));
    expect(() => load(long)).toThrow(expect.objectContaining({ code: 'COLO_ERR_PEER_KEY_SIZE' }));
  });

  test('a missing file and a directory are errors with their code', () => {
    expect(() => load(`${bench.directory}/none`)).toThrow(
      expect.objectContaining({ code: 'COLO_ERR_PEER_KEY_READ', errno: 'ENOENT' }),
    );
    expect(() => load(bench.directory)).toThrow(
      expect.objectContaining({ code: 'COLO_ERR_PEER_KEY_READ' }),
    );
  });

  test('the trailing newline is no part of the key, and no text names the key', async () => {
    const key = 'correct horse battery staple and then some';
    const primary = await bench.listening({ kind: 'key', keyFile: bench.file('a', key) });
    const keyFile = bench.file('b', `${key}\n`);
    const secondary = await bench.connecting({ kind: 'key', keyFile }, primary.link.port);
    await until(() => primary.link.connected && secondary.link.connected, 'up');
    const told = JSON.stringify([load(keyFile), primary.link.status(), secondary.heard.ups]);
    expect(told).not.toContain('horse');
  });
});

describe('certificates', () => {
  function certificate(
    node: TestCertificate,
    authority: TestCertificate,
    peerName?: string,
  ): LinkSecurityOptions {
    return {
      kind: 'certificate',
      caFile: bench.file(`${node.name}-ca.pem`, authority.cert),
      certFile: bench.file(`${node.name}.pem`, node.cert),
      privateKeyFile: bench.file(`${node.name}-key.pem`, node.key),
      ...(peerName === undefined ? {} : { peerName }),
    };
  }

  test('both ends prove themselves to the same authority', async () => {
    const authority = createCertificate('authority');
    const one = certificate(createCertificate('node-1', authority), authority, 'node-2');
    const two = certificate(createCertificate('node-2', authority), authority, 'node-1');
    const primary = await bench.listening(one);
    const secondary = await bench.connecting(two, primary.link.port);
    await until(() => primary.link.connected && secondary.link.connected, 'up');
    expect(primary.link.status().security).toBe('tls-certificate');
  });

  test('a certificate of another authority is refused', async () => {
    const authority = createCertificate('authority');
    const other = createCertificate('other');
    const primary = await bench.listening(
      certificate(createCertificate('node-1', authority), authority),
    );
    // It trusts the primary's authority, but its own certificate comes from elsewhere.
    const stranger = certificate(createCertificate('node-2', other), authority);
    const secondary = await bench.connecting(stranger, primary.link.port);
    await until(() => sum(primary.link.status().refused) >= 1, 'refused');
    expect([...primary.heard.log, ...secondary.heard.log]).toEqual([]);
  });

  test('a client without a certificate is refused', async () => {
    const authority = createCertificate('authority');
    const { link, heard } = await bench.listening(
      certificate(createCertificate('node-1', authority), authority),
    );
    const socket = connectTls({ host: '127.0.0.1', port: link.port, rejectUnauthorized: false });
    socket.on('error', () => {});
    socket.write(helloBytes('secondary'));
    await until(() => sum(link.status().refused) >= 1, 'refused');
    expect(heard.log).toEqual([]);
  });

  test.each(['primary', 'secondary'])(
    'the name that the %s expects must be in the certificate',
    async (who) => {
      const authority = createCertificate('authority');
      const one = certificate(
        createCertificate('node-1', authority),
        authority,
        who === 'primary' ? 'somebody-else' : undefined,
      );
      const two = certificate(
        createCertificate('node-2', authority),
        authority,
        who === 'secondary' ? 'somebody-else' : undefined,
      );
      const primary = await bench.listening(one);
      const secondary = await bench.connecting(two, primary.link.port);
      await until(() => sum(secondary.link.status().refused) >= 1, 'refused');
      const refusing = who === 'primary' ? primary : secondary;
      expect(Object.keys(refusing.link.status().refused)).toContain('untrusted-certificate');
      expect([...primary.heard.log, ...secondary.heard.log]).toEqual([]);
    },
  );

  test('a key that does not fit its certificate is a configuration error; one that others can read, too', () => {
    const authority = createCertificate('authority');
    const one = createCertificate('node-1', authority);
    const mixed = certificate({ ...one, key: createCertificate('x').key }, authority);
    expect(() => loadLinkSecurity(mixed, 'primary')).toThrow(
      expect.objectContaining({ code: 'COLO_ERR_PEER_CERTIFICATE' }),
    );
    const fitting = certificate(one, authority);
    if (fitting.kind === 'certificate') chmodSync(fitting.privateKeyFile, 0o644);
    expect(() => loadLinkSecurity(fitting, 'primary')).toThrow(
      expect.objectContaining({ code: 'COLO_ERR_PEER_KEY_MODE' }),
    );
  });
});
