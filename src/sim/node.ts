/**
 * One node: the shipping engine and what the daemon does around it (batches, flushes, ticks, the peer
 * link's session), in virtual time.
 *
 * Memory rules of `src/env/engine.ts` are enforced rather than trusted: received frames are overwritten
 * after the batch they were lent for, and what the engine hands out is read only when its `flush` has returned, as a
 * port that sends with one system call would.
 *
 * @module
 */
import { assert } from '../base/assert.ts';
import type { Prng } from '../base/prng.ts';
import { type Micros, NEVER } from '../base/time.ts';
import type { CommandResult, Engine, EngineOutput } from '../env/engine.ts';
import type { FrameBuffer } from '../env/frame.ts';
import {
  type CheckpointRequest,
  LINK_FRAME_SECONDARY,
  type LinkFrameKind,
  type LinkMessage,
  type NodeState,
  type ProxyEvent,
  type Role,
} from '../env/messages.ts';
import { BATCH_FRAMES_MAX, VNET_HDR_BYTES } from '../limits.ts';
import type { PrimaryEngine } from '../proxy/primary.ts';
import {
  PAIR_NONE,
  PAIR_PRIMARY_AHEAD,
  PAIR_SECONDARY_AHEAD,
  PAIR_TAKEN,
  PAIR_TOOK_PRIMARY,
  PAIR_TOOK_SECONDARY,
  type PairResult,
  readPlainSegment,
} from '../proxy/primary-lockstep.ts';
import { FrameInfo } from '../wire/frame.ts';
import type { EventQueue, ScheduledEvent } from './event-queue.ts';
import type { SimFrame } from './net/packet.ts';

/** What the peer link offers a node; see peer-link.ts. */
export interface NodeLink {
  sendFrame(
    kind: LinkFrameKind,
    epoch: number,
    buffer: FrameBuffer,
    offset: number,
    length: number,
  ): void;
  sendMessage(message: LinkMessage): void;
  flush(): void;
  onTick(nowUs: Micros): void;
  nextDeadlineUs(): Micros;
}

/** What a node tells the world. */
export interface NodeHooks {
  toNet(node: ProxyNode, frame: SimFrame, state: NodeState): void;
  toGuest(node: ProxyNode, frame: SimFrame): void;
  /** Just before the engine sees a frame of its guest. */
  onGuestInput(node: ProxyNode, frame: SimFrame): void;
  /** Frames of both guests were taken side by side. */
  onPair(how: 'primary takes frames in pairs' | 'primary compares where frames lie'): void;
  onRequest(node: ProxyNode, request: CheckpointRequest): void;
  onEvent(node: ProxyNode, event: ProxyEvent): void;
  /** After each batch, tick and command. */
  onSettled(node: ProxyNode): void;
  /** Before a peer message that makes the runner drain its guest's port (checkpoint-begin). */
  drainGuest(node: ProxyNode): void;
}

type PortName = 'net' | 'guest';

/** A frame of the other guest, and the epoch on it. */
interface OfPeer {
  readonly frame: SimFrame;
  readonly epoch: number;
}

interface Outgoing {
  readonly to: PortName;
  readonly buffer: FrameBuffer;
  readonly offset: number;
  readonly length: number;
  /** The engine's state when it handed the frame out. */
  readonly state: NodeState;
}

const SCRATCH_BYTES = (VNET_HDR_BYTES + 66_000) * BATCH_FRAMES_MAX;
const POISON = 0xdb;
/** Frames that wait for a node that hangs; more are lost, as in a socket's receive buffer. */
const PORT_FRAMES_MAX = 1_000;
/** Time from a frame's arrival to the poll that takes it. */
const POLL_DELAY_US_MAX = 40;

let scratch: FrameBuffer | undefined;

/** One batch at a time, so all nodes can share it. */
function scratchBuffer(): FrameBuffer {
  if (scratch === undefined) {
    const bytes = new Uint8Array(SCRATCH_BYTES);
    scratch = { bytes, view: new DataView(bytes.buffer) };
  }
  return scratch;
}

