import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import {
  arpFrame,
  CLIENT_MAC,
  dissectFrame,
  fragmentFrame,
  frameBytes,
  GUEST_IP,
  icmpEcho,
  neighbourFrame,
  rawFrame,
  rawIpFrame,
  type TestFrame,
  tcpFrame,
  udpFrame,
} from '../../test/support/frame-builder.ts';
import { VNET_HDR_BYTES } from '../limits.ts';
import { formatIp, parseMac } from './address.ts';
import { fromHex } from './bytes.ts';
import { isTransportChecksumRight } from './checksum.ts';
import {
  DROP_ETHERNET_TRUNCATED,
  DROP_ICMP_MALFORMED,
  DROP_IPV4_MALFORMED,
  DROP_IPV4_TRUNCATED,
  DROP_IPV6_EXTENSIONS,
  DROP_IPV6_JUMBO,
  DROP_IPV6_MALFORMED,
  DROP_IPV6_TRUNCATED,
  DROP_REASON_NAMES,
  DROP_TCP_MALFORMED,
  DROP_UDP_MALFORMED,
  DROP_VLAN_NESTED,
  dissect,
  FRAME_OK,
  FrameInfo,
} from './frame.ts';
import { TCP_ACK, TCP_PSH, TCP_SYN } from './tcp.ts';

/** dissect() on a view that ends where the frame ends: any read past it throws. */
function dissectExactly(frameBytesOnly: Uint8Array, info = new FrameInfo()): number {
  const { buffer, offset, length } = rawFrame(frameBytesOnly);
  return dissect(buffer, offset, length, info);
}

/** Changes a copy of a frame's bytes at offsets from its start. */
function patched(frame: TestFrame, ...patches: [number, number][]): Uint8Array {
  const bytes = frameBytes(frame);
  for (const [at, value] of patches) bytes[at] = value;
  return bytes;
}

const SAMPLES: readonly TestFrame[] = [
  tcpFrame({ payload: 'hello', options: { timestamps: { tsval: 1, tsecr: 2 } } }),
  tcpFrame({ src: '2001:db8::2', dst: '2001:db8::9', payload: 'hello', vlan: 5 }),
  udpFrame({ payload: 'hello', vlan: 7 * 4096 + 5, paddingBytes: 9 }),
  icmpEcho({ payload: 'ping' }),
  icmpEcho({ src: 'fe80::1', dst: 'fe80::2', payload: 'ping' }),
  tcpFrame({
    src: 'fe80::1',
    dst: 'fe80::2',
    firstHeader: 0,
    // Hop-by-hop, destination options, AH, in 8, 16 and 24 bytes; then TCP.
    ipOptions: fromHex(`3c00050200000100 3301 ${'00'.repeat(14)} 0604 ${'00'.repeat(22)}`),
  }),
  ...fragmentFrame(udpFrame({ payload: 'x'.repeat(90) }), 48),
  ...fragmentFrame(udpFrame({ src: 'fe80::1', dst: 'fe80::2', payload: 'x'.repeat(90) }), 48),
  arpFrame(),
  neighbourFrame(),
];

