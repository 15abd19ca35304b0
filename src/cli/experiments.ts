/**
 * Options of `colo-proxy lab`, which runs the whole system on one machine.
 *
 * @module
 */

/** What the lab's guests are: processes in namespaces, or virtual machines. */
export type LabGuest = 'netns' | 'qemu';

export interface LabOptions {
  /** Default: netns. */
  readonly guest?: LabGuest;
  /** Install what virtual machines need. */
  readonly install?: boolean;
  /** Names of scenarios; absent: all. */
  readonly scenario?: readonly string[];
  readonly list?: boolean;
  readonly keep?: boolean;
  readonly json?: boolean;
}
