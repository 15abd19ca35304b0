/**
 * The boundary between the pure engines and whoever runs them (daemon, simulator, tests).
 *
 * Calls into an engine come in batches: any number of `on...Frame` calls with the same `nowUs`, then one
 * `flush(nowUs)`. During a batch the engine calls its output synchronously. Memory that it passes to an output stays
 * valid and unchanged until the first call into the engine after `flush`; so a runner must have sent
 * (or copied) everything by then. Outputs are never called outside of a call into the engine.
 *
 * @module
 */
import type { Micros } from '../base/time.ts';
import type { FrameBuffer, FrameKeeper } from './frame.ts';
import type {
  CheckpointRequest,
  LinkFrameKind,
  LinkMessage,
  NodeState,
  ProxyEvent,
  Role,
} from './messages.ts';

/** What an engine may do to the world. */
export interface EngineOutput {
  /** Where frames come from that wait elsewhere for what becomes of their copies. */
  readonly keeper?: FrameKeeper | undefined;
  /** To the network (clients). */
  sendToNet(buffer: FrameBuffer, offset: number, length: number): void;
  /** To this node's guest. */
  sendToGuest(buffer: FrameBuffer, offset: number, length: number): void;
  /** To the peer node; frames and messages keep their order on the link. */
  sendFrameToPeer(
    kind: LinkFrameKind,
    epoch: number,
    buffer: FrameBuffer,
    offset: number,
    length: number,
  ): void;
  sendMessageToPeer(message: LinkMessage): void;
  /** Primary only: asks the VM layer for a checkpoint. */
  requestCheckpoint(request: CheckpointRequest): void;
  event(event: ProxyEvent): void;
}

/** Why a command was refused; `ok` when it was carried out (or begun). */
export type CommandResult = { readonly ok: true } | { readonly ok: false; readonly error: string };

/** What both engines offer. */
export interface Engine {
  readonly role: Role;
  readonly state: NodeState;
  readonly epoch: number;
  /** A frame from the network port (towards the guest). */
  onNetFrame(buffer: FrameBuffer, offset: number, length: number, nowUs: Micros): void;
  /** A frame that this node's guest sent. */
  onGuestFrame(buffer: FrameBuffer, offset: number, length: number, nowUs: Micros): void;
  /** A frame from the peer link, with the epoch that the peer wrote on it. */
  onPeerFrame(
    kind: LinkFrameKind,
    epoch: number,
    buffer: FrameBuffer,
    offset: number,
    length: number,
    nowUs: Micros,
  ): void;
  onPeerMessage(message: LinkMessage, nowUs: Micros): void;
  /** The link is up and both hellos were accepted. `peerEpoch` is the epoch in the peer's hello. */
  onPeerUp(peerEpoch: number, nowUs: Micros): void;
  /**
   * The link is gone. `hold` (primary only): nothing is released until the peer is back, a reset, or another call
   * without `hold`; until then no checkpoint is asked for, and the state's reason says so.
   */
  onPeerDown(reason: string, nowUs: Micros, hold?: boolean): void;
  /**
   * Both guests are paused, and the runner has drained the guest port of what the guest sent before.
   * Idempotent while checkpointing.
   */
  checkpointBegin(nowUs: Micros): CommandResult;
  /** The SVM runs from the PVM's state. Without a begin (one-message VM layers) both edges fall together. */
  checkpointCommit(nowUs: Micros): CommandResult;
  /** The checkpoint failed; the node goes unprotected. */
  checkpointAbort(reason: string, nowUs: Micros): CommandResult;
  /** Secondary only. Refused while the peer link is up, or before a first commit, unless forced. */
  failover(force: boolean, nowUs: Micros): CommandResult;
  /** Back to unprotected; on the primary held output is released. */
  reset(reason: string, nowUs: Micros): CommandResult;
  /** Ends a batch. */
  flush(nowUs: Micros): void;
  /** Does everything that is due; calls `flush` itself. */
  onTick(nowUs: Micros): void;
  /** When `onTick` is wanted next; NEVER when nothing waits. */
  nextDeadlineUs(): Micros;
  status(nowUs: Micros): EngineStatus;
  /** Flows for `ctl flows`, at most `countMax`. */
  flows(countMax: number): FlowStatus[];
}

export interface EngineStatus {
  readonly role: Role;
  readonly state: NodeState;
  /** Why the state last changed. */
  readonly reason: string;
  readonly epoch: number;
  readonly flows: number;
  readonly held: { readonly frames: number; readonly bytes: number };
  /** Frames of the guest that went to the network. */
  readonly released: number;
  /** Frames of the guest whose every byte was found equal. */
  readonly compared: number;
  /** Frames not passed on, by reason. */
  readonly dropped: Record<string, number>;
  /** Other countings by name (ackLowered, pureAcksSent, sackTrimmed, passListed, adjusted ...). */
  readonly counters: Record<string, number>;
  readonly divergences: number;
  readonly checkpoints: { readonly requested: number; readonly committed: number };
  /** How long released frames were held. */
  readonly latencyUs: { readonly p50: number; readonly p99: number; readonly max: number };
  /** Secondary: a state was committed and the SVM may take over. */
  readonly failoverReady: boolean;
}

export interface FlowStatus {
  readonly flow: string;
  readonly tcpState: string;
  readonly heldFrames: number;
  readonly heldBytes: number;
  readonly detail: Record<string, string | number | boolean>;
}
