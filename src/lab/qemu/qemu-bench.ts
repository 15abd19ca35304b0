/**
 * The lab with real virtual machines: the same switch, clients and nodes, but PVM and SVM are a COLO pair of stock QEMUs, whose
 * network cards are streams into the nodes, and the checkpoints are QEMU's own.
 *
 * @module
 */
import { existsSync, mkdirSync } from 'node:fs';
import { join } from 'node:path';
import { ColoError } from '../../base/error.ts';
import { expect, type LabBench } from '../bench.ts';
import { Recorder, SilenceWatch } from '../capture.ts';
import type { ClientCalls } from '../client/main.ts';
import type { TransferRequest, TransferResult } from '../client/transfer.ts';
import { Clients, type Family } from '../clients.ts';
import { monotonicMs, sleep, wallAheadMs } from '../clock.ts';
import { Daemon } from '../daemons.ts';
import type { Namespace } from '../netns.ts';
import { buildTopology, closeTopology, type Topology } from '../topology.ts';
import type { GuestImage } from './image.ts';
import { driverSocket, Machine, startColo } from './machine.ts';

const READY_MS_MAX = 30_000;
const COMMIT_MS_MAX = 15_000;
const FAILOVER_MS_MAX = 5_000;
const POLL_MS = 5;

/** An event of one of the two QEMUs. */
export interface MachineEvent {
  readonly machine: 'pvm' | 'svm';
  readonly name: string;
  readonly data: Readonly<Record<string, unknown>>;
  /** By QEMU's own stamp, as `monotonicMs`. */
  readonly atMs: number;
}

export interface QemuBenchOptions {
  readonly directory: string;
  readonly family: Family;
  readonly image: GuestImage;
  /** Of the primary. Default: its own. */
  readonly compareTimeoutMs?: number | undefined;
}

export class QemuBench implements LabBench {
  readonly topology: Topology;
  readonly silence: SilenceWatch;
  readonly recorder: Recorder;
  readonly primary: Daemon;
  readonly secondary: Daemon;
  readonly events: MachineEvent[] = [];
  readonly #options: QemuBenchOptions;
  readonly #clients: Clients;
  readonly #killed = new Set<Daemon>();
  #pvm: Machine | undefined;
  #svm: Machine | undefined;

  /** Builds everything but the machines; `begin` boots these. @throws ColoError */
  constructor(options: QemuBenchOptions) {
    const { directory, family } = options;
    this.#options = options;
    mkdirSync(directory, { recursive: true });
    // The guests' namespaces stay empty: the machines' cards are Unix sockets.
    this.topology = buildTopology({ impaired: false, plain: false });
    this.silence = new SilenceWatch(this.topology.switch);
    this.recorder = new Recorder(this.topology.switch, 'p-client');
    this.#clients = new Clients(this.topology.client, family);
    this.primary = this.#newDaemon('primary', 'pvm');
    this.secondary = this.#newDaemon('secondary', 'svm');
  }

  get pvm(): Machine {
    return this.#pvm!;
  }

  get svm(): Machine {
    return this.#svm!;
  }

  #nicPath(machine: 'pvm' | 'svm'): string {
    return join(this.#options.directory, `${machine}.nic`);
  }

