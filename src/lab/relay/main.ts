/**
 * Process of the impairment relay: carries frames across the `wire` namespace, and loses, doubles and
 * reorders some of them on the way, by a seeded generator.
 *
 * @module
 */
import { Prng } from '../../base/prng.ts';
import type { FrameBuffer } from '../../env/frame.ts';
import type { Port } from '../../env/port.ts';
import { BATCH_FRAMES_MAX, VNET_HDR_BYTES } from '../../limits.ts';
import { PacketPort } from '../../port/packet.ts';
import { type Asked, serveChannel } from '../messages.ts';
import { WIRE_PAIRS } from '../topology.ts';

/** Shares of frames, 0..1. */
export interface Impairment {
  readonly loss: number;
  readonly duplication: number;
  readonly reordering: number;
}

export type RelayRequest =
  | { readonly type: 'impair'; readonly seed: number; readonly impairment: Impairment }
  | { readonly type: 'count' };

export interface RelayReply {
  readonly passed: number;
  readonly lost: number;
  readonly duplicated: number;
  readonly reordered: number;
}

/** A reordered frame is overtaken by up to so many others, or waits this long when none come. */
const OVERTAKEN_MAX = 3;
const LATE_MS = 3;

const counts = { passed: 0, lost: 0, duplicated: 0, reordered: 0 };
let impairment: Impairment = { loss: 0, duplication: 0, reordering: 0 };

interface LateFrame {
  readonly copy: FrameBuffer;
  readonly length: number;
  overtakenBy: number;
}

/** One direction of one cable. */
class Lane {
  readonly #from: Port;
  readonly #to: Port;
  prng = new Prng(0);
  #late: LateFrame[] = [];

  constructor(from: Port, to: Port) {
    this.#from = from;
    this.#to = to;
  }

  /** Called when `from` has frames. */
  pump(): void {
    const count = this.#from.receive((buffer, offset, length) =>
      this.#carry(buffer, offset, length),
    );
    this.#to.flush();
    if (count === BATCH_FRAMES_MAX) setImmediate(() => this.pump());
  }

  #carry(buffer: FrameBuffer, offset: number, length: number): void {
    const dice = this.prng.nextFloat();
    const { loss, duplication, reordering } = impairment;
    if (dice < loss) {
      counts.lost++;
    } else if (dice < loss + reordering) {
      counts.reordered++;
      this.#delay(buffer, offset, length);
      return;
    } else {
      this.#to.send(buffer, offset, length);
      counts.passed++;
      if (dice < loss + reordering + duplication) {
        counts.duplicated++;
        this.#to.send(buffer, offset, length);
      }
    }
    this.#overtake();
  }

  #delay(buffer: FrameBuffer, offset: number, length: number): void {
    const bytes = buffer.bytes.slice(offset - VNET_HDR_BYTES, offset + length);
    const copy = { bytes, view: new DataView(bytes.buffer) };
    const late = { copy, length, overtakenBy: this.prng.nextBetween(1, OVERTAKEN_MAX) };
    this.#late.push(late);
    setTimeout(() => {
      if (!this.#late.includes(late)) return;
      this.#late = this.#late.filter((other) => other !== late);
      this.#sendLate(late);
      this.#to.flush();
    }, LATE_MS);
  }

  #overtake(): void {
    if (this.#late.length === 0) return;
    for (const late of this.#late) late.overtakenBy--;
    for (const late of this.#late) if (late.overtakenBy <= 0) this.#sendLate(late);
    this.#late = this.#late.filter((late) => late.overtakenBy > 0);
  }

  #sendLate(late: LateFrame): void {
    counts.passed++;
    this.#to.send(late.copy, VNET_HDR_BYTES, late.length);
  }
}

const lanes: Lane[] = [];
for (const [a, b] of WIRE_PAIRS) {
  const portA = new PacketPort(a);
  const portB = new PacketPort(b);
  const onClosed = (error: Error): never => {
    throw error;
  };
  const down = new Lane(portA, portB);
  const up = new Lane(portB, portA);
  portA.start(() => down.pump(), onClosed);
  portB.start(() => up.pump(), onClosed);
  lanes.push(down, up);
}

serveChannel((asked: Asked): RelayReply => {
  const request = asked as Asked & RelayRequest;
  if (request.type === 'impair') {
    impairment = request.impairment;
    const prng = new Prng(request.seed);
    for (const lane of lanes) lane.prng = prng.fork();
  }
  return { ...counts };
});
