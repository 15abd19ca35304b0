/**
 * Several drivers of one node, for example `--vm exec:COMMAND --nfnetlink PORTID`: all of them are asked, and whoever tells
 * of a checkpoint is believed.
 *
 * @module
 */
import type { CheckpointRequest, ProxyEvent } from '../env/messages.ts';
import type { VmDriver, VmEvents, VmStatus } from '../env/vm.ts';

export class CombinedVmDriver implements VmDriver {
  readonly name: string;
  readonly #drivers: readonly VmDriver[];

  constructor(drivers: readonly VmDriver[]) {
    this.#drivers = drivers;
    this.name = drivers.map((driver) => driver.name).join(' + ');
  }

  /** @throws what the drivers throw, after closing those that have started */
  async start(events: VmEvents): Promise<void> {
    for (const [index, driver] of this.#drivers.entries()) {
      try {
        await driver.start(events);
      } catch (error) {
        await Promise.allSettled(this.#drivers.slice(0, index).map((started) => started.close()));
        throw error;
      }
    }
  }

  requestCheckpoint(request: CheckpointRequest): void {
    for (const driver of this.#drivers) driver.requestCheckpoint(request);
  }

  onEvent(event: ProxyEvent): void {
    for (const driver of this.#drivers) driver.onEvent(event);
  }

  /** The keys of each driver, with its number in front. */
  status(): VmStatus {
    const status: Record<string, string | number | boolean> = { driver: this.name };
    for (const [index, driver] of this.#drivers.entries()) {
      for (const [key, value] of Object.entries(driver.status()))
        status[`${index + 1}.${key}`] = value;
    }
    return status;
  }

  async close(): Promise<void> {
    await Promise.allSettled(this.#drivers.map((driver) => driver.close()));
  }
}
