import { describe, expect, test } from 'vitest';
import { tcpFrame, udpFrame } from '../../test/support/frame-builder.ts';
import { VNET_HDR_BYTES } from '../limits.ts';
import { createFrameBuffer } from '../wire/bytes.ts';
import { checksumFold, pseudoHeaderSum } from '../wire/checksum.ts';
import { dissect, FRAME_OK, FrameInfo } from '../wire/frame.ts';
import { TCP_ACK, TCP_CWR } from '../wire/tcp.ts';
import {
  readVnetHeader,
  VNET_GSO_ECN,
  VNET_GSO_NONE,
  VNET_GSO_TCPV4,
  VNET_GSO_TCPV6,
  VNET_GSO_TYPE,
  VNET_GSO_UDP_L4,
  VNET_NEEDS_CSUM,
} from '../wire/vnet-hdr.ts';
import { FITTED_HEADER_BYTES_MAX, FrameFitter, fitsMtu } from './overlong.ts';

const MTU = 1_500;
type Frame = ReturnType<typeof tcpFrame>;

const fits = (frame: Frame, mtu = MTU) => fitsMtu(frame.buffer, frame.offset, frame.length, mtu);

/** The rewritten headers followed by the payload: what the kernel is given. */
function refit(frame: Frame, mtu = MTU) {
  const fitter = new FrameFitter();
  const out = createFrameBuffer(FITTED_HEADER_BYTES_MAX);
  const bytes = fitter.fit(frame.buffer, frame.offset, frame.length, mtu, out, 0);
  if (bytes === 0) return undefined;
  const whole = createFrameBuffer(bytes + fitter.payloadBytes);
  whole.bytes.set(out.bytes.subarray(0, bytes));
  const from = fitter.payloadOffset;
  whole.bytes.set(frame.buffer.bytes.subarray(from, from + fitter.payloadBytes), bytes);
  const info = new FrameInfo();
  const length = whole.bytes.length - VNET_HDR_BYTES;
  expect(dissect(whole, VNET_HDR_BYTES, length, info)).toBe(FRAME_OK);
  return { vnet: readVnetHeader(whole.view, 0), info, whole };
}

describe('fitsMtu()', () => {
  test('is exact at the longest plain frame', () => {
    expect(fits(tcpFrame({ payload: new Uint8Array(1_460) }))).toBe(true);
    expect(fits(tcpFrame({ payload: new Uint8Array(1_461) }))).toBe(false);
  });

  test('allows one 802.1Q tag on top, as the kernel does, and not a second', () => {
    expect(fits(tcpFrame({ vlan: 5, payload: new Uint8Array(1_460) }))).toBe(true);
    expect(fits(tcpFrame({ vlan: 5, payload: new Uint8Array(1_461) }))).toBe(false);
    expect(fits(tcpFrame({ vlan: 5 * 4096 + 6, payload: new Uint8Array(1_460) }))).toBe(false);
  });

  test('judges a GSO frame by its segments', () => {
    const payload = new Uint8Array(20_000);
    const gso = { payload, partialChecksum: true, gsoType: VNET_GSO_TCPV4 };
    expect(fits(tcpFrame({ ...gso, gsoBytes: 1_460 }))).toBe(true);
    expect(fits(tcpFrame({ ...gso, gsoBytes: 1_461 }))).toBe(false);
    expect(fits(tcpFrame({ ...gso, gsoBytes: 1_460, vlan: 7 }))).toBe(true);
    const timestamps = { timestamps: { tsval: 1, tsecr: 2 } };
    expect(fits(tcpFrame({ ...gso, gsoBytes: 1_448, options: timestamps }))).toBe(true);
    expect(fits(tcpFrame({ ...gso, gsoBytes: 1_449, options: timestamps }))).toBe(false);
  });

  test('judges UDP segmentation by its datagrams', () => {
    const gso = { payload: new Uint8Array(9_000), partialChecksum: true, gsoType: VNET_GSO_UDP_L4 };
    expect(fits(udpFrame({ ...gso, gsoBytes: 1_472 }))).toBe(true);
    expect(fits(udpFrame({ ...gso, gsoBytes: 1_473 }))).toBe(false);
  });

  test('does not read past a frame whose csum_start lies', () => {
    const frame = tcpFrame({
      payload: new Uint8Array(3_000),
      gsoType: VNET_GSO_TCPV4,
      gsoBytes: 9,
    });
    frame.buffer.view.setUint16(frame.offset - VNET_HDR_BYTES + 6, 65_535, true);
    expect(fits(frame)).toBe(false);
  });
});

