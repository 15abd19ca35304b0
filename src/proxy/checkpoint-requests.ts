/**
 * When to ask the VM layer for a checkpoint: at most one request is outstanding, further causes are coalesced
 * into it, and the guest runs for a minimum time between two checkpoints, so that a storm of divergences cannot stop it
 * for good.
 *
 *     idle --want--> wanted --(minimum run time over)--> outstanding --begin--> under way --commit--> idle
 *                                                        | timeout: repeated, then given up
 *
 * @module
 */
import { type Micros, NEVER } from '../base/time.ts';
import type { CheckpointCause, CheckpointRequest } from '../env/messages.ts';

/** What is known of a cause when it arises; see CheckpointRequest for the fields. */
export interface CheckpointWish {
  readonly cause: CheckpointCause;
  readonly flow: string;
  readonly offset: number;
  readonly primaryExcerpt: string;
  readonly secondaryExcerpt: string;
}

export interface CheckpointRequestsConfig {
  readonly minRunUs: Micros;
  readonly checkpointRequestTimeoutUs: Micros;
  readonly checkpointRequestTries: number;
}

export class CheckpointRequests {
  readonly #config: CheckpointRequestsConfig;
  #wish: CheckpointWish | undefined;
  #wishedAtUs: Micros = 0;
  #coalesced = 0;
  #outstanding: CheckpointRequest | undefined;
  #sentAtUs: Micros = 0;
  #tries = 0;
  #underWay = false;
  #notBeforeUs: Micros = 0;
  #lastId = 0;

  constructor(config: CheckpointRequestsConfig) {
    this.#config = config;
  }

  /** Requests handed out so far, repetitions included. */
  requested = 0;

  /** Is a checkpoint wanted, asked for, or under way? */
  get busy(): boolean {
    return this.#wish !== undefined || this.#outstanding !== undefined || this.#underWay;
  }

  /** Notes a cause. Returns whether it is the first, i.e. not merely coalesced. */
  want(wish: CheckpointWish, nowUs: Micros): boolean {
    if (this.busy) {
      this.#coalesced++;
      return false;
    }
    this.#wish = wish;
    this.#wishedAtUs = nowUs;
    this.#coalesced = 0;
    return true;
  }

  /** The request to send now, if one is due. */
  take(nowUs: Micros): CheckpointRequest | undefined {
    if (this.#underWay) return undefined;
    if (this.#outstanding !== undefined) {
      if (nowUs < this.#sentAtUs + this.#config.checkpointRequestTimeoutUs) return undefined;
      if (this.#tries >= this.#config.checkpointRequestTries) return undefined;
    } else if (this.#wish === undefined || nowUs < this.#notBeforeUs) {
      return undefined;
    } else {
      this.#tries = 0;
    }
    const base = this.#wish ?? this.#outstanding;
    if (base === undefined) return undefined;
    this.#wish = undefined;
    this.#sentAtUs = nowUs;
    this.#tries++;
    this.requested++;
    this.#outstanding = {
      id: ++this.#lastId,
      cause: base.cause,
      flow: base.flow,
      offset: base.offset,
      primaryExcerpt: base.primaryExcerpt,
      secondaryExcerpt: base.secondaryExcerpt,
      delayUs: nowUs - this.#wishedAtUs,
      coalesced: this.#coalesced,
    };
    return this.#outstanding;
  }

  /** Has the VM layer let every try pass? */
  givenUp(nowUs: Micros): boolean {
    return (
      this.#outstanding !== undefined &&
      this.#tries >= this.#config.checkpointRequestTries &&
      nowUs >= this.#sentAtUs + this.#config.checkpointRequestTimeoutUs
    );
  }

  /** A checkpoint has begun: whatever was wanted is covered by it. */
  onBegin(): void {
    this.#wish = undefined;
    this.#outstanding = undefined;
    this.#underWay = true;
  }

  /** It has ended, well or not; the guest now runs for at least the minimum time. */
  onEnd(nowUs: Micros): void {
    this.#underWay = false;
    this.#wish = undefined;
    this.#outstanding = undefined;
    this.#notBeforeUs = nowUs + this.#config.minRunUs;
  }

  /** Forgets all wishes (peer lost, reset). */
  clear(): void {
    this.#wish = undefined;
    this.#outstanding = undefined;
    this.#underWay = false;
  }

  /** When `take` or `givenUp` has something next. */
  nextUs(): Micros {
    if (this.#underWay) return NEVER;
    if (this.#outstanding !== undefined) {
      return this.#sentAtUs + this.#config.checkpointRequestTimeoutUs;
    }
    return this.#wish === undefined ? NEVER : this.#notBeforeUs;
  }
}
