/**
 * One direction of a link with its impairments: delay, loss, duplication, reordering, corruption, partition.
 *
 * @module
 */
import type { Prng } from '../../base/prng.ts';
import type { Micros } from '../../base/time.ts';
import { VNET_HDR_BYTES } from '../../limits.ts';
import type { EventQueue, ScheduledEvent } from '../event-queue.ts';
import type { Marks } from '../marks.ts';
import { ETHER_IPV4, ETHER_IPV6, parseHead, parseIp, type SimFrame } from './packet.ts';

/** Probabilities per frame, and delays. */
export interface Impairments {
  delayUsMin: Micros;
  delayUsMax: Micros;
  loss: number;
  /** Of IP fragments, beside that. */
  fragmentLoss: number;
  duplicate: number;
  /** A frame that is reordered waits this much longer and lets others pass. */
  reorder: number;
  reorderUsMax: Micros;
  /** One bit among the headers is turned over. */
  corrupt: number;
}

/** What a scenario does to a frame: lost, late by so much (others pass it), or another frame in its place. */
export interface FrameFate {
  readonly isLost?: boolean;
  readonly lateUs?: Micros;
  readonly frame?: SimFrame;
}

/** What befalls a frame on a link. */
export type LinkFault = 'lost' | 'duplicated' | 'overtaken' | 'cut off' | 'damaged';

/** Bytes after the Ethernet header in which corruption strikes: tag, IP and transport headers with options. */
const CORRUPTED_BYTES = 80;

/** Frames under way at most; a full queue drops the newest, as a device does. */
const FRAMES_MAX = 2_000;

/** Frames that one link has damaged; no other does it again: of two bits that are turned over, a checksum of 16 bits may see nothing. */
const damaged = new WeakSet<SimFrame>();

export class Path {
  readonly name: string;
  readonly impairments: Impairments;
  /** Nothing passes. */
  isCut = false;
  /** What a scenario does to single frames; without one, or undefined from it, the frame goes its ordinary way. */
  script: ((frame: SimFrame) => FrameFate | undefined) | undefined = undefined;
  #lastUs: Micros = 0;
  #note: (what: LinkFault) => void = () => {};
  readonly #underWay = new Set<ScheduledEvent>();
  readonly #queue: EventQueue;
  readonly #prng: Prng;
  readonly #deliver: (frame: SimFrame) => void;

  constructor(
    name: string,
    impairments: Impairments,
    queue: EventQueue,
    prng: Prng,
    deliver: (frame: SimFrame) => void,
  ) {
    this.name = name;
    this.impairments = { ...impairments };
    this.#queue = queue;
    this.#prng = prng;
    this.#deliver = deliver;
  }

  /** Counts the faults that frames meet, as those of this kind of link. */
  observe(marks: Marks, kind: 'clients' | 'guests'): void {
    this.#note = (what) => marks.hit(`${kind}: frame ${what}`);
  }

  /** Faults stop: only delay remains. */
  heal(): void {
    this.isCut = false;
    this.script = undefined;
    this.impairments.loss = 0;
    this.impairments.fragmentLoss = 0;
    this.impairments.duplicate = 0;
    this.impairments.reorder = 0;
    this.impairments.corrupt = 0;
  }

  send(frame: SimFrame): void {
    const { loss, fragmentLoss, duplicate } = this.impairments;
    if (this.isCut) this.#note('cut off');
    if (this.isCut || this.#underWay.size >= FRAMES_MAX) return;
    const fate = this.script?.(frame);
    if (fate !== undefined) {
      this.#sendScripted(frame, fate);
      return;
    }
    if (loss > 0 && this.#prng.chance(loss)) {
      this.#note('lost');
      return;
    }
    if (fragmentLoss > 0 && isFragment(frame) && this.#prng.chance(fragmentLoss)) {
      this.#note('lost');
      return;
    }
    this.#sendOne(frame);
    if (duplicate > 0 && this.#prng.chance(duplicate)) {
      this.#note('duplicated');
      this.#sendOne(frame);
    }
  }

  #sendScripted(original: SimFrame, fate: FrameFate): void {
    if (fate.isLost === true) return;
    const frame = fate.frame ?? original;
    const atUs = this.#queue.nowUs + this.impairments.delayUsMin + (fate.lateUs ?? 0);
    this.#arrive(atUs, frame);
  }

  #sendOne(original: SimFrame): void {
    const { delayUsMin, delayUsMax, reorder, reorderUsMax, corrupt } = this.impairments;
    let atUs = this.#queue.nowUs + this.#prng.nextBetween(delayUsMin, delayUsMax);
    if (reorder > 0 && this.#prng.chance(reorder)) {
      atUs += this.#prng.nextBelow(reorderUsMax + 1);
      this.#note('overtaken');
    } else {
      atUs = Math.max(atUs, this.#lastUs);
      this.#lastUs = atUs;
    }
    const isDamaged = corrupt > 0 && this.#prng.chance(corrupt) && !damaged.has(original);
    if (isDamaged) this.#note('damaged');
    const frame = isDamaged ? this.#corrupted(original) : original;
    this.#arrive(atUs, frame);
  }

  #arrive(atUs: Micros, frame: SimFrame): void {
    const event = this.#queue.at(atUs, this.name, () => {
      this.#underWay.delete(event);
      if (!this.isCut) this.#deliver(frame);
    });
    this.#underWay.add(event);
  }

  /** Everything under way arrives now, in its order. */
  hurry(): void {
    const events = [...this.#underWay].sort((a, b) => a.atUs - b.atUs || a.order - b.order);
    for (const event of events) {
      event.cancelled = true;
      event.run();
    }
  }

  /** Ethernet has a check sequence of its own, and ARP nothing else: damage that gets through is in IP packets. */
  #corrupted(original: SimFrame): SimFrame {
    const etherType = parseHead(original)?.etherType;
    const frame = original.slice();
    if (etherType !== ETHER_IPV4 && etherType !== ETHER_IPV6) return frame;
    const start = VNET_HDR_BYTES + 14;
    const count = Math.min(frame.length - start, CORRUPTED_BYTES);
    if (count <= 0) return frame;
    const at = start + this.#prng.nextBelow(count);
    frame[at]! ^= 1 << this.#prng.nextBelow(8);
    damaged.add(frame);
    return frame;
  }
}

function isFragment(frame: SimFrame): boolean {
  const packet = parseIp(frame);
  return packet !== undefined && (packet.moreFragments || packet.fragmentOffset > 0);
}
