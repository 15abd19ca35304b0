import { spawnSync } from 'node:child_process';
import { existsSync, mkdtempSync, rmSync, statSync, writeFileSync } from 'node:fs';
import net from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { tcpFrame, udpFrame } from '../../test/support/frame-builder.ts';
import type { FrameBuffer } from '../env/frame.ts';
import type { Port } from '../env/port.ts';
import { FRAME_BYTES_MAX, VNET_HDR_BYTES } from '../limits.ts';
import { isTransportChecksumRight } from '../wire/checksum.ts';
import { dissect, FrameInfo } from '../wire/frame.ts';
import { openPort } from './open.ts';
import type { QemuPort } from './qemu.ts';

let directory: string;
let path: string;
const ports: Port[] = [];
const sockets: net.Socket[] = [];

beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), 'colo-qemu-'));
  path = join(directory, 'nic.sock');
});
afterEach(async () => {
  for (const port of ports.splice(0)) await port.close();
  for (const socket of sockets.splice(0)) socket.destroy();
  rmSync(directory, { recursive: true });
});

async function until(condition: () => boolean): Promise<void> {
  const end = performance.now() + 10_000;
  while (!condition()) {
    if (performance.now() > end) throw new Error('condition not met in time');
    await new Promise((resolve) => setTimeout(resolve, 2));
  }
}

type Taken = { whole: string; info: FrameInfo };

/** Opens and starts a port; what it receives goes to `taken` unless it is paused. */
async function open(spec: string) {
  const port = (await openPort(spec)) as QemuPort;
  ports.push(port);
  const state = {
    port,
    taken: [] as Taken[],
    paused: false,
    resume: () => {
      state.paused = false;
      drain();
    },
  };
  const handler = (buffer: FrameBuffer, offset: number, length: number) => {
    const start = offset - VNET_HDR_BYTES;
    const copy = buffer.bytes.slice(start, offset + length);
    const own = { bytes: copy, view: new DataView(copy.buffer) };
    const info = new FrameInfo();
    dissect(own, VNET_HDR_BYTES, length, info);
    state.taken.push({ whole: Buffer.from(copy).toString('hex'), info });
  };
  const drain = () => {
    while (!state.paused && port.receive(handler) > 0);
  };
  port.start(drain, () => {});
  return state;
}

const wholeOf = ({ buffer, offset, length }: ReturnType<typeof tcpFrame>) =>
  Buffer.from(buffer.bytes.subarray(offset - VNET_HDR_BYTES, offset + length)).toString('hex');

function sendAll(port: Port, frames: readonly ReturnType<typeof tcpFrame>[]): void {
  for (const frame of frames) port.send(frame.buffer, frame.offset, frame.length);
  port.flush();
}

/** A plain client of a server port. */
async function stranger(): Promise<net.Socket> {
  const socket = net.connect(path);
  sockets.push(socket);
  socket.on('error', () => {});
  await new Promise((resolve) => socket.once('connect', resolve));
  return socket;
}

