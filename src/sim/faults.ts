/**
 * The fault plan and the workload of a run: each kind of event comes at random times around its mean interval, until the run heals.
 *
 * @module
 */
import type { Prng } from '../base/prng.ts';
import { type Micros, NEVER, US_PER_MS } from '../base/time.ts';
import { connectionKey } from './host/host.ts';
import { packetTooBig } from './host/path-mtu.ts';
import { parseHead, parseIp } from './net/packet.ts';
import { DEATH_PHASES } from './options.ts';
import { parseSegment } from './tcp/segment.ts';
import {
  type Addresses,
  drawDatagram,
  drawInterval,
  drawPlan,
  garbageFrame,
  lastPlan,
  scanFrame,
} from './workload.ts';
import type { Client, World } from './world.ts';

/** A datagram is repeated so often while faults go on; then its sender gives up. */
const PROBE_TRIES = 4;
/** After the heal an answer must come. */
const LAST_PROBE_TRIES = 60;

export class FaultPlan {
  readonly #world: World;
  readonly #prng: Prng;
  #isOver = false;
  #nextPort = 10_000;

  constructor(world: World) {
    this.#world = world;
    this.#prng = world.prng.fork();
  }

  /** Starts everything that happens by itself. */
  start(): void {
    const { faults, workload, vm } = this.#world.options;
    // Nothing was ever committed, and there is no primary: the secondary must refuse to serve.
    this.#tryFailover('the secondary took over without any state');
    this.#world.link.start();
    this.#repeat(workload.sessionEveryUs, () => this.#startSession());
    this.#repeat(workload.datagramEveryUs, () => this.#probe(PROBE_TRIES));
    this.#repeat(workload.scanEveryUs, () =>
      this.#inject((addresses) => scanFrame(this.#prng, addresses, false)),
    );
    this.#repeat(workload.garbageEveryUs, () =>
      this.#inject((addresses) => garbageFrame(this.#prng, addresses)),
    );
    if (workload.floodSyns > 0) this.#flood(workload.floodSyns);
    this.#repeat(vm.spontaneousUs, () => {
      if (this.#world.link.isJoined) this.#world.vm.request();
    });
    this.#repeat(faults.peerCut, () => this.#cutPeer());
    this.#repeat(faults.peerStall, () => this.#stallPeer());
    this.#repeat(faults.primaryHang, () => this.#hang('primary'));
    this.#repeat(faults.secondaryHang, () => this.#hang('secondary'));
    this.#repeat(faults.secondaryDeath, () => this.#endSecondary());
    this.#repeat(faults.pvmStuck, () =>
      this.#note('PVM stuck', () => this.#world.pvm.stick(this.#milliseconds(1, 800))),
    );
    this.#repeat(faults.svmStuck, () =>
      this.#note('SVM stuck', () => this.#world.svm.stick(this.#milliseconds(1, 800))),
    );
    this.#repeat(faults.svmHang, () =>
      this.#note('SVM hangs', () => this.#world.svm.hang(this.#milliseconds(1, 500))),
    );
    this.#repeat(faults.netPartition, () => this.#partitionNet());
    this.#repeat(faults.guestPartition, () => this.#partitionGuest());
    this.#repeat(faults.clockJump, () => this.#jumpClock());
    this.#repeat(faults.operator, () => this.#operate());
    this.#repeat(faults.pathMtu, () => this.#narrowPath());
  }

  /** Faults stop; the clients finish what they have begun, and each begins something last. */
  heal(): void {
    const world = this.#world;
    this.#isOver = true;
    world.line('HEAL');
    world.deathPhase = '';
    world.secondaryDeath = undefined;
    world.vm.heal();
    const paths = [world.primaryNet, world.secondaryNet, world.primaryGuest, world.secondaryGuest];
    for (const { to, from } of paths) {
      to.heal();
      from.heal();
    }
    for (const machine of [world.pvm, world.svm]) machine.mood.isHurried = true;
    for (const client of world.clients) {
      client.application.isHurried = true;
      client.toSwitch.heal();
      client.fromSwitch.heal();
    }
    // After an operator's reset the node waits for the next checkpoint, whoever asks for it.
    if (world.primary.isAlive && world.primary.engine.state === 'unprotected') world.vm.request();
    this.beginLast();
  }

  /** One session and one datagram of each client that must succeed. */
  beginLast(): void {
    for (const client of this.#world.clients) {
      this.#open(client, lastPlan(this.#prng), this.#nextPort++);
      const dst = this.#guestAddress();
      this.#act(client, () => {
        const payload = drawDatagram(this.#prng, {
          ...this.#world.options.workload,
          token: 0,
          clock: 0,
        });
        client.application.probe(
          client.host,
          dst,
          payload,
          this.#prng.chance(0.5),
          LAST_PROBE_TRIES,
        );
      });
    }
  }

  #milliseconds(low: number, high: number): Micros {
    return this.#prng.nextBetween(low * US_PER_MS, high * US_PER_MS);
  }

  /** Calls `run` at random times until the heal. */
  #repeat(meanUs: Micros, run: () => void): void {
    if (meanUs === NEVER) return;
    this.#world.queue.after(drawInterval(this.#prng, meanUs), 'plan', () => {
      if (this.#isOver) return;
      run();
      this.#repeat(meanUs, run);
    });
  }

  #note(text: string, run: () => void): void {
    this.#world.line(`FAULT ${text}`);
    run();
  }

  #guestAddress(): string {
    const { ip4, ip6 } = this.#world.pvm.host.state;
    return this.#prng.chance(this.#world.options.workload.ipv6) ? ip6 : ip4;
  }

  /** Lets a client's host do something now. */
  #act(client: Client, run: () => void): void {
    client.host.nowUs = this.#world.nowUs;
    run();
    client.reschedule();
  }

  #open(client: Client, plan: ReturnType<typeof lastPlan>, port: number): void {
    const dst = this.#guestAddress();
    if (client.host.state.connections.has(`${dst}:80:${port}`)) return;
    this.#act(client, () => client.application.start(client.host, dst, plan, port));
  }

  #startSession(): void {
    const { workload } = this.#world.options;
    const client = this.#prng.pick(this.#world.clients);
    const isReused = this.#prng.chance(workload.portReuse);
    const port = isReused ? 9_990 + this.#prng.nextBelow(4) : this.#nextPort++;
    this.#open(client, drawPlan(this.#prng, workload), port);
  }

  #probe(tries: number): void {
    const client = this.#prng.pick(this.#world.clients);
    const dst = this.#guestAddress();
    this.#act(client, () => {
      const payload = drawDatagram(this.#prng, this.#world.options.workload);
      client.application.probe(client.host, dst, payload, this.#prng.chance(0.4), tries);
    });
  }

  #addresses(client: Client): Addresses {
    const { state } = client.host;
    const dst = this.#guestAddress();
    return {
      srcMac: state.mac,
      dstMac: this.#world.pvm.host.state.mac,
      src: dst.length === 8 ? state.ip4 : state.ip6,
      dst,
      vlan: state.vlan,
    };
  }

  #inject(make: (addresses: Addresses) => Uint8Array): void {
    const client = this.#prng.pick(this.#world.clients);
    const frame = make(this.#addresses(client));
    // A station that forges the guest's own address takes over its switch port: no proxy can help against that.
    if (parseHead(frame)?.srcMac === this.#world.pvm.host.state.mac) return;
    client.toSwitch.send(frame);
  }

  #flood(count: number): void {
    const client = this.#prng.pick(this.#world.clients);
    for (let i = 0; i < count; i++) {
      this.#world.queue.after(this.#milliseconds(1, 400), 'plan', () => {
        client.toSwitch.send(scanFrame(this.#prng, this.#addresses(client), true));
      });
    }
  }

  #cutPeer(): void {
    const isNoticed = this.#prng.chance(0.5);
    this.#note(`peer link cut${isNoticed ? '' : ' unnoticed'}`, () =>
      this.#world.link.cut(isNoticed),
    );
  }

  #stallPeer(): void {
    const durationUs = this.#milliseconds(1, this.#prng.pick([30, 400, 3_000]));
    const direction = this.#prng.pick(['to-primary', 'to-secondary'] as const);
    this.#note(`peer link stalls ${direction}`, () =>
      this.#world.link.stall(direction, durationUs),
    );
  }

  #hang(which: 'primary' | 'secondary'): void {
    const node = this.#world[which];
    if (!node.isAlive) return;
    const durationUs = this.#milliseconds(1, this.#prng.pick([20, 300, 2_500]));
    this.#note(`${which} hangs`, () => {
      node.hang(durationUs);
      this.#world.disturb(durationUs);
    });
  }

  #partitionNet(): void {
    const world = this.#world;
    const client = this.#prng.pick(world.clients);
    const both = this.#prng.pick([
      [world.primaryNet.to, world.primaryNet.from],
      [client.toSwitch, client.fromSwitch],
    ]);
    // Both directions, or one.
    if (this.#prng.chance(0.4)) for (const path of both) this.#cut(path);
    else this.#cut(this.#prng.pick(both));
  }

  #partitionGuest(): void {
    const { primaryGuest, secondaryGuest } = this.#world;
    this.#cut(this.#prng.pick([primaryGuest.to, secondaryGuest.to, secondaryGuest.from]));
  }

  /** At any event, or at a phase of the next checkpoint. */
  #endSecondary(): void {
    const restartUs = this.#milliseconds(20, 800);
    if (this.#prng.chance(0.5)) this.#world.killSecondary(restartUs);
    else this.#world.secondaryDeath = { phase: this.#prng.pick(DEATH_PHASES), restartUs };
  }

  /** A router on a client's way says that the guest's last segment was too long. */
  #narrowPath(): void {
    const client = this.#prng.pick(this.#world.clients);
    const mtu = this.#prng.pick([600, 1_000, 1_280, 1_400]);
    const frame = client.lastData;
    if (frame === undefined) return;
    const error = packetTooBig(frame, mtu);
    if (error === undefined || !this.#isUnderWay(client, frame)) return;
    this.#note(`path to ${client.host.name} has MTU ${mtu}`, () =>
      this.#act(client, () => client.host.send({ ...error, gsoBytes: 0 })),
    );
  }

  /** Is it of a connection that the client has open? A late quote of an earlier one says nothing. */
  #isUnderWay({ host }: Client, frame: Uint8Array): boolean {
    const packet = parseIp(frame);
    const segment = packet === undefined ? undefined : parseSegment(packet.payload);
    if (packet === undefined || segment === undefined) return false;
    const key = connectionKey(packet.src, segment.srcPort, segment.dstPort);
    const connection = host.state.connections.get(key);
    if (connection === undefined || connection.rcvNxt === 0) return false;
    const back = (connection.irs + connection.rcvNxt - segment.seq) | 0;
    return Math.abs(back) < 1 << 20;
  }

  #cut(path: { name: string; isCut: boolean }): void {
    this.#note(`${path.name} cut`, () => {
      path.isCut = true;
    });
    this.#world.queue.after(this.#milliseconds(1, 600), 'plan', () => {
      path.isCut = false;
    });
  }

  #jumpClock(): void {
    const node = this.#prng.chance(0.5) ? this.#world.primary : this.#world.secondary;
    if (!node.isAlive || node.isHung) return;
    const byUs = this.#milliseconds(1, this.#prng.pick([50, 800, 5_000]));
    this.#note(`${node.name}'s clock jumps`, () => {
      node.jumpClock(byUs);
      this.#world.disturb(0);
    });
  }

  #tryFailover(complaint: string): void {
    const result = this.#world.secondary.command((engine, nowUs) => engine.failover(false, nowUs));
    if (result.ok) this.#world.broken('G10', complaint);
  }

  /** Commands out of turn: they must be refused or do what they say. */
  #operate(): void {
    const { primary, secondary, link } = this.#world;
    const kind = this.#prng.nextBelow(5);
    if (kind === 0 && primary.isAlive && !primary.isHung) {
      this.#note('operator: reset of the primary', () =>
        primary.command((engine, nowUs) => engine.reset('operator', nowUs)),
      );
    } else if (kind === 1 && primary.isAlive && !primary.isHung) {
      const result = primary.command((engine, nowUs) => engine.failover(false, nowUs));
      if (result.ok) this.#world.broken('G10', 'the primary accepted a failover');
    } else if (kind === 2 && primary.isAlive && !primary.isHung) {
      if (primary.engine.state === 'checkpointing') return;
      const result = primary.command((engine, nowUs) => engine.checkpointAbort('operator', nowUs));
      if (result.ok)
        this.#world.broken('G9', 'the primary aborted a checkpoint that was not there');
    } else if (kind === 3 && secondary.isAlive && !secondary.isHung && link.isUp(secondary)) {
      if (this.#world.isFailoverGranted) return;
      this.#tryFailover('the secondary took over while its peer was connected');
    } else if (kind === 4 && secondary.isAlive && !secondary.isHung && !this.#world.isSvmSynced) {
      this.#tryFailover('the secondary took over without any state');
    }
  }
}
