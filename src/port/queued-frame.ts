/**
 * Frames out of packets from a kernel queue, and back. The queue gives a packet from its layer 3 header on; the engines want an
 * Ethernet header and a virtio-net header before it. And when the frame comes back: has it been changed on the way?
 *
 * Destination MAC addresses are not told, and sources not everywhere; they come from what else was seen. A packet that goes on its way keeps
 * its own header in the kernel; the one made here matters for copies: to the peer, and in what the engine builds from it.
 *
 * @module
 */
import {
  NFQUEUE_CHECKSUM_NOT_READY,
  NFQUEUE_GSO,
  type NfqueueMessage,
} from '../codec/nfqueue-msg.ts';
import type { FrameBuffer } from '../env/frame.ts';
import { VNET_HDR_BYTES } from '../limits.ts';
import { ETHERNET_HEADER_BYTES, ETHERNET_SRC, ETHERNET_TYPE } from '../wire/ethernet.ts';
import { dissect, FRAME_OK, FrameInfo } from '../wire/frame.ts';
import { IP_PROTOCOL_TCP, IP_PROTOCOL_UDP } from '../wire/ipv4.ts';
import { TCP_CHECKSUM } from '../wire/tcp.ts';
import {
  clearVnetHeader,
  VNET_CSUM_OFFSET,
  VNET_CSUM_START,
  VNET_FLAGS,
  VNET_GSO_SIZE,
  VNET_GSO_TCPV4,
  VNET_GSO_TCPV6,
  VNET_GSO_TYPE,
  VNET_HDR_LEN,
  VNET_NEEDS_CSUM,
} from '../wire/vnet-hdr.ts';
import type { HardwareAddresses } from './hardware-addresses.ts';

const UDP_CHECKSUM = 6;
/** Words of the longest TCP header. */
const TCP_HEADER_WORDS = 15;
const MARKS = 65_536;

/** The mark of a frame; see `FrameKeeper`. */
export function markOf(view: DataView, offset: number): number {
  return view.getUint16(offset - VNET_HDR_BYTES + VNET_HDR_LEN, true);
}

/** Writes the mark of a frame. */
export function setMark(view: DataView, offset: number, mark: number): void {
  view.setUint16(offset - VNET_HDR_BYTES + VNET_HDR_LEN, mark, true);
}

/** Has a frame a destination? Made here it has none where nothing was seen of it. */
export function hasDestination(view: DataView, offset: number): boolean {
  return view.getUint32(offset) !== 0 || view.getUint16(offset + 4) !== 0;
}

export class QueuedFrames {
  /** TCP headers as they came, by mark: what the engine changes of a segment is in there. */
  readonly #headers = new Uint32Array(MARKS * TCP_HEADER_WORDS);
  readonly #headerWords = new Uint8Array(MARKS);
  /** From the frame's first byte. */
  readonly #l4Offsets = new Uint16Array(MARKS);
  readonly #lengths = new Uint32Array(MARKS);
  readonly #info = new FrameInfo();

  /**
   * Makes the frame whose packet `message` has found in `buffer`; the headers go before it, over what was read before.
   *
   * @param from where sources of this direction are noted
   * @param to where destinations are looked up
   * @param isForAll a frame whose destination is not known goes to everybody; otherwise it gets none
   * @param learnMore called when an address is not known: what was not looked at yet may tell it
   * @param mtu of the interface: what a GSO frame is cut to, since its own segment size is not told
   */
  make(
    buffer: FrameBuffer,
    message: NfqueueMessage,
    mark: number,
    mtu: number,
    from: HardwareAddresses,
    to: HardwareAddresses,
    isForAll: boolean,
    learnMore: () => void,
  ): void {
    const { view, bytes } = buffer;
    const offset = message.payloadOffset - ETHERNET_HEADER_BYTES;
    const length = message.payloadBytes + ETHERNET_HEADER_BYTES;
    // Where the address lies now the headers may come.
    const { macOffset } = message;
    const macHigh = macOffset < 0 ? 0 : view.getUint16(macOffset);
    const macLow = macOffset < 0 ? 0 : view.getUint32(macOffset + 2);
    clearVnetHeader(bytes, offset - VNET_HDR_BYTES);
    view.setUint32(offset, 0);
    view.setUint16(offset + 4, 0);
    view.setUint16(offset + ETHERNET_SRC, macHigh);
    view.setUint32(offset + ETHERNET_SRC + 2, macLow);
    view.setUint16(offset + ETHERNET_TYPE, message.etherType);
    setMark(view, offset, mark);
    this.#headerWords[mark] = 0;
    this.#lengths[mark] = length;
    const info = this.#info;
    const result = dissect(buffer, offset, length, info);
    if (info.ipVersion !== 0) {
      const src = info.srcAddressOffset;
      // Not told where the packet is about to leave the bridge (POSTROUTING).
      if (macOffset >= 0) from.learn(view, info.ipVersion, src, view, offset + ETHERNET_SRC);
      if (!writeAddresses(info, offset, from, to)) {
        learnMore();
        const isKnown = writeAddresses(info, offset, from, to);
        if (!isKnown && isForAll && !hasDestination(view, offset)) writeBroadcast(view, offset);
      }
    }
    if (result !== FRAME_OK || info.isFragment) return;
    if (info.protocol === IP_PROTOCOL_TCP) this.#saveHeader(mark, offset, info);
    describeOffload(message.info, offset, mtu, info);
  }

