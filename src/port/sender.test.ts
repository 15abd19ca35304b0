import { afterEach, beforeEach, describe, expect, test, vi } from 'vitest';
import { tcpFrame, udpFrame } from '../../test/support/frame-builder.ts';
import { BATCH_FRAMES_MAX, PORT_SEND_QUEUE_BYTES_MAX, VNET_HDR_BYTES } from '../limits.ts';
import { EAGAIN, EINTR, EINVAL, EMSGSIZE, ENETDOWN, ENOBUFS } from '../os/constants.ts';
import type { MessageVector } from '../os/message-vector.ts';
import { createPortCounters } from './counters.ts';
import { Sender, type SendTarget } from './sender.ts';

/** A kernel that takes what the script says: a count of messages, or `-errno`; everything when it is empty. */
class FakeTarget implements SendTarget {
  script: number[] = [];
  mtuBytes = 1_500;
  /** Bytes of each message that was taken, all its segments together. */
  taken: number[] = [];
  calls = 0;
  linkDowns = 0;
  writable = false;

  transmit(vector: MessageVector, first: number, count: number): number {
    this.calls++;
    const result = Math.min(count, this.script.shift() ?? count);
    for (let index = first; index < first + result; index++) {
      this.taken.push(messageBytes(vector, index));
    }
    return result;
  }
  mtu(): number {
    return this.mtuBytes;
  }
  wantWritable(wanted: boolean): void {
    this.writable = wanted;
  }
  onLinkDown(): void {
    this.linkDowns++;
  }
}

function messageBytes(vector: MessageVector, index: number): number {
  const at = vector.addressOfSegments(index) - vector.address;
  let bytes = 0;
  for (let segment = 0; segment < vector.segmentCount(index); segment++) {
    bytes += vector.view.getUint32(at + segment * 16 + 8, true);
  }
  return bytes;
}

/** Frames are told apart by their payload's length. */
const frameOf = (payloadBytes: number) => tcpFrame({ payload: new Uint8Array(payloadBytes) });
const sizeOf = (payloadBytes: number) => VNET_HDR_BYTES + 54 + payloadBytes;

let target: FakeTarget;
let sender: Sender;
let counters: ReturnType<typeof createPortCounters>;

beforeEach(() => {
  target = new FakeTarget();
  counters = createPortCounters();
  sender = new Sender(target, counters);
});
afterEach(() => {
  sender.close();
  vi.useRealTimers();
});

function add(payloadBytes: number): void {
  const frame = frameOf(payloadBytes);
  sender.add(frame.buffer, frame.offset, frame.length);
}

