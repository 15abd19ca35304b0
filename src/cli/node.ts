/**
 * The runner of one node: the shell around an engine. It moves frames between the ports, the peer link and
 * the engine in batches, keeps the engine's one timer, and carries out commands.
 *
 * The contract that everything here serves (env/engine.ts): memory that the engine gave to an output stays
 * valid until the first call into the engine after `flush`. So after each batch the engine is flushed, then
 * ports and link, and only then is the engine called again: see `#settle`.
 *
 * An exception that comes out of the engine is a bug. The runner then stops: nothing more is released, queued
 * sends included, and `ended` tells the daemon to leave with exit code 70.
 *
 * @module
 */
import { assert } from '../base/assert.ts';
import { ColoError } from '../base/error.ts';
import { type Micros, NEVER, US_PER_MS } from '../base/time.ts';
import type { ControlHandlers } from '../control/server.ts';
import type {
  CommandResult,
  Engine,
  EngineOutput,
  EngineStatus,
  FlowStatus,
} from '../env/engine.ts';
import type { FrameHandler } from '../env/frame.ts';
import type { LocalNode, PeerHello, PeerLink, PeerLinkStatus } from '../env/link.ts';
import type { Log } from '../env/log.ts';
import type { CheckpointRequest, LinkMessage, ProxyEvent } from '../env/messages.ts';
import type { Port, PortCounters } from '../env/port.ts';
import type { VmDriver, VmEvents, VmStatus } from '../env/vm.ts';
import { CHECKPOINT_ANSWER_TIMEOUT_US, VNET_HDR_BYTES } from '../limits.ts';
import type { EventRing, RecordedEvent } from '../observe/events.ts';
import type { ArbiterActions, PeerLossArbiter } from '../vm/arbiter.ts';
import { VNET_HDR_LEN } from '../wire/vnet-hdr.ts';
import { AnswerWaiters } from './answers.ts';
import { EXIT_OK, EXIT_OS, exitCodeOf } from './exit.ts';

/** Batches taken from one port before the others, the link and the timer have their turn. */
const PUMP_BATCHES_MAX = 4;

/**
 * Batches read to drain a paused guest's port, 64 frames each: more than any socket's receive buffer
 * holds, so reaching it means that the guest was not paused.
 */
const DRAIN_BATCHES_MAX = 4_096;

/** setTimeout takes 31 bits of milliseconds; a timer that fires early is merely armed again. */
const TIMER_MS_MAX = 60_000;

/** Events that ask for an operator's attention. */
const WARNINGS: ReadonlySet<ProxyEvent['kind']> = new Set([
  'arbitration',
  'checkpoint-aborted',
  'divergence',
  'failover',
  'limit',
  'peer-down',
] as const);

/** The parts that a node is put together from. */
export interface NodeParts {
  readonly netPort: Port;
  readonly guestPort: Port;
  readonly link: PeerLink;
  readonly vm: VmDriver;
  readonly log: Log;
  readonly events: EventRing;
  /** Monotonic. */
  readonly nowUs: () => Micros;
  readonly createEngine: (output: EngineOutput, nowUs: Micros) => Engine;
  /** Decides what a lost peer means; without one the primary serves on and the secondary waits. */
  readonly createArbiter?: (actions: ArbiterActions) => PeerLossArbiter;
  /** Shown in `status`. */
  readonly version: string;
  /** @default CHECKPOINT_ANSWER_TIMEOUT_US */
  readonly answerTimeoutUs?: Micros;
}

/** What `ctl status` answers. */
export interface NodeStatus extends EngineStatus {
  readonly peer: {
    readonly connected: boolean;
    readonly remote: string;
    readonly rttUs: Micros;
    readonly lastDownReason: string;
  };
  readonly ports: Record<'net' | 'guest', PortCounters & { readonly name: string }>;
  readonly link: PeerLinkStatus;
  readonly vm: VmStatus;
  readonly process: {
    readonly version: string;
    readonly pid: number;
    readonly uptimeUs: Micros;
    readonly memoryBytes: number;
  };
}

