/**
 * From a checked `--vm` to a driver.
 *
 * @module
 */
import type { Log } from '../env/log.ts';
import type { Role } from '../env/messages.ts';
import type { VmDriver } from '../env/vm.ts';
import { CombinedVmDriver } from './combined.ts';
import type { Endpoint } from './endpoint.ts';
import { ExecVmDriver } from './exec.ts';
import { NfnetlinkDriver } from './nfnetlink.ts';
import { NoneVmDriver } from './none.ts';
import { NotifyDriver } from './notify.ts';
import { QmpVmDriver } from './qmp.ts';
import type { NfnetlinkSpec, VmSpec } from './spec.ts';

/** What a driver needs of its node. */
export interface VmContext {
  readonly role: Role;
  readonly log: Log;
  readonly controlPath?: string | undefined;
  /** A secondary without a link to its primary: the driver tells of the whole checkpoint. */
  readonly isAlone?: boolean;
}

/** Everything that may ask for, and tell of, checkpoints. */
export interface VmSpecs {
  readonly vm: VmSpec;
  readonly nfnetlink: NfnetlinkSpec | undefined;
  readonly notify: Endpoint | undefined;
}

/** Makes the driver, of several ones if need be; nothing runs before its `start`. */
export function openVm(specs: VmSpecs, context: VmContext): VmDriver {
  const { role, log } = context;
  const drivers: VmDriver[] = [];
  if (specs.nfnetlink !== undefined) {
    drivers.push(new NfnetlinkDriver({ spec: specs.nfnetlink, role, log }));
  }
  if (specs.notify !== undefined) drivers.push(new NotifyDriver({ endpoint: specs.notify, log }));
  if (drivers.length === 0) return openOne(specs.vm, context);
  if (specs.vm.kind !== 'none') drivers.unshift(openOne(specs.vm, context));
  const [only] = drivers;
  return drivers.length === 1 && only !== undefined ? only : new CombinedVmDriver(drivers);
}

function openOne(spec: VmSpec, context: VmContext): VmDriver {
  switch (spec.kind) {
    case 'none':
      return new NoneVmDriver();
    case 'exec':
      return new ExecVmDriver({ command: spec.command, ...context });
    case 'qmp':
      return new QmpVmDriver({
        endpoint: spec.endpoint,
        role: context.role,
        isAlone: context.isAlone === true,
      });
  }
}
