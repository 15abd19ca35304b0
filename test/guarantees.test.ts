/**
 * One group of tests for each of the guarantees G1 to G9, with both shipping engines back to back (G8 also in
 * `src/proxy/hostile.prop.test.ts` and `test/e2e/hostile.test.ts`, G3, G5, G6, G9 on real TCP stacks in `test/e2e/lab.test.ts`).
 *
 * Each test names the lines that it guards. That it does is not only said: `test/support/guarantee-mutants.ts` lists
 * for each of these lines how it could be broken, and `npm run guarantees:mutants` breaks them one by one and
 * demands that a test of that guarantee fails.
 *
 * @module
 */
import { describe, expect, it } from 'vitest';
import { REASSEMBLIES_MAX } from '../src/limits.ts';
import { PRIMARY_DEFAULTS } from '../src/proxy/config.ts';
import { readPlainSegment } from '../src/proxy/primary-lockstep.ts';
import { isTransportChecksumRight } from '../src/wire/checksum.ts';
import { FrameInfo } from '../src/wire/frame.ts';
import { TCP_ACK, TCP_FIN, TCP_PSH, TCP_RST } from '../src/wire/tcp.ts';
import { EnginePair, type GuestName } from './support/engine-pair.ts';
import {
  arpFrame,
  fragmentFrame,
  frameBytes,
  icmpEcho,
  neighbourFrame,
  rawFrame,
  rawIpFrame,
  type TestFrame,
  tcpFrame,
  udpFrame,
} from './support/frame-builder.ts';
import {
  addressed,
  clientSeq,
  FAMILIES,
  type Family,
  GUEST_ISN,
  optionsOf,
  PairConnection,
  timestampsOf,
} from './support/pair-connection.ts';
import { infoOf, payloadOf } from './support/recording-output.ts';

const TIMEOUT_US = PRIMARY_DEFAULTS.compareTimeoutUs;
const ETHER_ARP = 0x0806;

function protectedPair(): EnginePair {
  return new EnginePair().protect();
}

function opened(pair: EnginePair, family: Family = 4): PairConnection {
  const connection = new PairConnection(pair, { family });
  expect(connection.open()).toHaveLength(1);
  return connection;
}

const payloads = (frames: readonly TestFrame[]): string[] => frames.map(payloadOf);
const isTcp = (frame: TestFrame): boolean => infoOf(frame).protocol === 6;
const udp = (family: Family, payload: string): TestFrame =>
  udpFrame({ ...addressed(family, true), payload });

/** How often the primary dropped something for this reason. */
const dropped = (pair: EnginePair, name: string): number =>
  pair.primary.status(pair.nowUs).dropped[name] ?? 0;

/** What the heads of two streams let out, as payloads. The SVM's numbers are the PVM's here. */
function lentOutput(pair: EnginePair, p: TestFrame | undefined, s: TestFrame): string[] {
  const [primary, secondary] = [new FrameInfo(), new FrameInfo()];
  const out: string[] = [];
  expect(readPlainSegment(s.buffer, s.offset, s.length, secondary)).toBe(true);
  const { buffer, offset, length } = p ?? s;
  if (p !== undefined) expect(readPlainSegment(buffer, offset, length, primary)).toBe(true);
  const record = {
    stream: { ...buffer, lent: 0 },
    mayLend: true,
    recordOffset: offset,
    recordBytes: length,
    headerOffset: -1,
  };
  for (let turn = 0; turn < 2; turn++) {
    const head = p === undefined || turn > 0 ? undefined : primary;
    pair.primary.onHeads(
      head,
      secondary,
      record,
      ({ bytes, view }, at, size) =>
        out.push(payloadOf({ buffer: { bytes, view }, offset: at, length: size })),
      pair.nowUs,
    );
  }
  return out;
}

