/**
 * What the tests of the node's runner put around it: an engine that passes everything and writes down how it is
 * called, a peer link and a VM driver without a world behind them.
 *
 * @module
 */
import { type Micros, NEVER } from '../../src/base/time.ts';
import type {
  CommandResult,
  Engine,
  EngineOutput,
  EngineStatus,
  FlowStatus,
} from '../../src/env/engine.ts';
import type { FrameBuffer, FrameHandler } from '../../src/env/frame.ts';
import type { PeerHello, PeerLink, PeerLinkHandlers, PeerLinkStatus } from '../../src/env/link.ts';
import type {
  CheckpointRequest,
  LinkFrameKind,
  LinkMessage,
  NodeState,
  ProxyEvent,
  Role,
} from '../../src/env/messages.ts';
import type { Port, PortCounters } from '../../src/env/port.ts';
import type { VmDriver, VmEvents, VmStatus } from '../../src/env/vm.ts';
import { FRAME_BYTES_MAX, VNET_HDR_BYTES } from '../../src/limits.ts';

const OK: CommandResult = { ok: true };

/**
 * Passes frames between net and guest out of one buffer of its own, which it spoils at the first call after a
 * flush: a runner that has not sent by then sends rubbish.
 */
export class FakeEngine implements Engine {
  readonly role: Role;
  readonly output: EngineOutput;
  /** Names of the calls, in order; `flush` only when something came before it. */
  readonly calls: string[] = [];
  state: NodeState = 'protected';
  epoch = 7;
  deadlineUs: Micros = NEVER;
  tickedUs: Micros = -1;
  /** Thrown by the next frame from the guest. */
  failure: Error | undefined;
  /** Answers of commands by name; success otherwise. */
  readonly answers: Record<string, CommandResult> = {};
  readonly #memory: FrameBuffer;
  #used = 0;
  #isFlushed = true;
  #lastUs: Micros = 0;

  constructor(role: Role, output: EngineOutput) {
    this.role = role;
    this.output = output;
    const bytes = new Uint8Array(256 * (FRAME_BYTES_MAX + VNET_HDR_BYTES));
    this.#memory = { bytes, view: new DataView(bytes.buffer) };
  }

