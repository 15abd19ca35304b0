/**
 * Tells the secondary what was released, so that it need not keep its guest's output for a failover. Reports are
 * collected for up to PROGRESS_INTERVAL_US: a message per batch would cost more than the memory it frees.
 *
 * @module
 */
import { type Micros, NEVER } from '../base/time.ts';
import type { EngineOutput } from '../env/engine.ts';
import type { ProgressEntry } from '../env/messages.ts';
import type { PrimaryFlow } from './primary-context.ts';
import type { PrimaryFlows } from './primary-flows.ts';

const PROGRESS_INTERVAL_US: Micros = 1_000;
/** Entries in one message; the codec's bound is higher. */
const PROGRESS_ENTRIES_MAX = 512;

export class ProgressReport {
  readonly #flows: PrimaryFlows;
  readonly #output: EngineOutput;
  #pending: PrimaryFlow[] = [];
  #lastUs: Micros;

  constructor(flows: PrimaryFlows, output: EngineOutput, nowUs: Micros) {
    this.#flows = flows;
    this.#output = output;
    this.#lastUs = nowUs;
  }

  /** `flow.progressed` is set: it stays on the list until it was reported. */
  add(flow: PrimaryFlow): void {
    if (flow.inReport) return;
    flow.inReport = true;
    this.#pending.push(flow);
  }

  /** Sends what has collected, if its time has come; forgets it unless the node is protected. */
  flush(nowUs: Micros, isProtected: boolean): void {
    if (this.#pending.length === 0) return;
    if (!isProtected) {
      this.clear();
      return;
    }
    if (nowUs < this.#lastUs + PROGRESS_INTERVAL_US) return;
    this.#lastUs = nowUs;
    let entries: ProgressEntry[] = [];
    for (const flow of this.#pending) {
      flow.inReport = false;
      flow.progressed = false;
      const entry = this.#flows.progressOf(flow);
      if (entry === undefined) continue;
      entries.push(entry);
      if (entries.length < PROGRESS_ENTRIES_MAX) continue;
      this.#output.sendMessageToPeer({ type: 'progress', entries });
      entries = [];
    }
    this.#pending.length = 0;
    if (entries.length > 0) this.#output.sendMessageToPeer({ type: 'progress', entries });
  }

  clear(): void {
    for (const flow of this.#pending) {
      flow.inReport = false;
      flow.progressed = false;
    }
    this.#pending.length = 0;
  }

  nextUs(): Micros {
    return this.#pending.length === 0 ? NEVER : this.#lastUs + PROGRESS_INTERVAL_US;
  }
}
