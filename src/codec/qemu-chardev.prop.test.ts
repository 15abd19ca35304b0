import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { STREAM_PIECES_MAX, VNET_HDR_BYTES } from '../limits.ts';
import {
  QEMU_FRAME_BYTES_MAX,
  QEMU_VNET_HEADER_BYTES_MAX,
  QemuFrameDecoder,
  writeQemuHead,
  writeQemuVnetHead,
} from './qemu-chardev.ts';

interface Sent {
  /** Virtio-net header, empty without vnet_hdr_support. */
  readonly header: Uint8Array;
  readonly frame: Uint8Array;
}

function encode(frames: readonly Sent[], hasVnetHeader: boolean): Uint8Array {
  const parts = frames.map(({ header, frame }) => {
    const headBytes = hasVnetHeader ? 8 : 4;
    const part = new Uint8Array(headBytes + header.length + frame.length);
    const view = new DataView(part.buffer);
    if (hasVnetHeader) writeQemuVnetHead(view, 0, header.length, frame.length);
    else writeQemuHead(view, 0, frame.length);
    part.set(header, headBytes);
    part.set(frame, headBytes + header.length);
    return part;
  });
  return Uint8Array.from(parts.flatMap((part) => [...part]));
}

/** Feeds the stream in pieces; takes frames in batches of `batch`, checking at their end that those lent are unchanged. */
function decode(
  stream: Uint8Array,
  pieces: readonly number[],
  hasVnetHeader: boolean,
  batch: number,
): string[] {
  const decoder = new QemuFrameDecoder(hasVnetHeader);
  const found: string[] = [];
  let at = 0;
  let turn = 0;
  for (;;) {
    decoder.reclaim();
    const lent: (() => string)[] = [];
    const before: string[] = [];
    let result = decoder.next();
    while (result === 'frame') {
      const { frameBuffer, frameOffset, frameBytes } = decoder;
      const read = () => {
        const start = frameOffset - VNET_HDR_BYTES;
        return Buffer.from(frameBuffer.bytes.slice(start, frameOffset + frameBytes)).toString(
          'hex',
        );
      };
      lent.push(read);
      before.push(read());
      if (lent.length === batch) break;
      result = decoder.next();
    }
    expect(lent.map((read) => read())).toEqual(before);
    found.push(...before);
    if (lent.length > 0) continue;
    expect(result).toBe('more');
    if (at === stream.length) return found;
    decoder.makeRoom();
    const piece = Math.min(
      pieces[turn++ % pieces.length]!,
      decoder.writeBytesMax,
      stream.length - at,
    );
    decoder.stream.bytes.set(stream.subarray(at, at + piece), decoder.writeOffset);
    decoder.onBytes(piece);
    at += piece;
  }
}

/** What `decode` should find. */
function expected(frames: readonly Sent[]): string[] {
  return frames.map(({ header, frame }) => {
    const vnet = new Uint8Array(VNET_HDR_BYTES);
    vnet.set(header.subarray(0, VNET_HDR_BYTES));
    return Buffer.from([...vnet, ...frame]).toString('hex');
  });
}

const bytes = (maxLength: number) => fc.uint8Array({ minLength: 0, maxLength });
const plain = fc.record({ header: fc.constant(new Uint8Array(0)), frame: bytes(200) });
const header = fc.oneof(
  fc.constant(new Uint8Array(0)),
  fc.uint8Array({ minLength: VNET_HDR_BYTES, maxLength: QEMU_VNET_HEADER_BYTES_MAX }),
);
const withHeader = fc.record({ header, frame: bytes(200) });

