/**
 * Does QEMU still answer? Inside of COLO it is asked at a steady beat, because nothing else tells of a QEMU that hangs: its sockets stay
 * open, and its guest is silent, as a guest may be.
 *
 * While the guest is stopped for a checkpoint nothing is asked: QEMU may be busy with it, and that has a bound of
 * its own. A question that is open across a STOP or RESUME says nothing.
 *
 * @module
 */
import { type Micros, US_PER_MS } from '../base/time.ts';
import { QMP_COMMAND_TIMEOUT_US, QMP_LIVENESS_INTERVAL_US } from '../limits.ts';
import type { QmpClient } from './qmp-client.ts';

export interface QmpLivenessOptions {
  readonly client: QmpClient;
  /** Something that changes with each STOP and RESUME; undefined while nothing is to be asked. */
  readonly stretch: () => number | undefined;
  readonly onHung: (reason: string) => void;
  /** It answers again. */
  readonly onBack: () => void;
  /** Until a question counts as not answered. @default QMP_COMMAND_TIMEOUT_US */
  readonly timeoutUs?: Micros | undefined;
  /** @default QMP_LIVENESS_INTERVAL_US */
  readonly intervalUs?: Micros | undefined;
}

export class QmpLiveness {
  readonly #options: QmpLivenessOptions;
  readonly #timer: NodeJS.Timeout;
  #isAsking = false;
  #isHung = false;

  /** Asks until `close`. */
  constructor(options: QmpLivenessOptions) {
    this.#options = options;
    const intervalUs = options.intervalUs ?? QMP_LIVENESS_INTERVAL_US;
    this.#timer = setInterval(() => void this.#ask(), intervalUs / US_PER_MS);
  }

  /** The last question was not answered. */
  get isHung(): boolean {
    return this.#isHung;
  }

  /** The connection is lost: what was found out is void. */
  disconnect(): void {
    this.#isHung = false;
  }

  close(): void {
    clearInterval(this.#timer);
  }

  async #ask(): Promise<void> {
    const { client, stretch, onHung, onBack } = this.#options;
    const before = stretch();
    if (this.#isAsking || before === undefined) return;
    const timeoutUs = this.#options.timeoutUs ?? QMP_COMMAND_TIMEOUT_US;
    this.#isAsking = true;
    const result = await client.execute('query-status', undefined, timeoutUs);
    this.#isAsking = false;
    if (result.ok) {
      if (!this.#isHung) return;
      this.#isHung = false;
      onBack();
    } else if (result.failure === 'timeout' && stretch() === before && !this.#isHung) {
      this.#isHung = true;
      onHung(result.text);
    }
  }
}
