/**
 * The trace of a run: a hash over everything that happened, and the last events in words. Two runs of the same seed
 * must have the same hash; the words are what a person reads when a run fails.
 *
 * @module
 */
import type { Micros } from '../base/time.ts';

/** Events kept in words. */
const LAST_EVENTS_MAX = 400;

/** 64 bits in two lanes of FNV-1a with different primes; fast, not for secrets. */
export class Trace {
  #low = 0x811c9dc5;
  #high = 0x01000193;
  #lines: string[] = [];
  #next = 0;
  #verbose: ((line: string) => void) | undefined;

  /** @param verbose gets every line at once, for following a run */
  constructor(verbose?: (line: string) => void) {
    this.#verbose = verbose;
  }

  get isFollowed(): boolean {
    return this.#verbose !== undefined;
  }

  #mix(word: number): void {
    this.#low = Math.imul(this.#low ^ word, 0x01000193);
    this.#high = Math.imul(this.#high ^ (word + 0x9e3779b9), 0x85ebca6b);
    this.#high ^= this.#high >>> 15;
  }

  /** A number that belongs to the run (time, sizes); all 53 bits count. */
  number(value: number): void {
    this.#mix(value | 0);
    this.#mix(Math.floor(value / 0x1_0000_0000) | 0);
  }

  text(value: string): void {
    for (let i = 0; i < value.length; i++) this.#mix(value.charCodeAt(i));
    this.#mix(value.length);
  }

  bytes(value: Uint8Array): void {
    for (let i = 0; i < value.length; i++) this.#mix(value[i]!);
    this.#mix(value.length);
  }

  /** Notes an event in words; `text` is only called when somebody listens or the ring is read later. */
  line(atUs: Micros, text: string): void {
    const line = `${(atUs / 1000).toFixed(3).padStart(12)} ms  ${text}`;
    this.#lines[this.#next] = line;
    this.#next = (this.#next + 1) % LAST_EVENTS_MAX;
    this.#verbose?.(line);
  }

  /** The last `count` lines, oldest first. */
  last(count: number): string[] {
    const ordered = [...this.#lines.slice(this.#next), ...this.#lines.slice(0, this.#next)];
    return ordered.slice(-count);
  }

  /** 16 hexadecimal digits. */
  digest(): string {
    const hex = (word: number): string => (word >>> 0).toString(16).padStart(8, '0');
    return hex(this.#high) + hex(this.#low);
  }
}
