/**
 * What the engines answer to commands.
 *
 * @module
 */
import type { CommandResult } from '../env/engine.ts';

export const OK: CommandResult = { ok: true };

/** `Cannot <action>: <reason>`. */
export function refuse(action: string, reason: string): CommandResult {
  return { ok: false, error: `Cannot ${action}: ${reason}` };
}
