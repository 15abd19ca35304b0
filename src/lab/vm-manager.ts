/**
 * The layer that runs the lab's virtual machines: it takes a checkpoint whenever the primary asks for one.
 *
 * Requests come as JSON lines through a named pipe, written by the primary's `--vm exec:` command; begin and
 * commit go to the primary's control socket. This is the whole contract between colo-proxy and a VM layer.
 *
 * @module
 */
import { spawnSync } from 'node:child_process';
import { constants, openSync } from 'node:fs';
import { Socket } from 'node:net';
import { ColoError } from '../base/error.ts';
import { LineSplitter } from '../control/protocol.ts';
import type { CheckpointRequest } from '../env/messages.ts';
import { monotonicMs, sleep } from './clock.ts';
import type { Daemon } from './daemons.ts';
import type { GuestProcess } from './guest-process.ts';

/** One checkpoint as it was made. Milliseconds of monotonicMs. */
export interface CheckpointRecord {
  readonly request: CheckpointRequest;
  readonly requestedMs: number;
  /** The guests stood still from here ... */
  readonly frozenMs: number;
  readonly commitAskedMs: number;
  readonly committedMs: number;
  /** ... to here. */
  readonly resumedMs: number;
  readonly imageBytes: number;
  readonly connections: number;
}

const GUEST_ANSWER_MS = 10_000;

export interface VmManagerParts {
  readonly pipe: string;
  readonly primary: () => Daemon;
  readonly secondary: () => Daemon;
  readonly pvm: () => GuestProcess;
  readonly svm: () => GuestProcess;
}

export class VmManager {
  readonly records: CheckpointRecord[] = [];
  /** Checkpoints that could not be made. */
  readonly failures: string[] = [];
  /** All requests, also those that came while a checkpoint was under way. */
  readonly requests: CheckpointRequest[] = [];
  readonly #parts: VmManagerParts;
  readonly #socket: Socket;
  #waiting: CheckpointRequest | undefined;
  #busy = false;
  /** The SVM is known to be dead: nothing can be copied to it. */
  #svmLost = false;
  /** The primary node is known to be dead. */
  #pvmLost = false;
  #closed = false;

  /** Makes the pipe and listens. @throws ColoError */
  constructor(parts: VmManagerParts) {
    this.#parts = parts;
    const made = spawnSync('mkfifo', ['-m', '600', parts.pipe]);
    if (made.status !== 0) {
      throw new ColoError('COLO_ERR_LAB_SETUP', `Cannot make the pipe ${parts.pipe}`);
    }
    // Opened for both directions, or it would end whenever its last writer closes it.
    const fd = openSync(parts.pipe, constants.O_RDWR | constants.O_NONBLOCK);
    this.#socket = new Socket({ fd, readable: true, writable: false });
    const splitter = new LineSplitter();
    this.#socket.on('data', (chunk: Buffer) => {
      const lines = splitter.push(chunk);
      if (typeof lines === 'symbol') return;
      for (const line of lines) this.#onRequest(JSON.parse(line) as CheckpointRequest);
    });
  }

  #onRequest(request: CheckpointRequest): void {
    this.requests.push(request);
    if (this.#closed || this.#isLost) return;
    this.#waiting = request;
    if (!this.#busy) void this.#work();
  }

  async #work(): Promise<void> {
    this.#busy = true;
    while (this.#waiting !== undefined && !this.#closed) {
      const request = this.#waiting;
      this.#waiting = undefined;
      try {
        this.records.push(await this.#checkpoint(request));
      } catch (error) {
        if (!this.#isLost) this.failures.push((error as Error).message);
      }
    }
    this.#busy = false;
  }

  /** The scenario has killed the SVM: no checkpoints, and what fails now is no fault, until it is back. */
  svmLost(lost: boolean): void {
    this.#svmLost = lost;
    if (lost) this.#waiting = undefined;
  }

  /** The scenario has killed the primary node: as above; and the SVM is to be made ready for a failover. */
  async pvmLost(): Promise<void> {
    this.#pvmLost = true;
    this.#waiting = undefined;
    while (this.#busy) await sleep(1);
  }

  get #isLost(): boolean {
    return this.#svmLost || this.#pvmLost;
  }

  async #checkpoint(request: CheckpointRequest): Promise<CheckpointRecord> {
    const requestedMs = monotonicMs();
    const primary = this.#parts.primary();
    const pvm = this.#parts.pvm();
    const svm = this.#parts.svm();
    // A VM that is loaded runs, whatever had become of it before.
    svm.continue();
    let begun = false;
    let loaded = false;
    try {
      await Promise.all([
        pvm.ask({ type: 'freeze' }, GUEST_ANSWER_MS),
        svm.ask({ type: 'freeze' }, GUEST_ANSWER_MS),
      ]);
      const frozenMs = monotonicMs();
      await primary.control({ command: 'checkpoint', step: 'begin' });
      begun = true;
      const { image, connections } = await pvm.ask({ type: 'take' }, GUEST_ANSWER_MS);
      await svm.ask({ type: 'load', image: image! }, GUEST_ANSWER_MS);
      loaded = true;
      const commitAskedMs = monotonicMs();
      await primary.control({ command: 'checkpoint', step: 'commit' });
      begun = false;
      const committedMs = monotonicMs();
      await Promise.all([this.#resume(pvm), this.#resume(svm)]);
      const resumedMs = monotonicMs();
      const imageBytes = image!.length;
      return {
        request,
        requestedMs,
        frozenMs,
        commitAskedMs,
        committedMs,
        resumedMs,
        imageBytes,
        connections,
      };
    } catch (error) {
      if (this.#pvmLost) await this.#settleSecondary(loaded);
      else if (begun) await this.#abort(primary, (error as Error).message);
      await Promise.allSettled([this.#resume(pvm), this.#resume(svm)]);
      throw error;
    }
  }

  /**
   * The primary died within a checkpoint. Only this layer knows which state the SVM has, and tells the secondary: the
   * PVM's, then the checkpoint is as good as committed; or still its own.
   */
  async #settleSecondary(loaded: boolean): Promise<void> {
    const step = loaded
      ? ({ step: 'commit' } as const)
      : ({ step: 'abort', reason: 'the primary is dead' } as const);
    try {
      await this.#parts.secondary().control({ command: 'checkpoint', ...step });
    } catch {
      // Refused: the secondary had not begun, and goes on as it was.
    }
  }

  async #resume(guest: GuestProcess): Promise<void> {
    await guest.ask({ type: 'resume' }, GUEST_ANSWER_MS);
  }

  async #abort(primary: Daemon, reason: string): Promise<void> {
    try {
      await primary.control({ command: 'checkpoint', step: 'abort', reason: reason.slice(0, 200) });
    } catch (error) {
      if (!this.#isLost) this.failures.push((error as Error).message);
    }
  }

  /** Waits until `count` checkpoints were made in all. @throws ColoError when they are not, in time */
  async made(count: number, timeoutMs: number): Promise<CheckpointRecord> {
    const deadlineMs = monotonicMs() + timeoutMs;
    while (this.records.length < count) {
      if (monotonicMs() > deadlineMs) {
        const text = `${this.records.length} of ${count} checkpoints within ${timeoutMs} ms`;
        const failed = this.failures.length === 0 ? '' : `; failed: ${this.failures.join('; ')}`;
        throw new ColoError('COLO_ERR_LAB_CHECKPOINT', text + failed);
      }
      await sleep(2);
    }
    return this.records[count - 1]!;
  }

  close(): void {
    this.#closed = true;
    this.#socket.destroy();
  }
}