  #newDaemon(role: 'primary' | 'secondary', machine: 'pvm' | 'svm'): Daemon {
    const { directory, compareTimeoutMs } = this.#options;
    return new Daemon({
      role,
      directory,
      compareTimeoutMs: role === 'primary' ? compareTimeoutMs : undefined,
      namespace: role === 'primary' ? this.topology.pn : this.topology.sn,
      guestPort: `qemu:unix:${this.#nicPath(machine)},server`,
      vm: `qmp:unix:${driverSocket(directory, machine)}`,
    });
  }

  #newMachine(name: 'pvm' | 'svm'): Machine {
    const { directory, image } = this.#options;
    const aheadMs = wallAheadMs();
    return new Machine({
      name,
      directory,
      image,
      nicPath: this.#nicPath(name),
      onEvent: (event) => {
        const atMs = event.atUs / 1_000 - aheadMs;
        this.events.push({ machine: name, name: event.name, data: event.data, atMs });
      },
    });
  }

  async begin(onStep: (text: string) => void): Promise<void> {
    await Promise.all([this.#clients.ready, this.primary.started(), this.secondary.started()]);
    // A card connects once, when its machine starts.
    for (const machine of ['pvm', 'svm'] as const) {
      expect(existsSync(this.#nicPath(machine)), `no socket for the card of the ${machine}`);
    }
    onStep('booting two machines');
    this.#pvm = this.#newMachine('pvm');
    this.#svm = this.#newMachine('svm');
    await Promise.all([this.pvm.started(), this.svm.started()]);
    await this.pvm.booted();
    if (!(await this.#clients.reachGuest())) {
      throw this.primary.failure('The client does not reach the guest');
    }
    await this.primary.reaches('syncing', READY_MS_MAX);
    onStep('copying the first state (COLO starts)');
    await startColo(this.pvm, this.svm, this.#options.directory);
    await this.primary.reaches('protected', READY_MS_MAX);
    await this.secondary.reaches('protected', READY_MS_MAX);
    onStep('protected');
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

  /** Checkpoints that the primary's node has seen committed. */
  async committed(): Promise<number> {
    return (await this.primary.status()).checkpoints.committed;
  }

  /** Has QEMU make a checkpoint, and waits until both nodes have it. Returns how long it took, in ms. */
  async checkpoint(): Promise<number> {
    const before = await this.committed();
    const startMs = monotonicMs();
    await this.pvm.checkpoint();
    while ((await this.committed()) === before) {
      if (monotonicMs() - startMs > COMMIT_MS_MAX) {
        throw this.primary.failure('A checkpoint was asked for and is not committed');
      }
      await sleep(POLL_MS);
    }
    const ms = monotonicMs() - startMs;
    await this.secondary.reaches('protected', COMMIT_MS_MAX);
    return ms;
  }

  /** The first event of a machine at or after `fromMs`, or undefined. */
  event(machine: 'pvm' | 'svm', name: string, fromMs: number): MachineEvent | undefined {
    return this.events.find(
      (event) => event.machine === machine && event.name === name && event.atMs >= fromMs,
    );
  }

  /**
   * SIGKILL for the primary's proxy and its QEMU. Their kernel still closes the peer link, so that the secondary knows at once; a host
   * that vanishes is noticed after the peer timeout only. Returns when it happened.
   */
  killPrimaryNode(): Promise<number> {
    return this.#killNode(this.primary, this.pvm, this.topology.pn);
  }

  /** The same for the secondary's. */
  killSecondaryNode(): Promise<number> {
    return this.#killNode(this.secondary, this.svm, this.topology.sn);
  }

  async #killNode(daemon: Daemon, machine: Machine, host: Namespace): Promise<number> {
    const atMs = monotonicMs();
    this.#killed.add(daemon);
    await Promise.all([daemon.end('SIGKILL'), machine.kill()]);
    host.ip(['link set eth0 down', 'link set eth1 down']);
    return atMs;
  }

  /** As the arbiter: waits until the secondary has lost its peer, then lets it serve. */
  async failover(): Promise<{ readonly askedMs: number; readonly obeyedMs: number }> {
    const index = this.secondary.events.findLastIndex((event) => event.kind === 'peer-up') + 1;
    await this.secondary.event('peer-down', index, FAILOVER_MS_MAX);
    this.silence.disarm();
    const askedMs = monotonicMs();
    await this.secondary.control({ command: 'failover' });
    return { askedMs, obeyedMs: monotonicMs() };
  }

  check(): void {
    const broken = this.silence.broken();
    expect(broken === undefined, broken ?? '');
    for (const daemon of [this.primary, this.secondary]) {
      if (daemon.ended !== undefined && !this.#killed.has(daemon)) {
        throw daemon.failure(`${daemon.role} died`);
      }
    }
    const resets = this.events.filter(({ name }) => name === 'RESET' || name === 'GUEST_PANICKED');
    expect(resets.length === 0, `a machine was reset: ${JSON.stringify(resets)}`);
  }

  notes(): string[] {
    const start = this.events[0]?.atMs ?? 0;
    const events = this.events.slice(-20).map(({ machine, name, atMs }) => {
      return `${machine} ${name} ${Math.round(atMs - start)}`;
    });
    return [`last events of QEMU: ${events.join(', ')}`];
  }

  logs(): string[] {
    const machines = ['pvm', 'svm'].flatMap((name) => [`${name}.serial`, `${name}.log`]);
    return [
      this.primary.logPath,
      this.secondary.logPath,
      ...machines.map((name) => join(this.#options.directory, name)),
    ];
  }

  async close(): Promise<void> {
    const nodes = [this.primary, this.secondary].map((daemon) => daemon.end('SIGKILL'));
    await Promise.all([...nodes, this.#pvm?.close(), this.#svm?.close(), this.#clients.kill()]);
    this.silence.close();
    this.recorder.close();
    closeTopology(this.topology);
    // Namespaces are taken apart in the background; the next bench should not race with that.
    await sleep(10);
  }
}

/** @throws ColoError `COLO_ERR_LAB_SCENARIO` when `promise` takes longer */
export function within<T>(timeoutMs: number, what: string, promise: Promise<T>): Promise<T> {
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<never>((_resolve, reject) => {
    timer = setTimeout(() => {
      reject(new ColoError('COLO_ERR_LAB_SCENARIO', `not within ${timeoutMs} ms: ${what}`));
    }, timeoutMs);
  });
  return Promise.race([promise, late]).finally(() => clearTimeout(timer));
}
