/**
 * What one run is made of, drawn from its seed: a different mix of sizes, delays, workloads and faults for each ("swarm
 * testing", Groce et al. 2012): leaving most faults out of a run finds what a little of everything hides.
 *
 * @module
 */
import type { Prng } from '../base/prng.ts';
import { type Micros, NEVER, US_PER_MS, US_PER_S } from '../base/time.ts';
import { PRIMARY_DEFAULTS, type PrimaryConfig } from '../proxy/config.ts';
import type { Impairments } from './net/path.ts';
import type { TcpOptions } from './tcp/connection.ts';

/** Mean time between two faults of a kind; NEVER = this run has none. */
export interface FaultIntervals {
  readonly peerCut: Micros;
  readonly peerStall: Micros;
  readonly primaryHang: Micros;
  readonly secondaryHang: Micros;
  readonly secondaryDeath: Micros;
  readonly pvmStuck: Micros;
  readonly svmStuck: Micros;
  readonly svmHang: Micros;
  readonly pvmHang: Micros;
  readonly netPartition: Micros;
  readonly guestPartition: Micros;
  readonly clockJump: Micros;
  readonly operator: Micros;
  /** A path becomes narrower: ICMP errors that quote the guest's segments. */
  readonly pathMtu: Micros;
}

export interface VmOptions {
  readonly startUsMax: Micros;
  readonly copyUsMax: Micros;
  /** A request is lost, or the VM layer cannot follow it. */
  readonly lostRequest: number;
  readonly failBeforeLoad: number;
  readonly failAfterLoad: number;
  /** One message for both edges (RFC: DO_CHECKPOINT). */
  readonly oneMessage: number;
  readonly resumeBeforeCommit: number;
  readonly repeatCommands: number;
  /** The secondary is told of begin and commit, too, before its peer says so or after. */
  readonly tellsSecondary: number;
  /** The peer's answer to begin or commit is waited for so long; then the checkpoint is given up. */
  readonly answerTimeoutUs: Micros;
  /**
   * The copy waits beside the paused SVM for its node's decision: it is taken at the commit, and thrown away when the node has
   * accepted an abort or fails over. Otherwise the SVM is loaded at once, and its node is told so when the primary dies.
   */
  readonly isStaged: boolean;
  /** Mean time between checkpoints that nobody asked for. */
  readonly spontaneousUs: Micros;
}

export interface WorkloadOptions {
  readonly sessionEveryUs: Micros;
  readonly datagramEveryUs: Micros;
  readonly scanEveryUs: Micros;
  readonly garbageEveryUs: Micros;
  readonly floodSyns: number;
  /** Share of requests whose answers differ between the guests. */
  readonly token: number;
  readonly clock: number;
  readonly slow: number;
  readonly largeBytesMax: number;
  readonly requestsMax: number;
  readonly connectBack: number;
  readonly urgent: number;
  readonly closes: number;
  readonly resets: number;
  readonly slowReaders: number;
  readonly portReuse: number;
  /** Connections that exist before the run, with streams beyond 4 GiB. */
  readonly oldConnections: number;
  readonly ipv6: number;
}

export interface RunOptions {
  readonly clients: number;
  readonly vlan: number;
  readonly clientPath: Impairments;
  readonly guestPath: Impairments;
  readonly peer: {
    delayUsMin: Micros;
    delayUsMax: Micros;
    timeoutUs: Micros;
    reconnectUs: Micros;
    queueBytesMax: number;
  };
  readonly config: PrimaryConfig;
  readonly retainedBytesMax: number;
  /** The primary takes both guests' frames side by side, and waits so long for the mate of one; 0: it does not. */
  readonly pairWaitUs: Micros;
  readonly clientTcp: TcpOptions;
  readonly guestTcp: TcpOptions;
  readonly guestPartialChecksums: boolean;
  readonly mtu: number;
  readonly thinkUsMax: Micros;
  readonly divergence: number;
  readonly randomPort: number;
  readonly vm: VmOptions;
  readonly workload: WorkloadOptions;
  readonly faults: FaultIntervals;
  /** Does the primary's node die in this run, and in which phase of a checkpoint (empty: at any event)? */
  readonly primaryDies: boolean;
  readonly primaryDeathPhase: string;
  /** Share of the run's steps after which it dies. */
  readonly primaryDeathAt: number;
  readonly arbiterUsMax: Micros;
}

/** Phases of a checkpoint in which the primary's death is aimed. */
export const DEATH_PHASES = [
  'paused',
  'begun',
  'saved',
  'loaded',
  'commit',
  'committed',
  'resumed',
] as const;

