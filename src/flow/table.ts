/**
 * The flow table: from a frame to what is known of its flow, and who has been silent longest.
 *
 * What is known of a slot lies in one record of 64 bytes; an open-addressing index (linear probing, at most half
 * full, deletion by shifting back, so there are no tombstones) leads from a keyed hash to a slot. Each slot
 * is in the list of its class, least recently used first. Every operation is O(1), except growth, which
 * doubles the arrays and re-enters all slots: amortised O(1), no key is hashed again; the last doubling, to 2^20 slots,
 * takes some 60 ms. A million flows take 110 MB here.
 *
 * ```text
 *  index  [slot+1, hash] [0, -] [slot+1, hash] ...       two words an entry
 *             |
 *  records [11 key words, class, newer, older, usedUs (two words)]     values[slot]
 * ```
 *
 * With a million flows little is in a cache: what a frame costs here is how many places in memory it comes to, one after the other
 * (the index, then the record and the value) and in all. `find` and `touch` took 1029 ns with an array for each field, and
 * take 897 with records (Node 20.20, `npm run bench:micro`, median of three runs each in turns on a busy machine).
 *
 * Bounded: `flowsMax` over all, `halfOpenMax` half-open ones. At a limit `makeRoom` forgets the least
 * recently used flow that the caller can spare; half-open flows only ever push out half-open ones.
 *
 * @module
 */
import { assert } from '../base/assert.ts';
import { type HashKey, hashWords } from '../base/hash.ts';
import { type Micros, NEVER } from '../base/time.ts';
import {
  FLOW_TIMEOUT_CLOSED_US,
  FLOW_TIMEOUT_DATAGRAM_US,
  FLOW_TIMEOUT_ESTABLISHED_US,
  FLOW_TIMEOUT_HALF_OPEN_US,
  FLOWS_MAX,
  HALF_OPEN_FLOWS_MAX,
} from '../limits.ts';
import type { FrameInfo } from '../wire/frame.ts';
import {
  type FlowKey,
  formatKey,
  KEY_WORDS,
  keyWordCount,
  readKey,
  writeFrameKey,
  writeKey,
} from './key.ts';

/** Classes of flows: each ages by its own timeout and has its own list of least recent use. */
export const FLOW_HALF_OPEN = 0;
export const FLOW_ESTABLISHED = 1;
export const FLOW_CLOSED = 2;
export const FLOW_DATAGRAM = 3;
export type FlowClass =
  | typeof FLOW_HALF_OPEN
  | typeof FLOW_ESTABLISHED
  | typeof FLOW_CLOSED
  | typeof FLOW_DATAGRAM;

/** Names of the classes, by number. */
export const FLOW_CLASS_NAMES: readonly string[] = [
  'half-open',
  'established',
  'closed',
  'datagram',
];
const CLASS_COUNT = FLOW_CLASS_NAMES.length;

/** Which class gives way first when the whole table is full: what costs its owner least. */
const EVICTION_ORDER: readonly FlowClass[] = [
  FLOW_CLOSED,
  FLOW_HALF_OPEN,
  FLOW_DATAGRAM,
  FLOW_ESTABLISHED,
];

/** Flows of one class that `makeRoom` asks about before it tries the next: bounds its work. */
const EVICTION_TRIES = 16;
/** Flows that one `expire` looks at; the rest waits for the next call (which `nextExpiryUs` makes at once). */
export const EXPIRE_FLOWS_MAX = 4_096;

/** Slots of a new table. */
const INITIAL_SLOTS = 1_024;
/** 32-bit words of a record, and where its fields are: the key comes first. */
const RECORD_WORDS = 16;
const CLASS = KEY_WORDS;
/** Towards more recent use; of a free slot: the next free one. */
const NEWER = KEY_WORDS + 1;
const OLDER = KEY_WORDS + 2;
/** The same in doubles. */
const RECORD_DOUBLES = RECORD_WORDS / 2;
const USED_US = RECORD_DOUBLES - 1;
const NONE = -1;

