import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import {
  cloneFrame,
  dissectFrame,
  fragmentFrame,
  frameBytes,
  type TestFrame,
  udpFrame,
} from '../../test/support/frame-builder.ts';
import { Prng } from '../base/prng.ts';
import { NEVER } from '../base/time.ts';
import { fromHex } from '../wire/bytes.ts';
import { checksumAdd, checksumFold, isTransportChecksumRight } from '../wire/checksum.ts';
import { dissect, FRAME_OK, FrameInfo } from '../wire/frame.ts';
import { Reassembly, type ReassemblyFailure, type ReassemblyInit } from './reassembly.ts';

const FAMILIES = [
  { name: 'IPv4', src: '10.0.0.2', dst: '10.0.0.9' },
  { name: 'IPv6', src: '2001:db8::2', dst: '2001:db8::9' },
] as const;

/** A Reassembly whose results are kept: whole frames' bytes, and what was given up. */
function recorder(limits: Partial<ReassemblyInit<number>> = {}) {
  const completed: { bytes: Uint8Array; handles: number[] }[] = [];
  const abandoned: { handles: number[]; reason: ReassemblyFailure }[] = [];
  const reassembly = new Reassembly<number>({
    ...limits,
    onComplete: (buffer, offset, length, handles) => {
      const info = new FrameInfo();
      expect(dissect(buffer, offset, length, info)).toBe(FRAME_OK);
      expect(info.isFragment).toBe(false);
      expect(isTransportChecksumRight(info)).toBe(true);
      completed.push({ bytes: buffer.bytes.slice(offset, offset + length), handles });
    },
    onAbandon: (handles, reason) => abandoned.push({ handles, reason }),
  });
  let handle = 0;
  const add = (frame: TestFrame, nowUs = 0) => {
    reassembly.add(dissectFrame(frame), handle++, nowUs);
  };
  return { reassembly, add, completed, abandoned };
}

/** The frame without what reassembly may change: the IPv4 flags and header checksum. */
function comparable(bytes: Uint8Array, l3 = 14): string {
  const copy = bytes.slice();
  if (copy[l3]! >> 4 === 4) copy.fill(0, l3 + 4, l3 + 8).fill(0, l3 + 10, l3 + 12);
  return Buffer.from(copy).toString('hex');
}

