/**
 * The one clock that all processes of the lab share.
 *
 * @module
 */

/** Milliseconds of CLOCK_MONOTONIC, with microseconds; comparable between processes of one machine. */
export function monotonicMs(): number {
  return Number(process.hrtime.bigint() / 1_000n) / 1_000;
}

/** Resolves after `ms` milliseconds. */
export function sleep(ms: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, ms));
}

/**
 * How far the wall clock is ahead of `monotonicMs`, in milliseconds, to some microseconds. Waits for the wall
 * clock's next millisecond: Date.now() is cut to these.
 */
export function wallAheadMs(): number {
  const now = Date.now();
  while (Date.now() === now);
  return Date.now() - monotonicMs();
}
