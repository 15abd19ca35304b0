/**
 * Datagrams of both guests in any order, at the primary engine.
 *
 * **Generated:** what the guests send to four ports of one client (short, or so long that they come in fragments, which the guests cut
 * differently; some payloads come again), some of it by one guest only; in which order it arrives, checkpoints, and time; sometimes room
 * for two flows only, so that flows are forgotten.
 *
 * **Judged:** G1, no datagram of the PVM is released that the SVM has not sent as often, or a committed checkpoint covers; G4, once each, all
 * fragments together, and those of one flow in the PVM's order; G6, what is held has asked for a checkpoint within the bound, nothing is held behind
 * that, and nobody asks for another.
 *
 * **Left out:** lost and damaged fragments, fragments of two datagrams between each other, a peer that is lost.
 */
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { fragmentFrame, udpFrame } from '../../test/support/frame-builder.ts';
import { infoOf, RecordingOutput } from '../../test/support/recording-output.ts';
import { LINK_FRAME_SECONDARY } from '../env/messages.ts';
import { PRIMARY_DEFAULTS } from './config.ts';
import { PrimaryEngine } from './primary.ts';

type GuestName = 'primary' | 'secondary';

interface Datagram {
  readonly port: number;
  readonly number: number;
  readonly isLong: boolean;
}

type Step =
  | { does: 'send'; by: 'both' | GuestName; datagram: Datagram }
  /** The one of what is on its way, from either guest: 0 is the oldest. */
  | { does: 'arrive'; place: number }
  | { does: 'checkpoint'; lastsUs: number }
  | { does: 'pass'; us: number };

const does = <D extends Step['does']>(name: D) => fc.constant(name);

const step: fc.Arbitrary<Step> = fc.oneof(
  {
    weight: 10,
    arbitrary: fc.record({
      does: does('send'),
      by: fc.oneof(
        { weight: 16, arbitrary: fc.constant('both' as const) },
        { weight: 1, arbitrary: fc.constantFrom<GuestName>('primary', 'secondary') },
      ),
      datagram: fc.record({
        port: fc.integer({ min: 1_000, max: 1_003 }),
        number: fc.nat(6),
        isLong: fc.nat(4).map((drawn) => drawn === 4),
      }),
    }),
  },
  { weight: 20, arbitrary: fc.record({ does: does('arrive'), place: fc.nat(3) }) },
  {
    weight: 1,
    arbitrary: fc.record({ does: does('checkpoint'), lastsUs: fc.constantFrom(0, 500_000) }),
  },
  {
    weight: 2,
    arbitrary: fc.record({ does: does('pass'), us: fc.constantFrom(500, 5_000, 30_000, 400_000) }),
  },
);

/** Bytes of a fragment: not the same for both guests. */
const FRAGMENT_BYTES = { primary: 80, secondary: 120 } as const;
/** All that waits has asked by then. */
const BOUND_US = 600_000;
const LONG_US = 3_000_000;

const nameOf = ({ port, number, isLong }: Datagram): string =>
  `${port}/${number}${isLong ? '/long' : ''}`;

/** What may be released, and in which order: frames are told from each other by their IP identification. */
class Judge {
  /** How often the SVM has sent it, and checkpoints have given it, less how often it was released. */
  readonly #said = new Map<string, number>();
  /** The PVM's, by identification. */
  readonly #sent = new Map<
    number,
    { readonly datagram: Datagram; framesLeft: number; isCovered: boolean }
  >();
  readonly #lastOf = new Map<number, number>();

  onSecondary(datagram: Datagram): void {
    this.#count(datagram, 1);
  }

  onPrimary(id: number, datagram: Datagram, frames: number): void {
    this.#sent.set(id, { datagram, framesLeft: frames, isCovered: false });
  }

