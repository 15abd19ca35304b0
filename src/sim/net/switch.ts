/**
 * A learning Ethernet switch: where a source address was last seen, frames for it are sent.
 *
 * @module
 */
import { assert } from '../../base/assert.ts';
import { parseHead, type SimFrame } from './packet.ts';

export class Switch {
  readonly #ports: ((frame: SimFrame) => void)[] = [];
  readonly #learned = new Map<string, number>();

  /** Adds a port; its number. */
  attach(output: (frame: SimFrame) => void): number {
    return this.#ports.push(output) - 1;
  }

  /** The port behind which `mac` was last seen; undefined when never. */
  portOf(mac: string): number | undefined {
    return this.#learned.get(mac);
  }

  /** A frame from `port`. */
  input(port: number, frame: SimFrame): void {
    const head = parseHead(frame);
    if (head === undefined) return;
    const isGroup = (Number.parseInt(head.srcMac.slice(0, 2), 16) & 1) === 1;
    if (!isGroup) this.#learned.set(head.srcMac, port);
    const target = this.#learned.get(head.dstMac);
    if (target !== undefined) {
      if (target !== port) this.#send(target, frame);
      return;
    }
    for (let other = 0; other < this.#ports.length; other++) {
      if (other !== port) this.#send(other, frame);
    }
  }

  #send(port: number, frame: SimFrame): void {
    const output = this.#ports[port];
    assert(output !== undefined, 'sim: a port that was attached');
    output(frame);
  }
}
