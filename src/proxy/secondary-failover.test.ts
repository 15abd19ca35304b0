import { describe, expect, it } from 'vitest';
import {
  arpFrame,
  CLIENT_IP6,
  CLIENT_MAC,
  frameBytes,
  GUEST_IP,
  GUEST_IP6,
  GUEST_MAC,
  icmpEcho,
  neighbourFrame,
  rawFrame,
  type TestFrame,
  tcpFrame,
  udpFrame,
} from '../../test/support/frame-builder.ts';
import { infoOf, payloadOf } from '../../test/support/recording-output.ts';
import {
  address,
  CLIENT_ISN,
  fromClient,
  fromSvm,
  PRIMARY_ISN,
  PRIMARY_TSVAL,
  primarySeq,
  SECONDARY_ISN,
  SECONDARY_TSVAL,
  SecondaryWorld,
  secondarySeq,
} from '../../test/support/secondary-world.ts';
import { isTransportChecksumRight } from '../wire/checksum.ts';
import { TCP_ACK, TCP_FIN, TCP_RST, TCP_SYN } from '../wire/tcp.ts';
import { parseTcpOptions, TcpOptions } from '../wire/tcp-options.ts';
import { TIMESTAMP_MARGIN } from './secondary-flow.ts';

const ETHER_ARP = 0x0806;

function isTcp(frame: TestFrame): boolean {
  return infoOf(frame).protocol === 6;
}

function hasData(frame: TestFrame): boolean {
  return isTcp(frame) && infoOf(frame).payloadBytes > 0;
}

function numbers(frame: TestFrame): { seq: number; ack: number } {
  const info = infoOf(frame);
  expect(isTransportChecksumRight(info)).toBe(true);
  return { seq: info.seq, ack: info.ack };
}

function timestamps(frame: TestFrame): { tsval: number; tsecr: number } {
  const info = infoOf(frame);
  const options = new TcpOptions();
  parseTcpOptions(info.view, info.l4Offset + 20, info.l4Offset + info.tcpHeaderBytes, options);
  expect(options.hasTimestamps).toBe(true);
  return { tsval: options.tsval, tsecr: options.tsecr };
}

function withTs(
  tsval: number,
  tsecr: number,
): { options: { timestamps: { tsval: number; tsecr: number } } } {
  return { options: { timestamps: { tsval, tsecr } } };
}