describe('QemuPort', () => {
  test.each(['', ',vnet_hdr'])('carries frames both ways over a Unix socket%s', async (option) => {
    const server = await open(`qemu:unix:${path},server${option}`);
    const client = await open(`qemu:unix:${path}${option}`);
    await until(() => server.port.isConnected && client.port.isConnected);
    expect(statSync(path).mode & 0o777).toBe(0o600);
    const frames = Array.from({ length: 300 }, (_, index) =>
      tcpFrame({ payload: new Uint8Array((index * 37) % 1_461).fill(index) }),
    );
    sendAll(client.port, frames);
    sendAll(server.port, frames);
    const expected = frames.map(wholeOf);
    await until(() => server.taken.length === 300 && client.taken.length === 300);
    expect(server.taken.map((taken) => taken.whole)).toEqual(expected);
    expect(client.taken.map((taken) => taken.whole)).toEqual(expected);
    expect(client.port.counters).toMatchObject({ sentFrames: 300, dropped: {} });
    expect(server.port.counters.receivedBytes).toBe(client.port.counters.sentBytes);
  });

  test('carries frames over TCP, to an address given by name', async () => {
    const port = await new Promise<number>((resolve) => {
      const probe = net.createServer().listen(0, '127.0.0.1', () => {
        const address = probe.address() as net.AddressInfo;
        probe.close(() => resolve(address.port));
      });
    });
    const server = await open(`qemu:tcp:127.0.0.1:${port},server`);
    const client = await open(`qemu:tcp:127.0.0.1:${port}`);
    await until(() => server.port.isConnected && client.port.isConnected);
    sendAll(client.port, [tcpFrame({ payload: 'over TCP' })]);
    await until(() => server.taken.length === 1);
  });

  test('keeps GSO frames and partial checksums whole with virtio-net headers', async () => {
    const server = await open(`qemu:unix:${path},server,vnet_hdr`);
    const client = await open(`qemu:unix:${path},vnet_hdr`);
    await until(() => server.port.isConnected && client.port.isConnected);
    const payload = new Uint8Array(60_000).fill(5);
    const frame = tcpFrame({ payload, partialChecksum: true, gsoType: 1, gsoBytes: 1_448 });
    sendAll(client.port, [frame]);
    await until(() => server.taken.length === 1);
    expect(server.taken[0]!.whole).toBe(wholeOf(frame));
  });

  test('sends plain, whole frames to a side without virtio-net headers', async () => {
    const server = await open(`qemu:unix:${path},server`);
    const client = await open(`qemu:unix:${path}`);
    await until(() => server.port.isConnected && client.port.isConnected);
    // More segments than a batch has room for.
    const payload = new Uint8Array(60_000).fill(5);
    const gso = { payload, partialChecksum: true, gsoType: 1, gsoBytes: 500 };
    sendAll(client.port, [tcpFrame(gso), udpFrame({ payload: 'x', partialChecksum: true })]);
    await until(() => server.taken.length === 121);
    for (const { info } of server.taken) {
      expect(info.checksumPartial).toBe(false);
      expect(isTransportChecksumRight(info)).toBe(true);
    }
    expect(client.port.counters.sentFrames).toBe(121);
  });

  test.each(['', ',vnet_hdr'])(
    'loses nothing and keeps order when the reader is slow%s',
    async (option) => {
      const server = await open(`qemu:unix:${path},server${option}`);
      const client = await open(`qemu:unix:${path}${option}`);
      await until(() => server.port.isConnected && client.port.isConnected);
      server.paused = true;
      const frames = Array.from({ length: 2_000 }, (_, index) =>
        udpFrame({ payload: new Uint8Array(1 + ((index * 7_919) % 3_000)).fill(index) }),
      );
      sendAll(client.port, frames.slice(0, 1_500));
      await new Promise((resolve) => setTimeout(resolve, 50));
      sendAll(client.port, frames.slice(1_500));
      server.resume();
      await until(() => server.taken.length === 2_000);
      expect(server.taken.map((taken) => taken.whole)).toEqual(frames.map(wholeOf));
      expect(client.port.counters.dropped).toEqual({});
    },
  );

  test('bounds what waits for a reader that never reads', async () => {
    const server = await open(`qemu:unix:${path},server`);
    const client = await open(`qemu:unix:${path}`);
    await until(() => server.port.isConnected && client.port.isConnected);
    server.paused = true;
    const frame = udpFrame({ payload: new Uint8Array(60_000) });
    for (let count = 0; count < 300; count++) sendAll(client.port, [frame]);
    const { sentFrames, dropped } = client.port.counters;
    expect(dropped['send-queue-full']).toBeGreaterThan(100);
    expect(sentFrames + dropped['send-queue-full']!).toBe(300);
  });

  test('is silent while a reader of the stream waits for another with more than it may read', async () => {
    const server = (await openPort(`qemu:unix:${path},server`)) as QemuPort;
    ports.push(server);
    let calls = 0;
    server.start(
      () => calls++,
      () => {},
    );
    const client = await open(`qemu:unix:${path}`);
    await until(() => server.isConnected && client.port.isConnected);
    const frame = tcpFrame({ payload: new Uint8Array(1_400) });
    const count = 1_000;
    for (let i = 0; i < count; i++) sendAll(client.port, [frame]);
    const batches = async (ends: () => boolean): Promise<void> => {
      do await new Promise((resolve) => setImmediate(resolve));
      while (!ends());
    };
    await batches(() => {
      const isFull = server.readStream()!.pendingBytes >= 512 * 1024;
      return !server.endBatch(0, 0, true) && isFull;
    });
    await new Promise((resolve) => setTimeout(resolve, 20));
    const before = calls;
    await new Promise((resolve) => setTimeout(resolve, 20));
    expect(calls).toBe(before);
    // It goes on where it stood, and is told of what comes when all is read.
    let taken = 0;
    await batches(() => {
      const decoder = server.readStream()!;
      for (; decoder.look(); taken++) decoder.skip();
      return !server.endBatch(0, 0, false) && taken === count;
    });
    sendAll(client.port, [frame]);
    await until(() => calls > before);
  });

  test('connects again, as client and as server, and counts what is sent meanwhile', async () => {
    const client = await open(`qemu:unix:${path}`);
    const frame = tcpFrame({ payload: 'lost' });
    sendAll(client.port, [frame]);
    expect(client.port.counters.dropped).toEqual({ 'not-connected': 1 });
    const first = await open(`qemu:unix:${path},server`);
    await until(() => client.port.isConnected);
    await first.port.close();
    expect(existsSync(path)).toBe(false);
    await until(() => !client.port.isConnected);
    const second = await open(`qemu:unix:${path},server`);
    await until(() => client.port.isConnected && second.port.isConnected);
    sendAll(client.port, [frame]);
    await until(() => second.taken.length === 1);
    await client.port.close();
    await until(() => !second.port.isConnected);
    const again = await open(`qemu:unix:${path}`);
    await until(() => second.port.isConnected);
    sendAll(again.port, [frame]);
    await until(() => second.taken.length === 2);
  });

  test('closes a connection that speaks something else, and takes the next', async () => {
    const server = await open(`qemu:unix:${path},server`);
    const intruder = await stranger();
    const waiting = await stranger();
    const closed = new Promise((resolve) => intruder.once('close', resolve));
    intruder.write('GET / HTTP/1.1\r\n\r\n');
    await closed;
    expect(server.port.counters.dropped).toEqual({ 'protocol-error': 1 });
    const { buffer, offset, length } = tcpFrame({ payload: 'x' });
    const head = Buffer.alloc(4);
    head.writeUInt32BE(length);
    waiting.write(Buffer.concat([head, buffer.bytes.subarray(offset, offset + length)]));
    await until(() => server.taken.length === 1);
  });

  test('counts runts, giants and a stream that ends inside a frame', async () => {
    const server = await open(`qemu:unix:${path},server`);
    const socket = await stranger();
    const giant = Buffer.alloc(4 + 69_632);
    giant.writeUInt32BE(69_632);
    socket.write(
      Buffer.concat([Buffer.from([0, 0, 0, 3, 1, 2, 3]), giant, Buffer.from([0, 0, 0, 9])]),
    );
    socket.end();
    await until(() => server.port.counters.dropped['truncated'] === 1);
    expect(server.port.counters.dropped).toEqual({ 'too-short': 1, 'too-long': 1, truncated: 1 });
    expect(server.taken).toEqual([]);
  });

  test('goes on behind a giant; a frame in pieces is put together; half of one is forgotten', async () => {
    const server = await open(`qemu:unix:${path},server`);
    const { buffer, offset, length } = tcpFrame({ payload: 'whole' });
    const head = Buffer.alloc(4);
    head.writeUInt32BE(length);
    const record = Buffer.concat([head, buffer.bytes.subarray(offset, offset + length)]);
    const socket = await stranger();
    socket.setNoDelay(true);
    const giant = Buffer.alloc(4 + 69_632);
    giant.writeUInt32BE(69_632);
    socket.write(giant);
    for (const byte of record) {
      socket.write(Uint8Array.of(byte));
      await new Promise((resolve) => setTimeout(resolve, 1));
    }
    await until(() => server.taken.length === 1);
    socket.end(record.subarray(0, 20));
    await until(() => !server.port.isConnected);
    (await stranger()).write(record);
    await until(() => server.taken.length === 2);
    const whole = wholeOf({ buffer, offset, length });
    expect(server.taken.map((taken) => taken.whole)).toEqual([whole, whole]);
    expect(server.port.counters.dropped).toEqual({ 'too-long': 1, truncated: 1 });
  });

  test.each(['', ',vnet_hdr'])('carries the longest frame there is%s', async (option) => {
    const server = await open(`qemu:unix:${path},server${option}`);
    const client = await open(`qemu:unix:${path}${option}`);
    await until(() => server.port.isConnected && client.port.isConnected);
    const bytes = new Uint8Array(VNET_HDR_BYTES + FRAME_BYTES_MAX).fill(7, VNET_HDR_BYTES);
    const buffer = { bytes, view: new DataView(bytes.buffer) };
    const frame = { buffer, offset: VNET_HDR_BYTES, length: FRAME_BYTES_MAX };
    sendAll(client.port, [frame, tcpFrame({ payload: 'after it' })]);
    await until(() => server.taken.length === 2);
    expect(server.taken[0]!.whole).toBe(wholeOf(frame));
  });

  test("answers with a virtio-net header as long as the other side's", async () => {
    const server = await open(`qemu:unix:${path},server,vnet_hdr`);
    const socket = await stranger();
    const { buffer, offset, length } = tcpFrame({ payload: 'x' });
    const frame = buffer.bytes.subarray(offset, offset + length);
    const head = Buffer.alloc(8 + 20);
    head.writeUInt32BE(20 + length);
    head.writeUInt32BE(20, 4);
    const answered = new Promise<Buffer>((resolve) => socket.once('data', resolve));
    socket.write(Buffer.concat([head, frame]));
    await until(() => server.taken.length === 1);
    sendAll(server.port, [{ buffer, offset, length }]);
    expect((await answered).toString('hex')).toBe(Buffer.concat([head, frame]).toString('hex'));
  });

  test('replaces a socket file that nobody listens on, but nothing else', async () => {
    const first = await open(`qemu:unix:${path},server`);
    await expect(openPort(`qemu:unix:${path},server`)).rejects.toMatchObject({
      code: 'COLO_ERR_QEMU_LISTEN',
      errno: 'EADDRINUSE',
    });
    await first.port.close();
    writeFileSync(path, 'a file');
    await expect(openPort(`qemu:unix:${path},server`)).rejects.toMatchObject({
      code: 'COLO_ERR_QEMU_LISTEN',
    });
    rmSync(path);
    // A dead process leaves its socket file.
    const code = `require('net').createServer().listen(${JSON.stringify(path)},()=>process.kill(process.pid,9))`;
    spawnSync(process.execPath, ['-e', code]);
    expect(existsSync(path)).toBe(true);
    await open(`qemu:unix:${path},server`);
  });

  test('leaves the socket of a live server alone whose queue is full', async () => {
    const server = await open(`qemu:unix:${path},server`);
    await stranger();
    await until(() => server.port.isConnected);
    // Each attempt leaves a connection that waits behind the one that is served.
    for (let attempt = 0; attempt < 20; attempt++) {
      await expect(openPort(`qemu:unix:${path},server`)).rejects.toMatchObject({
        errno: 'EADDRINUSE',
      });
    }
  });
});
