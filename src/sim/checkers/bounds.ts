/**
 * G7, bounded: flows and held bytes stay within what is configured, whatever happens.
 *
 * @module
 */
import { FRAME_BYTES_MAX } from '../../limits.ts';
import { heldFrames, type ProxyNode } from '../node.ts';
import type { Checker, Witness } from './checker.ts';

export class BoundsChecker implements Checker {
  readonly guarantee = 'G7';
  readonly #witness: Witness;
  #pulses = 0;

  constructor(witness: Witness) {
    this.#witness = witness;
  }

  onPulse(): void {
    // Looking at the whole status costs, so not every time.
    if (this.#pulses++ % 4 !== 0) return;
    for (const node of [this.#witness.primary, this.#witness.secondary]) {
      if (node.isAlive) this.#check(node);
    }
  }

  #check(node: ProxyNode): void {
    const { config, retainedBytesMax } = this.#witness;
    const status = node.engine.status(node.nowUs);
    if (status.flows > config.flowsMax) {
      this.#witness.broken('G7', `${node.name} tracks ${status.flows} flows of ${config.flowsMax}`);
    }
    // At the limit a checkpoint is asked for; twice of it is where output is refused and counted.
    const ownBytes = node.role === 'primary' ? 2 * config.heldBytesMax : retainedBytesMax;
    const held = ownBytes + 2 * config.keptClientBytesMax + 4 * FRAME_BYTES_MAX;
    if (status.held.bytes > held) {
      this.#witness.broken('G7', `${node.name} holds ${status.held.bytes} bytes of ${held}`);
    }
    if (status.held.bytes < 0 || status.held.frames < 0) {
      this.#witness.broken('G7', `${node.name} holds ${status.held.frames} frames: lost count`);
    }
  }

  /** When all is quiet nothing is held. */
  onEnd(): void {
    const { primary } = this.#witness;
    if (!primary.isAlive) return;
    const held = heldFrames(primary);
    if (held > 0) {
      this.#witness.broken('G7', `${held} frames are held although everything is quiet`);
    }
  }
}
