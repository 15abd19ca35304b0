import { describe, expect, it } from 'vitest';
import { VNET_HDR_BYTES } from '../limits.ts';
import { ARP_REPLY, emitArpFrame, emitGratuitousArp, isArp } from './arp.ts';
import { createFrameBuffer, fromHex, toHex } from './bytes.ts';

const MAC = fromHex('020000000002');
const IP = Uint8Array.of(10, 0, 0, 2);

describe('ARP frames', () => {
  it('a reply is the frame of RFC 826, padded to 60 bytes', () => {
    const buffer = createFrameBuffer(128);
    buffer.bytes.fill(0xee);
    const length = emitArpFrame(buffer, VNET_HDR_BYTES, {
      operation: ARP_REPLY,
      senderMac: MAC,
      senderIp: IP,
      targetMac: fromHex('020000000009'),
      targetIp: Uint8Array.of(10, 0, 0, 9),
    });
    expect(toHex(buffer.bytes, 0, VNET_HDR_BYTES + length)).toBe(
      '00'.repeat(10) +
        '020000000009 020000000002 0806 0001 0800 06 04 0002'.replaceAll(' ', '') +
        '0200000000020a000002 0200000000090a000009'.replaceAll(' ', '') +
        '00'.repeat(18),
    );
  });

  it('a gratuitous one is a tagged broadcast request for the own address (RFC 5227 §3)', () => {
    const buffer = createFrameBuffer(128);
    const length = emitGratuitousArp(buffer, VNET_HDR_BYTES, MAC, IP, 5);
    expect(length).toBe(60);
    expect(toHex(buffer.bytes, VNET_HDR_BYTES, 46)).toBe(
      'ffffffffffff 020000000002 81000005 0806 0001 0800 06 04 0001'.replaceAll(' ', '') +
        '0200000000020a000002 0000000000000a000002'.replaceAll(' ', ''),
    );
  });
});

describe('isArp()', () => {
  const packet = fromHex('0001 0800 06 04 0001 0200000000020a000002 0000000000000a000009');
  const check = (bytes: Uint8Array) => isArp(new DataView(bytes.slice().buffer), 0, bytes.length);

  it('is true for IPv4 over Ethernet alone', () => {
    expect(check(packet)).toBe(true);
    for (let at = 0; at < 6; at++) {
      const changed = packet.slice();
      changed[at]! ^= 2;
      expect(check(changed)).toBe(false);
    }
  });

  it('is false for every truncation, without reading past the end', () => {
    for (let length = 0; length < packet.length; length++) {
      expect(check(packet.slice(0, length))).toBe(false);
    }
  });
});
