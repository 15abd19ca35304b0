import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import {
  CLIENT_IP6,
  GUEST_IP6,
  type TestFrame,
  tcpFrame,
  udpFrame,
} from '../../test/support/frame-builder.ts';
import type { EngineOutput } from '../env/engine.ts';
import { LINK_FRAME_SECONDARY } from '../env/messages.ts';
import { VNET_HDR_BYTES } from '../limits.ts';
import { dissect, FRAME_OK, FrameInfo } from '../wire/frame.ts';
import { TCP_ACK, TCP_FIN, TCP_PSH, TCP_RST, TCP_SYN } from '../wire/tcp.ts';
import { PRIMARY_DEFAULTS } from './config.ts';
import { PrimaryEngine } from './primary.ts';
import type { StreamRecord } from './primary-lent.ts';
import {
  PAIR_PRIMARY_AHEAD,
  PAIR_SECONDARY_AHEAD,
  PAIR_TAKEN,
  PAIR_TOOK_PRIMARY,
  PAIR_TOOK_SECONDARY,
  PAIR_WAITS,
  type PairResult,
  readPlainSegment,
} from './primary-lockstep.ts';

const ISN = 0xffff_ff80;
const CLIENT_ISN = 7_000;
const FLOWS = 3;

/** One engine and what it has sent to the network. */
class Node {
  /** In hexadecimal, by ports: in which order the flows follow one another at a commit is nobody's concern (G4 speaks of each). */
  readonly sent = new Map<string, string[]>();
  readonly engine: PrimaryEngine;
  nowUs = 1_000;
  pairs = 0;
  readonly #primary = new FrameInfo();
  readonly #secondary = new FrameInfo();

  constructor() {
    const output: EngineOutput = {
      sendToNet: ({ bytes }, offset, length) => this.#note(bytes, offset, length),
      sendToGuest: () => undefined,
      sendFrameToPeer: () => undefined,
      sendMessageToPeer: () => undefined,
      requestCheckpoint: () => undefined,
      event: () => undefined,
    };
    const config = { ...PRIMARY_DEFAULTS, passList: [{ protocol: 6, port: 3_389 }] };
    this.engine = new PrimaryEngine(config, output, this.nowUs);
    this.engine.onPeerUp(0, this.nowUs);
    this.checkpoint();
  }

  checkpoint(): void {
    const { engine, nowUs } = this;
    engine.checkpointCommit(nowUs);
    engine.onPeerMessage({ type: 'checkpoint-began', epoch: engine.epoch + 1 }, nowUs);
    engine.onPeerMessage({ type: 'checkpoint-committed', epoch: engine.epoch + 1 }, nowUs);
    engine.flush(nowUs);
  }

  /** The engine may change what it is given: a copy. */
  primary(frame: TestFrame): void {
    const { buffer, offset, length } = copyOf(frame);
    this.engine.onGuestFrame(buffer, offset, length, this.nowUs);
  }

  secondary(frame: TestFrame): void {
    const { buffer, offset, length } = copyOf(frame);
    const { engine, nowUs } = this;
    engine.onPeerFrame(LINK_FRAME_SECONDARY, engine.epoch, buffer, offset, length, nowUs);
  }

