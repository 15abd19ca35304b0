import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import {
  CLIENT_IP,
  CLIENT_IP6,
  dissectFrame,
  frameBytes,
  GUEST_IP,
  GUEST_IP6,
  type TcpFrameFields,
  type TestFrame,
  tcpFrame,
} from '../../test/support/frame-builder.ts';
import { isTransportChecksumRight } from '../wire/checksum.ts';
import { TCP_ACK } from '../wire/tcp.ts';
import { adjustClientSegment, adjustGuestSegment } from './adjust.ts';
import { lowerAck, setWindow, trimSack } from './lower.ts';

/** An option as the reference understands it: values, not bytes. */
type Option =
  | { readonly kind: 'nop' }
  | { readonly kind: 'timestamps'; readonly tsval: number; readonly tsecr: number }
  | { readonly kind: 'sack'; readonly edges: readonly number[] }
  | { readonly kind: 'unknown'; readonly bytes: readonly number[] };

const u32 = fc.oneof(
  fc.integer({ min: 0, max: 0xffff_ffff }),
  fc.integer({ min: 0xffff_fff0, max: 0xffff_ffff }),
  fc.integer({ min: 0, max: 15 }),
);
const delta = fc.oneof(fc.integer({ min: -0x8000_0000, max: 0x7fff_ffff }), fc.constant(0));

const option: fc.Arbitrary<Option> = fc.oneof(
  fc.constant<Option>({ kind: 'nop' }),
  fc.record({ kind: fc.constant('timestamps' as const), tsval: u32, tsecr: u32 }),
  fc.integer({ min: 1, max: 3 }).chain((blocks) =>
    fc.record({
      kind: fc.constant('sack' as const),
      edges: fc.array(u32, { minLength: 2 * blocks, maxLength: 2 * blocks }),
    }),
  ),
  fc.record({
    kind: fc.constant('unknown' as const),
    bytes: fc.array(fc.integer({ min: 0, max: 255 }), { maxLength: 5 }),
  }),
);

function bytes32(value: number): number[] {
  return [value >>> 24, (value >>> 16) & 255, (value >>> 8) & 255, value & 255];
}

function encode(o: Option): number[] {
  switch (o.kind) {
    case 'nop':
      return [1];
    case 'timestamps':
      return [8, 10, ...bytes32(o.tsval), ...bytes32(o.tsecr)];
    case 'sack':
      return [5, 2 + 4 * o.edges.length, ...o.edges.flatMap(bytes32)];
    case 'unknown':
      return [253, 2 + o.bytes.length, ...o.bytes];
  }
}

/** As many of the options as fit, then zeros (end of options) up to a multiple of four. */
function encodeAll(options: readonly Option[]): Uint8Array {
  const out: number[] = [];
  for (const o of options) {
    const bytes = encode(o);
    if (out.length + bytes.length <= 40) out.push(...bytes);
  }
  while (out.length % 4 !== 0) out.push(0);
  return Uint8Array.from(out);
}

const segment = fc.record({
  isIpv6: fc.boolean(),
  partialChecksum: fc.boolean(),
  seq: u32,
  ack: u32,
  window: fc.integer({ min: 0, max: 65_535 }),
  flags: fc.integer({ min: 0, max: 255 }),
  options: fc.array(option, { maxLength: 5 }),
  payload: fc.uint8Array({ maxLength: 40 }),
  vlan: fc.constantFrom(0, 5, 7 * 4096 + 5),
});
type Segment = typeof segment extends fc.Arbitrary<infer T> ? T : never;

function build(s: Segment): TestFrame {
  const addresses = s.isIpv6
    ? { src: GUEST_IP6, dst: CLIENT_IP6 }
    : { src: GUEST_IP, dst: CLIENT_IP };
  const fields: TcpFrameFields = { ...s, ...addresses, options: encodeAll(s.options) };
  return tcpFrame(fields);
}

function add(value: number, count: number): number {
  return Number((BigInt(value) + BigInt(count)) & 0xffff_ffffn);
}

