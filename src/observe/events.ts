/**
 * The last events of a node, for `ctl events`: a bounded ring with running numbers, and followers who get
 * each event as it comes.
 *
 * @module
 */
import type { ProxyEvent } from '../env/messages.ts';
import { EVENTS_KEPT_MAX } from '../limits.ts';

/** An event with its place in the node's life. */
export interface RecordedEvent extends ProxyEvent {
  /** Counts from 1 in this process, without gaps: a reader sees what it has missed. */
  readonly number: number;
  /** Wall-clock time, ISO 8601 with milliseconds, UTC. */
  readonly at: string;
}

export type EventListener = (event: RecordedEvent) => void;

export class EventRing {
  readonly #countMax: number;
  readonly #wallClock: () => Date;
  /** Ring storage: event `number` lies at `(number - 1) % countMax`. */
  readonly #ring: RecordedEvent[] = [];
  readonly #followers = new Set<EventListener>();
  #lastNumber = 0;

  /** @param countMax events kept, at least 1 */
  constructor(countMax: number = EVENTS_KEPT_MAX, wallClock: () => Date = () => new Date()) {
    this.#countMax = countMax;
    this.#wallClock = wallClock;
  }

  add(event: ProxyEvent): RecordedEvent {
    const number = ++this.#lastNumber;
    const recorded = { number, at: this.#wallClock().toISOString(), ...event };
    this.#ring[(number - 1) % this.#countMax] = recorded;
    for (const follower of this.#followers) follower(recorded);
    return recorded;
  }

  /** The last `countMax` kept events, oldest first. */
  list(countMax: number = this.#countMax): RecordedEvent[] {
    const count = Math.min(countMax, this.#ring.length);
    const events: RecordedEvent[] = [];
    for (let number = this.#lastNumber - count + 1; number <= this.#lastNumber; number++) {
      const event = this.#ring[(number - 1) % this.#countMax];
      if (event !== undefined) events.push(event);
    }
    return events;
  }

  /** Calls `listener` for every later event until the returned function is called. It must not throw. */
  follow(listener: EventListener): () => void {
    this.#followers.add(listener);
    return () => this.#followers.delete(listener);
  }
}
