/**
 * Deliberate faults that the simulation must find: `npm run sim:mutants` builds each into a copy of the engines in memory,
 * runs seeds against it, and demands that a checker speaks up within `seedsMax` of them. The first ones are those of
 * `guarantee-mutants.ts` (by title); the others are faults that only show when everything works together.
 *
 * @module
 */
import { MUTANTS, type Mutant } from './guarantee-mutants.ts';

export interface SimMutant extends Mutant {
  /** It is found within this many seeds, from seed 1 on. */
  readonly seedsMax: number;
}

const TCP = 'src/proxy/primary-tcp.ts';
const PRIMARY = 'src/proxy/primary.ts';
const SECONDARY = 'src/proxy/secondary.ts';
const FLOW = 'src/proxy/secondary-flow.ts';
const ADJUST = 'src/rewrite/adjust.ts';
const LOWER = 'src/rewrite/lower.ts';

/** Titles in `guarantee-mutants.ts`, and the seeds in which the simulation must find them. */
const KNOWN: readonly (readonly [title: string, seedsMax: number])[] = [
  ['bytes are released without the SVM', 10],
  ['bytes that differ count as equal', 20],
  ['held output goes at begin', 20],
  ['held output goes before the secondary knows the commit', 100],
  ['a SYN does not wait', 10],
  ['a RST does not wait', 40],
  ['any datagram is a mate', 150],
  ['the ACK number is that of the PVM', 10],
  ['the window is that of the PVM', 40],
  ['SACK blocks are those of the PVM', 100],
  ['a commit leaves the ACK of the SVM where it was', 100],
  ['ARP of the SVM goes out', 10],
  ['a failover beside a living primary', 40],
  ['a failover without a committed state', 40],
  ['a matched datagram passes those before it', 150],
  ['output of the SVM keeps its numbers', 20],
  ['ACK and SACK of the client keep their numbers', 20],
  // Seen in 3 % of the seeds: it takes a failover, timestamps on both sides, and a clock of the SVM that is behind.
  ['the two clocks count as one', 150],
  ['nobody waits for bytes of the SVM', 20],
  ['nobody waits for an ACK', 400],
  ['nobody waits for a datagram', 40],
  ['a request is made once', 150],
  ['losing the peer releases nothing', 40],
  ['the primary changes its state in silence', 5],
  ['a lost peer changes nothing', 20],
  ['protected as soon as a peer is there', 10],
  ['an old state survives a new sync', 40],
];

const OWN: readonly SimMutant[] = [
  {
    guarantee: 'G5',
    title: 'the sign of the delta is wrong',
    file: FLOW,
    search: 'this.seqDelta = seqDistance(this.secondaryIsn, this.primaryIsn);',
    replace: 'this.seqDelta = seqDistance(this.primaryIsn, this.secondaryIsn);',
    seedsMax: 20,
  },
  {
    guarantee: 'G5',
    title: 'SACK edges of the client are forgotten',
    file: ADJUST,
    search: 'delta += shiftOptions(info, -seqDelta, 0, -tsDelta);',
    replace: 'delta += shiftOptions(info, 0, 0, -tsDelta);',
    seedsMax: 60,
  },
  {
    guarantee: 'G5',
    title: 'headers quoted to the SVM keep the numbers of the wire',
    file: 'src/proxy/secondary-flows.ts',
    search: 'adjustQuoteForGuest(info, this.#quote, flow.seqDelta);',
    replace: 'adjustQuoteForGuest(info, this.#quote, 0);',
    seedsMax: 100,
  },
  {
    guarantee: 'G1',
    title: 'sequence numbers are compared without their wrap',
    file: 'src/wire/seq.ts',
    search: 'return ((a - b) | 0) <= 0;',
    replace: 'return a <= b;',
    seedsMax: 40,
  },
  {
    guarantee: 'G4',
    title: 'a lowered ACK keeps its old checksum',
    file: LOWER,
    search: 'updateTcpChecksum(info, delta32(before, newAck, false));',
    replace: 'void delta32(before, newAck, false);',
    seedsMax: 60,
  },
  {
    guarantee: 'G4',
    title: 'every frame is released twice',
    file: PRIMARY,
    search: 'this.#counts.released++;\n        this.#output.sendToNet(buffer, offset, length);',
    replace:
      'this.#counts.released++;\n        this.#output.sendToNet(buffer, offset, length);\n        this.#output.sendToNet(buffer, offset, length);',
    seedsMax: 5,
  },
  {
    guarantee: 'G9',
    title: 'the secondary is ready before a commit',
    file: SECONDARY,
    search: '  #ready = false;\n',
    replace: '  #ready = true;\n',
    seedsMax: 10,
  },
  {
    guarantee: 'G4',
    title: 'a frame that the guest was given is changed in place',
    file: PRIMARY,
    search: 'this.#output.sendToGuest(buffer, offset, length);',
    replace:
      'buffer.bytes[offset + length - 1]! ^= 1;\n    this.#output.sendToGuest(buffer, offset, length);',
    seedsMax: 5,
  },
  {
    guarantee: 'G7',
    title: 'the flow table has no limit',
    file: 'src/flow/table.ts',
    search: 'if (this.#size < this.#flowsMax) return true;',
    replace: 'if (this.#size >= 0) return true;',
    seedsMax: 200,
  },
  {
    guarantee: 'G7',
    title: 'output at the limit is dropped without a word',
    file: 'src/proxy/primary-memory.ts',
    search: "if (this.#isOver(flow, 2)) {\n        this.#dropped.add('held-limit');",
    replace: 'if (this.#bytes >= 0) {',
    // Twice of a limit is reached in 3 % of the seeds.
    seedsMax: 200,
  },
  {
    guarantee: 'G6',
    title: 'a segment that waits arms no deadline',
    file: TCP,
    search: 'wheel.arm(this, (sinceUs === NEVER ? nowUs : sinceUs) + config.compareTimeoutUs);',
    replace: 'void (sinceUs === NEVER ? nowUs : sinceUs) + config.compareTimeoutUs;',
    seedsMax: 20,
  },
];

function known(title: string, seedsMax: number): SimMutant {
  const mutant = MUTANTS.find((item) => item.title === title);
  if (mutant === undefined) throw new Error(`No mutant has the title: ${title}`);
  return { ...mutant, seedsMax };
}

export const SIM_MUTANTS: readonly SimMutant[] = [
  ...KNOWN.map(([title, seedsMax]) => known(title, seedsMax)),
  ...OWN,
];