describe('failover, handshakes', () => {
  it('learns the ISN from a probe, one before the first byte, when nothing else came', () => {
    const w = new SecondaryWorld().protect();
    w.client(fromClient({ flags: TCP_SYN, seq: CLIENT_ISN }));
    w.svm(fromSvm(-1, '', { flags: TCP_SYN | TCP_ACK }));
    w.failover();
    const [probe] = w.net(fromClient({ seq: CLIENT_ISN, ack: primarySeq(0) }));
    expect(numbers(probe!)).toEqual({ seq: CLIENT_ISN, ack: secondarySeq(0) });
  });

  it('learns the ISN from a later segment when the copy and the first ACK are lost with the primary', () => {
    const w = new SecondaryWorld().protect();
    w.client(fromClient({ flags: TCP_SYN, seq: CLIENT_ISN }));
    w.svm(fromSvm(-1, '', { flags: TCP_SYN | TCP_ACK }));
    w.failover();
    // Three bytes are missing before it, so it does not complete the handshake.
    const late = { seq: CLIENT_ISN + 4, ack: primarySeq(0), payload: 'late' };
    const [segment] = w.net(fromClient(late));
    expect(numbers(segment!)).toEqual({ seq: CLIENT_ISN + 4, ack: secondarySeq(0) });
    const [answer] = w.serve(fromSvm(0, 'answer'));
    expect(numbers(answer!).seq).toBe(primarySeq(0));
  });

  it('gives the SVM no number of the PVM that it cannot translate', () => {
    const w = new SecondaryWorld().protect();
    w.client(fromClient({ flags: TCP_SYN, seq: CLIENT_ISN }));
    w.svm(fromSvm(-1, '', { flags: TCP_SYN | TCP_ACK }));
    // The copy of the PVM's SYN-ACK and the client's first ACK found no room in the peer link.
    expect(
      w.client(fromClient({ seq: CLIENT_ISN + 4, ack: primarySeq(0), payload: 'later' })),
    ).toEqual([]);
    expect(w.dropped('client-before-primary-syn')).toBe(1);
    w.begin();
    w.commit();
    const [segment] = w.client(
      fromClient({ seq: CLIENT_ISN + 4, ack: primarySeq(0), payload: 'again' }),
    );
    expect(numbers(segment!).ack).toBe(primarySeq(0));
  });

  it('keeps the clock of a connection in a full table, though its numbers are the same in both guests', () => {
    const w = new SecondaryWorld({ flowsMax: 2 }).protect();
    w.client(fromClient({ flags: TCP_SYN, seq: CLIENT_ISN, ...withTs(7, 0) }));
    w.svm(fromSvm(-1, '', { flags: TCP_SYN | TCP_ACK, ...withTs(90, 7) }));
    w.begin();
    w.commit();
    // The PVM's clock was ahead, as the client's echo shows.
    w.client(fromClient({ seq: CLIENT_ISN + 1, ack: primarySeq(0), ...withTs(8, 5_000) }));
    w.failover();
    const tsvalOf = (tsval: number): number => {
      const seq = primarySeq(0);
      const [segment] = w.serve(fromSvm(0, 'x', { seq, ...withTs(tsval, 8) }));
      return timestamps(segment!).tsval;
    };
    const first = tsvalOf(100);
    for (const port of [7, 8, 9]) w.serve(tcpFrame({ dstPort: port, seq: 1, payload: 'x' }));
    expect(tsvalOf(101)).toBe(first + 1);
  });

  it('keeps to one clock for a SYN-ACK that only the SVM has sent, so that PAWS refuses nothing', () => {
    const w = new SecondaryWorld().protect();
    w.client(fromClient({ flags: TCP_SYN, seq: CLIENT_ISN, ...withTs(7, 0) }));
    const synAck = { flags: TCP_SYN | TCP_ACK };
    w.svm(fromSvm(-1, '', { ...synAck, ...withTs(SECONDARY_TSVAL, 7) }));
    const [retained] = w.failover().filter(isTcp);
    const first = timestamps(retained!).tsval;
    const [again] = w.serve(fromSvm(-1, '', { ...synAck, ...withTs(SECONDARY_TSVAL + 1_000, 7) }));
    expect(numbers(again!).seq).toBe(SECONDARY_ISN);
    expect(timestamps(again!).tsval - first).toBe(1_000);
    const ack = { seq: CLIENT_ISN + 1, ack: secondarySeq(0), ...withTs(9, first) };
    expect(numbers(w.net(fromClient(ack))[0]!).ack).toBe(secondarySeq(0));
    const data = { ...withTs(SECONDARY_TSVAL + 1_010, 9) };
    const [answer] = w.serve(fromSvm(0, 'answer', data));
    expect(numbers(answer!).seq).toBe(secondarySeq(0));
    expect(timestamps(answer!).tsval - first).toBe(1_010);
  });

  it('does not learn from a damaged segment', () => {
    const w = new SecondaryWorld().protect();
    w.client(fromClient({ flags: TCP_SYN, seq: CLIENT_ISN }));
    w.svm(fromSvm(-1, '', { flags: TCP_SYN | TCP_ACK }));
    w.failover();
    const damaged = fromClient({ ack: primarySeq(0) });
    const { buffer, offset, length } = damaged;
    // One bit of the ACK number; the checksum stays.
    const ackAt = offset + length - 12;
    expect(buffer.view.getUint32(ackAt)).toBe(primarySeq(0));
    buffer.bytes[ackAt]! ^= 0x20;
    w.net(damaged);
    const [segment] = w.net(fromClient({ ack: primarySeq(0), payload: 'true' }));
    expect(numbers(segment!).ack).toBe(secondarySeq(0));
  });

  it('believes no such segment from outside of the window', () => {
    const w = new SecondaryWorld().protect();
    w.client(fromClient({ flags: TCP_SYN, seq: CLIENT_ISN }));
    w.svm(fromSvm(-1, '', { flags: TCP_SYN | TCP_ACK }));
    w.failover();
    w.net(fromClient({ seq: (CLIENT_ISN - 1) >>> 0, ack: 12_345, payload: 'forged' }));
    const [segment] = w.net(
      fromClient({ seq: CLIENT_ISN + 1, ack: primarySeq(0), payload: 'true' }),
    );
    expect(numbers(segment!)).toEqual({ seq: CLIENT_ISN + 1, ack: secondarySeq(0) });
  });
});

