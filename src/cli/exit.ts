/**
 * Exit codes of `colo-proxy` (those of sysexits.h where one fits). Scripts rely on them.
 *
 * @module
 */
import { AssertionError } from '../base/assert.ts';
import { ColoError } from '../base/error.ts';

export const EXIT_OK = 0;
/** The node refused a command, or a scenario of the lab failed. */
export const EXIT_REFUSED = 1;
/** EX_USAGE: wrong command line. */
export const EXIT_USAGE = 64;
/** EX_SOFTWARE: a bug in colo-proxy; the node stopped rather than release what it should not. */
export const EXIT_INTERNAL = 70;
/** EX_OSERR: a system call, a socket or an interface failed. */
export const EXIT_OS = 71;
/** EX_CONFIG: wrong configuration or key file. */
export const EXIT_CONFIG = 78;

/** Error codes (or their beginnings) that are the configuration's fault, not the system's. */
const CONFIG_CODES = ['COLO_ERR_CONFIG', 'COLO_ERR_PEER_KEY', 'COLO_ERR_PEER_CERTIFICATE'];

/** Error codes of values on the command line. */
const USAGE_CODES = ['COLO_ERR_USAGE', 'COLO_ERR_PORT_SPEC', 'COLO_ERR_VM_SPEC', 'COLO_ERR_VALUE'];

/** The exit code for an error that ended the program. Only operating errors are known by code; the rest are bugs. */
export function exitCodeOf(error: unknown): number {
  if (error instanceof AssertionError) return EXIT_INTERNAL;
  if (!(error instanceof ColoError)) return EXIT_INTERNAL;
  if (USAGE_CODES.some((code) => error.code.startsWith(code))) return EXIT_USAGE;
  if (CONFIG_CODES.some((code) => error.code.startsWith(code))) return EXIT_CONFIG;
  return EXIT_OS;
}
