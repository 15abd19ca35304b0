/**
 * What a node is told to do: the flags of `primary` and `secondary` laid over the configuration file.
 *
 * @module
 */
import { randomBytes } from 'node:crypto';
import { ColoError } from '../base/error.ts';
import type { HashKey } from '../base/hash.ts';
import type { Micros } from '../base/time.ts';
import type { Role } from '../env/messages.ts';
import { PEER_TIMEOUT_US } from '../limits.ts';
import type { LogLevel } from '../observe/levels.ts';
import { isBothSides, parsePortSpec } from '../port/open.ts';
import {
  PRIMARY_DEFAULTS,
  type PrimaryConfig,
  SECONDARY_DEFAULTS,
  type SecondaryConfig,
} from '../proxy/config.ts';
import type { Endpoint } from '../vm/endpoint.ts';
import type { VmSpecs } from '../vm/open.ts';
import {
  type NfnetlinkSpec,
  type PeerLossSpec,
  parsePeerLossSpec,
  type VmSpec,
} from '../vm/spec.ts';
import type { PassValue, PeerAddress } from './values.ts';

/** Limits of the engines that the configuration file may set; absent = default of limits.ts. */
export interface LimitSettings {
  readonly flowsMax?: number;
  readonly halfOpenFlowsMax?: number;
  readonly flowHeldBytesMax?: number;
  readonly heldBytesMax?: number;
  readonly keptClientBytesMax?: number;
  readonly retainedBytesMax?: number;
  readonly checkpointRequestTimeoutUs?: Micros;
  readonly checkpointRequestTries?: number;
  readonly checkpointCommitTimeoutUs?: Micros;
}

/** Everything that may be given, by flag or by file. Absent means: not given there. */
export interface GivenSettings {
  readonly guest?: string;
  readonly net?: string;
  readonly peer?: PeerAddress;
  /** Name of the interface. */
  readonly forwardDev?: string;
  readonly peerKey?: string;
  readonly peerCa?: string;
  readonly peerCert?: string;
  readonly peerPrivateKey?: string;
  readonly peerInsecure?: boolean;
  readonly peerTimeoutUs?: Micros;
  readonly compareTimeoutUs?: Micros;
  readonly minRunUs?: Micros;
  readonly pass?: readonly PassValue[];
  readonly vm?: VmSpec;
  readonly nfnetlink?: NfnetlinkSpec;
  readonly notify?: Endpoint;
  readonly onPeerLoss?: PeerLossSpec;
  readonly control?: string;
  readonly logLevel?: LogLevel;
  readonly json?: boolean;
  readonly limits?: LimitSettings;
}

/** How the two nodes know each other. */
export type PeerSecuritySettings =
  | { readonly kind: 'psk'; readonly keyPath: string }
  | {
      readonly kind: 'certificate';
      readonly caPath: string;
      readonly certPath: string;
      readonly privateKeyPath: string;
    }
  | { readonly kind: 'insecure' };

/** Keys of one way of authentication. */
const SECURITY_KEYS = ['peerKey', 'peerCa', 'peerCert', 'peerPrivateKey', 'peerInsecure'] as const;

/** Complete settings of a node. */
export interface NodeSettings {
  readonly role: Role;
  readonly guest: string;
  readonly net: string;
  /** Undefined with a forward device. */
  readonly peer: PeerAddress | undefined;
  /** PORT of the raw forward device. */
  readonly forward: string | undefined;
  readonly peerSecurity: PeerSecuritySettings;
  readonly peerTimeoutUs: Micros;
  readonly vm: VmSpecs;
  readonly onPeerLoss: PeerLossSpec;
  readonly control: string | undefined;
  readonly logLevel: LogLevel;
  readonly json: boolean;
  readonly engine: GivenSettings & { readonly hashKey: HashKey };
}

/**
 * Lays the flags over the file and fills in the defaults.
 *
 * @param file undefined when no `--config` was given
 * @throws ColoError `COLO_ERR_PORT_SPEC`; `COLO_ERR_USAGE`, or `COLO_ERR_CONFIG` when there is a file, for what is missing or contradictory
 */