describe('failover, addresses', () => {
  it('announces every address of the guest at once, and repeats it', () => {
    const w = new SecondaryWorld().protect();
    w.svm(arpFrame({ targetIp: '10.0.0.77' }));
    w.svm(udpFrame({ src: '10.0.5.2', dst: '10.0.5.9', vlan: 5, payload: 'x' }));
    w.svm(neighbourFrame());
    const sent = w.failover().filter((f) => !isTcp(f) && infoOf(f).protocol !== 17);
    const arp = sent.filter((f) => infoOf(f).etherType === ETHER_ARP);
    // Request and reply form for each IPv4 address.
    expect(arp.map(frameBytes)).toEqual(
      [
        gratuitous(GUEST_IP, 1),
        gratuitous(GUEST_IP, 2),
        gratuitous('10.0.5.2', 1, 5),
        gratuitous('10.0.5.2', 2, 5),
      ].map((bytes) => bytes),
    );
    const discovery = sent.filter((f) => infoOf(f).ipVersion === 6);
    expect(discovery).toHaveLength(1);
    const info = infoOf(discovery[0]!);
    expect(isTransportChecksumRight(info)).toBe(true);
    // Advertisement with the override flag only, to all nodes, about the guest's address.
    expect([info.icmpType, info.bytes[info.l4Offset + 4]]).toEqual([136, 0x20]);
    expect([...frameBytes(discovery[0]!).slice(0, 6)]).toEqual([0x33, 0x33, 0, 0, 0, 1]);
    expect(info.bytes.slice(info.l4Offset + 8, info.l4Offset + 24)).toEqual(address(GUEST_IP6));

    const times: number[] = [];
    const startUs = w.nowUs;
    for (let i = 0; i < 200; i++) {
      w.pass(10_000);
      if (w.out.takeNet().length > 0) times.push(w.nowUs - startUs);
    }
    expect(times).toEqual([100_000, 300_000, 1_000_000]);
    expect(w.counter('announcements')).toBe(4 * 5);
  });

  /** Literal bytes of a gratuitous ARP of the guest. */
  function gratuitous(ip: string, operation: number, vlan = 0): Uint8Array {
    const mac = [2, 0, 0, 0, 0, 2];
    const bytes = [255, 255, 255, 255, 255, 255, ...mac];
    if (vlan !== 0) bytes.push(0x81, 0, 0, vlan);
    const own = ip.split('.').map(Number);
    bytes.push(8, 6, 0, 1, 8, 0, 6, 4, 0, operation, ...mac, ...own);
    bytes.push(...(operation === 1 ? [0, 0, 0, 0, 0, 0] : mac), ...own);
    while (bytes.length < 60) bytes.push(0);
    return Uint8Array.from(bytes);
  }

  it('does not announce the addresses for which the guest routes', () => {
    const w = new SecondaryWorld().protect();
    w.svm(arpFrame({ targetIp: '10.0.0.77' }));
    for (let i = 1; i < 20; i++) w.svm(udpFrame({ src: `192.168.0.${i}`, payload: 'x' }));
    const arp = w.failover().filter((f) => infoOf(f).etherType === ETHER_ARP);
    expect(arp).toHaveLength(2);
    expect([
      ...infoOf(arp[0]!)
        .bytes.slice(infoOf(arp[0]!).l3Offset + 14)
        .slice(0, 4),
    ]).toEqual([10, 0, 0, 2]);
  });

  it('takes an address from an ARP reply to the guest, not from one that a switch floods', () => {
    const w = new SecondaryWorld().protect();
    const reply = { isReply: true, senderMac: CLIENT_MAC, senderIp: '10.0.0.77' };
    w.svm(udpFrame({ payload: 'x' }));
    w.client(arpFrame({ ...reply, targetMac: GUEST_MAC, targetIp: '10.0.0.3' }));
    w.client(arpFrame({ ...reply, targetMac: '02:00:00:00:00:55', targetIp: '10.0.0.4' }));
    const arp = w.failover().filter((f) => infoOf(f).etherType === ETHER_ARP);
    const announced = arp.map((f) => [...frameBytes(f).slice(28, 32)].join('.'));
    expect(new Set(announced)).toEqual(new Set([GUEST_IP, '10.0.0.3']));
  });

  it('does not announce an address that a neighbour has', () => {
    const w = new SecondaryWorld().protect();
    w.client(arpFrame({ senderMac: CLIENT_MAC, senderIp: '10.0.0.50', targetIp: GUEST_IP }));
    w.svm(udpFrame({ src: '10.0.0.50', payload: 'spoofed' }));
    expect(w.failover().filter((f) => infoOf(f).etherType === ETHER_ARP)).toHaveLength(0);
  });
});