describe('Sender', () => {
  test('sends nothing before flush, then everything with one call', () => {
    for (let index = 1; index <= 5; index++) add(index);
    expect(target.calls).toBe(0);
    sender.flush();
    expect(target.calls).toBe(1);
    expect(target.taken).toEqual([1, 2, 3, 4, 5].map(sizeOf));
    expect(counters).toMatchObject({ sentFrames: 5, sentBytes: 5 * 54 + 15, dropped: {} });
  });

  test('sends a full batch by itself', () => {
    for (let index = 0; index < BATCH_FRAMES_MAX + 1; index++) add(index);
    expect(target.taken).toHaveLength(BATCH_FRAMES_MAX);
    sender.flush();
    expect(target.taken).toEqual(Array.from({ length: BATCH_FRAMES_MAX + 1 }, (_, i) => sizeOf(i)));
  });

  test('goes on after a partial batch and after EINTR', () => {
    for (let index = 1; index <= 6; index++) add(index);
    target.script = [2, -EINTR, 1];
    sender.flush();
    expect(target.taken).toEqual([1, 2, 3, 4, 5, 6].map(sizeOf));
    expect(counters.sentFrames).toBe(6);
  });

  test('keeps what the socket does not take (EAGAIN) until it is writable, in order', () => {
    for (let index = 1; index <= 4; index++) add(index);
    target.script = [1, -EAGAIN];
    sender.flush();
    expect(sender.queuedFrames).toBe(3);
    expect(target.writable).toBe(true);
    // Newer frames must not overtake.
    add(5);
    target.script = [-EAGAIN];
    sender.flush();
    expect(target.taken).toEqual([sizeOf(1)]);
    sender.retry();
    expect(target.taken).toEqual([1, 2, 3, 4, 5].map(sizeOf));
    expect(target.writable).toBe(false);
    expect(counters).toMatchObject({ sentFrames: 5, dropped: {} });
  });

  test('tries again by itself when a device queue was full (ENOBUFS)', () => {
    vi.useFakeTimers();
    add(1);
    add(2);
    target.script = [-ENOBUFS];
    sender.flush();
    expect(target.taken).toEqual([]);
    vi.advanceTimersByTime(1);
    expect(target.taken).toEqual([1, 2].map(sizeOf));
  });

  test('bounds the queue, drops the newest and counts them', () => {
    vi.useFakeTimers();
    target.transmit = () => -EAGAIN;
    const frames = Math.floor(PORT_SEND_QUEUE_BYTES_MAX / 1_536) + 10;
    for (let index = 0; index < frames; index++) add(1_440);
    sender.flush();
    expect(sender.queuedFrames).toBe(Math.floor(PORT_SEND_QUEUE_BYTES_MAX / 1_536));
    expect(counters.dropped).toEqual({ 'send-queue-full': frames - sender.queuedFrames });
  });

  test('drops and counts frames for a link that is down, and says so', () => {
    add(1);
    add(2);
    target.script = [-ENETDOWN, -ENETDOWN];
    sender.flush();
    expect(counters.dropped).toEqual({ 'link-down': 2 });
    expect(target.linkDowns).toBe(2);
    expect(sender.queuedFrames).toBe(0);
  });

  test('drops only the frame that the kernel refuses', () => {
    for (let index = 1; index <= 3; index++) add(index);
    target.script = [1, -EINVAL];
    sender.flush();
    expect(target.taken).toEqual([1, 3].map(sizeOf));
    expect(counters.dropped).toEqual({ 'send-failed': 1 });
  });

  test('cuts an overlong TCP frame by reference: headers and payload as two segments', () => {
    add(8_000);
    sender.flush();
    expect(target.taken).toEqual([sizeOf(8_000)]);
    expect(counters).toMatchObject({ sentFrames: 1, sentBytes: 8_054, dropped: {} });
  });

  test('keeps an overlong TCP frame whole when it must wait', () => {
    add(8_000);
    target.script = [-EAGAIN];
    sender.flush();
    sender.retry();
    expect(target.taken).toEqual([sizeOf(8_000)]);
  });

  test('drops overlong datagrams and runts, counted', () => {
    const datagram = udpFrame({ payload: new Uint8Array(4_000) });
    sender.add(datagram.buffer, datagram.offset, datagram.length);
    sender.add(datagram.buffer, datagram.offset, 13);
    add(1);
    sender.flush();
    expect(target.taken).toEqual([sizeOf(1)]);
    expect(counters.dropped).toEqual({ 'too-long': 1, 'too-short': 1 });
  });

  test('fits a frame to an MTU that has shrunk since it was last asked for (EMSGSIZE)', () => {
    add(1_460);
    target.mtuBytes = 1_280;
    target.script = [-EMSGSIZE];
    sender.flush();
    expect(target.taken).toEqual([sizeOf(1_460)]);
    expect(counters.dropped).toEqual({});
    // A frame that is still too long is given up.
    add(1_460);
    target.script = [-EMSGSIZE];
    sender.flush();
    expect(counters.dropped).toEqual({ 'too-long': 1 });
  });

  test('counts what still waits when it is closed', () => {
    add(1);
    add(2);
    target.script = [-EAGAIN];
    sender.flush();
    add(3);
    sender.close();
    expect(counters.dropped).toEqual({ closed: 3 });
  });
});
