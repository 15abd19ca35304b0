/**
 * The two nodes: `colo-proxy primary` and `colo-proxy secondary`, started as a user would start them, and talked
 * to through their control sockets.
 *
 * @module
 */
import type { ChildProcess } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { closeSync, openSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { ColoError } from '../base/error.ts';
import { type ControlCall, callControl, followControl } from '../control/client.ts';
import type { EngineStatus, FlowStatus } from '../env/engine.ts';
import type { NodeState, Role } from '../env/messages.ts';
import type { VmStatus } from '../env/vm.ts';
import { monotonicMs, sleep } from './clock.ts';
import type { Namespace } from './netns.ts';
import { COLO_PROXY_SCRIPT } from './program.ts';
import { PEER_ADDRESSES } from './topology.ts';

/** Deadline of the peer link in the lab: how soon a silent node counts as lost. */
export const PEER_TIMEOUT_MS = 500;
const PEER_PORT = 9_000;
const START_MS_MAX = 15_000;
const POLL_MS = 10;
const LOG_TAIL_LINES = 15;
const FLOWS_MAX = 1_000;

/** The part of `ctl status` that the lab reads. */
export interface DaemonStatus extends EngineStatus {
  readonly peer: { readonly connected: boolean };
  /** What the VM driver says of itself. */
  readonly vm: VmStatus;
}

/** An event of `ctl events`. */
export interface DaemonEvent {
  readonly kind: string;
  readonly text: string;
  readonly fields?: Readonly<Record<string, string | number | boolean>>;
  /** By the node's clock, which begins with its process. */
  readonly atUs: number;
  /** When the lab heard of it; milliseconds of monotonicMs. */
  readonly heardMs: number;
}

export interface DaemonOptions {
  readonly role: Role;
  readonly namespace: Namespace;
  /** For sockets, keys and logs. */
  readonly directory: string;
  /** Named pipe to which checkpoint requests are written; primary only. */
  readonly requestPipe?: string;
  readonly compareTimeoutMs?: number | undefined;
  /** A peer link without encryption; default: a pre-shared key. */
  readonly insecureLink?: boolean;
  /** `--guest`. Default: packet:tap0 */
  readonly guestPort?: string;
  /** `--net`; null: none is given. Default: packet:cp0 */
  readonly netPort?: string | null;
  /** `--vm`. Default: one that writes requests to `requestPipe`. */
  readonly vm?: string;
}

export class Daemon {
  readonly role: Role;
  readonly controlPath: string;
  readonly logPath: string;
  readonly events: DaemonEvent[] = [];
  readonly #child: ChildProcess;
  readonly #following = new AbortController();
  readonly #listeners = new Set<() => void>();
  #ended: string | undefined;

  constructor(options: DaemonOptions) {
    const { role, namespace, directory } = options;
    this.role = role;
    this.controlPath = join(directory, `${role}.sock`);
    this.logPath = join(directory, `${role}.log`);
    rmSync(this.controlPath, { force: true });
    const log = openSync(this.logPath, 'a');
    const args = [COLO_PROXY_SCRIPT, ...daemonArguments(options, this.controlPath)];
    this.#child = namespace.spawn(process.execPath, args, {
      stdio: ['ignore', log, log],
      detached: true,
    });
    closeSync(log);
    this.#child.once('exit', (code, signal) => {
      this.#ended = `${role} ended: ${signal ?? code}`;
      this.#following.abort();
      this.#changed();
    });
  }

  /** Waits until the node answers, and follows its events from then on. @throws ColoError */
  async started(): Promise<void> {
    const deadlineMs = monotonicMs() + START_MS_MAX;
    for (;;) {
      try {
        await this.status();
        break;
      } catch (error) {
        if (this.#ended !== undefined || monotonicMs() > deadlineMs) {
          throw this.failure(`${this.role} does not start`, error);
        }
        await sleep(POLL_MS);
      }
    }
    const onEvent = (event: Record<string, unknown>): void => {
      this.events.push({ ...(event as unknown as DaemonEvent), heardMs: monotonicMs() });
      this.#changed();
    };
    followControl(this.controlPath, 1_000, onEvent, this.#following.signal).catch(() => {});
  }

  #changed(): void {
    for (const listener of this.#listeners) listener();
  }

  /** When an event happened, as `monotonicMs`: at most as late as the quickest event took to be heard of. */
  timeOf(event: DaemonEvent): number {
    const offsets = this.events.map(({ heardMs, atUs }) => heardMs - atUs / 1_000);
    return event.atUs / 1_000 + Math.min(...offsets);
  }

  /** Connections that the node knows. */
  async flows(): Promise<readonly FlowStatus[]> {
    return (await this.control({ command: 'flows', count: FLOWS_MAX })) as FlowStatus[];
  }

  /** One command over the control socket. @throws ColoError when it is refused or the node is gone */
  async control(call: ControlCall): Promise<unknown> {
    const response = await callControl(this.controlPath, call);
    if (response.ok) return response.result;
    const text = `${this.role} refused ${call.command}: ${response.error}`;
    throw new ColoError('COLO_ERR_LAB_REFUSED', text);
  }

  async status(): Promise<DaemonStatus> {
    return (await this.control({ command: 'status' })) as DaemonStatus;
  }

  /** Waits for a state. @throws ColoError when it does not come in time */
  async reaches(state: NodeState, timeoutMs: number): Promise<void> {
    const deadlineMs = monotonicMs() + timeoutMs;
    let last = 'unknown';
    while (monotonicMs() < deadlineMs && this.#ended === undefined) {
      const status = await this.status();
      if (status.state === state) return;
      last = `${status.state} (${status.reason})`;
      await sleep(POLL_MS);
    }
    throw this.failure(`${this.role} is not ${state} within ${timeoutMs} ms but ${last}`);
  }

  /** Waits for the first event of a kind, and as wanted, from `index` of `events` on. @throws ColoError */
  async event(
    kind: string,
    index: number,
    timeoutMs: number,
    isWanted: (event: DaemonEvent) => boolean = () => true,
  ): Promise<DaemonEvent> {
    const find = (): DaemonEvent | undefined =>
      this.events.slice(index).find((event) => event.kind === kind && isWanted(event));
    return new Promise((resolve, reject) => {
      const end = (): void => {
        clearTimeout(timer);
        this.#listeners.delete(look);
      };
      const look = (): void => {
        const event = find();
        if (event !== undefined) {
          end();
          resolve(event);
        } else if (this.#ended !== undefined) {
          end();
          reject(this.failure(`no event ${kind}`));
        }
      };
      const timer = setTimeout(() => {
        end();
        reject(this.failure(`${this.role} has no event ${kind} within ${timeoutMs} ms`));
      }, timeoutMs);
      this.#listeners.add(look);
      look();
    });
  }

  /** An error with the end of the node's log. */
  failure(text: string, cause?: unknown): ColoError {
    const tail = readFileSync(this.logPath, 'utf8').trimEnd().split('\n').slice(-LOG_TAIL_LINES);
    const parts = [text, ...(this.#ended === undefined ? [] : [this.#ended]), ...tail];
    return new ColoError('COLO_ERR_LAB_NODE', parts.join('\n    '), { cause });
  }

  /** Why it is no longer running, without the lab having ended it; undefined while it runs. */
  get ended(): string | undefined {
    return this.#ended;
  }

  signal(signal: NodeJS.Signals): void {
    this.#child.kill(signal);
  }

  /** Ends it with a signal and waits until it is gone. */
  async end(signal: 'SIGKILL' | 'SIGTERM'): Promise<void> {
    if (this.#ended !== undefined) return;
    await new Promise<void>((resolve) => {
      this.#child.once('exit', () => resolve());
      this.#child.kill(signal);
    });
  }
}

function daemonArguments(options: DaemonOptions, controlPath: string): string[] {
  const { role, directory, requestPipe, compareTimeoutMs, insecureLink = false } = options;
  const { guestPort = 'packet:tap0', netPort = 'packet:cp0', vm } = options;
  const address = `${PEER_ADDRESSES.pn}:${PEER_PORT}`;
  const common = [
    ...['--guest', guestPort, ...(netPort === null ? [] : ['--net', netPort])],
    ...(insecureLink ? ['--peer-insecure'] : ['--peer-key', peerKeyFile(directory)]),
    ...['--peer-timeout', `${PEER_TIMEOUT_MS}`],
    ...['--control', controlPath, '--log-level', 'debug'],
  ];
  // The VM layer of the lab reads requests from a pipe. A script is all that a real one needs, too.
  const toPipe = `exec:printf '%s\\n' "$COLO_REQUEST" > ${requestPipe}`;
  const driver = vm ?? (requestPipe === undefined ? 'none' : toPipe);
  const more = compareTimeoutMs === undefined ? [] : ['--compare-timeout', `${compareTimeoutMs}`];
  const peer = `${role === 'primary' ? 'listen' : 'connect'}:${address}`;
  return [role, ...common, '--peer', peer, '--vm', driver, ...more];
}

const KEY_BYTES = 32;

function peerKeyFile(directory: string): string {
  const path = join(directory, 'peer.key');
  try {
    writeFileSync(path, randomBytes(KEY_BYTES).toString('hex'), { mode: 0o600, flag: 'wx' });
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'EEXIST') throw error;
  }
  return path;
}