/** What every value in the table carries. */
export interface FlowEntry {
  /** Where the flow is in its table; written by the table. -1: not in a table. */
  slot: number;
}

/** Options of a FlowTable. */
export interface FlowTableInit {
  /** The hash's secret: random in the daemon, fixed in tests. */
  readonly hashKey: HashKey;
  /** @default FLOWS_MAX */
  readonly flowsMax?: number;
  /** @default HALF_OPEN_FLOWS_MAX */
  readonly halfOpenMax?: number;
  /** Ageing by class number. @default the FLOW_TIMEOUT_ constants */
  readonly timeoutsUs?: readonly Micros[];
}

/** May this flow be forgotten? No, while something of it is held. */
export type CanEvict<T> = (value: T) => boolean;
/** Called after the flow has left the table; its `slot` is -1. */
export type OnEvict<T> = (value: T, flowClass: FlowClass) => void;

export class FlowTable<T extends FlowEntry> {
  readonly #flowsMax: number;
  readonly #halfOpenMax: number;
  readonly #timeoutsUs: readonly Micros[];
  readonly #hashKey: HashKey;
  readonly #scratch = new Uint32Array(KEY_WORDS);

  #slots = 0;
  /** The records, as keys; the next two are the same memory. */
  #keys = new Uint32Array(0);
  #records = new Int32Array(0);
  #times = new Float64Array(0);
  #values: (T | undefined)[] = [];
  readonly #oldest = new Int32Array(CLASS_COUNT).fill(NONE);
  readonly #newest = new Int32Array(CLASS_COUNT).fill(NONE);
  readonly #counts = new Int32Array(CLASS_COUNT);
  #free = NONE;
  /** Slots from here on have never been used. */
  #fresh = 0;
  #size = 0;

  #index = new Int32Array(0);
  /** Index entries - 1. */
  #mask = 0;

