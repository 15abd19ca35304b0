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

/** Readings of both clocks; some milliseconds' worth, since Date.now() is cut to these. */
const READINGS_MS = 3;

/**
 * How far the wall clock is ahead of `monotonicMs`, in milliseconds, to some microseconds. Takes 3 ms; a
 * process that is not run for a while in between does not spoil it: every reading bounds the result.
 */
export function wallAheadMs(): number {
  let least = Number.NEGATIVE_INFINITY;
  let most = Number.POSITIVE_INFINITY;
  const endMs = monotonicMs() + READINGS_MS;
  for (let beforeMs = monotonicMs(); beforeMs < endMs; beforeMs = monotonicMs()) {
    const wallMs = Date.now();
    least = Math.max(least, wallMs - monotonicMs());
    most = Math.min(most, wallMs + 1 - beforeMs);
  }
  return (least + most) / 2;
}
