/**
 * The checkpoints of a QEMU COLO pair as the primary's monitor shows them: asks for them, and turns STOP and
 * RESUME into begin and commit.
 *
 *     running --request--> requested --STOP--> stopped --RESUME--> resumed --committed--> running
 *        |                     | no STOP in time: again       |        | begun too late: asks for another one,
 *        '-------STOP----------+----------------^             |        |   and commits with that
 *                                                             |        '-- no evidence of a checkpoint: aborted
 *                                                             '-- COLO_EXIT, connection lost, hung: aborted
 *
 * What QEMU 7.2 does (measured):
 * - Any `migrate-set-parameters {"x-checkpoint-delay": N}` starts a checkpoint: STOP after 0.8 to 5.1 ms. Sent right after a STOP it
 *   is swallowed although it is answered, so a request that arises during a checkpoint waits for its end, and each is
 *   confirmed by a STOP that follows it.
 * - The secondary stops before the primary (its CHECKPOINT_REPLY comes first), and the primary resumes only when the
 *   secondary has loaded the state (VMSTATE_LOADED): STOP and RESUME of the primary are begin and commit of the pair.
 * - STOP and RESUME carry no reason. An operator's `stop` looks the same and copies nothing, so a
 *   commit needs evidence: MIGRATION_PASS between the two. QEMU sends it with the migration capability `events` only.
 *
 * A begin that came too late - the node was busy, and the guest ran again before its port was drained - has marked output
 * from after the checkpoint as covered by it. Such a begin is not committed by this RESUME but by that of a further checkpoint.
 *
 * @module
 */
import { type Micros, US_PER_MS } from '../base/time.ts';
import type { VmEvents } from '../env/vm.ts';
import { QMP_RESUME_TIMEOUT_US, QMP_STOP_TIMEOUT_US } from '../limits.ts';
import type { QmpClient } from './qmp-client.ts';

/** QEMU's default of x-checkpoint-delay, milliseconds; used when it cannot be asked for. */
const CHECKPOINT_DELAY_MS = 20_000;

export type CheckpointPhase = 'running' | 'requested' | 'stopped' | 'resumed';

export interface QmpCheckpointsOptions {
  readonly client: QmpClient;
  readonly events: VmEvents;
  /** Each change of the phase, with its cause. */
  readonly onPhase: (phase: CheckpointPhase, cause: string) => void;
  /** The guest stays stopped; the checkpoint is aborted. */
  readonly onHung: (reason: string) => void;
  /** Does QEMU stamp its events with this machine's clock? */
  readonly sameClock: boolean;
  /** @default QMP_STOP_TIMEOUT_US */
  readonly stopTimeoutUs?: Micros | undefined;
  /** @default QMP_RESUME_TIMEOUT_US */
  readonly resumeTimeoutUs?: Micros | undefined;
}

/** One STOP to RESUME inside COLO. */
interface Checkpoint {
  hasEvidence: boolean;
  /** RESUME has come; its stamp by QEMU's wall clock, 0 when it has none. */
  resumed: boolean;
  resumedAtUs: Micros;
  /** RESUME's place among resumes and drains; 0 before it. */
  resumedOrder: number;
  beginError: string | undefined;
  /** It will not be committed any more. */
  isOver: boolean;
}

export class QmpCheckpoints {
  readonly #options: QmpCheckpointsOptions;
  readonly counters = {
    requestsSent: 0,
    requestsSwallowed: 0,
    committed: 0,
    aborted: 0,
    late: 0,
    unproven: 0,
  };
  /** The value of x-checkpoint-delay that QEMU has, milliseconds. */
  delayMs = CHECKPOINT_DELAY_MS;
  #phase: CheckpointPhase = 'running';
  #active = false;
  #wanted = false;
  #checkpoint: Checkpoint | undefined;
  /** The node is between begin and commit since a late begin: a checkpoint that ends after its drain commits it. */
  #carriedOver = false;
  /** The node has ended by itself what it began last; by an abort: it would take a commit for begin and commit at once. */
  #isUndone = false;
  #isAborted = false;
  /** When the guest's output was drained for the begin that the node is in: by this machine's wall clock, and in order. */
  #drainedAtUs: Micros = 0;
  #drainedOrder = 0;
  #order = 0;
  #timer: NodeJS.Timeout | undefined;
  readonly #tasks: (() => Promise<void>)[] = [];
  #isBusy = false;