describe('adjust', () => {
  it('adjustGuestSegment() gives the frame that was built with the translated numbers', () => {
    fc.assert(
      fc.property(segment, delta, delta, (s, seqDelta, tsDelta) => {
        const frame = build(s);
        const info = dissectFrame(frame);
        adjustGuestSegment(info, seqDelta, tsDelta);
        const options = s.options.map((o) =>
          o.kind === 'timestamps' ? { ...o, tsval: add(o.tsval, tsDelta) } : o,
        );
        const seq = add(s.seq, seqDelta);
        expect(frameBytes(frame)).toEqual(frameBytes(build({ ...s, seq, options })));
        expect(info.seq).toBe(seq);
      }),
    );
  });

  it('adjustClientSegment() gives the frame that was built with the translated numbers', () => {
    fc.assert(
      fc.property(segment, delta, delta, (s, seqDelta, tsDelta) => {
        const frame = build(s);
        const info = dissectFrame(frame);
        adjustClientSegment(info, seqDelta, tsDelta);
        const hasAck = (s.flags & TCP_ACK) !== 0;
        const options = s.options.map((o): Option => {
          if (!hasAck) return o;
          if (o.kind === 'timestamps') return { ...o, tsecr: add(o.tsecr, -tsDelta) };
          if (o.kind === 'sack') return { ...o, edges: o.edges.map((e) => add(e, -seqDelta)) };
          return o;
        });
        const ack = hasAck ? add(s.ack, -seqDelta) : s.ack;
        expect(frameBytes(frame)).toEqual(frameBytes(build({ ...s, ack, options })));
        expect(info.ack).toBe(ack);
      }),
    );
  });

  it('changes nothing outside the header, whatever bytes the options are, and leaves a right checksum', () => {
    const words = fc.integer({ min: 0, max: 10 });
    fc.assert(
      fc.property(
        words.chain((n) => fc.uint8Array({ minLength: 4 * n, maxLength: 4 * n })),
        fc.uint8Array({ maxLength: 30 }),
        delta,
        (options, payload, d) => {
          const frame = tcpFrame({ options, payload, seq: 1, ack: 2 });
          const before = frameBytes(frame);
          const info = dissectFrame(frame);
          adjustGuestSegment(info, d, d);
          adjustClientSegment(info, d, d);
          trimSack(info, (left) => (left & 1) === 0);
          expect(isTransportChecksumRight(info)).toBe(true);
          const headerEnd = info.payloadOffset - frame.offset;
          expect(frameBytes(frame).slice(headerEnd)).toEqual(before.slice(headerEnd));
        },
      ),
    );
  });
});

describe('lower', () => {
  it('lowerAck() and setWindow() give the frame that was built with those values', () => {
    fc.assert(
      fc.property(segment, u32, fc.integer({ min: 0, max: 65_535 }), (s, ack, window) => {
        const frame = build(s);
        const info = dissectFrame(frame);
        lowerAck(info, ack);
        setWindow(info, window);
        expect(frameBytes(frame)).toEqual(frameBytes(build({ ...s, ack, window })));
        expect([info.ack, info.window]).toEqual([ack, window]);
      }),
    );
  });

  it('trimSack() keeps the covered blocks together and fills up with NOPs', () => {
    fc.assert(
      fc.property(segment, u32, (s, limit) => {
        const covered = (_left: number, right: number): boolean => right <= limit;
        const frame = build(s);
        const removed = trimSack(dissectFrame(frame), covered);
        const encoded = encodeAll(s.options);
        let expectedRemoved = 0;
        // The reference walks the encoded bytes and rebuilds each SACK option from a list of blocks.
        for (let at = 0; at < encoded.length; ) {
          const kind = encoded[at]!;
          if (kind === 0) break;
          const bytes = kind === 1 ? 1 : encoded[at + 1]!;
          if (kind === 5) {
            const view = new DataView(encoded.buffer, at, bytes);
            const blocks: number[][] = [];
            for (let i = 2; i < bytes; i += 8)
              blocks.push([view.getUint32(i), view.getUint32(i + 4)]);
            const kept = blocks.filter(([left, right]) => covered(left!, right!));
            expectedRemoved += blocks.length - kept.length;
            const body =
              kept.length === 0 ? [] : [5, 2 + 8 * kept.length, ...kept.flat().flatMap(bytes32)];
            while (body.length < bytes) body.push(1);
            encoded.set(body, at);
          }
          at += bytes;
        }
        const { options: _, ...rest } = s;
        const src = s.isIpv6 ? GUEST_IP6 : GUEST_IP;
        const dst = s.isIpv6 ? CLIENT_IP6 : CLIENT_IP;
        expect(frameBytes(frame)).toEqual(
          frameBytes(tcpFrame({ ...rest, src, dst, options: encoded })),
        );
        expect(removed).toBe(expectedRemoved);
      }),
    );
  });
});
