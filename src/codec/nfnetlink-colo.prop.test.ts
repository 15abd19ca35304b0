import fc from 'fast-check';
import { expect, test } from 'vitest';
import {
  decodeNetlinkError,
  encodeNetlinkError,
  NetlinkStreamDecoder,
  splitNetlink,
} from './netlink.ts';
import {
  decodeColoNotify,
  decodeColoRequest,
  encodeColoRequest,
  encodeKernelNotify,
  encodeLegacyNotify,
  encodeLegacyRequest,
} from './nfnetlink-colo.ts';

const fields = fc.record({
  flags: fc.nat(0xffff),
  seq: fc.nat(0xffff_ffff),
  portId: fc.nat(0xffff_ffff),
});

/** Any message that either side may send. */
const message = fc.oneof(
  fc
    .tuple(fc.constantFrom('init', 'checkpoint', 'failover', 'reset'), fc.nat(255), fields)
    .map(([verb, mode, rest]) => encodeColoRequest(verb, mode, rest)),
  fc
    .tuple(fc.constantFrom('init', 'checkpoint', 'failover', 'reset', 'query'), fields)
    .map(([verb, rest]) => encodeLegacyRequest(verb, rest)),
  fc.tuple(fc.nat(0xffff_ffff), fc.boolean()).map(([port, on]) => encodeKernelNotify(port, on)),
  fc.tuple(fc.nat(0xffff_ffff), fc.boolean()).map(([port, on]) => encodeLegacyNotify(port, on)),
);

/** Messages one after the other, with some bytes changed. */
const mutated = fc
  .tuple(
    fc.array(message, { maxLength: 6 }),
    fc.array(fc.tuple(fc.nat(200), fc.nat(255)), { maxLength: 4 }),
    fc.nat(200),
  )
  .map(([messages, changes, cut]) => {
    const bytes = Uint8Array.from(messages.flatMap((one) => [...one]));
    for (const [at, value] of changes) if (at < bytes.length) bytes[at] = value;
    return bytes.subarray(0, Math.max(bytes.length - cut, 0));
  });

test('splitNetlink() and all decoders keep inside any bytes', () => {
  fc.assert(
    fc.property(fc.oneof(fc.uint8Array({ maxLength: 300 }), mutated), (inner) => {
      // A datagram in the middle of other memory: reading past it would find 0xaa.
      const memory = new Uint8Array(inner.length + 64).fill(0xaa);
      memory.set(inner, 32);
      const bytes = memory.subarray(32, 32 + inner.length);
      const split = splitNetlink(bytes);
      expect(split.messages.length).toBeLessThanOrEqual(inner.length / 16);
      for (const one of split.messages) {
        expect(one.offset + one.length).toBeLessThanOrEqual(bytes.length);
        decodeColoRequest(one);
        decodeColoNotify(one);
        decodeNetlinkError(one);
        expect(
          decodeNetlinkError(splitNetlink(encodeNetlinkError(one, 22, 1)).messages[0]!),
        ).toEqual({
          errno: 22,
          requestType: one.type,
          requestSeq: one.seq,
        });
      }
      if (split.truncated !== undefined) {
        const answer = encodeNetlinkError(split.truncated, 22, 1);
        expect([...answer.subarray(20)]).toEqual([
          ...bytes.subarray(split.truncated.offset),
          ...new Uint8Array(answer.length - 20 - (bytes.length - split.truncated.offset)),
        ]);
      }
    }),
    { numRuns: 2_000 },
  );
});

test('NetlinkStreamDecoder fed in pieces finds what splitNetlink() finds at once', () => {
  fc.assert(
    fc.property(
      fc.array(message, { maxLength: 8 }),
      fc.array(fc.integer({ min: 1, max: 40 }), { minLength: 1 }),
      (messages, sizes) => {
        const bytes = Uint8Array.from(messages.flatMap((one) => [...one]));
        const decoder = new NetlinkStreamDecoder(8192);
        const found: number[][] = [];
        for (let at = 0, index = 0; at < bytes.length; index++) {
          const next = at + sizes[index % sizes.length]!;
          for (const one of decoder.push(bytes.subarray(at, next)).messages) {
            found.push([one.type, one.length, one.seq, one.portId]);
          }
          at = next;
        }
        const expected = splitNetlink(bytes).messages;
        expect(found).toEqual(expected.map((one) => [one.type, one.length, one.seq, one.portId]));
      },
    ),
  );
});

test('NetlinkStreamDecoder takes any bytes in any pieces', () => {
  fc.assert(
    fc.property(fc.array(fc.oneof(fc.uint8Array({ maxLength: 100 }), mutated)), (chunks) => {
      const decoder = new NetlinkStreamDecoder(128);
      for (const chunk of chunks) {
        for (const one of decoder.push(chunk).messages) {
          expect(one.length).toBeLessThanOrEqual(128);
          decodeColoRequest(one);
        }
      }
    }),
  );
});

test('decodeColoRequest() undoes encodeColoRequest() for valid modes and refuses the others', () => {
  fc.assert(
    fc.property(
      fc.constantFrom(
        'init' as const,
        'checkpoint' as const,
        'failover' as const,
        'reset' as const,
      ),
      fc.nat(255),
      fields,
      (verb, mode, rest) => {
        const [one] = splitNetlink(encodeColoRequest(verb, mode, rest)).messages;
        const request = decodeColoRequest(one!);
        if (mode <= 2) expect(request).toEqual({ ok: true, abi: 'nfnetlink', verb, mode });
        else expect(request).toEqual({ ok: false, failure: 'mode-out-of-range' });
        expect(one).toMatchObject(rest);
      },
    ),
  );
});
