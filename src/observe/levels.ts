/**
 * The levels of the log, apart from pino so that the command line can name them without loading it.
 *
 * @module
 */
export const LOG_LEVELS = ['debug', 'info', 'warn', 'error', 'silent'] as const;
export type LogLevel = (typeof LOG_LEVELS)[number];
