/**
 * `colo-proxy compare`: in the place of QEMU's `colo-compare` object, between the sockets of QEMU's filter-redirectors. It runs the
 * engine of `colo-proxy primary`; there is no second node, and the SVM's output comes from a socket, translated by
 * filter-rewriter or `colo-proxy rewrite`.
 *
 * @module
 */
import { ColoError } from '../base/error.ts';
import type { Micros } from '../base/time.ts';
import type { Log } from '../env/log.ts';
import type { Port } from '../env/port.ts';
import { EventRing } from '../observe/events.ts';
import type { LogLevel } from '../observe/levels.ts';
import { nowUs } from '../os/clock.ts';
import { parsePortSpec } from '../port/open.ts';
import { SplitPort } from '../port/split.ts';
import { PRIMARY_DEFAULTS, type PrimaryConfig } from '../proxy/config.ts';
import { PrimaryEngine } from '../proxy/primary.ts';
import { PeerLossArbiter } from '../vm/arbiter.ts';
import type { Endpoint } from '../vm/endpoint.ts';
import { openVm } from '../vm/open.ts';
import type { PeerLossSpec, VmSpec } from '../vm/spec.ts';
import { readVersion } from './args.ts';
import { CompareInput } from './compare-input.ts';
import { closeAll, openAll, supervise } from './daemon.ts';
import { NodeRunner } from './node.ts';
import { randomHashKey } from './settings.ts';
import type { PassValue } from './values.ts';

/** The flags of `compare`. Times in microseconds. */
export interface CompareFlags {
  readonly primaryIn: string;
  readonly secondaryIn: string;
  readonly out: string;
  readonly vnetHdrSupport?: boolean;
  readonly vm?: VmSpec;
  readonly notify?: Endpoint;
  readonly compareTimeout?: Micros;
  /** colo-compare's: how often it looks for packets that have waited too long. */
  readonly expiredScanCycle?: Micros;
  /** colo-compare's: packets of one connection and guest. */
  readonly maxQueueSize?: number;
  readonly minRun?: Micros;
  readonly pass?: readonly PassValue[];
  readonly onPeerLoss?: PeerLossSpec;
  readonly control?: string;
  readonly logLevel?: LogLevel;
  readonly json?: boolean;
}

/** Memory of one queued packet: what a full-sized Ethernet frame takes. */
const QUEUED_PACKET_BYTES = 2_048;

/**
 * Runs until a signal or a fault ends it.
 *
 * @returns the exit code
 * @throws ColoError `COLO_ERR_USAGE`, `COLO_ERR_PORT_SPEC`; or when it cannot start
 */
export function runCompare(flags: CompareFlags): Promise<number> {
  const specs = [flags.primaryIn, flags.secondaryIn, flags.out].map((spec) =>
    withVnetHeader(spec, flags.vnetHdrSupport === true),
  );
  if (new Set(specs).size < specs.length) {
    const text = '--primary-in, --secondary-in and --out cannot be the same port';
    throw new ColoError('COLO_ERR_USAGE', text);
  }
  checkVmLayer(flags);
  const { control, logLevel = 'info', json = !process.stderr.isTTY } = flags;
  const [primaryIn, secondaryIn, out] = specs;
  const facts = { primaryIn, secondaryIn, out, vm: flags.vm?.kind ?? 'none', control };
  return supervise({ control, logLevel, json }, 'compare', facts, async (log) => {
    const ports = await openAll(specs);
    try {
      const [primary, secondary, output] = ports;
      return createCompareNode(flags, log, primary!, secondary!, output!);
    } catch (error) {
      await closeAll(ports);
      throw error;
    }
  });
}

/**
 * The PORT with `,vnet_hdr`, where the flag asks for it and the kind of port knows the word.
 *
 * @throws ColoError `COLO_ERR_PORT_SPEC`
 */
export function withVnetHeader(spec: string, hasVnetHeader: boolean): string {
  const parsed = parsePortSpec(spec);
  const isMissing = hasVnetHeader && parsed.kind === 'qemu' && !parsed.hasVnetHeader;
  return isMissing ? `${spec},vnet_hdr` : spec;
}

/** Without somebody who makes checkpoints a divergence would hold the connection for good. */
function checkVmLayer({ vm, notify, control }: CompareFlags): void {
  if (notify !== undefined || (vm !== undefined && vm.kind !== 'none')) return;
  if (vm !== undefined && control !== undefined) return;
  const text =
    vm === undefined
      ? 'Nobody would make a checkpoint when the guests differ: give --vm qmp:ADDRESS (the primary QEMU), --vm exec:COMMAND or --notify ADDRESS (Xen)'
      : 'With --vm none checkpoints come through ctl, which needs --control PATH';
  throw new ColoError('COLO_ERR_USAGE', text);
}

/** The node of `compare` on open ports; exported for tests. */
export function createCompareNode(
  flags: CompareFlags,
  log: Log,
  primaryIn: Port,
  secondaryIn: Port,
  out: Port,
): NodeRunner {
  const input = new CompareInput(primaryIn, secondaryIn, out, () => runner.batchUs);
  const { control, expiredScanCycle } = flags;
  if (expiredScanCycle !== undefined) {
    const text = '--expired-scan-cycle has no effect: every wait has its own timer here';
    log.warn({ expiredScanCycle }, text);
  }
  const runner: NodeRunner = new NodeRunner({
    netPort: new SplitPort(undefined, out),
    guestPort: input,
    link: input.link,
    vm: openVm(
      { vm: flags.vm ?? { kind: 'none' }, notify: flags.notify, nfnetlink: undefined },
      { role: 'primary', log, controlPath: control },
    ),
    log,
    events: new EventRing(),
    nowUs,
    createEngine: (output, startUs) => {
      const engine = new PrimaryEngine(engineConfig(flags), output, startUs);
      input.engine = engine;
      return engine;
    },
    createArbiter: (actions) =>
      new PeerLossArbiter({
        role: 'primary',
        spec: flags.onPeerLoss ?? { kind: 'release' },
        actions,
        controlPath: control,
      }),
    version: readVersion(),
  });
  return runner;
}

function engineConfig(flags: CompareFlags): PrimaryConfig {
  const { compareTimeout, maxQueueSize, minRun, pass } = flags;
  return {
    ...PRIMARY_DEFAULTS,
    seesClients: false,
    reportsProgress: false,
    ...(compareTimeout !== undefined && { compareTimeoutUs: compareTimeout }),
    ...(maxQueueSize !== undefined && { flowHeldBytesMax: maxQueueSize * QUEUED_PACKET_BYTES }),
    ...(minRun !== undefined && { minRunUs: minRun }),
    ...(pass !== undefined && { passList: pass }),
    hashKey: randomHashKey(),
  };
}
