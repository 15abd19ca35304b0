/**
 * Two readers of frames that share no code, the engines' (`src/wire`) and the simulation's, against each other on damaged frames;
 * and the engines' reader against its own bounds.
 */
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { GOLDEN_FRAMES } from '../../../test/golden/frames.ts';
import type { FrameBuffer } from '../../env/frame.ts';
import { VNET_HDR_BYTES } from '../../limits.ts';
import { dissect, FRAME_OK, FrameInfo } from '../../wire/frame.ts';
import { parseTcpOptions, TcpOptions } from '../../wire/tcp-options.ts';
import { parseSegment } from '../tcp/segment.ts';
import { PROTOCOL_TCP, PROTOCOL_UDP, parseIp, readHex, readU16, writeHex } from './packet.ts';

const golden = Object.values(GOLDEN_FRAMES).map(({ hex }) => {
  const bytes = new Uint8Array(hex.length / 2);
  writeHex(bytes, 0, hex);
  return bytes;
});

interface Damage {
  readonly frame: Uint8Array;
  readonly bytes: readonly (readonly [number, number])[];
  readonly cut: number;
  readonly tags: number;
}

const damage: fc.Arbitrary<Damage> = fc.record({
  frame: fc.constantFrom(...golden),
  // Mostly among the headers.
  bytes: fc.array(fc.tuple(fc.nat({ max: 90 }), fc.nat({ max: 255 })), { maxLength: 4 }),
  cut: fc.oneof(fc.constant(0), fc.nat({ max: 60 })),
  tags: fc.nat({ max: 1 }),
});

/** The frame at the very end of its memory, so that a read past it is out of range. */
function build({ frame, bytes, cut, tags }: Damage): Uint8Array {
  const tag = tags === 0 ? [] : [0x81, 0x00, 0x00, 0x07];
  const tagged = Uint8Array.from([...frame.subarray(0, 12), ...tag, ...frame.subarray(12)]);
  for (const [at, value] of bytes) if (at < tagged.length) tagged[at] = value;
  return tagged.slice(0, Math.max(1, tagged.length - cut));
}

function bufferOf(frame: Uint8Array): FrameBuffer {
  const bytes = new Uint8Array(VNET_HDR_BYTES + frame.length);
  bytes.set(frame, VNET_HDR_BYTES);
  return { bytes, view: new DataView(bytes.buffer) };
}

describe('reading damaged frames', () => {
  test('dissect() never throws, and nothing it reports lies outside of the frame', () => {
    const info = new FrameInfo();
    const check = (item: Damage): void => {
      const buffer = bufferOf(build(item));
      const end = buffer.bytes.length;
      if (dissect(buffer, VNET_HDR_BYTES, end - VNET_HDR_BYTES, info) !== FRAME_OK) return;
      expect(info.l4Offset + info.l4Bytes).toBeLessThanOrEqual(end);
      expect(info.payloadOffset + info.payloadBytes).toBeLessThanOrEqual(end);
      expect(info.l4Bytes).toBeGreaterThanOrEqual(0);
      expect(info.payloadBytes).toBeGreaterThanOrEqual(0);
      if (info.ipVersion !== 0) expect(info.l3Offset + info.l3Bytes).toBeLessThanOrEqual(end);
    };
    fc.assert(fc.property(damage, check), { numRuns: 5_000 });
  });

  test('both readers find the same packet in the same frame', () => {
    const info = new FrameInfo();
    const check = (item: Damage): void => {
      const buffer = bufferOf(build(item));
      const result = dissect(buffer, VNET_HDR_BYTES, buffer.bytes.length - VNET_HDR_BYTES, info);
      const packet = parseIp(buffer.bytes);
      if (result !== FRAME_OK || info.ipVersion === 0 || info.vlanTags > 1) return;
      expect(packet).toBeDefined();
      if (packet === undefined) return;
      const addressBytes = info.ipVersion === 4 ? 4 : 16;
      expect(packet.src).toBe(readHex(buffer.bytes, info.srcAddressOffset, addressBytes));
      expect(packet.dst).toBe(readHex(buffer.bytes, info.dstAddressOffset, addressBytes));
      // The simulation's hosts use no extension headers but the fragment's.
      if (packet.protocol !== info.protocol) return;
      expect(packet.fragmentOffset).toBe(info.fragmentOffset);
      expect(packet.moreFragments).toBe(info.moreFragments);
      expect(packet.payload.length).toBe(info.l4Bytes);
      if (info.isFragment) return;
      if (info.protocol === PROTOCOL_UDP) {
        expect([readU16(packet.payload, 0), readU16(packet.payload, 2)]).toEqual([
          info.srcPort,
          info.dstPort,
        ]);
      }
      if (info.protocol !== PROTOCOL_TCP) return;
      const segment = parseSegment(packet.payload);
      expect(segment).toMatchObject({
        srcPort: info.srcPort,
        dstPort: info.dstPort,
        seq: info.seq,
        ack: info.ack,
        flags: info.tcpFlags,
        window: info.window,
      });
      expect(segment?.payload.length).toBe(info.payloadBytes);
    };
    fc.assert(fc.property(damage, check), { numRuns: 5_000 });
  });

  test('parseTcpOptions() stays within the header on any bytes, and agrees where the options are sound', () => {
    const options = new TcpOptions();
    const check = (bytes: Uint8Array): void => {
      // At the very end of the memory again.
      const header = new Uint8Array(20 + Math.ceil(bytes.length / 4) * 4);
      header.set(bytes, 20);
      header[12] = (header.length / 4) << 4;
      parseTcpOptions(new DataView(header.buffer), 20, header.length, options);
      const segment = parseSegment(header);
      if (options.malformed) return;
      expect(segment?.mss).toBe(options.mss);
      expect(segment?.windowScale).toBe(options.windowScale);
      expect(segment?.sackPermitted).toBe(options.sackPermitted);
      expect(segment?.timestamps?.value).toBe(options.hasTimestamps ? options.tsval : undefined);
    };
    const option = fc.oneof(
      fc.constant([1]),
      fc.nat({ max: 65_535 }).map((mss) => [2, 4, mss >> 8, mss & 255]),
      fc.nat({ max: 20 }).map((scale) => [3, 3, scale]),
      fc.constant([4, 2]),
      fc
        .array(fc.nat({ max: 255 }), { minLength: 8, maxLength: 8 })
        .map((rest) => [8, 10, ...rest]),
      fc
        .array(fc.nat({ max: 255 }), { minLength: 8, maxLength: 8 })
        .map((rest) => [5, 10, ...rest]),
      fc.array(fc.nat({ max: 255 }), { maxLength: 6 }),
    );
    const list = fc
      .array(option, { maxLength: 5 })
      .map((all) => Uint8Array.from(all.flat().slice(0, 40)));
    fc.assert(fc.property(list, check), { numRuns: 5_000 });
  });
});