  constructor(init: FlowTableInit) {
    this.#flowsMax = init.flowsMax ?? FLOWS_MAX;
    this.#halfOpenMax = init.halfOpenMax ?? HALF_OPEN_FLOWS_MAX;
    this.#timeoutsUs = init.timeoutsUs ?? [
      FLOW_TIMEOUT_HALF_OPEN_US,
      FLOW_TIMEOUT_ESTABLISHED_US,
      FLOW_TIMEOUT_CLOSED_US,
      FLOW_TIMEOUT_DATAGRAM_US,
    ];
    this.#hashKey = init.hashKey;
    assert(this.#flowsMax >= 1, 'flow table: flowsMax is at least 1');
    assert(this.#timeoutsUs.length === CLASS_COUNT, 'flow table: a timeout for each class');
    this.#grow();
  }

  /** Flows in the table. */
  get size(): number {
    return this.#size;
  }

  /** Flows of one class. */
  count(flowClass: FlowClass): number {
    return this.#counts[flowClass]!;
  }

  /**
   * The flow of a dissected frame, undefined when there is none (or the frame is not IP).
   *
   * @param guestIsSource the guest (PVM or SVM) sent the frame
   */
  find(info: FrameInfo, guestIsSource: boolean): T | undefined {
    if (info.ipVersion === 0) return undefined;
    writeFrameKey(this.#scratch, info, guestIsSource);
    return this.#findScratch();
  }

  /** The flow with this key. */
  findKey(key: FlowKey): T | undefined {
    writeKey(this.#scratch, key);
    return this.#findScratch();
  }

  /**
   * Enters a new flow as the most recently used of its class.
   *
   * Preconditions: `find` gives undefined for it, and `makeRoom` gave true for its class.
   *
   * @param flowClass by default half-open for TCP, datagram for the rest
   * @returns the slot, also written to `value.slot`
   */
  insert(
    info: FrameInfo,
    guestIsSource: boolean,
    value: T,
    nowUs: Micros,
    flowClass: FlowClass = info.protocol === 6 ? FLOW_HALF_OPEN : FLOW_DATAGRAM,
  ): number {
    assert(info.ipVersion !== 0, 'flow table: only IP frames have flows');
    writeFrameKey(this.#scratch, info, guestIsSource);
    return this.#insertScratch(value, nowUs, flowClass);
  }

  /** As `insert`, of a key given as fields. */
  insertKey(key: FlowKey, value: T, nowUs: Micros, flowClass: FlowClass): number {
    writeKey(this.#scratch, key);
    return this.#insertScratch(value, nowUs, flowClass);
  }

  /** Takes a flow out; `value.slot` becomes -1. */
  remove(value: T): void {
    const slot = value.slot;
    assert(this.#values[slot] === value, 'flow table: the value is not in this table');
    this.#removeFromIndex(slot);
    this.#unlink(slot);
    this.#values[slot] = undefined;
    this.#records[slot * RECORD_WORDS + NEWER] = this.#free;
    this.#free = slot;
    this.#size--;
    value.slot = NONE;
  }

  /** The flow was used: now it is the most recent of its class. */
  touch(value: T, nowUs: Micros): void {
    const slot = value.slot;
    assert(this.#values[slot] === value, 'flow table: the value is not in this table');
    this.#times[slot * RECORD_DOUBLES + USED_US] = nowUs;
    if (this.#records[slot * RECORD_WORDS + NEWER] === NONE) return;
    const flowClass = this.#records[slot * RECORD_WORDS + CLASS]!;
    this.#unlink(slot);
    this.#link(slot, flowClass);
  }

  /** Moves a flow to another class (as its most recently used), and touches it. */
  setClass(value: T, flowClass: FlowClass, nowUs: Micros): void {
    const slot = value.slot;
    assert(this.#values[slot] === value, 'flow table: the value is not in this table');
    if (this.#records[slot * RECORD_WORDS + CLASS] === flowClass) {
      this.touch(value, nowUs);
      return;
    }
    this.#times[slot * RECORD_DOUBLES + USED_US] = nowUs;
    this.#unlink(slot);
    this.#link(slot, flowClass);
  }

  /** The class of a flow in the table. */
  classOf(value: T): FlowClass {
    return this.#records[value.slot * RECORD_WORDS + CLASS] as FlowClass;
  }

  /** When a flow in the table was last used. */
  usedUs(value: T): Micros {
    return this.#usedUsOf(value.slot);
  }

  /** The least recently used flow of a class. */
  oldest(flowClass: FlowClass): T | undefined {
    const slot = this.#oldest[flowClass]!;
    return slot === NONE ? undefined : this.#values[slot];
  }

  /**
   * Sees to it that a flow of this class can be inserted, forgetting another one when a limit is reached.
   * A flow that cannot be spared counts as used now, so that the next call asks about others.
   *
   * @returns false when there is no room: nothing among the flows asked about could be spared
   */
  makeRoom(
    flowClass: FlowClass,
    nowUs: Micros,
    canEvict: CanEvict<T>,
    onEvict: OnEvict<T>,
  ): boolean {
    if (flowClass === FLOW_HALF_OPEN && this.#counts[FLOW_HALF_OPEN]! >= this.#halfOpenMax) {
      return this.#evictFrom(FLOW_HALF_OPEN, nowUs, canEvict, onEvict);
    }
    if (this.#size < this.#flowsMax) return true;
    if (flowClass === FLOW_HALF_OPEN) {
      return (
        this.#evictFrom(FLOW_CLOSED, nowUs, canEvict, onEvict) ||
        this.#evictFrom(FLOW_HALF_OPEN, nowUs, canEvict, onEvict)
      );
    }
    for (const candidate of EVICTION_ORDER) {
      if (this.#evictFrom(candidate, nowUs, canEvict, onEvict)) return true;
    }
    return false;
  }

  /**
   * Forgets flows that were silent for the timeout of their class. One that cannot be spared lives another
   * timeout. Looks at EXPIRE_FLOWS_MAX flows at most.
   *
   * @returns how many were forgotten
   */
  expire(nowUs: Micros, canEvict: CanEvict<T>, onEvict: OnEvict<T>): number {
    let evicted = 0;
    let budget = EXPIRE_FLOWS_MAX;
    for (let c = 0; c < CLASS_COUNT; c++) {
      const limitUs = nowUs - this.#timeoutsUs[c]!;
      for (;;) {
        const slot = this.#oldest[c]!;
        if (slot === NONE || this.#usedUsOf(slot) > limitUs || budget-- === 0) break;
        if (this.#evictSlot(slot, nowUs, canEvict, onEvict)) evicted++;
      }
      if (budget <= 0) break;
    }
    return evicted;
  }

  /** When `expire` next has something to do; NEVER for an empty table. */
  nextExpiryUs(): Micros {
    let nextUs = NEVER;
    for (let c = 0; c < CLASS_COUNT; c++) {
      const slot = this.#oldest[c]!;
      if (slot !== NONE) nextUs = Math.min(nextUs, this.#usedUsOf(slot) + this.#timeoutsUs[c]!);
    }
    return nextUs;
  }

  /** All flows, in no order. Flows may be removed meanwhile; flows inserted meanwhile may be left out. */
  *values(): IterableIterator<T> {
    for (let slot = 0; slot < this.#fresh; slot++) {
      const value = this.#values[slot];
      if (value !== undefined) yield value;
    }
  }

  /** Forgets everything and gives the memory back. */
  clear(): void {
    for (const value of this.values()) value.slot = NONE;
    this.#slots = 0;
    this.#index = new Int32Array(0);
    this.#size = 0;
    this.#fresh = 0;
    this.#free = NONE;
    this.#values = [];
    this.#oldest.fill(NONE);
    this.#newest.fill(NONE);
    this.#counts.fill(0);
    this.#grow();
  }

  /** The key of a flow as fields, in fresh memory. */
  key(value: T): FlowKey {
    assert(this.#values[value.slot] === value, 'flow table: the value is not in this table');
    return readKey(this.#keys, value.slot * RECORD_WORDS);
  }

  /** `tcp 10.0.0.2:80 > 10.0.0.9:40312`: guest, then client. */
  describeFlow(value: T): string {
    return formatKey(this.key(value));
  }

  #usedUsOf(slot: number): Micros {
    return this.#times[slot * RECORD_DOUBLES + USED_US]!;
  }

  #findScratch(): T | undefined {
    const words = this.#scratch;
    const count = keyWordCount(words, 0);
    const hash = hashWords(this.#hashKey, words, 0, count);
    const index = this.#index;
    const mask = this.#mask;
    for (let i = hash & mask; ; i = (i + 1) & mask) {
      const slot = index[2 * i]! - 1;
      if (slot < 0) return undefined;
      if (index[2 * i + 1] === hash && this.#keyEquals(slot, words, count)) {
        return this.#values[slot];
      }
    }
  }

  #keyEquals(slot: number, words: Uint32Array, count: number): boolean {
    const keys = this.#keys;
    const at = slot * RECORD_WORDS;
    for (let i = 0; i < count; i++) {
      if (keys[at + i] !== words[i]) return false;
    }
    return true;
  }

  #insertScratch(value: T, nowUs: Micros, flowClass: FlowClass): number {
    assert(this.#size < this.#flowsMax, 'flow table: full; makeRoom comes first');
    const words = this.#scratch;
    const count = keyWordCount(words, 0);
    let slot = this.#free;
    if (slot === NONE) {
      if (this.#fresh === this.#slots) this.#grow();
      slot = this.#fresh++;
    } else {
      this.#free = this.#records[slot * RECORD_WORDS + NEWER]!;
    }
    const at = slot * RECORD_WORDS;
    const hash = hashWords(this.#hashKey, words, 0, count);
    for (let i = 0; i < count; i++) this.#keys[at + i] = words[i]!;
    this.#enter(slot, hash);
    this.#values[slot] = value;
    this.#times[slot * RECORD_DOUBLES + USED_US] = nowUs;
    this.#link(slot, flowClass);
    this.#size++;
    value.slot = slot;
    return slot;
  }

  /** Puts a slot into the first free index entry from its hash on. */
  #enter(slot: number, hash: number): void {
    const index = this.#index;
    let i = hash & this.#mask;
    while (index[2 * i] !== 0) i = (i + 1) & this.#mask;
    index[2 * i] = slot + 1;
    index[2 * i + 1] = hash;
  }

  /** Knuth, TAOCP 6.4 algorithm R: later entries of the run move back over the gap. */
  #removeFromIndex(slot: number): void {
    const index = this.#index;
    const mask = this.#mask;
    const at = slot * RECORD_WORDS;
    let gap = hashWords(this.#hashKey, this.#keys, at, keyWordCount(this.#keys, at)) & mask;
    while (index[2 * gap] !== slot + 1) gap = (gap + 1) & mask;
    for (let i = (gap + 1) & mask; index[2 * i] !== 0; i = (i + 1) & mask) {
      const home = index[2 * i + 1]! & mask;
      if (((i - home) & mask) < ((i - gap) & mask)) continue;
      index[2 * gap] = index[2 * i]!;
      index[2 * gap + 1] = index[2 * i + 1]!;
      gap = i;
    }
    index[2 * gap] = 0;
  }

  #link(slot: number, flowClass: number): void {
    const newest = this.#newest[flowClass]!;
    this.#records[slot * RECORD_WORDS + CLASS] = flowClass;
    this.#records[slot * RECORD_WORDS + OLDER] = newest;
    this.#records[slot * RECORD_WORDS + NEWER] = NONE;
    if (newest === NONE) this.#oldest[flowClass] = slot;
    else this.#records[newest * RECORD_WORDS + NEWER] = slot;
    this.#newest[flowClass] = slot;
    this.#counts[flowClass]!++;
  }

  #unlink(slot: number): void {
    const flowClass = this.#records[slot * RECORD_WORDS + CLASS]!;
    const older = this.#records[slot * RECORD_WORDS + OLDER]!;
    const newer = this.#records[slot * RECORD_WORDS + NEWER]!;
    if (older === NONE) this.#oldest[flowClass] = newer;
    else this.#records[older * RECORD_WORDS + NEWER] = newer;
    if (newer === NONE) this.#newest[flowClass] = older;
    else this.#records[newer * RECORD_WORDS + OLDER] = older;
    this.#counts[flowClass]!--;
  }

  #evictFrom(
    flowClass: FlowClass,
    nowUs: Micros,
    canEvict: CanEvict<T>,
    onEvict: OnEvict<T>,
  ): boolean {
    for (let i = 0; i < EVICTION_TRIES; i++) {
      const slot = this.#oldest[flowClass]!;
      if (slot === NONE) return false;
      if (this.#evictSlot(slot, nowUs, canEvict, onEvict)) return true;
    }
    return false;
  }

  #evictSlot(slot: number, nowUs: Micros, canEvict: CanEvict<T>, onEvict: OnEvict<T>): boolean {
    const value = this.#values[slot] as T;
    const flowClass = this.#records[slot * RECORD_WORDS + CLASS] as FlowClass;
    if (!canEvict(value)) {
      this.touch(value, nowUs);
      return false;
    }
    this.remove(value);
    onEvict(value, flowClass);
    return true;
  }

  #grow(): void {
    const slots = this.#slots === 0 ? INITIAL_SLOTS : 2 * this.#slots;
    const before = this.#records;
    this.#records = new Int32Array(slots * RECORD_WORDS);
    this.#records.set(before.subarray(0, this.#slots * RECORD_WORDS));
    this.#keys = new Uint32Array(this.#records.buffer);
    this.#times = new Float64Array(this.#records.buffer);
    this.#slots = slots;
    this.#growIndex(2 * slots);
  }

  /**
   * In the order of the old index, so that an entry lands near the one before it, or near the one before it in the upper
   * half: two streams of writes instead of one cache miss an entry.
   */
  #growIndex(entries: number): void {
    const old = this.#index;
    this.#index = new Int32Array(2 * entries);
    this.#mask = entries - 1;
    for (let i = 0; i < old.length; i += 2) {
      if (old[i] !== 0) this.#enter(old[i]! - 1, old[i + 1]!);
    }
  }
}
