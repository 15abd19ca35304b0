/**
 * Readiness of a port's descriptor, as `Port` promises it: one call when frames wait, and silence until
 * somebody has read.
 *
 * @module
 */
import { FdWatcher, type Readiness } from '../os/fd-watcher.ts';

/** What a poller reports; never synchronously from one of its own methods. */
export interface PollerEvents {
  onReadable(): void;
  onWritable(): void;
  /** The descriptor has an error to be asked for. Watching goes on afterwards unless the poller was closed. */
  onFailed(): void;
}

/** An error that nobody can take would otherwise come back in every turn of the event loop. */
const FAILED_PAUSE_MS = 20;

/** Watches one descriptor on behalf of a port. */
export class Poller {
  readonly #watcher: FdWatcher;
  readonly #events: PollerEvents;
  #reading = false;
  #writing = false;
  /** `onReadable` was called, and nobody has read since. */
  #unanswered = false;
  #pauseTimer: NodeJS.Timeout | undefined;
  #closed = false;

  constructor(fd: number, events: PollerEvents) {
    this.#events = events;
    this.#watcher = new FdWatcher(fd, (readiness) => this.#onReady(readiness));
  }

  /** Somebody has read; `drained` when nothing was left. */
  answered(drained: boolean): void {
    this.#unanswered = false;
    if (drained) this.watchReadable();
  }

  /** Starts to report readability. */
  watchReadable(): void {
    if (!this.#reading) this.#watch(true, this.#writing);
  }

  /** Starts or stops to report writability. */
  watchWritable(wanted: boolean): void {
    if (this.#writing !== wanted) this.#watch(this.#reading, wanted);
  }

  /** Nothing is reported afterwards, and the process is not kept alive; the descriptor may be closed at once. */
  close(): void {
    this.#closed = true;
    clearTimeout(this.#pauseTimer);
    this.#watcher.close();
  }

  #watch(reading: boolean, writing: boolean): void {
    if (this.#closed) return;
    this.#reading = reading;
    this.#writing = writing;
    if (this.#pauseTimer === undefined) this.#watcher.watch(reading, writing);
  }

  #onReady(readiness: Readiness): void {
    if (readiness.failed) {
      this.#pauseTimer = setTimeout(() => {
        this.#pauseTimer = undefined;
        this.#watcher.watch(this.#reading, this.#writing);
      }, FAILED_PAUSE_MS);
      this.#events.onFailed();
    }
    if (readiness.writable && !this.#closed) this.#events.onWritable();
    if (!readiness.readable || this.#closed) return;
    if (this.#unanswered) {
      this.#watch(false, this.#writing);
    } else {
      this.#unanswered = true;
      this.#events.onReadable();
    }
  }
}
