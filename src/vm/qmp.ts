/**
 * The driver `--vm qmp:unix:PATH | qmp:HOST:PORT`: a stock QEMU COLO pair, each node connected to the monitor of its own QEMU.
 *
 *     disconnected --greeting, capabilities--> idle --COLO--> running, requested, stopped, resumed
 *          ^                                    ^                        |
 *          '------- connection lost ------------+------ COLO_EXIT -------'
 *
 * On the primary checkpoints are asked for and told (`qmp-checkpoints.ts`). On the secondary, which hears of them over
 * the peer link, the end of one is told as well (`qmp-replica.ts`). Failover:
 *
 * - secondary: when the node has taken over, QEMU is told `x-colo-lost-heartbeat`. When somebody else has told it so
 *   (COLO_EXIT or query-colo-status with reason `request`), that is the decision from outside, and the node is asked to take over.
 * - primary: QEMU is told the same when COLO has failed, or hangs in a checkpoint, and this node is the one that serves:
 *   the peer's proxy is alive (and therefore refuses to take over), or the node has decided to serve alone. Once it has, one checkpoint
 *   is asked for: it fails when the secondary's QEMU is gone. Otherwise QEMU stays in COLO while the peer's proxy is
 *   away, so that protection comes back with one checkpoint.
 *
 * A QEMU whose monitor refuses connections, after it was lost inside of COLO, is dead, and its guest with it: the node is
 * told so. (A QEMU that hangs accepts them, and one that was shut down has sent SHUTDOWN.) One that hangs does not answer either
 * (`qmp-liveness.ts`): a secondary's node then resets, so that the primary serves on without it.
 *
 * Measured with QEMU 7.2: COLO_EXIT comes on the secondary 1 to 6 ms after the primary was killed; on the primary
 * nothing comes when the secondary is killed, until the next checkpoint fails.
 *
 * @module
 */
import type { Micros } from '../base/time.ts';
import type { QmpObject } from '../codec/qmp-json.ts';
import type { ProxyEvent, Role } from '../env/messages.ts';
import type { VmDriver, VmEvents, VmStatus } from '../env/vm.ts';
import { type Endpoint, endpointText, isLocal } from './endpoint.ts';
import { QmpCheckpoints } from './qmp-checkpoints.ts';
import { QmpClient, type QmpEvent, type QmpResult } from './qmp-client.ts';
import { QmpLiveness } from './qmp-liveness.ts';
import { QmpReplica } from './qmp-replica.ts';

export interface QmpVmOptions {
  readonly endpoint: Endpoint;
  readonly role: Role;
  /**
   * Secondary without a link to its primary: STOP and RESUME inside of COLO are begin and commit. Only QEMU's own; an operator
   * must not stop and resume this guest by hand. @default false
   */
  readonly isAlone?: boolean;
  /** @default QMP_COMMAND_TIMEOUT_US */
  readonly commandTimeoutUs?: Micros;
  /** @default QMP_LIVENESS_INTERVAL_US */
  readonly livenessIntervalUs?: Micros;
  /** @default QMP_RECONNECT_MIN_US */
  readonly reconnectMinUs?: Micros;
  /** @default QMP_STOP_TIMEOUT_US */
  readonly stopTimeoutUs?: Micros;
  /** @default QMP_RESUME_TIMEOUT_US */
  readonly resumeTimeoutUs?: Micros;
}

/** Refusals in a row until QEMU counts as dead: a supervisor may put a relay of its own between. */
const REFUSALS_OF_THE_DEAD = 2;

/** After these the node is not between begin and commit any more. */
const UNDOING: ReadonlySet<ProxyEvent['kind']> = new Set([
  'checkpoint-aborted',
  'peer-down',
  'reset',
] as const);

export type QmpState = 'disconnected' | 'idle' | 'running' | 'requested' | 'stopped' | 'resumed';

