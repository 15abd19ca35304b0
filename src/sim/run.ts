/**
 * One run: build the world of a seed, let faults happen for a number of events, then heal, and demand that everything
 * becomes quiet and correct.
 *
 * @module
 */
import { type Micros, US_PER_MS, US_PER_S } from '../base/time.ts';
import type { Guarantee } from './checkers/checker.ts';
import { FaultPlan } from './faults.ts';
import { isResetPlanned, type Session } from './host/client.ts';
import { heldFrames } from './node.ts';
import { calmOptions, type Scenario, Stage } from './scenarios/scenario.ts';
import { Trace } from './trace.ts';
import { type Seen, World } from './world.ts';

/** Events with faults, unless asked otherwise. */
export const STEPS_DEFAULT = 2_500;

/** After the heal: virtual time until everything must be done. */
const QUIET_US_MAX: Micros = 240 * US_PER_S;
/** After the heal: events in which some client must get on. Guests that answer differently all the time need a checkpoint for each answer. */
const STANDSTILL_STEPS_MAX = 300_000;

/** After the heal: nothing happens for so long. */
const LULL_US: Micros = 50_000;

/** Events between two looks at what no single event shows, and the longest time: what ends at the next event has lasted until then. */
const PULSE_STEPS = 32;
const PULSE_US: Micros = 10 * US_PER_MS;

export interface RunRequest {
  readonly seed: number;
  readonly steps: number;
  /** Keep the frames that clients saw. */
  readonly capture?: boolean;
  /** Gets every line of the trace. */
  readonly follow?: (line: string) => void;
  /** A scripted world instead of one that the seed draws; `steps` then counts for nothing. */
  readonly scenario?: Scenario;
}

export type Outcome = 'ok' | 'crash' | 'liveness' | 'broken';

export interface RunResult {
  readonly seed: number;
  readonly outcome: Outcome;
  /** Empty when ok, otherwise what happened. */
  readonly text: string;
  readonly guarantee: Guarantee | '';
  /** The event at which it happened. */
  readonly step: number;
  readonly events: number;
  readonly virtualUs: Micros;
  readonly traceHash: string;
  readonly lastLines: readonly string[];
  readonly seen: readonly Seen[];
  /** What the run was about: counted over many runs, this shows what the simulation covers. */
  readonly facts: RunFacts;
  /** How often each feature and fault was reached; see marks.ts. */
  readonly marks: ReadonlyMap<string, number>;
}

export interface RunFacts {
  readonly sessions: number;
  readonly sessionsDone: number;
  readonly clientBytes: number;
  readonly checkpoints: number;
  readonly divergences: number;
  readonly failovers: number;
  readonly outages: number;
  readonly released: number;
  readonly compared: number;
  readonly ackLowered: number;
}

class Run {
  readonly #request: RunRequest;
  readonly #trace: Trace;
  #world: World | undefined;
  #events = 0;
  #pulsedUs: Micros = 0;

  constructor(request: RunRequest) {
    this.#request = request;
    this.#trace = new Trace(request.follow);
  }

  /** Runs everything; a failure of the program itself is an outcome too. */
  execute(): RunResult {
    try {
      return this.#execute();
    } catch (error) {
      const text = error instanceof Error ? (error.stack ?? error.message) : String(error);
      return this.#result('crash', text);
    }
  }

  #execute(): RunResult {
    const { seed, steps, capture, scenario } = this.#request;
    if (scenario !== undefined) return this.#play(scenario);
    const world = new World(seed, this.#trace, capture ?? false);
    this.#world = world;
    const plan = new FaultPlan(world);
    plan.start();
    const deathAt = Math.floor(steps * world.options.primaryDeathAt);
    for (let i = 0; i < steps; i++) {
      if (world.options.primaryDies && i === deathAt) this.#arrangeDeath(world);
      if (!this.#step(world)) break;
      if (world.brokenBy !== undefined) return this.#broken(world);
      if (world.isOutage) return this.#result('ok', '');
    }
    plan.heal();
    return this.#converge(world);
  }

  #play(scenario: Scenario): RunResult {
    const { seed, capture } = this.#request;
    const calm = calmOptions();
    const options = scenario.options?.(calm) ?? calm;
    const world = new World(seed, this.#trace, capture ?? false, options);
    this.#world = world;
    const plan = new FaultPlan(world);
    plan.start();
    scenario.script(new Stage(world));
    const untilUs = scenario.untilMs * US_PER_MS;
    while (world.queue.nextUs() <= untilUs && this.#step(world)) {
      if (world.brokenBy !== undefined) return this.#broken(world);
    }
    plan.heal();
    const result = this.#converge(world);
    // No script lets the primary die unprotected.
    return world.isOutage ? this.#result('liveness', 'nobody serves any more') : result;
  }

  #arrangeDeath(world: World): void {
    const phase = world.options.primaryDeathPhase;
    if (phase === '') world.killPrimary('any');
    else {
      world.deathPhase = phase;
      world.vm.request();
    }
  }

  #step(world: World): boolean {
    const event = world.queue.take();
    if (event === undefined) return false;
    this.#events++;
    this.#trace.number(event.atUs);
    this.#trace.text(event.kind);
    if (event.atUs >= this.#pulsedUs + PULSE_US) this.#pulse(world);
    event.run();
    if (this.#events % PULSE_STEPS === 0) this.#pulse(world);
    return true;
  }

  #pulse(world: World): void {
    this.#pulsedUs = world.nowUs;
    world.pulse();
  }

