/**
 * Many short connections: one request each, several at a time.
 *
 * @module
 */
import { createHash } from 'node:crypto';
import { contentSha256 } from '../content.ts';
import { PORTS } from '../guest/services.ts';
import { exchange, type Family, openConnection, requestHead } from './http.ts';

export interface ShortRequest {
  readonly family: Family;
  readonly count: number;
  readonly concurrency: number;
  readonly bytesEach: number;
}

export interface ShortResult {
  readonly completed: number;
  /** Wrong bytes. */
  readonly wrong: number;
  /** Refused, reset, closed early; the first few are told. */
  readonly failures: string[];
  readonly msMax: number;
  readonly seconds: number;
}

const FAILURES_TOLD_MAX = 5;

export async function shortConnections(request: ShortRequest): Promise<ShortResult> {
  const startMs = performance.now();
  const wanted = contentSha256(1, request.bytesEach);
  let begun = 0;
  let completed = 0;
  let wrong = 0;
  let msMax = 0;
  const failures: string[] = [];
  const worker = async (): Promise<void> => {
    while (begun++ < request.count) {
      const beginMs = performance.now();
      try {
        if ((await fetchOnce(request)) !== wanted) wrong++;
        completed++;
      } catch (error) {
        if (failures.length < FAILURES_TOLD_MAX) failures.push((error as Error).message);
      }
      msMax = Math.max(msMax, performance.now() - beginMs);
    }
  };
  await Promise.all(Array.from({ length: request.concurrency }, worker));
  const seconds = (performance.now() - startMs) / 1_000;
  return { completed, wrong, failures, msMax, seconds };
}

async function fetchOnce({ family, bytesEach }: ShortRequest): Promise<string> {
  const socket = await openConnection(family, PORTS.http);
  const hash = createHash('sha256');
  try {
    await exchange(socket, requestHead('GET', `/bytes/${bytesEach}`), (bytes) =>
      hash.update(bytes),
    );
    return hash.digest('hex');
  } finally {
    socket.on('error', () => {});
    socket.end();
  }
}
