import { describe, expect, it } from 'vitest';
import {
  CLIENT_IP,
  CLIENT_IP6,
  dissectFrame,
  fragmentFrame,
  frameBytes,
  GUEST_IP,
  GUEST_IP6,
  icmpEcho,
  rawIpFrame,
  type TestFrame,
  tcpFrame,
  udpFrame,
} from '../../test/support/frame-builder.ts';
import { FrameInfo } from '../wire/frame.ts';
import { adjustQuoteForClient, adjustQuoteForGuest, dissectQuote } from './icmp-quote.ts';

const ROUTER_IP = '10.0.0.1';
const ROUTER_IP6 = '2001:db8::1';

/** "Fragmentation needed" or "packet too big" of a router, quoting the first `quoted` bytes of the frame's IP packet. */
function error(frame: TestFrame, quoted: number): TestFrame {
  const info = dissectFrame(frame);
  const l3 = info.l3Offset;
  const quote = frame.buffer.bytes.slice(l3, l3 + Math.min(quoted, info.l3Bytes));
  const isIpv4 = info.ipVersion === 4;
  const header = isIpv4 ? [3, 4, 0, 0, 0, 0, 5, 120] : [2, 0, 0, 0, 0, 0, 5, 120];
  return rawIpFrame(isIpv4 ? 1 : 58, {
    src: isIpv4 ? ROUTER_IP : ROUTER_IP6,
    dst: isIpv4 ? GUEST_IP : GUEST_IP6,
    payload: Uint8Array.from([...header, ...quote]),
  });
}

const families = [
  { family: 'IPv4', src: GUEST_IP, dst: CLIENT_IP, header: 20 },
  { family: 'IPv6', src: GUEST_IP6, dst: CLIENT_IP6, header: 40 },
];

describe.each(families)('quotes, $family', ({ src, dst, header }) => {
  const numbers = { src, dst, ack: 4_000, payload: 'payload' };

  it('translates the quoted sequence number with the inner and the outer checksum', () => {
    for (const quoted of [header + 8, header + 12, header + 18, header + 20, 200]) {
      const frame = error(tcpFrame({ ...numbers, seq: 0xffff_fff0 }), quoted);
      const info = dissectFrame(frame);
      const quote = new FrameInfo();
      expect(dissectQuote(info, quote)).toBe(true);
      expect([quote.seq, quote.srcPort, quote.dstPort]).toEqual([0xffff_fff0, 80, 40_312]);
      adjustQuoteForGuest(info, quote, -100);
      const expected = error(tcpFrame({ ...numbers, seq: 84 }), quoted);
      expect(frameBytes(frame)).toEqual(frameBytes(expected));
    }
  });

  it('translates the quoted acknowledgement, when it is quoted', () => {
    for (const quoted of [header + 8, header + 12, 200]) {
      const frame = error(tcpFrame({ ...numbers, seq: 1 }), quoted);
      const info = dissectFrame(frame);
      const quote = new FrameInfo();
      expect(dissectQuote(info, quote)).toBe(true);
      adjustQuoteForClient(info, quote, 1_000);
      const expected = error(tcpFrame({ ...numbers, seq: 1, ack: 5_000 }), quoted);
      expect(frameBytes(frame)).toEqual(frameBytes(expected));
    }
  });

  it('finds nothing in a quote too short, of another protocol, in an echo, in a plain segment', () => {
    const quote = new FrameInfo();
    const segment = tcpFrame({ ...numbers, seq: 1 });
    expect(dissectQuote(dissectFrame(error(segment, header + 7)), quote)).toBe(false);
    expect(dissectQuote(dissectFrame(error(segment, header - 1)), quote)).toBe(false);
    expect(dissectQuote(dissectFrame(error(segment, 0)), quote)).toBe(false);
    const datagram = udpFrame({ src, dst, payload: 'x'.repeat(40) });
    expect(dissectQuote(dissectFrame(error(datagram, 200)), quote)).toBe(false);
    expect(dissectQuote(dissectFrame(icmpEcho({ src, dst, payload: 'x'.repeat(60) })), quote)).toBe(
      false,
    );
    expect(dissectQuote(dissectFrame(segment), quote)).toBe(false);
  });

  it('finds a segment in the quote of a first fragment, none in that of a later one', () => {
    const fragments = fragmentFrame(tcpFrame({ ...numbers, seq: 9, payload: 'y'.repeat(100) }), 48);
    const quote = new FrameInfo();
    expect(dissectQuote(dissectFrame(error(fragments[0]!, 200)), quote)).toBe(true);
    expect(quote.seq).toBe(9);
    expect(dissectQuote(dissectFrame(error(fragments[1]!, 200)), quote)).toBe(false);
  });
});
