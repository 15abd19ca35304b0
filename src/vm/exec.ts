/**
 * The driver `exec:COMMAND`: a shell command for each checkpoint request.
 *
 * The command finds the request as JSON in COLO_REQUEST, and the node's control socket in COLO_CONTROL, so that
 * `colo-proxy ctl checkpoint begin`, the copying of the guest's state, and `colo-proxy ctl checkpoint commit` can all be
 * its own steps. Its exit code says nothing about the checkpoint; only begin and commit do.
 *
 * One command runs at a time. A request that comes meanwhile waits (only the newest does), unless a checkpoint
 * begins first, which covers it.
 *
 * @module
 */
import { type ChildProcess, spawn } from 'node:child_process';
import type { Socket } from 'node:net';
import type { Micros } from '../base/time.ts';
import { US_PER_MS } from '../base/time.ts';
import type { Log } from '../env/log.ts';
import type { CheckpointRequest, ProxyEvent } from '../env/messages.ts';
import type { VmDriver, VmStatus } from '../env/vm.ts';
import { VM_EXEC_OUTPUT_BYTES_MAX, VM_EXEC_TIMEOUT_US } from '../limits.ts';

/** Between SIGTERM and SIGKILL for a command that has to end. */
const KILL_GRACE_MS = 1_000;

export interface ExecVmOptions {
  /** Given to `/bin/sh -c`. */
  readonly command: string;
  readonly log: Log;
  /** The node's control socket for COLO_CONTROL; undefined when it has none. */
  readonly controlPath?: string | undefined;
  /** @default VM_EXEC_TIMEOUT_US */
  readonly timeoutUs?: Micros;
}

interface Running {
  readonly child: ChildProcess;
  readonly requestId: number;
  readonly ended: Promise<void>;
}

export class ExecVmDriver implements VmDriver {
  readonly name: string;
  readonly #options: ExecVmOptions;
  readonly #counters = { started: 0, succeeded: 0, failed: 0, timedOut: 0, superseded: 0 };
  #running: Running | undefined;
  #waiting: CheckpointRequest | undefined;
  #closing = false;

  constructor(options: ExecVmOptions) {
    this.#options = options;
    this.name = `exec:${options.command}`;
  }

  start(): Promise<void> {
    return Promise.resolve();
  }

  requestCheckpoint(request: CheckpointRequest): void {
    if (this.#closing) return;
    if (this.#running === undefined) {
      this.#run(request);
      return;
    }
    if (this.#waiting !== undefined) this.#counters.superseded++;
    this.#waiting = request;
  }

  onEvent(event: ProxyEvent): void {
    if (event.kind !== 'checkpoint-begun' || this.#waiting === undefined) return;
    this.#waiting = undefined;
    this.#counters.superseded++;
  }

  status(): VmStatus {
    return { driver: this.name, running: this.#running !== undefined, ...this.#counters };
  }

  async close(): Promise<void> {
    this.#closing = true;
    this.#waiting = undefined;
    const running = this.#running;
    if (running === undefined) return;
    endGroup(running.child);
    await running.ended;
  }

  #run(request: CheckpointRequest): void {
    this.#counters.started++;
    const child = this.#spawn(request);
    if (child === undefined) return;
    const output = collectOutput(child);
    const timer = setTimeout(
      () => {
        this.#counters.timedOut++;
        this.#options.log.error(
          { requestId: request.id },
          'Checkpoint command timed out: ending it',
        );
        endGroup(child);
      },
      Math.ceil((this.#options.timeoutUs ?? VM_EXEC_TIMEOUT_US) / US_PER_MS),
    );
    const ended = new Promise<void>((resolve) => {
      let settled = false;
      const end = (fields: Record<string, unknown>, good: boolean): void => {
        if (settled) return; // 'error' may be followed by 'close'
        settled = true;
        clearTimeout(timer);
        this.#onEnded({ requestId: request.id, ...fields, output: output() }, good);
        resolve();
      };
      child.once('error', (error) => end({ error: error.message }, false));
      child.once('exit', (code, signal) => {
        // Output may still be on its way; a grandchild that keeps the pipe open must not delay the next request.
        setImmediate(() => end({ exitCode: code, signal }, code === 0));
      });
    });
    this.#running = { child, requestId: request.id, ended };
  }

  #spawn(request: CheckpointRequest): ChildProcess | undefined {
    try {
      // A group of its own, so that everything the command started can be ended with it.
      return spawn('/bin/sh', ['-c', this.#options.command], {
        detached: true,
        stdio: ['ignore', 'pipe', 'pipe'],
        env: this.#environment(request),
      });
    } catch (error) {
      // Some failures are thrown (E2BIG, ENOMEM), others come as an event (EAGAIN, EMFILE).
      this.#onEnded({ requestId: request.id, error: (error as Error).message }, false);
      return undefined;
    }
  }

  #environment(request: CheckpointRequest): NodeJS.ProcessEnv {
    const env: NodeJS.ProcessEnv = { ...process.env, COLO_REQUEST: JSON.stringify(request) };
    if (this.#options.controlPath !== undefined) env['COLO_CONTROL'] = this.#options.controlPath;
    return env;
  }

  #onEnded(fields: Record<string, unknown>, good: boolean): void {
    this.#running = undefined;
    if (good) {
      this.#counters.succeeded++;
      this.#options.log.debug(fields, 'Checkpoint command ended');
    } else {
      this.#counters.failed++;
      const text = 'Checkpoint command failed; the request is repeated while it is needed';
      if (this.#closing) this.#options.log.debug(fields, 'Checkpoint command ended with the node');
      else this.#options.log.error(fields, text);
    }
    const next = this.#waiting;
    this.#waiting = undefined;
    if (next !== undefined) this.requestCheckpoint(next);
  }
}

/** SIGTERM, then SIGKILL, to the command and everything in its group. */
function endGroup(child: ChildProcess): void {
  signalGroup(child, 'SIGTERM');
  const timer = setTimeout(() => signalGroup(child, 'SIGKILL'), KILL_GRACE_MS);
  child.once('exit', () => {
    clearTimeout(timer);
    // What the command left behind in its group has had its SIGTERM.
    signalGroup(child, 'SIGKILL');
  });
}

function signalGroup(child: ChildProcess, signal: NodeJS.Signals): void {
  if (child.pid === undefined) return;
  try {
    process.kill(-child.pid, signal);
  } catch {
    // ESRCH: the group is gone, which is what was wanted.
  }
}

/** Keeps the first VM_EXEC_OUTPUT_BYTES_MAX bytes of both outputs, for the log. */
function collectOutput(child: ChildProcess): () => string {
  let text = '';
  const add = (chunk: Buffer): void => {
    const room = VM_EXEC_OUTPUT_BYTES_MAX - text.length;
    if (room > 0) text += chunk.toString('utf8').slice(0, room);
  };
  for (const stream of [child.stdout, child.stderr] as (Socket | null)[]) {
    stream?.on('data', add);
    // What the command leaves running has them open: this process need not wait for its end.
    stream?.unref();
  }
  return () => text.trimEnd();
}