describe.each(FAMILIES)('G1 output commit, IPv%d', (family) => {
  // Guards primary-lent.ts matchLent: `isSameRange`, and releaseLent: `seqBeforeOrEqual(end, compared)`.
  it('a byte that waits in its stream is compared there', () => {
    const pair = protectedPair();
    const c = opened(pair, family);
    const of = (at: number, payload: string) =>
      c.fromGuest('svm', at, payload, { seq: c.seen(at) });
    const first = c.fromGuest('pvm', 0, 'hello world');
    expect(lentOutput(pair, first, of(0, 'hello '))).toEqual([]);
    const next = c.fromGuest('pvm', 11, ', again');
    expect(lentOutput(pair, next, of(6, 'world, a'))).toEqual(['hello world']);
    expect(lentOutput(pair, undefined, of(14, 'gaiN'))).toEqual([]);
    expect(lentOutput(pair, undefined, of(14, 'gain'))).toEqual([', again']);
  });

  // Guards primary-tcp.ts #mayGo: `seqBeforeOrEqual(segment.segmentEnd, comparer.compared)`.
  it('a byte of the PVM waits until the SVM has produced the same byte', () => {
    const pair = protectedPair();
    const c = opened(pair, family);
    expect(c.send('pvm', 0, 'hello world')).toEqual([]);
    expect(c.send('svm', 0, 'hello ')).toEqual([]);
    expect(payloads(c.send('svm', 6, 'world'))).toEqual(['hello world']);
  });

  // Guards compare/stream.ts advance: `!bytesEqual(...)`.
  it('a byte that differs is not seen before the commit, and the PVM alone is right after it', () => {
    const pair = protectedPair();
    const c = opened(pair, family);
    expect(c.send('pvm', 0, 'token A')).toEqual([]);
    expect(c.send('svm', 0, 'token B')).toEqual([]);
    expect(pair.takeCauses()).toEqual(['different-bytes']);
    expect(pair.pass(10 * TIMEOUT_US)).toEqual([]);
    expect(payloads(pair.checkpoint())).toEqual(['token A']);
  });

  // Guards primary.ts #onPeerCommitted: `releaseAll` there, and not in checkpointBegin or checkpointCommit.
  it('held output goes when the secondary has confirmed the commit, no edge earlier', () => {
    const pair = protectedPair();
    const c = opened(pair, family);
    c.send('pvm', 0, 'only the PVM');
    pair.begin();
    expect(pair.takeNet()).toEqual([]);
    pair.isLinkOpen = false;
    pair.commit();
    expect(pair.pass(TIMEOUT_US)).toEqual([]);
    pair.isLinkOpen = true;
    pair.settle();
    expect(payloads(pair.takeNet())).toEqual(['only the PVM']);
  });

  // Guards primary.ts onPeerFrame: `epoch !== this.#epoch`.
  it('output of the SVM from before a checkpoint agrees to nothing after it', () => {
    const pair = protectedPair();
    const c = opened(pair, family);
    const { epoch } = pair.primary;
    pair.checkpoint();
    c.send('pvm', 0, 'new');
    const old = c.fromGuest('svm', 0, 'new', { seq: c.seen(0) });
    expect(pair.strayFromSecondary(old, epoch)).toEqual([]);
    expect(dropped(pair, 'secondary-old-epoch')).toBe(1);
  });

  // Guards primary-tcp.ts #mayGo: `!this.handshake.matched`.
  it('a SYN-ACK waits for the SVM, and differing options are a divergence', () => {
    const pair = protectedPair();
    const c = new PairConnection(pair, { family });
    pair.client(c.syn());
    // Both guests have said something on this flow: only the SYN itself is missing.
    expect(pair.guest('pvm', c.synAck('pvm'))).toEqual([]);
    const timestamps = { tsval: c.clock('svm'), tsecr: 0 };
    const other = c.synAck('svm', { options: { mss: 1_460, windowScale: 7, timestamps } });
    expect(pair.guest('svm', other)).toEqual([]);
    expect(pair.takeCauses()).toEqual(['different-options']);
  });

  // Guards primary-tcp.ts #mayGo: `return this.secondaryReset`.
  it('a RST of one guest alone does not reach the client', () => {
    const pair = protectedPair();
    const c = opened(pair, family);
    const reset = { flags: TCP_RST | TCP_ACK };
    expect(c.send('pvm', 0, '', reset)).toEqual([]);
    const [frame] = c.send('svm', 0, '', reset);
    expect(infoOf(frame!).tcpFlags & TCP_RST).toBe(TCP_RST);
  });

  // Guards primary-tcp.ts #mayGo for FIN, and compare/stream.ts #advanceFin.
  it('a FIN of one guest alone does not reach the client', () => {
    const pair = protectedPair();
    const c = opened(pair, family);
    c.both(0, 'all');
    expect(c.send('pvm', 3, '', { flags: TCP_FIN | TCP_ACK })).toEqual([]);
    expect(c.send('svm', 3, ' there is')).toEqual([]);
    expect(pair.takeCauses()).toEqual(['fin-mismatch']);
  });

  // Guards primary-datagram.ts #findSecondary: `rangesEqual`.
  it('a datagram waits for an equal one', () => {
    const pair = protectedPair();
    expect(pair.guest('svm', udp(family, 'a'))).toEqual([]);
    expect(pair.guest('pvm', udp(family, 'b'))).toEqual([]);
    expect(payloads(pair.guest('svm', udp(family, 'b')))).toEqual(['b']);
  });

  // Guards primary-fragments.ts and primary-flows.ts onPrimaryFrame: `info.isFragment`.
  it('fragments wait until the whole datagram is equal, and go as they were', () => {
    const pair = protectedPair();
    const whole = udp(family, 'x'.repeat(2_000));
    const fragments = fragmentFrame(whole, 1_008);
    expect(pair.guest('pvm', ...fragments)).toEqual([]);
    expect(pair.guest('svm', fragments[0]!)).toEqual([]);
    const out = pair.guest('svm', fragments[1]!);
    expect(out.map(frameBytes)).toEqual(fragments.map(frameBytes));
  });
});

describe.each(FAMILIES)('G2 input commit, IPv%d', (family) => {
  // Guards primary-lent.ts matchLent: `if (!isFree) return LENT_NONE`.
  it('what waits in its stream does not go out with an ACK number that the SVM does not cover', () => {
    const pair = protectedPair();
    const c = opened(pair, family);
    pair.client(c.fromClient(0, 'request'));
    const mate = (acked: number) => c.fromGuest('svm', 0, 'answer', { seq: c.seen(0), acked });
    const answer = c.fromGuest('pvm', 0, 'answer', { acked: 7 });
    expect(lentOutput(pair, answer, mate(3))).toEqual([]);
    expect(lentOutput(pair, undefined, mate(7))).toEqual(['answer']);
  });

  // Guards compare/ack-gate.ts limit: `seqMin(ack, this.secondaryAck)`.
  it('an ACK number is lowered to what both guests have acknowledged', () => {
    const pair = protectedPair();
    const c = opened(pair, family);
    pair.client(c.fromClient(0, 'request'));
    c.send('svm', 0, '', { acked: 3 });
    c.send('pvm', 0, 'answer', { acked: 7 });
    const [answer] = c.send('svm', 0, 'answer', { acked: 3 });
    expect(payloadOf(answer!)).toBe('answer');
    expect(infoOf(answer!).ack).toBe(clientSeq(3));
    expect(isTransportChecksumRight(infoOf(answer!))).toBe(true);
  });

  // Guards primary-tcp.ts onFlush: `sendPendingAck`.
  it('what stayed behind follows as a pure ACK when the SVM has caught up', () => {
    const pair = protectedPair();
    const c = opened(pair, family);
    pair.client(c.fromClient(0, 'request'));
    expect(c.send('pvm', 0, '', { acked: 7 })).toEqual([]);
    const [ack] = c.send('svm', 0, '', { acked: 7 });
    expect(infoOf(ack!)).toMatchObject({ ack: clientSeq(7), payloadBytes: 0, tcpFlags: TCP_ACK });
  });

  // Guards compare/ack-gate.ts limit: `seqMin(seqAdd(ack, ...), this.secondaryEdge)`.
  it('no window edge goes beyond what both guests offer', () => {
    const pair = protectedPair();
    const c = opened(pair, family);
    // The edge that a SYN-ACK has offered stays offered: let the client's data use it up.
    pair.client(c.fromClient(0, 'x'.repeat(60_000)));
    const acked = 60_000;
    c.send('svm', 0, '', { acked, window: 2_000 });
    const [ack] = c.send('pvm', 0, '', { acked, window: 10_000 });
    expect(infoOf(ack!)).toMatchObject({ ack: clientSeq(acked), window: 2_000 });
    const [wider] = c.send('svm', 0, '', { acked, window: 3_000 });
    expect(infoOf(wider!).window).toBe(3_000);
  });

  // Guards primary-ack.ts pass: `trims`, and rewrite/lower.ts trimSack.
  it('a SACK block goes out only when the SVM holds it too', () => {
    const pair = protectedPair();
    const c = opened(pair, family);
    pair.client(c.fromClient(100, 'x'.repeat(50)), c.fromClient(300, 'x'.repeat(50)));
    c.send('svm', 0, '', { sack: [[300, 350]] });
    const both = { sack: [[100, 150] as const, [300, 350] as const] };
    const out = c.send('pvm', 0, '', both);
    const blocks = out.flatMap((frame) => {
      const options = optionsOf(frame)!;
      return Array.from({ length: options.sackCount }, (_, i) => options.sackLeft(i));
    });
    expect(blocks).toEqual([clientSeq(300)]);
  });

  // Guards compare/ack-gate.ts adoptPrimary: after a commit the SVM has what the PVM had.
  it('a commit makes the ACK of the PVM that of both', () => {
    const pair = protectedPair();
    const c = opened(pair, family);
    pair.client(c.fromClient(0, 'request'));
    c.send('pvm', 0, '', { acked: 7 });
    const [ack] = pair.checkpoint();
    expect(infoOf(ack!).ack).toBe(clientSeq(7));
    const [again] = c.send('pvm', 0, '', { acked: 7 });
    expect(infoOf(again!).ack).toBe(clientSeq(7));
  });
});