function drawImpairments(prng: Prng, delayUsMax: Micros): Impairments {
  const sometimes = (probability: number, highest: number): number =>
    prng.chance(probability) ? prng.nextFloat() * highest : 0;
  const delayUsMin = prng.nextBetween(1, Math.max(1, Math.floor(delayUsMax / 4)));
  return {
    delayUsMin,
    delayUsMax: delayUsMin + prng.nextBelow(delayUsMax),
    loss: sometimes(0.4, 0.08),
    fragmentLoss: 0,
    duplicate: sometimes(0.3, 0.05),
    reorder: sometimes(0.3, 0.1),
    reorderUsMax: prng.nextBetween(100, 20_000),
    corrupt: sometimes(0.25, 0.03),
  };
}

function drawTcp(prng: Prng, isTight: boolean): TcpOptions {
  return {
    mss: prng.pick([536, 1220, 1440, 1460]),
    windowScale: prng.pick([0, 0, 1, 3, 7]),
    sack: prng.chance(0.85),
    timestamps: prng.chance(0.6),
    receiveBytesMax: isTight ? 2_000 : prng.pick([2_000, 8_000, 30_000, 65_000, 200_000]),
    delayedAck: prng.chance(0.7),
    gsoSegments: prng.pick([1, 1, 4, 20]),
    probeWithByte: prng.chance(0.5),
    keepaliveUs: prng.chance(0.3) ? prng.nextBetween(100, 2_000) * US_PER_MS : NEVER,
  };
}

function drawFaults(prng: Prng, isTight: boolean): FaultIntervals {
  const quiet = prng.chance(0.2);
  const rare = (probability: number, meanMs: number): Micros =>
    !quiet && prng.chance(probability)
      ? prng.nextBetween(meanMs / 4, meanMs * 2) * US_PER_MS
      : NEVER;
  return {
    peerCut: rare(0.25, 800),
    peerStall: rare(0.25, 600),
    primaryHang: rare(0.2, 800),
    secondaryHang: rare(0.2, 800),
    secondaryDeath: rare(0.3, 400),
    pvmStuck: rare(0.2, 600),
    svmStuck: isTight ? rare(0.7, 150) : rare(0.25, 500),
    svmHang: rare(0.2, 600),
    pvmHang: rare(0.15, 800),
    netPartition: rare(0.2, 600),
    guestPartition: rare(0.2, 600),
    clockJump: rare(0.15, 1_000),
    operator: rare(0.25, 200),
    pathMtu: rare(0.25, 100),
  };
}

function drawVm(prng: Prng): VmOptions {
  const failing = prng.chance(0.25);
  return {
    startUsMax: prng.pick([500, 2_000, 20_000, 200_000]),
    copyUsMax: prng.pick([1_000, 5_000, 30_000, 300_000]),
    lostRequest: prng.chance(0.15) ? prng.pick([prng.nextFloat() * 0.5, 1]) : 0,
    failBeforeLoad: failing ? prng.nextFloat() * 0.4 : 0,
    failAfterLoad: failing ? prng.nextFloat() * 0.3 : 0,
    oneMessage: prng.pick([0, 0, 0, 0.5, 1]),
    resumeBeforeCommit: prng.pick([0, 0.5, 1]),
    repeatCommands: prng.chance(0.3) ? 0.3 : 0,
    tellsSecondary: prng.pick([0, 0, 0.5, 1]),
    answerTimeoutUs: prng.pick([50, 3_000, 3_000]) * US_PER_MS,
    isStaged: prng.chance(0.3),
    spontaneousUs: prng.chance(0.3) ? prng.nextBetween(50, 800) * US_PER_MS : NEVER,
  };
}

function drawWorkload(prng: Prng, isTight: boolean): WorkloadOptions {
  const share = (probability: number, highest: number): number =>
    prng.chance(probability) ? prng.nextFloat() * highest : 0;
  return {
    sessionEveryUs: prng.pick([10, 30, 80, 200]) * US_PER_MS,
    datagramEveryUs: prng.chance(0.6) ? prng.nextBetween(5, 100) * US_PER_MS : NEVER,
    scanEveryUs: prng.chance(0.3) ? prng.nextBetween(5, 100) * US_PER_MS : NEVER,
    garbageEveryUs: prng.chance(0.3) ? prng.nextBetween(5, 100) * US_PER_MS : NEVER,
    floodSyns: prng.chance(0.1) ? prng.nextBetween(20, 200) : 0,
    token: share(0.35, 0.4),
    clock: share(0.25, 0.3),
    slow: share(0.5, 0.6),
    largeBytesMax: isTight ? 10_000 : prng.pick([100, 1_000, 3_000, 10_000, 10_000, 60_000]),
    requestsMax: prng.pick([1, 3, 8]),
    connectBack: share(0.3, 0.3),
    urgent: share(0.15, 0.3),
    closes: share(0.5, 0.5),
    resets: share(0.3, 0.3),
    slowReaders: isTight ? 0.7 : share(0.3, 0.3),
    portReuse: share(0.3, 0.5),
    oldConnections: prng.chance(0.3) ? prng.nextBetween(1, 3) : 0,
    ipv6: prng.pick([0, 0.3, 0.5, 1]),
  };
}

