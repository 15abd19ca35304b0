import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { fromHex, toHex } from './bytes.ts';
import { CAPTURE_BLOCK_BYTES_MAX, CAPTURE_INTERFACES_MAX, CaptureDecoder } from './pcap.ts';
import {
  encodeInterface,
  encodePacket,
  encodeSectionHeader,
  type PacketFields,
} from './pcapng-writer.ts';

function concat(parts: readonly Uint8Array[]): Uint8Array {
  const bytes = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  let at = 0;
  for (const part of parts) {
    bytes.set(part, at);
    at += part.length;
  }
  return bytes;
}

/** Reads a whole file in chunks; packets with their bytes as hexadecimal text. */
function read(bytes: Uint8Array, chunkBytes = bytes.length) {
  const packets: Record<string, string | number>[] = [];
  const decoder = new CaptureDecoder(({ bytes: memory, offset, length, ...rest }) => {
    packets.push({ ...rest, hex: toHex(memory, offset, length) });
  });
  for (let at = 0; at < bytes.length; at += chunkBytes) {
    decoder.push(bytes.subarray(at, at + chunkBytes));
  }
  decoder.end();
  return { packets, error: decoder.error };
}

/** A pcap file of one packet (01 02 03, 60 bytes originally) at 1.000005 s. */
const PCAP_BIG = `a1b2c3d4 0002 0004 00000000 00000000 0000ffff 00000001
  00000001 00000005 00000003 0000003c 010203`;
const PCAP_LITTLE_NS = `4d3cb2a1 0200 0400 00000000 00000000 ffff0000 01000000
  01000000 88130000 03000000 3c000000 010203`;

describe('pcap', () => {
  it.each([
    ['big-endian, microseconds', PCAP_BIG],
    ['little-endian, nanoseconds', PCAP_LITTLE_NS],
    [
      'big-endian, nanoseconds',
      PCAP_BIG.replace('a1b2c3d4', 'a1b23c4d').replace('00000005', '00001388'),
    ],
  ])('%s', (_, hex) => {
    expect(read(fromHex(hex))).toEqual({
      error: undefined,
      packets: [
        {
          hex: '010203',
          originalBytes: 60,
          atUs: 1_000_005,
          interfaceId: 0,
          interfaceName: '',
          linkType: 1,
          comment: '',
        },
      ],
    });
  });

  it('is cut off anywhere: the packets before, and an error', () => {
    const bytes = fromHex(PCAP_BIG);
    for (let length = 0; length < bytes.length; length++) {
      const { packets, error } = read(bytes.slice(0, length));
      expect(packets).toEqual([]);
      expect(error === undefined).toBe(length === 24);
    }
  });

  it('refuses packets longer than CAPTURE_BLOCK_BYTES_MAX, and files of another kind', () => {
    const bytes = fromHex(PCAP_BIG);
    new DataView(bytes.buffer).setUint32(32, CAPTURE_BLOCK_BYTES_MAX + 1);
    expect(read(bytes).error).toMatch('packet too long');
    expect(read(fromHex('00'.repeat(24))).error).toMatch('no magic');
    expect(read(fromHex('7f454c46')).error).toMatch('no magic');
  });
});

