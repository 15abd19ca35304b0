/**
 * G8: both engines, joined by a link, in every state, fed with what nobody sends who means well: arbitrary bytes, frames that are cut,
 * flipped or lie about their lengths, forged link messages and epochs, while time passes, checkpoints begin and end,
 * the peer comes and goes, and a failover happens.
 *
 * Every frame lies at the very end of its memory, so a read past it throws.
 */
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { GOLDEN_FRAMES } from '../../test/golden/frames.ts';
import { HOSTILE_FRAMES } from '../../test/golden/hostile.ts';
import { EnginePair } from '../../test/support/engine-pair.ts';
import { rawFrame, type TestFrame } from '../../test/support/frame-builder.ts';
import { PairConnection } from '../../test/support/pair-connection.ts';
import type { Engine } from '../env/engine.ts';
import type { LinkFrameKind, LinkMessage } from '../env/messages.ts';
import { FRAME_BYTES_MAX, VNET_HDR_BYTES } from '../limits.ts';
import { fromHex } from '../wire/bytes.ts';
import { DROP_REASON_NAMES, dissect, FRAME_OK, FrameInfo } from '../wire/frame.ts';
import { TCP_ACK, TCP_SYN } from '../wire/tcp.ts';

/** So small that every limit is met. */
const LIMITS = {
  primary: {
    flowsMax: 64,
    halfOpenFlowsMax: 8,
    keptClientBytesMax: 40_000,
    flowHeldBytesMax: 40_000,
    heldBytesMax: 120_000,
  },
  secondary: {
    flowsMax: 64,
    halfOpenFlowsMax: 8,
    keptClientBytesMax: 40_000,
    retainedBytesMax: 80_000,
  },
} as const;
/** A limit is looked at before a frame is taken, so it may be passed by one of the largest slots. */
const SLOT_BYTES_MAX = 66_048;
const PRIMARY_BYTES_MAX = 2 * 120_000 + 40_000 + 2 * 120_000 + 3 * SLOT_BYTES_MAX;
const SECONDARY_BYTES_MAX = 80_000 + 2 * 40_000 + 3 * SLOT_BYTES_MAX;

// ------------------------------------------------------------------ frames

/** What the mutations start from. */
const CORPUS: readonly TestFrame[] = [
  ...Object.values(GOLDEN_FRAMES).map(({ hex }) => rawFrame(fromHex(hex))),
  ...Object.values(HOSTILE_FRAMES),
];

/** Of the connection that is open when the hostilities begin, so that they reach its state. */
function connectionFrames(): TestFrame[] {
  const c = new PairConnection(new EnginePair());
  const guests = (['pvm', 'svm'] as const).flatMap((guest) => [
    c.synAck(guest),
    c.fromGuest(guest, 0, 'answer', { acked: 3 }),
    c.fromGuest(guest, 3, 'wer and more', {
      sack: [
        [10, 20],
        [30, 40],
      ],
    }),
    c.fromGuest(guest, 15, 'x'.repeat(9_000)),
    c.fromGuest(guest, 15, '', { flags: 0x11 }),
    c.fromGuest(guest, 15, '', { flags: 0x14 }),
    c.fromGuest(guest, 0, 'other!', { window: 0 }),
    c.fromGuest(guest, 0, '', { flags: TCP_SYN | TCP_ACK, seq: 99 }),
  ]);
  return [
    c.syn(),
    c.fromClient(0, 'request'),
    c.fromClient(0, '', 6),
    c.fromClient(7, '', 15, { flags: 0x11 }),
    ...guests,
  ];
}
const FRAMES: readonly TestFrame[] = [...CORPUS, ...connectionFrames()];

type Mutation = (bytes: Uint8Array) => Uint8Array;