export function resolveSettings(
  role: Role,
  flags: GivenSettings,
  file: GivenSettings | undefined,
): NodeSettings {
  const code = file === undefined ? 'COLO_ERR_USAGE' : 'COLO_ERR_CONFIG';
  // Here rather than by the command line's parser: the port kinds are not loaded for other commands.
  for (const port of [flags.guest, flags.net]) if (port !== undefined) parsePortSpec(port);
  const given: GivenSettings = {
    ...file,
    ...withoutSecurity(file, flags),
    ...withoutOther(flags),
    ...flags,
  };
  const { guest, peer, forwardDev } = given;
  if (guest === undefined) throw missing(code, '--guest PORT', file);
  const net = isBothSides(guest) ? resolveBothSides(role, guest, given.net, code) : given.net;
  if (net === undefined) throw missing(code, '--net PORT', file);
  if (peer === undefined && forwardDev === undefined) {
    throw missing(code, '--peer listen:HOST:PORT | connect:HOST:PORT (or --forward-dev)', file);
  }
  if (guest === net && !isBothSides(guest)) {
    throw new ColoError(code, `The guest and the network cannot be the same port: ${guest}`);
  }
  const forward = forwardDev === undefined ? undefined : `packet:${forwardDev}`;
  if (forward !== undefined) checkForward(role, given, forward, code);
  return {
    role,
    guest,
    net,
    peer,
    forward,
    peerSecurity: forward === undefined ? resolveSecurity(given, code) : { kind: 'insecure' },
    peerTimeoutUs: given.peerTimeoutUs ?? PEER_TIMEOUT_US,
    vm: {
      vm: given.vm ?? { kind: 'none' },
      nfnetlink: given.nfnetlink,
      notify: given.notify,
    },
    onPeerLoss: resolvePeerLoss(role, given, code),
    control: given.control,
    logLevel: given.logLevel ?? 'info',
    json: given.json ?? !process.stderr.isTTY,
    engine: { ...given, hashKey: randomHashKey() },
  };
}

/** `guest` is the network's port as well: only on a primary, and without another one. */
function resolveBothSides(
  role: Role,
  guest: string,
  net: string | undefined,
  code: string,
): string {
  if (role === 'secondary') {
    const text = `${guest}: packet queues are for the primary; the secondary takes the tap out of its bridge (packet:)`;
    throw new ColoError(code, text);
  }
  if (net !== undefined && net !== guest) {
    throw new ColoError(code, `--guest ${guest} is the network's port as well: leave --net out`);
  }
  return guest;
}

/** The settings of the primary's engine. */
export function primaryConfig({ engine, forward }: NodeSettings): PrimaryConfig {
  return {
    ...PRIMARY_DEFAULTS,
    ...pick(engine.limits, PRIMARY_DEFAULTS),
    ...pick(
      { compareTimeoutUs: engine.compareTimeoutUs, minRunUs: engine.minRunUs },
      PRIMARY_DEFAULTS,
    ),
    passList: engine.pass ?? PRIMARY_DEFAULTS.passList,
    // Nobody would hear it.
    reportsProgress: forward === undefined,
    hashKey: engine.hashKey,
  };
}

/** The settings of the secondary's engine. */
export function secondaryConfig({ engine }: NodeSettings): SecondaryConfig {
  return {
    ...SECONDARY_DEFAULTS,
    ...pick(engine.limits, SECONDARY_DEFAULTS),
    hashKey: engine.hashKey,
  };
}

/** The given values that `defaults` knows: one file may serve both nodes. */
function pick<T extends object>(given: object | undefined, defaults: T): Partial<T> {
  const known = Object.entries(given ?? {}).filter(([k, v]) => k in defaults && v !== undefined);
  return Object.fromEntries(known) as Partial<T>;
}

/** A way of authentication given by flags replaces the file's whole, rather than contradict it. */
function withoutSecurity(file: GivenSettings | undefined, flags: GivenSettings): GivenSettings {
  const isGiven = SECURITY_KEYS.some((name) => flags[name] !== undefined);
  return file === undefined || !isGiven ? {} : without(SECURITY_KEYS);
}

