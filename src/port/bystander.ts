/**
 * What passes a tap besides IP: the bridge carries it by itself, and here come copies. Those of ARP are handed on, so that the
 * engine (and the peer) knows neighbours; others are counted, since nobody compares them. Of IP frames come samples, for their MAC
 * addresses, which the packet queues do not tell.
 *
 * @module
 */
import type { FrameBuffer, FrameHandler } from '../env/frame.ts';
import type { PortCounters } from '../env/port.ts';
import { VNET_HDR_BYTES } from '../limits.ts';
import { MSG_TRUNC } from '../os/constants.ts';
import { addressOf } from '../os/libc.ts';
import { MessageVector } from '../os/message-vector.ts';
import { AUXDATA_CONTROL_BYTES, type PacketSocket, strippedVlanTag } from '../os/packet-socket.ts';
import { ARP_SENDER_IP, ARP_SENDER_MAC, isArp } from '../wire/arp.ts';
import {
  ETHER_TYPE_ARP,
  ETHER_TYPE_IPV4,
  ETHER_TYPE_IPV6,
  ETHERNET_HEADER_BYTES,
  ETHERNET_SRC,
  ETHERNET_TYPE,
} from '../wire/ethernet.ts';
import { countDrop } from './counters.ts';
import type { HardwareAddresses } from './hardware-addresses.ts';
import { Poller } from './poller.ts';
import { setMark } from './queued-frame.ts';
import { MARK_COPY } from './verdict-book.ts';

/** The socket gives at most so many at once; the rest comes next time. */
const FRAMES_MAX = 64;
/** Where the addresses of an IP packet begin. */
const IPV4_SRC = 12;
const IPV6_SRC = 8;
/** Longer ones are no ARP; the headers of IP frames are all that is wanted of them. */
const SLOT_BYTES = 256;

export class Bystander {
  readonly #socket: PacketSocket;
  readonly #from: HardwareAddresses;
  readonly #to: HardwareAddresses;
  readonly #counters: PortCounters;
  readonly #vector = new MessageVector(FRAMES_MAX, AUXDATA_CONTROL_BYTES);
  readonly #ring: FrameBuffer;
  readonly #poller: Poller;
  #onReadable: () => void = () => {};
  #isReadable = false;
  /** Frames in the ring that are not handed over yet, and which of them shall be. */
  #read = 0;
  readonly #isArp = new Uint8Array(FRAMES_MAX);

  /**
   * @param socket receives what is no IP
   * @param from where addresses of this direction's senders are noted
   * @param to where those of its receivers are
   */
  constructor(
    socket: PacketSocket,
    from: HardwareAddresses,
    to: HardwareAddresses,
    counters: PortCounters,
  ) {
    this.#socket = socket;
    this.#from = from;
    this.#to = to;
    this.#counters = counters;
    const memory = new ArrayBuffer(FRAMES_MAX * SLOT_BYTES);
    this.#ring = { bytes: new Uint8Array(memory), view: new DataView(memory) };
    for (let index = 0; index < FRAMES_MAX; index++) {
      this.#vector.setSegment(index, addressOf(memory) + index * SLOT_BYTES, SLOT_BYTES);
    }
    this.#poller = new Poller(socket.fd, {
      onReadable: () => {
        this.#isReadable = true;
        this.#onReadable();
      },
      onWritable: () => {},
      onFailed: () => void socket.takeError(),
    });
  }

  start(onReadable: () => void): void {
    this.#onReadable = onReadable;
    this.#poller.watchReadable();
  }

  /** Hands copies to `handler`, lent until the next call; returns how many frames there were. Asks the kernel only when some wait. */
  receive(handler: FrameHandler): number {
    if (this.#isReadable && this.#read === 0) this.#take();
    const count = this.#read;
    this.#read = 0;
    for (let index = 0; index < count; index++) this.#handOver(index, handler);
    return count;
  }

  /** Takes in what waits, for its addresses. It is handed over by the next `receive`, which is asked for. */
  readAhead(): void {
    if (this.#read > 0) return;
    this.#take();
    if (this.#read > 0) setImmediate(() => this.#onReadable());
  }

  close(): void {
    this.#poller.close();
    this.#socket.close();
  }

  #take(): void {
    this.#read = Math.max(this.#socket.receive(this.#vector), 0);
    this.#isReadable = this.#read > 0;
    this.#poller.answered(this.#read === 0);
    for (let index = 0; index < this.#read; index++) this.#lookAt(index);
  }

  #lookAt(index: number): void {
    const { view } = this.#ring;
    const offset = index * SLOT_BYTES + VNET_HDR_BYTES;
    const length = this.#vector.bytes(index) - VNET_HDR_BYTES;
    const isTagged = strippedVlanTag(this.#vector, index) !== 0;
    this.#vector.rearm(index);
    const isCut = (this.#vector.flags(index) & MSG_TRUNC) !== 0;
    const etherType =
      isTagged || length < ETHERNET_HEADER_BYTES ? 0 : view.getUint16(offset + ETHERNET_TYPE);
    this.#isArp[index] = 0;
    if (etherType === ETHER_TYPE_IPV4) this.#learn(offset, length, 4, IPV4_SRC, 4);
    else if (etherType === ETHER_TYPE_IPV6) this.#learn(offset, length, 6, IPV6_SRC, 16);
    else if (etherType === ETHER_TYPE_ARP && !isCut) this.#onArp(index, offset, length);
    else countDrop(this.#counters, 'not-queued');
  }

  /** The source address begins `srcOffset` bytes after the Ethernet header, the destination follows. */
  #learn(
    offset: number,
    length: number,
    ipVersion: number,
    srcOffset: number,
    addressBytes: number,
  ): void {
    const { view } = this.#ring;
    const src = offset + ETHERNET_HEADER_BYTES + srcOffset;
    const dst = src + addressBytes;
    if (dst + addressBytes > offset + Math.min(length, SLOT_BYTES - VNET_HDR_BYTES)) return;
    this.#from.learn(view, ipVersion, src, view, offset + ETHERNET_SRC);
    this.#to.learn(view, ipVersion, dst, view, offset);
  }

  #onArp(index: number, offset: number, length: number): void {
    const { view } = this.#ring;
    this.#isArp[index] = 1;
    const arp = offset + ETHERNET_HEADER_BYTES;
    if (isArp(view, arp, offset + length)) {
      this.#from.learn(view, 4, arp + ARP_SENDER_IP, view, arp + ARP_SENDER_MAC);
    }
  }

  #handOver(index: number, handler: FrameHandler): void {
    if (this.#isArp[index] === 0) return;
    const offset = index * SLOT_BYTES + VNET_HDR_BYTES;
    const length = this.#vector.bytes(index) - VNET_HDR_BYTES;
    setMark(this.#ring.view, offset, MARK_COPY);
    this.#counters.receivedFrames++;
    this.#counters.receivedBytes += length;
    handler(this.#ring, offset, length);
  }
}
