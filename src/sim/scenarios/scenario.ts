/**
 * Scenarios: worlds in which nothing is left to chance that matters. A few actors, fixed delays, faults at given
 * moments or to given frames. Each keeps one fault that the simulation once found (docs/SIMULATOR.md), with the shipping
 * engines and the ordinary checkers, independent of what a seed happens to draw. The seed that is left decides over
 * ISNs and the order of polls, so a scenario must hold for any.
 *
 * @module
 */
import { type Micros, NEVER, US_PER_MS, US_PER_S } from '../../base/time.ts';
import { VNET_HDR_BYTES } from '../../limits.ts';
import { PRIMARY_DEFAULTS } from '../../proxy/config.ts';
import type { Guarantee } from '../checkers/checker.ts';
import type { Session, SessionPlan } from '../host/client.ts';
import type { Request } from '../host/content.ts';
import { type IpPacket, PROTOCOL_TCP, parseIp, type SimFrame } from '../net/packet.ts';
import type { FrameFate, Impairments, Path } from '../net/path.ts';
import type { RunOptions } from '../options.ts';
import type { TcpOptions } from '../tcp/connection.ts';
import { tcpAbort } from '../tcp/output.ts';
import { parseSegment, type TcpSegment } from '../tcp/segment.ts';
import type { CheckpointPhase } from '../vm-layer.ts';
import type { World } from '../world.ts';

/** One fault that was found, as a script. */
export interface Scenario {
  /** As on the command line. */
  readonly name: string;
  /** What went wrong once, in a sentence. */
  readonly about: string;
  /** Changes to the calm world. */
  readonly options?: (calm: RunOptions) => RunOptions;
  readonly script: (stage: Stage) => void;
  /** When the script is over: faults stop, and everything must become quiet and correct. */
  readonly untilMs: number;
}

const CALM_TCP: TcpOptions = {
  mss: 1_460,
  windowScale: 3,
  sack: true,
  timestamps: true,
  receiveBytesMax: 65_000,
  delayedAck: false,
  gsoSegments: 1,
  probeWithByte: false,
  keepaliveUs: NEVER,
};

/** When the first checkpoint is surely over in the calm world. */
export const PROTECTED_MS = 50;

function calmPath(delayUs: Micros): Impairments {
  return {
    delayUsMin: delayUs,
    delayUsMax: delayUs,
    loss: 0,
    fragmentLoss: 0,
    duplicate: 0,
    reorder: 0,
    reorderUsMax: 0,
    corrupt: 0,
  };
}

/** A world in which nothing happens by itself: one client, fixed delays, no faults. */
export function calmOptions(): RunOptions {
  return {
    clients: 1,
    vlan: 0,
    clientPath: calmPath(200),
    guestPath: calmPath(20),
    peer: {
      delayUsMin: 100,
      delayUsMax: 100,
      timeoutUs: 300 * US_PER_MS,
      reconnectUs: 20 * US_PER_MS,
      queueBytesMax: 64 * 1024 * 1024,
    },
    config: PRIMARY_DEFAULTS,
    retainedBytesMax: 1 << 26,
    pairWaitUs: 0,
    clientTcp: CALM_TCP,
    guestTcp: CALM_TCP,
    guestPartialChecksums: false,
    mtu: 1_500,
    thinkUsMax: 0,
    divergence: 0,
    randomPort: 0,
    vm: {
      startUsMax: 0,
      copyUsMax: 1_000,
      lostRequest: 0,
      failBeforeLoad: 0,
      failAfterLoad: 0,
      oneMessage: 0,
      resumeBeforeCommit: 0,
      repeatCommands: 0,
      tellsSecondary: 0,
      answerTimeoutUs: 3 * US_PER_S,
      isStaged: false,
      spontaneousUs: NEVER,
    },
    workload: {
      sessionEveryUs: NEVER,
      datagramEveryUs: NEVER,
      scanEveryUs: NEVER,
      garbageEveryUs: NEVER,
      floodSyns: 0,
      token: 0,
      clock: 0,
      slow: 0,
      largeBytesMax: 100,
      requestsMax: 1,
      connectBack: 0,
      urgent: 0,
      closes: 0,
      resets: 0,
      slowReaders: 0,
      portReuse: 0,
      oldConnections: 0,
      ipv6: 0,
    },
    faults: {
      peerCut: NEVER,
      peerStall: NEVER,
      primaryHang: NEVER,
      secondaryHang: NEVER,
      secondaryDeath: NEVER,
      pvmStuck: NEVER,
      svmStuck: NEVER,
      svmHang: NEVER,
      pvmHang: NEVER,
      netPartition: NEVER,
      guestPartition: NEVER,
      clockJump: NEVER,
      operator: NEVER,
      pathMtu: NEVER,
    },
    primaryDies: false,
    primaryDeathPhase: '',
    primaryDeathAt: 0,
    arbiterUsMax: 0,
  };
}

