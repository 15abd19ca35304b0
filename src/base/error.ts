/**
 * Errors of operation: a system call, a socket, a file or a configuration that failed. Users match on
 * `code`; bad bytes are never errors but counted results, and bugs are `AssertionError`s.
 *
 * @module
 */

/** Details of a failed system call or file, where known. */
export interface ColoErrorDetails {
  readonly cause?: unknown;
  readonly syscall?: string;
  readonly errno?: string;
  readonly path?: string;
}

/**
 * An operating error with a stable `code` such as `COLO_ERR_PEER_KEY_MODE`.
 * Text: what was attempted, why it failed, and the hint that fixes it.
 */
export class ColoError extends Error {
  override name = 'ColoError';
  readonly code: string;
  readonly syscall: string | undefined;
  readonly errno: string | undefined;
  readonly path: string | undefined;

  constructor(code: string, text: string, details: ColoErrorDetails = {}) {
    super(text, details.cause === undefined ? undefined : { cause: details.cause });
    this.code = code;
    this.syscall = details.syscall;
    this.errno = details.errno;
    this.path = details.path;
  }
}
