import { describe, expect, it } from 'vitest';
import {
  dissectFrame,
  fragmentFrame,
  frameBytes,
  tcpFrame,
} from '../../test/support/frame-builder.ts';
import { TCP_RST, TCP_SYN } from '../wire/tcp.ts';
import { adjustClientSegment, adjustGuestSegment, readFragmentTcpHeader } from './adjust.ts';
import { applyChecksumDelta, delta16 } from './checksum-delta.ts';
import { lowerAck } from './lower.ts';
import { writePureAck } from './pure-ack.ts';

describe('applyChecksumDelta()', () => {
  // RFC 1624 §4: equation 2 gives 0xffff here, equation 3 gives 0x0000.
  it('gives 0x0000 in the example of RFC 1624', () => {
    const view = new DataView(new ArrayBuffer(2));
    view.setUint16(0, 0xdd2f);
    applyChecksumDelta(view, 0, delta16(0x5555, 0x3285, false));
    expect(view.getUint16(0)).toBe(0x0000);
  });

  it('keeps a wrong checksum wrong', () => {
    const frame = tcpFrame({ seq: 1, payload: 'x' });
    const info = dissectFrame(frame);
    const right = frameBytes(tcpFrame({ seq: 1_001, payload: 'x' }));
    info.view.setUint16(info.l4Offset + 16, info.view.getUint16(info.l4Offset + 16) ^ 0x0100);
    adjustGuestSegment(info, 1_000, 0);
    expect(frameBytes(frame)).not.toEqual(right);
  });
});

describe('adjustGuestSegment()', () => {
  it('wraps at 2^32', () => {
    const frame = tcpFrame({ seq: 0xffff_fffe });
    adjustGuestSegment(dissectFrame(frame), 5, 0);
    expect(dissectFrame(frame).seq).toBe(3);
  });

  it('leaves the partial checksum of a GSO frame alone', () => {
    const fields = {
      partialChecksum: true,
      gsoType: 1,
      gsoBytes: 1_448,
      payload: new Uint8Array(9_000),
    };
    const frame = tcpFrame({ ...fields, seq: 10 });
    adjustGuestSegment(dissectFrame(frame), -20, 0);
    expect(frameBytes(frame)).toEqual(frameBytes(tcpFrame({ ...fields, seq: 0xffff_fff6 })));
  });

  it('asserts that there is a TCP header', () => {
    const info = dissectFrame(tcpFrame({}));
    info.tcpHeaderBytes = 0;
    expect(() => adjustGuestSegment(info, 1, 0)).toThrow('whole TCP header');
    expect(() => lowerAck(info, 1)).toThrow('whole TCP header');
  });
});

describe('adjustClientSegment()', () => {
  it('leaves a segment without the ACK flag as it is', () => {
    for (const flags of [TCP_SYN, TCP_RST]) {
      const fields = { flags, ack: 7, options: { timestamps: { tsval: 1, tsecr: 2 } } };
      const frame = tcpFrame(fields);
      adjustClientSegment(dissectFrame(frame), 5, 5);
      expect(frameBytes(frame)).toEqual(frameBytes(tcpFrame(fields)));
    }
  });
});

describe('readFragmentTcpHeader()', () => {
  const whole = tcpFrame({ seq: 500, ack: 9, payload: 'a'.repeat(64) });

  it('lets a first fragment be adjusted so that the joined segment has a right checksum', () => {
    const [first, second] = fragmentFrame(whole, 48);
    const info = dissectFrame(first!);
    expect(readFragmentTcpHeader(info)).toBe(true);
    expect([info.seq, info.ack, info.payloadBytes]).toEqual([500, 9, 28]);
    adjustGuestSegment(info, 1_000, 0);
    const expected = fragmentFrame(tcpFrame({ seq: 1_500, ack: 9, payload: 'a'.repeat(64) }), 48);
    expect(frameBytes(first!)).toEqual(frameBytes(expected[0]!));
    expect(readFragmentTcpHeader(dissectFrame(second!))).toBe(false);
  });

  it('refuses a fragment that holds only a part of the header', () => {
    const [tiny] = fragmentFrame(whole, 16);
    expect(readFragmentTcpHeader(dissectFrame(tiny!))).toBe(false);
  });
});

describe('writePureAck()', () => {
  it.each([
    [4, [10, 0, 0, 2], [10, 0, 0, 9], '10.0.0.2', '10.0.0.9'],
    [
      6,
      [0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2],
      [0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9],
      '2001:db8::2',
      '2001:db8::9',
    ],
  ])(
    'writes the IPv%d frame that the frame builder writes',
    (ipVersion, src, dst, srcText, dstText) => {
      const buffer = tcpFrame({ payload: new Uint8Array(100) }).buffer;
      const timestamps = { tsval: 0x01020304, tsecr: 5 };
      const length = writePureAck(buffer, 10, {
        srcMac: Uint8Array.of(2, 0, 0, 0, 0, 2),
        dstMac: Uint8Array.of(2, 0, 0, 0, 0, 9),
        vlan: 5,
        ipVersion,
        srcAddress: Uint8Array.from([...src, ...new Array(16 - src.length).fill(0)]),
        dstAddress: Uint8Array.from([...dst, ...new Array(16 - dst.length).fill(0)]),
        srcPort: 80,
        dstPort: 40_312,
        seq: 0xffff_ffff,
        ack: 77,
        window: 500,
        timestamps,
      });
      const fields = { vlan: 5, seq: 0xffff_ffff, ack: 77, window: 500, options: { timestamps } };
      const expected = tcpFrame({ ...fields, src: srcText, dst: dstText });
      expect(frameBytes({ buffer, offset: 10, length })).toEqual(frameBytes(expected));
    },
  );
});
