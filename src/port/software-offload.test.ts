import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { tcpFrame, udpFrame } from '../../test/support/frame-builder.ts';
import type { FrameBuffer } from '../env/frame.ts';
import { VNET_HDR_BYTES } from '../limits.ts';
import { createFrameBuffer } from '../wire/bytes.ts';
import { checksumAdd, checksumOf, isTransportChecksumRight } from '../wire/checksum.ts';
import { dissect, FRAME_OK, FrameInfo } from '../wire/frame.ts';
import { seqAdd } from '../wire/seq.ts';
import { TCP_ACK, TCP_CWR, TCP_FIN, TCP_PSH } from '../wire/tcp.ts';
import { VNET_GSO_TCPV4, VNET_GSO_TCPV6, VNET_GSO_UDP_L4 } from '../wire/vnet-hdr.ts';
import { isOffloaded, SEGMENT_HEADER_BYTES_MAX, SoftwareOffload } from './software-offload.ts';

const V6 = { src: '2001:db8::2', dst: '2001:db8::9' };

/** The segments as whole frames, dissected; undefined when the frame was refused. */
function complete(frame: ReturnType<typeof tcpFrame>) {
  const room = { buffer: createFrameBuffer(SEGMENT_HEADER_BYTES_MAX + 7), offset: 7 };
  const segments: { buffer: FrameBuffer; info: FrameInfo; payload: Uint8Array }[] = [];
  const isDone = new SoftwareOffload().complete(frame.buffer, frame.offset, frame.length, {
    room: () => room,
    segment: (headerBytes, payloadOffset, payloadBytes) => {
      const buffer = createFrameBuffer(VNET_HDR_BYTES + headerBytes + payloadBytes);
      const header = room.buffer.bytes.subarray(room.offset, room.offset + headerBytes);
      buffer.bytes.set(header, VNET_HDR_BYTES);
      const payload = frame.buffer.bytes.subarray(payloadOffset, payloadOffset + payloadBytes);
      buffer.bytes.set(payload, VNET_HDR_BYTES + headerBytes);
      const info = new FrameInfo();
      const length = headerBytes + payloadBytes;
      expect(dissect(buffer, VNET_HDR_BYTES, length, info)).toBe(FRAME_OK);
      const end = info.payloadOffset + info.payloadBytes;
      segments.push({ buffer, info, payload: buffer.bytes.subarray(info.payloadOffset, end) });
    },
  });
  return isDone ? segments : undefined;
}

const joined = (parts: readonly { payload: Uint8Array }[]) =>
  Uint8Array.from(parts.flatMap(({ payload }) => [...payload]));

describe('SoftwareOffload', () => {
  test('cuts TCP into segments that are right in every field, on both IP versions', () => {
    fc.assert(
      fc.property(
        fc.boolean(),
        fc.uint8Array({ minLength: 1, maxLength: 5_000 }),
        fc.integer({ min: 100, max: 1_460 }),
        fc.integer({ min: 0, max: 2 ** 32 - 1 }),
        fc.constantFrom(0, 5, 5 * 4096 + 6),
        (isV6, payload, gsoBytes, seq, vlan) => {
          const frame = tcpFrame({
            ...(isV6 ? V6 : {}),
            payload,
            seq,
            vlan,
            id: 0xffff,
            flags: TCP_ACK | TCP_PSH | TCP_FIN | TCP_CWR,
            options: { timestamps: { tsval: 1, tsecr: 2 } },
            partialChecksum: true,
            gsoType: isV6 ? VNET_GSO_TCPV6 : VNET_GSO_TCPV4,
            gsoBytes,
          });
          const before = frame.buffer.bytes.slice();
          const segments = complete(frame)!;
          expect(frame.buffer.bytes).toEqual(before);
          expect(joined(segments)).toEqual(payload);
          let done = 0;
          segments.forEach(({ buffer, info, payload: part }, index) => {
            const isLast = index === segments.length - 1;
            expect(isTransportChecksumRight(info)).toBe(true);
            expect(info.seq).toBe(seqAdd(seq, done));
            expect(info.vlan).toBe(vlan);
            expect(info.l3Offset - info.frameOffset + info.l3Bytes).toBe(info.frameBytes);
            expect(part.length).toBe(isLast ? payload.length - done : gsoBytes);
            const last = isLast ? TCP_PSH | TCP_FIN : 0;
            expect(info.tcpFlags).toBe(TCP_ACK | last | (index === 0 ? TCP_CWR : 0));
            if (!isV6) {
              expect(checksumOf(checksumAdd(buffer.view, info.l3Offset, 20))).toBe(0);
              expect(buffer.view.getUint16(info.l3Offset + 4)).toBe((0xffff + index) & 0xffff);
            }
            done += part.length;
          });
        },
      ),
      { numRuns: 60 },
    );
  });

  test.each([{}, V6])('cuts UDP segmentation into datagrams', (addresses) => {
    const payload = Uint8Array.from({ length: 3_001 }, (_, index) => index);
    const offload = { partialChecksum: true, gsoType: VNET_GSO_UDP_L4, gsoBytes: 1_201 };
    const datagrams = complete(udpFrame({ ...addresses, payload, ...offload }))!;
    expect(datagrams.map((part) => part.payload.length)).toEqual([1_201, 1_201, 599]);
    expect(joined(datagrams)).toEqual(payload);
    for (const { info } of datagrams) expect(isTransportChecksumRight(info)).toBe(true);
  });

  test.each([
    ['TCP', tcpFrame({ payload: 'odd', partialChecksum: true }), tcpFrame({ payload: 'odd' })],
    [
      'UDP over IPv6',
      udpFrame({ ...V6, payload: 'even', partialChecksum: true }),
      udpFrame({ ...V6, payload: 'even' }),
    ],
  ])('completes a partial checksum: %s', (_name, partial, full) => {
    expect(isOffloaded(partial.buffer.view, partial.offset)).toBe(true);
    const [only] = complete(partial)!;
    expect(only!.buffer.bytes.subarray(VNET_HDR_BYTES)).toEqual(
      full.buffer.bytes.subarray(full.offset, full.offset + full.length),
    );
  });

  test('refuses what makes no sense', () => {
    const gso = { payload: new Uint8Array(3_000), partialChecksum: true, gsoBytes: 1_000 };
    expect(complete(udpFrame({ ...gso, gsoType: VNET_GSO_TCPV4 }))).toBeUndefined();
    expect(complete(tcpFrame({ ...gso, gsoType: VNET_GSO_UDP_L4 }))).toBeUndefined();
    expect(complete(tcpFrame({ ...gso, gsoType: VNET_GSO_TCPV4, gsoBytes: 0 }))).toBeUndefined();
    expect(complete(tcpFrame({ ...gso, gsoType: VNET_GSO_TCPV4, gsoBytes: 7 }))).toBeUndefined();
    expect(complete(tcpFrame({ ...gso, gsoType: 9 }))).toBeUndefined();
    const lying = tcpFrame({ payload: 'x', partialChecksum: true });
    lying.buffer.view.setUint16(lying.offset - VNET_HDR_BYTES + 6, 60_000, true);
    expect(complete(lying)).toBeUndefined();
  });
});