function drawConfig(prng: Prng): PrimaryConfig {
  const small = prng.chance(0.25);
  return {
    ...PRIMARY_DEFAULTS,
    hashKey: { low: prng.nextU32(), high: prng.nextU32() },
    compareTimeoutUs: prng.pick([50, 200, 200, 500]) * US_PER_MS,
    minRunUs: prng.pick([0, 20, 100, 100]) * US_PER_MS,
    checkpointCommitTimeoutUs: prng.pick([2, 30]) * US_PER_S,
    checkpointRequestTimeoutUs: prng.pick([120, 500, 2_000]) * US_PER_MS,
    flowsMax: small ? prng.nextBetween(6, prng.pick([20, 200])) : PRIMARY_DEFAULTS.flowsMax,
    halfOpenFlowsMax: small ? prng.nextBetween(4, 60) : PRIMARY_DEFAULTS.halfOpenFlowsMax,
    // Twice of it, where frames are dropped, has room for the longest datagram in fragments of both guests (10 of 2 KiB): a longer
    // one can never be released whole.
    flowHeldBytesMax: small
      ? prng.nextBetween(11_000, prng.pick([14_000, 60_000]))
      : PRIMARY_DEFAULTS.flowHeldBytesMax,
    heldBytesMax: small ? prng.nextBetween(20_000, 200_000) : PRIMARY_DEFAULTS.heldBytesMax,
    keptClientBytesMax: small
      ? prng.nextBetween(4_000, prng.pick([8_000, 80_000]))
      : PRIMARY_DEFAULTS.keptClientBytesMax,
  };
}

/** Everything that a seed decides in advance. */
export function drawOptions(prng: Prng): RunOptions {
  const clientPath = drawImpairments(prng, prng.pick([200, 2_000, 20_000]));
  const guestPath = drawImpairments(prng, prng.pick([20, 200, 2_000]));
  // Between guest and proxy a frame is copied within one machine: it can be lost, never damaged.
  guestPath.corrupt = 0;
  guestPath.loss = guestPath.loss / 4;
  const peerUs = prng.pick([100, 1_000, 10_000]);
  // Windows that close: small buffers, and readers who let them fill.
  const isTight = prng.chance(0.15);
  const guestTcp = drawTcp(prng, isTight);
  const options = {
    clients: prng.nextBetween(1, 4),
    vlan: prng.chance(0.15) ? prng.nextBetween(1, 4_094) : 0,
    clientPath,
    guestPath,
    peer: {
      delayUsMin: Math.floor(peerUs / 4),
      delayUsMax: peerUs,
      timeoutUs: prng.pick([100, 300, 1_000]) * US_PER_MS,
      reconnectUs: prng.nextBetween(20, 500) * US_PER_MS,
      queueBytesMax: prng.chance(0.15) ? prng.pick([3_000, 10_000, 30_000]) : 64 * 1024 * 1024,
    },
    config: drawConfig(prng),
    retainedBytesMax: prng.chance(0.2) ? prng.nextBetween(5_000, 100_000) : 1 << 26,
    pairWaitUs: prng.chance(0.2) ? prng.pick([1_000, 10_000]) : 0,
    clientTcp: { ...drawTcp(prng, isTight), gsoSegments: 1 },
    guestTcp,
    guestPartialChecksums: prng.chance(0.5),
    mtu: 1_500,
    thinkUsMax: prng.pick([1, 20, 150, 600]) * US_PER_MS,
    divergence: prng.chance(0.25) ? prng.nextFloat() * 0.2 : 0,
    randomPort: prng.chance(0.2) ? 0.5 : 0,
    vm: drawVm(prng),
    workload: drawWorkload(prng, isTight),
    faults: drawFaults(prng, isTight),
    primaryDies: prng.chance(0.6),
    primaryDeathPhase: prng.chance(0.6) ? prng.pick(DEATH_PHASES) : '',
    primaryDeathAt: 0.15 + prng.nextFloat() * 0.8,
    arbiterUsMax: prng.pick([1, 20, 300]) * US_PER_MS,
  };
  // A datagram of which a part is missing can never be compared.
  guestPath.fragmentLoss = prng.chance(0.3) ? prng.nextFloat() * 0.2 : 0;
  return options;
}
