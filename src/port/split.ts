/**
 * Two ports as one: frames come from the one and go to the other. For layouts with a socket for each direction, as QEMU's
 * filter-redirectors have them.
 *
 * @module
 */
import type { FrameBuffer, FrameHandler } from '../env/frame.ts';
import type { Port, PortCounters } from '../env/port.ts';

export class SplitPort implements Port {
  readonly name: string;
  readonly #from: Port | undefined;
  readonly #to: Port;
  readonly #onDiscard: FrameHandler;
  #discarded = 0;
  /** `to` is not empty, and has another turn in the event loop. */
  #hasTurn = false;

  /** Nothing is ever received without `from`. What arrives at `to` is dropped, counted as `wrong-direction`. */
  constructor(from: Port | undefined, to: Port) {
    this.#from = from;
    this.#to = to;
    this.name = from === undefined ? to.name : `${from.name} > ${to.name}`;
    this.#onDiscard = () => {
      this.#discarded++;
    };
  }

  /** What `from` has received and `to` has sent; frames lost by either. */
  get counters(): PortCounters {
    const { receivedFrames, receivedBytes } = this.#from?.counters ?? NOTHING_RECEIVED;
    const { sentFrames, sentBytes } = this.#to.counters;
    const dropped: Record<string, number> = { ...this.#from?.counters.dropped };
    for (const [reason, count] of Object.entries(this.#to.counters.dropped)) {
      dropped[reason] = (dropped[reason] ?? 0) + count;
    }
    if (this.#discarded > 0) dropped['wrong-direction'] = this.#discarded;
    return { receivedFrames, receivedBytes, sentFrames, sentBytes, dropped };
  }

  start(onReadable: () => void, onClosed: (error: Error) => void): void {
    this.#from?.start(onReadable, onClosed);
    // Read as well: a stream tells of its end only to a reader.
    this.#to.start(() => this.#discard(), onClosed);
  }

  receive(handler: FrameHandler): number {
    return this.#from?.receive(handler) ?? 0;
  }

  send(buffer: FrameBuffer, offset: number, length: number): void {
    this.#to.send(buffer, offset, length);
  }

  flush(): void {
    this.#to.flush();
  }

  async close(): Promise<void> {
    await Promise.all([this.#from?.close(), this.#to.close()]);
  }

  #discard(): void {
    if (this.#hasTurn) return;
    // One batch a turn: whoever floods this direction must not keep the other from its work.
    this.#hasTurn = this.#to.receive(this.#onDiscard) > 0;
    if (!this.#hasTurn) return;
    setImmediate(() => {
      this.#hasTurn = false;
      this.#discard();
    });
  }
}

const NOTHING_RECEIVED = { receivedFrames: 0, receivedBytes: 0 };
