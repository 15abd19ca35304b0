/**
 * A driver for the layer that runs the virtual machines (QEMU, libxl, a script): it is asked for
 * checkpoints, and it tells when they begin and commit.
 *
 * @module
 */
import type { CommandResult } from './engine.ts';
import type { CheckpointRequest } from './messages.ts';

/** What a driver may tell its node. Each call returns what the engine said. */
export interface VmEvents {
  /** Both guests are paused. Resolves when this node and its peer have drained their guests' output. */
  checkpointBegin(): Promise<CommandResult>;
  /** The SVM runs from the PVM's state. Resolves when both nodes know. */
  checkpointCommit(): Promise<CommandResult>;
  checkpointAbort(reason: string): Promise<CommandResult>;
  failover(force: boolean): Promise<CommandResult>;
  reset(reason: string): Promise<CommandResult>;
}

export interface VmDriver {
  /** As the user wrote it: `exec:/usr/local/bin/checkpoint`, `none`. */
  readonly name: string;
  start(events: VmEvents): Promise<void>;
  /** Asks for a checkpoint; never throws, failures are logged and the engine repeats its request. */
  requestCheckpoint(request: CheckpointRequest): void;
  close(): Promise<void>;
}
