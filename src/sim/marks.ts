/**
 * What runs have reached: each feature of the simulated world, each fault and each cause has a mark, and is counted where it
 * happens, not where it is drawn. A feature that no seed reaches proves nothing; `marks.test.ts` finds it.
 *
 * @module
 */
import type { CheckpointCause } from '../env/messages.ts';
import { DEATH_PHASES } from './options.ts';

/** What a model TCP does; counted for clients and guests. */
export const TCP_FEATURES = [
  'connects',
  'accepts',
  'sends data',
  'sends GSO frames',
  'sends urgent data',
  'sends timestamps',
  'sends SACK blocks',
  'scales its window',
  'closes its window',
  'delays an ACK',
  'probes a closed window',
  'probes with a byte',
  'sends a keepalive',
  'retransmits by timer',
  'retransmits by duplicate ACKs',
  'passes 2^32',
  'goes beyond 4 GiB',
  'drops a segment by PAWS',
  'lowers its MSS for a narrow path',
  'opens simultaneously',
  'closes simultaneously',
  'receives after its own FIN',
  'closes',
  'resets',
] as const;
export type TcpFeature = (typeof TCP_FEATURES)[number];

/** What the sides of a TCP cannot both do: clients send no GSO frames, and lower no MSS for their own routers. */
const NOT_OF_CLIENTS: readonly TcpFeature[] = [
  'sends GSO frames',
  'lowers its MSS for a narrow path',
];

const WORKLOAD = [
  'session over IPv4',
  'session over IPv6',
  'session in a VLAN',
  'session on a port used before',
  'connection older than the run',
  'client resets in the middle',
  'connection back to a client',
  'datagram',
  'datagram in fragments',
  'echo request',
  'address resolution by ARP',
  'address resolution by neighbour discovery',
  'port scan',
  'garbage',
  'flood of SYNs',
] as const;

const GUESTS = [
  'answer with a token',
  'answer with the clock',
  'answer slow',
  'answers in another order',
  'answer wrong by itself',
  'service stuck',
  'service reads slowly',
  'port chosen at random',
  'SVM hangs',
  'PVM hangs',
] as const;

const LINKS = ['clients', 'guests'] as const;
/** Damage is the clients' alone; see options.ts. */
const LINK_FAULTS = ['lost', 'duplicated', 'overtaken', 'cut off'] as const;

const FAULTS = [
  'clients: one direction cut',
  'clients: both directions cut',
  'peer link cut, noticed',
  'peer link cut, unnoticed',
  'peer link stalls to-primary',
  'peer link stalls to-secondary',
  'peer link made again',
  'peer link: queue full',
  'primary takes frames in pairs',
  'primary compares where frames lie',
  'primary hangs',
  'secondary hangs',
  'clock of the primary jumps',
  'clock of the secondary jumps',
  'secondary comes back',
  'outage: the primary died unprotected',
  'failover',
  'failover beside a connected peer refused, then accepted',
] as const;

const VM_LAYER = [
  'request lost',
  'asked by nobody',
  'fails before the load',
  'fails after the load',
  'one message for both edges',
  'resumes before the commit',
  'command repeated',
  'copy waits for the node',
  'waiting copy thrown away',
  'begin refused',
  'gives up waiting',
  'told the secondary alone',
  'tells both nodes',
  'committed',
] as const;
export type VmMark = (typeof VM_LAYER)[number];

const OPERATOR = [
  'reset of the primary',
  'reset of the secondary',
  'failover of the primary',
  'abort of nothing',
  'begin out of turn, then abort',
  'failover beside the peer',
  'failover without a state',
] as const;

/** Causes of requests that the simulated guests can bring about. */
const CAUSES: readonly CheckpointCause[] = [
  'sync',
  'different-bytes',
  'reset-mismatch',
  'fin-mismatch',
  'secondary-silent',
  'primary-silent',
  'acknowledgement-behind',
  'limit',
  'unverifiable',
  'secondary-request',
];

/** What the engines count when a limit or a rule of theirs is reached; the names are theirs. */
const ENGINE = [
  'primary flowsFull',
  'primary flowsEvicted',
  'primary held-limit',
  'primary guest-fragments-timeout',
  'primary client-kept-limit',
  'primary secondary-after-divergence',
  'primary ackLowered',
  'primary pureAcksBuilt',
  'primary requestsIgnored',
  'secondary client-old-epoch',
  'secondary retained-limit',
  'secondary retainedSent',
  'secondary announcements',
  'secondary probesSent',
] as const;

export type Mark =
  | `client ${TcpFeature}`
  | `guest ${TcpFeature}`
  | (typeof WORKLOAD)[number]
  | (typeof GUESTS)[number]
  | `${(typeof LINKS)[number]}: frame ${(typeof LINK_FAULTS)[number] | 'damaged'}`
  | (typeof FAULTS)[number]
  | `primary dies: ${(typeof DEATH_PHASES)[number] | 'any'}`
  | `secondary dies: ${(typeof DEATH_PHASES)[number] | 'any'}`
  | `vm: ${VmMark}`
  | `operator: ${(typeof OPERATOR)[number]}`
  | `cause: ${CheckpointCause}`
  | (typeof ENGINE)[number];

function allMarks(): Mark[] {
  const phases = [...DEATH_PHASES, 'any'] as const;
  return [
    ...TCP_FEATURES.filter((name) => !NOT_OF_CLIENTS.includes(name)).map(
      (name) => `client ${name}` as const,
    ),
    ...TCP_FEATURES.map((name) => `guest ${name}` as const),
    ...WORKLOAD,
    ...GUESTS,
    ...LINKS.flatMap((link) => LINK_FAULTS.map((fault) => `${link}: frame ${fault}` as const)),
    'clients: frame damaged',
    ...FAULTS,
    ...phases.map((phase) => `primary dies: ${phase}` as const),
    ...phases.map((phase) => `secondary dies: ${phase}` as const),
    ...VM_LAYER.map((name) => `vm: ${name}` as const),
    ...OPERATOR.map((name) => `operator: ${name}` as const),
    ...CAUSES.map((cause) => `cause: ${cause}` as const),
    ...ENGINE,
  ];
}

/** Every mark that a set of runs has to reach. */
export const MARKS: readonly Mark[] = allMarks();

/** How often each mark was reached in a run. */
export class Marks {
  readonly counts = new Map<string, number>();

  hit(mark: Mark): void {
    this.counts.set(mark, (this.counts.get(mark) ?? 0) + 1);
  }
}