const mutation: fc.Arbitrary<Mutation> = fc.oneof(
  fc
    .nat(200)
    .map(
      (keep) => (bytes: Uint8Array) =>
        bytes.slice(0, Math.min(bytes.length, VNET_HDR_BYTES + keep)),
    ),
  fc.tuple(fc.nat(120), fc.nat(7)).map(([at, bit]) => (bytes: Uint8Array) => {
    if (at < bytes.length) bytes[at]! ^= 1 << bit;
    return bytes;
  }),
  // Where lengths lie: tags, IP headers, fragments, TCP's data offset, UDP, options.
  fc
    .tuple(
      fc.integer({ min: 10, max: 90 }),
      fc.constantFrom(0, 1, 4, 5, 0x0f, 0x40, 0x7f, 0xf0, 0xff),
    )
    .map(([at, value]) => (bytes: Uint8Array) => {
      if (at < bytes.length) bytes[at] = value;
      return bytes;
    }),
  fc.uint8Array({ maxLength: 64 }).map((tail) => (bytes: Uint8Array) => {
    const all = new Uint8Array(
      Math.min(bytes.length + tail.length, VNET_HDR_BYTES + FRAME_BYTES_MAX),
    );
    all.set(bytes);
    all.set(tail.subarray(0, all.length - bytes.length), bytes.length);
    return all;
  }),
);

/** A frame at the very end of its memory, virtio-net header before it. */
function exactFrame(memory: Uint8Array): TestFrame {
  const bytes = memory.slice();
  return {
    buffer: { bytes, view: new DataView(bytes.buffer) },
    offset: VNET_HDR_BYTES,
    length: bytes.length - VNET_HDR_BYTES,
  };
}

const anyFrame: fc.Arbitrary<TestFrame> = fc.oneof(
  {
    weight: 1,
    arbitrary: fc.uint8Array({ minLength: VNET_HDR_BYTES, maxLength: 120 }).map(exactFrame),
  },
  {
    weight: 8,
    arbitrary: fc
      .tuple(fc.nat(FRAMES.length - 1), fc.array(mutation, { maxLength: 3 }))
      .map(([index, mutations]) => {
        const { buffer, length } = FRAMES[index]!;
        let bytes = buffer.bytes.slice(0, VNET_HDR_BYTES + length);
        for (const mutate of mutations) bytes = mutate(bytes) as typeof bytes;
        return exactFrame(bytes);
      }),
  },
);

// ------------------------------------------------------------------ what happens

type Node = 'primary' | 'secondary';
type Step =
  | { readonly do: 'net' | 'guest'; readonly node: Node; readonly frame: TestFrame }
  | {
      readonly do: 'peer';
      readonly node: Node;
      readonly kind: number;
      readonly epoch: number;
      readonly frame: TestFrame;
    }
  | {
      readonly do: 'message';
      readonly node: Node;
      readonly type: LinkMessage['type'];
      readonly epoch: number;
    }
  | { readonly do: 'pass'; readonly us: number }
  | {
      readonly do:
        | 'begin'
        | 'commit'
        | 'abort'
        | 'reset'
        | 'up'
        | 'down'
        | 'hold'
        | 'failover'
        | 'cut';
      readonly node: Node;
    };

const node = fc.constantFrom<Node>('primary', 'secondary');
const epoch = fc.integer({ min: -1, max: 2 });
const step: fc.Arbitrary<Step> = fc.oneof(
  {
    weight: 12,
    arbitrary: fc.record({
      do: fc.constantFrom('net' as const, 'guest' as const),
      node,
      frame: anyFrame,
    }),
  },
  {
    weight: 6,
    arbitrary: fc.record({
      do: fc.constant('peer' as const),
      node,
      kind: fc.nat(4),
      epoch,
      frame: anyFrame,
    }),
  },
  {
    weight: 1,
    arbitrary: fc.record({
      do: fc.constant('message' as const),
      node,
      type: fc.constantFrom<LinkMessage['type']>(
        'checkpoint-begin',
        'checkpoint-began',
        'checkpoint-commit',
        'checkpoint-committed',
        'checkpoint-abort',
        'checkpoint-request',
        'progress',
        'guest-addresses',
        'reset',
      ),
      epoch,
    }),
  },
  {
    weight: 3,
    arbitrary: fc.record({
      do: fc.constant('pass' as const),
      us: fc.constantFrom(1, 5_000, 250_000, 3_000_000, 40_000_000),
    }),
  },
  {
    weight: 2,
    arbitrary: fc.record({
      do: fc.constantFrom(
        'begin' as const,
        'commit' as const,
        'commit' as const,
        'abort' as const,
        'reset' as const,
        'up' as const,
        'down' as const,
        'hold' as const,
        'failover' as const,
        'cut' as const,
      ),
      node,
    }),
  },
);

