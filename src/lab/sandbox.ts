/**
 * Runs the lab inside namespaces of its own: a process namespace, so that everything it started ends with
 * it, even after SIGKILL; and, without root, a user namespace in which it may build networks.
 *
 * @module
 */
import { spawn } from 'node:child_process';
import { existsSync, mkdtempSync, readdirSync, readlinkSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { ColoError } from '../base/error.ts';

/** Set for the process inside: the directory for sockets, keys and logs. */
const DIRECTORY_VARIABLE = 'COLO_PROXY_LAB_DIRECTORY';
/** Set to 1 inside when a user namespace was needed. */
const ROOTLESS_VARIABLE = 'COLO_PROXY_LAB_ROOTLESS';
const DIRECTORY_PREFIX = 'colo-proxy-lab-';
const EXIT_SIGNAL_BASE = 128;
const SIGNALS = ['SIGINT', 'SIGTERM', 'SIGHUP'] as const;
const SIGNAL_NUMBERS = { SIGINT: 2, SIGTERM: 15, SIGHUP: 1 } as const;

/** Does this process run in a user namespace made by the lab? */
export function isRootless(): boolean {
  return process.env[ROOTLESS_VARIABLE] === '1';
}

/** The lab's directory when this process already runs inside; undefined outside. */
export function sandboxDirectory(): string | undefined {
  return process.env[DIRECTORY_VARIABLE];
}

/**
 * Starts this program again with the same arguments, inside; returns its exit code.
 *
 * @throws ColoError `COLO_ERR_LAB_SANDBOX` when the kernel or a missing tool forbids it
 */
export async function runInSandbox(): Promise<number> {
  removeStaleDirectories();
  const directory = mkdtempSync(join(tmpdir(), `${DIRECTORY_PREFIX}${process.pid}-`));
  const rootless = process.getuid?.() !== 0;
  // A change of user clears the parent-death signal, so setpriv comes after it.
  const command = [
    ...(rootless ? ['unshare', '--user', '--map-root-user'] : []),
    ...['setpriv', '--pdeathsig', 'KILL'],
    ...['unshare', '--pid', '--net', '--fork', '--kill-child'],
    ...[process.execPath, ...process.execArgv, ...process.argv.slice(1)],
  ];
  try {
    return await runChild(command, directory, rootless);
  } finally {
    rmSync(directory, { recursive: true, force: true });
  }
}

/** The kernel removes everything of a killed lab but its directory of sockets and logs: the next one does. */
function removeStaleDirectories(): void {
  for (const name of readdirSync(tmpdir())) {
    const pid = new RegExp(`^${DIRECTORY_PREFIX}(\\d+)-`).exec(name)?.[1];
    if (pid === undefined || existsSync(`/proc/${pid}`)) continue;
    rmSync(join(tmpdir(), name), { recursive: true, force: true });
  }
}

function runChild(command: string[], directory: string, rootless: boolean): Promise<number> {
  return new Promise((resolve, reject) => {
    const [program = '', ...args] = command;
    const child = spawn(program, args, {
      stdio: ['ignore', 'inherit', 'inherit', 'ipc'],
      env: {
        ...process.env,
        [DIRECTORY_VARIABLE]: directory,
        [ROOTLESS_VARIABLE]: rootless ? '1' : '0',
      },
    });
    // A terminal's Ctrl-C reaches the lab itself too; it cleans up, and we wait for it.
    const forward = (signal: NodeJS.Signals): void => void (child.connected && child.send(signal));
    for (const signal of SIGNALS) process.on(signal, forward);
    let started = false;
    child.once('message', () => {
      started = true;
    });
    child.once('error', (cause) => {
      const text = `Cannot run ${program}: ${cause.message}; install util-linux`;
      reject(new ColoError('COLO_ERR_LAB_SANDBOX', text, { cause }));
    });
    child.once('exit', (code, signal) => {
      for (const name of SIGNALS) process.off(name, forward);
      if (!started) {
        const hint = rootless ? 'run it as root, or allow user namespaces' : 'see above';
        reject(new ColoError('COLO_ERR_LAB_SANDBOX', `Cannot make namespaces; ${hint}`));
      } else resolve(code ?? EXIT_SIGNAL_BASE + (signal === 'SIGKILL' ? 9 : 1));
    });
  });
}

/** Inside: tells the outer process that all is well, and calls `onSignal` when the user wants to stop. */
export function enterSandbox(onSignal: (exitCode: number) => void): void {
  process.send?.('started');
  const stop = (signal: (typeof SIGNALS)[number]): void =>
    onSignal(EXIT_SIGNAL_BASE + SIGNAL_NUMBERS[signal]);
  process.on('message', (signal: (typeof SIGNALS)[number]) => stop(signal));
  for (const signal of SIGNALS) process.on(signal, () => stop(signal));
  // The channel alone must not keep the lab alive.
  process.channel?.unref();
}

/** This process's id as the rest of the machine sees it: /proc is that of the outer process namespace. */
export function outerPid(): number {
  return Number(readlinkSync('/proc/self'));
}
