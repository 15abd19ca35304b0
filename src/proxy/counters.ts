/**
 * Named counters of an engine. Names are found by operators in `status`; they are part of the interface.
 *
 * @module
 */
export class Counters {
  readonly #values = new Map<string, number>();

  /** Adds to the counter `name`, which exists from its first use. Not for the per-frame path: use fields there. */
  add(name: string, count = 1): void {
    this.#values.set(name, (this.#values.get(name) ?? 0) + count);
  }

  get(name: string): number {
    return this.#values.get(name) ?? 0;
  }

  /** A copy, sorted by name. */
  toRecord(): Record<string, number> {
    return Object.fromEntries([...this.#values].sort(([a], [b]) => (a < b ? -1 : 1)));
  }
}
