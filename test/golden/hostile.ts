/**
 * Frames that nobody sends who means well, by name: lengths that lie, headers without end, offloads that make no sense, fragments
 * that overlap. Fuzzers begin with them (beside those of frames.ts), and each was once a reason for a check.
 *
 * @module
 */
import { FRAME_BYTES_MAX, VNET_HDR_BYTES } from '../../src/limits.ts';
import {
  arpFrame,
  cloneFrame,
  fragmentFrame,
  frameBytes,
  icmpEcho,
  neighbourFrame,
  rawFrame,
  rawIpFrame,
  type TestFrame,
  tcpFrame,
  udpFrame,
} from '../support/frame-builder.ts';

/** IPv6 extension headers: `count` destination options of 8 bytes before TCP, or one that points beyond the frame. */
function extensionChain(count: number, lastLength = 0): TestFrame {
  const chain = new Uint8Array(8 * count);
  for (let i = 0; i < count; i++) {
    chain[8 * i] = i === count - 1 ? 6 : 60;
    chain[8 * i + 1] = i === count - 1 ? lastLength : 0;
    chain.set([1, 4], 8 * i + 2); // PadN
  }
  return tcpFrame({ src: '2001:db8::2', dst: '2001:db8::9', ipOptions: chain, firstHeader: 60 });
}

/** A tag more than anybody uses: 802.1ad, 802.1Q and so on before an IPv4 packet. */
function tagged(count: number): TestFrame {
  const inner = frameBytes(tcpFrame({ payload: 'tagged' }));
  const bytes = new Uint8Array(inner.length + 4 * count);
  bytes.set(inner.subarray(0, 12));
  for (let i = 0; i < count; i++)
    bytes.set([i === 0 ? 0x88 : 0x81, i === 0 ? 0xa8 : 0, 0, 7], 12 + 4 * i);
  bytes.set(inner.subarray(12), 12 + 4 * count);
  return rawFrame(bytes);
}

/** With a virtio-net header of these fields. */
function withVnet(
  frame: TestFrame,
  flags: number,
  gso: number,
  size: number,
  start: number,
): TestFrame {
  const copy = cloneFrame(frame);
  const { view } = copy.buffer;
  view.setUint8(0, flags);
  view.setUint8(1, gso);
  view.setUint16(4, size, true);
  view.setUint16(6, start, true);
  view.setUint16(8, 16, true);
  return copy;
}

/** Fragments that overlap each other, and one that ends beyond 64 KiB. */
function overlappingFragments() {
  const frames = fragmentFrame(udpFrame({ payload: 'o'.repeat(400) }), 136, 9);
  const [, middle] = frames.map(cloneFrame);
  middle!.buffer.view.setUint16(VNET_HDR_BYTES + 14 + 6, 0x2001);
  const beyond = cloneFrame(frames[0]!);
  beyond.buffer.view.setUint16(VNET_HDR_BYTES + 14 + 6, 0x3fff);
  const six = fragmentFrame(
    udpFrame({ src: '2001:db8::2', payload: 'o'.repeat(400), dst: '2001:db8::9' }),
    136,
    9,
  );
  return { frames, middle: middle!, beyond, six };
}

const options = (...bytes: number[]): TestFrame =>
  tcpFrame({ options: Uint8Array.from(bytes), payload: 'x' });

const largest = new Uint8Array(FRAME_BYTES_MAX).fill(0x5a);
largest.set(frameBytes(tcpFrame({ payload: 'x' })));
const gso = tcpFrame({
  payload: 'g'.repeat(4_000),
  partialChecksum: true,
  gsoType: 1,
  gsoBytes: 1_400,
});


/** A frame with bytes of its Ethernet frame replaced; the checksums stay as they were. */
function patched(frame: TestFrame, ...patches: readonly (readonly [at: number, byte: number])[]): TestFrame {
  const copy = cloneFrame(frame);
  for (const [at, byte] of patches) copy.buffer.bytes[copy.offset + at] = byte;
  return copy;
}

const overlaps = overlappingFragments();
const tcp4 = tcpFrame({ payload: 'hello' });
const tcp6 = tcpFrame({ src: '2001:db8::2', dst: '2001:db8::9', payload: 'hello' });
const udp4 = udpFrame({ payload: 'hello' });

