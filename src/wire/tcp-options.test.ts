import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { fromHex } from './bytes.ts';
import { emitTcpOptions, parseTcpOptions, TcpOptions } from './tcp-options.ts';

/** Parses options at the very end of their memory: a read past them throws. */
function parse(bytes: Uint8Array, out = new TcpOptions()): TcpOptions {
  const own = new Uint8Array(bytes);
  parseTcpOptions(new DataView(own.buffer), 0, own.length, out);
  return out;
}

describe('parseTcpOptions()', () => {
  it('reads the SYN of a Linux host', () => {
    const options = parse(fromHex('020405b4 0402 080a 00bc614e 00000000 01 030307'));
    expect([options.mss, options.windowScale, options.sackPermitted]).toEqual([1460, 7, true]);
    expect([options.hasTimestamps, options.tsval, options.tsecr]).toEqual([true, 12_345_678, 0]);
    expect([options.mssOffset, options.windowScaleOffset, options.sackPermittedOffset]).toEqual([
      2, 19, 4,
    ]);
    expect(options.timestampsOffset).toBe(8);
    expect(options.malformed).toBe(false);
  });

  it('takes the short way for aligned timestamps, with the same result as the long one', () => {
    const aligned = parse(fromHex('0101080a 89abcdef 01234567'));
    const longWay = parse(fromHex('0101080a 89abcdef 01234567 00000000'));
    expect(aligned).toEqual(longWay);
    expect([aligned.tsval, aligned.tsecr, aligned.timestampsOffset]).toEqual([
      0x89abcdef, 0x01234567, 4,
    ]);
  });

  it('reads SACK blocks with their offset, across 2^32', () => {
    const options = parse(fromHex('0101 0512 fffffff0 00000010 00000100 00000200'));
    expect([options.sackCount, options.sackOffset]).toEqual([2, 2]);
    expect([options.sackLeft(0), options.sackRight(0)]).toEqual([0xfffffff0, 0x10]);
    expect([options.sackLeft(1), options.sackRight(1)]).toEqual([0x100, 0x200]);
  });

  it('a parse leaves nothing of the one before', () => {
    const out = parse(fromHex('020405b4 0402 080a 00bc614e 00000000 01 030307'));
    expect(parse(new Uint8Array(0), out)).toEqual(new TcpOptions());
  });

  it('skips unknown kinds, stops at the end of the list, and limits the window scale to 14', () => {
    expect(parse(fromHex('fd04abcd 020405b4')).mss).toBe(1460);
    expect(parse(fromHex('00 020405b4')).mss).toBe(0);
    expect(parse(fromHex('03030f')).windowScale).toBe(14);
    expect(parse(fromHex('030300')).windowScale).toBe(0);
  });

  it.each([
    ['a length of 0', '0101 0200'],
    ['a length of 1', '0101 fd01'],
    ['a kind without a length', '010101 02'],
    ['an option beyond the end', '020405'],
    ['an MSS of 3 bytes', '020305'],
    ['a SACK of no block', '0502'],
    ['a SACK of a block and a half', `050e${'00'.repeat(12)}`],
    ['a second SACK', `050a${'00'.repeat(8)}050a${'00'.repeat(8)}`],
    ['timestamps of 9 bytes', `0809${'00'.repeat(7)}`],
  ])('%s is malformed', (_, hex) => {
    expect(parse(fromHex(hex)).malformed).toBe(true);
  });

  it('keeps what stands before a malformed option', () => {
    const options = parse(fromHex('020405b4 0402 05ff'));
    expect([options.mss, options.sackPermitted, options.malformed]).toEqual([1460, true, true]);
  });

  it('never throws, and points at nothing outside, on any bytes', () => {
    fc.assert(
      fc.property(fc.array(fc.oneof(fc.nat(12), fc.nat(255)), { maxLength: 40 }), (bytes) => {
        const options = parse(Uint8Array.from(bytes));
        expect(options.sackCount).toBeLessThanOrEqual(4);
        if (options.hasTimestamps) {
          expect(options.timestampsOffset + 8).toBeLessThanOrEqual(bytes.length);
        }
        if (options.sackCount > 0) {
          expect(options.sackOffset + 2 + 8 * options.sackCount).toBeLessThanOrEqual(bytes.length);
        }
      }),
      { numRuns: 3_000 },
    );
  });
});

describe('emitTcpOptions()', () => {
  const u32 = fc.integer({ min: 0, max: 0xffff_ffff });
  const fields = fc.record({
    mss: fc.option(fc.integer({ min: 1, max: 65_535 }), { nil: undefined }),
    windowScale: fc.option(fc.nat(14), { nil: undefined }),
    sackPermitted: fc.option(fc.boolean(), { nil: undefined }),
    timestamps: fc.option(fc.record({ tsval: u32, tsecr: u32 }), { nil: undefined }),
    sack: fc.option(fc.array(fc.tuple(u32, u32), { maxLength: 2 }), { nil: undefined }),
  });

  it('writes what parseTcpOptions() reads, in a multiple of 4 bytes', () => {
    fc.assert(
      fc.property(fields, (given) => {
        const bytes = emitTcpOptions(given);
        const options = parse(bytes);
        expect(bytes.length % 4).toBe(0);
        expect(options.malformed).toBe(false);
        expect(options.mss).toBe(given.mss ?? 0);
        expect(options.windowScale).toBe(given.windowScale ?? -1);
        expect(options.sackPermitted).toBe(given.sackPermitted ?? false);
        expect(options.hasTimestamps).toBe(given.timestamps !== undefined);
        expect([options.tsval, options.tsecr]).toEqual([
          given.timestamps?.tsval ?? 0,
          given.timestamps?.tsecr ?? 0,
        ]);
        const sack = given.sack ?? [];
        expect(options.sackCount).toBe(sack.length);
        sack.forEach(([left, right], i) => {
          expect([options.sackLeft(i), options.sackRight(i)]).toEqual([left, right]);
        });
      }),
    );
  });

  it('lays out a data segment as Linux does, so that the short way is taken', () => {
    expect(emitTcpOptions({ timestamps: { tsval: 1, tsecr: 2 } })).toEqual(
      fromHex('0101080a 00000001 00000002'),
    );
  });

  it('refuses what does not fit', () => {
    const sack = [1, 2, 3, 4].map((i) => [i, i + 1] as const);
    expect(() => emitTcpOptions({ timestamps: { tsval: 1, tsecr: 2 }, sack })).toThrow(RangeError);
    expect(emitTcpOptions({ sack }).length).toBe(36);
  });
});
