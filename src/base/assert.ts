/**
 * Assertions for programmer errors. They are always on and always throw; only the daemon's
 * top level catches them, stops releasing guest output and leaves with exit code 70.
 *
 * @module
 */

/** An impossible state: a bug in colo-proxy, never a fault of the input. */
export class AssertionError extends Error {
  override name = 'AssertionError';
}

/**
 * States what must be true at this point of the program.
 *
 * @throws AssertionError when it is not
 */
export function assert(condition: boolean, text: string): asserts condition {
  if (!condition) throw new AssertionError(text);
}
