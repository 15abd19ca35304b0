/**
 * The primary engine: gives client frames to both guests, compares what the guests answer, releases what is
 * equal, holds what is not until a checkpoint has been committed.
 *
 *     UNPROTECTED --peer up--> SYNCING --first commit--> PROTECTED <--commit-- CHECKPOINTING
 *          ^                                                |  ------begin------>  ^
 *          +------------- peer down, reset, abort, VM layer silent ----------------+
 *
 * Unprotected and syncing, the PVM's output passes; only its numbers are tracked. While checkpointing, whatever
 * arrives from clients and from the PVM is kept, and taken up again after the commit, in the new epoch.
 *
 * @module
 */
import { Histogram } from '../base/histogram.ts';
import { type Micros, NEVER } from '../base/time.ts';
import { TimerWheel } from '../base/timer-wheel.ts';
import type {
  CommandResult,
  Engine,
  EngineOutput,
  EngineStatus,
  FlowStatus,
} from '../env/engine.ts';
import type { FrameBuffer } from '../env/frame.ts';
import {
  type CheckpointCause,
  LINK_FRAME_CLIENT,
  LINK_FRAME_PRIMARY_SYN,
  LINK_FRAME_SECONDARY,
  type LinkFrameKind,
  type LinkMessage,
  type NodeState,
  type ProxyEvent,
} from '../env/messages.ts';
import { DROP_REASON_NAMES, dissect, FRAME_OK, FrameInfo } from '../wire/frame.ts';
import { TCP_SYN } from '../wire/tcp.ts';
import { TcpOptions } from '../wire/tcp-options.ts';
import { CheckpointRequests } from './checkpoint-requests.ts';
import { OK } from './command-result.ts';
import type { PrimaryConfig } from './config.ts';
import { Counters } from './counters.ts';
import { FramePool } from './frame-pool.ts';
import { KeptFrames } from './kept-frames.ts';
import { isLinkControl } from './link-control.ts';
import { AddressReport } from './primary-addresses.ts';
import { createPrimaryCounts, type PrimaryContext, type PrimaryFlow } from './primary-context.ts';
import { PrimaryFlows } from './primary-flows.ts';
import type { RecordSink, StreamRecord } from './primary-lent.ts';
import { PAIR_NONE, type PairResult } from './primary-lockstep.ts';
import { HeldMemory } from './primary-memory.ts';
import { ProgressReport } from './primary-progress.ts';

export class PrimaryEngine implements Engine {
  readonly role = 'primary';
  readonly #config: PrimaryConfig;
  readonly #output: EngineOutput;
  readonly #pool: FramePool;
  readonly #memory: HeldMemory;
  readonly #wheel: TimerWheel<PrimaryFlow>;
  readonly #dropped = new Counters();
  readonly #counters = new Counters();
  readonly #counts = createPrimaryCounts();
  readonly #latency = new Histogram();
  readonly #info = new FrameInfo();
  readonly #context: PrimaryContext;
  readonly #flows: PrimaryFlows;
  readonly #requests: CheckpointRequests;
  readonly #progress: ProgressReport;
  readonly #addresses = new AddressReport();
  /** Kept between begin and commit: frames of clients, and of the PVM in the new epoch. */
  readonly #keptClient: KeptFrames;
  readonly #keptGuest: KeptFrames;
  #dirty: PrimaryFlow[] = [];
  #state: NodeState = 'unprotected';
  #reason = 'started';
  #epoch = 0;
  #peerUp = false;
  /** The peer is lost, and it is not decided yet whether this node serves without it. */
  #isHolding = false;
  /** Between begin and commit: has the secondary answered, and when did it begin. */
  #beganAtUs: Micros = 0;
  #beganByPeer = false;
  #commitSent = false;
  /** A begun checkpoint was undone, not by the VM layer: its commit may still come, of a copy that is older than what went out since. */
  #isUndone = false;
  #divergences = 0;
  #committed = 0;
  #inBatch = false;

