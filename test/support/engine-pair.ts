/**
 * Both shipping engines back to back: an in-memory link that keeps order, the two guests and a client played by the
 * test, virtual time. Nothing is chosen for the engines; what they say to each other is what they say on a real link.
 *
 *     client --net--> primary --link--> secondary
 *                     PVM               SVM
 *
 * Every frame is given in a buffer of its own that is overwritten once the batch is over, so an engine that keeps
 * lent memory is caught.
 *
 * @module
 */
import type { Engine } from '../../src/env/engine.ts';
import type { FrameBuffer } from '../../src/env/frame.ts';
import type { LinkFrameKind, LinkMessage } from '../../src/env/messages.ts';
import { LINK_FRAME_SECONDARY } from '../../src/env/messages.ts';
import {
  PRIMARY_DEFAULTS,
  type PrimaryConfig,
  SECONDARY_DEFAULTS,
  type SecondaryConfig,
} from '../../src/proxy/config.ts';
import { PrimaryEngine } from '../../src/proxy/primary.ts';
import { SecondaryEngine } from '../../src/proxy/secondary.ts';
import { cloneFrame, type TestFrame } from './frame-builder.ts';
import { RecordingOutput } from './recording-output.ts';

export type GuestName = 'pvm' | 'svm';

/** Ticks at one instant; an engine that wants more would keep a real node's event loop busy for ever. */
const ROUNDS_MAX = 100;

type LinkItem =
  | { readonly kind: LinkFrameKind; readonly epoch: number; readonly frame: TestFrame }
  | { readonly message: LinkMessage };

/** An output whose frames and messages for the peer keep their common order. */
class LinkedOutput extends RecordingOutput {
  link: LinkItem[] = [];

  override sendFrameToPeer(
    kind: LinkFrameKind,
    epoch: number,
    buffer: FrameBuffer,
    offset: number,
    length: number,
  ): void {
    this.link.push({ kind, epoch, frame: cloneFrame({ buffer, offset, length }) });
  }

  override sendMessageToPeer(message: LinkMessage): void {
    super.sendMessageToPeer(message);
    this.link.push({ message });
  }
}

/** A frame that reached the network, and by which node. */
export interface NetFrame extends TestFrame {
  readonly by: 'primary' | 'secondary';
}

export interface PairConfig {
  readonly primary?: Partial<PrimaryConfig>;
  readonly secondary?: Partial<SecondaryConfig>;
}

export class EnginePair {
  readonly primaryOut = new LinkedOutput();
  readonly secondaryOut = new LinkedOutput();
  readonly primary: PrimaryEngine;
  readonly secondary: SecondaryEngine;
  nowUs = 1_000_000;
  /** False: the link keeps what is sent, in order. */
  isLinkOpen = true;
  /** Everything that has reached the network. */
  readonly net: NetFrame[] = [];
  #taken = 0;
  #isPrimaryAlive = true;

  constructor(config: PairConfig = {}) {
    this.primary = new PrimaryEngine(
      { ...PRIMARY_DEFAULTS, ...config.primary },
      this.primaryOut,
      this.nowUs,
    );
    this.secondary = new SecondaryEngine(
      { ...SECONDARY_DEFAULTS, ...config.secondary },
      this.secondaryOut,
      this.nowUs,
    );
  }

  // ------------------------------------------------------------------ frames