describe('failover, retained output', () => {
  it('sends at once, in order, what the primary had not confirmed', () => {
    const w = new SecondaryWorld().protect().open();
    w.svm(fromSvm(0, 'first'));
    w.svm(udpFrame({ payload: 'datagram' }));
    w.svm(fromSvm(5, 'second'));
    w.svm(fromSvm(11, '', { flags: TCP_FIN | TCP_ACK }));
    w.progress({ position: primarySeq(5) });
    const sent = w.failover().filter((f) => infoOf(f).ipVersion === 4);
    const payloads = sent.filter((f) => infoOf(f).payloadBytes > 0).map(payloadOf);
    expect(payloads).toEqual(['datagram', 'second']);
    const fin = sent.find((f) => (infoOf(f).tcpFlags & TCP_FIN) !== 0);
    expect(numbers(fin!).seq).toBe(primarySeq(11));
    expect(w.counter('retainedSent')).toBe(3);
    expect(w.engine.status(w.nowUs).held).toEqual({ frames: 0, bytes: 0 });
  });

  it('forgets what the client itself acknowledges, and what it has already', () => {
    const w = new SecondaryWorld().protect().open();
    w.svm(fromSvm(0, 'aaaa'));
    w.svm(fromSvm(4, 'bbbb'));
    w.client(fromClient({ ack: primarySeq(8) }));
    expect(w.engine.status(w.nowUs).held.frames).toBe(0);
    // A retransmission of acknowledged bytes.
    w.svm(fromSvm(4, 'bbbb'));
    expect(w.engine.status(w.nowUs).held.frames).toBe(0);
  });

  it('keeps retransmitted bytes once', () => {
    const w = new SecondaryWorld().protect().open();
    w.svm(fromSvm(0, 'aaaa'));
    w.svm(fromSvm(0, 'aaaa'));
    w.svm(fromSvm(0, 'aaaabb'));
    expect(w.failover().filter(hasData).map(payloadOf)).toEqual(['aaaa', 'aaaabb']);
  });

  it('confirms datagrams by their count in the epoch', () => {
    const w = new SecondaryWorld().protect();
    for (const payload of ['1', '2', '3']) w.svm(udpFrame({ payload }));
    w.progress({ protocol: 17, guestPort: 53, position: 2 });
    expect(w.engine.status(w.nowUs).held.frames).toBe(1);
    w.begin();
    w.commit();
    w.svm(udpFrame({ payload: '4' }));
    w.progress({ protocol: 17, guestPort: 53, position: 1 });
    expect(w.engine.status(w.nowUs).held.frames).toBe(0);
  });

  it('sends no datagram that is old', () => {
    const w = new SecondaryWorld().protect();
    w.svm(udpFrame({ payload: 'old' }));
    w.pass(3_000_000);
    w.svm(icmpEcho({ isReply: true, payload: 'new' }));
    const sent = w.failover().filter((f) => infoOf(f).ipVersion === 4);
    expect(sent.map(payloadOf)).toEqual(['new']);
    expect(w.dropped('retained-too-old')).toBe(1);
  });

  it('is bounded: the oldest goes, counted', () => {
    const w = new SecondaryWorld({ retainedBytesMax: 1_024 }).protect().open();
    for (let i = 0; i < 10; i++) w.svm(fromSvm(i, `${i}`));
    expect(w.dropped('retained-limit')).toBeGreaterThan(0);
    expect(w.engine.status(w.nowUs).held.bytes).toBeLessThanOrEqual(1_024);
    expect(w.failover().filter(hasData).map(payloadOf).at(-1)).toBe('9');
  });

  it('goes on retaining while the primary is silent', () => {
    const w = new SecondaryWorld().protect().open();
    w.engine.onPeerDown('silent', w.nowUs);
    expect(w.svm(fromSvm(0, 'late'))).toHaveLength(0);
    expect(
      w
        .failover()
        .filter(hasData)
        .map((f) => [payloadOf(f), numbers(f).seq]),
    ).toEqual([['late', primarySeq(0)]]);
  });

  it('sends a retained SYN-ACK with the ISN that the client may have seen', () => {
    const w = new SecondaryWorld().protect();
    w.client(fromClient({ seq: CLIENT_ISN, flags: TCP_SYN }));
    const synAck = { ack: CLIENT_ISN + 1, flags: TCP_SYN | TCP_ACK };
    w.svm(tcpFrame({ ...synAck, seq: SECONDARY_ISN }));
    w.primarySyn(tcpFrame({ ...synAck, seq: PRIMARY_ISN }));
    expect(w.failover().filter(isTcp).map(numbers)).toEqual([
      { seq: PRIMARY_ISN, ack: CLIENT_ISN + 1 },
    ]);
    expect(numbers(w.net(fromClient({ ack: primarySeq(0) }))[0]!).ack).toBe(secondarySeq(0));
  });

  it('keeps nothing after the failover', () => {
    const w = new SecondaryWorld().protect().open();
    w.failover();
    w.serve(fromSvm(0, 'x'));
    w.serve(udpFrame({ payload: 'x' }));
    expect(w.engine.status(w.nowUs).held.frames).toBe(0);
  });
});