  /** The SVM is what the PVM was: it has sent what the PVM has, and nothing of its own waits any more. */
  onCommit(): void {
    this.#said.clear();
    for (const sent of this.#sent.values()) sent.isCovered = true;
  }

  onReleased(id: number): void {
    const sent = this.#sent.get(id);
    if (sent === undefined) throw new Error('G4: a frame of no datagram');
    const { datagram } = sent;
    if (--sent.framesLeft < 0) throw new Error(`G4: ${nameOf(datagram)} goes out twice`);
    if (sent.framesLeft > 0) return;
    if (id < (this.#lastOf.get(datagram.port) ?? 0)) {
      throw new Error(`G4: ${nameOf(datagram)} goes out behind a later one`);
    }
    this.#lastOf.set(datagram.port, id);
    if (!sent.isCovered && this.#count(datagram, -1) < 0) {
      throw new Error(`G1: the SVM has not sent ${nameOf(datagram)}`);
    }
  }

  /** Datagrams of the PVM that wait. */
  get waiting(): number {
    return [...this.#sent.values()].filter(({ framesLeft }) => framesLeft > 0).length;
  }

  #count(datagram: Datagram, by: number): number {
    const count = (this.#said.get(nameOf(datagram)) ?? 0) + by;
    this.#said.set(nameOf(datagram), count);
    return count;
  }
}

class World {
  readonly #output = new RecordingOutput();
  readonly #engine: PrimaryEngine;
  readonly #judge = new Judge();
  readonly #underway: { readonly guest: GuestName; readonly datagram: Datagram }[] = [];
  #nowUs = 1_000_000;
  #id = 0;
  #requestsBefore = 0;
  released = 0;

  constructor(isTiny: boolean) {
    const limits = isTiny ? { flowsMax: 2 } : {};
    this.#engine = new PrimaryEngine({ ...PRIMARY_DEFAULTS, ...limits }, this.#output, 0);
    this.#engine.onPeerUp(0, this.#nowUs);
    this.#checkpoint(0);
    this.#pass(200_000);
  }

  play(step: Step): void {
    // Five requests that nothing followed: the node has given up, and says so.
    if (this.#engine.state !== 'protected') return;
    if (step.does === 'send') {
      const { by, datagram } = step;
      if (by !== 'secondary') this.#underway.push({ guest: 'primary', datagram });
      if (by !== 'primary') this.#underway.push({ guest: 'secondary', datagram });
    } else if (step.does === 'arrive') this.#arrive(step.place);
    else if (step.does === 'checkpoint') this.#checkpoint(step.lastsUs);
    else this.#pass(step.us);
    this.#engine.flush(this.#nowUs);
    this.#look();
  }

  settle(): void {
    if (this.#engine.state !== 'protected') return;
    this.#pass(BOUND_US);
    if (this.#judge.waiting > 0 && this.#output.requests.length === this.#requestsBefore) {
      throw new Error('G6: held, and no checkpoint was asked for');
    }
    this.#checkpoint(300_000);
    this.#pass(LONG_US);
    if (this.#judge.waiting > 0 || this.#engine.status(this.#nowUs).held.frames > 0) {
      throw new Error('G6: held behind a checkpoint');
    }
    if (this.#output.requests.length > this.#requestsBefore) {
      throw new Error('G6: a checkpoint is asked for behind one that has settled all');
    }
  }

  #arrive(place: number): void {
    const [first] = this.#underway.splice(Math.min(place, this.#underway.length - 1), 1);
    if (first === undefined) return;
    const { guest, datagram } = first;
    const id = ++this.#id;
    const payload = `${datagram.number}`.padEnd(datagram.isLong ? 200 : 10, 'y');
    const whole = udpFrame({ dstPort: datagram.port, payload, id });
    const frames = datagram.isLong ? fragmentFrame(whole, FRAGMENT_BYTES[guest], id) : [whole];
    if (guest === 'primary') this.#judge.onPrimary(id, datagram, frames.length);
    else this.#judge.onSecondary(datagram);
    const engine = this.#engine;
    for (const { buffer, offset, length } of frames) {
      if (guest === 'primary') engine.onGuestFrame(buffer, offset, length, this.#nowUs);
      else {
        const { epoch } = engine;
        engine.onPeerFrame(LINK_FRAME_SECONDARY, epoch, buffer, offset, length, this.#nowUs);
      }
    }
  }

  #checkpoint(lastsUs: number): void {
    const engine = this.#engine;
    engine.flush(this.#nowUs);
    this.#look();
    engine.checkpointBegin(this.#nowUs);
    const epoch = engine.epoch + 1;
    engine.onPeerMessage({ type: 'checkpoint-began', epoch }, this.#nowUs);
    if (lastsUs > 0) this.#pass(lastsUs);
    engine.checkpointCommit(this.#nowUs);
    this.#look();
    this.#judge.onCommit();
    engine.onPeerMessage({ type: 'checkpoint-committed', epoch }, this.#nowUs);
    engine.flush(this.#nowUs);
    this.#requestsBefore = this.#output.requests.length;
    this.#look();
  }

  #pass(us: number): void {
    const end = this.#nowUs + us;
    for (;;) {
      const next = this.#engine.nextDeadlineUs();
      if (next > end) break;
      this.#nowUs = Math.max(this.#nowUs, next);
      this.#engine.onTick(this.#nowUs);
    }
    this.#nowUs = end;
    this.#engine.flush(end);
    this.#look();
  }

  #look(): void {
    for (const frame of this.#output.takeNet()) {
      this.released++;
      const { bytes, l3Offset } = infoOf(frame);
      this.#judge.onReleased((bytes[l3Offset + 4]! << 8) | bytes[l3Offset + 5]!);
    }
  }
}

describe('datagrams', () => {
  it('go out in their order once both guests have sent them', () => {
    let released = 0;
    const steps = fc.array(step, { maxLength: 120, size: 'max' });
    const isTiny = fc.nat(2).map((drawn) => drawn === 2);
    fc.assert(
      fc.property(isTiny, steps, (isTinyTable, list) => {
        const world = new World(isTinyTable);
        for (const each of list) world.play(each);
        world.settle();
        released += world.released;
      }),
      { numRuns: 2_000 },
    );
    expect(released).toBeGreaterThan(5_000);
  });
});