  #saveHeader(mark: number, offset: number, info: FrameInfo): void {
    const { view, l4Offset } = info;
    const words = info.tcpHeaderBytes >> 2;
    const first = mark * TCP_HEADER_WORDS;
    for (let i = 0; i < words; i++) this.#headers[first + i] = view.getUint32(l4Offset + 4 * i);
    this.#headerWords[mark] = words;
    this.#l4Offsets[mark] = l4Offset - offset;
  }

  /** Does the frame differ from the one that was made with this mark? */
  isChanged(view: DataView, offset: number, length: number, mark: number): boolean {
    if (this.#lengths[mark] !== length) return true;
    const words = this.#headerWords[mark]!;
    const first = mark * TCP_HEADER_WORDS;
    const l4 = offset + this.#l4Offsets[mark]!;
    for (let i = 0; i < words; i++) {
      if (this.#headers[first + i] !== view.getUint32(l4 + 4 * i)) return true;
    }
    return false;
  }

  /**
   * Where the TCP header of a changed frame begins, from the frame's first byte; 0 when it has none. The kernel takes a
   * replaced packet's checksum for a whole one, so whoever replaces it has to complete it.
   */
  tcpOffset(mark: number): number {
    return this.#headerWords[mark] === 0 ? 0 : this.#l4Offsets[mark]!;
  }
}

/** False when one of the two is not known, and zeros. */
function writeAddresses(
  info: FrameInfo,
  offset: number,
  from: HardwareAddresses,
  to: HardwareAddresses,
): boolean {
  const { view, ipVersion, srcAddressOffset: src } = info;
  const hasSource = from.write(view, ipVersion, src, offset + ETHERNET_SRC);
  return writeDestination(info, offset, to) && hasSource;
}

function writeBroadcast(view: DataView, offset: number): void {
  view.setUint16(offset, 0xffff);
  view.setUint32(offset + 2, 0xffff_ffff);
}

/** Multicast addresses follow from the IP address (RFC 1112 §6.4, RFC 2464 §7). False: not known, written as zeros. */
function writeDestination(info: FrameInfo, offset: number, to: HardwareAddresses): boolean {
  const { view, dstAddressOffset: dst } = info;
  if (info.ipVersion === 4) {
    const address = view.getUint32(dst);
    if (address >>> 28 === 0xe) {
      view.setUint16(offset, 0x0100);
      view.setUint32(offset + 2, 0x5e00_0000 | (address & 0x7f_ffff));
      return true;
    }
    if (address === 0xffff_ffff) {
      writeBroadcast(view, offset);
      return true;
    }
  } else if (view.getUint8(dst) === 0xff) {
    view.setUint16(offset, 0x3333);
    view.setUint32(offset + 2, view.getUint32(dst + 12));
    return true;
  }
  return to.write(view, info.ipVersion, dst, offset);
}

/**
 * Writes the virtio-net header of a frame that `info` describes. What is to be cut and is not TCP stays a long frame: whole
 * datagrams of it can be compared and go on their way, but no copy of it can be sent.
 */
function describeOffload(flags: number, offset: number, mtu: number, info: FrameInfo): void {
  const { view, protocol } = info;
  const vnet = offset - VNET_HDR_BYTES;
  const isGso = (flags & NFQUEUE_GSO) !== 0;
  const isTransport = protocol === IP_PROTOCOL_TCP || protocol === IP_PROTOCOL_UDP;
  if ((flags & NFQUEUE_CHECKSUM_NOT_READY) !== 0 && isTransport) {
    view.setUint8(vnet + VNET_FLAGS, VNET_NEEDS_CSUM);
    view.setUint16(vnet + VNET_CSUM_START, info.l4Offset - offset, true);
    const field = protocol === IP_PROTOCOL_TCP ? TCP_CHECKSUM : UDP_CHECKSUM;
    view.setUint16(vnet + VNET_CSUM_OFFSET, field, true);
  }
  if (isGso && protocol === IP_PROTOCOL_TCP) {
    const headerBytes = info.payloadOffset - info.l3Offset;
    view.setUint8(vnet + VNET_GSO_TYPE, info.ipVersion === 4 ? VNET_GSO_TCPV4 : VNET_GSO_TCPV6);
    view.setUint16(vnet + VNET_GSO_SIZE, Math.max(mtu - headerBytes, 8), true);
  }
}
