/**
 * G10, one owner: at no time do two nodes serve the client, as long as the arbiter is asked.
 *
 * @module
 */
import type { ProxyNode } from '../node.ts';
import type { Checker, Witness } from './checker.ts';

export class OwnerChecker implements Checker {
  readonly guarantee = 'G10';
  readonly #witness: Witness;

  constructor(witness: Witness) {
    this.#witness = witness;
  }

  onNetOutput(node: ProxyNode): void {
    if (node === this.#witness.primary && this.#witness.isFailoverGranted) {
      this.#witness.broken('G10', 'the primary serves although the secondary has taken over');
    }
  }

  onSettled(node: ProxyNode): void {
    if (node !== this.#witness.secondary || node.engine.state !== 'failed-over') return;
    if (this.#witness.isFailoverGranted) return;
    this.#witness.broken('G10', 'the secondary has taken over although nobody let it');
  }
}