function forge(type: LinkMessage['type'], at: number): LinkMessage {
  switch (type) {
    case 'checkpoint-abort':
      return { type, epoch: at, reason: 'forged' };
    case 'checkpoint-request':
      return { type, cause: 'limit', text: 'forged' };
    case 'reset':
      return { type, reason: 'forged' };
    case 'progress': {
      const address = new Uint8Array(16);
      const key = {
        ipVersion: 4,
        protocol: 6,
        vlan: 0,
        guestPort: 80,
        clientPort: 40_312,
        guestAddress: address,
        clientAddress: address,
      };
      return {
        type,
        entries: [
          { ...key, position: 0xffff_fff0 },
          { ...key, ipVersion: 6, protocol: 17, position: -1 },
        ],
      };
    }
    case 'guest-addresses': {
      // What the link's codec lets through: any addresses, up to as many as it takes.
      const addresses = Array.from({ length: at % 257 }, (_, i) => ({
        ipVersion: i % 2 === 0 ? 4 : 6,
        vlan: at,
        ip: new Uint8Array(i % 2 === 0 ? 4 : 16).fill(at + i),
        mac: new Uint8Array(6).fill(i),
        certain: i % 3 === 0,
      }));
      return { type, isRouter: at % 2 === 0, addresses };
    }
    default:
      return { type, epoch: at };
  }
}

const info = new FrameInfo();

/** The sum of all counters of what was not passed on or not understood. */
function counted(engine: Engine, nowUs: number): number {
  const { dropped, counters } = engine.status(nowUs);
  let sum = 0;
  for (const [name, count] of Object.entries(dropped)) if (/^\w/.test(name)) sum += count;
  for (const [name, count] of Object.entries(counters)) {
    if (DROP_REASON_NAMES.some((reason) => name === `client-${reason}`)) sum += count;
  }
  return sum;
}

function take(pair: EnginePair, now: Step): void {
  if (now.do === 'pass') {
    pair.pass(now.us);
    return;
  }
  const engine = now.node === 'primary' ? pair.primary : pair.secondary;
  const { nowUs } = pair;
  switch (now.do) {
    case 'net':
    case 'guest':
      takeFrame(pair, engine, now.do, now.frame);
      break;
    case 'peer': {
      const { buffer, offset, length } = now.frame;
      engine.onPeerFrame(
        now.kind as LinkFrameKind,
        engine.epoch + now.epoch,
        buffer,
        offset,
        length,
        nowUs,
      );
      break;
    }
    case 'message':
      engine.onPeerMessage(forge(now.type, engine.epoch + now.epoch), nowUs);
      break;
    case 'begin':
      engine.checkpointBegin(nowUs);
      break;
    case 'commit':
      engine.checkpointCommit(nowUs);
      break;
    case 'abort':
      engine.checkpointAbort('hostile', nowUs);
      break;
    case 'reset':
      engine.reset('hostile', nowUs);
      break;
    case 'up':
      engine.onPeerUp(engine.epoch, nowUs);
      break;
    case 'down':
    case 'hold':
      engine.onPeerDown('hostile', nowUs, now.do === 'hold');
      break;
    case 'failover':
      engine.failover(true, nowUs);
      break;
    case 'cut':
      pair.isLinkOpen = !pair.isLinkOpen;
      break;
  }
  engine.flush(pair.nowUs);
  pair.settle();
}

