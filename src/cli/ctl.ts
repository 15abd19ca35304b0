/**
 * `colo-proxy ctl`: one request to a node's control socket, and its answer for people or machines.
 *
 * @module
 */
import { callControl, followControl } from '../control/client.ts';
import { EXIT_OK, EXIT_REFUSED } from './exit.ts';
import { formatEvent, formatFlows, formatStatus } from './tables.ts';

/** A request of the control protocol; see control/protocol.ts. */
export type CtlCommand =
  | { readonly command: 'status' }
  | { readonly command: 'flows'; readonly count: number }
  | { readonly command: 'events'; readonly count: number; readonly follow: boolean }
  | {
      readonly command: 'checkpoint';
      readonly step: 'begin' | 'commit' | 'abort';
      readonly reason?: string;
    }
  | { readonly command: 'failover'; readonly force: boolean }
  | { readonly command: 'reset'; readonly reason?: string };

export interface CtlOptions {
  readonly control: string;
  readonly json?: boolean;
}

/** Where answers and refusals go. */
export interface CtlIo {
  out(text: string): void;
  err(text: string): void;
}

/**
 * Carries out one command. Returns the exit code: 0, or 1 when the node refused.
 *
 * @throws ColoError when there is no node, or no answer
 */
export async function runCtl(call: CtlCommand, options: CtlOptions, io: CtlIo): Promise<number> {
  const isJson = options.json === true;
  if (call.command === 'events' && call.follow) {
    await followEvents(options.control, call.count, isJson, io);
    return EXIT_OK;
  }
  const answer = await callControl(options.control, { ...call });
  if (isJson) io.out(`${JSON.stringify(answer.ok ? (answer.result ?? answer) : answer)}\n`);
  if (!answer.ok) {
    io.err(`colo-proxy: ${answer.error}\n`);
    return EXIT_REFUSED;
  }
  if (!isJson) io.out(formatAnswer(call, answer.result));
  return EXIT_OK;
}

async function followEvents(
  path: string,
  count: number,
  isJson: boolean,
  io: CtlIo,
): Promise<void> {
  const stop = new AbortController();
  const onSignal = (): void => stop.abort();
  process.once('SIGINT', onSignal);
  process.once('SIGTERM', onSignal);
  try {
    await followControl(
      path,
      count,
      (event) => io.out(isJson ? `${JSON.stringify(event)}\n` : formatEvent(event)),
      stop.signal,
    );
  } finally {
    process.removeListener('SIGINT', onSignal);
    process.removeListener('SIGTERM', onSignal);
  }
}

function formatAnswer(call: CtlCommand, result: unknown): string {
  switch (call.command) {
    case 'status':
      return formatStatus(result as Parameters<typeof formatStatus>[0]);
    case 'flows':
      return formatFlows(result as Parameters<typeof formatFlows>[0]);
    case 'events':
      return (result as Record<string, unknown>[]).map(formatEvent).join('');
    case 'checkpoint':
      return `checkpoint ${call.step}: done\n`;
    default:
      return `${call.command}: done\n`;
  }
}
