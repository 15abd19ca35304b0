/**
 * The secondary engine: gives the clients' frames to the SVM in its numbers, and the SVM's output to the primary in the
 * PVM's; takes over when the primary is dead.
 *
 *     UNPROTECTED --peer up--> SYNCING --begin--> CHECKPOINTING <--begin-- PROTECTED
 *          ^                                           |   ------commit------>  ^
 *          +---- peer down, reset -----------<---------+ abort: SYNCING         |
 *     any of them, with a committed state: --failover--> FAILED-OVER
 *
 * The primary is the authority on checkpoints: begin, commit and abort come as link messages. VM layers that tell both
 * nodes may tell this one too; whichever comes first counts, the other changes nothing.
 *
 * | frames | syncing, unprotected | protected | checkpointing | failed over |
 * | --- | --- | --- | --- | --- |
 * | client's, from the link | dropped | translated, to the SVM | kept until the commit | dropped |
 * | SVM's output | dropped | translated, to the primary | kept until the commit | translated, to the network |
 * | SVM's ARP, discovery, groups | answered here | answered here | answered here | to the network |
 * | network's | dropped | the last, if TCP to the guest, kept for a failover | the same | translated, to the SVM |
 *
 * With the primary merely lost (no new one has joined) the SVM runs on, and its output is retained for a failover.
 *
 * @module
 */
import { assert } from '../base/assert.ts';
import { type Micros, NEVER } from '../base/time.ts';
import type {
  CommandResult,
  Engine,
  EngineOutput,
  EngineStatus,
  FlowStatus,
} from '../env/engine.ts';
import type { FrameBuffer } from '../env/frame.ts';
import {
  LINK_FRAME_CLIENT,
  LINK_FRAME_PRIMARY_SYN,
  LINK_FRAME_SECONDARY,
  type LinkFrameKind,
  type LinkMessage,
  type NodeState,
  type ProxyEvent,
} from '../env/messages.ts';
import { DROP_REASON_NAMES, dissect, FRAME_OK, FrameInfo } from '../wire/frame.ts';
import { OK, refuse } from './command-result.ts';
import type { SecondaryConfig } from './config.ts';
import { Counters } from './counters.ts';
import { FramePool } from './frame-pool.ts';
import { GuestAddresses } from './guest-addresses.ts';
import { heldTogether, KeptFrames } from './kept-frames.ts';
import { isLinkControl } from './link-control.ts';
import { Neighbours } from './neighbours.ts';
import { OverheardFrames } from './overheard.ts';
import { Retention } from './retention.ts';
import { SecondaryFlows } from './secondary-flows.ts';
import { Takeover } from './secondary-takeover.ts';

export class SecondaryEngine implements Engine {
  readonly role = 'secondary';
  readonly #output: EngineOutput;
  readonly #pool = new FramePool();
  readonly #dropped = new Counters();
  readonly #counters = new Counters();
  readonly #info = new FrameInfo();
  readonly #guest = new GuestAddresses();
  readonly #neighbours: Neighbours;
  readonly #retention: Retention;
  readonly #flows: SecondaryFlows;
  readonly #takeover: Takeover;
  readonly #overheard = new OverheardFrames(this.#pool, this.#guest);
  /** Client frames, and output of an SVM that runs again already, between begin and commit. */
  readonly #keptClient: KeptFrames;
  readonly #keptGuest: KeptFrames;
  #state: NodeState = 'unprotected';
  #reason = 'started';
  #epoch = 0;
  #peerUp = false;
  /** A state was committed, and nothing has made the SVM's worthless since. */
  #ready = false;
  /** Between begin and commit: the epoch that the commit will open. */
  #pendingEpoch: number | undefined;
  /** A checkpoint that was aborted here: the primary's commit of it may still be under way, and changes nothing. */
  #abortedEpoch = 0;
  /** Of the primary's last begin. However that checkpoint ended, the primary's next has the number after it. */
  #primaryEpoch = 0;
  /** Committed by the VM layer's word alone: the primary, which has begun it, takes no output of this epoch before its own commit. */
  #isAhead = false;
  /** The last commit was the primary's word, and the SVM has sent nothing since: the VM layer's word of it may still come. */
  #awaitsWord = false;
  /** A checkpoint was asked for in this epoch. */
  #hasRequested = false;
  #released = 0;
  #requested = 0;
  #committed = 0;
  #nowUs: Micros;
  #inBatch = false;

