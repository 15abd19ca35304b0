/**
 * What the lab says: a line while each scenario runs, a table, or JSON.
 *
 * @module
 */
import type { LabAttach, LabGuest } from '../cli/experiments.ts';
import type { LabBench } from './bench.ts';
import type { Facts, Scenario } from './scenario.ts';

/** One run of one scenario, as in `lab --json`. */
export interface ScenarioReport {
  readonly name: string;
  readonly family: 'ipv4' | 'ipv6';
  readonly guest: LabGuest;
  readonly attach: LabAttach;
  readonly ok: boolean;
  readonly seconds: number;
  readonly facts: Facts;
  /** Absent when ok. */
  readonly error?: string;
}

export interface LabReport {
  readonly ok: boolean;
  readonly seconds: number;
  readonly scenarios: readonly ScenarioReport[];
}

/** Facts that the table shows, in this order, with how they are written. */
const SHOWN: readonly (readonly [string, (value: number) => string])[] = [
  ['bytes', (bytes) => `${Math.round(bytes / 1e6)} MB`],
  ['mbitPerSecond', (rate) => `${Math.round(rate)} Mbit/s`],
  ['downloadMbitPerSecond', (rate) => `down ${Math.round(rate)} Mbit/s`],
  ['uploadMbitPerSecond', (rate) => `up ${Math.round(rate)} Mbit/s`],
  ['pingMs', (ms) => `ping ${ms} ms`],
  ['unprotectedMs', (ms) => `unprotected after ${ms} ms`],
  ['protectedAgainMs', (ms) => `protected again after ${ms} ms`],
  ['coloEndedMs', (ms) => `COLO ended after ${ms} ms`],
  ['secondaryServedMs', (ms) => `served without the secondary after ${ms} ms`],
  ['noticedMs', (ms) => `noticed after ${ms} ms`],
  ['takeoverMs', (ms) => `takeover ${ms} ms`],
  ['requestDelayUs', (us) => `request after ${us} us`],
  ['requestMs', (ms) => `request after ${ms} ms`],
  ['requestToStopMs', (ms) => `STOP ${ms} ms after the request`],
  ['requestToReleaseMs', (ms) => `release after ${ms} ms`],
  ['stoppedP50Ms', (ms) => `stopped for ${ms} ms`],
  ['translatedConnections', (count) => `${count} connections translated`],
  ['frozenMs', (ms) => `guests frozen ${ms} ms`],
  ['lostFrames', (count) => `${count} frames lost`],
  ['checkpoints', (count) => `${count} checkpoint${count === 1 ? '' : 's'}`],
  ['pauseMs', (ms) => `longest pause ${ms} ms`],
];

export function factsLine(facts: Facts): string {
  return SHOWN.filter(([name]) => typeof facts[name] === 'number')
    .map(([name, write]) => write(facts[name] as number))
    .join(', ');
}

/** `steady  ipv4`, padded. */
export function title(name: string, family: string): string {
  return `${name.padEnd(22)} ${family}`;
}

export function listText<B extends LabBench>(scenarios: readonly Scenario<B>[]): string {
  return scenarios.map(({ name, text }) => `${name.padEnd(22)} ${text}\n`).join('');
}

/** The table at the end. */
export function tableText({ ok, seconds, scenarios }: LabReport): string {
  const lines = scenarios.map((run) => {
    const mark = run.ok ? 'ok    ' : 'FAILED';
    const what = run.ok ? factsLine(run.facts) : firstLine(run.error ?? '');
    return `  ${mark} ${title(run.name, run.family)} ${run.seconds.toFixed(1).padStart(5)} s  ${what}`;
  });
  const failed = scenarios.filter((run) => !run.ok).length;
  const sum = ok
    ? `${scenarios.length} scenarios passed`
    : `${failed} of ${scenarios.length} scenarios failed`;
  return ['', ...lines, '', `${sum} in ${seconds.toFixed(1)} s`, ''].join('\n');
}

function firstLine(text: string): string {
  return text.split('\n', 1)[0] ?? '';
}
