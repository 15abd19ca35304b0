/**
 * What a checker is and what it may look at. Checkers are apart from the engines and from the faults: they watch, by
 * the guests' own records, and speak up when a guarantee of the design is broken.
 *
 * @module
 */
import type { Micros } from '../../base/time.ts';
import type { CheckpointRequest, NodeState, ProxyEvent } from '../../env/messages.ts';
import type { PrimaryConfig } from '../../proxy/config.ts';
import type { ClientApplication } from '../host/client.ts';
import type { Host } from '../host/host.ts';
import type { Machine } from '../machine.ts';
import type { SimFrame } from '../net/packet.ts';
import type { ProxyNode } from '../node.ts';
import type { GuestRecord } from './record.ts';

/** The guarantees of the design. */
export type Guarantee = 'G1' | 'G2' | 'G3' | 'G4' | 'G5' | 'G6' | 'G7' | 'G8' | 'G9' | 'G10';

export interface ClientView {
  readonly host: Host;
  readonly application: ClientApplication;
}

/** The world, as far as checkers look at it. */
export interface Witness {
  readonly nowUs: Micros;
  readonly primary: ProxyNode;
  readonly secondary: ProxyNode;
  readonly pvm: Machine;
  readonly svm: Machine;
  readonly clients: readonly ClientView[];
  readonly config: PrimaryConfig;
  /** What the secondary may retain. */
  readonly retainedBytesMax: number;
  readonly peerTimeoutUs: Micros;
  /** The links between the guests and their nodes duplicate frames. */
  readonly isGuestPathDuplicating: boolean;
  /** What each guest remembers having sent. */
  recordOf(machine: Machine): GuestRecord;
  /** The SVM runs from a state of the PVM, saved since the SVM was booted. */
  readonly isSvmSynced: boolean;
  /** The VM layer is between pausing the guests and letting both nodes know how it ended. */
  readonly isCheckpointUnderWay: boolean;
  /** When the SVM last lost what it held (its node died). */
  readonly svmLostUs: Micros;
  /** When the peer link became unable to carry; NEVER while it can. */
  readonly linkBrokenSinceUs: Micros;
  /** When the primary last got bytes of its peer. */
  readonly primaryHeardUs: Micros;
  /** The arbiter has let the secondary take over. */
  readonly isFailoverGranted: boolean;
  /** No node holds the service any more: the primary died while it was unprotected. */
  readonly isOutage: boolean;
  /** A checkpoint was requested and has neither ended nor been given up. */
  readonly isRequestOpen: boolean;
  /** When a node or a clock was last disturbed (hang, jump): bounds count from there. */
  readonly disturbedUs: Micros;
  /** The first report ends the run. */
  broken(guarantee: Guarantee, text: string): void;
}

/** A checker implements what it needs. */
export interface Checker {
  readonly guarantee: Guarantee;
  /** A frame that the primary's engine is about to get from its guest. */
  onGuestInput?(node: ProxyNode, frame: SimFrame): void;
  /** A frame from the network that is about to reach a node. */
  onNetInput?(node: ProxyNode, frame: SimFrame): void;
  /** A frame that a node sends to the network; `state`: the engine's when it handed it out. */
  onNetOutput?(node: ProxyNode, frame: SimFrame, state: NodeState): void;
  onGuestOutput?(node: ProxyNode, frame: SimFrame): void;
  onEvent?(node: ProxyNode, event: ProxyEvent): void;
  onRequest?(request: CheckpointRequest): void;
  /** A batch, tick or command of a node is over. */
  onSettled?(node: ProxyNode): void;
  /** The arbiter lets the secondary take over, now. */
  onFailover?(): void;
  /** From time to time. */
  onPulse?(): void;
  /** Faults have stopped and everything is quiet. */
  onEnd?(): void;
}