/** A frame of every kind that a guest sends. */
function everyKind(c: PairConnection, guest: GuestName): TestFrame[] {
  return [
    c.fromGuest(guest, 0, 'data'),
    c.fromGuest(guest, 0, '', { flags: TCP_RST | TCP_ACK }),
    ...FAMILIES.flatMap((family) => [
      udp(family, 'datagram'),
      icmpEcho({ ...addressed(family, true), isReply: true }),
      rawIpFrame(47, { ...addressed(family, true), payload: 'tunnel' }),
      ...fragmentFrame(udp(family, 'f'.repeat(100)), 64),
    ]),
    arpFrame(),
    arpFrame({ isReply: true }),
    neighbourFrame(),
    neighbourFrame({ isAdvertisement: true }),
    rawFrame(new Uint8Array(60).fill(1)),
    rawFrame(new Uint8Array(5)),
  ];
}

describe('G3 silence', () => {
  // Guards secondary.ts onGuestFrame: nothing but `state === 'failed-over'` leads to #sendToNet.
  it('no frame of the SVM reaches the network in any state before the failover', () => {
    const pair = new EnginePair();
    const c = new PairConnection(pair);
    const speak = (): void => void pair.guest('svm', ...everyKind(c, 'svm'));
    speak(); // unprotected
    pair.join();
    speak(); // syncing
    pair.checkpoint();
    speak(); // protected
    pair.begin();
    speak(); // checkpointing
    pair.commit();
    speak();
    pair.killPrimary();
    speak(); // alone
    pair.pass(5_000_000);
    expect(pair.net.filter((frame) => frame.by === 'secondary')).toEqual([]);
    expect(pair.secondary.status(pair.nowUs).released).toBe(0);
  });

  // Guards secondary.ts onNetFrame: `state !== 'failed-over'`.
  it('a client that speaks to the secondary directly is not heard', () => {
    const pair = protectedPair();
    const frame = new PairConnection(pair).syn();
    pair.secondary.onNetFrame(frame.buffer, frame.offset, frame.length, pair.nowUs);
    pair.secondary.flush(pair.nowUs);
    expect(pair.takeGuest('svm')).toEqual([]);
  });

  // Guards secondary.ts failover: `!force && this.#peerUp`, `!force && !this.#ready`.
  it('a failover is refused while the primary is there, and before a first commit', () => {
    const pair = protectedPair();
    expect(pair.secondary.failover(false, pair.nowUs).ok).toBe(false);
    const fresh = new EnginePair().join();
    fresh.killPrimary();
    expect(fresh.secondary.failover(false, fresh.nowUs).ok).toBe(false);
  });
});

describe.each(FAMILIES)('G4 no invention, no reordering, IPv%d', (family) => {
  // Guards primary.ts: only frames of the PVM are emitted, unchanged where G2 asks for nothing.
  it('the client gets the frames of the PVM, byte by byte, each once', () => {
    const pair = protectedPair();
    const c = opened(pair, family);
    const sent = [0, 5, 10].map((at) => c.fromGuest('pvm', at, 'abcde'));
    const out = [
      ...pair.guest('pvm', ...sent),
      ...pair.guest('svm', c.fromGuest('svm', 0, 'abcdeabcdeabcde')),
    ];
    expect(out.map(frameBytes)).toEqual(sent.map(frameBytes));
  });

  // Guards primary-tcp.ts onPrimary: `this.held.push(segment)`, and #pump: from the head only.
  it('segments leave in the order in which the PVM sent them', () => {
    const pair = protectedPair();
    const c = opened(pair, family);
    pair.guest('pvm', c.fromGuest('pvm', 0, 'aa'), c.fromGuest('pvm', 2, 'bb'));
    pair.guest('pvm', c.fromGuest('pvm', 4, 'cc'));
    expect(c.send('svm', 2, 'bbcc')).toEqual([]);
    expect(payloads(c.send('svm', 0, 'aa'))).toEqual(['aa', 'bb', 'cc']);
  });

  // Guards primary-datagram.ts onPrimary: `this.primary.length === 0`, and #pump: `matched` from the head.
  it('a datagram does not pass an earlier one of its flow', () => {
    const pair = protectedPair();
    pair.guest('svm', udp(family, 'two'));
    expect(pair.guest('pvm', udp(family, 'one'))).toEqual([]);
    expect(pair.guest('pvm', udp(family, 'two'))).toEqual([]);
    expect(payloads(pair.guest('svm', udp(family, 'one')))).toEqual(['one', 'two']);
  });

  // Guards primary-ack.ts #send: the sequence number is what was released; makePureAck: no payload, no PSH, no FIN.
  it('the one frame that is built is the last ACK of the PVM, as a pure ACK where its stream stands', () => {
    const pair = protectedPair();
    const c = opened(pair, family);
    pair.client(c.fromClient(0, 'request'));
    c.send('pvm', 0, 'sent', { acked: 7, flags: TCP_ACK | TCP_PSH });
    const [sent] = c.send('svm', 0, 'sent', { acked: 0 });
    expect(infoOf(sent!)).toMatchObject({ seq: c.seen(0), ack: clientSeq(0) });
    const [ack] = c.send('svm', 4, '', { acked: 7 });
    const info = infoOf(ack!);
    expect(info).toMatchObject({ seq: c.seen(4), ack: clientSeq(7), payloadBytes: 0 });
    expect(info.tcpFlags).toBe(TCP_ACK);
    expect(isTransportChecksumRight(info)).toBe(true);
    expect(timestampsOf(ack!)?.tsval).toBe(c.clock('pvm'));
  });
});

