import { expect, test } from 'vitest';
import { tcpFrame } from '../../test/support/frame-builder.ts';
import { BATCH_FRAMES_MAX, PORT_SEND_QUEUE_BYTES_MAX, VNET_HDR_BYTES } from '../limits.ts';
import { MemoryPort } from './memory.ts';

const turn = () => new Promise<void>((resolve) => setImmediate(resolve));

test('MemoryPort delivers frames with their virtio-net headers, in order, in a later turn', async () => {
  const [a, b] = MemoryPort.createPair('t');
  const received: string[] = [];
  let calls = 0;
  b.start(
    () => {
      calls++;
      const handler = (buffer: { bytes: Uint8Array }, offset: number, length: number) => {
        const start = offset - VNET_HDR_BYTES;
        received.push(Buffer.from(buffer.bytes.subarray(start, offset + length)).toString('hex'));
      };
      while (b.receive(handler) > 0);
    },
    () => {},
  );
  const expected: string[] = [];
  for (let index = 0; index < BATCH_FRAMES_MAX * 2 + 1; index++) {
    const frame = tcpFrame({ payload: `frame ${index}`, partialChecksum: index % 2 === 0 });
    const whole = frame.buffer.bytes.subarray(
      frame.offset - VNET_HDR_BYTES,
      frame.offset + frame.length,
    );
    expected.push(Buffer.from(whole).toString('hex'));
    a.send(frame.buffer, frame.offset, frame.length);
    // Copied: the giver may overwrite it at once.
    whole.fill(0xee);
  }
  expect(calls).toBe(0);
  await turn();
  expect(received).toEqual(expected);
  expect(calls).toBe(1);
  expect(b.counters.receivedFrames).toBe(expected.length);
  expect(a.counters.sentFrames).toBe(expected.length);
});

test('MemoryPort calls again while frames are left unread', async () => {
  const [a, b] = MemoryPort.createPair('t');
  let calls = 0;
  let frames = 0;
  b.start(
    () => {
      calls++;
      frames += b.receive(() => {});
    },
    () => {},
  );
  const frame = tcpFrame({});
  for (let count = 0; count < 130; count++) a.send(frame.buffer, frame.offset, frame.length);
  for (let count = 0; count < 5; count++) await turn();
  expect(frames).toBe(130);
  expect(calls).toBe(3);
});

test('MemoryPort is bounded, and counts what it loses', () => {
  const [a, b] = MemoryPort.createPair('t');
  const frame = tcpFrame({ payload: new Uint8Array(60_000) });
  for (let count = 0; count < 200; count++) a.send(frame.buffer, frame.offset, frame.length);
  const fitting = Math.floor(PORT_SEND_QUEUE_BYTES_MAX / 60_096);
  expect(a.counters.sentFrames).toBe(fitting);
  expect(a.counters.dropped).toEqual({ 'send-queue-full': 200 - fitting });
  void b.close();
  a.send(frame.buffer, frame.offset, frame.length);
  expect(a.counters.dropped['closed']).toBe(1);
});

test('MemoryPort.fail() reports once, later', async () => {
  const [a] = MemoryPort.createPair('t');
  const errors: string[] = [];
  a.start(
    () => {},
    (error) => errors.push(error.message),
  );
  a.fail(new Error('pulled'));
  a.fail(new Error('again'));
  expect(errors).toEqual([]);
  await turn();
  expect(errors).toEqual(['pulled']);
});
