import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import {
  dissectFrame,
  frameBytes,
  icmpEcho,
  tcpFrame,
  udpFrame,
} from '../../test/support/frame-builder.ts';
import { frameBufferOf, fromHex } from './bytes.ts';
import {
  checksumAdd,
  checksumFold,
  checksumOf,
  checksumUpdate16,
  checksumUpdate32,
  completePartialChecksum,
  isTransportChecksumRight,
  writeTransportChecksum,
} from './checksum.ts';
import { readVnetHeader } from './vnet-hdr.ts';

/** RFC 1071 §1, word by word, with the carry added at once. */
function naiveChecksum(bytes: Uint8Array): number {
  let sum = 0;
  for (let i = 0; i < bytes.length; i += 2) {
    sum += (bytes[i]! << 8) | (bytes[i + 1] ?? 0);
    if (sum > 0xffff) sum -= 0xffff;
  }
  return ~sum & 0xffff;
}

function viewOf(bytes: Uint8Array): DataView {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}

describe('checksumAdd() and checksumFold()', () => {
  it('sum the example of RFC 1071 §3', () => {
    const bytes = fromHex('0001 f203 f4f5 f6f7');
    expect(checksumFold(checksumAdd(viewOf(bytes), 0, 8))).toBe(0xddf2);
  });

  it('give the header checksum of a well-known IPv4 header', () => {
    const header = fromHex('4500 0073 0000 4000 4011 0000 c0a8 0001 c0a8 00c7');
    expect(checksumOf(checksumAdd(viewOf(header), 0, 20))).toBe(0xb861);
  });

  it('agree with the naive sum on any bytes, from any offset', () => {
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 300 }), fc.nat(5), (bytes, skip) => {
        const from = Math.min(skip, bytes.length);
        const sum = checksumAdd(viewOf(bytes), from, bytes.length - from);
        expect(checksumOf(sum)).toBe(naiveChecksum(bytes.subarray(from)));
      }),
    );
  });

  it('stay exact on 64 KiB of ones', () => {
    const bytes = new Uint8Array(65_535).fill(0xff);
    expect(checksumOf(checksumAdd(viewOf(bytes), 0, 65_535))).toBe(naiveChecksum(bytes));
  });
});

describe('checksumUpdate16() and checksumUpdate32()', () => {
  it('give 0x0000 in the example of RFC 1624 §4, where RFC 1141 gives 0xffff', () => {
    expect(checksumUpdate16(0xdd2f, 0x5555, 0x3285)).toBe(0x0000);
  });

  it('equal the full checksum for any change at any place, even or odd', () => {
    fc.assert(
      fc.property(
        fc.uint8Array({ minLength: 8, maxLength: 60 }),
        fc.nat(60),
        fc.integer(),
        fc.constantFrom(2, 4),
        (bytes, place, value, width) => {
          const view = viewOf(bytes);
          const at = place % (bytes.length - width + 1);
          const before = naiveChecksum(bytes);
          const read = () => (width === 2 ? view.getUint16(at) : view.getUint32(at));
          const oldValue = read();
          if (width === 2) view.setUint16(at, value);
          else view.setUint32(at, value);
          const update = width === 2 ? checksumUpdate16 : checksumUpdate32;
          const after = update(before, oldValue, read(), at % 2 === 1);
          const isZero = (bytesNow: Uint8Array) => bytesNow.every((byte) => byte === 0);
          // Only of all-zero data the sum is +0; an update cannot know, and says -0 (RFC 1624 §3).
          if (!isZero(bytes)) expect(after).toBe(naiveChecksum(bytes));
        },
      ),
      { numRuns: 2_000 },
    );
  });

  it('take negative numbers and numbers above 2^32 modulo their width', () => {
    expect(checksumUpdate32(0x1234, -1, 5)).toBe(checksumUpdate32(0x1234, 0xffff_ffff, 5));
    expect(checksumUpdate16(0x1234, 0x1_0007, 5)).toBe(checksumUpdate16(0x1234, 7, 5));
  });
});

describe('transport checksums', () => {
  it('writeTransportChecksum() gives the value computed by hand', () => {
    // UDP 10.0.0.2:53 to 10.0.0.9:40312, "hi": pseudo 0a00+0002+0a00+0009+0011+000a, header 0035+9d78+000a, 6869.
    const expected =
      ~(0x0a00 + 2 + 0x0a00 + 9 + 0x11 + 10 + 0x35 + 0x9d78 + 10 + 0x6869 - 0xffff) & 0xffff;
    const info = dissectFrame(udpFrame({ payload: 'hi' }));
    expect(info.view.getUint16(info.l4Offset + 6)).toBe(expected);
  });

  it('a computed zero over UDP is sent as all ones', () => {
    const info = dissectFrame(udpFrame({ payload: new Uint8Array(2) }));
    // With the payload equal to the checksum of the rest, the sum becomes all ones and its complement zero.
    info.view.setUint16(info.payloadOffset, info.view.getUint16(info.l4Offset + 6));
    writeTransportChecksum(info);
    expect(info.view.getUint16(info.l4Offset + 6)).toBe(0xffff);
    expect(isTransportChecksumRight(info)).toBe(true);
  });

  it('zero means none over IPv4, and is wrong over IPv6', () => {
    for (const [src, dst, isRight] of [
      ['10.0.0.2', '10.0.0.9', true],
      ['fe80::1', 'fe80::2', false],
    ] as const) {
      const info = dissectFrame(udpFrame({ src, dst, payload: 'hi' }));
      info.view.setUint16(info.l4Offset + 6, 0);
      expect(isTransportChecksumRight(info)).toBe(isRight);
    }
  });

  it('completePartialChecksum() makes of a partial checksum the whole one', () => {
    for (const build of [tcpFrame, udpFrame]) {
      for (const src of ['10.0.0.2', 'fe80::1']) {
        const dst = src === 'fe80::1' ? 'fe80::2' : '10.0.0.9';
        const whole = build({ src, dst, payload: 'hello' });
        const partial = build({ src, dst, payload: 'hello', partialChecksum: true });
        expect(frameBytes(partial)).not.toEqual(frameBytes(whole));
        const { csumStart, csumOffset } = readVnetHeader(partial.buffer.view, 0);
        const start = partial.offset + csumStart;
        completePartialChecksum(
          partial.buffer,
          start,
          start + csumOffset,
          partial.offset + partial.length,
        );
        expect(frameBytes(partial)).toEqual(frameBytes(whole));
      }
    }
  });

  it('see any flipped bit of the covered bytes', () => {
    for (const frame of [tcpFrame({ payload: 'abc' }), icmpEcho({ payload: 'abc' })]) {
      const info = dissectFrame(frame);
      for (let at = info.l4Offset; at < info.l4Offset + info.l4Bytes; at++) {
        info.bytes[at]! ^= 0x10;
        expect(isTransportChecksumRight(info)).toBe(false);
        info.bytes[at]! ^= 0x10;
      }
    }
  });

  it('frameBufferOf() keeps the place within a larger buffer', () => {
    const bytes = fromHex('ffff 0001 f203 f4f5 f6f7 ffff').subarray(2, 10);
    expect(checksumFold(checksumAdd(frameBufferOf(bytes).view, 0, 8))).toBe(0xddf2);
  });
});
