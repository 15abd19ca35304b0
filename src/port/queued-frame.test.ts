import { describe, expect, it } from 'vitest';
import {
  CLIENT_IP,
  CLIENT_IP6,
  CLIENT_MAC,
  frameBytes,
  GUEST_IP,
  GUEST_IP6,
  GUEST_MAC,
  type TestFrame,
  tcpFrame,
  udpFrame,
} from '../../test/support/frame-builder.ts';
import { NFQUEUE_CHECKSUM_NOT_READY, NFQUEUE_GSO, NfqueueMessage } from '../codec/nfqueue-msg.ts';
import type { FrameBuffer } from '../env/frame.ts';
import { VNET_HDR_BYTES } from '../limits.ts';
import { parseMac } from '../wire/address.ts';
import { dissect, FRAME_OK, FrameInfo } from '../wire/frame.ts';
import {
  readVnetHeader,
  VNET_GSO_TCPV4,
  VNET_GSO_TCPV6,
  VNET_NEEDS_CSUM,
} from '../wire/vnet-hdr.ts';
import { HardwareAddresses } from './hardware-addresses.ts';
import { markOf, QueuedFrames } from './queued-frame.ts';

const HEADROOM_BYTES = 40;
const MTU = 1_500;
const toHex = (bytes: Uint8Array): string => Buffer.from(bytes).toString('hex');

/** The packet of `frame` as the kernel gives it: without its Ethernet header, in the midst of attributes. */
class World {
  readonly frames = new QueuedFrames();
  readonly guests = new HardwareAddresses();
  readonly clients = new HardwareAddresses();
  learnMore = (): void => undefined;
  #mark = 0;

  make(
    frame: TestFrame,
    options: { info?: number; mac?: string; isIngress?: boolean } = {},
  ): { buffer: FrameBuffer; offset: number; length: number; mark: number; info: FrameInfo } {
    const { info = 0, mac, isIngress = false } = options;
    const packet = frameBytes(frame).slice(14);
    const bytes = new Uint8Array(HEADROOM_BYTES + packet.length).fill(0xdb, 0, HEADROOM_BYTES);
    bytes.set(packet, HEADROOM_BYTES);
    const message = new NfqueueMessage();
    message.macOffset = -1;
    if (mac !== undefined) {
      bytes.set(parseMac(mac)!, HEADROOM_BYTES - 14);
      message.macOffset = HEADROOM_BYTES - 14;
    }
    message.etherType = packet[0]! >> 4 === 4 ? 0x0800 : 0x86dd;
    message.info = info;
    message.payloadOffset = HEADROOM_BYTES;
    message.payloadBytes = packet.length;
    const buffer = { bytes, view: new DataView(bytes.buffer) };
    const mark = ++this.#mark;
    const [from, to] = isIngress ? [this.clients, this.guests] : [this.guests, this.clients];
    this.frames.make(buffer, message, mark, MTU, from, to, isIngress, () => this.learnMore());
    const offset = HEADROOM_BYTES - 14;
    const length = packet.length + 14;
    const found = new FrameInfo();
    expect(dissect(buffer, offset, length, found)).toBe(FRAME_OK);
    return { buffer, offset, length, mark, info: found };
  }
}

const fromClient = { src: CLIENT_IP, dst: GUEST_IP };