  #converge(world: World): RunResult {
    const deadlineUs = world.nowUs + QUIET_US_MAX;
    let progress = 0;
    let progressAt = 0;
    for (let i = 0; i - progressAt < STANDSTILL_STEPS_MAX; i++) {
      // Not only every so many events: the next one may be days away (a flow that ages).
      const isQuiet = world.queue.nextUs() > world.nowUs + LULL_US;
      if (isQuiet || i % PULSE_STEPS === 0) {
        this.#closeSessions(world);
        if (waitingFor(world) === '') break;
        const reached = progressOf(world);
        if (reached > progress) progressAt = i;
        progress = Math.max(progress, reached);
      }
      if (world.nowUs > deadlineUs || !this.#step(world)) break;
      if (world.brokenBy !== undefined) return this.#broken(world);
      if (world.isOutage) return this.#result('ok', '');
    }
    const waiting = waitingFor(world);
    if (waiting !== '') return this.#result('liveness', waiting);
    world.finish();
    if (world.brokenBy !== undefined) return this.#broken(world);
    return this.#result('ok', '');
  }

  #closeSessions(world: World): void {
    for (const client of world.clients) {
      client.host.nowUs = world.nowUs;
      client.application.closeAll(client.host);
      client.reschedule();
    }
  }

  #broken(world: World): RunResult {
    const { guarantee, text } = world.brokenBy!;
    return { ...this.#result('broken', text), guarantee };
  }

  #result(outcome: Outcome, text: string): RunResult {
    const world = this.#world;
    return {
      seed: this.#request.seed,
      outcome,
      text,
      guarantee: '',
      step: this.#events,
      events: this.#events,
      virtualUs: world?.nowUs ?? 0,
      traceHash: this.#trace.digest(),
      lastLines: this.#trace.last(40),
      seen: world?.seen ?? [],
      facts: factsOf(world),
      marks: marksOf(world),
    };
  }
}

/** How far the clients have come: sessions that are done, bytes acknowledged and received. */
function progressOf(world: World): number {
  let sum = 0;
  for (const { application } of world.clients) {
    for (const { isDone, connection } of application.sessions) {
      sum += (isDone ? 1 : 0) + connection.sndUna + connection.rcvNxt;
    }
  }
  return sum;
}

/** What is not done yet, in words; empty when everything is quiet. */
function waitingFor(world: World): string {
  for (const { host, application } of world.clients) {
    for (const session of application.open) {
      if (session.isDone || session.connection.state === 'time-wait') continue;
      if (!host.state.connections.has(session.key)) continue;
      // Nobody repeats a RST that was lost.
      if (isResetPlanned(session.plan) || isForgotten(world, session)) continue;
      const { state, sndUna, sndMax, rcvNxt } = session.connection;
      return `${host.name}: session ${session.key} is ${state}, una ${sndUna}, max ${sndMax}, received ${rcvNxt}`;
    }
    for (const probe of application.probes) {
      // What was begun before the heal may have given up.
      if (probe.triesMax > 10 && probe.answers === 0)
        return `${host.name}: request ${probe.id} has no answer`;
    }
  }
  if (world.isFailoverGranted) {
    const { state } = world.secondary.engine;
    return state === 'failed-over' ? '' : `the secondary is ${state} after failover`;
  }
  if (!world.primary.isAlive) return 'the arbiter has not decided';
  const { state } = world.primary.engine;
  if (world.vm.isBusy || world.isRequestOpen)
    return `a checkpoint is under way, the primary is ${state}`;
  if (!world.secondary.isAlive) return 'the secondary has not come back';
  if (state !== 'protected') return `the primary is ${state} although its peer is there`;
  const held = heldFrames(world.primary);
  return held > 0 ? `the primary holds ${held} frames` : '';
}

function marksOf(world: World | undefined): ReadonlyMap<string, number> {
  if (world === undefined) return new Map();
  for (const node of [world.primary, world.secondary]) if (node.isAlive) world.noteEngine(node);
  return world.marks.counts;
}

/** A full table forgets half-open connections first: the defined end of what a flood of SYNs and a failover can do together. */
function isForgotten(world: World, { connection }: Session): boolean {
  if (!world.isFailoverGranted || connection.rcvNxt > 1) return false;
  const { counters } = world.secondary.engine.status(world.secondary.nowUs);
  return (counters['flowsEvicted'] ?? 0) > 0;
}

function factsOf(world: World | undefined): RunFacts {
  const sessions = world?.clients.flatMap((client) => client.application.sessions) ?? [];
  const status = world?.primary.engine.status(world.primary.nowUs);
  return {
    sessions: sessions.length,
    sessionsDone: sessions.filter((session) => session.isDone && session.error === '').length,
    clientBytes: sessions.reduce((sum, session) => sum + session.receivedCount, 0),
    checkpoints: world?.vm.checkpoints ?? 0,
    divergences: status?.divergences ?? 0,
    failovers: world?.isFailoverGranted === true ? 1 : 0,
    outages: world?.isOutage === true ? 1 : 0,
    released: status?.released ?? 0,
    compared: status?.compared ?? 0,
    ackLowered: status?.counters['ackLowered'] ?? 0,
  };
}

/** Runs one seed. */
export function runOnce(request: RunRequest): RunResult {
  return new Run(request).execute();
}
