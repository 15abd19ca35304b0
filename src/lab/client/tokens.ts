/**
 * Fetches what each guest makes up for itself, to see whose answer a client gets.
 *
 * @module
 */
import { monotonicMs, sleep } from '../clock.ts';
import { PORTS } from '../guest/services.ts';
import { type Family, getText, openConnection } from './http.ts';

export interface TokensRequest {
  readonly family: Family;
  readonly count: number;
  /** Between two requests: more than the least time between two checkpoints, to see what each alone costs. */
  readonly intervalMs: number;
}

export interface TokensResult {
  readonly tokens: { readonly token: string; readonly ms: number; readonly atMs: number }[];
}

/** On one connection, one after the other. `atMs`: CLOCK_MONOTONIC, comparable between processes. */
export async function tokens(request: TokensRequest): Promise<TokensResult> {
  const socket = await openConnection(request.family, PORTS.http);
  const result: TokensResult['tokens'] = [];
  try {
    for (let index = 0; index < request.count; index++) {
      const startMs = performance.now();
      const token = (await getText(socket, '/random')).trim();
      result.push({ token, ms: performance.now() - startMs, atMs: monotonicMs() });
      await sleep(request.intervalMs);
    }
  } finally {
    socket.on('error', () => {});
    socket.end();
  }
  return { tokens: result };
}
