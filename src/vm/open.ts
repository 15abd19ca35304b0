/**
 * `--vm`: from the text an operator writes to a driver.
 *
 * @module
 */
import { ColoError } from '../base/error.ts';
import type { Log } from '../env/log.ts';
import type { VmDriver } from '../env/vm.ts';
import { ExecVmDriver } from './exec.ts';
import { NoneVmDriver } from './none.ts';

/** A checked `--vm`. */
export type VmSpec =
  | { readonly kind: 'none' }
  | { readonly kind: 'exec'; readonly command: string };

/** What a driver needs of its node. */
export interface VmContext {
  readonly log: Log;
  readonly controlPath?: string | undefined;
}

/**
 * Reads `none` or `exec:COMMAND`.
 *
 * @throws ColoError `COLO_ERR_VM_SPEC`
 */
export function parseVmSpec(text: string): VmSpec {
  if (text === 'none') return { kind: 'none' };
  if (text.startsWith('exec:')) {
    const command = text.slice('exec:'.length);
    if (command.trim() !== '' && !command.includes('\0')) return { kind: 'exec', command };
  }
  throw new ColoError('COLO_ERR_VM_SPEC', `Expected none or exec:COMMAND, not '${text}'`);
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
