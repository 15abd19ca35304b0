/**
 * What a scenario is.
 *
 * @module
 */
import type { LabAttach } from '../cli/experiments.ts';
import type { Bench, LabBench } from './bench.ts';
import type { Family } from './clients.ts';
import type { Impairment } from './relay/main.ts';

/** Numbers and truths of a run, with units in their names. */
export type Facts = Record<string, number | boolean | string>;

/** `B`: the bench that it runs on. */
export interface Scenario<B extends LabBench = Bench> {
  readonly name: string;
  /** One line for the user: what is shown. */
  readonly text: string;
  readonly families: readonly Family[];
  readonly impairment?: Impairment;
  /** Longer where guests that merely wait for a processor must ask for no checkpoint. Default: the nodes' own. */
  readonly compareTimeoutMs?: number;
  /** Only where the primary is attached in this way. */
  readonly attach?: LabAttach;
  /** Throws when something is not as it must be. */
  run(bench: B): Promise<Facts>;
}

/** A number with one decimal, for facts. */
export function tenth(value: number): number {
  return Math.round(value * 10) / 10;
}

/** A machine that is busy, or was stopped for a moment, is not silent as long. */
export const PATIENT_COMPARE_MS = 2_000;

export const MEGABYTE = 1_000_000;
