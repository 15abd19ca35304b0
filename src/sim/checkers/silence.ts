/**
 * G3, silence: before failover no frame of the SVM reaches the network, ever.
 *
 * @module
 */
import type { SimFrame } from '../net/packet.ts';
import type { ProxyNode } from '../node.ts';
import type { Checker, Witness } from './checker.ts';

export class SilenceChecker implements Checker {
  readonly guarantee = 'G3';
  readonly #witness: Witness;

  constructor(witness: Witness) {
    this.#witness = witness;
  }

  onNetOutput(node: ProxyNode, frame: SimFrame): void {
    if (node !== this.#witness.secondary || this.#witness.isFailoverGranted) return;
    this.#witness.broken(
      'G3',
      `the secondary sent a frame of ${frame.length} bytes before failover`,
    );
  }
}