/** A request of 16 bytes and `bodyBytes`, answered by `answerBytes`. */
export function request(answerBytes: number, flags = 0, bodyBytes = 0): Request {
  return { flags, bodyBytes, answerBytes, seed: 0x1234_5678 };
}

/** A session of these requests, one after the other, that the client closes. */
export function plan(requests: readonly Request[], changes?: Partial<SessionPlan>): SessionPlan {
  return {
    requests,
    ending: 'client-closes',
    isPipelined: false,
    pauseUs: 0,
    readBytes: 0,
    readEveryUs: 0,
    hasUrgent: false,
    closeAfterUs: 0,
    ...changes,
  };
}

/** What a script does to the world. */
export class Stage {
  readonly world: World;
  #nextPort = 20_000;

  constructor(world: World) {
    this.world = world;
  }

  /** Runs `run` at this time of the run. */
  at(ms: number, run: () => void): void {
    this.world.queue.at(ms * US_PER_MS, 'script', run);
  }

  /** The client opens a session; port 20000 and the next ones. */
  open(session: SessionPlan): Session {
    const { host, application, reschedule } = this.world.clients[0]!;
    host.nowUs = this.world.nowUs;
    const { ip4 } = this.world.pvm.host.state;
    const opened = application.start(host, ip4, session, this.#nextPort++);
    reschedule();
    return opened;
  }

  /** The client aborts these, and opens a session of its own from each one's port. */
  replace(before: readonly Session[], session: SessionPlan): Session[] {
    const { host, application, reschedule } = this.world.clients[0]!;
    host.nowUs = this.world.nowUs;
    const { ip4 } = this.world.pvm.host.state;
    const next = before.map(({ connection, key }) => {
      tcpAbort(connection, host.io);
      host.touch(key, connection);
      return application.start(host, ip4, session, connection.localPort);
    });
    reschedule();
    return next;
  }

  /** The VM layer makes a checkpoint. */
  checkpoint(): void {
    this.world.line('SCRIPT checkpoint');
    this.world.vm.request();
  }

  /** Runs `run` once, when a checkpoint that begins from now on reaches the phase. */
  onPhase(phase: CheckpointPhase, run: () => void): void {
    this.world.phaseScript = (reached) => {
      if (reached !== phase) return;
      this.world.phaseScript = undefined;
      run();
    };
  }

  /** The primary's host is gone, and with it what was on its way to the secondary. */
  killPrimary(): void {
    this.world.link.cut(true);
    this.world.killPrimary('any');
  }

  /** The primary's process and the PVM are gone; what it had written to the secondary still arrives. */
  crashPrimary(): void {
    this.world.killPrimary('any', false);
  }

  /** Decides over the TCP segments that enter a path from now on; undefined: their ordinary way. */
  onSegment(
    path: Path,
    decide: (segment: TcpSegment, frame: SimFrame, packet: IpPacket) => FrameFate | undefined,
  ): void {
    path.script = (frame) => {
      const packet = parseIp(frame);
      if (packet?.protocol !== PROTOCOL_TCP) return undefined;
      const segment = parseSegment(packet.payload);
      return segment === undefined ? undefined : decide(segment, frame, packet);
    };
  }

  /** Segments of which the peer link has no room for the primary's copy. */
  crowdOut(decide: (segment: TcpSegment) => boolean): void {
    const { primary } = this.world;
    const link = primary.link!;
    primary.link = {
      ...link,
      sendFrame: (kind, epoch, buffer, offset, length) => {
        const packet = parseIp(buffer.bytes.slice(offset - VNET_HDR_BYTES, offset + length));
        const segment =
          packet?.protocol === PROTOCOL_TCP ? parseSegment(packet.payload) : undefined;
        if (segment === undefined || !decide(segment)) {
          link.sendFrame(kind, epoch, buffer, offset, length);
        }
      },
    };
  }

  /** Frames go their ordinary way again. */
  release(path: Path): void {
    path.script = undefined;
  }

  /** What must be so at this moment. */
  demand(guarantee: Guarantee, isSo: boolean, otherwise: string): void {
    if (!isSo) this.world.broken(guarantee, otherwise);
  }
}
