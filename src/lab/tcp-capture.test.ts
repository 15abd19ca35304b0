import { describe, expect, it } from 'vitest';
import { CLIENT_IP6, GUEST_IP6, tcpFrame } from '../../test/support/frame-builder.ts';
import { CAPTURE_BYTES, type CapturedFrame } from './capture.ts';
import { type CapturedSegment, continuation, readSegment } from './tcp-capture.ts';
import { GUEST_MAC } from './topology.ts';

function captured(options: Parameters<typeof tcpFrame>[0]): CapturedFrame {
  const { buffer, offset, length } = tcpFrame(options);
  const bytes = buffer.bytes.slice(offset, offset + Math.min(length, CAPTURE_BYTES));
  return { atMs: 7, bytes, length };
}

describe('readSegment()', () => {
  it.each([4, 6] as const)('reads ports, numbers and length of a cut frame, IPv%i', (ipVersion) => {
    const frame = captured({
      ...(ipVersion === 6 ? { src: GUEST_IP6, dst: CLIENT_IP6 } : {}),
      srcMac: GUEST_MAC,
      srcPort: 80,
      dstPort: 40_000,
      seq: 0xffff_fff0,
      ack: 5,
      payload: new Uint8Array(1_000),
    });
    const expected = { atMs: 7, seq: 0xffff_fff0, ack: 5, isSyn: false, payloadBytes: 1_000 };
    expect(readSegment(frame)).toEqual({ ...expected, fromGuest: true, clientPort: 40_000 });
    frame.bytes[6] = 0;
    expect(readSegment(frame)).toEqual({ ...expected, fromGuest: false, clientPort: 80 });
  });

  it('is undefined for what is no TCP, and for a runt', () => {
    const frame = captured({});
    expect(readSegment({ ...frame, bytes: frame.bytes.subarray(0, 40) })).toBeUndefined();
    frame.bytes[23] = 17;
    expect(readSegment(frame)).toBeUndefined();
  });
});

describe('continuation()', () => {
  const segment = (more: Partial<CapturedSegment>): CapturedSegment => ({
    atMs: 0,
    fromGuest: true,
    clientPort: 1,
    seq: 0,
    ack: 0,
    isSyn: false,
    payloadBytes: 0,
    ...more,
  });

  it('counts what is new after the death, and not what comes again', () => {
    const segments = [
      segment({ atMs: 10, seq: 0xffff_ff9c, payloadBytes: 100, ack: 50 }),
      segment({ atMs: 11, fromGuest: false, payloadBytes: 900 }),
      segment({ atMs: 25, seq: 0xffff_ff9c, payloadBytes: 100, ack: 50 }), // again
      segment({ atMs: 30, seq: 0, payloadBytes: 70, ack: 50 }),
      segment({ atMs: 32, clientPort: 2, seq: 0, payloadBytes: 70, ack: 50 }),
      segment({ atMs: 33, seq: 70, ack: 90 }),
    ];
    expect(continuation(segments, 1, 20)).toEqual({
      pauseMs: 20,
      receivedBytes: 70,
      acknowledgedBytes: 40,
    });
  });

  it('says so when nothing came any more', () => {
    const segments = [segment({ atMs: 10, payloadBytes: 100 })];
    expect(continuation(segments, 1, 20)).toEqual({
      pauseMs: 0,
      receivedBytes: 0,
      acknowledgedBytes: 0,
    });
  });
});
