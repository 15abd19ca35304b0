/**
 * What an operator may set of the engines, with the defaults of `limits.ts`. Times in microseconds, sizes in bytes.
 *
 * @module
 */
import type { HashKey } from '../base/hash.ts';
import type { Micros } from '../base/time.ts';
import {
  CHECKPOINT_COMMIT_TIMEOUT_US,
  CHECKPOINT_MIN_RUN_US,
  CHECKPOINT_REQUEST_TIMEOUT_US,
  CHECKPOINT_REQUEST_TRIES,
  COMPARE_TIMEOUT_US,
  FLOW_HELD_BYTES_MAX,
  FLOWS_MAX,
  HALF_OPEN_FLOWS_MAX,
  HELD_BYTES_MAX,
  KEPT_CLIENT_BYTES_MAX,
  RETAINED_BYTES_MAX,
} from '../limits.ts';
import type { FrameInfo } from '../wire/frame.ts';

/** One entry of the pass list: flows of this protocol with this port on either side are not compared. */
export interface PassRule {
  /** IP protocol number. */
  readonly protocol: number;
  /** 1..65535. */
  readonly port: number;
}

/** Does a rule exempt this frame? */
export function isPassListed(info: FrameInfo, rules: readonly PassRule[]): boolean {
  for (const { protocol, port } of rules) {
    if (protocol === info.protocol && (port === info.srcPort || port === info.dstPort)) return true;
  }
  return false;
}

/** What both engines need. */
export interface EngineConfig {
  readonly flowsMax: number;
  readonly halfOpenFlowsMax: number;
  /** Client frames kept between checkpoint begin and commit. */
  readonly keptClientBytesMax: number;
  /** Secret of the flow table's hash; random in the daemon, fixed in simulations. */
  readonly hashKey: HashKey;
}

export interface PrimaryConfig extends EngineConfig {
  readonly compareTimeoutUs: Micros;
  readonly minRunUs: Micros;
  readonly passList: readonly PassRule[];
  /**
   * Do the clients' frames come through `onNetFrame`? Where only the guests' output is seen (in colo-compare's place), connections age by
   * what the guests say.
   */
  readonly seesClients: boolean;
  /** Does the peer want to know what was released? */
  readonly reportsProgress: boolean;
  readonly flowHeldBytesMax: number;
  readonly heldBytesMax: number;
  readonly checkpointRequestTimeoutUs: Micros;
  readonly checkpointRequestTries: number;
  readonly checkpointCommitTimeoutUs: Micros;
}

export interface SecondaryConfig extends EngineConfig {
  readonly retainedBytesMax: number;
}

const ENGINE_DEFAULTS: EngineConfig = {
  flowsMax: FLOWS_MAX,
  halfOpenFlowsMax: HALF_OPEN_FLOWS_MAX,
  keptClientBytesMax: KEPT_CLIENT_BYTES_MAX,
  hashKey: { low: 0, high: 0 },
};

export const PRIMARY_DEFAULTS: PrimaryConfig = {
  ...ENGINE_DEFAULTS,
  compareTimeoutUs: COMPARE_TIMEOUT_US,
  minRunUs: CHECKPOINT_MIN_RUN_US,
  passList: [],
  seesClients: true,
  reportsProgress: true,
  flowHeldBytesMax: FLOW_HELD_BYTES_MAX,
  heldBytesMax: HELD_BYTES_MAX,
  checkpointRequestTimeoutUs: CHECKPOINT_REQUEST_TIMEOUT_US,
  checkpointRequestTries: CHECKPOINT_REQUEST_TRIES,
  checkpointCommitTimeoutUs: CHECKPOINT_COMMIT_TIMEOUT_US,
};

export const SECONDARY_DEFAULTS: SecondaryConfig = {
  ...ENGINE_DEFAULTS,
  retainedBytesMax: RETAINED_BYTES_MAX,
};
