/**
 * The whole system in one process: clients, a switch, two nodes with the shipping engines and peer link, two guests, the VM
 * layer and an arbiter. Everything happens in the order of one event queue; everything random comes from the seed.
 *
 *     clients -- switch -- primary node -- PVM
 *                  |            | peer link
 *                  +---- secondary node -- SVM
 *
 * @module
 */
import { Prng } from '../base/prng.ts';
import { type Micros, NEVER, US_PER_MS } from '../base/time.ts';
import type { CheckpointRequest, NodeState, ProxyEvent } from '../env/messages.ts';
import { SECONDARY_DEFAULTS } from '../proxy/config.ts';
import { PrimaryEngine } from '../proxy/primary.ts';
import { SecondaryEngine } from '../proxy/secondary.ts';
import { BoundsChecker } from './checkers/bounds.ts';
import type { Checker, ClientView, Guarantee, Witness } from './checkers/checker.ts';
import { FailoverChecker } from './checkers/failover.ts';
import { HonestChecker } from './checkers/honest.ts';
import { HostileChecker } from './checkers/hostile.ts';
import { InputCommitChecker } from './checkers/input-commit.ts';
import { InventionChecker } from './checkers/invention.ts';
import { LivenessChecker } from './checkers/liveness.ts';
import { OutputCommitChecker } from './checkers/output-commit.ts';
import { OwnerChecker } from './checkers/owner.ts';
import { createRecord, type GuestRecord, recordPacket } from './checkers/record.ts';
import { SilenceChecker } from './checkers/silence.ts';
import { TranslationChecker } from './checkers/translation.ts';
import { cloneDeep } from './clone.ts';
import { EventQueue } from './event-queue.ts';
import { ClientApplication } from './host/client.ts';
import { createHostState, Host, type HostState } from './host/host.ts';
import { SERVICE_PORT, type ServiceMood } from './host/service.ts';
import { Machine, type MachineImage } from './machine.ts';
import { type Mark, Marks } from './marks.ts';
import { describeFrame } from './net/describe.ts';
import { completeOffload } from './net/offload.ts';
import { hasTcpData, parseIp, type SimFrame } from './net/packet.ts';
import { Path } from './net/path.ts';
import { Switch } from './net/switch.ts';
import { type NodeHooks, ProxyNode } from './node.ts';
import { openOldConnections } from './old-connections.ts';
import { type DEATH_PHASES, drawOptions, type RunOptions } from './options.ts';
import { PeerLink } from './peer-link.ts';
import type { Trace } from './trace.ts';
import { type CheckpointPhase, VmLayer } from './vm-layer.ts';
import { CLIENT_LISTEN_PORT } from './workload.ts';

const GUEST_MAC = '525400000001';
const GUEST_IP4 = '0a000001';
const GUEST_IP6 = 'fd000000000000000000000000000001';

/** The arbiter asks the secondary to take over for this long. */
const TAKE_OVER_TRIES = 400;
const TAKE_OVER_AGAIN_US: Micros = 50 * US_PER_MS;

/** When a node dies. */
type Moment = (typeof DEATH_PHASES)[number] | 'any';

function momentText(when: Moment): string {
  return when === 'any' ? 'at any event' : `in the checkpoint phase ${when}`;
}

/** A guarantee that does not hold. */
export interface Broken {
  readonly guarantee: Guarantee;
  readonly text: string;
  readonly atUs: Micros;
}

/** A frame as a client saw it. */
export interface Seen {
  readonly atUs: Micros;
  readonly frame: SimFrame;
}

/** A client of the simulated network. */
export interface Client extends ClientView {
  readonly toSwitch: Path;
  readonly fromSwitch: Path;
  /** The last segment with data that it was sent. */
  lastData: SimFrame | undefined;
  reschedule(): void;
}