/** Both guests have sent 'agreed', the SVM alone 'pending'; then PN dies. `progress`: does the SVM know what was released? */
function diesWithOutput(family: Family): { pair: EnginePair; c: PairConnection } {
  const pair = protectedPair();
  const c = opened(pair, family);
  pair.pass(50_000);
  pair.client(c.fromClient(0, 'request'));
  c.both(0, 'agreed', { acked: 7 });
  pair.pass(10_000);
  pair.client(c.fromClient(7, '', 6));
  c.send('svm', 6, 'pending', { acked: 7 });
  pair.killPrimary();
  return { pair, c };
}

describe.each(FAMILIES)('G5 failover, IPv%d', (family) => {
  // Guards secondary.ts #takeOver -> Takeover.start: #sendRetained; secondary-flows.ts #translateGuest: seqDelta.
  it('output that was not confirmed is sent at once, in the numbers of the PVM', () => {
    const { pair, c } = diesWithOutput(family);
    const data = pair.failover().filter((frame) => isTcp(frame) && payloadOf(frame) !== '');
    expect(payloads(data)).toEqual(['pending']);
    const info = infoOf(data[0]!);
    expect(info.seq).toBe(c.seen(6));
    expect(info.ack).toBe(clientSeq(7));
    expect(isTransportChecksumRight(info)).toBe(true);
  });

  // Guards retention.ts confirmReleased.
  it('what was released last, and may have died on its way, is sent again', () => {
    const pair = protectedPair();
    const c = opened(pair, family);
    pair.client(c.fromClient(0, 'request'));
    expect(payloads(c.both(0, 'agreed', { acked: 7 }))).toContain('agreed');
    pair.pass(10_000);
    pair.killPrimary();
    expect(payloads(pair.failover().filter(isTcp))).toContain('agreed');
  });

  // Guards the first lines of SecondaryEngine.onNetFrame.
  it('what a client sends while nobody serves reaches the SVM at the failover', () => {
    const { pair, c } = diesWithOutput(family);
    pair.takeGuest('svm');
    pair.client(c.fromClient(7, 'more', 6));
    expect(pair.takeGuest('svm')).toEqual([]);
    pair.failover();
    expect(payloads(pair.takeGuest('svm'))).toEqual(['more']);
  });

  // Guards secondary-flows.ts #translateGuest and #translateClient: seqDelta both ways, SACK blocks too.
  it('the connection goes on: one byte stream for the client, own numbers for the SVM', () => {
    const { pair, c } = diesWithOutput(family);
    c.see(pair.failover());
    pair.takeGuest('svm');
    const sack = [[c.seen(20), c.seen(30)] as const];
    const timestamps = { tsval: c.clock('client'), tsecr: c.tsRecent };
    pair.client(c.fromClient(7, 'more', 13, { options: { timestamps, sack } }));
    const [delivered] = pair.takeGuest('svm');
    expect(payloadOf(delivered!)).toBe('more');
    const options = optionsOf(delivered!)!;
    expect(infoOf(delivered!).ack).toBe(GUEST_ISN.svm + 1 + 13);
    expect([options.sackLeft(0), options.sackRight(0)]).toEqual(
      [20, 30].map((at) => GUEST_ISN.svm + 1 + at),
    );
    expect(isTransportChecksumRight(infoOf(delivered!))).toBe(true);
    const [answer] = c.send('svm', 13, 'answer', { acked: 11 });
    expect(infoOf(answer!)).toMatchObject({ seq: c.seen(13), ack: clientSeq(11) });
    expect(payloadOf(answer!)).toBe('answer');
    expect(isTransportChecksumRight(infoOf(answer!))).toBe(true);
  });

  // Guards secondary-flow.ts tsvalForClient (tsDelta, #jump) and tsecrForGuest.
  it('timestamps never go back for the client, and echo what the SVM itself has sent', () => {
    const { pair, c } = diesWithOutput(family);
    const { tsRecent } = c;
    expect(tsRecent).toBeGreaterThan(900_000);
    const sent = [...pair.failover(), ...c.send('svm', 13, 'x', { acked: 7 })].filter(isTcp);
    expect(sent.length).toBeGreaterThanOrEqual(2);
    for (const frame of sent) expect(timestampsOf(frame)!.tsval).toBeGreaterThan(tsRecent);
    c.see(sent);
    pair.takeGuest('svm');
    pair.client(c.fromClient(7, '', 14));
    const [echo] = pair.takeGuest('svm');
    expect(timestampsOf(echo!)!.tsecr).toBe(c.clock('svm'));
  });

  // Guards secondary-takeover.ts start: `this.#announce(nowUs)`, before anything else is sent.
  it('the addresses of the guest are announced first', () => {
    const { pair } = diesWithOutput(family);
    const [first] = pair.failover();
    const info = infoOf(first!);
    expect([...frameBytes(first!).subarray(6, 12)]).toEqual([2, 0, 0, 0, 0, 2]);
    if (family === 4) expect(info.etherType).toBe(ETHER_ARP);
    else expect(info.icmpType).toBe(136);
  });

  // Guards secondary-takeover.ts #probeFlow: a pure ACK, no RST, and secondary-flows.ts #onGuestSyn: beginUntranslated.
  it('nothing is reset, and new connections pass untouched', () => {
    const { pair } = diesWithOutput(family);
    const first = pair.failover();
    const next = new PairConnection(pair, { family, clientPort: 40_999 });
    pair.takeGuest('svm');
    const syn = next.syn();
    pair.client(syn);
    expect(pair.takeGuest('svm').map(frameBytes)).toEqual([frameBytes(syn)]);
    const synAck = next.synAck('svm');
    expect(pair.guest('svm', synAck).map(frameBytes)).toEqual([frameBytes(synAck)]);
    const data = next.fromGuest('svm', 0, 'new');
    expect(pair.guest('svm', data).map(frameBytes)).toEqual([frameBytes(data)]);
    const ack = next.fromClient(0, 'hi', 0, { ack: GUEST_ISN.svm + 4 });
    pair.client(ack);
    expect(pair.takeGuest('svm').map(frameBytes)).toEqual([frameBytes(ack)]);
    const all = [...first, ...pair.pass(3_000_000)];
    expect(all.filter((frame) => (infoOf(frame).tcpFlags & TCP_RST) !== 0)).toEqual([]);
  });

  // Guards primary.ts #deliverClient: `sendFrameToPeer(LINK_FRAME_CLIENT, ...)`, and G2 behind it.
  it('data of the client that it was told is acknowledged is with the SVM', () => {
    const pair = protectedPair();
    const c = opened(pair, family);
    pair.client(c.fromClient(0, 'precious'));
    expect(payloads(pair.takeGuest('svm'))).toEqual(['precious']);
    // While the link is stuck, the PVM's acknowledgement stays.
    pair.isLinkOpen = false;
    pair.client(c.fromClient(8, ' bytes'));
    expect(c.send('pvm', 0, '', { acked: 14 }).map((f) => infoOf(f).ack)).not.toContain(
      clientSeq(14),
    );
  });

  // Guards secondary.ts onPeerMessage 'progress' and retention.ts confirmDatagrams: what the client has is not sent again.
  it('a datagram that was released is not sent twice', () => {
    const pair = protectedPair();
    pair.guest('svm', udp(family, 'released'));
    expect(pair.guest('pvm', udp(family, 'released'))).toHaveLength(1);
    pair.pass(100_000);
    pair.guest('svm', udp(family, 'not yet'));
    pair.killPrimary();
    const datagrams = pair.failover().filter((frame) => infoOf(frame).protocol === 17);
    expect(payloads(datagrams)).toEqual(['not yet']);
  });

  // Guards secondary-flows.ts: `flow.adoptCheckpoint(...)`: after a commit the SVM counts as the PVM did.
  it('after a checkpoint the numbers of the SVM are those of the PVM, and pass as they are', () => {
    const pair = protectedPair();
    const c = opened(pair, family);
    c.both(0, 'before');
    pair.checkpoint();
    const restored = c.fromGuest('svm', 6, 'after', { seq: c.seen(6) });
    pair.guest('svm', restored);
    pair.killPrimary();
    const data = pair.failover().filter((frame) => isTcp(frame) && payloadOf(frame) !== '');
    expect(data.map((frame) => infoOf(frame).seq)).toEqual([c.seen(6)]);
  });
});