describe('failover, connections (G5)', () => {
  it('goes on translating connections that were open', () => {
    const w = new SecondaryWorld().protect().open();
    w.failover();
    const [data] = w.serve(fromSvm(300, 'response'));
    expect(numbers(data!)).toEqual({ seq: primarySeq(300), ack: CLIENT_ISN + 1 });
    const [ack] = w.net(fromClient({ ack: primarySeq(308), payload: 'next' }));
    expect(numbers(ack!)).toEqual({ seq: CLIENT_ISN + 1, ack: secondarySeq(308) });
    expect(w.engine.status(w.nowUs).released).toBeGreaterThan(0);
  });

  it('does not touch connections that begin afterwards, on the same ports too', () => {
    const w = new SecondaryWorld().protect().open(true);
    w.failover();
    const syn = fromClient({ seq: 1, flags: TCP_SYN, ...withTs(5_000, 0) });
    expect(frameBytes(w.net(syn)[0]!)).toEqual(frameBytes(syn));
    const synAck = tcpFrame({ seq: 600, ack: 2, flags: TCP_SYN | TCP_ACK, ...withTs(70, 5_000) });
    const sentBefore = frameBytes(synAck);
    expect(w.serve(synAck).map(frameBytes)).toEqual([sentBefore]);
    const ack = fromClient({ seq: 2, ack: 601, ...withTs(5_001, 70) });
    const ackBefore = frameBytes(ack);
    expect(w.net(ack).map(frameBytes)).toEqual([ackBefore]);
    const data = tcpFrame({ seq: 601, ack: 2, payload: 'x', ...withTs(71, 5_001) });
    const dataBefore = frameBytes(data);
    expect(w.serve(data).map(frameBytes)).toEqual([dataBefore]);
  });

  it('answers a SYN that only the PVM had answered with the ISN of the PVM', () => {
    const w = new SecondaryWorld().protect();
    w.client(fromClient({ seq: CLIENT_ISN, flags: TCP_SYN }));
    const synAck = { ack: CLIENT_ISN + 1, flags: TCP_SYN | TCP_ACK };
    w.primarySyn(tcpFrame({ ...synAck, seq: PRIMARY_ISN }));
    w.failover();
    expect(numbers(w.serve(tcpFrame({ ...synAck, seq: SECONDARY_ISN }))[0]!).seq).toBe(PRIMARY_ISN);
    expect(numbers(w.net(fromClient({ ack: primarySeq(0) }))[0]!).ack).toBe(secondarySeq(0));
  });

  it('gives and takes everything else as it is', () => {
    const w = new SecondaryWorld().protect();
    w.failover();
    const frames = [arpFrame(), neighbourFrame(), udpFrame(), rawFrame(Uint8Array.of(1, 2, 3))];
    for (const frame of frames) {
      expect(w.serve(frame).map(frameBytes)).toEqual([frameBytes(frame)]);
      expect(w.net(frame).map(frameBytes)).toEqual([frameBytes(frame)]);
    }
  });

  it('probes each open connection with one ACK just before the window of the client', () => {
    const w = new SecondaryWorld().protect().open();
    w.svm(fromSvm(0, 'data', { ack: CLIENT_ISN + 50, window: 1_234 }));
    w.client(fromClient({ ack: primarySeq(4) }));
    const probes = w.failover().filter(isTcp);
    const expected = tcpFrame({ seq: primarySeq(3), ack: CLIENT_ISN + 50, window: 1_234 });
    expect(probes.map(frameBytes)).toEqual([frameBytes(expected)]);
    w.pass(5_000_000);
    expect(w.out.takeNet().filter(isTcp)).toHaveLength(0);
  });

  it('probes over IPv6 and in a VLAN, with timestamps that the client must accept', () => {
    const w = new SecondaryWorld().protect();
    const guest = { src: GUEST_IP6, dst: CLIENT_IP6, vlan: 7 };
    const client = { src: CLIENT_IP6, dst: GUEST_IP6, vlan: 7 };
    w.svm(tcpFrame({ ...guest, seq: 100, ack: 900, payload: 'x', ...withTs(50, 3) }));
    w.client(fromClient({ ...client, ack: 101, ...withTs(4, 60) }));
    const [probe] = w.failover().filter((f) => isTcp(f) && infoOf(f).payloadBytes === 0);
    const tsval = 60 + TIMESTAMP_MARGIN;
    const expected = tcpFrame({ ...guest, seq: 100, ack: 900, ...withTs(tsval, 4) });
    expect(frameBytes(probe!)).toEqual(frameBytes(expected));
  });

  it('probes with a scaled window when the SVM has sent nothing but its SYN-ACK', () => {
    const w = new SecondaryWorld().protect();
    const synAck = {
      ack: CLIENT_ISN + 1,
      flags: TCP_SYN | TCP_ACK,
      window: 64_000,
      options: { windowScale: 7 },
    };
    w.primarySyn(tcpFrame({ ...synAck, seq: PRIMARY_ISN }));
    w.svm(tcpFrame({ ...synAck, seq: SECONDARY_ISN }));
    w.client(fromClient({ ack: primarySeq(0) }));
    const probes = w.failover().filter(isTcp);
    expect(probes.map((f) => infoOf(f).window)).toEqual([500]);
  });

  it('does not probe what is closed, half-open, or of which the SVM has sent nothing', () => {
    const w = new SecondaryWorld().protect().open();
    w.client(fromClient({ flags: TCP_RST }));
    w.client(fromClient({ srcPort: 5, seq: 1, flags: TCP_SYN }));
    w.primarySyn(tcpFrame({ dstPort: 6, seq: 1, ack: 2, flags: TCP_SYN | TCP_ACK }));
    expect(w.failover().filter(isTcp)).toHaveLength(0);
  });

  it('probes a connection that only the guest has reset: its RST may have died with the primary', () => {
    const w = new SecondaryWorld().protect().open();
    w.svm(fromSvm(0, '', { flags: TCP_RST | TCP_ACK }));
    expect(w.failover().filter(isTcp)).toHaveLength(1);
  });

  it('probes connections older than the last commit, in the clock of the PVM', () => {
    const w = new SecondaryWorld().protect().open(true);
    w.svm(fromSvm(0, 'x', withTs(SECONDARY_TSVAL + 10, 101)));
    w.client(fromClient({ ack: primarySeq(1), ...withTs(103, PRIMARY_TSVAL + 5) }));
    w.begin();
    w.commit();
    const [probe] = w.failover().filter(isTcp);
    // The state that was committed may have received less than the SVM's old one: nothing may be acknowledged.
    const ack = (CLIENT_ISN + 1 - 2 ** 30) >>> 0;
    expect(numbers(probe!)).toEqual({ seq: primarySeq(0), ack });
    const tsval = PRIMARY_TSVAL + 10 + TIMESTAMP_MARGIN;
    expect(timestamps(probe!)).toEqual({ tsval, tsecr: 103 });
  });

  it('acknowledges by a probe what the committed state has acknowledged, not more', () => {
    const w = new SecondaryWorld().protect().open();
    w.svm(fromSvm(0, 'x', { ack: CLIENT_ISN + 900 }));
    w.begin();
    w.commit();
    w.svm(tcpFrame({ seq: primarySeq(1), ack: CLIENT_ISN + 400 }));
    const [probe] = w.failover().filter(isTcp);
    expect(numbers(probe!).ack).toBe(CLIENT_ISN + 400);
  });

  it('probes many connections in steps', () => {
    const w = new SecondaryWorld().protect();
    for (let port = 1; port <= 3_000; port++) w.svm(tcpFrame({ dstPort: port, seq: 5 }));
    const first = w.failover().filter(isTcp).length;
    expect(first).toBeLessThanOrEqual(1_024);
    w.pass(10_000);
    const rest = w.out.takeNet().filter(isTcp).length;
    expect(first + rest).toBe(3_000);
  });
});

