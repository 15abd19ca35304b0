/**
 * Time in the core: whole microseconds since an arbitrary, monotonic origin, in a `number`
 * (exact to 2^53, 285 years). The core never reads a clock; time is an argument.
 *
 * @module
 */

/** Monotonic time or a duration, in microseconds. */
export type Micros = number;

/** "No deadline": later than every time. */
export const NEVER: Micros = Number.POSITIVE_INFINITY;

/** Microseconds in a millisecond. */
export const US_PER_MS = 1_000;

/** Microseconds in a second. */
export const US_PER_S = 1_000_000;
