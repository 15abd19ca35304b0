/**
 * A bench of the lab that stays up while a test uses it: `colo-proxy lab --keep`.
 *
 * @module
 */
import { type ChildProcess, execFile, spawn } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import type { RecordedEvent } from '../../src/observe/events.ts';
import { isListening } from './netns.ts';

const SCRIPT = fileURLToPath(new URL('../../bin/colo-proxy.js', import.meta.url));
const run = promisify(execFile);
const LISTEN_MS_MAX = 20_000;

export interface KeptLab {
  readonly child: ChildProcess;
  /** The process that holds the namespaces. */
  readonly innerPid: number;
  /** Runs a program in a namespace (`client`, `pvm`, ...) and resolves with what it prints. */
  inside(namespace: string, command: readonly string[], timeoutMs?: number): Promise<string>;
  /** Starts a program there, to be ended by `stop`. */
  start(namespace: string, command: readonly string[]): ChildProcess;
  /** Waits until somebody listens on a TCP port there. @throws Error when nobody does in time */
  listens(namespace: string, port: number): Promise<void>;
  /** `ctl status --json` of a node. */
  status(role: 'primary' | 'secondary'): Promise<Record<string, unknown>>;
  /** `ctl events --json` of a node. */
  events(role: 'primary' | 'secondary'): Promise<RecordedEvent[]>;
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
  const inside: KeptLab['inside'] = async (namespace, command, timeoutMs = 60_000) => {
    const [program = '', ...args] = [...enter(namespace), ...command];
    const { stdout } = await run(program, args, {
      timeout: timeoutMs,
      maxBuffer: 256 * 1024 * 1024,
    });
    return stdout;
  };
  const ctl = async (role: 'primary' | 'secondary', command: string): Promise<unknown> => {
    const control = new RegExp(`--control (\\S+/${role}\\.sock)`).exec(text)?.[1] ?? '';
    const args = [SCRIPT, 'ctl', '--control', control, '--json', command];
    const { stdout } = await run(process.execPath, args);
    return JSON.parse(stdout);
  };
  const started: ChildProcess[] = [];
  return {
    child,
    innerPid: Number(/\/proc\/(\d+)\/fd/.exec(text)?.[1]),
    inside,
    listens: async (namespace, port) => {
      const endMs = performance.now() + LISTEN_MS_MAX;
      const tables = ['cat', '/proc/net/tcp', '/proc/net/tcp6'];
      while (!isListening(await inside(namespace, tables), port)) {
        if (performance.now() > endMs) throw new Error(`nobody listens on port ${port}`);
        await new Promise((resolve) => setTimeout(resolve, 20));
      }
    },
    start: (namespace, command) => {
      const [program = '', ...args] = [...enter(namespace), ...command];
      const process_ = spawn(program, args, { stdio: 'ignore' });
      started.push(process_);
      return process_;
    },
    status: async (role) => (await ctl(role, 'status')) as Record<string, unknown>,
    events: async (role) => (await ctl(role, 'events')) as RecordedEvent[],
    stop: async () => {
      for (const process_ of started) process_.kill('SIGKILL');
      if (child.exitCode !== null || child.signalCode !== null) return;
      const exited = new Promise((resolve) => child.once('exit', resolve));
      child.kill('SIGINT');
      await exited;
    },
  };
}
