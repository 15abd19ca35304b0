import fc from 'fast-check';
import { expect, test } from 'vitest';
import { GOLDEN_FRAMES } from '../../test/golden/frames.ts';
import { HOSTILE_FRAMES } from '../../test/golden/hostile.ts';
import { rawFrame } from '../../test/support/frame-builder.ts';
import type { FrameBuffer } from '../env/frame.ts';
import { FRAME_BYTES_MAX, VNET_HDR_BYTES } from '../limits.ts';
import { fromHex } from '../wire/bytes.ts';
import { readVnetHeader, type VnetHeader, writeVnetHeader } from '../wire/vnet-hdr.ts';
import { isOffloaded, SEGMENT_HEADER_BYTES_MAX, SoftwareOffload } from './software-offload.ts';

const FRAMES = [
  ...Object.values(GOLDEN_FRAMES).map(({ hex }) => rawFrame(fromHex(hex))),
  ...Object.values(HOSTILE_FRAMES),
].map(({ buffer, offset, length }) => buffer.bytes.slice(offset, offset + length));

const u16 = fc.oneof(
  fc.integer({ min: 0, max: 0xffff }),
  // Where things lie in frames: headers, segment sizes, ends.
  fc.constantFrom(0, 1, 7, 8, 14, 16, 34, 54, 60, 1_400, 0xfffe, 0xffff),
);
const header: fc.Arbitrary<VnetHeader> = fc.record({
  flags: fc.oneof(fc.constantFrom(0, 1, 2, 3), fc.integer({ min: 0, max: 255 })),
  gsoType: fc.oneof(fc.constantFrom(0, 1, 3, 4, 5), fc.integer({ min: 0, max: 0x7f })),
  headerBytes: u16,
  gsoBytes: u16,
  csumStart: u16,
  csumOffset: u16,
});

/** The frame at the very end of its memory, this header before it: a read past it throws. */
function exactly(frame: Uint8Array, vnet: VnetHeader): FrameBuffer {
  const bytes = new Uint8Array(VNET_HDR_BYTES + frame.length);
  bytes.set(frame, VNET_HDR_BYTES);
  const view = new DataView(bytes.buffer);
  writeVnetHeader(view, 0, vnet);
  return { bytes, view };
}

test('readVnetHeader() undoes writeVnetHeader(), and neither touches a byte beside the header', () => {
  fc.assert(
    fc.property(header, fc.nat(5), (vnet, offset) => {
      const bytes = new Uint8Array(offset + VNET_HDR_BYTES + 3).fill(0xa5);
      const view = new DataView(bytes.buffer);
      writeVnetHeader(view, offset, vnet);
      expect(readVnetHeader(view, offset)).toEqual(vnet);
      expect(bytes.subarray(0, offset).every((byte) => byte === 0xa5)).toBe(true);
      expect(bytes.subarray(offset + VNET_HDR_BYTES).every((byte) => byte === 0xa5)).toBe(true);
      expect(readVnetHeader(new DataView(bytes.buffer, offset, VNET_HDR_BYTES), 0)).toEqual(vnet);
    }),
  );
});

test('SoftwareOffload takes any header before any frame: bounded work, nothing read outside, the frame unchanged', () => {
  const cut = fc.oneof(fc.constant(FRAME_BYTES_MAX), fc.nat(200));
  fc.assert(
    fc.property(fc.constantFrom(...FRAMES), header, cut, (whole, vnet, length) => {
      const frame = whole.slice(0, length);
      const buffer = exactly(frame, vnet);
      const before = buffer.bytes.slice();
      const room = new Uint8Array(SEGMENT_HEADER_BYTES_MAX);
      const roomBuffer = { bytes: room, view: new DataView(room.buffer) };
      let payloadBytes = 0;
      let count = 0;
      isOffloaded(buffer.view, VNET_HDR_BYTES);
      const isDone = new SoftwareOffload().complete(buffer, VNET_HDR_BYTES, frame.length, {
        room: () => ({ buffer: roomBuffer, offset: 0 }),
        segment: (headerBytes, offset, bytes) => {
          count++;
          payloadBytes += bytes;
          expect(headerBytes).toBeLessThanOrEqual(SEGMENT_HEADER_BYTES_MAX);
          expect(bytes).toBeGreaterThanOrEqual(0);
          expect(offset).toBeGreaterThanOrEqual(VNET_HDR_BYTES);
          expect(offset + bytes).toBeLessThanOrEqual(buffer.bytes.length);
        },
      });
      // A segment takes 8 bytes at least; all of them together no more than the frame.
      expect(payloadBytes).toBeLessThanOrEqual(frame.length);
      expect(count).toBeLessThanOrEqual(1 + frame.length / 8);
      if (!isDone) expect(count).toBe(0);
      expect(buffer.bytes).toEqual(before);
    }),
    { numRuns: 3_000 },
  );
});
