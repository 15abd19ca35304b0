/**
 * Checkpoint commands that wait for the other node: `begin` is done when the secondary has drained and answered
 * `checkpoint-began`, `commit` when it has answered `checkpoint-committed`. The engine tells of both by events.
 *
 * @module
 */
import type { Micros } from '../base/time.ts';
import { US_PER_MS } from '../base/time.ts';
import type { CommandResult, Engine } from '../env/engine.ts';
import type { ProxyEvent } from '../env/messages.ts';

interface Waiter {
  readonly resolve: (result: CommandResult) => void;
  readonly timer: NodeJS.Timeout;
}

export class AnswerWaiters {
  readonly #engine: Engine;
  readonly #timeoutUs: Micros;
  readonly #begins = new Set<Waiter>();
  readonly #commits = new Set<Waiter>();
  /** Has the peer answered the begin of the checkpoint under way? */
  #isBegun = false;
  /** Did a commit complete since the last `settle`? */
  #isCommitted = false;
  /** What became of the checkpoint otherwise. */
  #lastText = 'the checkpoint ended';

  constructor(engine: Engine, timeoutUs: Micros) {
    this.#engine = engine;
    this.#timeoutUs = timeoutUs;
  }

  /** Given what the engine said to a begin: when it agreed, waits for the peer's answer. */
  begin(result: CommandResult): CommandResult | Promise<CommandResult> {
    return result.ok && this.#isAwaited() && !this.#isBegun ? this.#wait(this.#begins) : result;
  }

  /** As `begin`. */
  commit(result: CommandResult): CommandResult | Promise<CommandResult> {
    return result.ok && this.#isAwaited() ? this.#wait(this.#commits) : result;
  }

  /** To be called with every event of the engine, also while it is inside a call. */
  onEvent(event: ProxyEvent): void {
    switch (event.kind) {
      case 'checkpoint-begun':
        this.#isBegun = true;
        break;
      case 'checkpoint-committed':
        this.#isBegun = false;
        this.#isCommitted = true;
        break;
      case 'checkpoint-aborted':
      case 'peer-down':
      case 'failover':
      case 'reset':
        this.#lastText = event.text;
        break;
      default:
    }
  }

  /** After each batch: answers whoever can be answered. */
  settle(): void {
    const isUnderWay = this.#engine.state === 'checkpointing';
    if (this.#isBegun) finish(this.#begins, { ok: true });
    if (this.#isCommitted) finish(this.#commits, { ok: true });
    this.#isCommitted = false;
    if (isUnderWay) return;
    this.#isBegun = false;
    this.refuseAll(this.#lastText);
  }

  /** Nobody will answer any more. */
  refuseAll(reason: string): void {
    if (this.#begins.size === 0 && this.#commits.size === 0) return;
    const result: CommandResult = { ok: false, error: `Checkpoint not completed: ${reason}` };
    finish(this.#begins, result);
    finish(this.#commits, result);
  }

  /** The secondary has nobody to wait for; and the answer may have come inside the call. */
  #isAwaited(): boolean {
    return this.#engine.role === 'primary' && this.#engine.state === 'checkpointing';
  }

  #wait(waiters: Set<Waiter>): Promise<CommandResult> {
    const timeoutMs = Math.ceil(this.#timeoutUs / US_PER_MS);
    return new Promise((resolve) => {
      const waiter: Waiter = {
        resolve,
        timer: setTimeout(() => {
          waiters.delete(waiter);
          resolve({ ok: false, error: `The peer has not answered within ${timeoutMs} ms` });
        }, timeoutMs),
      };
      waiters.add(waiter);
    });
  }
}

function finish(waiters: Set<Waiter>, result: CommandResult): void {
  for (const { resolve, timer } of waiters) {
    clearTimeout(timer);
    resolve(result);
  }
  waiters.clear();
}
