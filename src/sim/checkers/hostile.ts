/**
 * G8, hostile input: whatever arrives from clients, a node neither crashes (the runner sees that) nor makes something
 * else of it: the primary's guest gets the frames of the network as they were, in their order, each at most once.
 *
 * @module
 */
import type { SimFrame } from '../net/packet.ts';
import type { ProxyNode } from '../node.ts';
import type { Checker, Witness } from './checker.ts';

const FRAMES_MAX = 20_000;

function digest(frame: SimFrame): number {
  let hash = 0x811c9dc5;
  for (const byte of frame) hash = Math.imul(hash ^ byte, 0x01000193);
  return hash;
}

export class HostileChecker implements Checker {
  readonly guarantee = 'G8';
  readonly #witness: Witness;
  #arrived: number[] = [];
  #next = 0;

  constructor(witness: Witness) {
    this.#witness = witness;
  }

  onNetInput(node: ProxyNode, frame: SimFrame): void {
    if (node !== this.#witness.primary) return;
    if (this.#arrived.length > FRAMES_MAX) {
      this.#arrived = this.#arrived.slice(this.#next);
      this.#next = 0;
    }
    this.#arrived.push(digest(frame));
  }

  onGuestOutput(node: ProxyNode, frame: SimFrame): void {
    if (node !== this.#witness.primary) return;
    const wanted = digest(frame);
    // Frames may be lost (a full port, a limit), so the next equal one counts.
    for (let i = this.#next; i < this.#arrived.length; i++) {
      if (this.#arrived[i] !== wanted) continue;
      this.#next = i + 1;
      return;
    }
    this.#witness.broken(
      'G8',
      `the PVM got a frame of ${frame.length} bytes that did not arrive, or out of order`,
    );
  }
}
