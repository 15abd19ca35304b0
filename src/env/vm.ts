/**
 * A driver for the layer that runs the virtual machines (QEMU, libxl, a script): it is asked for
 * checkpoints, and it tells when they begin and commit.
 *
 * @module
 */
import type { CommandResult } from './engine.ts';
import type { CheckpointRequest, ProxyEvent } from './messages.ts';

/** What a driver may tell its node. Each call returns what the engine said; none ever rejects. */
export interface VmEvents {
  /** Both guests are paused. Resolves when this node and its peer have drained their guests' output. */
  checkpointBegin(): Promise<CommandResult>;
  /** The SVM runs from the PVM's state. Resolves when both nodes know. */
  checkpointCommit(): Promise<CommandResult>;
  checkpointAbort(reason: string): Promise<CommandResult>;
  failover(force: boolean): Promise<CommandResult>;
  reset(reason: string): Promise<CommandResult>;
  /**
   * The virtual machine of this node is dead, beyond doubt. A primary ends, without releasing what it holds, so that the
   * secondary sees its peer lost; a secondary tells its peer that there is no replica.
   */
  guestLost(reason: string): void;
  /** Something the driver saw or did: becomes a ProxyEvent of kind `vm`, and a line of the log. */
  report(text: string, fields?: Record<string, string | number | boolean>): void;
}

/** What `status` shows of a driver. */
export type VmStatus = Record<string, string | number | boolean>;

export interface VmDriver {
  /** As the user wrote it: `exec:/usr/local/bin/checkpoint`, `none`. */
  readonly name: string;
  /** Resolves when the driver is ready to be asked. The node's ports are open already, the peer may be absent. */
  start(events: VmEvents): Promise<void>;
  /** Asks for a checkpoint; never throws, failures are logged and the engine repeats its request. */
  requestCheckpoint(request: CheckpointRequest): void;
  /**
   * Everything that the engine reports, in order. A driver whose VM layer has to know of a takeover or a lost
   * peer acts here. Must not call its VmEvents synchronously; never throws.
   */
  onEvent(event: ProxyEvent): void;
  status(): VmStatus;
  /** Ends what the driver started (processes, sockets). No VmEvents is called any more. */
  close(): Promise<void>;
}
