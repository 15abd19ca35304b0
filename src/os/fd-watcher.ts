/**
 * Readiness of a file descriptor, inside Node's own event loop (libuv's uv_poll).
 *
 * libuv calls back from its poll phase, outside of any JavaScript frame: exceptions thrown there are
 * lost, and promises and `process.nextTick` would wait for an unrelated event. So the callback only
 * queues an immediate; the check phase follows the poll phase in the same turn of the loop, and an
 * immediate is an ordinary entry into JavaScript.
 *
 * The alternative, poll(2) called in a thread of koffi's, would cost two thread switches each time, and a way to wake it for
 * closing.
 *
 * Level-triggered: while the descriptor stays ready the callback comes once per turn.
 *
 * @module
 */
import koffi, { type node } from 'koffi';

/** What `watch` reports. */
export interface Readiness {
  readable: boolean;
  writable: boolean;
  /** POLLERR: ask the descriptor for its error. The watcher is stopped then; `watch` starts it again. */
  failed: boolean;
}

/** Watches one descriptor; keeps the process alive while it watches. Owns no descriptor: close that afterwards. */
export class FdWatcher {
  readonly #fd: number;
  readonly #onReady: (readiness: Readiness) => void;
  readonly #readiness: Readiness = { readable: false, writable: false, failed: false };
  readonly #onPoll = (status: number, events: { readable: boolean; writable: boolean }) => {
    this.#readiness.failed ||= status < 0;
    this.#readiness.readable ||= events.readable;
    this.#readiness.writable ||= events.writable;
    if (this.#queued) return;
    this.#queued = true;
    setImmediate(this.#deliver);
  };
  readonly #deliver = () => {
    this.#queued = false;
    const readiness = this.#readiness;
    if (this.#handle !== undefined) this.#onReady(readiness);
    readiness.readable = false;
    readiness.writable = false;
    readiness.failed = false;
  };
  #handle: node.PollHandle | undefined;
  #queued = false;

  /** @param onReady its argument is reused: valid during the call only */
  constructor(fd: number, onReady: (readiness: Readiness) => void) {
    this.#fd = fd;
    this.#onReady = onReady;
  }

  /** Starts, changes or (with neither) pauses watching. */
  watch(readable: boolean, writable: boolean): void {
    if (!readable && !writable) {
      this.#handle?.stop();
      return;
    }
    const options = { readable, writable };
    // koffi passes (status, events); its types know of the events only.
    const callback = this.#onPoll as unknown as (events: node.PollEvents) => void;
    if (this.#handle === undefined) {
      this.#handle = koffi.node.poll(this.#fd, options, callback);
    } else {
      this.#handle.start(options, callback);
    }
  }

  /** Ends watching for good; no callback comes afterwards. The descriptor may be closed at once. */
  close(): void {
    this.#handle?.close();
    this.#handle = undefined;
  }
}
