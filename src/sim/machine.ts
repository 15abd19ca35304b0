/**
 * A virtual machine: a guest host with a clock of its own that stops while the machine is paused, and
 * whose state a checkpoint replaces.
 *
 * @module
 */
import type { Prng } from '../base/prng.ts';
import { type Micros, NEVER } from '../base/time.ts';
import { cloneDeep } from './clone.ts';
import type { EventQueue, ScheduledEvent } from './event-queue.ts';
import { Host, type HostState } from './host/host.ts';
import { GuestService, type ServiceMood } from './host/service.ts';
import type { SimFrame } from './net/packet.ts';

/** Frames that wait in the card of a paused machine; more are lost. */
const CARD_FRAMES_MAX = 256;

/** What a checkpoint carries over. */
export interface MachineImage {
  readonly state: HostState;
  readonly localUs: Micros;
}

export class Machine {
  readonly name: string;
  readonly host: Host;
  readonly mood: ServiceMood;
  readonly #queue: EventQueue;
  readonly #waiting: SimFrame[] = [];
  /** Its clock is the world's plus this. */
  #offsetUs: Micros;
  #pausedAtUs: Micros = NEVER;
  #hungUntilUs: Micros = 0;
  #timer: ScheduledEvent | undefined;
  isAlive = true;

  constructor(
    name: string,
    state: HostState,
    mood: ServiceMood,
    queue: EventQueue,
    entropy: Prng,
    isnAnchor: number,
    emit: (frame: SimFrame) => void,
  ) {
    this.name = name;
    this.mood = mood;
    this.#queue = queue;
    this.#offsetUs = entropy.nextBelow(50_000_000);
    const send = (frame: SimFrame): void => {
      if (this.isAlive) emit(frame);
    };
    this.host = new Host(name, state, new GuestService(mood), entropy, send, isnAnchor);
  }

  get isPaused(): boolean {
    return this.#pausedAtUs !== NEVER;
  }

  /** The machine's own clock. */
  get localUs(): Micros {
    const nowUs = this.isPaused ? this.#pausedAtUs : this.#queue.nowUs;
    return nowUs + this.#offsetUs;
  }

  /** A frame reaches its card. */
  deliver(frame: SimFrame): void {
    if (!this.isAlive) return;
    if (this.#isStopped()) {
      if (this.#waiting.length < CARD_FRAMES_MAX) this.#waiting.push(frame);
      return;
    }
    this.host.input(frame, this.localUs);
    this.reschedule();
  }

  #isStopped(): boolean {
    return this.isPaused || this.#queue.nowUs < this.#hungUntilUs;
  }

  pause(): void {
    if (!this.isPaused) this.#pausedAtUs = this.#queue.nowUs;
    this.#cancelTimer();
  }

  resume(): void {
    if (!this.isPaused) return;
    this.#offsetUs -= this.#queue.nowUs - this.#pausedAtUs;
    this.#pausedAtUs = NEVER;
    this.#catchUp();
  }

  /** The machine takes nothing and does nothing for a while, though its clock goes on. */
  hang(durationUs: Micros): void {
    this.#hungUntilUs = this.#queue.nowUs + durationUs;
    this.#cancelTimer();
    this.#queue.at(this.#hungUntilUs, 'guest-wakes', () => {
      if (this.isAlive && !this.#isStopped()) this.#catchUp();
    });
  }

  /** Its services stop answering for a while; its TCP goes on. */
  stick(durationUs: Micros): void {
    this.mood.stuckUntilUs = this.localUs + durationUs;
  }

  kill(): void {
    this.isAlive = false;
    this.#waiting.length = 0;
    this.#cancelTimer();
  }

  /** A fresh boot, with nothing remembered. */
  boot(state: HostState): void {
    this.isAlive = true;
    this.#waiting.length = 0;
    this.#pausedAtUs = NEVER;
    this.#hungUntilUs = 0;
    this.mood.stuckUntilUs = 0;
    this.host.state = state;
    this.reschedule();
  }

  /** A copy of everything the guest remembers. The machine must be paused. */
  save(): MachineImage {
    return { state: cloneDeep(this.host.state), localUs: this.localUs };
  }

  /** Replaces everything the guest remembers; its clock goes on where the image's stopped. */
  load(image: MachineImage): void {
    this.host.state = cloneDeep(image.state);
    const nowUs = this.isPaused ? this.#pausedAtUs : this.#queue.nowUs;
    this.#offsetUs = image.localUs - nowUs;
    this.mood.stuckUntilUs = Math.min(this.mood.stuckUntilUs, image.localUs);
    this.reschedule();
  }

  #catchUp(): void {
    for (const frame of this.#waiting.splice(0)) this.host.input(frame, this.localUs);
    this.reschedule();
  }

  /** Sets the timer to the guest's next deadline. */
  reschedule(): void {
    if (!this.isAlive || this.#isStopped()) return;
    const dueUs = this.host.deadlineUs();
    const atUs = dueUs === NEVER ? NEVER : Math.max(dueUs - this.#offsetUs, this.#queue.nowUs);
    if (this.#timer !== undefined && !this.#timer.cancelled && this.#timer.atUs === atUs) return;
    this.#cancelTimer();
    if (atUs === NEVER) return;
    this.#timer = this.#queue.at(atUs, `${this.name}-timer`, () => {
      this.#timer = undefined;
      this.host.timers(this.localUs);
      this.reschedule();
    });
  }

  #cancelTimer(): void {
    if (this.#timer !== undefined) this.#timer.cancelled = true;
    this.#timer = undefined;
  }
}
