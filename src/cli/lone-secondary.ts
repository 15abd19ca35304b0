/**
 * A secondary without a link to a primary node: behind QEMU's filters, or behind a raw forward device.
 *
 * @module
 */
import type { Micros } from '../base/time.ts';
import type { CommandResult } from '../env/engine.ts';
import { SecondaryEngine } from '../proxy/secondary.ts';

/** Nobody here can see whether the primary lives: whoever asks for the failover has to know. */
export class LoneSecondaryEngine extends SecondaryEngine {
  override failover(force: boolean, atUs: Micros): CommandResult {
    if (!force && this.status(atUs).failoverReady) this.onPeerDown('failover asked for', atUs);
    return super.failover(force, atUs);
  }
}
