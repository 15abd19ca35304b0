/**
 * A hashed timer wheel (Varghese and Lauck, scheme 6 with a bitmap): arming costs O(1), so every held frame may arm
 * its flow. Each entry is in the wheel at most once. Deadlines are rounded up to the wheel's granularity; one that
 * lies beyond the wheel's horizon is handed out early, and its owner arms it again.
 *
 * @module
 */
import { assert } from './assert.ts';
import { type Micros, NEVER } from './time.ts';

/** What an entry must carry for the wheel; the wheel owns the field. */
export interface WheelEntry {
  /** Slot of the wheel, or -1 while it is not armed. */
  wheelSlot: number;
}

const SLOTS = 1_024;
const GRANULARITY_US = 1_000;
const WORDS = SLOTS / 32;

export class TimerWheel<T extends WheelEntry> {
  #slots: T[][] = Array.from({ length: SLOTS }, () => []);
  /** One bit a slot: it may hold entries. */
  #bitmap = new Uint32Array(WORDS);
  /** Ticks (of GRANULARITY_US) up to which everything has been handed out. */
  #doneTicks: number;
  #count = 0;

  constructor(nowUs: Micros) {
    this.#doneTicks = Math.floor(nowUs / GRANULARITY_US);
  }

  /** Entries armed. */
  get count(): number {
    return this.#count;
  }

  /** Arms `entry` for `deadlineUs`; it must not be armed. A deadline in the past is due at the next tick. */
  arm(entry: T, deadlineUs: Micros): void {
    assert(entry.wheelSlot === -1, 'an entry is armed once');
    const ticks = Math.ceil(deadlineUs / GRANULARITY_US);
    const ahead = Math.min(Math.max(ticks - this.#doneTicks, 1), SLOTS - 1);
    const slot = (this.#doneTicks + ahead) % SLOTS;
    entry.wheelSlot = slot;
    this.#slots[slot]!.push(entry);
    this.#bitmap[slot >>> 5]! |= 1 << (slot & 31);
    this.#count++;
  }

  /** Takes `entry` out; nothing happens when it is not armed. O(entries of its slot). */
  disarm(entry: T): void {
    if (entry.wheelSlot === -1) return;
    const entries = this.#slots[entry.wheelSlot]!;
    const at = entries.indexOf(entry);
    assert(at !== -1, 'an armed entry is in its slot');
    entries[at] = entries[entries.length - 1]!;
    entries.pop();
    entry.wheelSlot = -1;
    this.#count--;
  }

  /** Hands out, disarmed, every entry whose time has come. `onDue` may arm it again. */
  advance(nowUs: Micros, onDue: (entry: T) => void): void {
    const nowTicks = Math.floor(nowUs / GRANULARITY_US);
    const steps = Math.min(nowTicks - this.#doneTicks, SLOTS);
    const first = this.#doneTicks + 1;
    if (steps <= 0) return;
    this.#doneTicks = nowTicks;
    for (let i = 0; i < steps; i++) {
      const slot = (first + i) % SLOTS;
      if ((this.#bitmap[slot >>> 5]! & (1 << (slot & 31))) === 0) continue;
      const entries = this.#slots[slot]!;
      this.#slots[slot] = [];
      this.#bitmap[slot >>> 5]! &= ~(1 << (slot & 31));
      this.#count -= entries.length;
      for (const entry of entries) entry.wheelSlot = -1;
      for (const entry of entries) if (entry.wheelSlot === -1) onDue(entry);
    }
  }

  /** The earliest time at which `advance` may have something; NEVER when nothing is armed. */
  nextUs(): Micros {
    if (this.#count === 0) return NEVER;
    for (let i = 1; i <= SLOTS; i++) {
      const slot = (this.#doneTicks + i) % SLOTS;
      if ((slot & 31) === 0 && this.#bitmap[slot >>> 5] === 0) {
        i += 31;
        continue;
      }
      if (this.#slots[slot]!.length > 0) return (this.#doneTicks + i) * GRANULARITY_US;
    }
    return NEVER;
  }

  /** Every armed entry; the wheel must not be changed meanwhile. */
  forEach(visit: (entry: T) => void): void {
    for (const entries of this.#slots) for (const entry of entries) visit(entry);
  }
}