/** The flags' way to the other node replaces the file's. */
function withoutOther({ peer, forwardDev }: GivenSettings): GivenSettings {
  if (forwardDev !== undefined) return without(['peer', ...SECURITY_KEYS]);
  return peer === undefined ? {} : without(['forwardDev']);
}

/** Laid over a layer it takes these keys away. */
function without(keys: readonly (keyof GivenSettings)[]): GivenSettings {
  return Object.fromEntries(keys.map((key) => [key, undefined]));
}

/** What a forward device cannot do is not to be asked of it. */
function checkForward(role: Role, given: GivenSettings, forward: string, code: string): void {
  parsePortSpec(forward);
  if (given.guest === forward || given.net === forward) {
    throw new ColoError(code, `The forward device cannot be another port of this node: ${forward}`);
  }
  if (given.peer !== undefined) {
    throw new ColoError(code, 'Give --peer or --forward-dev, not both');
  }
  if (SECURITY_KEYS.some((key) => given[key] !== undefined && key !== 'peerInsecure')) {
    const text = 'A forward device has neither authentication nor encryption: leave --peer-... out';
    throw new ColoError(code, text);
  }
  if (given.onPeerLoss !== undefined) {
    const text = 'A forward device does not tell when the peer is lost: leave --on-peer-loss out';
    throw new ColoError(code, text);
  }
  const isTold = given.vm?.kind === 'qmp' || given.nfnetlink !== undefined;
  if (role === 'secondary' && !isTold && given.control === undefined) {
    const text =
      'Nobody would tell this node of checkpoints, which a forward device does not: give --control PATH (for ctl), --vm qmp: or --nfnetlink';
    throw new ColoError(code, text);
  }
}

/** One file may serve both nodes, but this word is of one role only. */
function resolvePeerLoss(role: Role, { onPeerLoss }: GivenSettings, code: string): PeerLossSpec {
  if (onPeerLoss === undefined) return { kind: role === 'primary' ? 'release' : 'wait' };
  if (onPeerLoss.kind === 'exec') return onPeerLoss;
  try {
    return parsePeerLossSpec(role, onPeerLoss.kind);
  } catch (error) {
    throw new ColoError(code, `--on-peer-loss: ${(error as Error).message}`, { cause: error });
  }
}

function resolveSecurity(given: GivenSettings, code: string): PeerSecuritySettings {
  const { peerKey, peerCa, peerCert, peerPrivateKey } = given;
  const certificates = [peerCa, peerCert, peerPrivateKey].filter((path) => path !== undefined);
  const ways =
    Number(peerKey !== undefined) +
    Number(certificates.length > 0) +
    Number(given.peerInsecure === true);
  if (ways > 1) {
    const text =
      'Give one of --peer-key, the three of --peer-ca --peer-cert --peer-private-key, or --peer-insecure';
    throw new ColoError(code, text);
  }
  if (peerKey !== undefined) return { kind: 'psk', keyPath: peerKey };
  if (given.peerInsecure === true) return { kind: 'insecure' };
  if (peerCa !== undefined && peerCert !== undefined && peerPrivateKey !== undefined) {
    return {
      kind: 'certificate',
      caPath: peerCa,
      certPath: peerCert,
      privateKeyPath: peerPrivateKey,
    };
  }
  if (certificates.length > 0) {
    throw new ColoError(
      code,
      'Certificates need all of --peer-ca, --peer-cert and --peer-private-key',
    );
  }
  const text =
    'The peer link needs --peer-key FILE, or certificates; --peer-insecure leaves it open to everybody who can reach it';
  throw new ColoError(code, text);
}

function missing(code: string, flag: string, file: GivenSettings | undefined): ColoError {
  const where = file === undefined ? '' : ', and the configuration file does not have it either';
  return new ColoError(code, `Missing ${flag}${where}`);
}

/** A secret for the flow table of one process. */
export function randomHashKey(): HashKey {
  const bytes = randomBytes(8);
  return { low: bytes.readInt32LE(0), high: bytes.readInt32LE(4) };
}