export class ProxyNode {
  readonly name: string;
  readonly role: Role;
  readonly #queue: EventQueue;
  readonly #prng: Prng;
  readonly #hooks: NodeHooks;
  readonly #makeEngine: (output: EngineOutput, nowUs: Micros) => Engine;
  engine: Engine;
  link: NodeLink | undefined;
  isAlive = true;
  readonly #waiting: Record<PortName, SimFrame[]> = { net: [], guest: [] };
  /**
   * Above 0: a primary that takes the frames of both guests side by side, as `colo-proxy compare` does; of one guest alone they wait
   * so long for those of the other.
   */
  pairWaitUs: Micros = 0;
  readonly #ofPeer: OfPeer[] = [];
  /** The frame at the head of the guest's, when the checkers have seen it already. */
  #noted: SimFrame | undefined = undefined;
  #aloneSinceUs: Micros = NEVER;
  readonly #primaryInfo = new FrameInfo();
  readonly #secondaryInfo = new FrameInfo();
  #outgoing: Outgoing[] = [];
  #offsetUs: Micros;
  #hungUntilUs: Micros = 0;
  #poll: ScheduledEvent | undefined;
  #tick: ScheduledEvent | undefined;
  /** False while the constructor of the first engine runs. */
  #isReady = false;
  /** The last state that an event announced. */
  announcedState = 'unprotected';

