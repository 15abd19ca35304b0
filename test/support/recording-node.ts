/**
 * What the tests of the VM drivers share: a node that writes down what it is told.
 *
 * @module
 */
import type { CommandResult } from '../../src/env/engine.ts';
import type { CheckpointRequest } from '../../src/env/messages.ts';
import type { VmEvents } from '../../src/env/vm.ts';

/** Answers every command with `answers[command]`, by default with success, and keeps a list of them. */
export class RecordingNode implements VmEvents {
  readonly commands: string[] = [];
  readonly reports: string[] = [];
  readonly answers: Record<string, CommandResult | Promise<CommandResult>> = {};
  #wake: (() => void)[] = [];

  checkpointBegin(): Promise<CommandResult> {
    return this.#command('begin');
  }
  checkpointCommit(): Promise<CommandResult> {
    return this.#command('commit');
  }
  checkpointAbort(reason: string): Promise<CommandResult> {
    return this.#command('abort', reason);
  }
  failover(force: boolean): Promise<CommandResult> {
    return this.#command('failover', force ? 'forced' : '');
  }
  reset(reason: string): Promise<CommandResult> {
    return this.#command('reset', reason);
  }
  guestLost(reason: string): void {
    void this.#command('guest-lost', reason);
  }
  report(text: string): void {
    this.reports.push(text);
    this.#changed();
  }

  /** Resolves as soon as `condition` holds; looked at after each command and report. */
  async until(condition: () => boolean): Promise<void> {
    while (!condition()) await new Promise<void>((resolve) => this.#wake.push(resolve));
  }

  #command(name: string, argument = ''): Promise<CommandResult> {
    this.commands.push(argument === '' ? name : `${name}: ${argument}`);
    this.#changed();
    return Promise.resolve(this.answers[name] ?? { ok: true });
  }

  #changed(): void {
    for (const wake of this.#wake.splice(0)) wake();
  }
}

/** A request as the engine makes it. */
export function checkpointRequest(id = 1): CheckpointRequest {
  return {
    id,
    cause: 'different-bytes',
    flow: 'tcp 10.0.0.2:80 > 10.0.0.9:40312',
    offset: 1448,
    primaryExcerpt: '00',
    secondaryExcerpt: '01',
    delayUs: 10,
    coalesced: 0,
  };
}
