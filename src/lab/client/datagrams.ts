/**
 * UDP requests, each to be answered by the same bytes.
 *
 * @module
 */
import { createSocket } from 'node:dgram';
import { contentAt } from '../content.ts';
import { PORTS } from '../guest/services.ts';
import { ADDRESSES } from '../topology.ts';
import type { Family } from './http.ts';

export interface DatagramsRequest {
  readonly family: Family;
  readonly count: number;
  /** At least 4: they begin with the request's number. */
  readonly bytes: number;
  /** Until the next request is sent, whether an answer has come or not. */
  readonly timeoutMs: number;
}

export interface DatagramsResult {
  readonly sent: number;
  readonly answered: number;
  readonly wrong: number;
  /** Round trips of those answered. */
  readonly msMedian: number;
  readonly msMax: number;
}

/** One at a time, as a resolver would. */
export async function datagrams(request: DatagramsRequest): Promise<DatagramsResult> {
  const socket = createSocket(request.family === 4 ? 'udp4' : 'udp6');
  const times: number[] = [];
  let wrong = 0;
  try {
    await new Promise<void>((resolve) =>
      socket.connect(PORTS.echo, ADDRESSES[request.family].guest, resolve),
    );
    for (let index = 0; index < request.count; index++) {
      const sent = Buffer.from(contentAt(index + 1, 0, request.bytes));
      sent.writeUInt32BE(index);
      const startMs = performance.now();
      const answer = await new Promise<Buffer | undefined>((resolve) => {
        const timer = setTimeout(() => resolve(undefined), request.timeoutMs);
        const onMessage = (message: Buffer): void => {
          // A late duplicate of an earlier answer is none to this question.
          if (message.length >= 4 && message.readUInt32BE(0) < index) return;
          clearTimeout(timer);
          socket.off('message', onMessage);
          resolve(message);
        };
        socket.on('message', onMessage);
        socket.send(sent);
      });
      socket.removeAllListeners('message');
      if (answer === undefined) continue;
      times.push(performance.now() - startMs);
      if (!answer.equals(sent)) wrong++;
    }
  } finally {
    socket.close();
  }
  return { sent: request.count, answered: times.length, wrong, ...spread(times) };
}

/** Median and maximum of some milliseconds; 0 when there are none. */
export function spread(times: readonly number[]): { msMedian: number; msMax: number } {
  const sorted = times.toSorted((a, b) => a - b);
  return { msMedian: sorted[Math.floor(sorted.length / 2)] ?? 0, msMax: sorted.at(-1) ?? 0 };
}
