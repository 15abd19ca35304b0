/**
 * What `colo-proxy compare` reads: the outputs of both guests, each on a port of its own. To the node's runner it is the port of the
 * primary's guest; what the secondary-in port brings goes to the engine as if it had come over a peer link.
 *
 * What the protocol of filter-redirector cannot say has to be known otherwise:
 *
 * - The epoch of the SVM's frames. A checkpoint's begin reads both sockets empty: what was there is of the old epoch. (QEMU's
 *   secondary stops, and tells the primary, before the primary stops: its last frames were sent before the STOP that makes the
 *   begin.) Between begin and commit the secondary-in port is not read: what arrives there was sent by an SVM that
 *   runs again, in the new epoch.
 * - Client frames are not seen. The engine takes the guests' window scale from their SYN-ACKs (RFC 7323 §2.2: it is there only when
 *   the client's SYN had one); on a connection that the guest opens it stays unknown, and window fields are compared unscaled.
 *
 * @module
 */
import type { Micros } from '../base/time.ts';
import type { FrameHandler } from '../env/frame.ts';
import type { PeerLink } from '../env/link.ts';
import { LINK_FRAME_SECONDARY } from '../env/messages.ts';
import type { Port, PortCounters } from '../env/port.ts';
import { QemuPort } from '../port/qemu.ts';
import type { PrimaryEngine } from '../proxy/primary.ts';
import { Lockstep } from './lockstep.ts';
import { SocketPeer } from './socket-peer.ts';

export class CompareInput implements Port {
  readonly name: string;
  /** The secondary-in port as the node's peer link. */
  readonly link: PeerLink;
  /** To be set before `start`. */
  engine: PrimaryEngine | undefined;
  readonly #primary: Port;
  readonly #secondary: Port;
  readonly #out: Port;
  readonly #batchUs: () => Micros;
  readonly #onSecondaryFrame: FrameHandler;
  #onReadable: () => void = () => {};
  /** Between a checkpoint's begin and its end. */
  #isPaused = false;
  #lockstep: Lockstep | undefined;

  /**
   * @param out where the engine's output goes; another part starts, flushes and closes it
   * @param batchUs time of the batch under way
   */
  constructor(primary: Port, secondary: Port, out: Port, batchUs: () => Micros) {
    this.name = primary.name;
    this.#primary = primary;
    this.#secondary = secondary;
    this.#out = out;
    this.#batchUs = batchUs;
    this.#onSecondaryFrame = (buffer, offset, length) => {
      const { engine } = this;
      if (engine === undefined) return;
      engine.onPeerFrame(LINK_FRAME_SECONDARY, engine.epoch, buffer, offset, length, batchUs());
    };
    this.link = new SocketPeer({
      role: 'secondary',
      port: secondary,
      onCheckpoint: (isUnderWay) => this.#pause(isUnderWay),
    });
  }

  get counters(): PortCounters {
    return this.#primary.counters;
  }

  start(onReadable: () => void, onClosed: (error: Error) => void): void {
    this.#onReadable = onReadable;
    this.#primary.start(onReadable, onClosed);
    this.#secondary.start(onReadable, onClosed);
  }

  receive(handler: FrameHandler): number {
    this.#lockstep ??= this.#createLockstep(handler);
    if (this.#lockstep !== undefined) {
      const count = this.#lockstep.run(!this.#isPaused);
      if (count === 0) this.#lockstep.handsOver = false;
      return count;
    }
    const count = this.#primary.receive(handler);
    return this.#isPaused ? count : count + this.#secondary.receive(this.#onSecondaryFrame);
  }

  handOver(): void {
    if (this.#lockstep !== undefined) this.#lockstep.handsOver = true;
  }

  /** Clients' frames do not come this way. */
  send(): void {}

  flush(): void {}

  async close(): Promise<void> {
    this.#lockstep?.close();
    await Promise.all([this.#primary.close(), this.#secondary.close()]);
  }

  /** Only where all three are streams of QEMU. */
  #createLockstep(onPrimaryFrame: FrameHandler): Lockstep | undefined {
    const { engine } = this;
    const [primary, secondary, out] = [this.#primary, this.#secondary, this.#out];
    if (!(primary instanceof QemuPort && secondary instanceof QemuPort)) return undefined;
    if (!(out instanceof QemuPort) || engine === undefined) return undefined;
    return new Lockstep({
      primary,
      secondary,
      out,
      engine,
      batchUs: this.#batchUs,
      onPrimaryFrame,
      onSecondaryFrame: this.#onSecondaryFrame,
      onLone: () => this.#onReadable(),
    });
  }

  #pause(isPaused: boolean): void {
    if (this.#isPaused === isPaused) return;
    this.#isPaused = isPaused;
    // Its readiness may have been told meanwhile, and nobody has read.
    if (!isPaused) setImmediate(() => this.#onReadable());
  }
}
