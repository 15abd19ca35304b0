/**
 * The log as the shell's parts see it: structured, levelled lines. pino implements it.
 *
 * @module
 */

/** Values that a log line may carry. Never secrets (keys, frame payloads beyond an excerpt). */
export type LogFields = Record<string, unknown>;

/** Fields first, then one sentence without a full stop, as pino's methods take them. */
export interface Log {
  debug(fields: LogFields, text: string): void;
  info(fields: LogFields, text: string): void;
  warn(fields: LogFields, text: string): void;
  error(fields: LogFields, text: string): void;
}
