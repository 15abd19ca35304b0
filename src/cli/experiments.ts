/**
 * Options of `colo-proxy lab`, which runs the whole system on one machine.
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
