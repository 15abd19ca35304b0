import fc from 'fast-check';
import { expect, test } from 'vitest';
import { cloneFrame, dissectFrame, udpFrame } from '../../test/support/frame-builder.ts';
import { VNET_HDR_BYTES } from '../limits.ts';
import { dissect, FRAME_OK, FrameInfo } from '../wire/frame.ts';
import { Reassembly } from './reassembly.ts';

const DATAGRAMS_MAX = 3;
const BYTES_MAX = 2_000;
const FRAGMENTS_MAX = 6;
const TIMEOUT_US = 1_000;

/** A fragment of one of a few datagrams: any place, any length, the end anywhere. */
const fragment = fc.record({
  isV6: fc.boolean(),
  id: fc.nat(4),
  /** In units of 8 bytes. */
  start: fc.oneof(fc.nat(8), fc.integer({ min: 8_180, max: 8_191 })),
  bytes: fc.oneof(fc.constantFrom(8, 16, 64, 800), fc.nat(30)),
  more: fc.boolean(),
  fill: fc.nat(1),
  passUs: fc.constantFrom(0, 0, 0, 400, 1_000),
});
type Fragment = typeof fragment extends fc.Arbitrary<infer T> ? T : never;

/** A fragment header is written by hand: the lengths are those of the frame, so that only the fragment's own are odd. */
function frameOf({ isV6, id, start, bytes, more, fill }: Fragment) {
  const payload = new Uint8Array(Math.max(bytes, 8)).fill(fill);
  if (isV6) {
    const header = Uint8Array.of(
      17,
      0,
      (start * 8) >> 8,
      ((start * 8) & 0xf8) | (more ? 1 : 0),
      0,
      0,
      0,
      id,
    );
    return udpFrame({
      src: '2001:db8::2',
      dst: '2001:db8::9',
      payload,
      firstHeader: 44,
      ipOptions: header,
    });
  }
  const frame = cloneFrame(udpFrame({ payload, id }));
  frame.buffer.view.setUint16(VNET_HDR_BYTES + 14 + 6, (more ? 0x2000 : 0) | start);
  return frame;
}

test('Reassembly on any fragments: each goes back once, the limits hold, what is whole can be dissected', () => {
  fc.assert(
    fc.property(fc.array(fragment, { maxLength: 40 }), (fragments) => {
      const back: number[] = [];
      const reassembly = new Reassembly<number>({
        datagramsMax: DATAGRAMS_MAX,
        bytesMax: BYTES_MAX,
        fragmentsMax: FRAGMENTS_MAX,
        timeoutUs: TIMEOUT_US,
        onComplete: (buffer, offset, length, handles) => {
          const info = new FrameInfo();
          // The payload is any bytes, so the UDP length may lie; nothing may be a fragment still.
          if (dissect(buffer, offset, length, info) === FRAME_OK)
            expect(info.isFragment).toBe(false);
          back.push(...handles);
        },
        onAbandon: (handles) => back.push(...handles),
      });
      let nowUs = 0;
      let added = 0;
      for (const item of fragments) {
        nowUs += item.passUs;
        const info = dissectFrame(frameOf(item));
        if (!info.isFragment) continue;
        reassembly.add(info, added++, nowUs);
        expect(reassembly.size).toBeLessThanOrEqual(DATAGRAMS_MAX);
        expect(reassembly.bytes).toBeLessThanOrEqual(BYTES_MAX);
        expect(new Set(back).size).toBe(back.length);
        reassembly.expire(nowUs);
        expect(reassembly.nextDeadlineUs()).toBeGreaterThan(nowUs);
      }
      reassembly.clear();
      expect([reassembly.size, reassembly.bytes]).toEqual([0, 0]);
      expect(back.sort((a, b) => a - b)).toEqual(Array.from({ length: added }, (_, i) => i));
    }),
    { numRuns: 2_000 },
  );
});
