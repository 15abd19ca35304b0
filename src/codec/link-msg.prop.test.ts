import fc from 'fast-check';
import { expect, test } from 'vitest';
import type { FrameBuffer } from '../env/frame.ts';
import type { PeerHello } from '../env/link.ts';
import type { LinkMessage } from '../env/messages.ts';
import { type LinkDecodeError, LinkDecoder } from './link-decode.ts';
import {
  encodeFrame,
  encodeGoodbye,
  encodeHeartbeat,
  encodeHello,
  encodeMessage,
  encodeRefuse,
} from './link-encode.ts';
import {
  LINK_CAUSE_CODES,
  LINK_REFUSAL_CODES,
  LINK_ROLE_CODES,
  LINK_STATE_CODES,
} from './link-msg.ts';

/** One thing of the stream, as sent and as heard. */
type Item =
  | { hello: PeerHello; isAnswer: boolean }
  | { refusal: object }
  | { heartbeat: object }
  | { goodbye: string }
  | { frame: readonly number[]; kind: number; epoch: number }
  | { message: LinkMessage };

const keysOf = <Name extends string>(codes: Record<Name, number>): fc.Arbitrary<Name> =>
  fc.constantFrom(...(Object.keys(codes) as Name[]));
const u8 = fc.integer({ min: 0, max: 0xff });
const u16 = fc.integer({ min: 0, max: 0xffff });
const u32 = fc.integer({ min: 0, max: 0xffff_ffff });
const u53 = fc.maxSafeNat();
/** Printable, whole characters, within the limit. */
const text = fc
  .string({ unit: 'grapheme', maxLength: 50 })
  .map((value) => value.replace(/\p{Cc}|\p{Cs}/gu, '-'));
const address = fc.uint8Array({ minLength: 16, maxLength: 16 });

const hello: fc.Arbitrary<PeerHello> = fc.record({
  role: keysOf(LINK_ROLE_CODES),
  nodeId: fc
    .uint8Array({ minLength: 16, maxLength: 16 })
    .map((id) => Buffer.from(id).toString('hex')),
  instance: u53,
  epoch: u32,
  state: keysOf(LINK_STATE_CODES),
  software: text,
  heartbeatUs: u32,
  timeoutUs: fc.integer({ min: 20_000, max: 600_000_000 }),
});

const entry = fc.record({
  ipVersion: fc.constantFrom(4, 6),
  protocol: u8,
  vlan: u32,
  guestPort: u16,
  clientPort: u16,
  guestAddress: address,
  clientAddress: address,
  position: u32,
});

const bytesOfLength = (count: number) => fc.uint8Array({ minLength: count, maxLength: count });
const guestAddress = fc.oneof(
  ...[4, 6].map((ipVersion) =>
    fc.record({
      ipVersion: fc.constant(ipVersion),
      vlan: u32,
      ip: bytesOfLength(ipVersion === 4 ? 4 : 16),
      mac: bytesOfLength(6),
      certain: fc.boolean(),
    }),
  ),
);

const message: fc.Arbitrary<LinkMessage> = fc.oneof(
  fc.record({
    type: fc.constantFrom(
      'checkpoint-begin' as const,
      'checkpoint-began' as const,
      'checkpoint-commit' as const,
      'checkpoint-committed' as const,
    ),
    epoch: u32,
  }),
  fc.record({ type: fc.constant('checkpoint-abort' as const), epoch: u32, reason: text }),
  fc.record({
    type: fc.constant('checkpoint-request' as const),
    cause: keysOf(LINK_CAUSE_CODES),
    text,
  }),
  fc.record({
    type: fc.constant('progress' as const),
    entries: fc.array(entry, { maxLength: 20 }),
  }),
  fc.record({
    type: fc.constant('guest-addresses' as const),
    isRouter: fc.boolean(),
    addresses: fc.array(guestAddress, { maxLength: 20 }),
  }),
  fc.record({ type: fc.constant('reset' as const), reason: text }),
);

const openItem: fc.Arbitrary<Item> = fc.oneof(
  fc.record({
    frame: fc.array(u8, { minLength: 10, maxLength: 300 }),
    kind: fc.constantFrom(1, 2, 3),
    epoch: u32,
  }),
  fc.record({ message }),
  fc.record({ heartbeat: fc.record({ sentUs: u53, echoUs: u53, echoDelayUs: u53 }) }),
  fc.record({ goodbye: text }),
);

const handshakeItem: fc.Arbitrary<Item> = fc.oneof(
  fc.record({ hello, isAnswer: fc.boolean() }),
  fc.record({
    refusal: fc.record({ reason: keysOf(LINK_REFUSAL_CODES), version: fc.constant(2), text }),
  }),
);

