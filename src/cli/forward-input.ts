/**
 * The raw forward device of the RFC in the place of the peer link: client frames leave there as they are, and what arrives there is the
 * other node's. To the node's runner it is the guest's port, which the forward port is read with.
 *
 * Ethernet has none of what the peer link adds. The epoch of a frame is that of its arrival: a checkpoint's begin reads both ports
 * empty, and the primary does not read the SVM's frames again before the commit; what is under way longer than that is taken for the
 * new epoch's. Lost frames are lost. Nobody is known: the peer is there as long as the device.
 *
 * @module
 */
import type { Micros } from '../base/time.ts';
import type { Engine } from '../env/engine.ts';
import type { FrameBuffer, FrameHandler, FrameKeeper } from '../env/frame.ts';
import type { PeerLink } from '../env/link.ts';
import { LINK_FRAME_CLIENT, LINK_FRAME_SECONDARY, type Role } from '../env/messages.ts';
import type { Port, PortCounters } from '../env/port.ts';
import { VNET_HDR_BYTES } from '../limits.ts';
import { VNET_HDR_LEN } from '../wire/vnet-hdr.ts';
import { SocketPeer } from './socket-peer.ts';

export class ForwardInput implements Port {
  readonly name: string;
  readonly keeper: FrameKeeper | undefined;
  /** The forward port as the node's peer link. */
  readonly link: PeerLink;
  /** To be set before `start`. */
  engine: Engine | undefined;
  readonly #guest: Port;
  readonly #forward: Port;
  readonly #onForwarded: FrameHandler;
  #onReadable: () => void = () => {};
  /** Between a checkpoint's begin and its end, on the primary. */
  #isPaused = false;

  /**
   * @param role of this node
   * @param batchUs time of the batch under way
   */
  constructor(role: Role, guest: Port, forward: Port, batchUs: () => Micros) {
    this.name = guest.name;
    this.keeper = guest.keeper;
    this.#guest = guest;
    this.#forward = forward;
    const [sent, received] =
      role === 'primary'
        ? ([LINK_FRAME_CLIENT, LINK_FRAME_SECONDARY] as const)
        : ([LINK_FRAME_SECONDARY, LINK_FRAME_CLIENT] as const);
    this.#onForwarded = (buffer, offset, length) => {
      const { engine } = this;
      forgetMark(buffer, offset);
      engine?.onPeerFrame(received, engine.epoch, buffer, offset, length, batchUs());
    };
    this.link = new SocketPeer({
      role: role === 'primary' ? 'secondary' : 'primary',
      port: forward,
      // Copies of the PVM's SYNs are not for the SVM, and a raw frame cannot say that it is one.
      send: (buffer, offset, length, kind) => {
        if (kind !== sent) return;
        // The guest's port has had the frame before, with the mark that it knows it by.
        forgetMark(buffer, offset);
        forward.send(buffer, offset, length);
      },
      onCheckpoint: (isUnderWay) => this.#pause(role === 'primary' && isUnderWay),
    });
  }

  get counters(): PortCounters {
    return this.#guest.counters;
  }

  start(onReadable: () => void, onClosed: (error: Error) => void): void {
    this.#onReadable = onReadable;
    this.#guest.start(onReadable, onClosed);
    this.#forward.start(onReadable, onClosed);
  }

  receive(handler: FrameHandler): number {
    const count = this.#guest.receive(handler);
    return this.#isPaused ? count : count + this.#forward.receive(this.#onForwarded);
  }

  handOver(): void {
    this.#guest.handOver?.();
  }

  send(buffer: FrameBuffer, offset: number, length: number): void {
    this.#guest.send(buffer, offset, length);
  }

  flush(): void {
    this.#guest.flush();
    this.#forward.flush();
  }

  async close(): Promise<void> {
    await Promise.all([this.#guest.close(), this.#forward.close()]);
  }

  #pause(isPaused: boolean): void {
    if (this.#isPaused === isPaused) return;
    this.#isPaused = isPaused;
    // Its readiness may have been told meanwhile, and nobody has read.
    if (!isPaused) setImmediate(() => this.#onReadable());
  }
}

/** A hint of this host's kernel, or a mark of the guest's port (see FrameKeeper): of no meaning beyond the port that made it. */
function forgetMark({ view }: FrameBuffer, offset: number): void {
  view.setUint16(offset - VNET_HDR_BYTES + VNET_HDR_LEN, 0, true);
}
