/**
 * The fault plan and the workload of a run: each kind of event comes at random times around its mean interval, until the run heals.
 *
 * @module
 */
import type { Prng } from '../base/prng.ts';
import { type Micros, NEVER, US_PER_MS } from '../base/time.ts';
import { connectionKey } from './host/host.ts';
import { packetTooBig } from './host/path-mtu.ts';
import { parseHead, parseIp, transportChecksumOk } from './net/packet.ts';
import type { ProxyNode } from './node.ts';
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
/** How often the secondary is asked to fail over although its peer is there. */
const BESIDE_PEER_EVERY_US: Micros = 100 * US_PER_MS;
/** How often it is looked whether the secondary has heard of the end of a checkpoint. */
const HEARD_AGAIN_US: Micros = 5 * US_PER_MS;
/** After the heal an answer must come. */
const LAST_PROBE_TRIES = 60;

export class FaultPlan {
  readonly #world: World;
  readonly #prng: Prng;
  #isOver = false;
  #nextPort = 10_000;
  readonly #usedPorts = new Set<string>();

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
    this.#failoverBesidePeer();
    this.#repeat(workload.sessionEveryUs, () => this.#startSession());
    this.#repeat(workload.datagramEveryUs, () => this.#probe(PROBE_TRIES));
    this.#repeat(workload.scanEveryUs, () =>
      this.#inject('port scan', (addresses) => scanFrame(this.#prng, addresses, false)),
    );
    this.#repeat(workload.garbageEveryUs, () =>
      this.#inject('garbage', (addresses) => garbageFrame(this.#prng, addresses)),
    );
    if (workload.floodSyns > 0) this.#flood(workload.floodSyns);
    this.#repeat(vm.spontaneousUs, () => {
      if (!this.#world.link.isJoined) return;
      this.#world.marks.hit('vm: asked by nobody');
      this.#world.vm.request();
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
    this.#repeat(faults.svmHang, () => this.#hangGuest('SVM'));
    this.#repeat(faults.pvmHang, () => this.#hangGuest('PVM'));
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
    world.isHealed = true;
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
    if (this.#usedPorts.has(`${client.host.name} ${port}`)) {
      this.#world.marks.hit('session on a port used before');
    }
    this.#usedPorts.add(`${client.host.name} ${port}`);
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

  #inject(mark: 'port scan' | 'garbage', make: (addresses: Addresses) => Uint8Array): void {
    const client = this.#prng.pick(this.#world.clients);
    const frame = make(this.#addresses(client));
    // A station that forges the guest's own address takes over its switch port: no proxy can help against that.
    if (parseHead(frame)?.srcMac === this.#world.pvm.host.state.mac) return;
    this.#world.marks.hit(mark);
    client.toSwitch.send(frame);
  }

  #flood(count: number): void {
    const client = this.#prng.pick(this.#world.clients);
    this.#world.marks.hit('flood of SYNs');
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
    this.#world.marks.hit(`${which} hangs`);
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
    if (this.#prng.chance(0.4)) {
      world.marks.hit('clients: both directions cut');
      for (const path of both) this.#cut(path);
    } else {
      world.marks.hit('clients: one direction cut');
      this.#cut(this.#prng.pick(both));
    }
  }

  #partitionGuest(): void {
    const { primaryGuest, secondaryGuest } = this.#world;
    this.#cut(this.#prng.pick([primaryGuest.to, secondaryGuest.to, secondaryGuest.from]));
  }

  /** At any event, or at a phase of the next checkpoint. */
  #endSecondary(): void {
    const restartUs = this.#milliseconds(20, 800);
    if (this.#prng.chance(0.25)) this.#world.killSecondary(restartUs, 'any');
    else {
      this.#world.secondaryDeath = { phase: this.#prng.pick(DEATH_PHASES), restartUs };
      if (this.#world.link.isJoined) this.#world.vm.request();
    }
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

  /**
   * Is it of a connection that the client has open? A late quote of an earlier one says nothing, nor does one of a frame that was damaged behind
   * the narrow place.
   */
  #isUnderWay({ host }: Client, frame: Uint8Array): boolean {
    const packet = parseIp(frame);
    const segment = packet === undefined ? undefined : parseSegment(packet.payload);
    if (packet === undefined || segment === undefined) return false;
    if (!packet.headerChecksumOk || !transportChecksumOk(packet)) return false;
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
    this.#world.marks.hit(`clock of the ${node.role} jumps`);
    this.#note(`${node.name}'s clock jumps`, () => {
      node.jumpClock(byUs);
      this.#world.disturb(0);
    });
  }

  /** Again and again, in every run: a secondary whose peer is there must refuse to serve. */
  #failoverBesidePeer(): void {
    this.#world.queue.after(BESIDE_PEER_EVERY_US, 'plan', () => {
      if (this.#isOver) return;
      const { secondary, link, isFailoverGranted } = this.#world;
      const canAsk = secondary.isAlive && !secondary.isHung && !isFailoverGranted;
      if (canAsk && link.isUp(secondary)) {
        this.#world.marks.hit('operator: failover beside the peer');
        this.#tryFailover('the secondary took over while its peer was connected');
      }
      this.#failoverBesidePeer();
    });
  }

  #tryFailover(complaint: string): void {
    const result = this.#world.secondary.command((engine, nowUs) => engine.failover(false, nowUs));
    if (result.ok) this.#world.broken('G10', complaint);
  }

  #hangGuest(which: 'PVM' | 'SVM'): void {
    const machine = which === 'PVM' ? this.#world.pvm : this.#world.svm;
    if (!machine.isAlive) return;
    this.#world.marks.hit(`${which} hangs`);
    this.#note(`${which} hangs`, () => machine.hang(this.#milliseconds(1, 500)));
  }

  /** Commands out of turn: they must be refused or do what they say. */
  #operate(): void {
    const { primary, secondary, link } = this.#world;
    const canAsk = (node: typeof primary): boolean => node.isAlive && !node.isHung;
    const kind = this.#prng.nextBelow(7);
    if (kind <= 2 && canAsk(primary)) this.#operatePrimary(kind);
    else if (kind === 3 && canAsk(secondary) && link.isUp(secondary)) {
      if (this.#world.isFailoverGranted) return;
      this.#world.marks.hit('operator: failover beside the peer');
      this.#tryFailover('the secondary took over while its peer was connected');
    } else if (kind === 4 && canAsk(secondary) && !this.#world.isSvmSynced) {
      this.#world.marks.hit('operator: failover without a state');
      this.#tryFailover('the secondary took over without any state');
    } else if (kind === 5 && canAsk(secondary)) this.#resetSecondary();
    else if (kind === 6 && canAsk(primary)) this.#beginOutOfTurn();
  }

  #operatePrimary(kind: number): void {
    const { primary, marks } = this.#world;
    if (kind === 0) {
      marks.hit('operator: reset of the primary');
      this.#note('operator: reset of the primary', () =>
        primary.command((engine, nowUs) => engine.reset('operator', nowUs)),
      );
    } else if (kind === 1) {
      marks.hit('operator: failover of the primary');
      const result = primary.command((engine, nowUs) => engine.failover(false, nowUs));
      if (result.ok) this.#world.broken('G10', 'the primary accepted a failover');
    } else {
      if (primary.engine.state === 'checkpointing') return;
      marks.hit('operator: abort of nothing');
      const result = primary.command((engine, nowUs) => engine.checkpointAbort('operator', nowUs));
      if (result.ok)
        this.#world.broken('G9', 'the primary aborted a checkpoint that was not there');
    }
  }

  /** The secondary gives up what it holds, and tells the primary. */
  #resetSecondary(): void {
    const { secondary, link, isFailoverGranted } = this.#world;
    // With the link down the primary may be dead: then this would be an outage by the operator's own hand.
    if (isFailoverGranted || !link.isJoined || !this.#world.primary.isAlive) return;
    this.#world.marks.hit('operator: reset of the secondary');
    this.#world.isSecondaryReset = true;
    this.#note('operator: reset of the secondary', () =>
      secondary.command((engine, nowUs) => engine.reset('operator', nowUs)),
    );
  }

  /** A begin that no checkpoint follows: after a while the operator takes it back. */
  #beginOutOfTurn(): void {
    const { primary, vm } = this.#world;
    if (vm.isBusy || primary.engine.state !== 'protected') return;
    this.#world.marks.hit('operator: begin out of turn, then abort');
    this.#note('operator: begin out of turn', () =>
      primary.command((engine, nowUs) => engine.checkpointBegin(nowUs)),
    );
    // A begin says that the guests stand still. They do not here: no checkpoint may follow it.
    vm.reserve();
    this.#world.queue.after(this.#milliseconds(1, 50), 'plan', () => this.#takeBegunBack());
  }

  #takeBegunBack(): void {
    const { primary, secondary, queue } = this.#world;
    if (primary.isAlive && primary.isHung) {
      queue.at(primary.hungUntilUs + 1, 'plan', () => this.#takeBegunBack());
      return;
    }
    if (primary.isAlive) {
      primary.command((engine, nowUs) => engine.checkpointAbort('operator', nowUs));
      this.#freeWhenHeard(primary, secondary);
    } else this.#world.vm.free();
  }

  /** The VM layer may tell the secondary of a checkpoint by itself: not before the end of the other one is known there. */
  #freeWhenHeard(primary: ProxyNode, secondary: ProxyNode): void {
    const isBegun = secondary.isAlive && secondary.engine.state === 'checkpointing';
    if (!primary.isAlive || !isBegun) {
      this.#world.vm.free();
      return;
    }
    this.#world.queue.after(HEARD_AGAIN_US, 'plan', () => this.#freeWhenHeard(primary, secondary));
  }
}
