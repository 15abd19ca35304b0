/**
 * What several scenarios with virtual machines check.
 *
 * @module
 */
import { expect } from '../../bench.ts';
import type { TransferRequest, TransferResult } from '../../client/transfer.ts';
import type { QemuBench } from '../qemu-bench.ts';

export const MIB = 2 ** 20;

/** A transfer as fast as it goes, on a connection of the client's. */
export const TRANSFER = {
  openedBy: 'client',
  tellAtBytes: 0,
  bytesPerSecondMax: 0,
} as const satisfies Partial<TransferRequest>;

/** A whole transfer. @throws ColoError when one byte is wrong */
export async function checkTransfer(
  bench: QemuBench,
  direction: 'download' | 'upload',
  bytes: number,
  seed: number,
): Promise<TransferResult> {
  const result = await bench.transfer({ ...TRANSFER, direction, bytes, seed });
  expect(result.sha256Ok, `${direction}: wrong content at byte ${result.wrongAt}`);
  return result;
}

/** Short connections, none of which may fail. Returns the longest one's time, ms. @throws ColoError */
export async function checkShort(
  bench: QemuBench,
  count: number,
  concurrency: number,
): Promise<number> {
  const short = await bench.client({ type: 'short', count, concurrency, bytesEach: 5_000 });
  const isRight = short.completed === count && short.wrong === 0;
  expect(isRight, `short connections: ${JSON.stringify(short)}`);
  return short.msMax;
}

/**
 * Pings or datagrams, one after the other. One of them may be lost in each checkpoint: what QEMU has read at the moment of a stop never
 * reaches the guest (see soak.ts), and TCP alone sends it again. Returns the median of the times to the answer, ms. @throws ColoError
 */
export async function checkAnswers(
  bench: QemuBench,
  type: 'ping' | 'datagrams',
  request: { readonly count: number; readonly bytes: number; readonly timeoutMs: number },
): Promise<number> {
  const before = await bench.committed();
  const result = await bench.client({ type, ...request });
  const checkpoints = (await bench.committed()) - before;
  const isRight = result.answered + checkpoints >= request.count && result.wrong === 0;
  expect(isRight, `${type}: ${JSON.stringify(result)}, ${checkpoints} checkpoints`);
  return result.msMedian;
}

/** The pages that the guest writes by itself are as it has written them. @throws ColoError */
export async function checkMemory(bench: QemuBench): Promise<void> {
  const { text } = await bench.client({ type: 'text', path: '/memory' });
  expect(text === '0 wrong pages', `the guest's memory has ${text}`);
}

/** The value that a share of the sorted `values` does not exceed. */
export function quantile(values: readonly number[], share: number): number {
  const sorted = values.toSorted((a, b) => a - b);
  return sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * share))] ?? Number.NaN;
}