describe('dissect()', () => {
  it('finds every field of a TCP segment written out by hand', () => {
    const info = new FrameInfo();
    // 192.0.2.1:443 to 198.51.100.7:50000, SYN-ACK, MSS 1460, "ok" after it, four bytes of padding.
    const bytes = fromHex(`
      0200000000090200000000020800
      4500002e12344000400600 00c0000201c6336407
      01bbc350 89abcdef 01234567 6012ffff 00000000 020405b4
      6f6b 00000000`);
    expect(dissectExactly(bytes, info)).toBe(FRAME_OK);
    const at = VNET_HDR_BYTES;
    expect({ ...info, bytes: 0, view: 0 }).toEqual({
      bytes: 0,
      view: 0,
      frameOffset: at,
      frameBytes: bytes.length,
      etherType: 0x0800,
      vlanTags: 0,
      vlan: 0,
      l3Offset: at + 14,
      ipVersion: 4,
      l3Bytes: 46,
      protocol: 6,
      isFragment: false,
      fragmentOffset: 0,
      moreFragments: false,
      fragmentId: 0,
      fragmentHeaderOffset: 0,
      srcAddressOffset: at + 26,
      dstAddressOffset: at + 30,
      l4Offset: at + 34,
      l4Bytes: 26,
      srcPort: 443,
      dstPort: 50_000,
      icmpType: 0,
      icmpCode: 0,
      seq: 0x89abcdef,
      ack: 0x01234567,
      tcpFlags: TCP_SYN | TCP_ACK,
      window: 0xffff,
      tcpHeaderBytes: 24,
      payloadOffset: at + 58,
      payloadBytes: 2,
      checksumPartial: false,
    });
  });

  it('looks through two VLAN tags and names them outer * 4096 + inner', () => {
    const info = dissectFrame(udpFrame({ vlan: 7 * 4096 + 5, payload: 'abc', paddingBytes: 20 }));
    expect(info.vlanTags).toBe(2);
    expect(info.vlan).toBe(7 * 4096 + 5);
    expect(info.payloadBytes).toBe(3);
    expect(dissectFrame(udpFrame({ vlan: 5 })).vlan).toBe(5);
  });

  it('a third tag is vlan-nested', () => {
    const bytes = fromHex(`${'00'.repeat(12)} 88a80001 81000002 81000003 0800 ${'00'.repeat(40)}`);
    expect(dissectExactly(bytes)).toBe(DROP_VLAN_NESTED);
    expect(DROP_REASON_NAMES[DROP_VLAN_NESTED]).toBe('vlan-nested');
  });

  it('ARP and unknown EtherTypes are fine and not IP', () => {
    const info = dissectFrame(arpFrame());
    expect([info.etherType, info.ipVersion, info.l3Offset]).toEqual([0x0806, 0, 24]);
    expect(dissectExactly(fromHex(`${'00'.repeat(12)} 88cc`))).toBe(FRAME_OK);
  });

  it('walks IPv6 extension headers to the transport', () => {
    const info = dissectFrame(SAMPLES[5]!);
    expect([info.protocol, info.l4Offset - info.l3Offset, info.dstPort]).toEqual([6, 88, 40_312]);
    expect(info.isFragment).toBe(false);
  });

  it('an atomic fragment is a whole packet (RFC 6946)', () => {
    const frame = udpFrame({
      src: 'fe80::1',
      dst: 'fe80::2',
      firstHeader: 44,
      ipOptions: fromHex('1100000012345678'),
      payload: 'abc',
    });
    const info = dissectFrame(frame);
    expect([info.isFragment, info.protocol, info.payloadBytes]).toEqual([false, 17, 3]);
  });

  it('reads ports of a first fragment only', () => {
    for (const src of [GUEST_IP, 'fe80::1']) {
      const dst = src === GUEST_IP ? '10.0.0.9' : 'fe80::2';
      const whole = udpFrame({ src, dst, payload: 'x'.repeat(100) });
      const [first, second, last] = fragmentFrame(whole, 48, 0x1234).map(dissectFrame);
      expect([first!.srcPort, first!.isFragment, first!.moreFragments]).toEqual([53, true, true]);
      expect([second!.srcPort, second!.fragmentOffset]).toEqual([0, 48]);
      expect([last!.moreFragments, last!.fragmentOffset, last!.fragmentId]).toEqual([
        false,
        96,
        0x1234,
      ]);
      expect(last!.payloadBytes).toBe(12);
    }
  });

  it('echo identifiers take the place of ports, in both families', () => {
    const info = dissectFrame(icmpEcho({ identifier: 77, isReply: true }));
    expect([info.icmpType, info.srcPort, info.dstPort]).toEqual([0, 77, 77]);
    const info6 = dissectFrame(icmpEcho({ src: 'fe80::1', dst: 'fe80::2', identifier: 78 }));
    expect([info6.icmpType, info6.srcPort, info6.dstPort]).toEqual([128, 78, 78]);
  });

  it('NEEDS_CSUM in the virtio-net header is a partial checksum', () => {
    expect(dissectFrame(tcpFrame({ partialChecksum: true })).checksumPartial).toBe(true);
    expect(dissectFrame(tcpFrame()).checksumPartial).toBe(false);
  });

  it('takes a GSO frame of 64 KiB whole', () => {
    const info = dissectFrame(tcpFrame({ payload: new Uint8Array(65_495), gsoType: 1 }));
    expect(info.payloadBytes).toBe(65_495);
  });

  it('a second frame leaves nothing of the first', () => {
    const info = new FrameInfo();
    const fresh = new FrameInfo();
    for (const first of SAMPLES) {
      for (const second of SAMPLES) {
        dissect(first.buffer, first.offset, first.length, info);
        dissect(second.buffer, second.offset, second.length, info);
        dissect(second.buffer, second.offset, second.length, fresh);
        expect(info).toEqual(fresh);
      }
    }
  });
});