  constructor(
    name: string,
    role: Role,
    queue: EventQueue,
    prng: Prng,
    hooks: NodeHooks,
    makeEngine: (output: EngineOutput, nowUs: Micros) => Engine,
  ) {
    this.name = name;
    this.role = role;
    this.#queue = queue;
    this.#prng = prng;
    this.#hooks = hooks;
    this.#makeEngine = makeEngine;
    this.#offsetUs = prng.nextBelow(1_000_000_000);
    this.engine = makeEngine(this.#output(), this.nowUs);
    this.#isReady = true;
  }

  /** The node's own monotonic clock. */
  get nowUs(): Micros {
    return this.#queue.nowUs + this.#offsetUs;
  }

  get isHung(): boolean {
    return this.#queue.nowUs < this.#hungUntilUs;
  }

  get hungUntilUs(): Micros {
    return this.#hungUntilUs;
  }

  /** The world's time of a time by the node's clock. */
  worldUs(nodeUs: Micros): Micros {
    return nodeUs - this.#offsetUs;
  }

  /** The clock jumps forward, as after a suspended host. */
  jumpClock(byUs: Micros): void {
    this.#offsetUs += byUs;
    this.reschedule();
  }

  /** The process takes no processor time for a while. */
  hang(durationUs: Micros): void {
    this.#hungUntilUs = Math.max(this.#hungUntilUs, this.#queue.nowUs + durationUs);
    this.#queue.at(this.#hungUntilUs, `${this.name}-wakes`, () => {
      if (!this.isAlive || this.isHung) return;
      this.reschedule();
      this.#schedulePoll();
    });
  }

  /** The process is gone. */
  kill(): void {
    this.isAlive = false;
    this.#waiting.net.length = 0;
    this.#waiting.guest.length = 0;
    this.#ofPeer.length = 0;
    this.#cancel();
  }

  /** A new process. */
  restart(): void {
    this.isAlive = true;
    this.#hungUntilUs = 0;
    this.announcedState = 'unprotected';
    this.engine = this.#makeEngine(this.#output(), this.nowUs);
    this.reschedule();
  }

  /** A frame arrives at a port. */
  receive(port: PortName, frame: SimFrame): void {
    if (!this.isAlive) return;
    const waiting = this.#waiting[port];
    if (waiting.length < PORT_FRAMES_MAX) waiting.push(frame);
    this.#pollAgain();
  }

  /** Something has come: a poll that only waits for it comes earlier. */
  #pollAgain(): void {
    if (this.#aloneSinceUs !== NEVER && this.#poll !== undefined) {
      this.#poll.cancelled = true;
      this.#poll = undefined;
    }
    this.#schedulePoll();
  }

  /** Frames of the guest that stand in their stream, some of them looked at already. */
  get waitingFrames(): number {
    return this.#waiting.guest.length;
  }

  /** Until what is there alone has waited long enough; 0 when there is something else to do. */
  #waitForMateUs(): Micros {
    const { net, guest } = this.#waiting;
    if (this.#aloneSinceUs === NEVER || net.length > 0) return 0;
    if (guest.length > 0 && this.#ofPeer.length > 0) return 0;
    return Math.max(0, this.#aloneSinceUs + this.pairWaitUs - this.#queue.nowUs);
  }

  #schedulePoll(): void {
    if (this.#poll !== undefined || this.isHung) return;
    const { net, guest } = this.#waiting;
    if (net.length + guest.length + this.#ofPeer.length === 0) return;
    this.#poll = this.#queue.after(
      Math.max(this.#prng.nextBelow(POLL_DELAY_US_MAX), this.#waitForMateUs()),
      `${this.name}-poll`,
      () => {
        this.#poll = undefined;
        if (!this.isAlive || this.isHung) return;
        const order: PortName[] = this.#prng.chance(0.5) ? ['net', 'guest'] : ['guest', 'net'];
        for (const port of order) {
          if (port === 'guest' && this.pairWaitUs > 0) this.#pairs();
          else this.#batch(port);
        }
        this.#schedulePoll();
      },
    );
  }

  /** A frame of the other guest, where both are taken side by side. */
  receiveOfPeer(frame: SimFrame, epoch: number): void {
    this.#ofPeer.push({ frame, epoch });
    this.#pollAgain();
  }

  /** What the link carried before something else on it. */
  drainPeer(): void {
    if (this.#ofPeer.length > 0) this.#handOver(0, this.#ofPeer.length);
  }

  /** As long as both guests have frames, one of each; then those that have waited long enough. */
  #pairs(): void {
    const { guest } = this.#waiting;
    while (guest.length > 0 && this.#ofPeer.length > 0) this.#pair(guest[0]!, this.#ofPeer[0]!);
    if (guest.length + this.#ofPeer.length === 0) {
      this.#aloneSinceUs = NEVER;
      return;
    }
    const { nowUs } = this.#queue;
    if (this.#aloneSinceUs === NEVER) this.#aloneSinceUs = nowUs;
    if (nowUs - this.#aloneSinceUs < this.pairWaitUs) return;
    this.#aloneSinceUs = NEVER;
    this.#handOver(guest.length, this.#ofPeer.length);
  }

  #pair(frame: SimFrame, { frame: mate, epoch }: OfPeer): void {
    switch (this.#heads(frame, epoch === this.engine.epoch ? mate : undefined)) {
      case PAIR_TAKEN:
        this.#hooks.onPair('primary takes frames in pairs');
        this.#takeHead();
        this.#ofPeer.shift();
        break;
      case PAIR_TOOK_PRIMARY:
        this.#takeHead();
        break;
      case PAIR_TOOK_SECONDARY:
        this.#hooks.onPair('primary compares where frames lie');
        this.#ofPeer.shift();
        break;
      case PAIR_PRIMARY_AHEAD:
        this.#handOver(0, 1);
        break;
      case PAIR_SECONDARY_AHEAD:
        this.#handOver(1, 0);
        break;
      default:
        this.#handOver(1, 1);
    }
  }

  #takeHead(): void {
    this.#waiting.guest.shift();
    // A duplicate of it is the same object.
    this.#noted = undefined;
  }

  /** Shows the heads of both guests' output to the engine; sends what it lets out. */
  #heads(frame: SimFrame, mate: SimFrame | undefined): PairResult {
    if (mate === undefined) return PAIR_NONE;
    const { engine, nowUs } = this;
    // The PVM's may wait where it lies: memory of its own. The SVM's is lent for the call.
    const bytes = frame.slice();
    const stream = { bytes, view: new DataView(bytes.buffer), lent: 0 };
    const buffer = scratchBuffer();
    buffer.bytes.set(mate, 0);
    const [p, s] = [this.#primaryInfo, this.#secondaryInfo];
    const length = frame.length - VNET_HDR_BYTES;
    if (!readPlainSegment(stream, VNET_HDR_BYTES, length, p)) return PAIR_NONE;
    if (!readPlainSegment(buffer, VNET_HDR_BYTES, mate.length - VNET_HDR_BYTES, s))
      return PAIR_NONE;
    const record = {
      stream,
      mayLend: true,
      recordOffset: 0,
      recordBytes: frame.length,
      headerOffset: 0,
    };
    this.#note(frame);
    const send = (from: FrameBuffer, offset: number, count: number): void =>
      this.#hand('net', from, offset + VNET_HDR_BYTES, count - VNET_HDR_BYTES);
    const result = (engine as PrimaryEngine).onHeads(p, s, record, send, nowUs);
    if (result === PAIR_TAKEN) send(stream, 0, frame.length);
    this.settle();
    buffer.bytes.fill(POISON, 0, mate.length);
    return result;
  }

  /** The checkers see a frame of the guest once, before it can leave. */
  #note(frame: SimFrame): void {
    if (frame !== this.#noted) this.#hooks.onGuestInput(this, frame);
    this.#noted = frame;
  }

  /** So many frames of each guest go the ordinary way: those of the SVM first, so that nothing waits for them. */
  #handOver(guestCount: number, peerCount: number): void {
    const buffer = scratchBuffer();
    for (const { frame, epoch } of this.#ofPeer.splice(0, peerCount)) {
      buffer.bytes.set(frame, 0);
      const length = frame.length - VNET_HDR_BYTES;
      const { engine, nowUs } = this;
      engine.onPeerFrame(LINK_FRAME_SECONDARY, epoch, buffer, VNET_HDR_BYTES, length, nowUs);
      this.settle();
      buffer.bytes.fill(POISON, 0, frame.length);
    }
    for (let i = 0; i < guestCount; i++) this.#batch('guest', 1);
  }

  /** Hands what waits at a port to the engine, as one batch. */
  #batch(port: PortName, countMax = BATCH_FRAMES_MAX): void {
    const frames = this.#waiting[port].splice(0, countMax);
    if (frames.length === 0) return;
    const buffer = scratchBuffer();
    let at = 0;
    for (const frame of frames) {
      buffer.bytes.set(frame, at);
      const offset = at + VNET_HDR_BYTES;
      const length = frame.length - VNET_HDR_BYTES;
      if (port === 'net') {
        this.engine.onNetFrame(buffer, offset, length, this.nowUs);
      } else {
        this.#note(frame);
        this.#noted = undefined;
        this.engine.onGuestFrame(buffer, offset, length, this.nowUs);
      }
      at += frame.length;
    }
    this.settle();
    buffer.bytes.fill(POISON, 0, at);
  }

  /** The runner takes all its guest has sent, before a pause counts. */
  drainGuest(): void {
    while (this.#waiting.guest.length > 0) this.#batch('guest');
  }

  /** Ends a batch: flush, then send what the engine has handed out. */
  settle(): void {
    assert(!this.isHung, 'a process that hangs does nothing');
    this.engine.flush(this.nowUs);
    this.#send();
    this.link?.flush();
    this.reschedule();
    this.#hooks.onSettled(this);
  }

  /** Runs a command of the control socket. */
  command(run: (engine: Engine, nowUs: Micros) => CommandResult): CommandResult {
    const result = run(this.engine, this.nowUs);
    this.settle();
    return result;
  }

  #send(): void {
    const outgoing = this.#outgoing;
    this.#outgoing = [];
    for (const { to, buffer, offset, length, state } of outgoing) {
      const frame = buffer.bytes.slice(offset - VNET_HDR_BYTES, offset + length);
      if (to === 'net') this.#hooks.toNet(this, frame, state);
      else this.#hooks.toGuest(this, frame);
    }
  }

  #hand(to: PortName, buffer: FrameBuffer, offset: number, length: number): void {
    assert(offset >= VNET_HDR_BYTES, 'a frame handed out has room for its virtio-net header');
    assert(offset + length <= buffer.bytes.length, 'a frame handed out lies in its buffer');
    const state = this.#isReady ? this.engine.state : 'unprotected';
    this.#outgoing.push({ to, buffer, offset, length, state });
  }

  #output(): EngineOutput {
    return {
      sendToNet: (buffer, offset, length) => this.#hand('net', buffer, offset, length),
      sendToGuest: (buffer, offset, length) => this.#hand('guest', buffer, offset, length),
      sendFrameToPeer: (kind, epoch, buffer, offset, length) =>
        this.link?.sendFrame(kind, epoch, buffer, offset, length),
      sendMessageToPeer: (message) => this.link?.sendMessage(message),
      requestCheckpoint: (request) => this.#hooks.onRequest(this, request),
      event: (event) => {
        if (event.kind === 'state') this.announcedState = String(event.fields?.['to'] ?? '');
        this.#hooks.onEvent(this, event);
      },
    };
  }

  /** Sets the timer to the next deadline of engine and link. */
  reschedule(): void {
    if (!this.isAlive) return;
    const dueUs = Math.min(this.engine.nextDeadlineUs(), this.link?.nextDeadlineUs() ?? NEVER);
    let atUs = dueUs === NEVER ? NEVER : Math.max(this.worldUs(dueUs), this.#queue.nowUs + 1);
    if (atUs !== NEVER && this.isHung) atUs = Math.max(atUs, this.#hungUntilUs);
    if (this.#tick !== undefined && !this.#tick.cancelled && this.#tick.atUs === Math.ceil(atUs))
      return;
    if (this.#tick !== undefined) this.#tick.cancelled = true;
    this.#tick = undefined;
    if (atUs === NEVER) return;
    this.#tick = this.#queue.at(atUs, `${this.name}-tick`, () => this.#onTick());
  }

  #onTick(): void {
    this.#tick = undefined;
    if (!this.isAlive) return;
    if (this.isHung) {
      this.reschedule();
      return;
    }
    this.link?.onTick(this.nowUs);
    if (this.engine.nextDeadlineUs() <= this.nowUs) {
      this.engine.onTick(this.nowUs);
      this.#send();
      this.link?.flush();
      this.#hooks.onSettled(this);
    }
    this.reschedule();
  }

  #cancel(): void {
    for (const event of [this.#poll, this.#tick]) if (event !== undefined) event.cancelled = true;
    this.#poll = undefined;
    this.#tick = undefined;
  }

  /** Before a message of the peer that ends the old epoch on this node. */
  beforeMessage(message: LinkMessage): void {
    if (message.type === 'checkpoint-begin') this.#hooks.drainGuest(this);
  }
}

/** Flows that are asked what they hold. */
const FLOWS_LOOKED_AT = 10_000;

/**
 * Frames that wait to be released. (A flow may also keep the header of an ACK, to be sent again when the SVM has caught up; the
 * memory in `status().held` counts that too.)
 */
export function heldFrames(node: ProxyNode): number {
  const flows = node.engine.flows(FLOWS_LOOKED_AT);
  return flows.reduce((sum, flow) => sum + flow.heldFrames, node.waitingFrames);
}

/** Has the primary dropped output of the PVM, at a limit or because it cannot be read, and counted it? */
export function hasDroppedOutput(primary: ProxyNode): boolean {
  const reasons = Object.keys(primary.engine.status(primary.nowUs).dropped);
  return reasons.some((reason) => reason === 'held-limit' || reason.startsWith('guest-'));
}
