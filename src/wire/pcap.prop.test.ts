import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { CaptureDecoder } from './pcap.ts';
import { encodeInterface, encodePacket, encodeSectionHeader } from './pcapng-writer.ts';

interface Read {
  readonly packets: { atUs: number; bytes: number[] }[];
  readonly error: string | undefined;
}

function read(chunks: readonly Uint8Array[]): Read {
  const packets: Read['packets'] = [];
  const decoder = new CaptureDecoder(({ bytes, offset, length, atUs }) => {
    packets.push({ atUs, bytes: [...bytes.subarray(offset, offset + length)] });
  });
  for (const chunk of chunks) decoder.push(chunk);
  decoder.end();
  return { packets, error: decoder.error };
}

const packet = fc.record({
  atUs: fc.nat({ max: 2 ** 31 - 1 }),
  bytes: fc.uint8Array({ maxLength: 90 }),
});

const file = fc.array(packet, { maxLength: 8 }).map((packets) => {
  const blocks = [
    encodeSectionHeader({ application: 'test' }),
    encodeInterface({ name: 'a' }),
    ...packets.map(({ atUs, bytes }) => encodePacket({ interfaceId: 0, atUs, bytes })),
  ];
  return { packets, bytes: Uint8Array.from(blocks.flatMap((block) => [...block])) };
});

describe('CaptureDecoder', () => {
  test('reads what was written, byte by byte as at once', () => {
    const check = ({
      packets,
      bytes,
    }: {
      packets: { atUs: number; bytes: Uint8Array }[];
      bytes: Uint8Array;
    }): void => {
      const expected = packets.map((item) => ({ atUs: item.atUs, bytes: [...item.bytes] }));
      expect(read([bytes])).toEqual({ packets: expected, error: undefined });
      expect(read([...bytes].map((byte) => Uint8Array.of(byte)))).toEqual({
        packets: expected,
        error: undefined,
      });
    };
    fc.assert(fc.property(file, check), { numRuns: 300 });
  });

  test('never throws on a damaged file, and says the same however it is cut', () => {
    const damaged = fc
      .tuple(
        file,
        fc.array(fc.tuple(fc.nat({ max: 400 }), fc.nat({ max: 255 })), { maxLength: 5 }),
        fc.nat({ max: 400 }),
      )
      .map(([{ bytes }, changes, cut]) => {
        const copy = bytes.slice(0, Math.max(0, bytes.length - cut));
        for (const [at, value] of changes) if (at < copy.length) copy[at] = value;
        return copy;
      });
    const check = (bytes: Uint8Array, at: number): void => {
      const middle = at % (bytes.length + 1);
      expect(read([bytes.slice(0, middle), bytes.slice(middle)])).toEqual(read([bytes]));
    };
    fc.assert(fc.property(damaged, fc.nat(), check), { numRuns: 2_000 });
  });
});