  constructor(options: QmpCheckpointsOptions) {
    this.#options = options;
  }

  get phase(): CheckpointPhase {
    return this.#phase;
  }

  /** The pair is in COLO. `stopped`: by the checkpoint with which COLO starts, which is told like every other. */
  enter(stopped: boolean): void {
    if (this.#active) return;
    if (this.#checkpoint !== undefined)
      this.leave('the connection to QEMU was lost during a checkpoint');
    this.#active = true;
    this.#phase = 'running';
    if (stopped) this.onStop(true);
    else this.#send();
  }

  /** The pair is no longer in COLO. A checkpoint under way is aborted; returns whether there was one. */
  leave(reason: string): boolean {
    clearTimeout(this.#timer);
    this.#active = false;
    this.#wanted = false;
    const checkpoint = this.#checkpoint;
    this.#checkpoint = undefined;
    if (checkpoint === undefined && !this.#carriedOver) return false;
    this.#carriedOver = false;
    if (checkpoint !== undefined) checkpoint.isOver = true;
    this.#abort(reason);
    return true;
  }

  /**
   * The connection to QEMU is lost. Most likely its guest is dead, and then the secondary has to take over from
   * the middle of a checkpoint: an abort would take that away. So it waits for the time-out, or for QEMU to come back.
   */
  disconnect(): void {
    this.#active = false;
    if (this.#checkpoint === undefined) clearTimeout(this.#timer);
  }

  /** Asks for a checkpoint as soon as QEMU will listen. */
  request(): void {
    this.#wanted = true;
    if (this.#active && this.#phase === 'running') this.#send();
  }

  /** A checkpoint begins: `hasEvidence` when it is known to be one. */
  onStop(hasEvidence: boolean): void {
    // One that has ended may still wait for the node: this is the next.
    if (!this.#active || this.#checkpoint?.resumed === false) return;
    this.#wanted = false;
    const checkpoint: Checkpoint = {
      hasEvidence,
      resumed: false,
      resumedAtUs: 0,
      resumedOrder: 0,
      beginError: undefined,
      isOver: false,
    };
    this.#checkpoint = checkpoint;
    this.#setPhase('stopped', 'STOP');
    this.#arm(this.#options.resumeTimeoutUs ?? QMP_RESUME_TIMEOUT_US, () => this.#onHung());
    this.#enqueue(() => this.#begin(checkpoint));
  }

  /** QEMU has shown that state is being copied. */
  onEvidence(): void {
    if (this.#checkpoint !== undefined) this.#checkpoint.hasEvidence = true;
  }

  /** @param atUs by QEMU's wall clock, 0 when unknown */
  onResume(atUs: Micros): void {
    const checkpoint = this.#checkpoint;
    // After a reconnection it may be the end of another pause: `enter` aborts what was under way.
    if (!this.#active || checkpoint === undefined || checkpoint.resumed) return;
    checkpoint.resumed = true;
    checkpoint.resumedAtUs = atUs;
    checkpoint.resumedOrder = ++this.#order;
    clearTimeout(this.#timer);
    this.#setPhase('resumed', 'RESUME');
    this.#enqueue(() => this.#finish(checkpoint));
  }

  /** The node is no longer between begin and commit, for a reason of its own. */
  onUndone(isAborted: boolean): void {
    this.#isUndone = true;
    this.#isAborted ||= isAborted;
    this.#carriedOver = false;
  }

  /** Nothing is told any more. */
  close(): void {
    this.#active = false;
    this.#checkpoint = undefined;
    clearTimeout(this.#timer);
    this.#tasks.length = 0;
  }

  async #begin(checkpoint: Checkpoint): Promise<void> {
    if (checkpoint.isOver) return;
    this.#isUndone = false;
    this.#isAborted = false;
    // The node drains its guest's port inside of this call, before its first await.
    const answer = this.#options.events.checkpointBegin();
    if (!this.#carriedOver) {
      this.#drainedAtUs = Date.now() * US_PER_MS;
      this.#drainedOrder = ++this.#order;
    }
    const result = await answer;
    if (!result.ok) checkpoint.beginError = result.error;
  }

  async #finish(checkpoint: Checkpoint): Promise<void> {
    if (checkpoint.isOver) return;
    if (this.#checkpoint === checkpoint) this.#checkpoint = undefined;
    const { events } = this.#options;
    if (checkpoint.beginError !== undefined) {
      events.report(`The node refused to begin: ${checkpoint.beginError}`);
      this.#carriedOver = false;
    } else if (!checkpoint.hasEvidence) {
      this.counters.unproven++;
      this.counters.aborted++;
      this.#carriedOver = false;
      // Now, and not behind the begin of one that has come meanwhile.
      await events.checkpointAbort('the guest was stopped and resumed without a checkpoint');
    } else if (this.#isAborted) {
      this.#wanted = true;
      events.report('The node has aborted this checkpoint: asking for another one');
    } else if (this.#isLate(checkpoint)) {
      this.counters.late++;
      this.#carriedOver = !this.#isUndone;
      this.#wanted = true;
      events.report(
        'The guest ran again before its output was drained: asking for another checkpoint',
      );
    } else {
      this.#carriedOver = false;
      const result = await events.checkpointCommit();
      if (result.ok) this.counters.committed++;
      else events.report(`The node refused to commit: ${result.error}`);
    }
    // Another one may have come meanwhile, whose end this is then not.
    if (!this.#active || this.#phase !== 'resumed' || this.#checkpoint !== undefined) return;
    this.#setPhase('running', 'checkpoint done');
    this.#send();
  }

  /** Was what the node counts as sent before the pause drained only when the guest ran again? */
  #isLate({ resumedOrder, resumedAtUs }: Checkpoint): boolean {
    if (this.#drainedOrder > resumedOrder) return true;
    if (!this.#options.sameClock || resumedAtUs === 0) return false;
    // Date.now() is cut to milliseconds.
    return this.#drainedAtUs + US_PER_MS > resumedAtUs;
  }

  #abort(reason: string): void {
    this.counters.aborted++;
    this.#enqueue(async () => {
      // One that was over before may have been found late meanwhile.
      this.#carriedOver = false;
      await this.#options.events.checkpointAbort(reason);
    });
  }

  #onHung(): void {
    const checkpoint = this.#checkpoint;
    if (checkpoint === undefined) return;
    const limitMs = (this.#options.resumeTimeoutUs ?? QMP_RESUME_TIMEOUT_US) / US_PER_MS;
    const reason = `QEMU did not resume within ${limitMs} ms`;
    checkpoint.isOver = true;
    this.#checkpoint = undefined;
    this.#carriedOver = false;
    if (this.#active) this.#setPhase('running', reason);
    this.#abort(reason);
    this.#options.onHung(reason);
  }

  /** Sends the request that waits, if there is one. */
  #send(): void {
    if (!this.#wanted || !this.#active || this.#phase !== 'running') return;
    const { client, events } = this.#options;
    this.counters.requestsSent++;
    this.#setPhase('requested', 'checkpoint wanted');
    this.#arm(this.#options.stopTimeoutUs ?? QMP_STOP_TIMEOUT_US, () => {
      this.counters.requestsSwallowed++;
      this.#setPhase('running', 'no STOP followed the request');
      this.#send();
    });
    void client
      .execute('migrate-set-parameters', { 'x-checkpoint-delay': this.delayMs })
      .then((result) => {
        // Without an answer the STOP may still come; a refusal is final, and the engine asks again.
        if (result.ok || this.#phase !== 'requested') return;
        events.report(`QEMU did not take the checkpoint request: ${result.text}`);
        if (result.failure !== 'refused') return;
        clearTimeout(this.#timer);
        this.#wanted = false;
        this.#setPhase('running', 'request refused');
      });
  }

  #arm(limitUs: Micros, onTimeout: () => void): void {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(onTimeout, limitUs / US_PER_MS);
  }

  #setPhase(phase: CheckpointPhase, cause: string): void {
    this.#phase = phase;
    this.#options.onPhase(phase, cause);
  }

  /** One after the other; the first begins at once, inside of this call. */
  #enqueue(task: () => Promise<void>): void {
    this.#tasks.push(task);
    if (!this.#isBusy) void this.#work();
  }

  async #work(): Promise<void> {
    this.#isBusy = true;
    for (let task = this.#tasks.shift(); task !== undefined; task = this.#tasks.shift())
      await task();
    this.#isBusy = false;
  }
}
