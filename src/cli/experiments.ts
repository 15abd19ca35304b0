/**
 * Options of `lab` and `sim`, which run the whole system on one machine: with real packets, or simulated.
 *
 * @module
 */

export interface LabOptions {
  /** Names of scenarios; absent: all. */
  readonly scenario?: readonly string[];
  readonly list?: boolean;
  readonly keep?: boolean;
  readonly json?: boolean;
}

export interface SimOptions {
  readonly seed: number;
  readonly runs: number;
  readonly steps?: number;
  readonly json?: boolean;
}