describe('dissect() names what is wrong', () => {
  const tcp = tcpFrame({ payload: 'hello' });
  const tcp6 = tcpFrame({ src: 'fe80::1', dst: 'fe80::2', payload: 'hello' });
  const udp = udpFrame({ payload: 'hello' });
  const cases: [string, Uint8Array, number][] = [
    ['an empty frame', new Uint8Array(0), DROP_ETHERNET_TRUNCATED],
    ['a tag cut off', fromHex(`${'00'.repeat(12)} 8100 00`), DROP_ETHERNET_TRUNCATED],
    ['IPv4 with version 5', patched(tcp, [14, 0x55]), DROP_IPV4_MALFORMED],
    ['IHL 4', patched(tcp, [14, 0x44]), DROP_IPV4_MALFORMED],
    ['total length below the header', patched(tcp, [16, 0], [17, 19]), DROP_IPV4_MALFORMED],
    ['total length beyond the frame', patched(tcp, [17, 46]), DROP_IPV4_TRUNCATED],
    ['total length 0 (BIG TCP)', patched(tcp, [17, 0]), DROP_IPV4_MALFORMED],
    ['IPv6 with version 4', patched(tcp6, [14, 0x45]), DROP_IPV6_MALFORMED],
    ['payload length beyond the frame', patched(tcp6, [19, 26]), DROP_IPV6_TRUNCATED],
    ['payload length 0 (BIG TCP)', patched(tcp6, [19, 0]), DROP_IPV6_JUMBO],
    ['an extension header beyond the end', patched(tcp6, [20, 60], [55, 9]), DROP_IPV6_EXTENSIONS],
    ['TCP data offset 4', patched(tcp, [46, 0x40]), DROP_TCP_MALFORMED],
    ['TCP data offset beyond the packet', patched(tcp, [46, 0x70]), DROP_TCP_MALFORMED],
    ['UDP length 7', patched(udp, [39, 7]), DROP_UDP_MALFORMED],
    ['UDP length beyond the packet', patched(udp, [39, 14]), DROP_UDP_MALFORMED],
    ['ICMP of 7 bytes', frameBytes(rawIpFrame(1, { payload: '1234567' })), DROP_ICMP_MALFORMED],
  ];
  for (const [name, bytes, reason] of cases) {
    it(name, () =>
      expect(DROP_REASON_NAMES[dissectExactly(bytes)]).toBe(DROP_REASON_NAMES[reason]),
    );
  }

  it('nine extension headers, and a fragment header in a fragment header', () => {
    const src = { src: 'fe80::1', dst: 'fe80::2' };
    const chain = (count: number) => ({
      ...src,
      firstHeader: 60,
      ipOptions: fromHex(`${'3c00010400000000'.repeat(count - 1)} 0600010400000000`),
    });
    expect(dissectFrame(tcpFrame(chain(8))).dstPort).toBe(40_312);
    expect(dissectExactly(frameBytes(tcpFrame(chain(9))))).toBe(DROP_IPV6_EXTENSIONS);
    const twice = tcpFrame({
      ...src,
      firstHeader: 44,
      ipOptions: fromHex('2c00000000000001 0600000000000001'),
    });
    expect(dissectExactly(frameBytes(twice))).toBe(DROP_IPV6_EXTENSIONS);
  });

  it('no next header and an empty payload is a whole IPv6 packet', () => {
    const frame = rawIpFrame(59, { src: 'fe80::1', dst: 'fe80::2' });
    expect(dissectFrame(frame).l4Bytes).toBe(0);
  });
});

