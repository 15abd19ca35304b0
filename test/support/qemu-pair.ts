/**
 * Two QEMU 7.2 for a COLO pair without disks: guests that do no more than run their firmware. Each has two monitors,
 * one for the node's driver and one for the test.
 *
 * @module
 */
import { type ChildProcess, type SpawnOptions, spawn } from 'node:child_process';
import { closeSync, openSync } from 'node:fs';
import { join } from 'node:path';
import type { Namespace } from '../../src/lab/netns.ts';
import { QEMU, whatIsMissing } from '../../src/lab/qemu/image.ts';
import { MEMORY } from '../../src/lab/qemu/machine.ts';
import { QmpClient } from '../../src/vm/qmp-client.ts';

/** Why no pair can run here; empty when it can. */
export function whyNoPair(): string {
  const missing = whatIsMissing();
  return missing.length === 0 ? '' : `needs ${missing.join(', ')}`;
}

export interface QemuOptions {
  readonly name: 'P' | 'S';
  /** Where the sockets are made: `NAME.driver`, `NAME.test`. */
  readonly directory: string;
  readonly shim: string;
  /** Socket of a NIC (`-netdev stream`), on which somebody listens already; none by default. */
  readonly nicPath?: string;
  /** More of the command line, in the place of a NIC. */
  readonly words?: readonly string[];
  /** Where its interfaces are; by default those of this process. */
  readonly namespace?: Namespace;
}

/** One QEMU of the pair, the secondary waiting for its primary. */
export class PairedQemu {
  readonly process: ChildProcess;
  /** Names of the events so far. */
  readonly events: string[] = [];
  readonly #monitor: QmpClient;

  constructor({ name, directory, shim, nicPath, words: more, namespace }: QemuOptions) {
    const words = ['-name', name, '-accel', 'tcg,thread=single', '-machine', 'pc', '-m', MEMORY];
    words.push('-nodefaults', '-no-user-config', '-display', 'none');
    for (const monitor of ['driver', 'test']) {
      words.push('-qmp', `unix:${join(directory, `${name}.${monitor}`)},server=on,wait=off`);
    }
    if (more !== undefined) words.push(...more);
    else if (nicPath === undefined) words.push('-nic', 'none');
    else {
      words.push('-netdev', `stream,id=n0,server=off,addr.type=unix,addr.path=${nicPath}`);
      words.push('-device', 'virtio-net-pci,netdev=n0,mac=52:54:00:77:00:10,romfile=');
    }
    if (name === 'S') words.push('-incoming', 'defer');
    const log = openSync(join(directory, `${name}.log`), 'a');
    const options: SpawnOptions = {
      stdio: ['ignore', log, log],
      env: { ...process.env, LD_PRELOAD: shim },
    };
    this.process = namespace?.spawn(QEMU, words, options) ?? spawn(QEMU, words, options);
    closeSync(log);
    this.#monitor = new QmpClient({
      endpoint: { kind: 'unix', path: join(directory, `${name}.test`) },
      handlers: {
        onUp: () => undefined,
        onDown: () => undefined,
        onEvent: (event) => this.events.push(event.name),
      },
    });
    this.#monitor.start();
  }

  /** Can commands be sent? */
  get up(): boolean {
    return this.#monitor.up;
  }

  /** @throws Error when QEMU refuses */
  async execute(command: string, args?: Record<string, unknown>): Promise<unknown> {
    const result = await this.#monitor.execute(command, args, 10_000_000);
    if (!result.ok) throw new Error(`${command}: ${result.text}`);
    return result.value;
  }

  async kill(): Promise<void> {
    if (this.process.exitCode !== null || this.process.signalCode !== null) return;
    const gone = new Promise((resolve) => this.process.once('exit', resolve));
    this.process.kill('SIGKILL');
    await gone;
  }

  async close(): Promise<void> {
    this.#monitor.close();
    await this.kill();
  }
}