describe.each(FAMILIES)('Reassembly of $name', ({ src, dst }) => {
  const whole = udpFrame({ src, dst, payload: new Prng(1).fill(new Uint8Array(300)) });

  it('joins fragments in any order, of any size, with duplicates and other datagrams between', () => {
    fc.assert(
      fc.property(
        fc.integer({ min: 1, max: 3_000 }),
        fc.integer({ min: 30, max: 200 }),
        fc.integer(),
        fc.nat(3),
        (payloadBytes, unit, seed, duplicates) => {
          const prng = new Prng(seed);
          const frames = [1, 2].map((port) =>
            udpFrame({ src, dst, srcPort: port, payload: prng.fill(new Uint8Array(payloadBytes)) }),
          );
          const pieces = frames.map((frame, i) => fragmentFrame(frame, 8 * unit, 100 + i));
          const arrivals = pieces.flat();
          for (let i = 0; i < duplicates; i++) arrivals.push(prng.pick(arrivals));
          const { add, completed, abandoned, reassembly } = recorder();
          const isFragmented = pieces[0]!.length > 1;
          if (!isFragmented) return;
          for (const piece of prng.shuffle(arrivals)) add(piece);
          // Where every piece was duplicated, the duplicates make up the datagram once more.
          const joined = new Set(completed.map(({ bytes }) => comparable(bytes)));
          const isSame = frames.map((frame) => joined.delete(comparable(frameBytes(frame))));
          expect([isSame, joined.size]).toEqual([[true, true], 0]);
          expect(abandoned).toEqual([]);
          // A duplicate that came last has begun a datagram of its own.
          expect(reassembly.size).toBeLessThanOrEqual(duplicates);
          const handles = completed.flatMap((datagram) => datagram.handles);
          reassembly.clear();
          expect(
            [...handles, ...abandoned.flatMap((a) => a.handles)].sort((a, b) => a - b),
          ).toEqual(arrivals.map((_, i) => i));
          expect(reassembly.bytes).toBe(0);
        },
      ),
      { numRuns: 150 },
    );
  });

  it('agrees with a naive byte map on overlapping pieces', () => {
    // Each piece is cut anew from the same datagram at random units of 8, so most runs overlap.
    fc.assert(
      fc.property(fc.array(fc.tuple(fc.nat(9), fc.nat(9)), { maxLength: 12 }), (cuts) => {
        const small = udpFrame({ src, dst, payload: new Uint8Array(72) }); // 80 bytes of UDP
        const { add, completed, abandoned } = recorder();
        const owner = new Map<number, string>();
        let isFailed = false;
        for (const [a, b] of cuts) {
          const first = Math.min(a, b);
          const count = Math.abs(a - b) + 1;
          if (count === 10) continue; // the whole datagram: no fragment
          const name = `${first}+${count}`;
          const units = Array.from({ length: count }, (_, i) => first + i);
          const taken = units.map((unit) => owner.get(unit));
          if (taken.every((other) => other === undefined)) {
            for (const unit of units) owner.set(unit, name);
          } else if (!taken.every((other) => other === name)) {
            isFailed = true;
          }
          add(pieceOf(small, 8 * first, 8 * count));
          expect(abandoned.length > 0).toBe(isFailed);
          if (owner.size === 10) break;
        }
        expect(completed.length).toBe(owner.size === 10 && !isFailed ? 1 : 0);
      }),
      { numRuns: 400 },
    );
  });

  it('gives up the whole datagram on an overlap, and what comes of it later (RFC 5722)', () => {
    const { add, completed, abandoned, reassembly } = recorder();
    const [first, second, third] = fragmentFrame(whole, 104);
    add(first!);
    add(pieceOf(whole, 96, 16));
    expect(abandoned).toEqual([{ handles: [0, 1], reason: 'overlap' }]);
    add(second!);
    add(third!);
    expect(abandoned.slice(1)).toEqual([
      { handles: [2], reason: 'overlap' },
      { handles: [3], reason: 'overlap' },
    ]);
    expect(completed).toEqual([]);
    expect(reassembly.bytes).toBe(0);
  });

  it('a duplicate with another byte in it is an overlap', () => {
    const { add, abandoned } = recorder();
    const [first] = fragmentFrame(whole, 104);
    const forged = cloneFrame(first!);
    forged.buffer.bytes[forged.offset + forged.length - 1]! ^= 1;
    add(first!);
    add(forged);
    expect(abandoned).toEqual([{ handles: [0, 1], reason: 'overlap' }]);
  });

  it('gives up after the timeout, and a later fragment begins anew', () => {
    const { add, abandoned, completed, reassembly } = recorder({ timeoutUs: 100 });
    const [first, ...rest] = fragmentFrame(whole, 104);
    add(first!, 5);
    expect(reassembly.nextDeadlineUs()).toBe(105);
    reassembly.expire(104);
    expect(abandoned).toEqual([]);
    reassembly.expire(105);
    expect(abandoned).toEqual([{ handles: [0], reason: 'timeout' }]);
    expect(reassembly.nextDeadlineUs()).toBe(NEVER);
    for (const fragment of [first!, ...rest]) add(fragment, 110);
    expect(completed.length).toBe(1);
  });

  it('gives up the oldest datagram at the limit of datagrams, and of bytes', () => {
    const byCount = recorder({ datagramsMax: 2 });
    for (let id = 0; id < 3; id++) byCount.add(fragmentFrame(whole, 104, id)[0]!, id);
    expect(byCount.abandoned).toEqual([{ handles: [0], reason: 'limit' }]);
    const byBytes = recorder({ bytesMax: 400 });
    for (let id = 0; id < 20; id++) byBytes.add(fragmentFrame(whole, 104, id)[0]!, id);
    expect(byBytes.reassembly.bytes).toBeLessThanOrEqual(400);
    expect(byBytes.abandoned[0]).toEqual({ handles: [0], reason: 'limit' });
    const single = recorder({ bytesMax: 100 });
    single.add(fragmentFrame(whole, 104)[0]!);
    expect(single.abandoned).toEqual([{ handles: [0], reason: 'limit' }]);
    expect(single.reassembly.bytes).toBe(0);
  });

  it('gives up a datagram of too many fragments, duplicates counted', () => {
    const { add, abandoned } = recorder({ fragmentsMax: 4 });
    for (let i = 0; i < 5; i++) add(fragmentFrame(whole, 104)[0]!);
    expect(abandoned).toEqual([{ handles: [0, 1, 2, 3, 4], reason: 'limit' }]);
  });

  it('keeps VLANs and identifications apart', () => {
    const { add, completed, reassembly } = recorder();
    const tagged = udpFrame({ src, dst, vlan: 5, payload: new Uint8Array(300) });
    add(fragmentFrame(whole, 160, 1)[0]!);
    add(fragmentFrame(tagged, 160, 1)[1]!);
    add(fragmentFrame(whole, 160, 2)[1]!);
    expect(completed).toEqual([]);
    expect(reassembly.size).toBe(3);
  });

  it('a second end, bytes after the end, and an uneven length are malformed', () => {
    for (const [start, count, more] of [
      [160, 8, false],
      [400, 8, true],
      [64, 9, true],
    ] as const) {
      const { add, abandoned } = recorder();
      add(fragmentFrame(whole, 160)[1]!);
      add(pieceOf(whole, start, count, more));
      expect(abandoned[0]?.reason).toMatch(/malformed|overlap/);
    }
  });

  it('a datagram beyond 65,535 bytes is malformed (ping of death)', () => {
    const { add, abandoned } = recorder();
    add(pieceOf(udpFrame({ src, dst, payload: new Uint8Array(1_400) }), 65_528, 1_000, false));
    expect(abandoned).toEqual([{ handles: [0], reason: 'malformed' }]);
  });
});

