/**
 * When a client waited: what tells how long a takeover was, as its user sees it.
 *
 * @module
 */

/** A time without progress; both ends as `monotonicMs`. */
export interface Wait {
  readonly fromMs: number;
  readonly toMs: number;
}

/** Shorter ones are what any network does. */
const LISTED_MS_MIN = 1;
/** The longest are kept. */
const LISTED_MAX = 5_000;

/** The waits of one client. Time is an argument. */
export class Waits {
  readonly #list: Wait[] = [];
  #lastMs: number;
  #longestMs = 0;

  constructor(startMs: number) {
    this.#lastMs = startMs;
  }

  /** Last progress, or the start. */
  get lastMs(): number {
    return this.#lastMs;
  }

  get longestMs(): number {
    return this.#longestMs;
  }

  /** A wait ends now. */
  progress(nowMs: number): void {
    const ms = nowMs - this.#lastMs;
    this.#longestMs = Math.max(this.#longestMs, ms);
    if (ms >= LISTED_MS_MIN) {
      this.#list.push({ fromMs: this.#lastMs, toMs: nowMs });
      if (this.#list.length > LISTED_MAX) this.#dropShorter();
    }
    this.#lastMs = nowMs;
  }

  /** Those of at least a millisecond, in order of time; of very many, the longest. */
  list(): readonly Wait[] {
    return this.#list;
  }

  #dropShorter(): void {
    const lengths = this.#list.map(({ fromMs, toMs }) => toMs - fromMs).sort((a, b) => a - b);
    const limitMs = lengths[Math.floor(lengths.length / 2)]!;
    const kept = this.#list.filter(({ fromMs, toMs }) => toMs - fromMs > limitMs);
    this.#list.splice(0, this.#list.length, ...kept);
  }
}

/** How long after `atMs` the client got something: the rest of the wait that it was in, or 0. */
export function waitedAfter(atMs: number, waits: readonly Wait[]): number {
  const wait = waits.find(({ fromMs, toMs }) => fromMs <= atMs && atMs < toMs);
  return wait === undefined ? 0 : wait.toMs - atMs;
}