export class QmpVmDriver implements VmDriver {
  readonly name: string;
  readonly #options: QmpVmOptions;
  readonly #client: QmpClient;
  #checkpoints: QmpCheckpoints | undefined;
  #liveness: QmpLiveness | undefined;
  readonly #replica = new QmpReplica(() => void this.#commitReplica());
  #events: VmEvents | undefined;
  #state: QmpState = 'disconnected';
  #version = '';
  #isInColo = false;
  #isStopped = false;
  /** Counts STOP and RESUME, to see whether an answer about them is still true. */
  #stopsAndResumes = 0;
  /** Said already that requests wait for COLO. */
  #hasReportedNoColo = false;
  /** COLO ended with an error, and QEMU waits for `x-colo-lost-heartbeat`. */
  #isBroken = false;
  /** The secondary has taken over: QEMU has to leave COLO, now or when it can be reached again. */
  #mustLeave = false;
  /** The primary serves without its peer. QEMU stays in COLO, so that a peer that comes back needs a checkpoint only. */
  #isReleased = false;
  /** This driver has sent `x-colo-lost-heartbeat` since COLO was entered. */
  #hasToldLost = false;
  #isPeerUp = false;
  /** The connection was lost inside of COLO, without a SHUTDOWN; refusals since. */
  #refusals: number | undefined;
  #hasShutDown = false;
  #isClosed = false;
  readonly #counters = { coloEntries: 0, coloExits: 0, unknownEvents: 0 };

