/**
 * QEMU's colo-compare object and `colo-proxy compare` as processes that are fed alike: the same three sockets, the same notify
 * protocol for checkpoints.
 *
 * @module
 */
import { type ChildProcess, execFileSync, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { callControl } from '../../../src/control/client.ts';
import { NotifyClient } from '../../../src/vm/notify-client.ts';
import { arpFrame, frameBytes, type TestFrame } from '../frame-builder.ts';
import { StreamPeer } from '../stream-peer.ts';

const SCRIPT = fileURLToPath(new URL('../../../bin/colo-proxy.js', import.meta.url));
const QEMU = 'qemu-system-x86_64';
const START_MS_MAX = 20_000;
const PROBE_MS = 50;

export const SYSTEMS = ['qemu', 'colo-proxy'] as const;
export type System = (typeof SYSTEMS)[number];

/** The properties that both have, by their common names. */
export interface ComparerOptions {
  readonly compareTimeoutMs: number;
  readonly scanCycleMs: number;
  readonly maxQueueSize: number;
}

/** Why QEMU's side of the comparison cannot run here; empty when it can. */
export function whyNoQemu(): string {
  try {
    const version = execFileSync(QEMU, ['--version'], { encoding: 'utf8' });
    const found = version.split('\n', 1)[0];
    return version.includes('version 7.2.') ? '' : `needs QEMU 7.2, found: ${found}`;
  } catch {
    return `needs ${QEMU}`;
  }
}

export const sleep = (ms: number): Promise<void> =>
  new Promise((resolve) => setTimeout(resolve, ms));

/** @throws Error when the condition does not hold in time */
export async function until(
  what: string,
  condition: () => boolean | Promise<boolean>,
): Promise<void> {
  const end = performance.now() + START_MS_MAX;
  while (!(await condition())) {
    if (performance.now() > end) throw new Error(`not in time: ${what}`);
    await sleep(5);
  }
}

/** A running comparer that has passed its first checkpoint. */
export class Comparer {
  readonly system: System;
  /** When it asked for checkpoints, by `performance.now`. */
  readonly askedMs: number[] = [];
  /** Frames of `passes`; they may come out more than once. */
  readonly probes: TestFrame[] = [];
  readonly #directory: string;
  readonly #process: ChildProcess;
  #notify: NotifyClient | undefined;
  #primary: StreamPeer | undefined;
  #secondary: StreamPeer | undefined;
  #out: StreamPeer | undefined;

  private constructor(system: System, options: ComparerOptions) {
    this.system = system;
    this.#directory = mkdtempSync(join(tmpdir(), 'colo-diff-'));
    const words = system === 'qemu' ? this.#qemuWords(options) : this.#ourWords(options);
    const program = system === 'qemu' ? QEMU : process.execPath;
    this.#process = spawn(program, words, { stdio: ['ignore', 'ignore', 'inherit'] });
  }

  static async start(system: System, options: ComparerOptions): Promise<Comparer> {
    const comparer = new Comparer(system, options);
    try {
      await comparer.#connect();
      return comparer;
    } catch (error) {
      await comparer.close();
      throw error;
    }
  }

  get primary(): StreamPeer {
    return this.#primary!;
  }

  get secondary(): StreamPeer {
    return this.#secondary!;
  }

  get out(): StreamPeer {
    return this.#out!;
  }

  /** Tells that both guests are paused and the state is copied. */
  checkpoint(): void {
    this.#notify!.checkpoint();
  }

  /** Waits until a frame that nobody compares comes through, and so all that the primary has sent before is read. */
  async passes(): Promise<void> {
    // Another one each time: of the last, more than one may be under way.
    const probe = arpFrame({ targetIp: `10.255.0.${this.probes.length + 1}` });
    this.probes.push(probe);
    const bytes = Buffer.from(frameBytes(probe));
    const { frames } = this.out;
    await until(`${this.system} passes frames`, async () => {
      this.primary.send(probe);
      await sleep(PROBE_MS);
      return frames.some((frame) => bytes.equals(frame));
    });
    const others = frames.filter((frame) => !bytes.equals(frame));
    frames.splice(0, frames.length, ...others);
  }

  async close(): Promise<void> {
    this.#notify?.close();
    for (const peer of [this.#primary, this.#secondary, this.#out]) await peer?.close();
    if (this.#process.exitCode === null && this.#process.signalCode === null) {
      const gone = once(this.#process, 'exit');
      // QEMU would print that it was terminated.
      this.#process.kill(this.system === 'qemu' ? 'SIGKILL' : 'SIGTERM');
      await gone;
    }
    rmSync(this.#directory, { recursive: true, force: true });
  }

  async #connect(): Promise<void> {
    this.#notify = await this.#opened('notify', async (path) => {
      const client = new NotifyClient({
        endpoint: { kind: 'unix', path },
        onCheckpointWanted: () => this.askedMs.push(performance.now()),
        timeoutUs: START_MS_MAX * 1_000,
      });
      await client.open();
      return client;
    });
    this.#out = await this.#opened('out', StreamPeer.open);
    this.#secondary = await this.#opened('secondary', StreamPeer.open);
    this.#primary = await this.#opened('primary', StreamPeer.open);
    await this.passes();
    if (this.system === 'qemu') return;
    await this.#reaches('syncing');
    this.checkpoint();
    await this.#reaches('protected');
  }

  /** Tries until the socket is bound and somebody listens there, which are two moments. */
  async #opened<T>(name: string, open: (path: string) => Promise<T>): Promise<T> {
    let opened: T | undefined;
    await until(`${this.system} listens at ${name}`, async () => {
      if (this.#process.exitCode !== null) throw new Error(`${this.system} has ended`);
      opened = await open(this.#file(name)).catch(() => undefined);
      return opened !== undefined;
    });
    return opened!;
  }

  async #reaches(state: string): Promise<void> {
    await until(state, async () => {
      const answer = await callControl(this.#file('control'), { command: 'status' });
      return answer.ok && (answer.result as { state: string }).state === state;
    });
  }

  #file(name: string): string {
    return join(this.#directory, name);
  }

  #qemuWords({ compareTimeoutMs, scanCycleMs, maxQueueSize }: ComparerOptions): string[] {
    const sockets = ['primary', 'secondary', 'out', 'notify'].flatMap((name) => [
      '-chardev',
      `socket,id=${name},path=${this.#file(name)},server=on,wait=off`,
    ]);
    const object = [
      'colo-compare,id=compare,primary_in=primary,secondary_in=secondary,outdev=out',
      `notify_dev=notify,iothread=io,compare_timeout=${compareTimeoutMs}`,
      `expired_scan_cycle=${scanCycleMs},max_queue_size=${maxQueueSize}`,
    ].join(',');
    const machine = ['-machine', 'none', '-nodefaults', '-no-user-config', '-display', 'none'];
    return [...machine, ...sockets, '-object', 'iothread,id=io', '-object', object];
  }

  #ourWords({ compareTimeoutMs, scanCycleMs, maxQueueSize }: ComparerOptions): string[] {
    const port = (name: string): string => `qemu:unix:${this.#file(name)},server`;
    return [
      ...[SCRIPT, 'compare', '--primary-in', port('primary'), '--secondary-in', port('secondary')],
      ...['--out', port('out'), '--notify', `unix:${this.#file('notify')}`],
      ...['--control', this.#file('control'), '--log-level', 'error', '--min-run', '1'],
      ...['--compare-timeout', String(compareTimeoutMs)],
      ...['--expired-scan-cycle', String(scanCycleMs), '--max-queue-size', String(maxQueueSize)],
    ];
  }
}