/** A malformed frame is counted, unless it is passed on as a bridge would (a client's) or kept until the commit. */
function takeFrame(
  pair: EnginePair,
  engine: Engine,
  from: 'net' | 'guest',
  frame: TestFrame,
): void {
  const { buffer, offset, length } = frame;
  const isMalformed = dissect(buffer, offset, length, info) !== FRAME_OK;
  const before = counted(engine, pair.nowUs);
  if (from === 'net') engine.onNetFrame(buffer, offset, length, pair.nowUs);
  else engine.onGuestFrame(buffer, offset, length, pair.nowUs);
  const isKept = engine.state === 'checkpointing' && engine.role === 'primary';
  const isBridged = engine.state === 'failed-over' && from === 'guest';
  if (isMalformed && !isKept && !isBridged) expect(counted(engine, pair.nowUs)).toBe(before + 1);
}

function checkMemory(pair: EnginePair): void {
  const primary = pair.primary.status(pair.nowUs);
  const secondary = pair.secondary.status(pair.nowUs);
  expect(primary.held.bytes).toBeLessThanOrEqual(PRIMARY_BYTES_MAX);
  expect(secondary.held.bytes).toBeLessThanOrEqual(SECONDARY_BYTES_MAX);
  expect(primary.flows).toBeLessThanOrEqual(LIMITS.primary.flowsMax);
  expect(secondary.flows).toBeLessThanOrEqual(LIMITS.secondary.flowsMax);
  if (secondary.state !== 'failed-over') expect(secondary.released).toBe(0);
}

/** Pair with a connection open, its streams partly compared. */
function busyPair(): EnginePair {
  const pair = new EnginePair(LIMITS).protect();
  const c = new PairConnection(pair);
  c.open();
  pair.client(c.fromClient(0, 'request'));
  return pair;
}

describe('hostile input', () => {
  it('throws nothing, keeps to the limits, is counted, and leaves nothing held', () => {
    fc.assert(
      fc.property(fc.boolean(), fc.array(step, { maxLength: 60 }), (isBusy, steps) => {
        const pair = isBusy ? busyPair() : new EnginePair(LIMITS);
        for (const now of steps) {
          take(pair, now);
          checkMemory(pair);
        }
        pair.isLinkOpen = true;
        pair.settle();
        for (const engine of [pair.primary, pair.secondary]) {
          engine.flows(1_000);
          engine.reset('the end', pair.nowUs);
          engine.flush(pair.nowUs);
        }
        pair.settle();
        expect(pair.primary.status(pair.nowUs).held).toEqual({ frames: 0, bytes: 0 });
        expect(pair.secondary.status(pair.nowUs).held).toEqual({ frames: 0, bytes: 0 });
      }),
      { numRuns: 600 },
    );
  }, 120_000);

  it('a commit after hostilities leaves nothing held, and the connection of a friend works', () => {
    const hostile = fc.array(
      fc.record({ do: fc.constantFrom('net' as const, 'guest' as const), node, frame: anyFrame }),
      { maxLength: 60 },
    );
    fc.assert(
      fc.property(hostile, (steps) => {
        const pair = busyPair();
        for (const now of steps) take(pair, now);
        pair.checkpoint();
        expect(pair.primary.status(pair.nowUs).held).toEqual({ frames: 0, bytes: 0 });
        expect(pair.secondary.status(pair.nowUs).held).toEqual({ frames: 0, bytes: 0 });
        const friend = new PairConnection(pair, { clientPort: 50_001 });
        expect(friend.open()).toHaveLength(1);
        expect(friend.both(0, 'served')).toHaveLength(1);
      }),
      { numRuns: 300 },
    );
  }, 120_000);
});