export class World implements Witness {
  readonly queue = new EventQueue();
  readonly trace: Trace;
  readonly marks = new Marks();
  readonly prng: Prng;
  readonly options: RunOptions;
  readonly clients: Client[] = [];
  readonly primary: ProxyNode;
  readonly secondary: ProxyNode;
  readonly pvm: Machine;
  readonly svm: Machine;
  readonly link: PeerLink;
  readonly vm: VmLayer;
  readonly switch = new Switch();
  readonly primaryNet: { to: Path; from: Path };
  readonly secondaryNet: { to: Path; from: Path };
  readonly primaryGuest: { to: Path; from: Path };
  readonly secondaryGuest: { to: Path; from: Path };
  readonly #checkers: Checker[];
  readonly #records: { pvm: GuestRecord; svm: GuestRecord };
  /** What the PVM had sent when it was copied. */
  readonly #saved = new WeakMap<MachineImage, GuestRecord>();
  brokenBy: Broken | undefined;
  isSvmSynced = false;
  /** An operator has reset the secondary: until the next commit it must refuse to take over. */
  isSecondaryReset = false;
  svmLostUs: Micros = 0;
  /** The secondary's process has started after one that died, and the primary has not met it yet. */
  #isSecondaryNew = false;
  /** The primary protects: also while a checkpoint is under way, unless that is the first. */
  #isProtected = false;
  isFailoverGranted = false;
  isOutage = false;
  /** Faults have stopped. */
  isHealed = false;
  isRequestOpen = false;
  disturbedUs: Micros = 0;
  /** A phase of a checkpoint in which the primary dies; set by the fault plan. */
  deathPhase = '';
  /** The same for the secondary, and for how long it is away. */
  secondaryDeath: { phase: CheckpointPhase; restartUs: Micros } | undefined = undefined;
  /** A scenario's part in each phase of a checkpoint. */
  phaseScript: ((phase: CheckpointPhase) => void) | undefined = undefined;
  /** Frames that clients saw, for the capture. */
  readonly seen: Seen[] = [];
  readonly #capture: boolean;

  /** @param options what the run is made of, instead of what the seed says */
  constructor(seed: number, trace: Trace, capture: boolean, options?: RunOptions) {
    this.#capture = capture;
    this.trace = trace;
    this.prng = new Prng(seed);
    const drawn = drawOptions(this.prng.fork());
    this.options = options ?? drawn;
    this.#records = { pvm: createRecord(), svm: createRecord() };
    this.pvm = this.#makeMachine('pvm', (frame) => this.#fromGuest(this.pvm, frame));
    this.svm = this.#makeMachine('svm', (frame) => this.#fromGuest(this.svm, frame));
    const hooks = this.#nodeHooks();
    const { config, retainedBytesMax } = this.options;
    const fork = this.prng.fork();
    this.primary = new ProxyNode(
      'primary',
      'primary',
      this.queue,
      fork.fork(),
      hooks,
      (output, nowUs) => new PrimaryEngine(config, output, nowUs),
    );
    this.primary.pairWaitUs = this.options.pairWaitUs;
    this.secondary = new ProxyNode(
      'secondary',
      'secondary',
      this.queue,
      fork.fork(),
      hooks,
      (output, nowUs) =>
        new SecondaryEngine({ ...SECONDARY_DEFAULTS, ...config, retainedBytesMax }, output, nowUs),
    );
    this.primaryNet = this.#attachNode(this.primary);
    this.secondaryNet = this.#attachNode(this.secondary);
    this.primaryGuest = this.#attachGuest(this.primary, this.pvm);
    this.secondaryGuest = this.#attachGuest(this.secondary, this.svm);
    this.link = new PeerLink(
      this.queue,
      this.prng.fork(),
      this.options.peer,
      this.primary,
      this.secondary,
      (node, kind, frame) => this.#follow(`link ${kind} > ${node.name}`, frame),
      this.marks,
    );
    this.vm = this.#makeVmLayer();
    for (let i = 0; i < this.options.clients; i++) this.#addClient(i);
    this.#checkers = this.#makeCheckers();
    openOldConnections(this);
  }

