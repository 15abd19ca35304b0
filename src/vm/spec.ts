/**
 * `--vm` as an operator writes it. Apart from the drivers, so that the command line can check it without
 * loading them.
 *
 * @module
 */
import { ColoError } from '../base/error.ts';

/** A checked `--vm`. */
export type VmSpec =
  | { readonly kind: 'none' }
  | { readonly kind: 'exec'; readonly command: string };

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
  throw new ColoError('COLO_ERR_VM_SPEC', `Expected none or exec:COMMAND; got '${text}'`);
}