  /** As a pair, if they are one. */
  both(p: TestFrame, s: TestFrame): void {
    const isPlain =
      readPlainSegment(p.buffer, p.offset, p.length, this.#primary) &&
      readPlainSegment(s.buffer, s.offset, s.length, this.#secondary);
    // No room to wait in the stream: pairs only.
    if (isPlain && this.#onHeads(recordOf(p, false), true) === PAIR_TAKEN) {
      this.pairs++;
      this.#note(p.buffer.bytes, p.offset, p.length);
      return;
    }
    this.one(p, s);
  }

  /** The heads of two streams. Undefined: one of them is of another kind. */
  heads(p: TestFrame | undefined, s: TestFrame, mayLend: boolean): PairResult | undefined {
    if (!readPlainSegment(s.buffer, s.offset, s.length, this.#secondary)) return undefined;
    if (p === undefined) return this.#onHeads(recordOf(s, false), false);
    if (!readPlainSegment(p.buffer, p.offset, p.length, this.#primary)) return undefined;
    const result = this.#onHeads(recordOf(p, mayLend), true);
    if (result === PAIR_TAKEN) this.#note(p.buffer.bytes, p.offset, p.length);
    return result;
  }

  #onHeads(record: StreamRecord, hasPrimary: boolean): PairResult {
    const primary = hasPrimary ? this.#primary : undefined;
    return this.engine.onHeads(
      primary,
      this.#secondary,
      record,
      (stream, offset, length) => this.#note(stream.bytes, offset, length),
      this.nowUs,
    );
  }

  /** One after the other: the SVM's first, so that nothing of the PVM's waits for it. */
  one(p: TestFrame, s: TestFrame): void {
    this.secondary(s);
    this.primary(p);
  }

  view() {
    const { released, compared, held, divergences, counters, dropped } = this.engine.status(
      this.nowUs,
    );
    return { released, compared, held, divergences, counters, dropped, sent: this.sent };
  }

  #note(bytes: Uint8Array, offset: number, length: number): void {
    const frame = Buffer.from(bytes.subarray(offset, offset + length));
    const ports = frame.readUInt32BE(frame.readUInt16BE(12) === 0x86dd ? 54 : 34).toString(16);
    this.sent.set(ports, [...(this.sent.get(ports) ?? []), frame.toString('hex')]);
  }
}

function copyOf({ buffer, offset, length }: TestFrame): TestFrame {
  const bytes = buffer.bytes.slice();
  return { buffer: { bytes, view: new DataView(bytes.buffer) }, offset, length };
}

/** A frame as it lies in a stream, here without anything before it. */
function recordOf({ buffer, offset, length }: TestFrame, mayLend: boolean): StreamRecord {
  const stream = { ...buffer, lent: 0 };
  return { stream, mayLend, recordOffset: offset, recordBytes: length, headerOffset: -1 };
}

/** A segment as one of the guests sends it. */
interface Said {
  readonly length: number;
  readonly ack: number;
  readonly window: number;
  readonly flags: number;
  readonly fill: number;
  readonly tsval: number;
  /** Of its position in the stream. */
  readonly shift: number;
}

const OLD_ACK: Said = {
  length: 0,
  ack: 0,
  window: 100,
  flags: TCP_ACK,
  fill: 1,
  tsval: 5,
  shift: 0,
};

const plain: fc.Arbitrary<Said> = fc.record({
  length: fc.constantFrom(0, 1, 3, 64, 131, 1_400),
  ack: fc.constantFrom(1, 3, 3, 3, 3),
  window: fc.constantFrom(100, 200, 65_535),
  flags: fc.constantFrom(TCP_ACK, TCP_ACK | TCP_PSH),
  fill: fc.constant(1),
  tsval: fc.constant(5),
  shift: fc.constant(0),
});

/** What a step makes different in the SVM's. */
const change: fc.Arbitrary<Partial<Said>> = fc.oneof(
  { weight: 12, arbitrary: fc.constant({}) },
  { weight: 2, arbitrary: fc.constantFrom({ tsval: 9 }, { flags: TCP_ACK }) },
  {
    weight: 1,
    arbitrary: fc.constantFrom<Partial<Said>>(
      { ack: 0 },
      { window: 50 },
      { length: 1 },
      { fill: 2 },
      { shift: 1 },
      { flags: TCP_ACK | TCP_FIN },
      { flags: TCP_ACK | TCP_RST },
    ),
  },
);

interface Step {
  readonly flow: number;
  readonly said: Said;
  readonly change: Partial<Said>;
  readonly kind: 'both' | 'primary' | 'secondary' | 'checkpoint' | 'time' | 'datagram';
  readonly isRepeat: boolean;
}

const step: fc.Arbitrary<Step> = fc.record({
  flow: fc.nat(FLOWS - 1),
  said: plain,
  change,
  kind: fc.oneof(
    { weight: 20, arbitrary: fc.constant('both' as const) },
    {
      weight: 3,
      arbitrary: fc.constantFrom(
        'primary' as const,
        'secondary' as const,
        'checkpoint' as const,
        'time' as const,
        'datagram' as const,
      ),
    },
  ),
  isRepeat: fc.integer({ min: 0, max: 9 }).map((n) => n === 0),
});

/** The last flow is IPv6, the one before it on the pass list. */
const fieldsOf = (flow: number) => ({
  ...(flow === 2 ? { src: GUEST_IP6, dst: CLIENT_IP6 } : {}),
  srcPort: flow === 1 ? 3_389 : 80,
  dstPort: 40_000 + flow,
});

function frameOf(flow: number, position: number, said: Said): TestFrame {
  return tcpFrame({
    ...fieldsOf(flow),
    seq: (ISN + 1 + position + said.shift) >>> 0,
    ack: CLIENT_ISN + 1 + 100 * said.ack,
    window: said.window,
    flags: said.flags,
    payload: new Uint8Array(said.length).fill(said.fill),
    options: { timestamps: { tsval: said.tsval, tsecr: 1 } },
  });
}

function play(node: Node, steps: readonly Step[], takesPairs: boolean): void {
  const positions = new Array<number>(FLOWS).fill(0);
  const both = (p: TestFrame, s: TestFrame): void => {
    if (takesPairs) node.both(p, s);
    else node.one(p, s);
  };
  for (let flow = 0; flow < FLOWS; flow++) {
    const fields = { ...fieldsOf(flow), ack: CLIENT_ISN + 1, flags: TCP_SYN | TCP_ACK };
    const syn = (seq: number) =>
      tcpFrame({ ...fields, seq, options: { mss: 1_460, windowScale: 2 } });
    both(syn(ISN), syn(99));
  }
  for (const { flow, said, change, kind, isRepeat } of steps) {
    const position = Math.max(0, positions[flow]! - (isRepeat ? said.length : 0));
    const p = frameOf(flow, position, said);
    const s = frameOf(flow, position, { ...said, ...change });
    if (kind === 'both') both(p, s);
    else if (kind === 'primary') node.primary(p);
    else if (kind === 'secondary') node.secondary(s);
    else if (kind === 'checkpoint') node.checkpoint();
    else if (kind === 'time') {
      node.nowUs += 250_000;
      node.engine.onTick(node.nowUs);
    } else both(udpFrame({ payload: 'x' }), udpFrame({ payload: 'x' }));
    if (kind !== 'secondary' && !isRepeat) positions[flow]! += said.length;
    node.nowUs += 10;
    node.engine.flush(node.nowUs);
  }
  // An old ACK, which says nothing: flows are brought up to the last checkpoint when they are touched.
  for (let flow = 0; flow < FLOWS; flow++) node.secondary(frameOf(flow, 0, OLD_ACK));
  node.engine.flush(node.nowUs);
}

/** Both engines have done the same, by the two ways. Returns how many pairs there were. */
function expectSame(steps: readonly Step[]): number {
  const ordinary = new Node();
  const paired = new Node();
  play(ordinary, steps, false);
  play(paired, steps, true);
  expect(paired.view()).toEqual(ordinary.view());
  expect(paired.engine.flows(10)).toEqual(ordinary.engine.flows(10));
  return paired.pairs;
}

describe('pairs of segments', () => {
  it('change nothing that the client or an operator could see, but the work', () => {
    let pairs = 0;
    fc.assert(
      fc.property(fc.array(step, { maxLength: 60 }), (steps) => {
        pairs += expectSame(steps);
      }),
      { numRuns: 400 },
    );
    expect(pairs).toBeGreaterThan(500);
  });

  it('leave an ACK that a retransmission cannot carry to the same deadline', () => {
    const said = { ...OLD_ACK, length: 1_400, ack: 1 };
    const base = { flow: 2, change: {}, isRepeat: true };
    const steps: Step[] = [
      { ...base, said, kind: 'both' },
      { ...base, said: { ...said, length: 64, ack: 3 }, kind: 'primary' },
      { ...base, said, kind: 'time' },
    ];
    expect(expectSame(steps)).toBe(1);
  });

  // Guards `isAhead` in isSteady.
  it('are not made where the SVM has begun the next connection of the ports', () => {
    const node = new Node();
    const said: Said = {
      length: 9,
      ack: 0,
      window: 9,
      flags: TCP_ACK,
      fill: 1,
      tsval: 1,
      shift: 0,
    };
    const next = (index: number) => frameOf(0, 9 * index, said);
    // Its SYN was not seen: after a checkpoint it is compared like any other.
    node.one(next(0), next(0));
    node.checkpoint();
    node.both(next(1), next(1));
    expect(node.pairs).toBe(1);
    node.secondary(frameOf(0, 0x2000_0000, { ...said, length: 0, flags: TCP_SYN | TCP_ACK }));
    node.both(next(2), next(2));
    expect(node.pairs).toBe(1);
    expect(node.view().held.frames).toBeGreaterThan(0);
  });

  it('are not made of frames of another kind', () => {
    const info = new FrameInfo();
    const isPlain = (frame: TestFrame) =>
      readPlainSegment(frame.buffer, frame.offset, frame.length, info);
    const said: Said = {
      length: 9,
      ack: 0,
      window: 9,
      flags: TCP_ACK,
      fill: 1,
      tsval: 1,
      shift: 0,
    };
    expect(isPlain(frameOf(0, 0, said))).toBe(true);
    expect(isPlain(frameOf(2, 0, said))).toBe(true);
    for (const flags of [TCP_ACK | TCP_FIN, TCP_ACK | TCP_RST, TCP_SYN, TCP_PSH]) {
      expect(isPlain(frameOf(0, 0, { ...said, flags }))).toBe(false);
    }
    expect(isPlain(udpFrame())).toBe(false);
    expect(isPlain(tcpFrame({ vlan: 7 }))).toBe(false);
    expect(isPlain(tcpFrame({ options: Uint8Array.of(5, 10, 0, 0, 0, 1, 0, 0, 0, 2, 1, 1) }))).toBe(
      false,
    );
    expect(isPlain(tcpFrame({ ipOptions: new Uint8Array(4).fill(1) }))).toBe(false);
  });

  it('are not looked for beyond the end of a frame', () => {
    const info = new FrameInfo();
    fc.assert(
      fc.property(
        fc.boolean(),
        fc.nat(130),
        fc.array(fc.tuple(fc.nat(129), fc.nat(255)), { maxLength: 4 }),
        (isIpv6, cut, changes) => {
          const said = {
            length: 30,
            ack: 0,
            window: 9,
            flags: TCP_ACK,
            fill: 1,
            tsval: 1,
            shift: 0,
          };
          const { buffer, offset, length } = frameOf(isIpv6 ? 2 : 0, 0, said);
          const bytes = buffer.bytes.slice(offset, offset + Math.min(length, cut));
          for (const [at, value] of changes) if (at < bytes.length) bytes[at] = value;
          const exact = { bytes, view: new DataView(bytes.buffer) };
          if (!readPlainSegment(exact, 0, bytes.length, info)) return;
          expect(info.payloadOffset + info.payloadBytes).toBeLessThanOrEqual(bytes.length);
          expect(info.payloadBytes).toBeGreaterThanOrEqual(0);
          // What waits in its stream is dissected when it has to go the ordinary way after all.
          const whole = new FrameInfo();
          const withHeader = new Uint8Array(VNET_HDR_BYTES + bytes.length);
          withHeader.set(bytes, VNET_HDR_BYTES);
          const framed = { bytes: withHeader, view: new DataView(withHeader.buffer) };
          expect(dissect(framed, VNET_HDR_BYTES, bytes.length, whole)).toBe(FRAME_OK);
          expect(whole.payloadOffset).toBe(VNET_HDR_BYTES + info.payloadOffset);
          expect(whole.payloadBytes).toBe(info.payloadBytes);
        },
      ),
      { numRuns: 2_000 },
    );
  });
});

/** What one guest does next in one of the flows. */
interface Cut {
  readonly flow: number;
  readonly guest: 'primary' | 'secondary';
  readonly length: number;
  readonly ack: number;
  readonly window: number;
  readonly kind: 'next' | 'repeat' | 'different' | 'fin' | 'reset' | 'gap';
  readonly event: 'none' | 'checkpoint' | 'time';
  readonly mayLend: boolean;
}

const cut: fc.Arbitrary<Cut> = fc.record({
  flow: fc.nat(FLOWS - 1),
  guest: fc.constantFrom('primary' as const, 'secondary' as const),
  length: fc.constantFrom(0, 1, 3, 64, 65, 131, 1_400),
  ack: fc.nat(39).map((n) => Math.min(n + 1, 3)),
  window: fc.nat(39).map((n) => (n === 0 ? 100 : 65_535)),
  kind: fc.oneof(
    { weight: 80, arbitrary: fc.constant('next' as const) },
    {
      weight: 1,
      arbitrary: fc.constantFrom<Cut['kind']>('repeat', 'different', 'fin', 'reset', 'gap'),
    },
  ),
  event: fc.oneof(
    { weight: 80, arbitrary: fc.constant('none' as const) },
    { weight: 1, arbitrary: fc.constantFrom<Cut['event']>('checkpoint', 'time') },
  ),
  mayLend: fc.integer({ min: 0, max: 19 }).map((n) => n > 0),
});

/** The same frames in the same order for two engines: one takes what it can from the streams, the other has everything handed over. */
class Twins {
  readonly lending = new Node();
  readonly ordinary = new Node();
  matched = 0;
  #primary: TestFrame[] = [];
  #secondary: TestFrame[] = [];
  /** The SVM's head has been given to `ordinary` already. */
  #isUsed = false;
  readonly #ends = { primary: new Array<number>(FLOWS).fill(0), secondary: [0, 0, 0] };

  open(): void {
    for (let flow = 0; flow < FLOWS; flow++) {
      const fields = { ...fieldsOf(flow), ack: CLIENT_ISN + 1, flags: TCP_SYN | TCP_ACK };
      const syn = (seq: number) =>
        tcpFrame({ ...fields, seq, options: { mss: 1_460, windowScale: 2 } });
      this.#handOver(syn(ISN), syn(99));
    }
  }

  step({ flow, guest, length, ack, window, kind, event, mayLend }: Cut): void {
    const end = this.#ends[guest][flow]!;
    const shift = kind === 'gap' ? 2 : kind === 'repeat' ? -Math.min(end, 70) : 0;
    const at = end + shift;
    const payload = Uint8Array.from({ length }, (_, i) => (at + i) * 7 + ((at + i) >> 8));
    if (kind === 'different' && length > 0) payload[length - 1]! ^= 1;
    const frame = tcpFrame({
      ...fieldsOf(flow),
      seq: (ISN + 1 + at) >>> 0,
      ack: CLIENT_ISN + 1 + 100 * ack,
      window,
      flags: TCP_ACK | (kind === 'fin' ? TCP_FIN : kind === 'reset' ? TCP_RST : 0),
      payload,
      options: { timestamps: { tsval: 5, tsecr: 1 } },
    });
    this.#ends[guest][flow] = Math.max(end, at + length);
    if (guest === 'primary') this.#primary.push(frame);
    else this.#secondary.push(frame);
    this.#run(mayLend);
    if (event !== 'none') this.end();
    for (const node of [this.lending, this.ordinary]) {
      if (event === 'checkpoint') node.checkpoint();
      node.nowUs += event === 'time' ? 250_000 : 10;
      if (event === 'time') node.engine.onTick(node.nowUs);
      node.engine.flush(node.nowUs);
    }
  }

  /** What waits in the streams goes to the engines: as when a checkpoint begins, or it has waited long enough. */
  end(): void {
    for (const frame of this.#primary.splice(0)) this.#handOver(frame, undefined);
    for (const frame of this.#secondary.splice(0)) this.#handOverSecondary(frame);
  }

  /** As `cli/lockstep.ts` does. */
  #run(mayLend: boolean): void {
    while (this.#secondary.length > 0) {
      const [p, s] = [this.#primary[0], this.#secondary[0]!];
      const before = this.lending.view().released;
      const result = this.lending.heads(p, s, mayLend);
      // Looked at in part already: it lets out what waits, although it stays.
      const isUsed = this.lending.view().released > before;
      if (!this.#isUsed && (isUsed || result === PAIR_TOOK_SECONDARY)) this.ordinary.secondary(s);
      if (isUsed || result === PAIR_TOOK_SECONDARY) this.#isUsed = true;
      if (result === PAIR_TAKEN || result === PAIR_TOOK_PRIMARY) this.ordinary.primary(p!);
      if (result === PAIR_WAITS || (result === undefined && p === undefined)) return;
      if (result === PAIR_TOOK_SECONDARY) this.matched++;
      const isTaken = result === PAIR_TAKEN || result === undefined;
      if (result === undefined) {
        this.#handOverSecondary(s);
        this.#handOver(p, undefined);
      }
      if (result === PAIR_SECONDARY_AHEAD) this.#handOver(p, undefined);
      if (result === PAIR_PRIMARY_AHEAD) this.#handOverSecondary(s);
      if (isTaken || result === PAIR_SECONDARY_AHEAD || result === PAIR_TOOK_PRIMARY) {
        this.#primary.shift();
      }
      if (isTaken || result === PAIR_PRIMARY_AHEAD || result === PAIR_TOOK_SECONDARY) {
        this.#secondary.shift();
        this.#isUsed = false;
      }
    }
  }

  /** The SVM's head. */
  #handOverSecondary(s: TestFrame): void {
    this.lending.secondary(s);
    if (!this.#isUsed) this.ordinary.secondary(s);
    this.#isUsed = false;
  }

  #handOver(p: TestFrame | undefined, s: TestFrame | undefined): void {
    for (const node of [this.lending, this.ordinary]) {
      if (s !== undefined) node.secondary(s);
      if (p !== undefined) node.primary(p);
    }
  }
}

describe('segments cut differently', () => {
  it('taken where they lie come out as if they were handed over', () => {
    let matched = 0;
    fc.assert(
      fc.property(fc.array(cut, { maxLength: 80, size: 'max' }), (cuts) => {
        const twins = new Twins();
        twins.open();
        for (const each of cuts) twins.step(each);
        twins.end();
        const { lending, ordinary } = twins;
        const { divergences } = ordinary.view();
        expect(lending.view().divergences).toBe(divergences);
        // Where the guests differ behind the end of the PVM's segment, only the one that looks at the SVM's piece by piece has let it go.
        if (divergences === 0) expect(lending.view()).toEqual(ordinary.view());
        for (const node of [lending, ordinary]) {
          node.checkpoint();
          // Flows are brought up to the checkpoint when they are touched.
          for (let flow = 0; flow < FLOWS; flow++) node.secondary(frameOf(flow, 0, OLD_ACK));
          node.engine.flush(node.nowUs);
        }
        expect(lending.view().sent).toEqual(ordinary.view().sent);
        expect(lending.engine.flows(10)).toEqual(ordinary.engine.flows(10));
        matched += twins.matched;
      }),
      { numRuns: 400 },
    );
    expect(matched).toBeGreaterThan(500);
  });

  it('that wait in memory of the engine are let out by what lies in the stream already', () => {
    const base = { flow: 2, ack: 1, window: 100, kind: 'next', event: 'none' } as const;
    const twins = new Twins();
    twins.open();
    twins.step({ ...base, guest: 'primary', length: 1, mayLend: false });
    twins.step({ ...base, guest: 'secondary', length: 131, mayLend: true });
    const { released } = twins.lending.view();
    // No room to wait in the stream.
    twins.step({ ...base, guest: 'primary', length: 64, mayLend: false });
    expect(twins.lending.view().released).toBe(released + 1);
    expect(twins.lending.view()).toEqual(twins.ordinary.view());
  });
});