  #makeCheckers(): Checker[] {
    return [
      new OutputCommitChecker(this),
      new InputCommitChecker(this),
      new SilenceChecker(this),
      new InventionChecker(this),
      new FailoverChecker(this),
      new LivenessChecker(this),
      new BoundsChecker(this),
      new HostileChecker(this),
      new HonestChecker(this),
      new OwnerChecker(this),
      new TranslationChecker(this),
    ];
  }

  // ------------------------------------------------------------------ what checkers see

  get nowUs(): Micros {
    return this.queue.nowUs;
  }

  get config(): RunOptions['config'] {
    return this.options.config;
  }

  get retainedBytesMax(): number {
    return this.options.retainedBytesMax;
  }

  get peerTimeoutUs(): Micros {
    return this.options.peer.timeoutUs;
  }

  get isCheckpointUnderWay(): boolean {
    return this.vm.isBusy || this.vm.isReplacedUntold;
  }

  get isGuestPathDuplicating(): boolean {
    return this.options.guestPath.duplicate > 0;
  }

  get linkBrokenSinceUs(): Micros {
    return this.link.brokenSinceUs;
  }

  get primaryHeardUs(): Micros {
    return this.link.primaryHeardUs;
  }

  recordOf(machine: Machine): GuestRecord {
    return machine === this.pvm ? this.#records.pvm : this.#records.svm;
  }

  broken(guarantee: Guarantee, text: string): void {
    if (this.brokenBy !== undefined) return;
    this.brokenBy = { guarantee, text, atUs: this.queue.nowUs };
    this.line(`BROKEN ${guarantee}: ${text}`);
  }

  /** Checks what no single event shows. */
  pulse(): void {
    for (const checker of this.#checkers) checker.onPulse?.();
  }

  /** Faults have stopped and all is quiet. */
  finish(): void {
    for (const checker of this.#checkers) {
      checker.onPulse?.();
      checker.onEnd?.();
    }
  }

  line(text: string): void {
    this.trace.text(text);
    this.trace.line(this.queue.nowUs, text);
  }

  /** A frame for those who follow the run; not part of its hash. */
  #follow(who: string, frame: SimFrame): void {
    if (!this.trace.isFollowed) return;
    this.trace.line(this.queue.nowUs, `    ${who.padEnd(18)} ${describeFrame(frame)}`);
  }

  // ------------------------------------------------------------------ construction

  #guestState(): HostState {
    const { guestTcp, guestPartialChecksums, vlan, mtu } = this.options;
    const state = createHostState({
      mac: GUEST_MAC,
      ip4: GUEST_IP4,
      ip6: GUEST_IP6,
      vlan,
      mtu,
      tcp: guestTcp,
      partialChecksums: guestPartialChecksums,
    });
    state.listening.add(SERVICE_PORT);
    return state;
  }

  #makeMachine(name: string, emit: (frame: SimFrame) => void): Machine {
    const { thinkUsMax, divergence, randomPort } = this.options;
    const mood: ServiceMood = {
      stuckUntilUs: 0,
      thinkUsMax,
      divergence,
      isHurried: false,
      randomPort,
    };
    // Not near each other's: a frame that waited in the SVM's card while its state was replaced still has the old numbers,
    // and must not fit by chance (docs/SIMULATOR.md, what is left out).
    const isnAnchor = name === 'pvm' ? 0x1_0000_0000 : 0x8000_0000;
    const entropy = this.prng.fork();
    const machine = new Machine(
      name,
      this.#guestState(),
      mood,
      this.queue,
      entropy,
      isnAnchor,
      emit,
    );
    machine.host.marks = this.marks;
    return machine;
  }

  #path(name: string, kind: 'clientPath' | 'guestPath', deliver: (frame: SimFrame) => void): Path {
    const path = new Path(name, this.options[kind], this.queue, this.prng.fork(), deliver);
    path.observe(this.marks, kind === 'clientPath' ? 'clients' : 'guests');
    return path;
  }

  #attachNode(node: ProxyNode): { to: Path; from: Path } {
    const to = this.#path(`net>${node.name}`, 'clientPath', (frame) => {
      if (!node.isAlive) return;
      this.#follow(`net > ${node.name}`, frame);
      for (const checker of this.#checkers) checker.onNetInput?.(node, frame);
      node.receive('net', frame);
    });
    // Between switch and node the frame is already on the wire; the impairments of the clients' links are enough.
    to.impairments.delayUsMax = to.impairments.delayUsMin + 20;
    to.impairments.loss = 0;
    const port = this.switch.attach((frame) => to.send(frame));
    const from = this.#path(`${node.name}>net`, 'clientPath', (frame) =>
      this.switch.input(port, frame),
    );
    from.impairments.delayUsMax = from.impairments.delayUsMin + 20;
    from.impairments.loss = 0;
    return { to, from };
  }

  #attachGuest(node: ProxyNode, machine: Machine): { to: Path; from: Path } {
    const to = this.#path(`${node.name}>guest`, 'guestPath', (frame) => machine.deliver(frame));
    const from = this.#path(`guest>${node.name}`, 'guestPath', (frame) =>
      node.receive('guest', frame),
    );
    return { to, from };
  }

  #addClient(index: number): void {
    const { vlan, mtu, clientTcp } = this.options;
    const state = createHostState({
      mac: `0200000000${(16 + index).toString(16)}`,
      ip4: `0a0001${(16 + index).toString(16)}`,
      ip6: `fd0000000000000000000000000001${(16 + index).toString(16)}`,
      vlan,
      mtu,
      tcp: clientTcp,
      partialChecksums: false,
    });
    state.listening.add(CLIENT_LISTEN_PORT);
    const application = new ClientApplication();
    let port = 0;
    const toSwitch = this.#path(`client${index}>switch`, 'clientPath', (frame) =>
      this.switch.input(port, frame),
    );
    const host = new Host(`client${index}`, state, application, this.prng.fork(), (frame) => {
      for (const part of completeOffload(frame)) toSwitch.send(part);
    });
    host.marks = this.marks;
    host.side = 'client';
    const timer = { atUs: NEVER as Micros, generation: 0 };
    const reschedule = (): void => {
      const atUs = host.deadlineUs();
      if (atUs === timer.atUs) return;
      timer.atUs = atUs;
      const generation = ++timer.generation;
      if (atUs === NEVER) return;
      this.queue.at(atUs, `client${index}-timer`, () => {
        if (generation !== timer.generation) return;
        timer.atUs = NEVER;
        host.timers(this.queue.nowUs);
        reschedule();
      });
    };
    const fromSwitch = this.#path(`switch>client${index}`, 'clientPath', (frame) => {
      if (this.#capture) this.seen.push({ atUs: this.queue.nowUs, frame });
      if (hasTcpData(frame)) client.lastData = frame;
      host.input(frame, this.queue.nowUs);
      reschedule();
    });
    port = this.switch.attach((frame) => fromSwitch.send(frame));
    const client: Client = {
      host,
      application,
      toSwitch,
      fromSwitch,
      lastData: undefined,
      reschedule,
    };
    this.clients.push(client);
  }

  #makeVmLayer(): VmLayer {
    return new VmLayer(
      this.queue,
      this.prng.fork(),
      this.options.vm,
      { pvm: this.pvm, svm: this.svm },
      { primary: this.primary, secondary: this.secondary },
      {
        onPhase: (phase) => {
          this.phaseScript?.(phase);
          if (phase === this.deathPhase && this.primary.isAlive) {
            this.deathPhase = '';
            this.killPrimary(phase);
          }
          if (phase === this.secondaryDeath?.phase) {
            const { restartUs } = this.secondaryDeath;
            this.secondaryDeath = undefined;
            this.killSecondary(restartUs, phase);
          }
        },
        onSaved: (image) => {
          this.#saved.set(image, cloneDeep(this.#records.pvm));
        },
        onLoaded: (image) => {
          this.#records.svm = cloneDeep(this.#saved.get(image)!);
          this.isSvmSynced = true;
        },
        drainPrimary: () => this.#drain(this.primaryGuest.from, this.primary),
        drainSecondary: () => this.#drain(this.secondaryGuest.from, this.secondary),
        note: (what) => this.marks.hit(`vm: ${what}`),
        line: (text) => this.line(text),
      },
    );
  }

  /** All that a paused guest has sent is inside the engine. */
  #drain(path: Path, node: ProxyNode): void {
    path.hurry();
    if (!node.isHung) node.drainGuest();
  }

  #nodeHooks(): NodeHooks {
    return {
      toNet: (node, frame, state) => this.#toNet(node, frame, state),
      toGuest: (node, frame) => {
        this.#follow(`${node.name} > guest`, frame);
        for (const checker of this.#checkers) checker.onGuestOutput?.(node, frame);
        (node === this.primary ? this.primaryGuest : this.secondaryGuest).to.send(frame);
      },
      onGuestInput: (node, frame) => {
        this.#follow(`guest > ${node.name}`, frame);
        for (const checker of this.#checkers) checker.onGuestInput?.(node, frame);
      },
      onPair: (how) => this.marks.hit(how),
      onRequest: (node, request) => this.#onRequest(node, request),
      onEvent: (node, event) => {
        this.line(`${node.name}: ${event.kind}: ${event.text}`);
        if (node === this.primary && event.kind === 'state') {
          const to = event.fields?.['to'];
          if (to !== 'checkpointing') {
            this.isRequestOpen = false;
            this.#isProtected = to === 'protected';
          }
          if (to === 'unprotected' && this.isHealed) this.#askAfterReset(event);
        }
        if (node === this.primary && event.kind === 'peer-up') this.#isSecondaryNew = false;
        if (node === this.secondary && event.kind === 'checkpoint-committed')
          this.isSecondaryReset = false;
        this.vm.onEvent(node, event);
        for (const checker of this.#checkers) checker.onEvent?.(node, event);
      },
      onSettled: (node) => {
        for (const checker of this.#checkers) checker.onSettled?.(node);
      },
      drainGuest: (node) => {
        const path = node === this.primary ? this.primaryGuest.from : this.secondaryGuest.from;
        this.#drain(path, node);
      },
    };
  }

  /** After an operator's reset, of either node, the primary waits for the next checkpoint, whoever asks for it. */
  #askAfterReset(event: ProxyEvent): void {
    if (String(event.fields?.['reason']).endsWith('reset: operator')) this.vm.request();
  }

  #onRequest(node: ProxyNode, request: CheckpointRequest): void {
    if (node !== this.primary) return;
    this.isRequestOpen = true;
    this.marks.hit(`cause: ${request.cause}`);
    for (const checker of this.#checkers) checker.onRequest?.(request);
    this.line(`request ${request.id}: ${request.cause} ${request.flow} at ${request.offset}`);
    this.vm.request();
  }

  #toNet(node: ProxyNode, frame: SimFrame, state: NodeState): void {
    this.trace.bytes(frame);
    this.#follow(`${node.name} > net`, frame);
    for (const checker of this.#checkers) checker.onNetOutput?.(node, frame, state);
    const path = node === this.primary ? this.primaryNet.from : this.secondaryNet.from;
    for (const part of completeOffload(frame)) path.send(part);
  }

  #fromGuest(machine: Machine, frame: SimFrame): void {
    const isPrimary = machine === this.pvm;
    const packet = parseIp(frame);
    // Until it holds a state of the PVM, the SVM's output means nothing. What a lost SVM had sent counts until then:
    // the primary may go on by it until it notices the loss.
    if (packet !== undefined && (isPrimary || this.isSvmSynced)) {
      const record = isPrimary ? this.#records.pvm : this.#records.svm;
      recordPacket(record, packet, (key) => machine.host.state.connections.get(key));
    }
    (isPrimary ? this.primaryGuest : this.secondaryGuest).from.send(frame);
  }

  /** Counts what the node's engine has counted; once in the life of each. */
  noteEngine(node: ProxyNode): void {
    const { dropped, counters } = node.engine.status(node.nowUs);
    for (const [name, count] of Object.entries({ ...counters, ...dropped })) {
      if (count > 0) this.marks.hit(`${node.role} ${name}` as Mark);
    }
  }

  /** Bounds on times do not count before this. */
  disturb(durationUs: Micros): void {
    this.disturbedUs = Math.max(this.disturbedUs, this.queue.nowUs + durationUs);
  }

  // ------------------------------------------------------------------ deaths and the arbiter

  /**
   * The primary's node stops for good, its machine with it.
   *
   * @param isHostDead otherwise its system closes the sockets, after what was written has arrived
   */
  killPrimary(when: Moment, isHostDead = this.prng.chance(0.5)): void {
    if (!this.primary.isAlive) return;
    const { state } = this.primary.engine;
    this.line(`FAULT primary dies, ${momentText(when)}; it was ${state}`);
    this.marks.hit(`primary dies: ${when}`);
    this.noteEngine(this.primary);
    this.primary.kill();
    this.pvm.kill();
    this.link.onNodeDead(this.primary, isHostDead);
    // A primary that has not noticed that its secondary died claims to be protected by that one; the next has no word of the primary's.
    if (this.#isSecondaryNew) this.line('the secondary was started anew, and has not been met');
    const isReplica = this.isSvmSynced && !this.isSecondaryReset && !this.#isSecondaryNew;
    const hasSurvivor = this.#isProtected && this.secondary.isAlive && isReplica;
    this.queue.after(this.prng.nextBelow(this.options.arbiterUsMax + 1), 'arbiter', () => {
      this.vm.onPrimaryDead();
      if (hasSurvivor && this.secondary.isAlive) this.#takeOver(1);
      else {
        this.isOutage = true;
        this.marks.hit('outage: the primary died unprotected');
      }
    });
  }

  #takeOver(tries: number): void {
    if (!this.secondary.isAlive || this.isFailoverGranted) return;
    if (this.secondary.isHung) {
      this.queue.at(this.secondary.hungUntilUs + 1, 'arbiter', () => this.#takeOver(tries));
      return;
    }
    this.isFailoverGranted = true;
    const result = this.secondary.command((engine, nowUs) => engine.failover(false, nowUs));
    this.line(`arbiter: failover: ${result.ok ? 'ok' : result.error}`);
    if (result.ok) {
      this.marks.hit(
        tries === 1 ? 'failover' : 'failover beside a connected peer refused, then accepted',
      );
      for (const checker of this.#checkers) checker.onFailover?.();
      return;
    }
    this.isFailoverGranted = false;
    if (tries >= TAKE_OVER_TRIES) {
      this.broken('G5', `the secondary does not take over: ${result.error}`);
      return;
    }
    this.queue.after(TAKE_OVER_AGAIN_US, 'arbiter', () => this.#takeOver(tries + 1));
  }

  killSecondary(restartUs: Micros, when: Moment): void {
    if (!this.secondary.isAlive || this.isFailoverGranted || !this.primary.isAlive) return;
    this.line(`FAULT secondary dies, ${momentText(when)}`);
    this.marks.hit(`secondary dies: ${when}`);
    this.noteEngine(this.secondary);
    this.secondary.kill();
    this.svm.kill();
    this.isSvmSynced = false;
    this.svmLostUs = this.queue.nowUs;
    this.link.onNodeDead(this.secondary, this.prng.chance(0.5));
    this.vm.onSecondaryDead();
    this.queue.after(restartUs, 'secondary-boots', () => {
      this.line('the secondary boots');
      this.marks.hit('secondary comes back');
      this.svm.boot(this.#guestState());
      this.secondary.restart();
      this.#isSecondaryNew = true;
      this.link.onNodeStarted(this.secondary);
    });
  }
}