describe('pcapng', () => {
  it('reads a big-endian section with nanoseconds, a time offset, and all packet blocks', () => {
    const bytes = fromHex(`
      0a0d0d0a 0000001c 1a2b3c4d 0001 0000 ffffffff ffffffff 0000001c
      00000001 00000030 0001 0000 00000002
        0002 0003 65746800 0009 0001 09000000 000e 0008 0000000000000064 00000030
      00000bad 00000010 ffffffff 00000010
      00000006 00000030 00000000 00000000 000f4628 00000002 00000009 abcd0000
        0001 0002 68690000 0000 0000 00000030
      00000003 00000014 00000009 abcd0000 00000014
      00000002 00000024 0000 0007 00000000 000003e8 00000002 00000002 abcd0000 00000024`);
    const common = { hex: 'abcd', interfaceId: 0, interfaceName: 'eth', linkType: 1 };
    // 0x000f4628 = 1,001,000 ns; the offset is 100 s.
    expect(read(bytes)).toEqual({
      error: undefined,
      packets: [
        { ...common, originalBytes: 9, atUs: 100_001_001, comment: 'hi' },
        { ...common, originalBytes: 9, atUs: 0, comment: '' },
        { ...common, originalBytes: 2, atUs: 100_000_001, comment: '' },
      ],
    });
  });

  it('a new section forgets the interfaces of the one before', () => {
    const file = [encodeSectionHeader({}), encodeInterface({ name: 'a' }), encodeSectionHeader({})];
    const packet = encodePacket({ interfaceId: 0, atUs: 0, bytes: Uint8Array.of(1) });
    expect(read(concat([...file, packet])).error).toMatch('unknown interface');
    expect(read(concat([...file, encodeInterface({ name: 'b' }), packet])).packets).toMatchObject([
      { interfaceName: 'b', hex: '01' },
    ]);
  });

  it('the decoder fed in pieces of any size reads what the writer wrote', () => {
    const text = fc.option(fc.string({ unit: 'grapheme', maxLength: 20 }), { nil: undefined });
    const packet = fc.record(
      {
        interfaceId: fc.nat(1),
        atUs: fc.maxSafeNat(),
        bytes: fc.uint8Array({ maxLength: 60 }),
        comment: text,
        direction: fc.constantFrom('inbound' as const, 'outbound' as const),
      },
      { requiredKeys: ['interfaceId', 'atUs', 'bytes'] },
    );
    fc.assert(
      fc.property(
        fc.array(packet, { maxLength: 8 }),
        fc.integer({ min: 1, max: 90 }),
        (given, size) => {
          const names = ['net0', 'gäst'];
          const file = concat([
            encodeSectionHeader({ application: 'colo-proxy', comment: 'test' }),
            ...names.map((name) => encodeInterface({ name, comment: 'c' })),
            ...given.map((one) => encodePacket(one as PacketFields)),
          ]);
          const { packets, error } = read(file, size);
          expect(error).toBeUndefined();
          expect(packets).toEqual(
            given.map(({ interfaceId, atUs, bytes, comment }) => ({
              interfaceId,
              atUs,
              interfaceName: names[interfaceId],
              linkType: 1,
              originalBytes: bytes.length,
              comment: comment ?? '',
              hex: toHex(bytes),
            })),
          );
        },
      ),
    );
  });

  it('takes a part of a buffer, and says how long the packet was', () => {
    const bytes = Uint8Array.of(9, 1, 2, 3, 9);
    const fields = { interfaceId: 0, atUs: 1, bytes, offset: 1, length: 3, originalBytes: 1_500 };
    const file = concat([encodeSectionHeader({}), encodeInterface({}), encodePacket(fields)]);
    expect(read(file).packets).toMatchObject([{ hex: '010203', originalBytes: 1_500 }]);
  });

  it('refuses a section with more than CAPTURE_INTERFACES_MAX interfaces', () => {
    const one = encodeInterface({});
    const many = Array.from({ length: CAPTURE_INTERFACES_MAX + 1 }, () => one);
    expect(read(concat([encodeSectionHeader({}), ...many])).error).toMatch('too many interfaces');
  });

  it('never throws on changed or cut files, and ends at every input', () => {
    const valid = concat([
      encodeSectionHeader({ comment: 'x' }),
      encodeInterface({ name: 'net0', snapBytes: 96 }),
      encodePacket({ interfaceId: 0, atUs: 5, bytes: new Uint8Array(33), comment: 'y' }),
      fromHex('03000000 14000000 04000000 01020304 14000000'),
    ]);
    const change = fc.tuple(fc.nat(valid.length - 1), fc.integer({ min: 0, max: 255 }));
    fc.assert(
      fc.property(
        fc.array(change, { maxLength: 4 }),
        fc.nat(valid.length),
        fc.integer({ min: 1, max: 64 }),
        (changes, length, chunk) => {
          const bytes = valid.slice(0, length);
          for (const [at, value] of changes) if (at < length) bytes[at] = value;
          const whole = read(bytes, Math.max(1, length));
          expect(read(bytes, chunk)).toEqual(whole);
        },
      ),
      { numRuns: 1_500 },
    );
  });
});
