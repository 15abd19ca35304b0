/**
 * A bench of the lab that stays up while a test uses it: `colo-proxy lab --keep`.
 *
 * @module
 */
import { type ChildProcess, execFile, spawn } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';

const SCRIPT = fileURLToPath(new URL('../../bin/colo-proxy.js', import.meta.url));
const run = promisify(execFile);

export interface KeptLab {
  readonly child: ChildProcess;
  /** The process that holds the namespaces. */
  readonly innerPid: number;
  /** Runs a program in a namespace (`client`, `pvm`, ...) and resolves with what it prints. */
  inside(namespace: string, command: readonly string[], timeoutMs?: number): Promise<string>;
  /** Starts a program there, to be ended by `stop`. */
  start(namespace: string, command: readonly string[]): ChildProcess;
  /** `ctl status --json` of a node. */
  status(role: 'primary' | 'secondary'): Promise<Record<string, unknown>>;
  stop(): Promise<void>;
}

/** @param more further arguments of `lab`. Rejects with what the lab said when it does not come up. */
export async function startKeptLab(...more: string[]): Promise<KeptLab> {
  const child = spawn(process.execPath, [SCRIPT, 'lab', '--keep', ...more], {
    stdio: ['ignore', 'ignore', 'pipe'],
  });
  let text = '';
  await new Promise<void>((resolve, reject) => {
    child.once('exit', () => reject(new Error(`the lab ended: ${text}`)));
    child.stderr.on('data', (bytes: Buffer) => {
      text += bytes.toString();
      if (text.includes('Ctrl-C')) resolve();
    });
  });
  const enter = (namespace: string): string[] => {
    const line = new RegExp(`^ +${namespace} +(nsenter .*)$`, 'm').exec(text)?.[1];
    if (line === undefined) throw new Error(`the lab has no namespace ${namespace}`);
    return line.split(' ');
  };
  const started: ChildProcess[] = [];
  return {
    child,
    innerPid: Number(/\/proc\/(\d+)\/fd/.exec(text)?.[1]),
    inside: async (namespace, command, timeoutMs = 60_000) => {
      const [program = '', ...args] = [...enter(namespace), ...command];
      const { stdout } = await run(program, args, {
        timeout: timeoutMs,
        maxBuffer: 256 * 1024 * 1024,
      });
      return stdout;
    },
    start: (namespace, command) => {
      const [program = '', ...args] = [...enter(namespace), ...command];
      const process_ = spawn(program, args, { stdio: 'ignore' });
      started.push(process_);
      return process_;
    },
    status: async (role) => {
      const control = new RegExp(`--control (\\S+/${role}\\.sock)`).exec(text)?.[1] ?? '';
      const args = [SCRIPT, 'ctl', '--control', control, '--json', 'status'];
      const { stdout } = await run(process.execPath, args);
      return JSON.parse(stdout) as Record<string, unknown>;
    },
    stop: async () => {
      for (const process_ of started) process_.kill('SIGKILL');
      if (child.exitCode !== null || child.signalCode !== null) return;
      const exited = new Promise((resolve) => child.once('exit', resolve));
      child.kill('SIGINT');
      await exited;
    },
  };
}
