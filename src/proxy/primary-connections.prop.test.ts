/**
 * TCP connections that use the same ports one after the other, at the primary engine.
 *
 * **Generated:** steps of two guests and a client (`test/support/port-steps.ts`): connections that the client or the guests open, with initial
 * sequence numbers below, above and far from what the connection before has used, which the guests begin in any order; the first one is open from the start,
 * and seen or not before the PVM's first word; bytes, repetitions (whole or in fragments), FIN, RST, ACKs with windows and SACK blocks, of which some come behind the next one and some of
 * the SVM's are lost; checkpoints, a peer that is lost and comes back, time; a flow table so small that the connection is forgotten; a node that
 * does not see what clients send.
 *
 * **Judged** by `test/support/output-judge.ts`: G1, each SYN, byte, FIN and RST that is released is one that the SVM has said; G2, so is each
 * ACK number, window edge and byte in a SACK block. And by `ReusedPorts`: G6, where both guests have come to the same nothing waits any longer,
 * and the client knows the last ACK number and window edge; what waits longer than the bound has asked for a checkpoint; behind a checkpoint nothing is
 * held, and nobody asks for another; G9, nobody asks while the peer is lost.
 *
 * **Left out:**
 * - a guest that refuses the client's next SYN with a RST, and segments of a connection that come behind the same guest's next SYN: known;
 * - what the PVM had acknowledged when the SVM began the next connection: the engine forgets it, and the client, if it still has the
 *   old one, sends again;
 * - the window edge, where of two segments of the PVM with one ACK number, both beyond the SVM, the older comes later: that is kept;
 * - two connections with one initial sequence number, guests that send different bytes at a position, what a RST acknowledges.
 */
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import type { Fate, GuestName, Step, WorldOptions } from '../../test/support/port-steps.ts';
import { ReusedPorts } from '../../test/support/reused-ports.ts';

const guest = fc.constantFrom<GuestName>('primary', 'secondary');
/** One in `n`. */
const seldom = (n: number) => fc.nat(n - 1).map((drawn) => drawn === n - 1);
const fate = fc.oneof(
  { weight: 12, arbitrary: fc.constant<Fate>('arrives') },
  { weight: 3, arbitrary: fc.constant<Fate>('late') },
  { weight: 1, arbitrary: fc.constant<Fate>('lost') },
);
const shift = fc.constantFrom(0, 3);

const does = <D extends Step['does']>(name: D) => fc.constant(name);

const connect = fc.record({
  does: does('connect'),
  by: fc.constantFrom('client' as const, 'client' as const, 'guests' as const),
  distance: fc.oneof(
    { weight: 3, arbitrary: fc.integer({ min: 0, max: 2_000 }) },
    { weight: 3, arbitrary: fc.integer({ min: -2_200, max: 0 }) },
    { weight: 2, arbitrary: fc.integer({ min: -(2 ** 31), max: 2 ** 31 - 1 }) },
  ),
  shift,
  total: fc.integer({ min: 20, max: 400 }),
});