function encode(buffer: FrameBuffer, offset: number, item: Item): number {
  if ('hello' in item) return encodeHello(buffer, offset, item.hello, item.isAnswer);
  if ('refusal' in item) return encodeRefuse(buffer, offset, item.refusal as never);
  if ('heartbeat' in item) return encodeHeartbeat(buffer, offset, item.heartbeat as never);
  if ('goodbye' in item) return encodeGoodbye(buffer, offset, item.goodbye);
  if ('message' in item) return encodeMessage(buffer, offset, item.message);
  const bytes = Uint8Array.from(item.frame);
  const source = { bytes, view: new DataView(bytes.buffer) };
  return encodeFrame(buffer, offset, item.kind, item.epoch, source, 10, bytes.length - 10);
}

function encodeAll(items: readonly Item[]): Uint8Array {
  const bytes = new Uint8Array(items.length * 3_000);
  const buffer = { bytes, view: new DataView(bytes.buffer) };
  let end = 0;
  for (const item of items) end += encode(buffer, end, item);
  return bytes.subarray(0, end);
}

/** Pushes the chunks; frames are copied at the end of their batch, as a user may do at the latest. */
function decodeAll(
  chunks: Iterable<Uint8Array>,
  isOpen: boolean,
): { items: Item[]; error: LinkDecodeError | undefined } {
  const items: Item[] = [];
  let batch: (() => Item)[] = [];
  const decoder = new LinkDecoder({
    onHello: (heard, isAnswer) => batch.push(() => ({ hello: heard, isAnswer })),
    onRefuse: (refusal) => batch.push(() => ({ refusal })),
    onHeartbeat: (heartbeat) => batch.push(() => ({ heartbeat })),
    onGoodbye: (goodbye) => batch.push(() => ({ goodbye })),
    onMessage: (heard) => batch.push(() => ({ message: heard })),
    onFrame: (kind, epoch, buffer, offset, length) =>
      batch.push(() => {
        const frame = [...buffer.bytes.subarray(offset - 10, offset + length)];
        if (length > 0) expect(buffer.view.getUint8(offset)).toBe(frame[10]);
        return { frame, kind, epoch };
      }),
    onBatchEnd: () => {
      items.push(...batch.map((copy) => copy()));
      batch = [];
    },
  });
  if (isOpen) decoder.open();
  let error: LinkDecodeError | undefined;
  for (const chunk of chunks) {
    const copy = chunk.slice();
    error = decoder.push(copy);
    // The chunk was borrowed only until push returned.
    copy.fill(0xdd);
    if (error !== undefined) break;
  }
  expect(batch).toEqual([]);
  return { items, error };
}

function* cut(bytes: Uint8Array, sizes: readonly number[]): Generator<Uint8Array> {
  let at = 0;
  for (let index = 0; at < bytes.length; index++) {
    const size = sizes[index % sizes.length]!;
    yield bytes.subarray(at, at + size);
    at += size;
  }
}

const sizes = fc.array(
  fc.oneof(fc.integer({ min: 1, max: 12 }), fc.integer({ min: 1, max: 2_000 })),
  {
    minLength: 1,
    maxLength: 8,
  },
);

test('what was encoded is decoded, however the stream is cut', () => {
  fc.assert(
    fc.property(fc.array(openItem, { minLength: 1, maxLength: 12 }), sizes, (items, cuts) => {
      const stream = encodeAll(items);
      expect(decodeAll(cut(stream, cuts), true)).toEqual({ items, error: undefined });
      expect(decodeAll([stream], true)).toEqual({ items, error: undefined });
    }),
    { numRuns: 300 },
  );
});

test('the handshake messages are decoded, byte by byte and at once', () => {
  fc.assert(
    fc.property(handshakeItem, (item) => {
      const stream = encodeAll([item]);
      expect(decodeAll(cut(stream, [1]), false).items).toEqual([item]);
      expect(decodeAll([stream], false).items).toEqual([item]);
    }),
    { numRuns: 300 },
  );
});

test('any bytes: never a throw, and the same result however they are cut', () => {
  const noise = fc.oneof(
    fc.uint8Array({ maxLength: 400 }),
    // A valid stream with a few bytes changed gets further into the decoder.
    fc
      .tuple(
        fc.array(openItem, { minLength: 1, maxLength: 6 }),
        fc.array(fc.tuple(fc.nat(), u8), { minLength: 1, maxLength: 4 }),
      )
      .map(([items, changes]) => {
        const stream = encodeAll(items).slice();
        for (const [at, byte] of changes) stream[at % stream.length] = byte;
        return stream;
      }),
  );
  fc.assert(
    fc.property(noise, sizes, fc.boolean(), (bytes, cuts, isOpen) => {
      expect(decodeAll(cut(bytes, cuts), isOpen)).toEqual(decodeAll([bytes], isOpen));
    }),
    { numRuns: 1_000 },
  );
});
