/**
 * Options of `colo-proxy lab`, which runs the whole system on one machine.
 *
 * @module
 */

/** How the lab's primary node gets its guest's packets: it stands in the way, or the bridge's rules hand them over. */
export type LabAttach = 'packet' | 'nfqueue';

/** What the lab's guests are: processes in namespaces, or virtual machines. */
export type LabGuest = 'netns' | 'qemu';

export interface LabOptions {
  /** Default: netns. */
  readonly guest?: LabGuest;
  /** Default: packet. */
  readonly attach?: LabAttach;
  /** Install what virtual machines need. */
  readonly install?: boolean;
  /** Names of scenarios; absent: all. */
  readonly scenario?: readonly string[];
  readonly list?: boolean;
  readonly keep?: boolean;
  readonly json?: boolean;
}