  constructor(config: SecondaryConfig, output: EngineOutput, nowUs: Micros) {
    this.#output = output;
    this.#nowUs = nowUs;
    this.#keptClient = new KeptFrames(this.#pool, config.keptClientBytesMax);
    this.#keptGuest = new KeptFrames(this.#pool, config.keptClientBytesMax);
    this.#retention = new Retention(this.#pool, config.retainedBytesMax, this.#dropped);
    this.#neighbours = new Neighbours(this.#pool, this.#guest, (buffer, offset, length) => {
      output.sendToGuest(buffer, offset, length);
    });
    this.#flows = new SecondaryFlows(
      config,
      this.#retention,
      this.#counters,
      this.#dropped,
      (text) => this.#requestCheckpoint(text),
      nowUs,
    );
    this.#takeover = new Takeover({
      pool: this.#pool,
      flows: this.#flows,
      retention: this.#retention,
      guest: this.#guest,
      neighbours: this.#neighbours,
      counters: this.#counters,
      dropped: this.#dropped,
      sendToNet: (buffer, offset, length) => this.#sendToNet(buffer, offset, length),
    });
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
    if (this.#state !== 'failed-over') {
      if (this.#ready) this.#overheard.hear(buffer, offset, length, nowUs);
      this.#dropped.add('net-before-failover');
      return;
    }
    this.#deliverClient(buffer, offset, length);
  }

  onGuestFrame(buffer: FrameBuffer, offset: number, length: number, nowUs: Micros): void {
    this.#begin(nowUs);
    const info = this.#info;
    const result = dissect(buffer, offset, length, info);
    if (this.#state === 'failed-over') {
      // What cannot be read cannot be translated either; a bridge would pass it.
      if (result === FRAME_OK) this.#serve(info);
      this.#sendToNet(buffer, offset, length);
      return;
    }
    if (result !== FRAME_OK) {
      this.#dropped.add(`guest-${DROP_REASON_NAMES[result] ?? 'malformed'}`);
      return;
    }
    if (isLinkControl(info)) {
      this.#neighbours.onGuestFrame(info);
      this.#dropped.add('guest-link-control');
      return;
    }
    if (info.ipVersion !== 0) this.#guest.onGuestIp(info);
    if (this.#pendingEpoch !== undefined || this.#isAhead) {
      if (!this.#keptGuest.push(buffer, offset, length)) this.#dropped.add('guest-kept-limit');
      return;
    }
    this.#sendOutput(info);
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
    if (this.#state === 'failed-over') {
      this.#dropped.add('peer-after-failover');
      return;
    }
    if (kind === LINK_FRAME_CLIENT) this.#onPeerClient(epoch, buffer, offset, length);
    else if (kind === LINK_FRAME_PRIMARY_SYN) this.#onPeerSyn(epoch, buffer, offset, length);
    else this.#dropped.add('peer-unexpected-frame');
  }

  #onPeerClient(epoch: number, buffer: FrameBuffer, offset: number, length: number): void {
    const isKept = this.#pendingEpoch !== undefined;
    if (isKept || this.#state !== 'protected') {
      this.#learnNeighbour(buffer, offset, length);
      if (!isKept) this.#dropped.add('client-not-protected');
      else if (!this.#keptClient.push(buffer, offset, length))
        this.#dropped.add('client-kept-limit');
      return;
    }
    if (epoch < this.#epoch) {
      // The PVM had it before the checkpoint, so it is in the SVM's state.
      this.#dropped.add('client-old-epoch');
      return;
    }
    this.#deliverClient(buffer, offset, length);
  }

  #onPeerSyn(epoch: number, buffer: FrameBuffer, offset: number, length: number): void {
    const info = this.#info;
    if (epoch !== this.#epoch || !this.#ready) {
      this.#dropped.add('primary-syn-old-epoch');
      return;
    }
    if (dissect(buffer, offset, length, info) !== FRAME_OK) {
      this.#dropped.add('primary-syn-malformed');
      return;
    }
    this.#flows.onPrimarySyn(info);
  }

  // ------------------------------------------------------------------ peer

  onPeerUp(peerEpoch: number, nowUs: Micros): void {
    this.#begin(nowUs);
    this.#peerUp = true;
    this.#event('peer-up', 'The primary is there');
    if (this.#state === 'failed-over') return;
    // A new sync begins, perhaps with another primary: nothing of the old protection holds.
    this.#primaryEpoch = Math.max(this.#epoch, peerEpoch);
    this.#forgetProtection();
    this.#abortedEpoch = 0;
    this.#flows.clear();
    this.#setState('syncing', 'peer joined, waiting for the first commit');
  }

  onPeerDown(reason: string, nowUs: Micros): void {
    this.#begin(nowUs);
    if (!this.#peerUp) return;
    this.#peerUp = false;
    this.#event('peer-down', reason);
    if (this.#state === 'failed-over') return;
    this.#isAhead = false;
    this.#takeUpKept();
    // A checkpoint under way stays so: a VM layer that tells both nodes may still commit it here.
    this.#setState('unprotected', `peer lost: ${reason}`);
  }

  onPeerMessage(message: LinkMessage, nowUs: Micros): void {
    this.#begin(nowUs);
    if (this.#state === 'failed-over') {
      this.#dropped.add('peer-after-failover');
      return;
    }
    switch (message.type) {
      case 'checkpoint-begin':
        this.#primaryEpoch = message.epoch;
        // What was aborted before the primary has begun it was another one.
        this.#abortedEpoch = Math.min(this.#abortedEpoch, message.epoch - 1);
        this.#beginCheckpoint(message.epoch);
        this.#output.sendMessageToPeer({ type: 'checkpoint-began', epoch: message.epoch });
        return;
      case 'checkpoint-commit':
        if (message.epoch <= this.#abortedEpoch) {
          this.#dropped.add('commit-after-abort');
          return;
        }
        this.#commitCheckpoint(message.epoch, true);
        // Not for an epoch that was given up here: its state is worth nothing.
        if (this.#ready) {
          this.#output.sendMessageToPeer({ type: 'checkpoint-committed', epoch: message.epoch });
        }
        this.#isAhead = false;
        this.#takeUpKept();
        return;
      case 'checkpoint-abort':
        this.#onPeerAbort(message.reason);
        return;
      case 'progress':
        if (this.#state !== 'protected') return;
        for (const entry of message.entries) this.#flows.onProgress(entry);
        return;
      case 'guest-addresses':
        for (const address of message.addresses) this.#guest.adopt(address);
        this.#guest.isRouter = message.isRouter;
        return;
      case 'reset':
        this.#forgetProtection();
        this.#event('reset', `primary reset: ${message.reason}`);
        this.#setState('unprotected', `primary reset: ${message.reason}`);
        return;
      default:
        this.#dropped.add('peer-unexpected-message');
    }
  }

  // ------------------------------------------------------------------ commands

  checkpointBegin(nowUs: Micros): CommandResult {
    this.#begin(nowUs);
    if (this.#state === 'failed-over')
      return refuse('begin a checkpoint', 'this node has failed over');
    if (this.#pendingEpoch !== undefined) return OK;
    if (!this.#peerUp) return refuse('begin a checkpoint', 'no primary');
    this.#beginCheckpoint(this.#nextEpoch);
    return OK;
  }

  checkpointCommit(nowUs: Micros): CommandResult {
    this.#begin(nowUs);
    if (this.#state === 'protected' && this.#awaitsWord) {
      this.#awaitsWord = false;
      this.#flows.adoptCheckpoint();
      return OK;
    }
    // The primary may have died after a VM layer without a begin had copied its state: then the SVM runs from that
    // state, and is a replica if it was one before (the primary has released nothing that only it knew).
    const isLate = !this.#peerUp && this.#ready && this.#state !== 'failed-over';
    if (isLate && this.#pendingEpoch === undefined) this.#pendingEpoch = this.#nextEpoch;
    const begun = this.checkpointBegin(nowUs);
    if (!begun.ok) return begun;
    assert(this.#pendingEpoch !== undefined, 'a checkpoint has begun');
    this.#isAhead = this.#peerUp && this.#pendingEpoch === this.#primaryEpoch;
    this.#commitCheckpoint(this.#pendingEpoch, false);
    return OK;
  }

  checkpointAbort(reason: string, nowUs: Micros): CommandResult {
    this.#begin(nowUs);
    if (this.#pendingEpoch === undefined) {
      return refuse('abort a checkpoint', `none has begun, the node is ${this.#state}`);
    }
    this.#abortedEpoch = this.#pendingEpoch;
    this.#abortCheckpoint(reason);
    // Only the primary knows whether it goes on without protection; perhaps it is dead, and a failover comes next.
    const why = `checkpoint aborted: ${reason}`;
    if (!this.#peerUp) this.#setState('unprotected', why);
    else this.#setState(this.#ready ? 'protected' : 'syncing', why);
    return OK;
  }

  failover(force: boolean, nowUs: Micros): CommandResult {
    this.#begin(nowUs);
    if (this.#state === 'failed-over') return OK;
    if (!force && this.#peerUp)
      return refuse('fail over', 'the primary is there; force it if it is not');
    if (!force && !this.#ready) {
      return refuse('fail over', 'no state was committed, so the SVM is no replica; or force it');
    }
    this.#takeOver(force);
    return OK;
  }

  reset(reason: string, nowUs: Micros): CommandResult {
    this.#begin(nowUs);
    if (this.#state === 'failed-over') return refuse('reset', 'this node has failed over');
    this.#event('reset', reason);
    if (this.#peerUp) this.#output.sendMessageToPeer({ type: 'reset', reason });
    this.#forgetProtection();
    this.#setState('unprotected', `reset: ${reason}`);
    return OK;
  }

  // ------------------------------------------------------------------ time

  flush(nowUs: Micros): void {
    this.#begin(nowUs);
    this.#inBatch = false;
  }

  onTick(nowUs: Micros): void {
    this.#begin(nowUs);
    this.#flows.expire(nowUs);
    if (this.#state === 'failed-over') this.#takeover.onTick(nowUs);
    this.flush(nowUs);
  }

  nextDeadlineUs(): Micros {
    const takeoverUs = this.#state === 'failed-over' ? this.#takeover.nextUs() : NEVER;
    return Math.min(this.#flows.nextUs(), takeoverUs);
  }

  // ------------------------------------------------------------------ status

  status(_nowUs: Micros): EngineStatus {
    return {
      role: 'secondary',
      state: this.#state,
      reason: this.#reason,
      epoch: this.#epoch,
      flows: this.#flows.size,
      held: heldTogether(this.#retention, this.#keptClient, this.#keptGuest, this.#overheard),
      released: this.#released,
      compared: 0,
      dropped: this.#dropped.toRecord(),
      counters: {
        ...this.#flows.counts,
        neighbours: this.#neighbours.size,
        neighboursAnswered: this.#neighbours.answered,
        guestAddresses: this.#guest.size,
        retainedBytes: this.#retention.bytes,
        ...this.#counters.toRecord(),
      },
      divergences: 0,
      checkpoints: { requested: this.#requested, committed: this.#committed },
      latencyUs: { p50: 0, p99: 0, max: 0 },
      failoverReady: this.#ready,
    };
  }

  flows(countMax: number): FlowStatus[] {
    return this.#flows.list(countMax);
  }

  // ------------------------------------------------------------------ details: frames

  #begin(nowUs: Micros): void {
    this.#nowUs = nowUs;
    this.#flows.nowUs = nowUs;
    if (this.#inBatch) return;
    this.#inBatch = true;
    this.#pool.reclaim();
  }

  /** The only way to the network. G3: before the failover nothing of this node gets there. */
  #sendToNet(buffer: FrameBuffer, offset: number, length: number): void {
    assert(
      this.#state === 'failed-over',
      'G3: only a node that has failed over sends to the network',
    );
    this.#released++;
    this.#output.sendToNet(buffer, offset, length);
  }

  /** A frame of the guest, after the failover. */
  #serve(info: FrameInfo): void {
    if (isLinkControl(info)) return;
    this.#flows.onGuest(info);
  }

  /** A frame of the guest, before the failover: to the primary, if the SVM's output means anything. */
  #sendOutput(info: FrameInfo): void {
    if (!this.#ready) {
      this.#dropped.add('guest-not-synced');
      return;
    }
    this.#awaitsWord = false;
    if (!this.#flows.onGuest(info)) return;
    if (!this.#peerUp) {
      this.#counters.add('outputWithoutPeer');
      return;
    }
    const { frameOffset, frameBytes } = info;
    this.#output.sendFrameToPeer(LINK_FRAME_SECONDARY, this.#epoch, info, frameOffset, frameBytes);
  }

  /** A client's frame, to the SVM. A malformed one is the guests' own affair: both get it. */
  #deliverClient(buffer: FrameBuffer, offset: number, length: number): void {
    const info = this.#info;
    const result = dissect(buffer, offset, length, info);
    if (result === FRAME_OK) {
      if (this.#state !== 'failed-over') this.#neighbours.onClientFrame(info);
      if (!this.#flows.onClient(info)) return;
    } else this.#counters.add(`client-${DROP_REASON_NAMES[result] ?? 'malformed'}`);
    this.#output.sendToGuest(buffer, offset, length);
  }

  #learnNeighbour(buffer: FrameBuffer, offset: number, length: number): void {
    if (dissect(buffer, offset, length, this.#info) !== FRAME_OK) return;
    this.#neighbours.onClientFrame(this.#info);
  }

  // ------------------------------------------------------------------ details: checkpoints

  #beginCheckpoint(epoch: number): void {
    // Begun (or over) already by the VM layer's own word.
    if (this.#pendingEpoch !== undefined) {
      this.#pendingEpoch = epoch;
      return;
    }
    if (epoch === this.#epoch) return;
    this.#isAhead = false;
    this.#takeUpKept();
    this.#pendingEpoch = epoch;
    this.#setState('checkpointing', 'checkpoint begun');
    this.#event('checkpoint-begun', `epoch ${epoch}`, { epoch });
  }

  /** Of a checkpoint that only the VM layer has told of. */
  get #nextEpoch(): number {
    return Math.max(this.#epoch, this.#primaryEpoch) + 1;
  }

  /** The SVM runs from the PVM's state: every number is the PVM's, whatever was sent before is covered. */
  #commitCheckpoint(epoch: number, byPrimary: boolean): void {
    if (this.#pendingEpoch === undefined && epoch === this.#epoch) return;
    this.#pendingEpoch = undefined;
    this.#epoch = epoch;
    this.#committed++;
    this.#awaitsWord = byPrimary;
    this.#hasRequested = false;
    this.#ready = true;
    this.#retention.clear();
    this.#flows.adoptCheckpoint();
    if (this.#peerUp) {
      // The primary lives, and has heard what this node has.
      this.#overheard.clear();
      this.#setState('protected', 'checkpoint committed');
    }
    this.#event('checkpoint-committed', `epoch ${epoch}`, { epoch });
    this.#takeUpKept();
  }

  /** The SVM is in its old state, and what was kept goes the old way. */
  #abortCheckpoint(reason: string): void {
    if (this.#pendingEpoch === undefined) return;
    this.#event('checkpoint-aborted', reason, { epoch: this.#pendingEpoch });
    this.#pendingEpoch = undefined;
    if (this.#ready) this.#takeUpKept();
    else this.#clearKept();
  }

  /** The primary goes on without protection, and syncs anew. */
  #onPeerAbort(reason: string): void {
    this.#abortCheckpoint(reason);
    this.#forgetProtection();
    this.#setState('unprotected', `checkpoint aborted: ${reason}`);
    if (this.#peerUp) this.#setState('syncing', this.#reason);
  }

  /** What was kept goes its way: the guest's first, since it was sent before the clients' could reach the guest. */
  #takeUpKept(): void {
    if (this.#pendingEpoch !== undefined || this.#isAhead) return;
    this.#keptGuest.drain((buffer, offset, length) => {
      const info = this.#info;
      if (dissect(buffer, offset, length, info) !== FRAME_OK) return;
      if (this.#state !== 'failed-over') this.#sendOutput(info);
      else {
        this.#serve(info);
        this.#sendToNet(buffer, offset, length);
      }
    });
    this.#keptClient.drain((buffer, offset, length) => this.#deliverClient(buffer, offset, length));
  }

  /** The primary runs unprotected from here on, or there will be another: the SVM's state is of no use to it. */
  #forgetProtection(): void {
    this.#ready = false;
    // The VM layer may have committed the next one here already: only the primary's commit makes that good now.
    this.#epoch = this.#primaryEpoch;
    this.#pendingEpoch = undefined;
    this.#isAhead = false;
    this.#hasRequested = false;
    this.#retention.clear();
    this.#overheard.clear();
    this.#clearKept();
  }

  #clearKept(): void {
    this.#keptClient.clear();
    this.#keptGuest.clear();
  }

  #requestCheckpoint(text: string): void {
    if (this.#hasRequested || this.#state !== 'protected') return;
    this.#hasRequested = true;
    this.#requested++;
    this.#event('limit', text);
    this.#output.sendMessageToPeer({ type: 'checkpoint-request', cause: 'limit', text });
  }

  // ------------------------------------------------------------------ details: failover

  /** A checkpoint begun and not committed has not happened: the SVM is in its old state, and is translated as before. */
  #takeOver(force: boolean): void {
    this.#pendingEpoch = undefined;
    this.#isAhead = false;
    this.#setState('failed-over', force ? 'failover, forced' : 'failover');
    this.#event('failover', `The SVM serves from now on${force ? ' (forced)' : ''}`, { force });
    this.#flows.failedOver = true;
    this.#takeover.start(this.#nowUs);
    this.#takeUpKept();
    this.#overheard.drain(this.#nowUs, (buffer, offset, length) => {
      this.#counters.add('overheardDelivered');
      this.#deliverClient(buffer, offset, length);
    });
  }

  #setState(state: NodeState, reason: string): void {
    if (this.#state === state && this.#reason === reason) return;
    const from = this.#state;
    this.#state = state;
    this.#reason = reason;
    this.#event('state', `${from} -> ${state}: ${reason}`, { from, to: state, reason });
  }

  #event(kind: ProxyEvent['kind'], text: string, fields?: ProxyEvent['fields']): void {
    const event: ProxyEvent = { atUs: this.#nowUs, kind, text };
    this.#output.event(fields === undefined ? event : { ...event, fields });
  }
}
