/**
 * `colo-proxy primary` and `secondary`: puts a node together from its settings, runs it, and takes it apart.
 * The only place that catches assertions' consequences: see NodeRunner for the fail-stop itself.
 *
 * @module
 */
import { assert } from '../base/assert.ts';
import type { Micros } from '../base/time.ts';
import { ControlServer } from '../control/server.ts';
import type { Engine, EngineOutput } from '../env/engine.ts';
import type { PeerLink } from '../env/link.ts';
import type { Log } from '../env/log.ts';
import type { Port } from '../env/port.ts';
import { ConnectingLink } from '../link/connect.ts';
import { ListeningLink } from '../link/listen.ts';
import { type LinkSecurityOptions, loadLinkSecurity } from '../link/security.ts';
import { EventRing } from '../observe/events.ts';
import type { LogLevel } from '../observe/levels.ts';
import { createLog, type NodeLog } from '../observe/log.ts';
import { nowUs } from '../os/clock.ts';
import { openNodePorts, openPort } from '../port/open.ts';
import { PrimaryEngine } from '../proxy/primary.ts';
import { SecondaryEngine } from '../proxy/secondary.ts';
import { PeerLossArbiter } from '../vm/arbiter.ts';
import { openVm } from '../vm/open.ts';
import { readVersion } from './args.ts';
import { EXIT_INTERNAL } from './exit.ts';
import { ForwardInput } from './forward-input.ts';
import { LoneSecondaryEngine } from './lone-secondary.ts';
import { type NodeEnd, NodeRunner } from './node.ts';
import {
  type NodeSettings,
  type PeerSecuritySettings,
  primaryConfig,
  secondaryConfig,
} from './settings.ts';

/**
 * Runs a node until a signal or a fault ends it.
 *
 * @returns the exit code
 * @throws ColoError when it cannot start
 */
export function runDaemon(settings: NodeSettings): Promise<number> {
  return supervise(settings, settings.role, describe(settings), async (log) => {
    const ports = await openPorts(settings);
    try {
      return createRunner(settings, log, ports);
    } catch (error) {
      await closePorts(ports);
      throw error;
    }
  });
}

/** What every kind of node has: a log and perhaps a control socket. */
export interface SupervisedSettings {
  readonly control: string | undefined;
  readonly logLevel: LogLevel;
  readonly json: boolean;
}

/**
 * Makes a runner, serves its control socket, and runs it until a signal or a fault ends it.
 *
 * @param name in every line of the log
 * @param facts what the log says once it has started
 * @param createNode what it has opened it closes again when it throws
 * @returns the exit code
 * @throws ColoError when it cannot start
 */
export async function supervise(
  settings: SupervisedSettings,
  name: string,
  facts: Record<string, unknown>,
  createNode: (log: Log) => Promise<NodeRunner>,
): Promise<number> {
  const log = createLog({ level: settings.logLevel, json: settings.json, role: name });
  const restore = catchStrays(log);
  try {
    const end = await runNode(settings, log, facts, await createNode(log));
    log.info({ exitCode: end.exitCode }, 'Ended');
    return end.exitCode;
  } finally {
    restore();
    log.flush();
  }
}

async function runNode(
  settings: SupervisedSettings,
  log: Log,
  facts: Record<string, unknown>,
  runner: NodeRunner,
): Promise<NodeEnd> {
  let control: ControlServer | undefined;
  let isStarted = false;
  try {
    control = await startControl(settings.control, log, runner);
    const stopSignals = onStopSignals(log, runner);
    try {
      await runner.start();
      isStarted = true;
      log.info(facts, 'Started');
      return await runner.ended;
    } finally {
      stopSignals();
    }
  } finally {
    await control?.close();
    if (!isStarted) await runner.stop('cannot start');
  }
}

/**
 * Opens ports in their order; all or none.
 *
 * @throws ColoError as `openPort`
 */
export async function openAll(specs: readonly string[]): Promise<Port[]> {
  const ports: Port[] = [];
  try {
    for (const spec of specs) ports.push(await openPort(spec));
    return ports;
  } catch (error) {
    await closeAll(ports);
    throw error;
  }
}

/** Closes ports; never rejects. */
export async function closeAll(ports: readonly Port[]): Promise<void> {
  await Promise.allSettled(ports.map((port) => port.close()));
}

interface Ports {
  readonly guest: Port;
  readonly net: Port;
  /** The raw forward device in the place of a peer link. */
  readonly forward: Port | undefined;
}

async function openPorts({ guest, net, forward }: NodeSettings): Promise<Ports> {
  const ports = await openNodePorts(guest, net);
  if (forward === undefined) return { ...ports, forward: undefined };
  try {
    return { ...ports, forward: await openPort(forward) };
  } catch (error) {
    await closeAll([ports.guest, ports.net]);
    throw error;
  }
}