/** A hold of some kind, and within how long a request must come. */
interface Hold {
  readonly title: string;
  readonly boundUs?: number;
  readonly cause: string;
  make(pair: EnginePair, c: PairConnection): void;
}

const HOLDS: readonly Hold[] = [
  {
    title: 'bytes of the PVM alone',
    cause: 'secondary-silent',
    make: (_, c) => void c.send('pvm', 0, 'data'),
  },
  {
    title: 'bytes of the SVM alone',
    cause: 'primary-silent',
    make: (_, c) => void c.send('svm', 0, 'data'),
  },
  {
    title: 'a gap in the stream of the SVM',
    cause: 'secondary-silent',
    make: (_, c) => {
      c.send('pvm', 0, 'abcdef');
      c.send('svm', 3, 'def');
    },
  },
  {
    title: 'a FIN of the PVM alone',
    cause: 'secondary-silent',
    make: (_, c) => void c.send('pvm', 0, '', { flags: TCP_FIN | TCP_ACK }),
  },
  {
    title: 'an ACK that the SVM does not give',
    cause: 'acknowledgement-behind',
    make: (pair, c) => {
      pair.client(c.fromClient(0, 'request'));
      c.send('pvm', 0, '', { acked: 7 });
    },
  },
  {
    title: 'a window that the SVM keeps closed',
    cause: 'window-closed',
    make: (pair, c) => {
      pair.client(c.fromClient(0, 'x'.repeat(65_535)));
      c.send('svm', 0, '', { acked: 65_535, window: 0 });
      c.send('pvm', 0, '', { acked: 65_535, window: 500 });
    },
  },
  {
    title: 'a RST of the PVM alone',
    cause: 'reset-mismatch',
    make: (_, c) => void c.send('pvm', 0, '', { flags: TCP_RST | TCP_ACK }),
  },
  {
    title: 'a RST of the SVM alone',
    cause: 'reset-mismatch',
    make: (_, c) => void c.send('svm', 0, '', { flags: TCP_RST | TCP_ACK }),
  },
  {
    title: 'a SYN-ACK of the PVM alone',
    cause: 'secondary-silent',
    make: (pair) => {
      const next = new PairConnection(pair, { clientPort: 41_000 });
      pair.client(next.syn());
      pair.guest('pvm', next.synAck('pvm'));
    },
  },
  {
    title: 'a datagram of the PVM alone',
    cause: 'secondary-silent',
    make: (pair) => void pair.guest('pvm', udp(4, 'a')),
  },
  {
    title: 'a datagram of the SVM alone',
    cause: 'primary-silent',
    make: (pair) => void pair.guest('svm', udp(6, 'a')),
  },
  {
    title: 'datagrams that differ',
    cause: 'different-bytes',
    boundUs: 15_000,
    make: (pair) => {
      pair.guest('pvm', udp(4, 'a'));
      pair.guest('svm', udp(4, 'b'));
    },
  },
  {
    title: 'a ping that the SVM does not answer',
    cause: 'secondary-silent',
    make: (pair) => void pair.guest('pvm', icmpEcho({ isReply: true })),
  },
  {
    title: 'a fragment whose rest never comes',
    cause: 'unverifiable',
    make: (pair) => void pair.guest('pvm', fragmentFrame(udp(6, 'x'.repeat(200)), 104)[0]!),
  },
  {
    title: 'a frame that is not IP',
    cause: 'secondary-silent',
    make: (pair) => {
      const lldp = new Uint8Array(60);
      lldp.set([1, 0x80, 0xc2, 0, 0, 0x0e, 2, 0, 0, 0, 0, 2, 0x88, 0xcc]);
      pair.guest('pvm', rawFrame(lldp));
    },
  },
];