describe('FrameFitter.fit()', () => {
  test('turns a long TCP frame over IPv4 into a GSO frame with a partial checksum', () => {
    const payload = Uint8Array.from({ length: 8_000 }, (_, index) => index);
    const { vnet, info, whole } = refit(tcpFrame({ payload, seq: 77 }))!;
    expect(vnet).toMatchObject({
      flags: VNET_NEEDS_CSUM,
      gsoType: VNET_GSO_TCPV4,
      headerBytes: 54,
      gsoBytes: 1_460,
      csumStart: 34,
      csumOffset: 16,
    });
    const sum = checksumFold(pseudoHeaderSum(info, 6, 20 + 8_000));
    expect(whole.view.getUint16(info.l4Offset + 16)).toBe(sum);
    expect(info.seq).toBe(77);
    expect(whole.bytes.subarray(info.payloadOffset)).toEqual(payload);
  });

  test('counts options, tags and IPv6 headers as part of each segment', () => {
    const payload = new Uint8Array(8_000);
    const options = { timestamps: { tsval: 1, tsecr: 2 } };
    const v6 = { src: '2001:db8::2', dst: '2001:db8::9' };
    expect(refit(tcpFrame({ payload, options }))!.vnet.gsoBytes).toBe(1_448);
    expect(refit(tcpFrame({ payload, options, vlan: 9 }))!.vnet).toMatchObject({
      gsoBytes: 1_448,
      csumStart: 38,
      headerBytes: 70,
    });
    expect(refit(tcpFrame({ payload, ...v6 }))!.vnet).toMatchObject({
      gsoType: VNET_GSO_TCPV6,
      gsoBytes: 1_440,
      csumStart: 54,
    });
  });

  test('lowers the segment size of a GSO frame, and leaves its partial checksum alone', () => {
    const frame = tcpFrame({
      payload: new Uint8Array(30_000),
      partialChecksum: true,
      gsoType: VNET_GSO_TCPV4,
      gsoBytes: 8_960,
    });
    const before = frame.buffer.view.getUint16(frame.offset + 34 + 16);
    const { vnet, info, whole } = refit(frame)!;
    expect(vnet.gsoBytes).toBe(1_460);
    expect(whole.view.getUint16(info.l4Offset + 16)).toBe(before);
  });

  test('keeps CWR to the first segment', () => {
    const frame = tcpFrame({ payload: new Uint8Array(4_000), flags: TCP_ACK | TCP_CWR });
    expect(refit(frame)!.whole.view.getUint8(VNET_GSO_TYPE)).toBe(VNET_GSO_TCPV4 | VNET_GSO_ECN);
  });

  test('cuts off what follows the IP packet, changing nothing else', () => {
    const frame = tcpFrame({ payload: new Uint8Array(1_400), paddingBytes: 200 });
    const { vnet, whole } = refit(frame)!;
    expect(vnet).toMatchObject({ flags: 0, gsoType: VNET_GSO_NONE });
    const start = frame.offset - VNET_HDR_BYTES;
    const end = frame.offset + 54 + 1_400;
    expect(whole.bytes).toEqual(frame.buffer.bytes.subarray(start, end));
  });

  test('does not change the frame that it was given', () => {
    const frame = tcpFrame({ payload: new Uint8Array(8_000) });
    const before = frame.buffer.bytes.slice();
    refit(frame);
    expect(frame.buffer.bytes).toEqual(before);
  });

  test('refuses what cannot be cut: UDP, fragments, garbage, a nonsensical MTU', () => {
    expect(refit(udpFrame({ payload: new Uint8Array(4_000) }))).toBeUndefined();
    const fragment = tcpFrame({ payload: new Uint8Array(4_000) });
    fragment.buffer.view.setUint16(fragment.offset + 14 + 6, 0x2000);
    expect(refit(fragment)).toBeUndefined();
    const garbage = tcpFrame({ payload: new Uint8Array(4_000) });
    garbage.buffer.view.setUint8(garbage.offset + 14, 0x4f);
    garbage.buffer.view.setUint16(garbage.offset + 14 + 2, 40);
    expect(refit(garbage)).toBeUndefined();
    expect(refit(tcpFrame({ payload: new Uint8Array(4_000) }), 44)).toBeUndefined();
  });
});
