import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import {
  formatIp,
  formatIpv4,
  formatIpv6,
  formatMac,
  parseIp,
  parseIpv4,
  parseIpv6,
  parseMac,
} from './address.ts';
import { fromHex, toHex } from './bytes.ts';

describe('formatIpv6()', () => {
  it.each([
    ['20010db8000000000000000000000001', '2001:db8::1'],
    ['00000000000000000000000000000000', '::'],
    ['00000000000000000000000000000001', '::1'],
    ['fe800000000000000000000000000000', 'fe80::'],
    // RFC 5952 §4.2.2: one zero group is not shortened; §4.2.3: the longest run, the first of equals.
    ['20010db8000000010001000100010001', '2001:db8:0:1:1:1:1:1'],
    ['20010000000000010000000000000001', '2001:0:0:1::1'],
    ['20010db8000000000001000000000001', '2001:db8::1:0:0:1'],
    // §4.3: lower case.
    ['20010db8aaaabbbbccccddddeeee0001', '2001:db8:aaaa:bbbb:cccc:dddd:eeee:1'],
    // §5: IPv4-mapped.
    ['00000000000000000000ffffc0000201', '::ffff:192.0.2.1'],
  ])('%s is %s', (hex, text) => {
    expect(formatIpv6(fromHex(hex), 0)).toBe(text);
    expect(toHex(parseIpv6(text)!)).toBe(hex);
  });
});

describe('parse and format', () => {
  it('are inverse', () => {
    const ipv6 = fc.array(fc.constantFrom(0, 0, 0, 1, 255), { minLength: 16, maxLength: 16 });
    fc.assert(
      fc.property(ipv6, (bytes) => {
        expect([...parseIpv6(formatIpv6(Uint8Array.from(bytes), 0))!]).toEqual(bytes);
      }),
    );
    fc.assert(
      fc.property(fc.uint8Array({ minLength: 6, maxLength: 6 }), (bytes) => {
        expect(parseMac(formatMac(bytes, 0))).toEqual(bytes);
        expect(parseIpv4(formatIpv4(bytes, 2))).toEqual(bytes.slice(2));
      }),
    );
    expect(formatIp(4, Uint8Array.of(9, 10, 0, 0, 2), 1)).toBe('10.0.0.2');
  });

  it('parseIp() tells the families apart', () => {
    expect(parseIp('10.0.0.2')?.length).toBe(4);
    expect(parseIp('::10.0.0.2')?.length).toBe(16);
  });

  it.each([
    ...['', '1.2.3', '1.2.3.4.5', '1.2.3.256', '01.2.3.4', '1.2.3.-4', '1.2.3.4 ', '0x1.2.3.4'],
    ...[
      ':',
      ':::',
      '1::2::3',
      '1:2:3:4:5:6:7',
      '1:2:3:4:5:6:7:8:9',
      '12345::',
      'g::',
      'fe80::1%eth0',
    ],
    ...['1:2:3:4:5:6:7::8', '::1.2.3', '1.2.3.4::', '::ffff:1.2.3.4:5'],
  ])('parseIp() refuses "%s"', (text) => expect(parseIp(text)).toBeUndefined());

  it('parseMac() takes colons or hyphens, and nothing else', () => {
    expect(parseMac('02-00-00-00-00-0A')).toEqual(Uint8Array.of(2, 0, 0, 0, 0, 10));
    for (const text of ['', '02:00:00:00:00', '02:00:00:00:00:0', '02:00:00:00:00:0g']) {
      expect(parseMac(text)).toBeUndefined();
    }
  });

  it('fromHex() refuses what is no hexadecimal text', () => {
    expect(() => fromHex('abc')).toThrow(RangeError);
    expect(() => fromHex('zz')).toThrow(RangeError);
  });
});