describe('headers of the joined datagram', () => {
  it('IPv4: options stay, length and checksum are right', () => {
    const frame = udpFrame({ payload: new Uint8Array(100), ipOptions: fromHex('94040000') });
    const { add, completed } = recorder();
    for (const fragment of fragmentFrame(frame, 48)) add(fragment);
    const bytes = completed[0]!.bytes;
    expect(bytes.length).toBe(frame.length);
    expect(checksumFold(checksumAdd(new DataView(bytes.buffer), 14, 24))).toBe(0xffff);
  });

  it('IPv6: extension headers before the fragment header stay, and announce the upper layer', () => {
    const common = { src: 'fe80::1', dst: 'fe80::2', firstHeader: 0 };
    // Hop-by-hop, then fragments of UDP: header 0035 9d78, length 24, and 16 bytes of payload.
    const udp = '00359d780018 0000 41414141414141414141414141414141';
    const whole = fromHex(udp);
    const info = dissectFrame(
      udpFrame({ src: 'fe80::1', dst: 'fe80::2', payload: 'A'.repeat(16) }),
    );
    whole.set(info.bytes.slice(info.l4Offset + 6, info.l4Offset + 8), 6);
    const fragment = (start: number, end: number, more: boolean) =>
      rawFragment(common, start, more, whole.slice(start, end));
    const { add, completed } = recorder();
    add(fragment(16, 24, false));
    add(fragment(0, 16, true));
    const joined = completed[0]!.bytes;
    expect(joined.length).toBe(14 + 40 + 8 + 24);
    expect([joined[20], joined[54]]).toEqual([0, 17]);
  });
});

/** `count` bytes from `start` of a frame's transport as a fragment of its own (bytes beyond its end are zero). */
function pieceOf(frame: TestFrame, start: number, count: number, more?: boolean): TestFrame {
  const info = dissectFrame(frame);
  const transport = new Uint8Array(Math.max(info.l4Bytes, start + count));
  transport.set(info.bytes.subarray(info.l4Offset, info.l4Offset + info.l4Bytes));
  const isIpv6 = info.ipVersion === 6;
  const headerEnd = info.l4Offset - frame.offset;
  const out = new Uint8Array(10 + headerEnd + (isIpv6 ? 8 : 0) + count);
  const view = new DataView(out.buffer);
  const l3 = 10 + 14;
  const hasMore = more ?? start + count < info.l4Bytes;
  out.set(frameBytes(frame).subarray(0, headerEnd), 10);
  out.set(transport.subarray(start, start + count), out.length - count);
  if (isIpv6) {
    view.setUint16(l3 + 4, 8 + count);
    view.setUint8(l3 + 6, 44);
    view.setUint8(l3 + 40, info.protocol);
    view.setUint16(l3 + 42, start | (hasMore ? 1 : 0));
    view.setUint32(l3 + 44, 1);
  } else {
    view.setUint16(l3 + 2, 20 + count);
    view.setUint16(l3 + 4, 1);
    view.setUint16(l3 + 6, (start / 8) | (hasMore ? 0x2000 : 0));
  }
  return { buffer: { bytes: out, view }, offset: 10, length: out.length - 10 };
}

/** Hop-by-hop header, fragment header, part: built as the payload of an otherwise empty frame. */
function rawFragment(
  common: { src: string; dst: string; firstHeader: number },
  start: number,
  more: boolean,
  part: Uint8Array,
): TestFrame {
  const fragmentHeader = new Uint8Array(16 + part.length);
  fragmentHeader.set(fromHex('2c00050200000100 1100 0000 00000007'));
  new DataView(fragmentHeader.buffer).setUint16(10, start | (more ? 1 : 0));
  fragmentHeader.set(part, 16);
  return rawIp(common, fragmentHeader);
}

function rawIp(common: { src: string; dst: string; firstHeader: number }, rest: Uint8Array) {
  const frame = udpFrame({ ...common, firstHeader: 59, payload: rest.slice(8) });
  const bytes = frame.buffer.bytes;
  bytes.set(rest, frame.offset + 54);
  bytes[frame.offset + 20] = common.firstHeader;
  return frame;
}