describe('G6 liveness', () => {
  // Guards primary-tcp.ts waitingSinceUs (each of its terms), primary-datagram.ts deadlineUs, primary-fragments.ts onAbandon.
  it.each(HOLDS)('$title: a request within the bound, and the commit lets it out', (hold) => {
    const pair = protectedPair();
    const c = opened(pair);
    hold.make(pair, c);
    pair.pass(hold.boundUs ?? TIMEOUT_US + 5_000);
    expect(pair.takeCauses()).toEqual([hold.cause]);
    pair.checkpoint();
    expect(pair.primary.status(pair.nowUs).held).toEqual({ frames: 0, bytes: 0 });
    pair.pass(3 * TIMEOUT_US);
    expect(pair.takeCauses()).toEqual([]);
  });

  // Guards primary-tcp.ts #sinceProgress: `Math.min(this.progressUs, sinceUs + lagUs)`.
  it('a guest that is always a little late cannot hold a segment for ever', () => {
    const pair = protectedPair();
    const c = opened(pair);
    c.send('pvm', 0, 'x'.repeat(1_000));
    for (let at = 0; at < 100 && pair.primaryOut.requests.length === 0; at++) {
      c.send('svm', at, 'x');
      pair.pass(TIMEOUT_US / 4);
    }
    expect(pair.takeCauses()).toEqual(['secondary-silent']);
  });

  // Guards checkpoint-requests.ts take and givenUp, primary.ts onTick: `#onRequestsIgnored`.
  it('a VM layer that does not answer is asked again, and then not waited for', () => {
    const pair = protectedPair();
    const c = opened(pair);
    c.send('pvm', 0, 'data');
    const out = pair.pass(TIMEOUT_US + 11_000_000);
    expect(pair.takeCauses().length).toBeGreaterThanOrEqual(5);
    expect(payloads(out)).toEqual(['data']);
    expect(pair.primary.state).not.toBe('protected');
  });

  // Guards primary.ts onTick: `checkpointAbort('not committed in time', ...)`.
  it('a checkpoint that is begun and never ends does not keep the client waiting for ever', () => {
    const pair = protectedPair();
    const c = opened(pair);
    c.send('pvm', 0, 'data');
    pair.begin();
    pair.guest('pvm', c.fromGuest('pvm', 4, ' and more'));
    expect(payloads(pair.pass(31_000_000))).toEqual(['data', ' and more']);
    expect(pair.primary.state).toBe('syncing');
  });

  // Guards secondary.ts checkpointCommit: `#isAhead`. The primary takes nothing of an epoch before it has committed it.
  it('what the SVM sends after its VM layer has told the secondary of a commit, and before the primary has, is compared', () => {
    const pair = protectedPair();
    const c = opened(pair);
    pair.begin();
    expect(pair.secondary.checkpointCommit(pair.nowUs)).toEqual({ ok: true });
    pair.guest('svm', c.fromGuest('svm', 0, 'data', { seq: c.seen(0) }));
    pair.guest('pvm', c.fromGuest('pvm', 0, 'data'));
    pair.commit();
    expect(payloads(pair.takeNet())).toEqual(['data']);
    expect(pair.pass(2 * TIMEOUT_US)).toEqual([]);
    expect(pair.takeCauses()).toEqual([]);
  });

  // Guards secondary.ts checkpointCommit: `#awaitsWord`. Else the secondary would count one checkpoint more than the primary, for ever.
  it('a VM layer that tells the secondary of a commit after the primary has leaves both in one epoch', () => {
    const pair = protectedPair();
    for (let i = 0; i < 3; i++) {
      pair.checkpoint();
      expect(pair.secondary.checkpointCommit(pair.nowUs)).toEqual({ ok: true });
    }
    const c = opened(pair);
    expect(payloads(c.both(0, 'data'))).toEqual(['data']);
  });

  // Guards primary.ts onPeerDown: `#unprotect`.
  it('a secondary that dies releases what waited for it', () => {
    const pair = protectedPair();
    const c = opened(pair);
    c.send('pvm', 0, 'data');
    pair.primary.onPeerDown('silent', pair.nowUs);
    pair.primary.flush(pair.nowUs);
    expect(payloads(pair.takeNet())).toEqual(['data']);
  });
});

