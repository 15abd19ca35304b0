import fc from 'fast-check';
import { expect, test } from 'vitest';
import { NfqueueMessage, readNfqueue } from './nfqueue-msg.ts';

/** A message of any attributes, whose lengths may lie. */
const attribute = fc
  .tuple(
    fc.oneof(fc.constantFrom(1, 9, 10, 13, 14), fc.nat(0xffff)),
    fc.uint8Array({ maxLength: 24 }),
    fc.option(fc.nat(0xffff), { nil: undefined, freq: 8 }),
  )
  .map(([type, payload, lie]) => {
    const bytes = new Uint8Array((4 + payload.length + 3) & ~3);
    const view = new DataView(bytes.buffer);
    view.setUint16(0, lie ?? 4 + payload.length, true);
    view.setUint16(2, type, true);
    bytes.set(payload, 4);
    return bytes;
  });
const message = fc
  .tuple(fc.constantFrom(0x0300, 2, 0x0301, 7), fc.array(attribute, { maxLength: 6 }), fc.nat(9))
  .map(([type, attributes, lie]) => {
    const body = attributes.flatMap((bytes) => [...bytes]);
    const bytes = new Uint8Array(20 + body.length);
    const view = new DataView(bytes.buffer);
    view.setUint32(0, lie === 9 ? 0xffff_fff0 : bytes.length - (lie === 8 ? 3 : 0), true);
    view.setUint16(4, type, true);
    bytes.set(body, 20);
    return bytes;
  });

test('readNfqueue() keeps inside any bytes, and reports only what lies there', () => {
  fc.assert(
    fc.property(fc.oneof(fc.uint8Array({ maxLength: 200 }), message), fc.nat(40), (inner, cut) => {
      const length = Math.max(inner.length - cut, 0);
      // The view ends with the datagram: reading past it throws.
      const before = 16;
      const memory = new Uint8Array(before + length);
      memory.set(inner.subarray(0, length), before);
      const out = new NfqueueMessage();
      const kind = readNfqueue(new DataView(memory.buffer), before, length, out);
      if (kind !== 'packet') return;
      const end = before + length;
      expect(out.payloadOffset).toBeGreaterThanOrEqual(before + 24);
      expect(out.payloadOffset + out.payloadBytes).toBeLessThanOrEqual(end);
      if (out.macOffset >= 0) expect(out.macOffset + 6).toBeLessThanOrEqual(end);
    }),
    { numRuns: 3_000 },
  );
});