/** How a node came to its end. */
export interface NodeEnd {
  readonly exitCode: number;
  readonly error: Error | undefined;
}

type Phase = 'new' | 'running' | 'stopping' | 'ended';

export class NodeRunner implements ControlHandlers, VmEvents {
  readonly #parts: NodeParts;
  readonly #engine: Engine;
  readonly #startedUs: Micros;
  readonly #answers: AnswerWaiters;
  readonly #arbiter: PeerLossArbiter | undefined;
  readonly #requests: CheckpointRequest[] = [];
  /** Ports that have another turn in the event loop. */
  readonly #turns = new Set<Port>();
  readonly #onNetFrame: FrameHandler;
  readonly #onGuestFrame: FrameHandler;
  #phase: Phase = 'new';
  #isInEngine = false;
  #isPeerUp = false;
  /** Where the peer is, or was last. */
  #peerRemote = '';
  /** The clock's reading for the batch under way; undefined between batches. */
  #batchUs: Micros | undefined;
  #timer: NodeJS.Timeout | undefined;
  #timerUs: Micros = NEVER;
  #resolveEnded: (end: NodeEnd) => void = () => undefined;

  /** Resolves when the node has ended, for whatever reason; never rejects. */
  readonly ended: Promise<NodeEnd>;

  constructor(parts: NodeParts) {
    this.#parts = parts;
    this.#startedUs = parts.nowUs();
    this.#engine = parts.createEngine(this.#createOutput(), this.#startedUs);
    const timeoutUs = parts.answerTimeoutUs ?? CHECKPOINT_ANSWER_TIMEOUT_US;
    this.#answers = new AnswerWaiters(this.#engine, timeoutUs);
    this.#arbiter = parts.createArbiter?.({
      release: (reason) => this.#act((nowUs) => this.#engine.onPeerDown(reason, nowUs)),
      failover: () => this.failover(false),
      report: (text, fields) =>
        this.#tell({ atUs: parts.nowUs(), kind: 'arbitration', text, fields }),
    });
    this.ended = new Promise((resolve) => {
      this.#resolveEnded = resolve;
    });
    this.#onNetFrame = (buffer, offset, length) =>
      this.#engine.onNetFrame(buffer, offset, length, this.#now());
    this.#onGuestFrame = (buffer, offset, length) =>
      this.#engine.onGuestFrame(buffer, offset, length, this.#now());
  }

  /** Time of the batch under way, for a port that calls the engine itself. */
  get batchUs(): Micros {
    return this.#now();
  }

  /** What the peer link writes into its hellos. */
  get local(): LocalNode {
    const { role, epoch, state } = this.#engine;
    return { role, epoch, state };
  }

  /**
   * Starts the ports, the peer link and the VM driver.
   *
   * @throws what they throw; `stop` is still to be called then
   */
  async start(): Promise<void> {
    assert(this.#phase === 'new', 'a node starts once');
    this.#phase = 'running';
    const { netPort, guestPort, link, vm } = this.#parts;
    this.#startPort(netPort, this.#onNetFrame);
    this.#startPort(guestPort, this.#onGuestFrame);
    await vm.start(this);
    if (this.#isLeaving()) return; // a signal came meanwhile: `stop` closes what there is
    await link.start({
      onUp: (peer) => this.#onPeerUp(peer),
      onDown: (reason) => this.#onPeerDown(reason),
      onFrame: (kind, epoch, buffer, offset, length) => {
        // A hint of another host, or a mark of one of its ports (see FrameKeeper): of no use here.
        buffer.view.setUint16(offset - VNET_HDR_BYTES + VNET_HDR_LEN, 0, true);
        this.#enter(() =>
          this.#engine.onPeerFrame(kind, epoch, buffer, offset, length, this.#now()),
        );
      },
      onMessage: (message) => this.#onPeerMessage(message),
      onBatchEnd: () => this.#settle(),
    });
    this.#settle();
  }

  /**
   * Leaves cleanly: the primary releases what it holds, tells its peer, and passes frames until the link is closed
   * (at most a second); then everything is closed. `ended` resolves with exit code 0.
   */
  async stop(reason: string): Promise<void> {
    if (this.#phase !== 'running' && this.#phase !== 'new') return;
    this.#phase = 'stopping';
    this.#arbiter?.close();
    this.#answers.refuseAll(reason);
    // Output that is held for a lost peer is not released by leaving: the peer may serve.
    const isHolding = this.#arbiter?.holds === true && !this.#isPeerUp;
    if (this.#engine.role === 'primary' && this.#engine.state !== 'unprotected' && !isHolding) {
      this.#act((nowUs) => void this.#engine.reset(reason, nowUs));
    }
    this.#onPeerDown(reason);
    const { vm, link } = this.#parts;
    await Promise.allSettled([vm.close(), link.close(reason)]);
    this.#drain(this.#parts.netPort, this.#onNetFrame, PUMP_BATCHES_MAX);
    this.#drain(this.#parts.guestPort, this.#onGuestFrame, PUMP_BATCHES_MAX);
    await this.#end({ exitCode: EXIT_OK, error: undefined });
  }

  // Commands, from the VM driver and from the control socket.

  checkpointBegin(): Promise<CommandResult> {
    this.#drainGuest();
    return this.#command(() => this.#answers.begin(this.#engine.checkpointBegin(this.#now())));
  }

  checkpointCommit(): Promise<CommandResult> {
    // A VM layer with one message only: begin and commit fall together, so the drain does too.
    if (this.#engine.state !== 'checkpointing') this.#drainGuest();
    return this.#command(() => this.#answers.commit(this.#engine.checkpointCommit(this.#now())));
  }

  checkpointAbort(reason: string): Promise<CommandResult> {
    return this.#command(() => this.#engine.checkpointAbort(reason, this.#now()));
  }

  failover(force: boolean): Promise<CommandResult> {
    return this.#command(() => this.#engine.failover(force, this.#now()));
  }

  reset(reason: string): Promise<CommandResult> {
    return this.#command(() => this.#engine.reset(reason, this.#now()));
  }

  guestLost(reason: string): void {
    if (this.#engine.role === 'secondary') void this.reset(reason);
    else this.#fail(new ColoError('COLO_ERR_GUEST_LOST', reason), EXIT_OS);
  }

  report(text: string, fields?: ProxyEvent['fields']): void {
    const event: ProxyEvent = { atUs: this.#parts.nowUs(), kind: 'vm', text };
    this.#record(fields === undefined ? event : { ...event, fields });
  }

  // Views.

  status(): NodeStatus {
    const { netPort, guestPort, link, vm, nowUs, version } = this.#parts;
    const now = nowUs();
    const linkStatus = link.status();
    return {
      ...this.#engine.status(now),
      peer: {
        connected: linkStatus.connected,
        remote: linkStatus.remote,
        rttUs: linkStatus.rttUs,
        lastDownReason: linkStatus.lastDownReason,
      },
      ports: {
        net: { name: netPort.name, ...netPort.counters },
        guest: { name: guestPort.name, ...guestPort.counters },
      },
      link: linkStatus,
      vm: vm.status(),
      process: {
        version,
        pid: process.pid,
        uptimeUs: now - this.#startedUs,
        memoryBytes: process.memoryUsage.rss(),
      },
    };
  }

  flows(countMax: number): FlowStatus[] {
    return this.#engine.flows(countMax);
  }

  events(countMax: number): readonly RecordedEvent[] {
    return this.#parts.events.list(countMax);
  }

  followEvents(listener: (event: RecordedEvent) => void): () => void {
    return this.#parts.events.follow(listener);
  }

  // Frames.

  #startPort(port: Port, handler: FrameHandler): void {
    port.start(
      () => this.#pump(port, handler),
      (error) => this.#fail(error, EXIT_OS),
    );
  }

  #isLeaving(): boolean {
    return this.#phase === 'stopping' || this.#phase === 'ended';
  }

  /** Takes what waits at a port, some batches at a time. */
  #pump(port: Port, handler: FrameHandler): void {
    // A port that is not drained says again that frames wait.
    if (this.#turns.has(port)) return;
    // A drained port calls again when frames wait.
    if (this.#drain(port, handler, PUMP_BATCHES_MAX)) return;
    this.#turns.add(port);
    setImmediate(() => {
      this.#turns.delete(port);
      this.#pump(port, handler);
    });
  }

  /** Hands at most `batchesMax` batches to the engine. Returns whether the port is empty (or the node has ended). */
  #drain(port: Port, handler: FrameHandler, batchesMax: number): boolean {
    for (let batch = 0; batch < batchesMax; batch++) {
      let count = 0;
      this.#enter(() => {
        count = port.receive(handler);
      });
      if (count === 0 || this.#phase === 'ended') {
        // The port may have asked for the time; the next batch has its own.
        this.#batchUs = undefined;
        return true;
      }
      this.#settle();
    }
    return false;
  }

  /** Before a checkpoint's begin: all output from before the pause must be inside the engine. */
  #drainGuest(): void {
    this.#settle();
    this.#parts.guestPort.handOver?.();
    if (this.#drain(this.#parts.guestPort, this.#onGuestFrame, DRAIN_BATCHES_MAX)) return;
    this.#parts.log.warn(
      { batches: DRAIN_BATCHES_MAX },
      'The guest goes on sending at the begin of a checkpoint: is it paused?',
    );
  }

  // The peer.

  #onPeerUp(peer: PeerHello): void {
    this.#parts.log.info({ peer }, 'Peer joined');
    this.#isPeerUp = true;
    this.#peerRemote = this.#parts.link.status().remote;
    this.#arbiter?.onPeerUp();
    if (this.#engine.role === 'primary' && peer.state === 'failed-over') {
      // G10: while this node was thought lost, or before it was started, the secondary has taken over.
      const text =
        'The peer has failed over and serves: this primary ends, rather than serve beside it';
      this.#tell({
        atUs: this.#parts.nowUs(),
        kind: 'arbitration',
        text,
        fields: { decision: 'end', epoch: peer.epoch, remote: this.#peerRemote },
      });
      this.#fail(new ColoError('COLO_ERR_PEER_SERVES', text), EXIT_OS);
      return;
    }
    this.#act((nowUs) => this.#engine.onPeerUp(peer.epoch, nowUs));
  }

  #onPeerDown(reason: string): void {
    if (!this.#isPeerUp) return;
    this.#isPeerUp = false;
    const { state, epoch, failoverReady } = this.#engine.status(this.#parts.nowUs());
    const facts = { reason, state, epoch, failoverReady, remote: this.#peerRemote };
    // A node that leaves decides nothing.
    const arbiter = this.#phase === 'running' ? this.#arbiter : undefined;
    this.#act((now) => this.#engine.onPeerDown(reason, now, arbiter?.holds));
    arbiter?.onPeerDown(facts);
  }

  #onPeerMessage(message: LinkMessage): void {
    if (message.type === 'checkpoint-begin') this.#drainGuest();
    this.#enter(() => this.#engine.onPeerMessage(message, this.#now()));
  }

  // Calling the engine.

  #createOutput(): EngineOutput {
    const { netPort, guestPort, link } = this.#parts;
    return {
      keeper: guestPort.keeper,
      sendToNet: (buffer, offset, length) => netPort.send(buffer, offset, length),
      sendToGuest: (buffer, offset, length) => guestPort.send(buffer, offset, length),
      sendFrameToPeer: (kind, epoch, buffer, offset, length) =>
        void link.sendFrame(kind, epoch, buffer, offset, length),
      sendMessageToPeer: (message) => link.sendMessage(message),
      requestCheckpoint: (request) => this.#requests.push(request),
      event: (event) => this.#onEvent(event),
    };
  }

  #onEvent(event: ProxyEvent): void {
    this.#answers.onEvent(event);
    this.#tell(event);
  }

  #tell(event: ProxyEvent): void {
    this.#record(event);
    this.#parts.vm.onEvent(event);
  }

  #record(event: ProxyEvent): void {
    const { events, log } = this.#parts;
    events.add(event);
    this.#arbiter?.onEvent(event);
    const fields = { event: event.kind, ...event.fields };
    if (WARNINGS.has(event.kind)) log.warn(fields, event.text);
    else log.info(fields, event.text);
  }

  #now(): Micros {
    this.#batchUs ??= this.#parts.nowUs();
    return this.#batchUs;
  }

  /** Calls the engine inside of a batch. */
  #enter(call: () => void): void {
    if (this.#phase === 'ended') return;
    try {
      assert(!this.#isInEngine, 'the engine is not called out of its own outputs');
      this.#isInEngine = true;
      call();
    } catch (error) {
      this.#fail(error as Error, exitCodeOf(error));
    } finally {
      this.#isInEngine = false;
    }
  }

  /** Ends a batch: flushes the engine, then everything that it has sent, then arms its timer. */
  #settle(): void {
    this.#enter(() => {
      this.#engine.flush(this.#now());
      this.#flushOutputs();
    });
    this.#afterBatch();
  }

  #flushOutputs(): void {
    // The network first: what is released there is what a client waits for.
    this.#parts.netPort.flush();
    this.#parts.guestPort.flush();
    this.#parts.link.flush();
  }

  #afterBatch(): void {
    this.#batchUs = undefined;
    if (this.#phase === 'ended') return;
    this.#answers.settle();
    this.#armTimer();
    if (this.#requests.length === 0) return;
    for (const request of this.#requests.splice(0)) {
      if (this.#phase === 'running') this.#parts.vm.requestCheckpoint(request);
    }
  }

  /** One call that is a batch of its own. */
  #act(call: (nowUs: Micros) => void): void {
    this.#enter(() => call(this.#now()));
    this.#settle();
  }

  /** A command of the VM layer or of an operator. Its answer may need the peer; see answers.ts. */
  #command(call: () => CommandResult | Promise<CommandResult>): Promise<CommandResult> {
    if (this.#phase !== 'running') return Promise.resolve(refused('The node is leaving'));
    let result: CommandResult | Promise<CommandResult> = refused('The node has failed');
    this.#enter(() => {
      result = call();
    });
    this.#settle();
    return Promise.resolve(result);
  }

  #armTimer(): void {
    const nextUs = this.#engine.nextDeadlineUs();
    // A timer that fires too early costs one tick; one that is set again for every batch costs more.
    if (nextUs >= this.#timerUs) return;
    clearTimeout(this.#timer);
    const delayMs = Math.ceil((nextUs - this.#parts.nowUs()) / US_PER_MS);
    this.#timerUs = nextUs;
    this.#timer = setTimeout(() => this.#onTimer(), Math.min(Math.max(delayMs, 0), TIMER_MS_MAX));
  }

  #onTimer(): void {
    this.#timerUs = NEVER;
    this.#enter(() => {
      const nowUs = this.#now();
      if (this.#engine.nextDeadlineUs() <= nowUs) this.#engine.onTick(nowUs); // flushes itself
      this.#flushOutputs();
    });
    this.#afterBatch();
  }

  // The end.

  /** Stops at once: a bug (exit code 70), or a port or guest that died, or a peer that serves (71). Nothing more goes out. */
  #fail(error: Error, exitCode: number): void {
    if (this.#phase === 'ended') return;
    const { message: text, stack } = error;
    const { log } = this.#parts;
    if (exitCode === EXIT_OS) log.error({ error: text }, 'Cannot go on: ending');
    else log.error({ error: text, stack }, 'Internal error: nothing more is released');
    this.#answers.refuseAll('The node has failed');
    const { vm, link } = this.#parts;
    void this.#end({ exitCode, error }, [
      vm.close(),
      link.close(exitCode === EXIT_OS ? text : 'internal error'),
    ]);
  }

  async #end(end: NodeEnd, others: readonly Promise<void>[] = []): Promise<void> {
    if (this.#phase === 'ended') return;
    this.#phase = 'ended';
    clearTimeout(this.#timer);
    this.#arbiter?.close();
    const { netPort, guestPort } = this.#parts;
    await Promise.allSettled([netPort.close(), guestPort.close(), ...others]);
    this.#resolveEnded(end);
  }
}

function refused(error: string): CommandResult {
  return { ok: false, error };
}