describe('G7 bounded', () => {
  const limits = { flowHeldBytesMax: 20_000, heldBytesMax: 60_000 };

  // Guards primary.ts #hold: the request at the limit, the refusal at twice the limit.
  it('held output: a request at the limit, nothing dropped before twice the limit, never more', () => {
    const pair = new EnginePair({ primary: limits }).protect();
    const c = opened(pair);
    let at = 0;
    const send = (): void => {
      c.send('pvm', at, 'x'.repeat(1_000));
      at += 1_000;
    };
    while (pair.primaryOut.requests.length === 0 && at < 100_000) send();
    expect(pair.takeCauses()).toEqual(['limit']);
    expect(dropped(pair, 'held-limit')).toBe(0);
    for (let i = 0; i < 100; i++) send();
    expect(dropped(pair, 'held-limit')).toBeGreaterThan(0);
    expect(pair.primary.status(pair.nowUs).held.bytes).toBeLessThan(2 * 20_000 + 3_000);
  });

  // The same limit over all flows: primary.ts #hold, `this.#heldBytes`.
  it('held output of many flows together', () => {
    const pair = new EnginePair({ primary: limits }).protect();
    for (let port = 1_000; port < 1_100; port++) {
      pair.guest('pvm', udpFrame({ dstPort: port, payload: 'x'.repeat(1_000) }));
    }
    expect(pair.takeCauses()).toEqual(['limit']);
    expect(pair.primary.status(pair.nowUs).held.bytes).toBeLessThan(2 * 60_000 + 3_000);
    expect(dropped(pair, 'held-limit')).toBeGreaterThan(0);
  });

  // Guards kept-frames.ts push.
  it('frames kept during a checkpoint: beyond the limit refused and counted, on both nodes', () => {
    const pair = new EnginePair({
      primary: { keptClientBytesMax: 10_000 },
      secondary: { keptClientBytesMax: 10_000 },
    }).protect();
    const c = opened(pair);
    pair.begin();
    for (let i = 0; i < 50; i++) {
      pair.client(c.fromClient(i, 'x'));
      pair.guest('svm', c.fromGuest('svm', i, 'x'));
    }
    expect(pair.primary.status(pair.nowUs).held.bytes).toBeLessThan(11_000);
    expect(pair.secondary.status(pair.nowUs).held.bytes).toBeLessThan(22_000);
    expect(dropped(pair, 'client-kept-limit')).toBeGreaterThan(0);
    expect(pair.secondary.status(pair.nowUs).dropped['guest-kept-limit']).toBeGreaterThan(0);
  });

  // Guards retention.ts add.
  it('output retained for a failover: the oldest gives way, counted', () => {
    const pair = new EnginePair({ secondary: { retainedBytesMax: 20_000 } }).protect();
    const c = opened(pair);
    for (let i = 0; i < 50; i++)
      pair.guest('svm', c.fromGuest('svm', i * 1_000, 'x'.repeat(1_000)));
    const { held, dropped: lost } = pair.secondary.status(pair.nowUs);
    expect(held.bytes).toBeLessThanOrEqual(20_000);
    expect(Object.values(lost).reduce((a, b) => a + b, 0)).toBeGreaterThan(0);
  });

  // Guards flow/table.ts makeRoom: half-open flows have a limit of their own.
  it('a flood of SYNs pushes out no connection, and the tables stay within their limits', () => {
    const config = { flowsMax: 100, halfOpenFlowsMax: 20 };
    const pair = new EnginePair({ primary: config, secondary: config }).protect();
    const c = opened(pair);
    c.both(0, 'a');
    for (let i = 0; i < 1_000; i++) {
      pair.client(new PairConnection(pair, { clientPort: 1_000 + i }).syn());
    }
    for (const engine of [pair.primary, pair.secondary]) {
      expect(engine.status(pair.nowUs).flows).toBeLessThanOrEqual(21);
      expect(engine.status(pair.nowUs).counters['flowsEvicted']).toBeGreaterThan(900);
    }
    expect(payloads(c.both(1, 'b'))).toEqual(['b']);
  });

  // Guards primary-flows.ts #primaryFrame: `flow === undefined` holds and asks.
  it('a full flow table asks for a checkpoint, and drops no output of the PVM', () => {
    const pair = new EnginePair({ primary: { flowsMax: 4 } }).protect();
    for (let port = 1; port <= 6; port++) {
      expect(pair.guest('pvm', udpFrame({ dstPort: port, payload: `${port}` }))).toEqual([]);
    }
    expect(pair.takeCauses()).toEqual(['limit']);
    const released = payloads(pair.checkpoint());
    expect(released.sort()).toEqual(['1', '2', '3', '4', '5', '6']);
  });

  // Guards flow/reassembly.ts: REASSEMBLIES_MAX.
  it('fragments of a flood of datagrams that never become whole: bounded, and nothing of the PVM is lost', () => {
    const pair = protectedPair();
    const count = REASSEMBLIES_MAX + 50;
    for (let id = 1; id <= count; id++) {
      const [first] = fragmentFrame(udpFrame({ payload: 'x'.repeat(100) }), 64, id);
      pair.guest('svm', first!);
      pair.guest('pvm', first!);
    }
    expect(pair.primary.status(pair.nowUs).held.frames).toBeLessThanOrEqual(
      count + REASSEMBLIES_MAX,
    );
    expect(pair.takeCauses()).toEqual(['unverifiable']);
    expect(pair.checkpoint()).toHaveLength(count);
    expect(pair.primary.status(pair.nowUs).held).toEqual({ frames: 0, bytes: 0 });
  });
});

describe('G8 hostile input', () => {
  const broken = rawFrame(frameBytes(tcpFrame({ payload: 'x' })).subarray(0, 40));

  // Guards primary.ts #guestOutput and #secondaryOutput, secondary.ts onGuestFrame: `result !== FRAME_OK`.
  it('output that cannot be read does not go out, is counted, and harms nothing', () => {
    const pair = protectedPair();
    const c = opened(pair);
    expect(pair.guest('pvm', broken)).toEqual([]);
    expect(pair.guest('svm', broken)).toEqual([]);
    expect(pair.strayFromSecondary(broken, pair.primary.epoch)).toEqual([]);
    expect(dropped(pair, 'guest-ipv4-truncated')).toBe(1);
    expect(dropped(pair, 'secondary-ipv4-truncated')).toBe(1);
    expect(pair.secondary.status(pair.nowUs).dropped['guest-ipv4-truncated']).toBe(1);
    expect(payloads(c.both(0, 'still'))).toEqual(['still']);
  });

  // Guards primary-tcp.ts onClient: `seqBeforeOrEqual(ack, this.primaryEnd)`; a forged ACK says nothing.
  it('a forged ACK of the future makes nothing count as received', () => {
    const pair = protectedPair();
    const c = opened(pair);
    pair.client(c.fromClient(0, '', 1_000_000));
    expect(c.send('pvm', 0, 'data')).toEqual([]);
    expect(payloads(c.send('svm', 0, 'data'))).toEqual(['data']);
  });

  // Guards primary-tcp.ts #offerSecondary: AHEAD_MAX.
  it('positions far outside of the stream are refused and counted', () => {
    const pair = protectedPair();
    const c = opened(pair);
    c.send('svm', 0x7000_0000, 'nowhere');
    expect(dropped(pair, 'secondary-out-of-window')).toBe(1);
    expect(pair.primary.status(pair.nowUs).held.frames).toBe(0);
  });

  // Guards primary.ts onPeerMessage: #onPeerCommitted asks for `#commitSent` and the epoch.
  it('a peer that claims a commit nobody asked for releases nothing', () => {
    const pair = protectedPair();
    const c = opened(pair);
    c.send('pvm', 0, 'data');
    const claim = { type: 'checkpoint-committed', epoch: pair.primary.epoch + 1 } as const;
    pair.primary.onPeerMessage(claim, pair.nowUs);
    pair.begin();
    pair.primary.onPeerMessage(claim, pair.nowUs);
    pair.primary.flush(pair.nowUs);
    expect(pair.takeNet()).toEqual([]);
    expect(pair.primary.state).toBe('checkpointing');
    expect(dropped(pair, 'peer-unexpected-message')).toBe(2);
  });
});