const step: fc.Arbitrary<Step> = fc.oneof(
  { weight: 8, arbitrary: connect },
  { weight: 2, arbitrary: fc.record({ does: does('connect again') }) },
  {
    weight: 20,
    arbitrary: fc.record({
      does: does('begin'),
      guest,
      window: fc.constantFrom(0, 100, 1_000, 8_000),
      hasStamps: seldom(8),
    }),
  },
  { weight: 2, arbitrary: fc.record({ does: does('begin again'), guest }) },
  {
    weight: 20,
    arbitrary: fc.record({
      does: does('send'),
      guest,
      bytes: fc.integer({ min: 1, max: 60 }),
      ends: fc.boolean(),
      fate,
    }),
  },
  {
    weight: 10,
    arbitrary: fc.record({
      does: does('repeat'),
      guest,
      at: fc.nat(400),
      bytes: fc.integer({ min: 1, max: 80 }),
      fate,
      inFragments: seldom(3),
    }),
  },
  {
    weight: 24,
    arbitrary: fc.record({
      does: does('ack'),
      guest,
      bytes: fc.oneof(fc.constant(0), fc.nat(200)),
      opens: fc.oneof(fc.constant(0), fc.nat(300)),
      sack: fc.oneof(
        { weight: 3, arbitrary: fc.constant([]) },
        { weight: 1, arbitrary: fc.array(fc.integer({ min: 1, max: 100 }), { maxLength: 4 }) },
      ),
      fate,
    }),
  },
  { weight: 7, arbitrary: fc.record({ does: does('reset'), guest, fate }) },
  { weight: 7, arbitrary: fc.record({ does: does('client'), bytes: fc.nat(300) }) },
  { weight: 3, arbitrary: fc.record({ does: does('catch up') }) },
  {
    weight: 3,
    arbitrary: fc.record({ does: does('checkpoint'), lastsUs: fc.constantFrom(0, 0, 500_000) }),
  },
  {
    weight: 2,
    arbitrary: fc.record({ does: does('lose peer'), steps: fc.integer({ min: 1, max: 20 }) }),
  },
  {
    weight: 2,
    arbitrary: fc.record({
      does: does('pass'),
      us: fc.constantFrom(1_000, 50_000, 300_000, 1_500_000),
    }),
  },
  {
    weight: 3,
    arbitrary: fc.record({ does: does('datagram'), port: fc.integer({ min: 1_000, max: 1_004 }) }),
  },
);

/** A window update that overtakes a repetition. */
const overtaking: fc.Arbitrary<Step[]> = fc
  .tuple(fc.integer({ min: 1, max: 60 }), fc.integer({ min: 1, max: 300 }))
  .map(([bytes, opens]) => [
    { does: 'catch up' },
    { does: 'repeat', guest: 'primary', at: 0, bytes, fate: 'late', inFragments: false },
    { does: 'ack', guest: 'primary', bytes: 0, opens, sack: [], fate: 'arrives' },
    { does: 'catch up' },
  ]);

/** The client has all, and the PVM repeats it in fragments whose header the SVM does not cover. */
const repeating: fc.Arbitrary<Step[]> = fc.integer({ min: 1, max: 60 }).map((bytes) => [
  { does: 'send', guest: 'primary', bytes, ends: false, fate: 'arrives' },
  { does: 'send', guest: 'secondary', bytes, ends: false, fate: 'arrives' },
  { does: 'client', bytes },
  { does: 'ack', guest: 'primary', bytes, opens: 0, sack: [], fate: 'arrives' },
  { does: 'repeat', guest: 'primary', at: 0, bytes, fate: 'arrives', inFragments: true },
]);

const options: fc.Arbitrary<WorldOptions> = fc.record({
  isTiny: seldom(5),
  seesClients: seldom(5).map((is) => !is),
  isSeenOpen: fc.boolean(),
  shift,
});

describe('connections of the same ports', () => {
  it('tell the client what both guests have said, and that soon', () => {
    let [released, caughtUp] = [0, 0];
    const one = fc.oneof(
      { weight: 30, arbitrary: step.map((drawn) => [drawn]) },
      { weight: 1, arbitrary: fc.oneof(overtaking, repeating) },
    );
    const steps = fc.array(fc.tuple(one, seldom(5)), { maxLength: 100, size: 'max' });
    fc.assert(
      fc.property(options, steps, (world, list) => {
        const ports = new ReusedPorts(world);
        for (const [some, isBatched] of list) {
          for (const each of some) ports.play(each, !isBatched);
        }
        ports.settle();
        released += ports.released;
        caughtUp += ports.caughtUp;
      }),
      { numRuns: 2_000 },
    );
    expect(released).toBeGreaterThan(8_000);
    expect(caughtUp).toBeGreaterThan(400);
  });
});
