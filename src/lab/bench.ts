/**
 * One set-up of the whole system: topology, both guests, clients, both nodes, and the layer that makes
 * checkpoints. Every scenario gets a fresh one.
 *
 * @module
 */
import { mkdirSync } from 'node:fs';
import { join } from 'node:path';
import { ColoError } from '../base/error.ts';
import type { LabAttach } from '../cli/experiments.ts';
import { QUEUE_PORT } from './attach.ts';
import { Recorder, SilenceWatch } from './capture.ts';
import type { ClientCalls } from './client/main.ts';
import type { TransferRequest, TransferResult } from './client/transfer.ts';
import { CLIENT_MS_MAX, Clients, type Family, forkModule } from './clients.ts';
import { monotonicMs, sleep } from './clock.ts';
import { Daemon } from './daemons.ts';
import { GuestProcess } from './guest-process.ts';
import { ProcessChannel } from './messages.ts';
import type { Impairment, RelayReply, RelayRequest } from './relay/main.ts';
import { buildTopology, closeTopology, replaceSvm, type Topology } from './topology.ts';
import { VmManager } from './vm-manager.ts';

const SYNC_MS_MAX = 15_000;
const FAILOVER_MS_MAX = 5_000;
/** In the bench's directory. */
const REQUEST_PIPE = 'requests';

export interface BenchOptions {
  readonly directory: string;
  readonly family: Family;
  /** Undefined: cables that lose nothing. */
  readonly impairment?: Impairment | undefined;
  /** Of the impairment. */
  readonly seed: number;
  /** A peer link without encryption; default: a pre-shared key. */
  readonly insecureLink?: boolean;
  /** Default: packet. */
  readonly attach?: LabAttach;
  /** Of the primary. Default: its own. */
  readonly compareTimeoutMs?: number | undefined;
}

/** What the runner needs of a bench, whatever its guests are. */
export interface LabBench {
  /** Waits until the guest is protected. `onStep` is told what takes seconds. @throws ColoError */
  begin(onStep: (text: string) => void): Promise<void>;
  readonly topology: Topology;
  readonly recorder: Recorder;
  readonly primary: Daemon;
  readonly secondary: Daemon;
  /** What must hold after every scenario. @throws ColoError */
  check(): void;
  /** What else may explain a failure. */
  notes(): string[];
  /** Paths of logs; some may not have been written. */
  logs(): string[];
  close(): Promise<void>;
}

/** Begins with a bench, or takes it down again. @throws ColoError */
export async function begun<B extends LabBench>(
  bench: B,
  onStep: (text: string) => void = () => {},
): Promise<B> {
  try {
    await bench.begin(onStep);
    return bench;
  } catch (error) {
    await bench.close();
    throw error;
  }
}

/** @throws ColoError `COLO_ERR_LAB_SCENARIO` when `condition` does not hold */
export function expect(condition: boolean, text: string): asserts condition {
  if (!condition) throw new ColoError('COLO_ERR_LAB_SCENARIO', text);
}

export class Bench implements LabBench {
  readonly family: Family;
  readonly topology: Topology;
  readonly silence: SilenceWatch;
  readonly recorder: Recorder;
  readonly vm: VmManager;
  pvm: GuestProcess;
  svm: GuestProcess;
  primary: Daemon;
  secondary: Daemon;
  readonly #options: BenchOptions;
  readonly #clients: Clients;
  readonly #relay: ProcessChannel<RelayRequest, RelayReply> | undefined;
  /** Nodes whose end is part of the scenario. */
  readonly #killed = new Set<Daemon>();

  /** Builds everything and waits until the guest is protected. @throws ColoError */
  static start(options: BenchOptions): Promise<Bench> {
    return begun(new Bench(options));
  }