  constructor(options: QmpVmOptions) {
    this.#options = options;
    this.name = `qmp:${endpointText(options.endpoint)}`;
    this.#client = new QmpClient({
      ...options,
      handlers: {
        onUp: (version) => void this.#onUp(version),
        onDown: (reason) => this.#onDown(reason),
        onUnreachable: (refused) => this.#onUnreachable(refused),
        onEvent: (event) => this.#onEvent(event),
      },
    });
  }

  /** Resolves at once: QEMU may be started later, and again. */
  start(events: VmEvents): Promise<void> {
    this.#events = events;
    this.#checkpoints = new QmpCheckpoints({
      client: this.#client,
      events,
      onPhase: (phase, cause) => this.#setState(phase, cause),
      onHung: (reason) => void this.#onHung(reason),
      sameClock: isLocal(this.#options.endpoint),
      stopTimeoutUs: this.#options.stopTimeoutUs,
      resumeTimeoutUs: this.#options.resumeTimeoutUs,
    });
    this.#liveness = new QmpLiveness({
      client: this.#client,
      stretch: () => (this.#isInColo && !this.#isStopped ? this.#stopsAndResumes : undefined),
      onHung: (reason) => this.#onSilent(reason),
      onBack: () => this.#report('QEMU answers again', { hung: false }),
      timeoutUs: this.#options.commandTimeoutUs,
      intervalUs: this.#options.livenessIntervalUs,
    });
    this.#client.start();
    return Promise.resolve();
  }

  requestCheckpoint(): void {
    // The engine repeats its requests; once is enough to say it.
    if (!this.#isInColo && !this.#hasReportedNoColo) {
      this.#hasReportedNoColo = true;
      this.#report(
        'A checkpoint is wanted, but QEMU is not in COLO: it comes when COLO is entered',
      );
    }
    this.#checkpoints?.request();
  }

  onEvent(event: ProxyEvent): void {
    if (UNDOING.has(event.kind)) {
      this.#checkpoints?.onUndone(event.kind === 'checkpoint-aborted');
    }
    if (event.kind === 'checkpoint-begun') {
      this.#replica.onBegun();
    } else if (event.kind === 'checkpoint-committed' || event.kind === 'checkpoint-aborted') {
      this.#replica.onOver();
    } else if (event.kind === 'peer-up') {
      this.#isPeerUp = true;
      this.#isReleased = false;
    } else if (event.kind === 'peer-down') {
      this.#isPeerUp = false;
    } else if (event.kind === 'failover') {
      this.#mustLeave = true;
      void this.#tellLost(event.text);
    } else if (event.kind === 'arbitration' && event.fields?.['decision'] === 'release') {
      this.#isReleased = true;
      // In the midst of a checkpoint the guest is stopped, and waits for a peer that will not answer.
      if (this.#isBroken || (this.#isInColo && this.#isStopped)) void this.#tellLost(event.text);
      // Shows whether the other QEMU is gone too: then this one fails in it, and is told to leave COLO.
      else this.#checkpoints?.request();
    }
  }

  status(): VmStatus {
    return {
      driver: this.name,
      state: this.#state,
      qemu: this.#version,
      colo: this.#isInColo,
      stopped: this.#isStopped,
      hung: this.#liveness?.isHung ?? false,
      ...this.#counters,
      ...this.#checkpoints?.counters,
      ...this.#client.counters,
    };
  }

  close(): Promise<void> {
    this.#isClosed = true;
    this.#checkpoints?.close();
    this.#liveness?.close();
    this.#client.close();
    return Promise.resolve();
  }

  // The connection.

  async #onUp(version: string): Promise<void> {
    this.#version = version;
    this.#hasShutDown = false;
    this.#setState('idle', `connected to QEMU ${version}`);
    const before = this.#stopsAndResumes;
    const status = await this.#query('query-status');
    if (before === this.#stopsAndResumes) this.#isStopped = status['running'] === false;
    const parameters = await this.#query('query-migrate-parameters');
    const capabilities = await this.#client.execute('query-migrate-capabilities');
    const colo = await this.#queryColo();
    if (!this.#client.up || this.#isClosed) return;
    this.#refusals = undefined;
    const delayMs = parameters['x-checkpoint-delay'];
    if (typeof delayMs === 'number' && this.#checkpoints !== undefined) {
      this.#checkpoints.delayMs = delayMs;
    }
    if (colo === undefined || colo.mode === 'none') return;
    if (colo.mode !== this.#options.role) {
      this.#reportWrongRole(colo.mode);
      return;
    }
    if (!hasCapability(capabilities, 'events')) {
      this.#report(
        'The migration capability "events" is off: checkpoints of this QEMU cannot be proven',
      );
    }
    this.#enterColo('query-colo-status', false);
  }

  #onDown(reason: string): void {
    if (this.#state === 'disconnected') this.#report(`Cannot reach QEMU yet: ${reason}`);
    this.#setState('disconnected', reason);
    if ((this.#isInColo || this.#isBroken) && !this.#hasShutDown) this.#refusals ??= 0;
    this.#isInColo = false;
    this.#isBroken = false;
    this.#replica.onOver();
    this.#liveness?.disconnect();
    this.#checkpoints?.disconnect();
  }

  #onUnreachable(refused: boolean): void {
    if (this.#refusals === undefined) return;
    this.#refusals = refused ? this.#refusals + 1 : 0;
    if (this.#refusals < REFUSALS_OF_THE_DEAD) return;
    this.#refusals = undefined;
    const text = 'QEMU is dead: its monitor was lost inside of COLO, and refuses connections';
    this.#report(text);
    this.#events?.guestLost(text);
  }

  async #query(command: string): Promise<QmpObject> {
    const result = await this.#client.execute(command);
    if (!result.ok) {
      this.#report(`${command} failed: ${result.text}`);
      // Whether it is in COLO no event tells afterwards: it is asked again.
      if (result.failure === 'timeout') this.#client.reconnect(result.text);
      return {};
    }
    const { value } = result;
    return typeof value === 'object' && value !== null ? (value as QmpObject) : {};
  }

  /** Undefined when QEMU does not say. */
  async #queryColo(): Promise<{ readonly mode: string; readonly reason: string } | undefined> {
    const { mode, reason } = await this.#query('query-colo-status');
    return typeof mode === 'string' ? { mode, reason: String(reason) } : undefined;
  }

  // Events of QEMU.

  #onEvent(event: QmpEvent): void {
    switch (event.name) {
      case 'STOP':
        this.#onStop();
        return;
      case 'RESUME':
        this.#onResume(event.atUs);
        return;
      case 'MIGRATION':
        this.#onMigration(String(event.data['status']));
        return;
      case 'MIGRATION_PASS':
        this.#checkpoints?.onEvidence();
        return;
      case 'COLO_EXIT':
        this.#onColoExit(String(event.data['mode']), String(event.data['reason']));
        return;
      case 'SHUTDOWN':
        this.#hasShutDown = true;
        this.#report('QEMU reports SHUTDOWN');
        return;
      case 'RESET':
      case 'GUEST_PANICKED':
        this.#report(`QEMU reports ${event.name}`);
        return;
      default:
        this.#counters.unknownEvents++;
    }
  }

  #onStop(): void {
    this.#isStopped = true;
    this.#stopsAndResumes++;
    if (!this.#isInColo) return;
    if (this.#options.role === 'secondary') {
      this.#setState('stopped', 'STOP');
      this.#replica.onStop();
      this.#beginAlone();
      return;
    }
    this.#checkpoints?.onStop(false);
  }

  #onResume(atUs: Micros): void {
    this.#isStopped = false;
    this.#stopsAndResumes++;
    if (this.#options.role === 'primary') {
      this.#checkpoints?.onResume(atUs);
      return;
    }
    if (this.#isInColo) {
      this.#setState('running', 'RESUME');
      this.#replica.onResume();
      return;
    }
    // After COLO_EXIT with an error QEMU resumes when somebody has told it to take over.
    if (this.#isBroken) void this.#lookForTakeover();
  }

  #onMigration(status: string): void {
    if (status === 'colo') this.#enterColo('MIGRATION colo', this.#isStopped);
    else if (this.#isInColo && ['failed', 'cancelled', 'completed'].includes(status)) {
      this.#leaveColo(`MIGRATION ${status}`);
    }
  }

  #enterColo(cause: string, isStopped: boolean): void {
    if (this.#isInColo) return;
    this.#isInColo = true;
    this.#isBroken = false;
    this.#hasToldLost = false;
    this.#hasReportedNoColo = false;
    this.#counters.coloEntries++;
    this.#setState('running', cause);
    if (this.#options.role === 'primary') this.#checkpoints?.enter(isStopped);
    else if (isStopped && this.#options.isAlone === true) {
      // With the checkpoint of COLO's start under way.
      this.#replica.onStop();
      this.#beginAlone();
    }
    // It was told to leave while nobody could reach it.
    if (this.#mustLeave) void this.#tellLost('the node has taken over');
  }

  #leaveColo(reason: string): void {
    this.#isInColo = false;
    this.#replica.onOver();
    const isAborted = this.#checkpoints?.leave(reason);
    this.#setState('idle', reason);
    // An abort makes the node unprotected as well; without a peer the node has decided, or decides, by itself.
    if (this.#options.role !== 'primary' || isAborted === true || !this.#isPeerUp) return;
    void this.#events?.reset(reason);
  }

  /**
   * QEMU hangs. The secondary has no replica then, and says so to its primary, which goes on without it. The primary only
   * tells: a guest that may run again is for somebody outside to end.
   */
  #onSilent(reason: string): void {
    const text = `QEMU hangs: ${reason}`;
    this.#report(text, { hung: true });
    if (this.#options.role === 'secondary' && this.#options.isAlone !== true) {
      void this.#events?.reset(text);
    }
  }

  /** The guest was stopped for a checkpoint and does not go on. */
  async #onHung(reason: string): Promise<void> {
    // As after a COLO_EXIT with an error: this node is the one that serves, and its guest may wait for a QEMU that is silent.
    if (this.#isPeerUp || this.#isReleased) await this.#tellLost(reason);
    if (!this.#hasToldLost) this.#client.reconnect(reason);
  }

  #onColoExit(mode: string, reason: string): void {
    this.#counters.coloExits++;
    const { role } = this.#options;
    const text = `QEMU has left COLO: mode ${mode}, reason ${reason}`;
    this.#report(text, { mode, reason });
    if (!this.#isInColo) return;
    this.#isBroken = reason === 'error';
    this.#leaveColo(text);
    if (mode !== role) this.#reportWrongRole(mode);
    else if (role === 'secondary' && reason === 'request' && !this.#hasToldLost) {
      void this.#takeOver('QEMU was told x-colo-lost-heartbeat');
    } else if (this.#isBroken && role === 'secondary' && this.#mustLeave) {
      void this.#tellLost(text);
    } else if (this.#isBroken && role === 'primary' && (this.#isPeerUp || this.#isReleased)) {
      // The peer's proxy is alive and refuses to take over, or this node has decided to serve alone.
      void this.#tellLost(text);
    }
  }

  /** The engine's answer, an event, makes RESUME the commit. */
  #beginAlone(): void {
    if (this.#options.isAlone !== true) return;
    void this.#events?.checkpointBegin().then((result) => {
      if (!result.ok) this.#report(`The node refused to begin: ${result.error}`);
    });
  }

  async #commitReplica(): Promise<void> {
    if (this.#options.role !== 'secondary') return;
    // The begin may be told out of a call of the engine, which cannot be called again from there.
    await Promise.resolve();
    const result = await this.#events?.checkpointCommit();
    if (result?.ok === false) this.#report(`The node refused to commit: ${result.error}`);
  }

  // Failover.

  async #lookForTakeover(): Promise<void> {
    const colo = await this.#queryColo();
    if (colo?.mode !== 'none' || colo.reason !== 'request' || this.#hasToldLost) return;
    this.#isBroken = false;
    await this.#takeOver('QEMU was told x-colo-lost-heartbeat');
  }

  async #takeOver(reason: string): Promise<void> {
    this.#hasToldLost = true;
    const result = await this.#events?.failover(false);
    if (result?.ok === false)
      this.#report(`${reason}, but the node refused to take over: ${result.error}`);
  }

  /** Tells QEMU to leave COLO and go on alone; after a reconnection again, while it is still in COLO. */
  async #tellLost(reason: string): Promise<void> {
    if (!this.#isInColo && !this.#isBroken) return;
    if (this.#hasToldLost || this.#isClosed) return;
    this.#hasToldLost = true;
    this.#report(`Telling QEMU x-colo-lost-heartbeat: ${reason}`);
    let result = await this.#client.execute('x-colo-lost-heartbeat');
    if (!result.ok && result.failure === 'timeout') {
      // Its migration thread may wait for a peer that is silent rather than gone.
      await this.#client.execute('yank', { instances: [{ type: 'migration' }] });
      result = await this.#client.execute('x-colo-lost-heartbeat');
    }
    if (result.ok) {
      this.#mustLeave = false;
      this.#isBroken = false;
      return;
    }
    // Said again after a reconnection, or with the next reason.
    this.#hasToldLost = false;
    this.#report(`x-colo-lost-heartbeat failed: ${result.text}`);
  }

  #reportWrongRole(mode: string): void {
    this.#report(`This QEMU is the ${mode} of its pair, and this node the ${this.#options.role}`);
  }

  #setState(state: QmpState, cause: string): void {
    if (state === this.#state) return;
    const from = this.#state;
    this.#state = state;
    this.#report(`QMP: ${from} -> ${state}: ${cause}`, { from, to: state, cause });
  }

  #report(text: string, fields?: Record<string, string | number | boolean>): void {
    if (!this.#isClosed) this.#events?.report(text, fields);
  }
}

/** Is the capability there and on, in the answer to query-migrate-capabilities? */
function hasCapability(result: QmpResult, name: string): boolean {
  if (!result.ok || !Array.isArray(result.value)) return false;
  return result.value.some((entry: unknown) => {
    const { capability, state } = (entry ?? {}) as QmpObject;
    return capability === name && state === true;
  });
}
