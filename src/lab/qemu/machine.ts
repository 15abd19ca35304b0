/**
 * One virtual machine of a COLO pair: QEMU with a monitor for the node's driver and another for the lab.
 *
 * @module
 */
import { type ChildProcess, spawn } from 'node:child_process';
import { closeSync, existsSync, openSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { ColoError } from '../../base/error.ts';
import { QmpClient, type QmpEvent } from '../../vm/qmp-client.ts';
import { monotonicMs, sleep } from '../clock.ts';
import { GUEST_MAC } from '../topology.ts';
import { type GuestImage, QEMU } from './image.ts';

const COMMAND_US_MAX = 10_000_000;
const START_MS_MAX = 30_000;
/** TCG on a busy machine; 3 to 5 s on an idle one. */
const BOOT_MS_MAX = 60_000;
const POLL_MS = 10;
/** Characters of the console's end that an error tells. */
const CONSOLE_TOLD = 500;
/** Checkpoints are made only when they are asked for. */
const CHECKPOINT_DELAY_MS = 60_000;
const BANDWIDTH = 2 ** 32;
const CAPABILITIES = ['x-colo', 'events'].map((capability) => ({ capability, state: true }));

export interface MachineOptions {
  readonly name: 'pvm' | 'svm';
  readonly directory: string;
  readonly image: GuestImage;
  /** Unix socket of the network card, on which the node listens already. */
  readonly nicPath: string;
  readonly onEvent: (event: QmpEvent) => void;
}

/** Where a node's driver finds the monitor of a machine. */
export function driverSocket(directory: string, name: 'pvm' | 'svm'): string {
  return join(directory, `${name}.driver`);
}

/** No multiple of 256 KiB: QEMU 7.2 under TCG otherwise forgets dirty pages, and the SVM breaks after some checkpoints. */
export const MEMORY = '131080k';

/** The command line of a machine, but for its name and its monitors. */
function machineArguments(image: GuestImage, nicPath: string): string[] {
  return [
    ...['-accel', 'tcg,thread=single', '-machine', 'pc', '-m', MEMORY, '-smp', '1'],
    ...['-nodefaults', '-no-user-config', '-display', 'none'],
    ...['-kernel', image.kernel, '-initrd', image.initrd],
    ...['-append', 'console=ttyS0 quiet mitigations=off panic=-1'],
    ...['-netdev', `stream,id=net0,server=off,addr.type=unix,addr.path=${nicPath}`],
    ...['-device', `virtio-net-pci,netdev=net0,mac=${GUEST_MAC},romfile=`],
  ];
}

export class Machine {
  readonly name: 'pvm' | 'svm';
  /** The guest's console. */
  readonly serialPath: string;
  readonly #logPath: string;
  readonly #process: ChildProcess;
  readonly #monitor: QmpClient;

  constructor({ name, directory, image, nicPath, onEvent }: MachineOptions) {
    this.name = name;
    this.serialPath = join(directory, `${name}.serial`);
    const words = ['-name', name, ...machineArguments(image, nicPath)];
    words.push('-serial', `file:${this.serialPath}`);
    const labSocket = join(directory, `${name}.lab`);
    for (const path of [driverSocket(directory, name), labSocket]) {
      words.push('-qmp', `unix:${path},server=on,wait=off`);
    }
    if (name === 'svm') words.push('-incoming', 'defer');
    this.#logPath = join(directory, `${name}.log`);
    const log = openSync(this.#logPath, 'a');
    this.#process = spawn(QEMU, words, {
      stdio: ['ignore', log, log],
      env: { ...process.env, LD_PRELOAD: image.shim },
    });
    closeSync(log);
    this.#monitor = new QmpClient({
      endpoint: { kind: 'unix', path: labSocket },
      handlers: {
        onUp: () => undefined,
        onDown: () => undefined,
        onEvent,
      },
    });
    this.#monitor.start();
  }

  /** Waits until the monitor answers. @throws ColoError */
  async started(): Promise<void> {
    await this.#until('answers its monitor', START_MS_MAX, () => this.#monitor.up);
  }

  /** Waits until the guest serves. @throws ColoError */
  async booted(): Promise<void> {
    await this.#until('has booted', BOOT_MS_MAX, () => this.#console().includes('guest: ready'));
  }

  /** What the guest has answered to `GET /random`, in order. */
  tokens(): string[] {
    return Array.from(
      this.#console().matchAll(/guest: token ([0-9a-f]{32})/g),
      ([, token]) => token!,
    );
  }

  #console(): string {
    return existsSync(this.serialPath) ? readFileSync(this.serialPath, 'latin1') : '';
  }

  /** @throws ColoError when QEMU refuses */
  async execute(command: string, args?: Record<string, unknown>): Promise<unknown> {
    const result = await this.#monitor.execute(command, args, COMMAND_US_MAX);
    if (result.ok) return result.value;
    throw new ColoError('COLO_ERR_LAB_QEMU', `${this.name}: ${command}: ${result.text}`);
  }

  /** Has QEMU make a checkpoint; primary only. */
  async checkpoint(): Promise<void> {
    await this.execute('migrate-set-parameters', { 'x-checkpoint-delay': CHECKPOINT_DELAY_MS });
  }

  signal(signal: 'SIGSTOP' | 'SIGCONT'): void {
    this.#process.kill(signal);
  }

  /** At one blow. */
  async kill(): Promise<void> {
    if (this.#process.exitCode !== null || this.#process.signalCode !== null) return;
    const gone = new Promise((resolve) => this.#process.once('exit', resolve));
    this.#process.kill('SIGKILL');
    await gone;
  }

  async close(): Promise<void> {
    this.#monitor.close();
    await this.kill();
  }

  async #until(what: string, timeoutMs: number, condition: () => boolean): Promise<void> {
    const endMs = monotonicMs() + timeoutMs;
    while (!condition()) {
      const { exitCode, signalCode } = this.#process;
      const end = signalCode ?? exitCode;
      if (end !== null || monotonicMs() > endMs) {
        const why = end === null ? `not within ${timeoutMs} ms` : `QEMU has ended: ${end}`;
        const said =
          readFileSync(this.#logPath, 'utf8').trim() + this.#console().slice(-CONSOLE_TOLD);
        const text = `The ${this.name.toUpperCase()} ${what}: ${why}${said === '' ? '' : `\n    ${said}`}`;
        throw new ColoError('COLO_ERR_LAB_QEMU', text);
      }
      await sleep(POLL_MS);
    }
  }
}

/** Takes commands for a QEMU. Rejects when it refuses one. */
export interface Monitor {
  execute(command: string, args?: Record<string, unknown>): Promise<unknown>;
}

/** Puts the two into COLO, which they enter some 0.3 s later. Checkpoints are made only when asked for. @throws ColoError */
export async function startColo(pvm: Monitor, svm: Monitor, directory: string): Promise<void> {
  const uri = `unix:${join(directory, 'migration')}`;
  await svm.execute('migrate-set-capabilities', { capabilities: CAPABILITIES });
  await svm.execute('migrate-incoming', { uri });
  await pvm.execute('migrate-set-capabilities', { capabilities: CAPABILITIES });
  const parameters = { 'x-checkpoint-delay': CHECKPOINT_DELAY_MS, 'max-bandwidth': BANDWIDTH };
  await pvm.execute('migrate-set-parameters', parameters);
  await pvm.execute('migrate', { uri });
}