  /** Builds everything; `begin` waits for it. @throws ColoError */
  constructor(options: BenchOptions) {
    const { directory, family, impairment, attach = 'packet' } = options;
    this.#options = options;
    this.family = family;
    mkdirSync(directory, { recursive: true });
    this.topology = buildTopology({ impaired: impairment !== undefined, plain: false, attach });
    const { client, switch: switchNs, wire } = this.topology;
    this.silence = new SilenceWatch(switchNs);
    this.recorder = new Recorder(switchNs, 'p-client');
    if (wire !== undefined)
      this.#relay = new ProcessChannel(forkModule(wire, 'relay/main'), 'relay');
    this.pvm = new GuestProcess(this.topology.pvm);
    this.svm = new GuestProcess(this.topology.svm);
    this.#clients = new Clients(client, family);
    this.vm = new VmManager({
      pipe: join(directory, REQUEST_PIPE),
      primary: () => this.primary,
      secondary: () => this.secondary,
      pvm: () => this.pvm,
      svm: () => this.svm,
    });
    this.primary = this.#newPrimary();
    this.secondary = this.#newSecondary();
  }

  #newPrimary(): Daemon {
    const { directory, insecureLink = false, attach, compareTimeoutMs } = this.#options;
    return new Daemon({
      role: 'primary',
      namespace: this.topology.pn,
      directory,
      requestPipe: join(directory, REQUEST_PIPE),
      insecureLink,
      compareTimeoutMs,
      ...(attach === 'nfqueue' ? { guestPort: QUEUE_PORT, netPort: null } : {}),
    });
  }

  #newSecondary(): Daemon {
    const { directory, insecureLink = false } = this.#options;
    return new Daemon({ role: 'secondary', namespace: this.topology.sn, directory, insecureLink });
  }

  async begin(): Promise<void> {
    const relay = this.#relay;
    await Promise.all([
      this.#clients.ready,
      this.pvm.ready,
      this.svm.ready,
      relay?.ready,
      this.primary.started(),
      this.secondary.started(),
    ]);
    await this.vm.made(1, SYNC_MS_MAX);
    await this.primary.reaches('protected', SYNC_MS_MAX);
    await this.secondary.reaches('protected', SYNC_MS_MAX);
    await this.#awaitCables();
    const { impairment, seed } = this.#options;
    if (relay !== undefined && impairment !== undefined) {
      await relay.ask({ type: 'impair', seed, impairment }, CLIENT_MS_MAX);
    }
  }

  async #awaitCables(): Promise<void> {
    if (!(await this.#clients.reachGuest())) {
      throw this.primary.failure('The client does not reach the guest');
    }
  }

  /** Has the clients do something with the guest, over this bench's IP version. */
  client<Name extends keyof ClientCalls>(
    request: { readonly type: Name } & Omit<ClientCalls[Name]['request'], 'family'>,
  ): Promise<ClientCalls[Name]['result']> {
    return this.#clients.ask(request);
  }

  /** A long transfer, with what it is checked by. */
  transfer(request: Omit<TransferRequest, 'family' | 'digest'>): Promise<TransferResult> {
    return this.#clients.transfer(request);
  }

  /** Resolves with its client's port when the transfer with this seed has come to its `tellAtBytes`. */
  reached(seed: number): Promise<number> {
    return this.#clients.reached(seed);
  }

  /** What the relay did so far; undefined without impairment. */
  async relayCounts(): Promise<RelayReply | undefined> {
    return this.#relay?.ask({ type: 'count' }, CLIENT_MS_MAX);
  }

  /**
   * The primary node dies at one blow: proxy, links and guest. Returns when it happened.
   *
   * @param carrierFirst as a loss of power: the switch sees its port dead before anything is lost in it. Otherwise what clients send
   *   in the first milliseconds goes into the dead node.
   */
  async killPrimaryNode(carrierFirst = false): Promise<number> {
    const atMs = monotonicMs();
    this.#killed.add(this.primary);
    // Where rules let the guest's output pass once the proxy is dead, none of it may be seen: the node dies as a whole.
    if (carrierFirst || this.#options.attach === 'nfqueue') {
      this.topology.pn.ip(['link set eth0 down']);
    }
    const gone = this.primary.end('SIGKILL');
    this.topology.pn.ip(['link set eth0 down', 'link set eth1 down', 'link set tap0 down']);
    await Promise.all([gone, this.pvm.kill(), this.vm.pvmLost()]);
    return atMs;
  }

  /** The primary's proxy dies, and nothing else of its node. Returns when it happened. */
  async killPrimaryProxy(): Promise<number> {
    const atMs = monotonicMs();
    await this.endPrimaryProxy('SIGKILL');
    return atMs;
  }

  /** Ends the primary's proxy, and nothing else. */
  async endPrimaryProxy(signal: 'SIGKILL' | 'SIGTERM'): Promise<void> {
    this.#killed.add(this.primary);
    await this.primary.end(signal);
  }

  /** A new proxy in the place of one that was ended; returns when the guest is protected again. */
  async startPrimaryProxy(): Promise<void> {
    const checkpoints = this.vm.records.length;
    this.primary = this.#newPrimary();
    await this.primary.started();
    await this.vm.made(checkpoints + 1, SYNC_MS_MAX);
    await this.primary.reaches('protected', SYNC_MS_MAX);
    await this.secondary.reaches('protected', SYNC_MS_MAX);
  }

  /** As the arbiter: waits until the secondary has lost its peer, then lets it serve. Returns when it asked and when it was obeyed. */
  async failover(): Promise<{ readonly askedMs: number; readonly obeyedMs: number }> {
    const index = this.secondary.events.findLastIndex((event) => event.kind === 'peer-up') + 1;
    await this.secondary.event('peer-down', index, FAILOVER_MS_MAX);
    this.silence.disarm();
    const askedMs = monotonicMs();
    await this.secondary.control({ command: 'failover' });
    return { askedMs, obeyedMs: monotonicMs() };
  }

  /** The secondary node dies at one blow. */
  async killSecondaryNode(): Promise<number> {
    const atMs = monotonicMs();
    this.#killed.add(this.secondary);
    this.vm.svmLost(true);
    const gone = this.secondary.end('SIGKILL');
    this.topology.sn.ip(['link set eth0 down', 'link set eth1 down', 'link set tap0 down']);
    await Promise.all([gone, this.svm.kill()]);
    return atMs;
  }

  /** A new secondary node in the place of the dead one, with a new machine. */
  async reviveSecondaryNode(): Promise<void> {
    this.topology.sn.ip(['link set eth0 up', 'link set eth1 up']);
    replaceSvm(this.topology);
    this.svm = new GuestProcess(this.topology.svm);
    await this.svm.ready;
    this.vm.svmLost(false);
    this.secondary = this.#newSecondary();
    await this.secondary.started();
  }

  /**
   * What must hold after every scenario.
   *
   * @throws ColoError
   */
  check(): void {
    const broken = this.silence.broken();
    expect(broken === undefined, broken ?? '');
    for (const daemon of [this.primary, this.secondary]) {
      if (daemon.ended !== undefined && !this.#killed.has(daemon)) {
        throw daemon.failure(`${daemon.role} died`);
      }
    }
    expect(this.vm.failures.length === 0, `checkpoints failed: ${this.vm.failures.join('; ')}`);
  }

  /** What else may explain a failure. */
  notes(): string[] {
    const requests = this.vm.requests.map(({ cause, flow }) => `${cause} ${flow}`.trim());
    return [`checkpoint requests: ${requests.join(', ') || 'none'}`];
  }

  logs(): string[] {
    return [this.primary.logPath, this.secondary.logPath];
  }

  /** Takes everything down. */
  async close(): Promise<void> {
    this.vm.close();
    const nodes = [this.primary, this.secondary].map((daemon) => daemon.end('SIGKILL'));
    const relay = this.#relay?.kill();
    await Promise.all([...nodes, this.pvm.kill(), this.svm.kill(), this.#clients.kill(), relay]);
    this.silence.close();
    this.recorder.close();
    closeTopology(this.topology);
    // Namespaces are taken apart in the background; the next bench should not race with that.
    await sleep(10);
  }
}
