/**
 * Carries out the steps of a plan: all of them, or none.
 *
 * @module
 */
import { spawnSync } from 'node:child_process';
import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { createServer, type Server } from 'node:net';
import { ColoError } from '../base/error.ts';
import type { Action, Step } from './types.ts';

/** How long another attach or detach is waited for. */
const LOCK_WAIT_MS = 10_000;
const LOCK_RETRY_MS = 50;

/**
 * A Unix socket without a file: it belongs to the network namespace, as the links and rules do, and goes with its process.
 */
const LOCK_NAME = '\0colo-proxy-attach';

/**
 * Runs `body` while no other attach or detach of this network namespace runs.
 *
 * @throws ColoError `COLO_ERR_ATTACH_BUSY`; what `body` throws
 */
export async function exclusively<T>(body: () => T): Promise<T> {
  const lock = await takeLock();
  try {
    return body();
  } finally {
    lock.close();
  }
}

/**
 * Carries out all steps, in their order. When one fails, those before it are taken back.
 *
 * @param onAction hears of each action before it is carried out
 * @throws ColoError `COLO_ERR_ATTACH_STEP` with what failed, and with what could not be taken back
 */
export function runSteps(steps: readonly Step[], onAction: (action: Action) => void): void {
  const done: Step[] = [];
  for (const step of steps) {
    onAction(step.action);
    const fault = perform(step.action);
    if (fault === undefined) {
      done.push(step);
      continue;
    }
    const hint = step.hint === undefined ? '' : ` (${[step.hint, ...missingParts()].join('; ')})`;
    const lines = [`Failed: ${describeAction(step.action)}: ${fault}${hint}`];
    throw new ColoError('COLO_ERR_ATTACH_STEP', [...lines, ...takeBack(done, onAction)].join('\n'));
  }
}

/** An action as a line for a shell. */
export function describeAction(action: Action): string {
  if (action.kind === 'write') return `echo ${quote(action.text)} > ${quote(action.path)}`;
  return action.command.map(quote).join(' ');
}

/** Takes done steps back, the last one first. Returns what is to be said of it. */
function takeBack(done: readonly Step[], onAction: (action: Action) => void): string[] {
  const faults: string[] = [];
  for (const { undo } of done.toReversed()) {
    if (undo === undefined) continue;
    onAction(undo);
    const fault = perform(undo);
    if (fault !== undefined) faults.push(`Not taken back: ${describeAction(undo)}: ${fault}`);
  }
  return faults.length > 0 ? faults : ['Nothing has been changed'];
}

/** Returns why it failed. */
function perform(action: Action): string | undefined {
  if (action.kind === 'write') {
    try {
      writeFileSync(action.path, action.text);
      return undefined;
    } catch (error) {
      return (error as Error).message;
    }
  }
  const [program = '', ...args] = action.command;
  const result = spawnSync(program, args, { encoding: 'utf8' });
  if (result.error !== undefined) return result.error.message;
  if (result.status === 0) return undefined;
  const text = result.stderr.trim().replace(/\s*\n\s*/g, '; ');
  return text === '' ? `exit code ${result.status}` : text;
}

/** The parts of netfilter that the kernel has not loaded, after it was asked to. */
function missingParts(): string[] {
  return (
    [
      ['matches', 'physdev'],
      ['matches', 'comment'],
      ['targets', 'NFQUEUE'],
    ] as const
  ).flatMap(([list, name]) => {
    const path = `/proc/net/ip_tables_${list}`;
    const isThere = !existsSync(path) || readFileSync(path, 'utf8').split('\n').includes(name);
    return isThere ? [] : [`${name} is not loaded`];
  });
}

function quote(word: string): string {
  return /^[\w@%+=:,./-]+$/.test(word) ? word : `'${word.replaceAll("'", `'\\''`)}'`;
}

async function takeLock(): Promise<Server> {
  for (const endMs = performance.now() + LOCK_WAIT_MS; ; ) {
    const server = createServer();
    const error = await new Promise<NodeJS.ErrnoException | undefined>((resolve) => {
      server.once('error', resolve);
      server.listen(LOCK_NAME, () => resolve(undefined));
    });
    if (error === undefined) return server;
    if (error.code !== 'EADDRINUSE' || performance.now() > endMs) {
      const text = `Cannot begin: another attach or detach has been running for ${LOCK_WAIT_MS / 1000} s`;
      throw new ColoError('COLO_ERR_ATTACH_BUSY', text, { cause: error });
    }
    await new Promise((resolve) => setTimeout(resolve, LOCK_RETRY_MS));
  }
}
