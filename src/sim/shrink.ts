/**
 * Finds a short prefix of a failing run: with fewer fault events before the heal, does it still fail the same way? A shorter
 * run is another run from there on (the heal comes earlier), so this is a search, not a proof of minimality.
 *
 * @module
 */
import { type RunResult, runOnce } from './run.ts';

/** Runs spent on the search. */
const TRIES_MAX = 40;

function isSame(a: RunResult, b: RunResult): boolean {
  return a.outcome === b.outcome && a.guarantee === b.guarantee;
}

/** The shortest failing run found, and its number of steps. */
export function shrink(
  seed: number,
  steps: number,
  failure: RunResult,
): { steps: number; result: RunResult } {
  let best = { steps, result: failure };
  let tries = 0;
  const attempt = (candidate: number): boolean => {
    tries++;
    const result = runOnce({ seed, steps: candidate });
    if (!isSame(result, failure)) return false;
    best = { steps: candidate, result };
    return true;
  };
  // First the event itself (a failure during the run needs nothing after it), then halves, then by an eighth.
  if (failure.step < steps) attempt(failure.step);
  while (tries < TRIES_MAX && best.steps > 1 && attempt(Math.floor(best.steps / 2)));
  for (
    let cut = Math.floor(best.steps / 4);
    cut >= 1 && tries < TRIES_MAX;
    cut = Math.floor(cut / 2)
  ) {
    while (tries < TRIES_MAX && best.steps - cut >= 1 && attempt(best.steps - cut));
  }
  return best;
}