function closePorts({ guest, net, forward }: Ports): Promise<void> {
  return closeAll([guest, net, ...(forward === undefined ? [] : [forward])]);
}

function createRunner(settings: NodeSettings, log: Log, ports: Ports): NodeRunner {
  const version = readVersion();
  const { role, control } = settings;
  const forwarded =
    ports.forward &&
    new ForwardInput(role, ports.guest, ports.forward, (): Micros => runner.batchUs);
  const runner: NodeRunner = new NodeRunner({
    netPort: ports.net,
    guestPort: forwarded ?? ports.guest,
    link: forwarded?.link ?? createLink(settings, version, () => runner.local),
    vm: openVm(settings.vm, {
      role,
      log,
      controlPath: control,
      isAlone: forwarded !== undefined && role === 'secondary',
    }),
    log,
    events: new EventRing(),
    nowUs,
    createEngine: (output, startUs) => {
      const engine = createEngine(settings, output, startUs);
      if (forwarded !== undefined) forwarded.engine = engine;
      return engine;
    },
    createArbiter: (actions) =>
      new PeerLossArbiter({
        role,
        spec: settings.onPeerLoss,
        actions,
        controlPath: control,
      }),
    version,
  });
  return runner;
}

function createEngine(settings: NodeSettings, output: EngineOutput, startUs: Micros): Engine {
  if (settings.role === 'primary') {
    return new PrimaryEngine(primaryConfig(settings), output, startUs);
  }
  const Secondary = settings.forward === undefined ? SecondaryEngine : LoneSecondaryEngine;
  return new Secondary(secondaryConfig(settings), output, startUs);
}

function createLink(
  settings: NodeSettings,
  software: string,
  localNode: () => NodeRunner['local'],
): PeerLink {
  assert(settings.peer !== undefined, 'a node has a peer or a forward device');
  const { mode, host, port } = settings.peer;
  const security = loadLinkSecurity(securityOptions(settings.peerSecurity), settings.role);
  const timeoutUs = settings.peerTimeoutUs;
  const options = { host, port, security, localNode, software, timeoutUs, nowUs };
  return mode === 'listen' ? new ListeningLink(options) : new ConnectingLink(options);
}

function securityOptions(security: PeerSecuritySettings): LinkSecurityOptions {
  switch (security.kind) {
    case 'psk':
      return { kind: 'key', keyFile: security.keyPath };
    case 'certificate':
      return {
        kind: 'certificate',
        caFile: security.caPath,
        certFile: security.certPath,
        privateKeyFile: security.privateKeyPath,
      };
    case 'insecure':
      return { kind: 'insecure' };
  }
}

async function startControl(
  path: string | undefined,
  log: Log,
  runner: NodeRunner,
): Promise<ControlServer | undefined> {
  if (path === undefined) return undefined;
  const control = new ControlServer(path, runner, log);
  await control.start();
  return control;
}

/** SIGTERM and SIGINT leave cleanly. A second one changes nothing: leaving is bounded by itself. */
function onStopSignals(log: Log, runner: NodeRunner): () => void {
  const onSignal = (signal: NodeJS.Signals): void => {
    log.info({ signal }, 'Leaving');
    void runner.stop(`shutting down (${signal})`);
  };
  const signals = ['SIGTERM', 'SIGINT'] as const;
  for (const signal of signals) process.on(signal, onSignal);
  // A terminal that closes must not end the service.
  const onHangup = (): void => undefined;
  process.on('SIGHUP', onHangup);
  return () => {
    for (const signal of signals) process.removeListener(signal, onSignal);
    process.removeListener('SIGHUP', onHangup);
  };
}

/**
 * An exception that nobody caught, in a callback of the shell: a bug as well. Nothing can be said about the
 * state of the node any more, so it ends at once, without a flush of its ports.
 */
function catchStrays(log: NodeLog): () => void {
  const onStray = (error: unknown): void => {
    const { message, stack } = error instanceof Error ? error : new Error(String(error));
    log.error({ error: message, stack }, 'Internal error outside of the engine: ending');
    log.flush();
    process.exit(EXIT_INTERNAL);
  };
  process.on('uncaughtException', onStray);
  process.on('unhandledRejection', onStray);
  return () => {
    process.removeListener('uncaughtException', onStray);
    process.removeListener('unhandledRejection', onStray);
  };
}

function describe(settings: NodeSettings): Record<string, unknown> {
  const { guest, net, peer, forward, peerSecurity, vm, control } = settings;
  return {
    guest,
    net,
    peer: peer === undefined ? `raw:${forward}` : `${peer.mode}:${peer.host}:${peer.port}`,
    security: peerSecurity.kind,
    vm: vm.vm.kind,
    control,
  };
}
