/**
 * The layer that runs the virtual machines, as QEMU and its management do: on request it pauses both guests, tells the
 * primary `begin`, copies the PVM's memory, loads it into the SVM, tells `commit`, and lets both go on. All of it takes time,
 * and may fail in the middle.
 *
 * @module
 */
import type { Prng } from '../base/prng.ts';
import { type Micros, US_PER_MS } from '../base/time.ts';
import type { CommandResult, Engine } from '../env/engine.ts';
import type { ProxyEvent } from '../env/messages.ts';
import type { EventQueue } from './event-queue.ts';
import type { Machine, MachineImage } from './machine.ts';
import type { VmMark } from './marks.ts';
import type { ProxyNode } from './node.ts';
import type { DEATH_PHASES, VmOptions } from './options.ts';

export type CheckpointPhase = (typeof DEATH_PHASES)[number];

export interface VmHooks {
  /** A phase is reached; may kill anything. */
  onPhase(phase: CheckpointPhase): void;
  /** The PVM's memory was copied. */
  onSaved(image: MachineImage): void;
  /** The SVM now runs from that copy. */
  onLoaded(image: MachineImage): void;
  /** What the PVM has sent is inside the engine. */
  drainPrimary(): void;
  drainSecondary(): void;
  line(text: string): void;
  note(what: VmMark): void;
}

/** See `isLate`. */
const LATE_US: Micros = 20 * US_PER_MS;
/** See `#askAgain`. */
const ASK_AGAIN_US: Micros = 100 * US_PER_MS;

interface Attempt {
  readonly isOneMessage: boolean;
  readonly isResumedFirst: boolean;
  readonly tellsSecondary: boolean;
  phase: 'begin' | 'copy' | 'commit' | 'over';
  image: MachineImage | undefined;
  isLoaded: boolean;
  /** The secondary has begun by this layer's own word. */
  isBegunAtSecondary: boolean;
  /** The SVM it was for has died: the copy cannot be loaded into the next one. */
  isSvmGone: boolean;
  /** That the commit opens; 0 before it is told. */
  epoch: number;
}

export class VmLayer {
  readonly #queue: EventQueue;
  readonly #prng: Prng;
  #options: VmOptions;
  /** It knows no begin, only one message for both edges. */
  readonly #isOneMessage: boolean;
  readonly #pvm: Machine;
  readonly #svm: Machine;
  readonly #primary: ProxyNode;
  readonly #secondary: ProxyNode;
  readonly #hooks: VmHooks;
  #attempt: Attempt | undefined;
  #isWantedAgain = false;
  #isStarting = false;
  /** The secondary's engine has been told (or has seen) the commit of the last load. */
  #isLoadAnnounced = true;
  checkpoints = 0;
  /** For scripts: requests are lost until the heal. */
  isDeaf = false;
  /** For scripts: it commits `LATE_US` after the load, with both guests running, whatever the nodes have said meanwhile. */
  isLate = false;
  /** Copies that wait for the secondary's node: of a checkpoint that was given up, too, since its commit may still reach the node. */
  #staged: Attempt[] = [];
  /** Somebody else has begun a checkpoint, and will give it up: until then none is made. */
  #isReserved = false;
  /** The SVM was loaded and its node does not know. */
  #isUntold = false;
  #toldAtUs: Micros = -1;

  constructor(
    queue: EventQueue,
    prng: Prng,
    options: VmOptions,
    machines: { pvm: Machine; svm: Machine },
    nodes: { primary: ProxyNode; secondary: ProxyNode },
    hooks: VmHooks,
  ) {
    this.#queue = queue;
    this.#prng = prng;
    this.#options = options;
    this.#isOneMessage = prng.chance(options.oneMessage);
    this.#pvm = machines.pvm;
    this.#svm = machines.svm;
    this.#primary = nodes.primary;
    this.#secondary = nodes.secondary;
    this.#hooks = hooks;
  }

  get isBusy(): boolean {
    return this.#attempt !== undefined || this.#isStarting;
  }