  /** A frame of a client, at the node that serves. Returns what reached the network because of it. */
  client(...frames: TestFrame[]): NetFrame[] {
    const engine = this.#isPrimaryAlive ? this.primary : this.secondary;
    return this.#batch(engine, frames, (frame) => {
      engine.onNetFrame(frame.buffer, frame.offset, frame.length, this.nowUs);
    });
  }

  /** Frames of a guest, in one batch. */
  guest(name: GuestName, ...frames: TestFrame[]): NetFrame[] {
    const engine = name === 'pvm' ? this.primary : this.secondary;
    if (name === 'pvm' && !this.#isPrimaryAlive) throw new Error('the PVM is dead');
    return this.#batch(engine, frames, (frame) => {
      engine.onGuestFrame(frame.buffer, frame.offset, frame.length, this.nowUs);
    });
  }

  /** A frame as the SVM's that the link brings out of turn. */
  strayFromSecondary(frame: TestFrame, epoch: number): NetFrame[] {
    return this.#batch(this.primary, [frame], ({ buffer, offset, length }) => {
      this.primary.onPeerFrame(LINK_FRAME_SECONDARY, epoch, buffer, offset, length, this.nowUs);
    });
  }

  #batch(
    engine: Engine,
    frames: readonly TestFrame[],
    feed: (frame: TestFrame) => void,
  ): NetFrame[] {
    const lent = frames.map(cloneFrame);
    for (const frame of lent) feed(frame);
    engine.flush(this.nowUs);
    for (const frame of lent) frame.buffer.bytes.fill(0xdb);
    this.settle();
    return this.takeNet();
  }

  /** What has reached the network since the last call (or the last call that returned it). */
  takeNet(): NetFrame[] {
    this.#collect();
    const frames = this.net.slice(this.#taken);
    this.#taken = this.net.length;
    return frames;
  }

  /** What a guest has received since the last call. */
  takeGuest(name: GuestName): TestFrame[] {
    return (name === 'pvm' ? this.primaryOut : this.secondaryOut).guest.splice(0);
  }

  #collect(): void {
    for (const frame of this.primaryOut.takeNet()) this.net.push({ ...frame, by: 'primary' });
    for (const frame of this.secondaryOut.takeNet()) this.net.push({ ...frame, by: 'secondary' });
  }

  // ------------------------------------------------------------------ link

  /** Carries what waits on the link, until both sides are silent. */
  settle(): void {
    this.#collect();
    while (this.isLinkOpen && this.#isPrimaryAlive) {
      const there = this.primaryOut.link.splice(0);
      const back = this.secondaryOut.link.splice(0);
      if (there.length + back.length === 0) return;
      this.#carry(there, this.secondary);
      this.#carry(back, this.primary);
      this.#collect();
    }
  }

  /** Carries the first of what waits on the way to a node, although the link is not open. */
  deliver(to: 'primary' | 'secondary', countMax = Number.POSITIVE_INFINITY): void {
    this.#collect();
    const out = to === 'primary' ? this.secondaryOut : this.primaryOut;
    this.#carry(out.link.splice(0, countMax), this[to]);
  }

  #carry(items: readonly LinkItem[], to: Engine): void {
    for (const item of items) {
      if ('message' in item) to.onPeerMessage(item.message, this.nowUs);
      else {
        const { buffer, offset, length } = item.frame;
        to.onPeerFrame(item.kind, item.epoch, buffer, offset, length, this.nowUs);
      }
    }
    to.flush(this.nowUs);
    for (const item of items) if ('frame' in item) item.frame.buffer.bytes.fill(0xdb);
  }

  join(): this {
    this.primary.onPeerUp(this.secondary.epoch, this.nowUs);
    this.secondary.onPeerUp(this.primary.epoch, this.nowUs);
    this.primary.flush(this.nowUs);
    this.secondary.flush(this.nowUs);
    this.settle();
    return this;
  }

  // ------------------------------------------------------------------ the VM layer

  begin(): void {
    must(this.primary.checkpointBegin(this.nowUs));
    this.primary.flush(this.nowUs);
    this.settle();
  }

  commit(): void {
    must(this.primary.checkpointCommit(this.nowUs));
    this.primary.flush(this.nowUs);
    this.settle();
  }

  /** Both edges; returns what reached the network. */
  checkpoint(): NetFrame[] {
    this.begin();
    this.commit();
    return this.takeNet();
  }

  /** Joined, first checkpoint committed, minimum run time over. */
  protect(): this {
    this.join();
    this.pass(1);
    this.checkpoint();
    this.pass(PRIMARY_DEFAULTS.minRunUs);
    this.primaryOut.requests = [];
    this.takeGuest('pvm');
    this.takeGuest('svm');
    return this;
  }

  /** PN is dead at once: what is on the link still arrives or not, as `isLinkOpen` says. */
  killPrimary(): void {
    this.settle();
    this.#isPrimaryAlive = false;
    this.secondary.onPeerDown('silent', this.nowUs);
    this.secondary.flush(this.nowUs);
  }

  /** The SVM serves; returns what it sent to the network at once. */
  failover(): NetFrame[] {
    must(this.secondary.failover(false, this.nowUs));
    this.secondary.flush(this.nowUs);
    return this.takeNet();
  }

  // ------------------------------------------------------------------ time

  /** Lets time pass as runners do: ticks when they are due. Returns what reached the network. */
  pass(us: number): NetFrame[] {
    const endUs = this.nowUs + us;
    const engines = this.#isPrimaryAlive ? [this.primary, this.secondary] : [this.secondary];
    let rounds = 0;
    for (;;) {
      const nextUs = Math.min(...engines.map((engine) => engine.nextDeadlineUs()));
      if (nextUs > endUs) break;
      rounds = nextUs > this.nowUs ? 0 : rounds + 1;
      if (rounds > ROUNDS_MAX) throw new Error('a deadline is due that no tick serves');
      this.nowUs = Math.max(this.nowUs, nextUs);
      for (const engine of engines) {
        if (engine.nextDeadlineUs() <= this.nowUs) engine.onTick(this.nowUs);
      }
      this.settle();
    }
    this.nowUs = endUs;
    return this.takeNet();
  }

  /** Causes of the checkpoint requests since the last call. */
  takeCauses(): string[] {
    return this.primaryOut.requests.splice(0).map(({ cause }) => cause);
  }
}

function must(result: { readonly ok: boolean; readonly error?: string }): void {
  if (!result.ok) throw new Error(result.error ?? 'refused');
}
