import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import {
  dissectFrame,
  frameBytes,
  icmpEcho,
  neighbourFrame,
  rawFrame,
} from '../../test/support/frame-builder.ts';
import { VNET_HDR_BYTES } from '../limits.ts';
import { formatIp, parseIpv6 } from './address.ts';
import { createFrameBuffer, fromHex, toHex } from './bytes.ts';
import { isTransportChecksumRight } from './checksum.ts';
import { dissect, FRAME_OK, FrameInfo } from './frame.ts';
import {
  emitUnsolicitedAdvertisement,
  findNeighbourMac,
  isNeighbourMessage,
  multicastMac,
  ND_OPTION_SOURCE_MAC,
  ND_OPTION_TARGET_MAC,
  ND_TARGET,
  solicitedNodeAddress,
} from './icmpv6.ts';

const IP = parseIpv6('2001:db8::12:3456')!;

describe('neighbour discovery frames', () => {
  it('a solicitation goes to the solicited-node address and its multicast MAC', () => {
    const frame = neighbourFrame({ target: '2001:db8::12:3456' });
    const info = dissectFrame(frame);
    expect(formatIp(6, info.bytes, info.dstAddressOffset)).toBe('ff02::1:ff12:3456');
    expect(toHex(info.bytes, frame.offset, 6)).toBe('3333ff123456');
    expect(isNeighbourMessage(info)).toBe(true);
    expect(isTransportChecksumRight(info)).toBe(true);
    expect(toHex(info.bytes, findNeighbourMac(info, ND_OPTION_SOURCE_MAC), 6)).toBe('020000000002');
    expect(findNeighbourMac(info, ND_OPTION_TARGET_MAC)).toBe(-1);
  });

  it('an unsolicited advertisement goes to all nodes and overrides', () => {
    const buffer = createFrameBuffer(128);
    const mac = fromHex('020000000002');
    const length = emitUnsolicitedAdvertisement(buffer, VNET_HDR_BYTES, mac, IP);
    const info = dissectFrame({ buffer, offset: VNET_HDR_BYTES, length });
    expect(toHex(buffer.bytes, VNET_HDR_BYTES, 12)).toBe('333300000001020000000002');
    expect(formatIp(6, info.bytes, info.dstAddressOffset)).toBe('ff02::1');
    expect(formatIp(6, info.bytes, info.l4Offset + ND_TARGET)).toBe('2001:db8::12:3456');
    expect([info.icmpType, info.bytes[info.l4Offset + 4]]).toEqual([136, 0x20]);
    expect(isTransportChecksumRight(info)).toBe(true);
    expect(toHex(info.bytes, findNeighbourMac(info, ND_OPTION_TARGET_MAC), 6)).toBe('020000000002');
  });

  it('addresses follow RFC 4291 §2.7.1 and RFC 2464 §7', () => {
    expect(formatIp(6, solicitedNodeAddress(IP), 0)).toBe('ff02::1:ff12:3456');
    expect(toHex(multicastMac(solicitedNodeAddress(IP)))).toBe('3333ff123456');
  });
});

describe('isNeighbourMessage()', () => {
  const bytes = frameBytes(neighbourFrame());
  const isMessage = (change: (copy: Uint8Array) => void) => {
    const copy = bytes.slice();
    change(copy);
    return isNeighbourMessage(dissectFrame(rawFrame(copy)));
  };

  it('refuses what a router forwarded, other codes, a multicast target, short messages', () => {
    expect(isMessage(() => {})).toBe(true);
    expect(isMessage((copy) => copy.set([254], 21))).toBe(false);
    expect(isMessage((copy) => copy.set([1], 55))).toBe(false);
    expect(isMessage((copy) => copy.set([0xff], 62))).toBe(false);
    expect(isMessage((copy) => copy.set([0, 23], 18))).toBe(false);
    expect(isMessage((copy) => copy.set([128], 54))).toBe(false);
    expect(isNeighbourMessage(dissectFrame(icmpEcho()))).toBe(false);
  });

  it('findNeighbourMac() ends at an option of length 0, and stays within the packet on any bytes', () => {
    const zero = dissectFrame(rawFrame(bytes.map((byte, at) => (at === 79 ? 0 : byte))));
    expect(findNeighbourMac(zero, ND_OPTION_SOURCE_MAC)).toBe(-1);
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 40 }), (options) => {
        const frame = Uint8Array.of(...bytes.subarray(0, 78), ...options);
        frame[19] = 24 + options.length;
        const { buffer, offset, length } = rawFrame(frame);
        const info = new FrameInfo();
        expect(dissect(buffer, offset, length, info)).toBe(FRAME_OK);
        const at = findNeighbourMac(info, ND_OPTION_SOURCE_MAC);
        if (at >= 0) expect(at + 6).toBeLessThanOrEqual(offset + length);
      }),
    );
  });
});