  /**
   * The SVM was loaded and its node does not know (yet, or never if the commit was refused), or gives away what it has translated before, in the batch
   * in which it was told.
   */
  get isReplacedUntold(): boolean {
    return this.#isUntold || this.#queue.nowUs === this.#toldAtUs;
  }

  /** Faults stop: every request is followed. */
  heal(): void {
    this.isDeaf = false;
    this.#options = { ...this.#options, lostRequest: 0, failBeforeLoad: 0, failAfterLoad: 0 };
  }

  /** The engine (or an operator) asks for a checkpoint. */
  request(): void {
    if (this.#prng.chance(this.#options.lostRequest) || this.isDeaf) {
      this.#hooks.note('request lost');
      return;
    }
    if (this.#attempt !== undefined || this.#isReserved) {
      this.#isWantedAgain = true;
      return;
    }
    if (this.#isStarting) return;
    this.#isStarting = true;
    this.#queue.after(this.#prng.nextBelow(this.#options.startUsMax + 1), 'vm', () => {
      this.#isStarting = false;
      this.#start();
    });
  }

  /** Requests wait until `free`. Precondition: not busy. */
  reserve(): void {
    this.#isReserved = true;
  }

  free(): void {
    this.#isReserved = false;
    this.#requestAgain();
  }

  #requestAgain(): void {
    if (!this.#isWantedAgain) return;
    this.#isWantedAgain = false;
    this.request();
  }

  #canRun(): boolean {
    return (
      this.#pvm.isAlive && this.#svm.isAlive && this.#primary.isAlive && this.#secondary.isAlive
    );
  }

  #start(): void {
    if (this.#attempt !== undefined || !this.#canRun()) return;
    const attempt: Attempt = {
      isOneMessage: this.#isOneMessage,
      isResumedFirst: this.#prng.chance(this.#options.resumeBeforeCommit),
      // A copy that waits for its node's decision must not decide for the node.
      tellsSecondary: !this.#options.isStaged && this.#prng.chance(this.#options.tellsSecondary),
      phase: 'begin',
      image: undefined,
      isLoaded: false,
      isBegunAtSecondary: false,
      isSvmGone: false,
      epoch: 0,
    };
    this.#attempt = attempt;
    this.#pvm.pause();
    this.#svm.pause();
    this.#hooks.line('vm: both guests paused');
    if (attempt.tellsSecondary) this.#hooks.drainSecondary();
    const begun = this.#tellSecondary(attempt, 'begin', (engine, nowUs) =>
      engine.checkpointBegin(nowUs),
    );
    attempt.isBegunAtSecondary = begun?.ok === true;
    this.#hooks.onPhase('paused');
    this.#whenAwake(attempt, () => {
      this.#hooks.drainPrimary();
      if (attempt.isOneMessage) {
        this.#hooks.note('one message for both edges');
        this.#copy(attempt);
        return;
      }
      if (!this.#tell('begin', (engine, nowUs) => engine.checkpointBegin(nowUs)).ok) {
        this.#hooks.note('begin refused');
        this.#giveUp(attempt, 'begin refused');
        return;
      }
      this.#giveUpLater(attempt, 'begin');
    });
  }

  /** Commands to a process that hangs wait in its socket. */
  #whenAwake(attempt: Attempt, run: () => void): void {
    if (this.#attempt !== attempt) return;
    if (this.#primary.isAlive && this.#primary.isHung) {
      this.#queue.at(this.#primary.hungUntilUs + 1, 'vm', () => this.#whenAwake(attempt, run));
    } else if (this.#primary.isAlive) run();
  }

  #tell(name: string, run: Parameters<ProxyNode['command']>[0]): CommandResult {
    let result = this.#primary.command(run);
    this.#hooks.line(`vm: ${name}: ${result.ok ? 'ok' : result.error}`);
    if (result.ok && this.#prng.chance(this.#options.repeatCommands)) {
      this.#hooks.note('command repeated');
      result = this.#primary.command(run);
    }
    return result;
  }

  /**
   * The commit of the secondary alone. As the runner does: where no begin has drained the SVM's port this does, or what
   * the SVM sent before the load would count as sent by the copy.
   */
  #commitAlone(engine: Engine, nowUs: Micros): CommandResult {
    if (engine.state !== 'checkpointing') this.#hooks.drainSecondary();
    return engine.checkpointCommit(nowUs);
  }

  /** Its own word to the secondary, which hears of the checkpoint by its peer as well; not to one that does not answer. */
  #tellSecondary(
    attempt: Attempt,
    name: string,
    run: Parameters<ProxyNode['command']>[0],
  ): CommandResult | undefined {
    if (!attempt.tellsSecondary || !this.#secondary.isAlive || this.#secondary.isHung) return;
    const result = this.#secondary.command(run);
    this.#hooks.note('tells both nodes');
    this.#hooks.line(`vm: ${name} to the secondary: ${result.ok ? 'ok' : result.error}`);
    return result;
  }

  /** A command waits in the socket of a secondary that hangs; of one that dies nobody hears. */
  #whenSecondaryAwake(run: () => void): void {
    if (!this.#secondary.isAlive) return;
    if (this.#secondary.isHung) {
      this.#queue.at(this.#secondary.hungUntilUs + 1, 'vm', () => this.#whenSecondaryAwake(run));
    } else run();
  }

  #abortAtSecondary(attempt: Attempt, reason: string): void {
    this.#tellSecondary(attempt, 'abort', (engine, nowUs) => engine.checkpointAbort(reason, nowUs));
  }

  #giveUpLater(attempt: Attempt, phase: Attempt['phase']): void {
    this.#queue.after(this.#options.answerTimeoutUs, 'vm', () => {
      if (this.#attempt !== attempt || attempt.phase !== phase) return;
      this.#hooks.note('gives up waiting');
      this.#whenAwake(attempt, () => this.#abort(attempt, `no answer to ${phase}`));
    });
  }

  #abort(attempt: Attempt, reason: string): void {
    if (this.#primary.isAlive && this.#primary.engine.state === 'checkpointing') {
      this.#tell('abort', (engine, nowUs) => engine.checkpointAbort(reason, nowUs));
      this.#abortAtSecondary(attempt, reason);
    } else if (this.#primary.isAlive && attempt.isLoaded) {
      // Nobody was told of a begin, but the SVM is no longer what it was.
      this.#askAgain();
      this.#tell('reset', (engine, nowUs) => engine.reset(reason, nowUs));
    } else {
      this.#giveUp(attempt, reason);
      return;
    }
    this.#over(attempt, reason);
  }

  /** After a reset no node asks by itself: whoever made it does, until there was a checkpoint. */
  #askAgain(): void {
    const { checkpoints } = this;
    this.#queue.after(ASK_AGAIN_US, 'vm', () => {
      if (this.checkpoints !== checkpoints || !this.#canRun()) return;
      this.request();
      this.#askAgain();
    });
  }

  /** The primary knows of nothing; what was begun at the secondary must not stay so while the SVM goes on. */
  #giveUp(attempt: Attempt, reason: string): void {
    if (!attempt.isBegunAtSecondary || attempt.isSvmGone) {
      this.#over(attempt, reason);
      return;
    }
    this.#whenSecondaryAwake(() => {
      if (this.#attempt !== attempt || attempt.isSvmGone) return;
      this.#abortAtSecondary(attempt, reason);
      this.#over(attempt, reason);
    });
  }

  /** Both guests go on; the next checkpoint may come. */
  #over(attempt: Attempt, reason: string): void {
    if (this.#attempt !== attempt) return;
    attempt.phase = 'over';
    this.#attempt = undefined;
    // Committed and known, or given up: then the state in the SVM stands for nothing.
    this.#isLoadAnnounced = true;
    this.#pvm.resume();
    this.#svm.resume();
    this.#hooks.line(`vm: over: ${reason}`);
    this.#hooks.onPhase('resumed');
    this.#requestAgain();
  }

  /** What the nodes announce. */
  onEvent(node: ProxyNode, event: ProxyEvent): void {
    if (node === this.#secondary) {
      if (event.kind === 'failover' && this.#staged.length > 0) this.#discardStaged();
      if (event.kind !== 'checkpoint-committed') return;
      this.#loadStaged(Number(event.fields?.['epoch']));
      this.#isLoadAnnounced = true;
      this.#isUntold = false;
      this.#toldAtUs = this.#queue.nowUs;
      return;
    }
    const attempt = this.#attempt;
    if (attempt === undefined) return;
    if (event.kind === 'checkpoint-begun' && attempt.phase === 'begin') {
      // Never from within the engine's call.
      this.#queue.after(0, 'vm', () => this.#copy(attempt));
    } else if (event.kind === 'checkpoint-committed' && attempt.phase === 'commit') {
      this.checkpoints++;
      this.#hooks.note('committed');
      this.#queue.after(this.#prng.nextBelow(500), 'vm', () => {
        this.#hooks.onPhase('committed');
        this.#over(attempt, 'committed');
      });
    } else if (event.kind === 'state') {
      const to = event.fields?.['to'];
      if (to !== 'unprotected' && to !== 'syncing') return;
      const isNoMatter = attempt.isOneMessage && attempt.phase !== 'commit';
      if (isNoMatter || this.isLate) return;
      this.#queue.after(this.#prng.nextBelow(2_000), 'vm', () => {
        // That was before this attempt's own begin.
        if (this.#primary.isAlive && this.#primary.engine.state === 'checkpointing') return;
        this.#over(attempt, `the node is ${to}`);
      });
    }
  }

  #copy(attempt: Attempt): void {
    if (this.#attempt !== attempt || attempt.phase !== 'begin') return;
    if (attempt.isSvmGone || !this.#canRun()) return;
    attempt.phase = 'copy';
    this.#hooks.onPhase('begun');
    // Nobody copies the memory of a dead machine.
    if (this.#attempt !== attempt || !this.#pvm.isAlive) return;
    attempt.image = this.#pvm.save();
    this.#hooks.onSaved(attempt.image);
    this.#hooks.onPhase('saved');
    this.#queue.after(this.#prng.nextBelow(this.#options.copyUsMax + 1), 'vm', () => {
      if (this.#attempt !== attempt || attempt.phase !== 'copy') return;
      if (this.#prng.chance(this.#options.failBeforeLoad)) {
        this.#hooks.note('fails before the load');
        this.#whenAwake(attempt, () => this.#abort(attempt, 'the copy failed'));
        return;
      }
      this.#load(attempt, attempt.image!);
    });
  }

  #load(attempt: Attempt, image: MachineImage): void {
    if (attempt.isSvmGone || !this.#svm.isAlive) return;
    if (this.#options.isStaged) {
      this.#stage(attempt);
      return;
    }
    this.#svm.load(image);
    attempt.isLoaded = true;
    this.#isLoadAnnounced = false;
    this.#isUntold = true;
    this.#hooks.onLoaded(image);
    this.#hooks.line('vm: the SVM runs from the copy');
    this.#tellSecondary(attempt, 'commit', (engine, nowUs) => this.#commitAlone(engine, nowUs));
    this.#hooks.onPhase('loaded');
    if (this.#attempt !== attempt) return;
    if (this.#prng.chance(this.#options.failAfterLoad)) {
      this.#hooks.note('fails after the load');
      this.#whenAwake(attempt, () => this.#abort(attempt, 'failed after the copy'));
      return;
    }
    if ((attempt.isResumedFirst || this.isLate) && !attempt.isOneMessage) {
      this.#hooks.note('resumes before the commit');
      // RESUME of the two machines comes in no certain order, and before anybody is told.
      const machines = this.#prng.chance(0.5) ? [this.#pvm, this.#svm] : [this.#svm, this.#pvm];
      machines[0]?.resume();
      if (this.isLate) machines[1]?.resume();
      const afterUs = this.isLate ? LATE_US : this.#prng.nextBelow(3 * US_PER_MS);
      this.#queue.after(afterUs, 'vm', () => {
        if (this.#attempt !== attempt) return;
        machines[1]?.resume();
        this.#whenAwake(attempt, () => this.#commit(attempt));
      });
      return;
    }
    this.#whenAwake(attempt, () => this.#commit(attempt));
  }

  /** The copy is complete, and takes the SVM's place when its node commits: one decision for both. */
  #stage(attempt: Attempt): void {
    this.#staged.push(attempt);
    this.#hooks.note('copy waits for the node');
    this.#hooks.line('vm: the copy waits beside the SVM');
    this.#hooks.onPhase('loaded');
    if (this.#attempt !== attempt) return;
    if (this.#prng.chance(this.#options.failAfterLoad)) {
      this.#unstage(attempt);
      this.#whenAwake(attempt, () => this.#abort(attempt, 'failed after the copy'));
      return;
    }
    this.#whenAwake(attempt, () => this.#commit(attempt));
  }

  #unstage(attempt: Attempt): void {
    this.#staged = this.#staged.filter((other) => other !== attempt);
  }

  /** The copy that this epoch opens with takes the SVM's place; those before it are worth nothing any more. */
  #loadStaged(epoch: number): void {
    const image = this.#staged.find((attempt) => attempt.epoch === epoch)?.image;
    this.#staged = this.#staged.filter((attempt) => attempt.epoch === 0 || attempt.epoch > epoch);
    if (image === undefined || !this.#svm.isAlive) return;
    this.#svm.load(image);
    this.#hooks.onLoaded(image);
    this.#hooks.line('vm: the SVM runs from the copy');
    if (!this.#primary.isAlive) this.#svm.resume();
  }

  #discardStaged(): void {
    this.#hooks.note('waiting copy thrown away');
    this.#hooks.line('vm: throws the copy away');
    this.#staged = [];
    this.#svm.resume();
  }

  #commit(attempt: Attempt): void {
    if (this.#attempt !== attempt || attempt.phase !== 'copy' || attempt.isSvmGone) return;
    attempt.phase = 'commit';
    attempt.epoch = this.#primary.engine.epoch + 1;
    if (!this.#tell('commit', (engine, nowUs) => engine.checkpointCommit(nowUs)).ok) {
      this.#unstage(attempt);
      this.#over(attempt, 'commit refused');
      return;
    }
    this.#hooks.onPhase('commit');
    this.#giveUpLater(attempt, 'commit');
  }

  /** The primary's node is dead. The secondary's side of this layer knows whether the copy is complete. */
  onPrimaryDead(): void {
    const attempt = this.#attempt;
    this.#attempt = undefined;
    this.#whenSecondaryAwake(() => this.#endAtSecondary(attempt));
  }

  #endAtSecondary(attempt: Attempt | undefined): void {
    if (this.#staged.length > 0) {
      const why = 'the primary died';
      const result = this.#secondary.command((engine, nowUs) => engine.checkpointAbort(why, nowUs));
      // Refused: the node has not heard of the checkpoint yet, and may still commit it. It decides when it fails over.
      if (result.ok) this.#discardStaged();
      return;
    }
    if (!this.#isLoadAnnounced) {
      this.#hooks.note('told the secondary alone');
      this.#hooks.line('vm: tells the secondary that the SVM runs from the copy');
      this.#secondary.command((engine, nowUs) => this.#commitAlone(engine, nowUs));
    } else if (attempt !== undefined && this.#prng.chance(0.5)) {
      this.#secondary.command((engine, nowUs) => engine.checkpointAbort('the primary died', nowUs));
    }
    this.#svm.resume();
  }

  /** The secondary's node is dead, its machine with it. */
  onSecondaryDead(): void {
    this.#isLoadAnnounced = true;
    this.#isUntold = false;
    this.#staged = [];
    const attempt = this.#attempt;
    if (attempt === undefined) return;
    attempt.isSvmGone = true;
    this.#queue.after(this.#prng.nextBelow(20 * US_PER_MS), 'vm', () => {
      this.#whenAwake(attempt, () => this.#abort(attempt, 'the secondary machine is gone'));
    });
  }
}
