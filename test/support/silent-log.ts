/**
 * A log that swallows everything.
 *
 * @module
 */
import type { Log } from '../../src/env/log.ts';

export const SILENT_LOG: Log = {
  debug: () => undefined,
  info: () => undefined,
  warn: () => undefined,
  error: () => undefined,
};
