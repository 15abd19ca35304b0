/**
 * The port `tap:IFNAME`: the far side of a tap device. What the host (or the bridge that the device is in)
 * sends out of the interface is received here; what is sent here the host receives.
 *
 * One system call a frame, as tun devices know no batches; with GSO frames that matters little.
 *
 * @module
 */
import { ColoError } from '../base/error.ts';
import type { FrameBuffer, FrameHandler } from '../env/frame.ts';
import type { Port } from '../env/port.ts';
import { BATCH_FRAMES_MAX, FRAME_BYTES_MAX, VNET_HDR_BYTES } from '../limits.ts';
import { addressOf } from '../os/libc.ts';
import { TapDevice } from '../os/tap.ts';
import { ETHERNET_HEADER_BYTES } from '../wire/ethernet.ts';
import { countDrop, createPortCounters } from './counters.ts';
import { Poller } from './poller.ts';
import { Sender } from './sender.ts';

/** Room for the virtio-net header and the longest frame; whole cache lines. */
const SLOT_BYTES = Math.ceil((VNET_HDR_BYTES + FRAME_BYTES_MAX) / 64) * 64;

/** How often the device is looked at: its MTU, and whether it is still there. */
const CHECK_MS = 1_000;

/** A tap device as a port. Survives the interface being set down; dies when it is deleted. */
export class TapPort implements Port {
  readonly name: string;
  readonly counters = createPortCounters();
  readonly #device: TapDevice;
  readonly #ring: FrameBuffer;
  readonly #address: number;
  readonly #lengths = new Int32Array(BATCH_FRAMES_MAX);
  readonly #sender: Sender;
  readonly #poller: Poller;
  #onReadable: () => void = () => {};
  #onClosed: (error: Error) => void = () => {};
  #checkTimer: NodeJS.Timeout | undefined;
  #closed = false;

  /** @throws ColoError COLO_ERR_TAP_OPEN */
  constructor(interfaceName: string) {
    this.name = `tap:${interfaceName}`;
    this.#device = TapDevice.open(interfaceName);
    const memory = new ArrayBuffer(BATCH_FRAMES_MAX * SLOT_BYTES);
    this.#ring = { bytes: new Uint8Array(memory), view: new DataView(memory) };
    this.#address = addressOf(memory);
    this.#poller = new Poller(this.#device.fd, {
      onReadable: () => this.#onReadable(),
      onWritable: () => this.#sender.retry(),
      onFailed: () => this.#check(),
    });
    this.#sender = new Sender(
      {
        transmit: (vector, first, count) => this.#device.write(vector, first, count),
        mtu: () => this.#device.mtu(),
        wantWritable: (wanted) => this.#poller.watchWritable(wanted),
        onLinkDown: () => {},
      },
      this.counters,
    );
  }

  start(onReadable: () => void, onClosed: (error: Error) => void): void {
    this.#onReadable = onReadable;
    this.#onClosed = onClosed;
    this.#poller.watchReadable();
    this.#checkTimer = setInterval(() => this.#check(), CHECK_MS);
    this.#checkTimer.unref();
  }

  receive(handler: FrameHandler): number {
    if (this.#closed) return 0;
    let count = 0;
    while (count < BATCH_FRAMES_MAX) {
      const bytes = this.#device.read(this.#address + count * SLOT_BYTES, SLOT_BYTES);
      // EAGAIN: no more. Of other errors the poller hears.
      if (bytes < 0) break;
      this.#lengths[count++] = bytes - VNET_HDR_BYTES;
    }
    this.#poller.answered(count === 0);
    for (let index = 0; index < count; index++) {
      const length = this.#lengths[index]!;
      if (length < ETHERNET_HEADER_BYTES || length > FRAME_BYTES_MAX) {
        countDrop(this.counters, length < ETHERNET_HEADER_BYTES ? 'too-short' : 'too-long');
        continue;
      }
      this.counters.receivedFrames++;
      this.counters.receivedBytes += length;
      handler(this.#ring, index * SLOT_BYTES + VNET_HDR_BYTES, length);
    }
    return count;
  }

  send(buffer: FrameBuffer, offset: number, length: number): void {
    if (this.#closed) countDrop(this.counters, 'closed');
    else this.#sender.add(buffer, offset, length);
  }

  flush(): void {
    if (!this.#closed) this.#sender.flush();
  }

  close(): Promise<void> {
    if (this.#closed) return Promise.resolve();
    this.#sender.flush();
    this.#closed = true;
    this.#sender.close();
    clearInterval(this.#checkTimer);
    this.#poller.close();
    this.#device.close();
    return Promise.resolve();
  }

  #check(): void {
    if (this.#closed) return;
    if (!this.#device.isVanished()) {
      this.#sender.refreshMtu();
      return;
    }
    const path = this.#device.interfaceName;
    void this.close();
    this.#onClosed(
      new ColoError('COLO_ERR_PORT_GONE', `Tap device ${path} has been deleted`, { path }),
    );
  }
}