  onNetFrame(buffer: FrameBuffer, offset: number, length: number, nowUs: Micros): void {
    this.#enter('net', nowUs);
    const at = this.#keep(buffer, offset, length);
    this.output.sendToGuest(this.#memory, at, length);
  }

  onGuestFrame(buffer: FrameBuffer, offset: number, length: number, nowUs: Micros): void {
    this.#enter('guest', nowUs);
    const at = this.#keep(buffer, offset, length);
    this.output.sendToNet(this.#memory, at, length);
    if (this.failure !== undefined) throw this.failure;
  }

  onPeerFrame(
    _kind: LinkFrameKind,
    _epoch: number,
    buffer: FrameBuffer,
    offset: number,
    length: number,
    nowUs: Micros,
  ): void {
    this.#enter('peer-frame', nowUs);
    const at = this.#keep(buffer, offset, length);
    this.output.sendToGuest(this.#memory, at, length);
  }

  onPeerMessage(message: LinkMessage, nowUs: Micros): void {
    this.#enter(`peer-message ${message.type}`, nowUs);
    if (message.type === 'checkpoint-began') this.emit('checkpoint-begun', nowUs);
    if (message.type !== 'checkpoint-committed') return;
    this.state = 'protected';
    this.emit('checkpoint-committed', nowUs);
  }

  onPeerUp(_peerEpoch: number, nowUs: Micros): void {
    this.#enter('peer-up', nowUs);
  }

  onPeerDown(reason: string, nowUs: Micros, hold = false): void {
    this.#enter(`peer-down ${reason}${hold ? ', hold' : ''}`, nowUs);
    if (!hold) this.state = 'unprotected';
    this.emit('peer-down', nowUs, reason);
  }

  checkpointBegin(nowUs: Micros): CommandResult {
    this.#enter('begin', nowUs);
    const answer = this.answers['begin'] ?? OK;
    if (answer.ok) this.state = 'checkpointing';
    return answer;
  }

  checkpointCommit(nowUs: Micros): CommandResult {
    this.#enter('commit', nowUs);
    const answer = this.answers['commit'] ?? OK;
    if (answer.ok) this.state = 'checkpointing';
    return answer;
  }

  checkpointAbort(reason: string, nowUs: Micros): CommandResult {
    this.#enter(`abort ${reason}`, nowUs);
    this.state = 'unprotected';
    this.emit('checkpoint-aborted', nowUs, reason);
    return OK;
  }

  failover(force: boolean, nowUs: Micros): CommandResult {
    this.#enter(`failover ${force}`, nowUs);
    return this.answers['failover'] ?? OK;
  }

  reset(reason: string, nowUs: Micros): CommandResult {
    this.#enter(`reset ${reason}`, nowUs);
    this.state = 'unprotected';
    this.output.sendMessageToPeer({ type: 'reset', reason });
    return OK;
  }

  flush(nowUs: Micros): void {
    this.#checkTime(nowUs);
    if (this.calls.at(-1) !== 'flush' && this.calls.length > 0) this.calls.push('flush');
    this.#isFlushed = true;
  }

  onTick(nowUs: Micros): void {
    this.#enter('tick', nowUs);
    this.tickedUs = nowUs;
    this.deadlineUs = NEVER;
    this.flush(nowUs);
  }

  nextDeadlineUs(): Micros {
    return this.deadlineUs;
  }

  status(): EngineStatus {
    return {
      role: this.role,
      state: this.state,
      reason: 'test',
      epoch: this.epoch,
      flows: 0,
      held: { frames: 0, bytes: 0 },
      released: 5,
      compared: 4,
      dropped: { 'secondary-old-epoch': 3 },
      counters: { ackLowered: 2 },
      divergences: 1,
      checkpoints: { requested: 2, committed: 1 },
      latencyUs: { p50: 90, p99: 1_500, max: 2_000_000 },
      failoverReady: false,
    };
  }

  flows(countMax: number): FlowStatus[] {
    const flow = { flow: 'tcp a > b', tcpState: 'open', heldFrames: 1, heldBytes: 60, detail: {} };
    return Array.from({ length: Math.min(countMax, 3) }, () => flow);
  }

  emit(kind: ProxyEvent['kind'], atUs: Micros, text = kind as string): void {
    this.output.event({ atUs, kind, text });
  }

  #enter(call: string, nowUs: Micros): void {
    this.#checkTime(nowUs);
    if (this.#isFlushed) {
      this.#memory.bytes.fill(0xee, 0, this.#used);
      this.#used = 0;
      this.#isFlushed = false;
    }
    this.calls.push(call);
  }

  #checkTime(nowUs: Micros): void {
    if (!(nowUs >= this.#lastUs)) throw new Error('time went back');
    this.#lastUs = nowUs;
  }

  #keep(buffer: FrameBuffer, offset: number, length: number): number {
    const start = offset - VNET_HDR_BYTES;
    this.#memory.bytes.set(buffer.bytes.subarray(start, offset + length), this.#used);
    const at = this.#used + VNET_HDR_BYTES;
    this.#used = at + length;
    return at;
  }
}

/** Borrows what is sent until `flush`, as the kernel's ports do; a memory port copies at once. */
export class BorrowingPort implements Port {
  readonly name: string;
  readonly counters: PortCounters;
  readonly #port: Port;
  #borrowed: [FrameBuffer, number, number][] = [];

  constructor(port: Port) {
    this.#port = port;
    this.name = port.name;
    this.counters = port.counters;
  }

  start(onReadable: () => void, onClosed: (error: Error) => void): void {
    this.#port.start(onReadable, onClosed);
  }
  receive(handler: FrameHandler): number {
    return this.#port.receive(handler);
  }
  send(buffer: FrameBuffer, offset: number, length: number): void {
    this.#borrowed.push([buffer, offset, length]);
  }
  flush(): void {
    for (const [buffer, offset, length] of this.#borrowed) this.#port.send(buffer, offset, length);
    this.#borrowed = [];
    this.#port.flush();
  }
  close(): Promise<void> {
    return this.#port.close();
  }
}

/** A link that the test plays both ends of. */
export class FakeLink implements PeerLink {
  connected = true;
  handlers: PeerLinkHandlers | undefined;
  /** Messages, flushes and the goodbye, in order. */
  readonly log: string[] = [];
  /** Held open by a test that looks at what happens while the link closes. */
  closing: Promise<void> = Promise.resolve();

  start(handlers: PeerLinkHandlers): Promise<void> {
    this.handlers = handlers;
    return Promise.resolve();
  }
  sendFrame(): boolean {
    this.log.push('frame');
    return true;
  }
  sendMessage(message: LinkMessage): void {
    this.log.push(message.type);
  }
  flush(): void {
    if (this.log.length > 0 && this.log.at(-1) !== 'flush') this.log.push('flush');
  }
  close(reason: string): Promise<void> {
    this.log.push(`goodbye ${reason}`);
    return this.closing;
  }
  status(): PeerLinkStatus {
    return {
      connected: this.connected,
      lastDownReason: 'none',
      security: 'insecure',
      remote: '192.0.2.2:40112',
      peer: PEER,
      rttUs: 180,
      queueBytes: 0,
      sentBytes: 0,
      sentFrames: 0,
      sentMessages: 0,
      receivedBytes: 0,
      receivedFrames: 0,
      receivedMessages: 0,
      dropped: {},
      refused: { 'wrong-key': 2 },
      ups: 1,
      downs: {},
    };
  }

  /** One message of the peer, as a batch of its own. */
  receive(message: LinkMessage): void {
    this.handlers?.onMessage(message);
    this.handlers?.onBatchEnd();
  }
}

export const PEER: PeerHello = {
  role: 'secondary',
  nodeId: '0123456789abcdef0123456789abcdef',
  instance: 1,
  epoch: 3,
  state: 'unprotected',
  software: 'test',
  heartbeatUs: 250_000,
  timeoutUs: 1_000_000,
};

/** A driver that only remembers. */
export class FakeVm implements VmDriver {
  readonly name = 'fake';
  readonly requests: CheckpointRequest[] = [];
  readonly seen: string[] = [];
  events: VmEvents | undefined;
  /** Called with each request, for tests that look at the moment. */
  onRequest: () => void = () => undefined;
  isClosed = false;
  /** Held open by a test that looks at what happens while the driver starts. */
  starting: Promise<void> = Promise.resolve();

  start(events: VmEvents): Promise<void> {
    this.events = events;
    return this.starting;
  }
  requestCheckpoint(request: CheckpointRequest): void {
    this.requests.push(request);
    this.onRequest();
  }
  onEvent(event: ProxyEvent): void {
    this.seen.push(event.kind);
  }
  status(): VmStatus {
    return { driver: 'fake' };
  }
  close(): Promise<void> {
    this.isClosed = true;
    return Promise.resolve();
  }
}