describe('QueuedFrames', () => {
  it('puts headers before the packet: MAC addresses of both ends, and the mark', () => {
    const world = new World();
    world.make(udpFrame(), { mac: GUEST_MAC });
    const { buffer, offset, length, mark } = world.make(
      tcpFrame({ ...fromClient, srcMac: CLIENT_MAC, dstMac: GUEST_MAC, payload: 'hello' }),
      { mac: CLIENT_MAC, isIngress: true },
    );
    const expected = tcpFrame({
      ...fromClient,
      srcMac: CLIENT_MAC,
      dstMac: GUEST_MAC,
      payload: 'hello',
    });
    expect(toHex(buffer.bytes.subarray(offset, offset + length))).toBe(toHex(frameBytes(expected)));
    expect(markOf(buffer.view, offset)).toBe(mark);
    expect(readVnetHeader(buffer.view, offset - VNET_HDR_BYTES)).toMatchObject({
      flags: 0,
      gsoType: 0,
      gsoBytes: 0,
    });
  });

  it('takes the source from what was seen before where the queue does not tell it', () => {
    const world = new World();
    world.make(udpFrame(fromClient), { mac: CLIENT_MAC, isIngress: true });
    const { buffer, offset } = world.make(udpFrame(fromClient), { isIngress: true });
    expect(toHex(buffer.bytes.subarray(offset + 6, offset + 12))).toBe('020000000009');
  });

  it('looks at what may tell more when an address is not known, and only then', () => {
    const world = new World();
    let looks = 0;
    world.learnMore = () => {
      looks++;
      const { buffer, offset } = udpFrame();
      world.guests.learn(buffer.view, 4, offset + 14 + 12, buffer.view, offset + 6);
    };
    const { buffer, offset } = world.make(udpFrame(fromClient), {
      mac: CLIENT_MAC,
      isIngress: true,
    });
    expect(toHex(buffer.bytes.subarray(offset, offset + 6))).toBe('020000000002');
    world.make(udpFrame(fromClient), { isIngress: true });
    world.make(udpFrame());
    expect(looks).toBe(1);
  });

  it.each([
    ['a client that was not seen', udpFrame(), false, '000000000000'],
    ['a guest that was not seen', udpFrame(fromClient), true, 'ffffffffffff'],
    ['everybody', udpFrame({ dst: '255.255.255.255' }), false, 'ffffffffffff'],
    ['an IPv4 group', udpFrame({ dst: '239.129.1.2' }), false, '01005e010102'],
    ['an IPv6 group', udpFrame({ src: GUEST_IP6, dst: 'ff02::1:ff00:9' }), false, '3333ff000009'],
  ])('writes the destination of a frame to %s', (_name, frame, isIngress, mac) => {
    const { buffer, offset } = new World().make(frame, { mac: GUEST_MAC, isIngress });
    expect(toHex(buffer.bytes.subarray(offset, offset + 6))).toBe(mac);
  });

  it.each([
    ['IPv4', {}, VNET_GSO_TCPV4, 14 + 20, MTU - 20 - 20],
    ['IPv6', { src: GUEST_IP6, dst: CLIENT_IP6 }, VNET_GSO_TCPV6, 14 + 40, MTU - 40 - 20],
  ])('describes a GSO frame with a partial checksum: %s', (_name, ends, gsoType, start, size) => {
    const info = NFQUEUE_GSO | NFQUEUE_CHECKSUM_NOT_READY;
    const frame = tcpFrame({ ...ends, payload: 'g'.repeat(4_000) });
    const { buffer, offset, info: found } = new World().make(frame, { info, mac: GUEST_MAC });
    expect(readVnetHeader(buffer.view, offset - VNET_HDR_BYTES)).toMatchObject({
      flags: VNET_NEEDS_CSUM,
      gsoType,
      gsoBytes: size,
      csumStart: start,
      csumOffset: 16,
    });
    expect(found.checksumPartial).toBe(true);
  });

  it('sees that a segment was changed, by whatever the engine changes', () => {
    const world = new World();
    const { frames } = world;
    const { buffer, offset, length, mark, info } = world.make(
      tcpFrame({ ack: 7, window: 900, payload: 'x', options: Uint8Array.of(1, 1, 1, 1) }),
      { mac: GUEST_MAC },
    );
    const isChanged = (): boolean => frames.isChanged(buffer.view, offset, length, mark);
    expect(isChanged()).toBe(false);
    for (const at of [8, 14, 16, 20, 23]) {
      buffer.bytes[info.l4Offset + at]! ^= 1;
      expect(isChanged(), `byte ${at} of the TCP header`).toBe(true);
      buffer.bytes[info.l4Offset + at]! ^= 1;
    }
    expect(frames.isChanged(buffer.view, offset, length - 1, mark)).toBe(true);
    expect(isChanged()).toBe(false);
    expect(frames.tcpOffset(mark)).toBe(34);
  });
});