/** Every frame by name. */
export const HOSTILE_FRAMES = {
  empty: rawFrame(new Uint8Array(0)),
  ethernetCut: rawFrame(new Uint8Array(13)),
  largest: rawFrame(largest),
  arp: arpFrame(),
  tags0: tagged(0),
  tags1: tagged(1),
  tags2: tagged(2),
  tags3: tagged(3),
  tags9: tagged(9),
  ip4HeaderOf16Bytes: patched(tcp4, [14, 0x44]),
  ip4HeaderBeyondTheFrame: patched(tcp4, [14, 0x4f]),
  ip4Version5: patched(tcp4, [14, 0x55]),
  ip4LengthZero: patched(tcp4, [16, 0], [17, 0]),
  ip4LengthBelowTheHeader: patched(tcp4, [16, 0], [17, 19]),
  ip4LengthBeyondTheFrame: patched(tcp4, [16, 0xff]),
  ip4Land: tcpFrame({ src: '10.0.0.2', dst: '10.0.0.2', srcPort: 80, dstPort: 80, flags: 2 }),
  ip4Igmp: rawIpFrame(2, { payload: 'igmp' }),
  ip6LengthZero: patched(tcp6, [18, 0], [19, 0]),
  ip6LengthBeyondTheFrame: patched(tcp6, [18, 0xff]),
  ip6Extensions1: extensionChain(1),
  ip6Extensions8: extensionChain(8),
  ip6Extensions9: extensionChain(9),
  ip6Extensions40: extensionChain(40),
  ip6ExtensionBeyondTheFrame: extensionChain(2, 200),
  fragmentFirst: overlaps.frames[0]!,
  fragmentSecond: overlaps.frames[1]!,
  fragmentThird: overlaps.frames[2]!,
  fragmentOverlapping: overlaps.middle,
  fragmentBeyond64Kib: overlaps.beyond,
  fragment6First: overlaps.six[0]!,
  fragment6Second: overlaps.six[1]!,
  fragment6Last: overlaps.six.at(-1)!,
  tcpOffset4: patched(tcp4, [46, 0x40]),
  tcpOffsetBeyondTheFrame: patched(tcp4, [46, 0xf0]),
  tcpEveryFlag: tcpFrame({ flags: 0xff }),
  tcpNoFlags: tcpFrame({ flags: 0 }),
  tcpSynFinWithData: tcpFrame({ flags: 3, payload: 'data' }),
  tcpTimestampsBeyondTheHeader: options(8, 255, 0, 0),
  tcpSackOfLength0: options(5, 0, 1, 1),
  tcpSackOfLength3: options(5, 3, 1, 1),
  tcpScale255Mss0: options(3, 3, 255, 2, 4, 0, 0, 0),
  tcpUnknownOptionsToTheEnd: options(...new Array<number>(40).fill(253)),
  udpLengthBelowTheHeader: patched(udp4, [38, 0], [39, 7]),
  udpLengthBeyondTheFrame: patched(udp4, [38, 0xff]),
  gso: gso,
  gsoOfSize0: withVnet(gso, 1, 1, 0, 34),
  gsoOfSize1: withVnet(gso, 1, 1, 1, 34),
  gsoSumBeyondTheFrame: withVnet(gso, 1, 1, 1_400, 60_000),
  gsoOfNoKind: withVnet(gso, 1, 255, 65_535, 0),
  gsoOfAnotherProtocol: withVnet(gso, 1, 5, 1_400, 34),
  udpAsGso: withVnet(udpFrame({ payload: 'u' }), 255, 5, 1, 65_535),
  icmpEcho: icmpEcho({ payload: 'ping' }),
  icmpQuoteCut: rawIpFrame(1, { payload: Uint8Array.of(3, 4, 0, 0, 0, 0, 0, 0, 0x4f, 0) }),
  icmp6QuoteCut: rawIpFrame(58, {
    src: '2001:db8::2',
    dst: '2001:db8::9',
    payload: Uint8Array.of(1, 4, 0, 0),
  }),
  neighbourSolicitation: neighbourFrame(),
  neighbourAdvertisement: neighbourFrame({ isAdvertisement: true }),
} as const satisfies Record<string, TestFrame>;
