/**
 * Two QEMU 7.2 for a COLO pair without disks: guests that do no more than run their firmware. Each has two monitors,
 * one for the node's driver and one for the test.
 *
 * @module
 */
import { type ChildProcess, execFileSync, spawn } from 'node:child_process';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { QmpClient } from '../../src/vm/qmp-client.ts';

const QEMU = 'qemu-system-x86_64';
const SHIM = fileURLToPath(new URL('../../src/lab/qemu/bql-shim.c', import.meta.url));

/** Why no pair can run here; empty when it can. */
export function whyNoPair(): string {
  try {
    const version = execFileSync(QEMU, ['--version'], { encoding: 'utf8' });
    // In QEMU 10.0 the primary ends its migration instead of entering COLO.
    if (!version.includes('version 7.2.')) return 'needs QEMU 7.2';
    execFileSync('gcc', ['--version'], { stdio: 'ignore' });
    return '';
  } catch {
    return `needs ${QEMU} and gcc`;
  }
}

/** Builds what QEMU 7.2 needs under TCG; returns its path. */
export function buildShim(directory: string): string {
  const path = join(directory, 'shim.so');
  execFileSync('gcc', ['-O2', '-shared', '-fPIC', '-o', path, SHIM, '-ldl']);
  return path;
}

export interface QemuOptions {
  readonly name: 'P' | 'S';
  /** Where the sockets are made: `NAME.driver`, `NAME.test`. */
  readonly directory: string;
  readonly shim: string;
  /** Socket of a NIC (`-netdev stream`), on which somebody listens already; none by default. */
  readonly nicPath?: string;
}

/** One QEMU of the pair, the secondary waiting for its primary. */
export class PairedQemu {
  readonly process: ChildProcess;
  readonly #monitor: QmpClient;

  constructor({ name, directory, shim, nicPath }: QemuOptions) {
    // A size that is no multiple of 256 KiB: QEMU 7.2 under TCG otherwise forgets dirty pages.
    const words = ['-name', name, '-accel', 'tcg,thread=single', '-machine', 'pc', '-m', '131080k'];
    words.push('-nodefaults', '-no-user-config', '-display', 'none');
    for (const monitor of ['driver', 'test']) {
      words.push('-qmp', `unix:${join(directory, `${name}.${monitor}`)},server=on,wait=off`);
    }
    if (nicPath === undefined) words.push('-nic', 'none');
    else {
      words.push('-netdev', `stream,id=n0,server=off,addr.type=unix,addr.path=${nicPath}`);
      words.push('-device', 'virtio-net-pci,netdev=n0,mac=52:54:00:77:00:10,romfile=');
    }
    if (name === 'S') words.push('-incoming', 'defer');
    this.process = spawn(QEMU, words, {
      stdio: ['ignore', 'ignore', 'ignore'],
      env: { ...process.env, LD_PRELOAD: shim },
    });
    this.#monitor = new QmpClient({
      endpoint: { kind: 'unix', path: join(directory, `${name}.test`) },
      handlers: { onUp: () => undefined, onDown: () => undefined, onEvent: () => undefined },
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

/** Puts the two into COLO; it is entered some 0.3 s after this resolves. Checkpoints are made only when asked for. */
export async function startColo(p: PairedQemu, s: PairedQemu, directory: string): Promise<void> {
  const capabilities = ['x-colo', 'events'].map((capability) => ({ capability, state: true }));
  const uri = `unix:${join(directory, 'migration')}`;
  await s.execute('migrate-set-capabilities', { capabilities });
  await s.execute('migrate-incoming', { uri });
  await p.execute('migrate-set-capabilities', { capabilities });
  const parameters = { 'x-checkpoint-delay': 60_000, 'max-bandwidth': 2 ** 32 };
  await p.execute('migrate-set-parameters', parameters);
  await p.execute('migrate', { uri });
}
