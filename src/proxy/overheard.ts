/**
 * TCP segments of clients to the guest that reach the secondary's own network port before it serves.
 *
 * A switch sends the guest's frames to the primary's port only. When that port loses its carrier, the switch forgets the guest's place
 * and floods: what clients send from then on comes past the secondary, while nobody serves. Dropped, it would wait for
 * the client's retransmission timer, 200 ms and more (1 s for a SYN: RFC 6298 §2); given to the SVM at the failover, it is answered at once.
 *
 *     heard ---- the newest, at most OVERHEARD_BYTES_MAX and OVERHEARD_AGE_US_MAX ----> failover: to the SVM, in order
 *
 * The SVM may have had such a segment by the peer link too. A network may deliver a segment twice, so TCP knows what to do with it
 * (RFC 9293 §3.4, §3.10.7.4); other protocols need not, and theirs are not kept.
 *
 * @module
 */
import type { Micros } from '../base/time.ts';
import type { FrameBuffer } from '../env/frame.ts';
import { OVERHEARD_AGE_US_MAX, OVERHEARD_BYTES_MAX } from '../limits.ts';
import { dissect, FRAME_OK, FrameInfo } from '../wire/frame.ts';
import { IP_PROTOCOL_TCP } from '../wire/ipv4.ts';
import type { FramePool, PooledFrame } from './frame-pool.ts';
import type { GuestAddresses } from './guest-addresses.ts';

interface Overheard {
  readonly frame: PooledFrame;
  readonly atUs: Micros;
}

export class OverheardFrames {
  readonly #pool: FramePool;
  readonly #guest: GuestAddresses;
  readonly #info = new FrameInfo();
  /** Oldest first; those before `#first` are gone. */
  #list: Overheard[] = [];
  #first = 0;
  #bytes = 0;

  constructor(pool: FramePool, guest: GuestAddresses) {
    this.#pool = pool;
    this.#guest = guest;
  }

  get frames(): number {
    return this.#list.length - this.#first;
  }

  /** Pool memory in use. */
  get bytes(): number {
    return this.#bytes;
  }

  /** Keeps a copy of a frame if it is a TCP segment to one of the guest's addresses. */
  hear(buffer: FrameBuffer, offset: number, length: number, nowUs: Micros): void {
    const info = this.#info;
    if (dissect(buffer, offset, length, info) !== FRAME_OK) return;
    if (info.ipVersion === 0 || info.protocol !== IP_PROTOCOL_TCP || info.isFragment) return;
    const { ipVersion, vlan, bytes, dstAddressOffset } = info;
    if (!this.#guest.has(ipVersion, vlan, bytes, dstAddressOffset)) return;
    const frame = this.#pool.copy(buffer, offset, length);
    this.#list.push({ frame, atUs: nowUs });
    this.#bytes += frame.slotBytes;
    while (this.#bytes > OVERHEARD_BYTES_MAX || this.#isOld(this.#list[this.#first]!, nowUs)) {
      this.#release(this.#list[this.#first]!);
      this.#first++;
    }
    // Moved together when half of it is gone: one step a frame, however long the list.
    if (2 * this.#first > this.#list.length) {
      this.#list = this.#list.slice(this.#first);
      this.#first = 0;
    }
  }

  /** Hands out what is not too old, in order, and forgets all; the memory stays valid until the batch was sent. */
  drain(nowUs: Micros, visit: (buffer: FrameBuffer, offset: number, length: number) => void): void {
    const list = this.#list.slice(this.#first);
    this.#list = [];
    this.#first = 0;
    for (const entry of list) {
      const { buffer, offset, length } = entry.frame;
      if (!this.#isOld(entry, nowUs)) visit(buffer, offset, length);
      this.#release(entry);
    }
  }

  clear(): void {
    this.drain(0, () => {});
  }

  #isOld(entry: Overheard, nowUs: Micros): boolean {
    return nowUs - entry.atUs > OVERHEARD_AGE_US_MAX;
  }

  #release({ frame }: Overheard): void {
    this.#bytes -= frame.slotBytes;
    this.#pool.release(frame);
  }
}
