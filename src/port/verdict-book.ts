/**
 * The packets that wait in the kernel for a verdict: each gets exactly one.
 *
 * A packet has a mark (see `FrameKeeper`) while anybody can still send it: the batch that it was lent to, or a copy of it.
 *
 * ```text
 * take ----> open ---- sent ------------------------------------> ACCEPT
 *                 ---- nobody can send it any more -------------> DROP
 *                 ---- too many wait, or the book must give way -> DROP, and its copy is sent when its time comes
 * ```
 *
 * The last way bounds what the kernel holds: it finds a packet that a verdict names by walking along all that wait (up to
 * Linux 6.18), so thousands of them would make every verdict slow. Only packets that are no GSO frames give way, because the
 * kernel does not tell the segment size of a GSO frame, which a copy would need. Those are large and therefore few.
 *
 * @module
 */
import { assert } from '../base/assert.ts';
import type { FrameKeeper } from '../env/frame.ts';
import { NFQUEUE_WAITING_MAX } from '../limits.ts';

/** Marks 1..MARKS_MAX; MARK_COPY is not among them. */
const MARKS_MAX = 65_534;
/** Mark of a frame that is only a copy: the frame itself takes its own way, so that sending it is not needed. */
export const MARK_COPY = 65_535;

const FREE = 0;
const OPEN = 1;
const DECIDED = 2;

/** Gives the verdict that a packet is dropped. */
export type DropSink = (queue: number, id: number) => void;

export class VerdictBook implements FrameKeeper {
  readonly #drop: DropSink;
  readonly #waitingMax: number;
  readonly #states = new Uint8Array(MARKS_MAX + 1);
  /** Who can still send it: the batch it is lent to, and each copy. */
  readonly #holders = new Uint32Array(MARKS_MAX + 1);
  readonly #queues = new Uint16Array(MARKS_MAX + 1);
  readonly #ids = new Uint32Array(MARKS_MAX + 1);
  readonly #isGso = new Uint8Array(MARKS_MAX + 1);
  /** A list of the open ones that may give way, oldest first, through mark 0. */
  readonly #older = new Uint16Array(MARKS_MAX + 1);
  readonly #newer = new Uint16Array(MARKS_MAX + 1);
  readonly #free = new Uint16Array(MARKS_MAX);
  #freeCount = MARKS_MAX;
  #open = 0;
  #listed = 0;
  #gaveWay = 0;

  /** @param waitingMax more packets than these do not stay in the kernel, GSO frames aside */
  constructor(drop: DropSink, waitingMax = NFQUEUE_WAITING_MAX) {
    this.#drop = drop;
    this.#waitingMax = waitingMax;
    for (let i = 0; i < MARKS_MAX; i++) this.#free[i] = MARKS_MAX - i;
  }

  /** Packets without a verdict. */
  get open(): number {
    return this.#open;
  }

  /** Marks in use. */
  get marks(): number {
    return MARKS_MAX - this.#freeCount;
  }

  /** Packets that were dropped in the kernel for their copies' sake. */
  get gaveWay(): number {
    return this.#gaveWay;
  }

  /** Enters a packet, lent to the batch under way; its mark, or 0 when there is none left: then the caller gives the verdict. */
  take(queue: number, id: number, isGso: boolean): number {
    if (this.#freeCount === 0) return 0;
    const mark = this.#free[--this.#freeCount]!;
    this.#states[mark] = OPEN;
    this.#holders[mark] = 1;
    this.#queues[mark] = queue;
    this.#ids[mark] = id;
    this.#isGso[mark] = isGso ? 1 : 0;
    this.#open++;
    if (!isGso) this.#list(mark);
    return mark;
  }

  onKept(mark: number): void {
    if (mark === MARK_COPY) return;
    assert(this.#holders[mark]! > 0, 'only a frame that somebody has is copied');
    this.#holders[mark]!++;
  }

  /** Also the end of the batch that a packet was lent to. */
  onForgotten(mark: number): void {
    if (mark === MARK_COPY) return;
    assert(this.#holders[mark]! > 0, 'a frame is forgotten by those that had it');
    if (--this.#holders[mark]! > 0) return;
    if (this.#states[mark] === OPEN) this.#dropOpen(mark);
    this.#states[mark] = FREE;
    this.#free[this.#freeCount++] = mark;
  }

  /** May the packet itself still go? Otherwise a copy has to. */
  isOpen(mark: number): boolean {
    return this.#states[mark] === OPEN;
  }

  isGso(mark: number): boolean {
    return this.#isGso[mark] === 1;
  }

  /** The identity of an open packet, which the caller accepts now. */
  accept(mark: number): number {
    this.#decide(mark);
    return this.#ids[mark]!;
  }

  /** The packet is dropped, and the caller sends a copy of it. */
  giveWay(mark: number): void {
    this.#gaveWay++;
    this.#dropOpen(mark);
  }

  /** Lets the oldest give way while more wait than may. Call at the end of a batch, when what is sent of it has its verdict. */
  relieve(): void {
    while (this.#listed > this.#waitingMax) this.giveWay(this.#newer[0]!);
  }

  #dropOpen(mark: number): void {
    this.#decide(mark);
    this.#drop(this.#queues[mark]!, this.#ids[mark]!);
  }

  #decide(mark: number): void {
    assert(this.#states[mark] === OPEN, 'a packet gets one verdict');
    this.#states[mark] = DECIDED;
    this.#open--;
    if (this.#isGso[mark] === 0) this.#unlist(mark);
  }

  #list(mark: number): void {
    const newest = this.#older[0]!;
    this.#older[mark] = newest;
    this.#newer[mark] = 0;
    this.#newer[newest] = mark;
    this.#older[0] = mark;
    this.#listed++;
  }

  #unlist(mark: number): void {
    const older = this.#older[mark]!;
    const newer = this.#newer[mark]!;
    this.#newer[older] = newer;
    this.#older[newer] = older;
    this.#listed--;
  }
}