/** All that `info` points at lies inside the frame. */
function expectInside(info: FrameInfo, start: number, end: number): void {
  if (info.ipVersion === 0) return;
  const addressBytes = info.ipVersion === 4 ? 4 : 16;
  const ranges = [
    [info.l3Offset, info.l3Bytes],
    [info.srcAddressOffset, addressBytes],
    [info.dstAddressOffset, addressBytes],
    [info.l4Offset, info.l4Bytes],
    [info.payloadOffset, info.payloadBytes],
    [info.l4Offset, info.tcpHeaderBytes],
  ] as const;
  for (const [offset, count] of ranges) {
    expect(count).toBeGreaterThanOrEqual(0);
    expect(offset).toBeGreaterThanOrEqual(start);
    expect(offset + count).toBeLessThanOrEqual(end);
  }
}

describe('dissect() on hostile bytes', () => {
  const check = (bytes: Uint8Array) => {
    const info = new FrameInfo();
    const reason = dissectExactly(bytes, info);
    expect(DROP_REASON_NAMES[reason]).toBeDefined();
    if (reason === FRAME_OK) expectInside(info, VNET_HDR_BYTES, VNET_HDR_BYTES + bytes.length);
  };

  it('never throws, and reads nothing outside, on every truncation of valid frames', () => {
    for (const sample of SAMPLES) {
      const bytes = frameBytes(sample);
      for (let length = 0; length <= bytes.length; length++) check(bytes.slice(0, length));
    }
  });

  it('the same on valid frames with some bytes changed, and cut anywhere', () => {
    fc.assert(
      fc.property(
        fc.constantFrom(...SAMPLES),
        fc.array(fc.tuple(fc.nat(120), fc.integer({ min: 0, max: 255 })), { maxLength: 6 }),
        fc.nat(150),
        (sample, patches, length) => {
          const bytes = frameBytes(sample);
          for (const [at, value] of patches) if (at < bytes.length) bytes[at] = value;
          check(bytes.slice(0, length));
        },
      ),
      { numRuns: 3_000 },
    );
  });

  it('the same on any bytes behind each EtherType', () => {
    const etherType = fc.constantFrom('0800', '86dd', '8100', '88a8', '0806');
    fc.assert(
      fc.property(etherType, fc.uint8Array({ maxLength: 120 }), (type, rest) => {
        const head = fromHex(`${'02'.repeat(12)}${type}`);
        check(Uint8Array.of(...head, ...rest));
      }),
      { numRuns: 2_000 },
    );
  });
});

describe('the builders of test/support', () => {
  it('write right checksums', () => {
    for (const sample of SAMPLES) {
      const info = dissectFrame(sample);
      if (info.ipVersion === 0 || info.isFragment) continue;
      expect(isTransportChecksumRight(info)).toBe(true);
      info.bytes[info.payloadOffset]! ^= 1;
      if (info.payloadBytes > 0) expect(isTransportChecksumRight(info)).toBe(false);
      info.bytes[info.payloadOffset]! ^= 1;
    }
  });

  it('put what they are told where it belongs', () => {
    const info = dissectFrame(
      tcpFrame({ flags: TCP_PSH | TCP_ACK, seq: 2 ** 32 - 1, payload: 'ab' }),
    );
    expect(formatIp(4, info.bytes, info.srcAddressOffset)).toBe(GUEST_IP);
    expect(info.bytes.slice(info.frameOffset, info.frameOffset + 6)).toEqual(parseMac(CLIENT_MAC));
    expect([info.seq, info.tcpFlags]).toEqual([0xffff_ffff, TCP_PSH | TCP_ACK]);
  });
});
