/**
 * The error of everything that can go wrong in operation: system calls, sockets, configuration.
 * Bad bytes are never errors but counted drop reasons; bugs are AssertionErrors.
 *
 * @module
 */

/** Where an operating error came from; all optional. */
export interface ColoErrorDetail {
  readonly cause?: unknown;
  /** The system call that failed: `bind`. */
  readonly syscall?: string;
  /** The symbolic error number: `EPERM` (its value differs between architectures). */
  readonly errno?: string;
  /** The file, interface or address that it was about. */
  readonly path?: string;
}

/**
 * An operating error. Match on `code` (`COLO_ERR_PORT_SPEC`), which is stable; the text is for
 * people and may change.
 */
export class ColoError extends Error {
  override name = 'ColoError';
  readonly code: string;
  readonly syscall: string | undefined;
  readonly errno: string | undefined;
  readonly path: string | undefined;

  constructor(code: string, text: string, detail: ColoErrorDetail = {}) {
    super(text, detail.cause === undefined ? undefined : { cause: detail.cause });
    this.code = code;
    this.syscall = detail.syscall;
    this.errno = detail.errno;
    this.path = detail.path;
  }
}