describe('failover, timestamps', () => {
  const DELTA = PRIMARY_TSVAL - SECONDARY_TSVAL;

  it('translates TSval and TSecr by the difference of the SYN-ACKs before the failover', () => {
    const w = new SecondaryWorld().protect().open(true);
    const [data] = w.svm(fromSvm(0, 'x', withTs(SECONDARY_TSVAL + 10, 101)));
    expect(timestamps(data!)).toEqual({ tsval: PRIMARY_TSVAL + 10, tsecr: 101 });
    const [ack] = w.client(fromClient({ ack: primarySeq(1), ...withTs(102, PRIMARY_TSVAL + 10) }));
    expect(timestamps(ack!)).toEqual({ tsval: 102, tsecr: SECONDARY_TSVAL + 10 });
  });

  it('never echoes to the SVM a time that it has not reached', () => {
    const w = new SecondaryWorld().protect().open(true);
    w.svm(fromSvm(0, 'x', withTs(SECONDARY_TSVAL + 10, 101)));
    // The PVM is 500 ticks ahead.
    const [ack] = w.client(fromClient({ ack: primarySeq(1), ...withTs(102, PRIMARY_TSVAL + 510) }));
    expect(timestamps(ack!).tsecr).toBe(SECONDARY_TSVAL + 10);
  });

  it('lets the first segment after the failover lie beyond every TSval that the client has seen', () => {
    const w = new SecondaryWorld().protect().open(true);
    // The client has echoed a TSval of the PVM far beyond what the clock of the SVM gives.
    w.client(fromClient({ ack: primarySeq(0), ...withTs(102, PRIMARY_TSVAL + 90_000) }));
    // The probe is the first, with the time of the SVM's last segment, its SYN-ACK.
    const [probe] = w.failover().filter(isTcp).slice(-1);
    expect(timestamps(probe!).tsval).toBe(PRIMARY_TSVAL + 90_000 + TIMESTAMP_MARGIN);
    const [data] = w.serve(fromSvm(0, 'x', withTs(SECONDARY_TSVAL + 10, 102)));
    const { tsval } = timestamps(data!);
    // Later ones keep the distance, so time goes on evenly.
    expect(tsval).toBe(timestamps(probe!).tsval + 10);
    const [next] = w.serve(fromSvm(1, 'y', withTs(SECONDARY_TSVAL + 30, 102)));
    expect(timestamps(next!).tsval).toBe(tsval + 20);
  });

  it("learns the PVM's clock with its ISN from what the client says after the failover", () => {
    const w = new SecondaryWorld().protect();
    w.client(fromClient({ flags: TCP_SYN, seq: CLIENT_ISN, ...withTs(100, 0) }));
    const synAck = (tsval: number): TestFrame =>
      fromSvm(-1, '', { flags: TCP_SYN | TCP_ACK, ...withTs(tsval, 100) });
    w.svm(synAck(SECONDARY_TSVAL));
    w.failover();
    // The SVM's clock is the client's second: it refuses the repeated SYN-ACK, and answers with what it had of the PVM.
    w.serve(synAck(SECONDARY_TSVAL + 1_000));
    const [ack] = w.net(fromClient({ ack: primarySeq(0), ...withTs(1_101, PRIMARY_TSVAL) }));
    expect(timestamps(ack!).tsecr).toBe(SECONDARY_TSVAL);
    const [data] = w.serve(fromSvm(0, 'x', withTs(SECONDARY_TSVAL + 1_010, 1_101)));
    expect(timestamps(data!).tsval).toBe(PRIMARY_TSVAL + 1_010 + TIMESTAMP_MARGIN);
  });

  it('translates echoes back by what was in force when their original was sent', () => {
    const w = new SecondaryWorld().protect().open(true);
    w.svm(fromSvm(0, 'x', withTs(SECONDARY_TSVAL + 10, 101)));
    w.failover();
    w.serve(fromSvm(1, 'y', withTs(SECONDARY_TSVAL + 400, 101)));
    // An echo of the PVM from before, then one of the SVM from after.
    const [before] = w.net(fromClient({ ack: primarySeq(1), ...withTs(103, PRIMARY_TSVAL + 300) }));
    expect(timestamps(before!).tsecr).toBe(SECONDARY_TSVAL + 300);
    const echo = SECONDARY_TSVAL + 400 + DELTA + TIMESTAMP_MARGIN;
    const [after] = w.net(fromClient({ ack: primarySeq(2), ...withTs(104, echo) }));
    expect(timestamps(after!).tsecr).toBe(SECONDARY_TSVAL + 400);
  });

  it('sends retained segments with timestamps between those of the PVM and the later ones', () => {
    const w = new SecondaryWorld().protect().open(true);
    w.svm(fromSvm(0, 'kept', withTs(SECONDARY_TSVAL + 10, 101)));
    w.client(fromClient({ ack: primarySeq(0), ...withTs(102, PRIMARY_TSVAL + 70_000) }));
    const [kept] = w.failover().filter(hasData);
    expect(timestamps(kept!).tsval).toBe(PRIMARY_TSVAL + 70_000 + TIMESTAMP_MARGIN);
    const [later] = w.serve(fromSvm(4, 'x', withTs(SECONDARY_TSVAL + 20, 102)));
    expect(timestamps(later!).tsval).toBeGreaterThanOrEqual(timestamps(kept!).tsval);
  });

  it('does not believe an echo that no clock of a guest can have reached: it is damaged, or forged', () => {
    const w = new SecondaryWorld().protect().open(true);
    w.svm(fromSvm(0, 'kept', withTs(SECONDARY_TSVAL + 10, 101)));
    // PAWS would refuse everything beyond it.
    const echo = (PRIMARY_TSVAL ^ 0x8000_0000) >>> 0;
    w.client(fromClient({ ack: primarySeq(0), ...withTs(102, echo) }));
    const [kept] = w.failover().filter(hasData);
    expect(timestamps(kept!).tsval).toBe(PRIMARY_TSVAL + 10 + TIMESTAMP_MARGIN);
    const [later] = w.serve(fromSvm(4, 'x', withTs(SECONDARY_TSVAL + 20, 102)));
    expect(timestamps(later!).tsval).toBe(PRIMARY_TSVAL + 20 + TIMESTAMP_MARGIN);
  });

  it('jumps ahead also in connections older than the last commit', () => {
    const w = new SecondaryWorld().protect();
    w.failover();
    const [data] = w.serve(tcpFrame({ seq: 5, payload: 'x', ...withTs(1_000, 7) }));
    expect(timestamps(data!).tsval).toBe(1_000 + TIMESTAMP_MARGIN);
    const [echo] = w.net(fromClient({ ack: 6, ...withTs(8, 1_000 + TIMESTAMP_MARGIN) }));
    expect(timestamps(echo!).tsecr).toBe(1_000);
  });
});
