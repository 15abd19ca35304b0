/**
 * Virtual time: a priority queue of what will happen, ordered by time and, at the same time, by the
 * order of scheduling. Nothing else decides what comes next, so a run repeats exactly.
 *
 * @module
 */
import { assert } from '../base/assert.ts';
import { type Micros, NEVER } from '../base/time.ts';

/** Something that will happen. `run` is called once, with the queue's clock at `atUs`. */
export interface ScheduledEvent {
  readonly atUs: Micros;
  /** Order of scheduling: decides between events of the same time. */
  readonly order: number;
  /** For the trace and for counting; e.g. `frame`, `timer`, `fault`. */
  readonly kind: string;
  readonly run: () => void;
  cancelled: boolean;
}

function isEarlier(a: ScheduledEvent, b: ScheduledEvent): boolean {
  return a.atUs < b.atUs || (a.atUs === b.atUs && a.order < b.order);
}

/** A binary heap of events, and the clock. */
export class EventQueue {
  #heap: ScheduledEvent[] = [];
  #nowUs: Micros = 0;
  #order = 0;

  /** The virtual time of the event that runs now. */
  get nowUs(): Micros {
    return this.#nowUs;
  }

  /** Events waiting, cancelled ones included. */
  get size(): number {
    return this.#heap.length;
  }

  /** Runs `run` at `atUs`, or now when that is past. */
  at(atUs: Micros, kind: string, run: () => void): ScheduledEvent {
    assert(atUs !== NEVER && !Number.isNaN(atUs), 'sim: an event needs a time');
    const event: ScheduledEvent = {
      atUs: Math.max(Math.ceil(atUs), this.#nowUs),
      order: this.#order++,
      kind,
      run,
      cancelled: false,
    };
    this.#push(event);
    return event;
  }

  /** Runs `run` `delayUs` from now. */
  after(delayUs: Micros, kind: string, run: () => void): ScheduledEvent {
    return this.at(this.#nowUs + delayUs, kind, run);
  }

  /** The time of the next event; NEVER when none waits. */
  nextUs(): Micros {
    this.#dropCancelled();
    return this.#heap[0]?.atUs ?? NEVER;
  }

  /** Takes the next event and moves the clock to it; undefined when nothing waits. */
  take(): ScheduledEvent | undefined {
    this.#dropCancelled();
    const first = this.#pop();
    if (first !== undefined) this.#nowUs = first.atUs;
    return first;
  }

  #dropCancelled(): void {
    while (this.#heap[0]?.cancelled === true) this.#pop();
  }

  #push(event: ScheduledEvent): void {
    const heap = this.#heap;
    let index = heap.length;
    heap.push(event);
    while (index > 0) {
      const parent = (index - 1) >> 1;
      if (!isEarlier(event, heap[parent]!)) break;
      heap[index] = heap[parent]!;
      index = parent;
    }
    heap[index] = event;
  }

  #pop(): ScheduledEvent | undefined {
    const heap = this.#heap;
    const first = heap[0];
    const last = heap.pop();
    if (first === undefined || last === undefined || heap.length === 0) return first;
    let index = 0;
    for (;;) {
      let child = index * 2 + 1;
      if (child >= heap.length) break;
      if (child + 1 < heap.length && isEarlier(heap[child + 1]!, heap[child]!)) child++;
      if (!isEarlier(heap[child]!, last)) break;
      heap[index] = heap[child]!;
      index = child;
    }
    heap[index] = last;
    return first;
  }
}