  constructor(config: PrimaryConfig, output: EngineOutput, nowUs: Micros) {
    this.#config = config;
    this.#output = output;
    this.#pool = new FramePool(output.keeper);
    this.#wheel = new TimerWheel(nowUs);
    this.#memory = new HeldMemory(config, this.#pool, this.#dropped, (flow) =>
      this.#wantForFlow(flow, 'limit', -1, '', ''),
    );
    this.#keptClient = new KeptFrames(this.#pool, config.keptClientBytesMax);
    // Twice the limit is the hard one, as in `HeldMemory`; the guest is paused, so only a fault reaches it.
    this.#keptGuest = new KeptFrames(this.#pool, 2 * config.heldBytesMax);
    this.#requests = new CheckpointRequests(config);
    this.#context = this.#makeContext(nowUs);
    this.#flows = new PrimaryFlows(this.#context, config);
    this.#progress = new ProgressReport(this.#flows, output, nowUs);
  }

  get state(): NodeState {
    return this.#state;
  }

  get epoch(): number {
    return this.#epoch;
  }

  // ------------------------------------------------------------------ frames

  onNetFrame(buffer: FrameBuffer, offset: number, length: number, nowUs: Micros): void {
    this.#begin(nowUs);
    if (this.#state === 'checkpointing') {
      if (!this.#keptClient.push(buffer, offset, length)) this.#dropped.add('client-kept-limit');
      return;
    }
    this.#deliverClient(buffer, offset, length);
  }

  onGuestFrame(buffer: FrameBuffer, offset: number, length: number, nowUs: Micros): void {
    this.#begin(nowUs);
    if (this.#state === 'checkpointing') {
      if (!this.#keptGuest.push(buffer, offset, length)) this.#dropped.add('guest-kept-limit');
      return;
    }
    this.#guestOutput(buffer, offset, length);
  }

  onPeerFrame(
    kind: LinkFrameKind,
    epoch: number,
    buffer: FrameBuffer,
    offset: number,
    length: number,
    nowUs: Micros,
  ): void {
    this.#begin(nowUs);
    if (kind !== LINK_FRAME_SECONDARY) {
      this.#dropped.add('peer-unexpected-frame');
      return;
    }
    if (this.#state !== 'protected') {
      this.#dropped.add('secondary-not-protected');
      return;
    }
    if (epoch !== this.#epoch) {
      this.#dropped.add('secondary-old-epoch');
      return;
    }
    this.#secondaryOutput(buffer, offset, length);
  }

  /**
   * The heads of both guests' streams, read by `readPlainSegment`: see PairResult for what the caller has to do. Undefined: that stream is
   * empty; only one may be. `record`: the PVM's.
   */
  onHeads(
    primary: FrameInfo | undefined,
    secondary: FrameInfo | undefined,
    record: StreamRecord,
    sink: RecordSink,
    nowUs: Micros,
  ): PairResult {
    this.#begin(nowUs);
    if (this.#state !== 'protected') return PAIR_NONE;
    return this.#flows.onHeads(primary, secondary, record, sink);
  }

  // ------------------------------------------------------------------ peer

  onPeerUp(peerEpoch: number, nowUs: Micros): void {
    this.#begin(nowUs);
    this.#peerUp = true;
    this.#addresses.onPeerUp();
    this.#epoch = Math.max(this.#epoch, peerEpoch);
    if (this.#state !== 'unprotected') this.#unprotect('peer joined anew');
    this.#event('peer-up', 'The secondary has joined');
    this.#setState('syncing', 'peer joined, waiting for the first commit');
    this.#want('sync', '');
  }

  onPeerDown(reason: string, nowUs: Micros, hold = false): void {
    this.#begin(nowUs);
    if (!this.#peerUp && !this.#isHolding) return;
    if (this.#peerUp) this.#event('peer-down', reason);
    this.#peerUp = false;
    if (hold && (this.#state === 'protected' || this.#state === 'checkpointing')) {
      this.#isHolding = true;
      this.#requests.clear();
      this.#beganAtUs = NEVER; // a checkpoint under way stays so: the secondary may have committed it
      this.#setState(this.#state, `peer lost, output is held: ${reason}`);
      return;
    }
    this.#unprotect(`peer lost: ${reason}`);
  }

  onPeerMessage(message: LinkMessage, nowUs: Micros): void {
    this.#begin(nowUs);
    switch (message.type) {
      case 'checkpoint-began':
        this.#onPeerBegan(message.epoch);
        return;
      case 'checkpoint-committed':
        this.#onPeerCommitted(message.epoch);
        return;
      case 'checkpoint-request':
        if (this.#state !== 'protected') return;
        this.#want('secondary-request', message.text);
        return;
      case 'reset':
        this.#onPeerReset(message.reason);
        return;
      default:
        this.#dropped.add('peer-unexpected-message');
    }
  }

  // ------------------------------------------------------------------ commands

  checkpointBegin(nowUs: Micros): CommandResult {
    this.#begin(nowUs);
    if (this.#state === 'checkpointing') return OK;
    if (!this.#peerUp) return { ok: false, error: 'Cannot begin a checkpoint: no secondary' };
    this.#requests.onBegin();
    this.#isUndone = false;
    this.#beganAtUs = nowUs;
    this.#beganByPeer = false;
    this.#commitSent = false;
    this.#setState('checkpointing', 'checkpoint begun');
    this.#output.sendMessageToPeer({ type: 'checkpoint-begin', epoch: this.#epoch + 1 });
    return OK;
  }

  checkpointCommit(nowUs: Micros): CommandResult {
    const isUndone = this.#isUndone;
    this.#isUndone = false;
    if (isUndone) return { ok: false, error: 'Cannot commit: that checkpoint was undone' };
    const begun = this.checkpointBegin(nowUs);
    if (!begun.ok) return begun;
    if (this.#commitSent) return OK;
    this.#commitSent = true;
    this.#addresses.tell(this.#output);
    this.#output.sendMessageToPeer({ type: 'checkpoint-commit', epoch: this.#epoch + 1 });
    return OK;
  }

  checkpointAbort(reason: string, nowUs: Micros): CommandResult {
    this.#begin(nowUs);
    // Also of one that was undone already: then no commit of it will come.
    this.#isUndone = false;
    if (this.#state !== 'checkpointing') {
      return { ok: false, error: `Cannot abort a checkpoint: the node is ${this.#state}` };
    }
    const epoch = this.#epoch + 1;
    this.#event('checkpoint-aborted', reason, { epoch });
    if (this.#peerUp) this.#output.sendMessageToPeer({ type: 'checkpoint-abort', epoch, reason });
    this.#fallBack(`checkpoint aborted: ${reason}`);
    this.#isUndone = false;
    return OK;
  }

  failover(_force: boolean, _nowUs: Micros): CommandResult {
    return { ok: false, error: 'Cannot fail over: this is the primary, it serves already' };
  }

  reset(reason: string, nowUs: Micros): CommandResult {
    this.#begin(nowUs);
    this.#event('reset', reason);
    if (this.#peerUp) this.#output.sendMessageToPeer({ type: 'reset', reason });
    this.#unprotect(`reset: ${reason}`);
    return OK;
  }

  // ------------------------------------------------------------------ time

  flush(nowUs: Micros): void {
    this.#begin(nowUs);
    const dirty = this.#dirty;
    if (dirty.length > 0) {
      this.#dirty = [];
      for (const flow of dirty) {
        flow.dirty = false;
        if (this.#state === 'protected') flow.onFlush();
        if (flow.progressed && this.#config.reportsProgress) this.#progress.add(flow);
      }
    }
    this.#progress.flush(nowUs, this.#state === 'protected');
    this.#sendRequest(nowUs);
    this.#inBatch = false;
  }

  onTick(nowUs: Micros): void {
    this.#begin(nowUs);
    this.#wheel.advance(nowUs, (flow) => this.#onFlowDue(flow));
    this.#flows.expire(nowUs);
    if (nowUs >= this.#commitByUs()) {
      this.checkpointAbort('not committed in time', nowUs);
      this.#isUndone = true;
    }
    if (this.#requests.givenUp(nowUs)) this.#onRequestsIgnored();
    this.flush(nowUs);
  }

  nextDeadlineUs(): Micros {
    return Math.min(
      this.#wheel.nextUs(),
      this.#flows.nextUs(),
      this.#requests.nextUs(),
      this.#progress.nextUs(),
      this.#commitByUs(),
    );
  }

  #commitByUs(): Micros {
    const { checkpointCommitTimeoutUs } = this.#config;
    return this.#state === 'checkpointing' ? this.#beganAtUs + checkpointCommitTimeoutUs : NEVER;
  }

  // ------------------------------------------------------------------ status

  status(_nowUs: Micros): EngineStatus {
    const { compared, released, ...counts } = this.#counts;
    const latency = this.#latency;
    return {
      role: 'primary',
      state: this.#state,
      reason: this.#reason,
      epoch: this.#epoch,
      flows: this.#flows.size,
      held: this.#memory.held,
      released,
      compared,
      dropped: this.#dropped.toRecord(),
      counters: { ...counts, ...this.#counters.toRecord() },
      divergences: this.#divergences,
      checkpoints: { requested: this.#requests.requested, committed: this.#committed },
      latencyUs: { p50: latency.quantile(0.5), p99: latency.quantile(0.99), max: latency.max },
      failoverReady: false,
    };
  }

  flows(countMax: number): FlowStatus[] {
    return this.#flows.list(countMax);
  }

  // ------------------------------------------------------------------ details: batches

  #begin(nowUs: Micros): void {
    this.#context.nowUs = nowUs;
    if (this.#inBatch) return;
    this.#inBatch = true;
    this.#pool.reclaim();
  }

  #makeContext(nowUs: Micros): PrimaryContext {
    const memory = this.#memory;
    return {
      config: this.#config,
      pool: this.#pool,
      wheel: this.#wheel,
      dropped: this.#dropped,
      counters: this.#counters,
      counts: this.#counts,
      latency: this.#latency,
      scratchInfo: new FrameInfo(),
      scratchOptions: new TcpOptions(),
      nowUs,
      emit: (buffer, offset, length) => {
        this.#counts.released++;
        this.#output.sendToNet(buffer, offset, length);
      },
      hold: (flow, buffer, offset, length) => memory.hold(flow, buffer, offset, length),
      unhold: (flow, frame) => memory.unhold(flow, frame),
      lend: (flow, slotBytes) => memory.lend(flow, slotBytes),
      unlend: (flow, slotBytes) => memory.unlend(flow, slotBytes),
      moveLent: (slotBytes) => memory.moveLent(slotBytes),
      want: (flow, cause, offset, primaryExcerpt, secondaryExcerpt) =>
        this.#wantForFlow(flow, cause, offset, primaryExcerpt, secondaryExcerpt),
      markDirty: (flow) => {
        if (flow.dirty) return;
        flow.dirty = true;
        this.#dirty.push(flow);
      },
    };
  }

  // ------------------------------------------------------------------ details: clients

  #deliverClient(buffer: FrameBuffer, offset: number, length: number): void {
    const info = this.#info;
    const result = dissect(buffer, offset, length, info);
    if (result === FRAME_OK) this.#flows.onClientFrame(info);
    else this.#counters.add(`client-${DROP_REASON_NAMES[result] ?? 'malformed'}`);
    // A malformed frame is the guests' own affair: both get it, as they would without us.
    this.#output.sendToGuest(buffer, offset, length);
    if (this.#state === 'protected') {
      this.#output.sendFrameToPeer(LINK_FRAME_CLIENT, this.#epoch, buffer, offset, length);
    }
  }

  // ------------------------------------------------------------------ details: PVM output

  #guestOutput(buffer: FrameBuffer, offset: number, length: number): void {
    const info = this.#info;
    const result = dissect(buffer, offset, length, info);
    if (result !== FRAME_OK) {
      this.#dropped.add(`guest-${DROP_REASON_NAMES[result] ?? 'malformed'}`);
      return;
    }
    const isControl = isLinkControl(info);
    this.#addresses.onGuestFrame(info, isControl);
    if (this.#state !== 'protected') {
      this.#flows.track(info);
      this.#context.emit(buffer, offset, length);
      return;
    }
    if (isControl || this.#flows.isPassListed(info)) {
      this.#context.emit(buffer, offset, length);
      return;
    }
    if ((info.tcpFlags & TCP_SYN) !== 0) {
      const kind = LINK_FRAME_PRIMARY_SYN;
      this.#output.sendFrameToPeer(kind, this.#epoch, buffer, offset, length);
    }
    this.#flows.onPrimaryFrame(buffer, info);
  }

  #secondaryOutput(buffer: FrameBuffer, offset: number, length: number): void {
    const info = this.#info;
    const result = dissect(buffer, offset, length, info);
    if (result !== FRAME_OK) {
      this.#dropped.add(`secondary-${DROP_REASON_NAMES[result] ?? 'malformed'}`);
      return;
    }
    if (isLinkControl(info) || this.#flows.isPassListed(info)) {
      this.#counters.add('secondaryNotCompared');
      return;
    }
    this.#flows.onSecondaryFrame(buffer, info);
  }

  // ------------------------------------------------------------------ details: checkpoints

  #wantForFlow(
    flow: PrimaryFlow,
    cause: CheckpointCause,
    offset: number,
    primaryExcerpt: string,
    secondaryExcerpt: string,
  ): void {
    // A SYN of the SVM from before the peer was lost may differ from one that passes now.
    if (this.#state !== 'protected') return;
    const name = this.#flows.describe(flow);
    const wish = { cause, flow: name, offset, primaryExcerpt, secondaryExcerpt };
    if (!flow.reported) {
      flow.reported = true;
      this.#divergences++;
      this.#event('divergence', `${cause} in ${name}`, {
        cause,
        flow: name,
        offset,
        primary: primaryExcerpt,
        secondary: secondaryExcerpt,
      });
    }
    if (!this.#isHolding) this.#requests.want(wish, this.#context.nowUs);
  }

  #want(cause: CheckpointCause, text: string): void {
    const wish = { cause, flow: text, offset: -1, primaryExcerpt: '', secondaryExcerpt: '' };
    this.#requests.want(wish, this.#context.nowUs);
  }

  #sendRequest(nowUs: Micros): void {
    const request = this.#requests.take(nowUs);
    if (request === undefined) return;
    this.#event('checkpoint-requested', `${request.cause} ${request.flow}`.trim(), {
      id: request.id,
      cause: request.cause,
      delayUs: request.delayUs,
    });
    this.#output.requestCheckpoint(request);
  }

  #onPeerBegan(epoch: number): void {
    if (this.#state !== 'checkpointing' || epoch !== this.#epoch + 1 || this.#beganByPeer) return;
    this.#beganByPeer = true;
    this.#event('checkpoint-begun', `epoch ${epoch}`, { epoch });
  }

  /** The secondary knows the commit: only now may the client see what the checkpoint covers. */
  #onPeerCommitted(epoch: number): void {
    if (this.#state !== 'checkpointing' || !this.#commitSent || epoch !== this.#epoch + 1) {
      this.#dropped.add('peer-unexpected-message');
      return;
    }
    const nowUs = this.#context.nowUs;
    this.#epoch = epoch;
    this.#committed++;
    this.#flows.releaseAll();
    this.#flows.adoptCheckpoint(epoch);
    this.#progress.clear();
    this.#requests.onEnd(nowUs);
    this.#setState('protected', 'checkpoint committed');
    this.#event('checkpoint-committed', `epoch ${epoch}`, {
      epoch,
      durationUs: nowUs - this.#beganAtUs,
    });
    this.#takeUpKept();
  }

  /** A commit that crosses the reset would make the secondary ready again: it has to know that this node serves alone. */
  #onPeerReset(reason: string): void {
    const why = `secondary reset: ${reason}`;
    const abort: LinkMessage = { type: 'checkpoint-abort', epoch: this.#epoch + 1, reason: why };
    if (this.#state === 'checkpointing') this.#output.sendMessageToPeer(abort);
    this.#unprotect(why);
  }

  /** What was kept since begin goes its ordinary way, guest output first: it was sent before the client's could reach the guest. */
  #takeUpKept(): void {
    this.#keptGuest.drain((buffer, offset, length) => this.#guestOutput(buffer, offset, length));
    this.#keptClient.drain((buffer, offset, length) => this.#deliverClient(buffer, offset, length));
  }

  /** The protection is lost although the peer is there: sync anew. */
  #fallBack(reason: string): void {
    if (this.#isHolding) {
      if (this.#state === 'checkpointing' && !this.#commitSent) this.#isUndone = true;
      if (this.#state === 'checkpointing') this.#epoch++;
      this.#setState('protected', `peer lost, output is held: ${reason}`);
      this.#takeUpKept();
      return;
    }
    this.#unprotect(reason);
    if (!this.#peerUp) return;
    this.#setState('syncing', reason);
    this.#want('sync', '');
  }

  #onRequestsIgnored(): void {
    this.#counters.add('requestsIgnored');
    if (this.#state === 'syncing') {
      // Nothing is held and nothing is lost: go on asking.
      this.#requests.onEnd(this.#context.nowUs);
      this.#want('sync', '');
      return;
    }
    const reason = 'the VM layer does not answer checkpoint requests';
    // The secondary has to know: its SVM is no replica of what goes out from here on.
    this.#output.sendMessageToPeer({ type: 'checkpoint-abort', epoch: this.#epoch, reason });
    this.#fallBack(reason);
  }

  /** Everything held goes out: from here on the node serves without protection, and says so (G9). */
  #unprotect(reason: string): void {
    const wasHolding = this.#state === 'protected' || this.#state === 'checkpointing';
    if (this.#state === 'checkpointing' && !this.#commitSent) this.#isUndone = true;
    // The number of a checkpoint that did not end well is spent: the secondary may have committed it, its answer be on the way.
    if (this.#state === 'checkpointing') this.#epoch++;
    this.#isHolding = false;
    this.#requests.clear();
    this.#requests.onEnd(this.#context.nowUs);
    this.#setState('unprotected', reason);
    if (wasHolding) this.#flows.releaseAll();
    this.#progress.clear();
    this.#takeUpKept();
  }

  #onFlowDue(flow: PrimaryFlow): void {
    if (this.#state !== 'protected') {
      // Nothing may be held then, but for the flows of a checkpoint under way: its commit releases them.
      if (this.#state === 'checkpointing' && flow.heldBytes > 0) {
        this.#wheel.arm(flow, this.#context.nowUs + this.#config.compareTimeoutUs);
      }
      return;
    }
    this.#flows.onDue(flow);
  }

  #setState(state: NodeState, reason: string): void {
    if (this.#state === state && this.#reason === reason) return;
    const from = this.#state;
    this.#state = state;
    this.#reason = reason;
    this.#event('state', `${from} -> ${state}: ${reason}`, { from, to: state, reason });
  }

  #event(kind: ProxyEvent['kind'], text: string, fields?: ProxyEvent['fields']): void {
    const event: ProxyEvent = { atUs: this.#context.nowUs, kind, text };
    this.#output.event(fields === undefined ? event : { ...event, fields });
  }
}
