/**
 * The driver `none`: nobody is asked. Checkpoints come from outside, through the control socket
 * (`colo-proxy ctl checkpoint begin|commit`); requests are seen in the log and in `ctl events`.
 *
 * @module
 */
import type { VmDriver, VmStatus } from '../env/vm.ts';

export class NoneVmDriver implements VmDriver {
  readonly name = 'none';
  #requests = 0;

  start(): Promise<void> {
    return Promise.resolve();
  }

  requestCheckpoint(): void {
    this.#requests++;
  }

  onEvent(): void {}

  status(): VmStatus {
    return { driver: this.name, requests: this.#requests };
  }

  close(): Promise<void> {
    return Promise.resolve();
  }
}
