/**
 * From a checked `--vm` to a driver.
 *
 * @module
 */
import type { Log } from '../env/log.ts';
import type { VmDriver } from '../env/vm.ts';
import { ExecVmDriver } from './exec.ts';
import { NoneVmDriver } from './none.ts';
import type { VmSpec } from './spec.ts';

/** What a driver needs of its node. */
export interface VmContext {
  readonly log: Log;
  readonly controlPath?: string | undefined;
}

/** Makes the driver; nothing runs before its `start`. */
export function openVm(spec: VmSpec, context: VmContext): VmDriver {
  switch (spec.kind) {
    case 'none':
      return new NoneVmDriver();
    case 'exec':
      return new ExecVmDriver({ command: spec.command, ...context });
  }
}