/** Each change of a node's state as its events tell it. */
function stateEvents(pair: EnginePair, node: 'primary' | 'secondary'): string[] {
  const { events } = node === 'primary' ? pair.primaryOut : pair.secondaryOut;
  return events
    .filter((event) => event.kind === 'state')
    .map((event) => `${event.fields?.['from']} -> ${event.fields?.['to']}`);
}

describe('G9 honest state', () => {
  // Guards #setState of primary.ts and secondary.ts: no change without an event with its reason.
  it('every change of state is an event with its reason, and the chain of events has no gap', () => {
    const pair = protectedPair();
    pair.checkpoint();
    pair.begin();
    pair.primary.checkpointAbort('the machine could not be copied', pair.nowUs);
    pair.primary.flush(pair.nowUs);
    pair.settle();
    pair.checkpoint();
    pair.killPrimary();
    pair.failover();
    expect(stateEvents(pair, 'primary')).toEqual([
      'unprotected -> syncing',
      'syncing -> checkpointing',
      'checkpointing -> protected',
      'protected -> checkpointing',
      'checkpointing -> protected',
      'protected -> checkpointing',
      'checkpointing -> unprotected',
      'unprotected -> syncing',
      'syncing -> checkpointing',
      'checkpointing -> protected',
    ]);
    const seen = stateEvents(pair, 'secondary');
    expect(seen.at(-1)).toBe('unprotected -> failed-over');
    for (const [i, change] of seen.entries()) {
      const from = i === 0 ? 'unprotected' : seen[i - 1]!.split(' -> ')[1];
      expect(change.split(' -> ')[0]).toBe(from);
    }
    for (const event of [...pair.primaryOut.events, ...pair.secondaryOut.events]) {
      if (event.kind === 'state') expect(event.fields?.['reason']).not.toBe('');
    }
  });

  // Guards primary.ts onPeerDown: `#unprotect`, and that output is not compared (nor held) from then on.
  it('a lost peer is unprotected, says why, and service goes on', () => {
    const pair = protectedPair();
    const c = opened(pair);
    pair.primary.onPeerDown('silent for 1 s', pair.nowUs);
    pair.isLinkOpen = false;
    const { state, reason } = pair.primary.status(pair.nowUs);
    expect(state).toBe('unprotected');
    expect(reason).toContain('silent for 1 s');
    expect(payloads(c.send('pvm', 0, 'alone'))).toEqual(['alone']);
  });

  // Guards primary.ts onPeerDown: `hold`, the other choice of an operator.
  it('with the peer lost and output held the state says so, and nothing goes out', () => {
    const pair = protectedPair();
    const c = opened(pair);
    pair.primary.onPeerDown('silent', pair.nowUs, true);
    pair.isLinkOpen = false;
    expect(c.send('pvm', 0, 'held')).toEqual([]);
    expect(pair.pass(60_000_000)).toEqual([]);
    const { state, reason } = pair.primary.status(pair.nowUs);
    expect(state).toBe('protected');
    expect(reason).toContain('peer lost, output is held');
    pair.primary.onPeerDown('the arbiter says: serve', pair.nowUs);
    pair.primary.flush(pair.nowUs);
    expect(pair.primary.state).toBe('unprotected');
    expect(payloads(pair.takeNet())).toEqual(['held']);
  });

  // Guards primary.ts #onPeerCommitted and secondary.ts #commitCheckpoint: protected from the commit on, not earlier.
  it('a joined peer is not protection: only a committed state is', () => {
    const pair = new EnginePair().join();
    expect([pair.primary.state, pair.secondary.state]).toEqual(['syncing', 'syncing']);
    expect(pair.secondary.status(pair.nowUs).failoverReady).toBe(false);
    pair.begin();
    expect([pair.primary.state, pair.secondary.state]).toEqual(['checkpointing', 'checkpointing']);
    pair.commit();
    expect([pair.primary.state, pair.secondary.state]).toEqual(['protected', 'protected']);
    expect(pair.secondary.status(pair.nowUs).failoverReady).toBe(true);
  });

  // Guards primary.ts #onRequestsIgnored: the message to the secondary.
  it('a primary that waits no longer for its VM layer makes the SVM no replica', () => {
    const pair = protectedPair();
    const c = opened(pair);
    c.send('pvm', 0, 'data');
    expect(payloads(pair.pass(TIMEOUT_US + 11_000_000))).toEqual(['data']);
    expect([pair.primary.state, pair.secondary.state]).toEqual(['syncing', 'syncing']);
    expect(pair.secondary.status(pair.nowUs).failoverReady).toBe(false);
    pair.killPrimary();
    expect(pair.secondary.failover(false, pair.nowUs)).toMatchObject({ ok: false });
  });

  // Guards secondary.ts #forgetProtection and #nextEpoch: both nodes count alike, whatever the VM layer has told the secondary alone.
  it.each(['reset', 'abort'] as const)(
    'after a %s of the primary the next commit counts for both, told to both or not',
    (end) => {
      for (const isTold of [false, true]) {
        const pair = protectedPair();
        pair.guest('svm', udp(4, 'x'));
        if (end === 'abort') pair.begin();
        else expect(pair.secondary.checkpointCommit(pair.nowUs)).toEqual({ ok: true });
        if (end === 'abort') pair.primary.checkpointAbort('the copy failed', pair.nowUs);
        else pair.primary.reset('failed after the copy', pair.nowUs);
        pair.settle();
        if (isTold) expect(pair.secondary.checkpointCommit(pair.nowUs)).toEqual({ ok: true });
        const before = pair.secondary.status(pair.nowUs).checkpoints.committed;
        pair.checkpoint();
        expect([pair.primary.state, pair.secondary.state]).toEqual(['protected', 'protected']);
        expect(pair.secondary.epoch).toBe(pair.primary.epoch);
        const { committed } = pair.secondary.status(pair.nowUs).checkpoints;
        expect(committed - before).toBe(isTold ? 0 : 1);
      }
    },
  );

  // Guards secondary.ts #forgetProtection: a new sync makes the old state worthless.
  it('a primary that comes back anew makes the SVM no replica until the next commit', () => {
    const pair = protectedPair();
    pair.secondary.onPeerDown('silent', pair.nowUs);
    pair.secondary.onPeerUp(0, pair.nowUs);
    expect(pair.secondary.status(pair.nowUs)).toMatchObject({
      state: 'syncing',
      failoverReady: false,
    });
  });
});