describe('QemuFrameDecoder', () => {
  test.each([
    ['without virtio-net headers', false, plain],
    ['with virtio-net headers', true, withHeader],
  ] as const)('finds the same frames however the stream is cut, %s', (_name, hasVnet, frame) => {
    fc.assert(
      fc.property(
        fc.array(frame, { maxLength: 12 }),
        fc.array(fc.integer({ min: 1, max: 300 }), { minLength: 1, maxLength: 5 }),
        fc.integer({ min: 1, max: 4 }),
        (frames, pieces, batch) => {
          const stream = encode(frames, hasVnet);
          const whole = decode(stream, [stream.length + 1], hasVnet, batch);
          expect(whole).toEqual(expected(frames));
          expect(decode(stream, [1], hasVnet, batch)).toEqual(whole);
          expect(decode(stream, pieces, hasVnet, batch)).toEqual(whole);
        },
      ),
      { numRuns: 150 },
    );
  });

  test.each([false, true])(
    'takes frames of the greatest size, one after the other (%s)',
    (hasVnet) => {
      const header = new Uint8Array(hasVnet ? 12 : 0).fill(3);
      const frame = Uint8Array.from({ length: QEMU_FRAME_BYTES_MAX - header.length }, (_, i) => i);
      const frames = Array.from({ length: 12 }, () => ({ header, frame }));
      const found = decode(encode(frames, hasVnet), [100_000], hasVnet, 64);
      expect(found).toEqual(expected(frames));
    },
  );

  test('never reads past its bytes and never throws on any stream, and stays broken once it is', () => {
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 400 }), fc.boolean(), (stream, hasVnet) => {
        const decoder = new QemuFrameDecoder(hasVnet);
        decoder.stream.bytes.set(stream, decoder.writeOffset);
        const end = decoder.writeOffset + stream.length;
        decoder.onBytes(stream.length);
        let result = decoder.next();
        while (result === 'frame') {
          if (decoder.frameBuffer === decoder.stream) {
            expect(decoder.frameOffset + decoder.frameBytes).toBeLessThanOrEqual(end);
          }
          result = decoder.next();
        }
        expect(decoder.next()).toBe(result);
      }),
      { numRuns: 300 },
    );
  });

  test.each([
    ['a size above NET_BUFSIZE', false, [0, 1, 0x10, 1]],
    ['a virtio-net header longer than the frame', true, [0, 0, 0, 11, 0, 0, 0, 12]],
    ['a virtio-net header of no known length', true, [0, 0, 0, 99, 0, 0, 0, 9]],
    ['a virtio-net header beyond every version', true, [0, 0, 0, 99, 0, 0, 0, 65]],
    ['text', false, [...new TextEncoder().encode('GET / HTTP/1.1')]],
  ])('calls %s an error', (_name, hasVnet, stream) => {
    const decoder = new QemuFrameDecoder(hasVnet);
    decoder.stream.bytes.set(stream, decoder.writeOffset);
    decoder.onBytes(stream.length);
    expect(decoder.next()).toBe('error');
    expect(decoder.next()).toBe('error');
  });

  test('takes an empty frame, and counts what is left of one that is cut', () => {
    const decoder = new QemuFrameDecoder(false);
    decoder.stream.bytes.set([0, 0, 0, 0, 0, 0, 0, 9, 1, 2], decoder.writeOffset);
    decoder.onBytes(10);
    expect(decoder.next()).toBe('frame');
    expect(decoder.frameBytes).toBe(0);
    expect(decoder.next()).toBe('more');
    expect(decoder.pendingBytes).toBe(6);
  });

  test('frames that are left where they lie stay unchanged, and memory is used again when they have gone', () => {
    const decoder = new QemuFrameDecoder(false);
    const frameBytes = 1_400;
    const waiting: { take: () => number; value: number }[] = [];
    const memories = new Set<Uint8Array>();
    const record = new Uint8Array(4 + frameBytes);
    let value = 0;
    for (let round = 0; round < 4_000; round++) {
      decoder.makeRoom();
      for (let i = 0; i < 3 && decoder.writeBytesMax >= record.length; i++) {
        value = (value + 1) % 251;
        record.fill(value);
        writeQemuHead(new DataView(record.buffer), 0, frameBytes);
        decoder.stream.bytes.set(record, decoder.writeOffset);
        decoder.onBytes(record.length);
      }
      while (decoder.look()) {
        const { stream, rawOffset } = decoder;
        expect(decoder.mayLend).toBe(true);
        memories.add(stream.bytes);
        stream.lent++;
        const expected = stream.bytes[rawOffset]!;
        waiting.push({
          value: expected,
          take: () => {
            stream.lent--;
            const bytes = stream.bytes.subarray(rawOffset, rawOffset + frameBytes);
            return bytes.every((byte) => byte === expected) ? expected : -1;
          },
        });
        decoder.skip();
      }
      // 1,000 frames wait at most: 1.4 MB.
      for (const { take, value: sent } of waiting.splice(0, waiting.length - 1_000)) {
        expect(take()).toBe(sent);
      }
    }
    expect(memories.size).toBeLessThanOrEqual(5);
  });

  test('refuses to lend when there is no other memory left to go on in', () => {
    const decoder = new QemuFrameDecoder(false);
    const record = new Uint8Array(4 + 60_000);
    writeQemuHead(new DataView(record.buffer), 0, 60_000);
    let lent = 0;
    for (let round = 0; round < 20 * STREAM_PIECES_MAX; round++) {
      decoder.makeRoom();
      expect(decoder.writeBytesMax).toBeGreaterThanOrEqual(record.length);
      decoder.stream.bytes.set(record, decoder.writeOffset);
      decoder.onBytes(record.length);
      expect(decoder.look()).toBe(true);
      if (decoder.mayLend) {
        decoder.stream.lent++;
        lent++;
      }
      decoder.skip();
    }
    // The last piece is kept for the stream itself.
    expect(lent).toBeGreaterThan(12 * (STREAM_PIECES_MAX - 1));
    expect(lent).toBeLessThan(18 * (STREAM_PIECES_MAX - 1));
  });
});
