/**
 * What the primary knows of its guest's addresses, and tells the secondary before each commit that follows a change: a
 * secondary that takes over before its own guest has sent a frame must be able to announce it all the same.
 *
 * @module
 */
import type { EngineOutput } from '../env/engine.ts';
import type { FrameInfo } from '../wire/frame.ts';
import { GuestAddresses } from './guest-addresses.ts';
import { learnOwnAddresses } from './neighbours.ts';

export class AddressReport {
  readonly #guest = new GuestAddresses();
  /** `changes` when the secondary was told last. */
  #told = 0;

  /** A frame of the PVM; `isControl`: ARP, neighbour discovery and their like. */
  onGuestFrame(info: FrameInfo, isControl: boolean): void {
    if (info.ipVersion !== 0) this.#guest.onGuestIp(info);
    if (isControl) learnOwnAddresses(info, this.#guest);
  }

  /** Another secondary knows nothing yet. */
  onPeerUp(): void {
    this.#told = 0;
  }

  /** A commit follows. */
  tell(output: EngineOutput): void {
    const { changes, isRouter } = this.#guest;
    if (changes === this.#told) return;
    this.#told = changes;
    const addresses = this.#guest.list();
    output.sendMessageToPeer({ type: 'guest-addresses', isRouter, addresses });
  }
}
