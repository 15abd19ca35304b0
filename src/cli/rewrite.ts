/**
 * `colo-proxy rewrite`: in the place of QEMU's `filter-rewriter`, between two pairs of filter-redirectors of the secondary QEMU. It
 * runs the engine of `colo-proxy secondary`; there is no link to a primary node. Before a failover the frames that come from the
 * network's side are those that the primary's filter-mirror sends, and what goes there is redirected to colo-compare.
 *
 * @module
 */
import { ColoError } from '../base/error.ts';
import type { Micros } from '../base/time.ts';
import type { FrameBuffer, FrameHandler } from '../env/frame.ts';
import type { Log } from '../env/log.ts';
import { LINK_FRAME_CLIENT } from '../env/messages.ts';
import type { Port, PortCounters } from '../env/port.ts';
import { EventRing } from '../observe/events.ts';
import type { LogLevel } from '../observe/levels.ts';
import { nowUs } from '../os/clock.ts';
import { SplitPort } from '../port/split.ts';
import { SECONDARY_DEFAULTS } from '../proxy/config.ts';
import type { SecondaryEngine } from '../proxy/secondary.ts';
import { openVm } from '../vm/open.ts';
import type { VmSpec } from '../vm/spec.ts';
import { readVersion } from './args.ts';
import { withVnetHeader } from './compare.ts';
import { closeAll, openAll, supervise } from './daemon.ts';
import { LoneSecondaryEngine } from './lone-secondary.ts';
import { NodeRunner } from './node.ts';
import { randomHashKey } from './settings.ts';
import { SocketPeer } from './socket-peer.ts';

/** The flags of `rewrite`. */
export interface RewriteFlags {
  readonly guest: string;
  /** @default guest */
  readonly toGuest?: string;
  readonly net: string;
  /** @default net */
  readonly toNet?: string;
  readonly vnetHdrSupport?: boolean;
  readonly vm?: VmSpec;
  readonly control?: string;
  readonly logLevel?: LogLevel;
  readonly json?: boolean;
}

/**
 * Runs until a signal or a fault ends it.
 *
 * @returns the exit code
 * @throws ColoError `COLO_ERR_USAGE`, `COLO_ERR_PORT_SPEC`; or when it cannot start
 */
export function runRewrite(flags: RewriteFlags): Promise<number> {
  const { control, logLevel = 'info', json = !process.stderr.isTTY, vm } = flags;
  const specs = [flags.guest, flags.toGuest, flags.net, flags.toNet]
    .filter((spec) => spec !== undefined)
    .map((spec) => withVnetHeader(spec, flags.vnetHdrSupport === true));
  if (new Set(specs).size < specs.length) {
    const text = '--guest, --to-guest, --net and --to-net cannot be the same port';
    throw new ColoError('COLO_ERR_USAGE', text);
  }
  if (vm?.kind === 'exec') {
    const text =
      '--vm exec: asks for checkpoints, which is the part of compare; rewrite has to be told of them';
    throw new ColoError('COLO_ERR_USAGE', text);
  }
  if (vm?.kind !== 'qmp' && control === undefined) {
    const text =
      'Nobody would tell of checkpoints: give --vm qmp:ADDRESS (the secondary QEMU), or --control PATH for ctl';
    throw new ColoError('COLO_ERR_USAGE', text);
  }
  const facts = { ports: specs, vm: vm?.kind ?? 'none', control };
  return supervise({ control, logLevel, json }, 'rewrite', facts, async (log) => {
    const ports = await openAll(specs);
    try {
      return createRewriteNode(flags, log, ports);
    } catch (error) {
      await closeAll(ports);
      throw error;
    }
  });
}

/** The node of `rewrite` on open ports, in the order of the flags; exported for tests. */
export function createRewriteNode(
  flags: RewriteFlags,
  log: Log,
  ports: readonly Port[],
): NodeRunner {
  const rest = [...ports];
  const take = (): Port => rest.shift()!;
  const guest = take();
  const guestPort = flags.toGuest === undefined ? guest : new SplitPort(guest, take());
  const net = take();
  const netPort = new NetworkSide(
    flags.toNet === undefined ? net : new SplitPort(net, take()),
    () => runner.batchUs,
  );
  const runner: NodeRunner = new NodeRunner({
    guestPort,
    netPort,
    link: new SocketPeer({
      role: 'primary',
      port: net,
      send: (buffer, offset, length) => netPort.send(buffer, offset, length),
    }),
    vm: openVm(
      { vm: flags.vm ?? { kind: 'none' }, notify: undefined, nfnetlink: undefined },
      { role: 'secondary', log, controlPath: flags.control, isAlone: true },
    ),
    log,
    events: new EventRing(),
    nowUs,
    createEngine: (output, startUs) => {
      const config = { ...SECONDARY_DEFAULTS, hashKey: randomHashKey() };
      const engine = new LoneSecondaryEngine(config, output, startUs);
      netPort.engine = engine;
      return engine;
    },
    version: readVersion(),
  });
  return runner;
}

/** Before the failover what comes from there is the clients' frames as the primary has got them, after it the network's own. */
class NetworkSide implements Port {
  readonly name: string;
  /** To be set before `start`. */
  engine: SecondaryEngine | undefined;
  readonly #port: Port;
  readonly #onMirrored: FrameHandler;

  /** @param batchUs time of the batch under way */
  constructor(port: Port, batchUs: () => Micros) {
    this.name = port.name;
    this.#port = port;
    this.#onMirrored = (buffer, offset, length) => {
      const { engine } = this;
      engine?.onPeerFrame(LINK_FRAME_CLIENT, engine.epoch, buffer, offset, length, batchUs());
    };
  }

  get counters(): PortCounters {
    return this.#port.counters;
  }

  start(onReadable: () => void, onClosed: (error: Error) => void): void {
    this.#port.start(onReadable, onClosed);
  }

  receive(handler: FrameHandler): number {
    const isServing = this.engine?.state === 'failed-over';
    return this.#port.receive(isServing ? handler : this.#onMirrored);
  }

  send(buffer: FrameBuffer, offset: number, length: number): void {
    this.#port.send(buffer, offset, length);
  }

  flush(): void {
    this.#port.flush();
  }

  close(): Promise<void> {
    return this.#port.close();
  }
}
