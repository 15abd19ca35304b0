import { describe, expect, it } from 'vitest';
import {
  arpFrame,
  CLIENT_IP,
  fragmentFrame,
  frameBytes,
  GUEST_IP,
  GUEST_IP6,
  icmpEcho,
  neighbourFrame,
  rawFrame,
  rawIpFrame,
  type TestFrame,
  tcpFrame,
  udpFrame,
} from '../../test/support/frame-builder.ts';
import { infoOf, payloadOf } from '../../test/support/recording-output.ts';
import {
  CLIENT_ISN,
  fromClient,
  fromSvm,
  PRIMARY_ISN,
  primarySeq,
  SECONDARY_ISN,
  SECONDARY_TSVAL,
  SecondaryWorld,
  secondarySeq,
} from '../../test/support/secondary-world.ts';
import {
  LINK_FRAME_CLIENT,
  LINK_FRAME_PRIMARY_SYN,
  LINK_FRAME_SECONDARY,
} from '../env/messages.ts';
import { isTransportChecksumRight } from '../wire/checksum.ts';
import { TCP_ACK, TCP_RST, TCP_SYN } from '../wire/tcp.ts';

function numbers(frame: TestFrame): { seq: number; ack: number } {
  const info = infoOf(frame);
  expect(isTransportChecksumRight(info)).toBe(true);
  return { seq: info.seq, ack: info.ack };
}

describe('SecondaryEngine, states', () => {
  it('goes unprotected, syncing, checkpointing, protected, and answers each edge', () => {
    const w = new SecondaryWorld();
    expect(w.engine.state).toBe('unprotected');
    w.engine.onPeerUp(7, w.nowUs);
    expect([w.engine.state, w.engine.epoch]).toEqual(['syncing', 7]);
    w.begin(8);
    expect([w.engine.state, w.engine.epoch]).toEqual(['checkpointing', 7]);
    w.commit(8);
    expect([w.engine.state, w.engine.epoch]).toEqual(['protected', 8]);
    expect(w.out.messages).toEqual([
      { type: 'checkpoint-began', epoch: 8 },
      { type: 'checkpoint-committed', epoch: 8 },
    ]);
    expect(w.engine.status(w.nowUs).checkpoints.committed).toBe(1);
  });

  it('takes begin and commit of the VM layer and of the primary as the same edge, in either order', () => {
    const local = new SecondaryWorld().protect();
    expect(local.engine.checkpointBegin(local.nowUs)).toEqual({ ok: true });
    expect(local.engine.checkpointCommit(local.nowUs)).toEqual({ ok: true });
    expect(local.engine.epoch).toBe(2);
    local.begin(2);
    local.commit(2);
    expect([local.engine.state, local.engine.epoch]).toEqual(['protected', 2]);
    expect(local.engine.status(local.nowUs).checkpoints.committed).toBe(2);
    expect(local.out.takeMessages().map((m) => m.type)).toEqual([
      'checkpoint-began',
      'checkpoint-committed',
    ]);

    const remote = new SecondaryWorld().protect();
    remote.begin(2);
    expect(remote.engine.checkpointBegin(remote.nowUs)).toEqual({ ok: true });
    remote.commit(2);
    expect([remote.engine.state, remote.engine.epoch]).toEqual(['protected', 2]);
    expect(remote.engine.status(remote.nowUs).checkpoints.committed).toBe(2);
    // The last word of the VM layer, or the only one of one that has no begin.
    expect(remote.engine.checkpointCommit(remote.nowUs)).toEqual({ ok: true });
    expect([remote.engine.state, remote.engine.epoch]).toEqual(['protected', 2]);
    remote.svm(fromSvm(0, 'x'));
    expect(remote.engine.checkpointCommit(remote.nowUs)).toEqual({ ok: true });
    expect([remote.engine.state, remote.engine.epoch]).toEqual(['protected', 3]);
  });

  it('counts each word of a VM layer whose words no primary repeats', () => {
    const w = new SecondaryWorld();
    w.engine.onPeerUp(0, w.nowUs);
    for (const epoch of [1, 2, 3]) {
      expect(w.engine.checkpointCommit(w.nowUs)).toEqual({ ok: true });
      expect([w.engine.state, w.engine.epoch]).toEqual(['protected', epoch]);
    }
  });

  it('takes a commit without begin as both edges', () => {
    const w = new SecondaryWorld().protect();
    w.commit(2);
    expect([w.engine.state, w.engine.epoch]).toEqual(['protected', 2]);
  });

  it('syncs anew after an abort of the primary, and may not fail over meanwhile', () => {
    const w = new SecondaryWorld().protect();
    w.begin(2);
    w.engine.onPeerMessage(
      { type: 'checkpoint-abort', epoch: 2, reason: 'migration failed' },
      w.nowUs,
    );
    // The primary does not use that number again.
    expect([w.engine.state, w.engine.epoch]).toEqual(['syncing', 2]);
    expect(w.engine.status(w.nowUs).failoverReady).toBe(false);
    w.begin(3);
    w.commit(3);
    expect(w.engine.status(w.nowUs).failoverReady).toBe(true);
  });

  it('commits what the VM layer has told it already, when the abort of the checkpoint before comes in between', () => {
    const w = new SecondaryWorld().protect();
    w.begin(2);
    w.commit(2);
    w.svm(fromSvm(0, 'x'));
    // The primary has given up epoch 2, whose answer was late; its abort is on the way while the VM layer makes the next.
    expect(w.engine.checkpointCommit(w.nowUs)).toEqual({ ok: true });
    expect(w.engine.epoch).toBe(3);
    const abort = { type: 'checkpoint-abort', epoch: 2, reason: 'no answer' } as const;
    w.engine.onPeerMessage(abort, w.nowUs);
    expect([w.engine.state, w.engine.epoch]).toEqual(['syncing', 2]);
    expect(w.engine.status(w.nowUs).failoverReady).toBe(false);
    w.out.takeMessages();
    w.begin(3);
    w.commit(3);
    expect(w.out.takeMessages()).toEqual([
      { type: 'checkpoint-began', epoch: 3 },
      { type: 'checkpoint-committed', epoch: 3 },
    ]);
    expect([w.engine.state, w.engine.epoch]).toEqual(['protected', 3]);
    expect(w.engine.status(w.nowUs).failoverReady).toBe(true);
  });

  it('commits what the primary begins after the VM layer has aborted one that the primary had not begun', () => {
    const w = new SecondaryWorld().protect();
    expect(w.engine.checkpointBegin(w.nowUs)).toEqual({ ok: true });
    expect(w.engine.checkpointAbort('the copy failed', w.nowUs)).toEqual({ ok: true });
    w.begin(2);
    w.commit(2);
    expect(w.out.takeMessages().at(-1)).toEqual({ type: 'checkpoint-committed', epoch: 2 });
    expect([w.engine.state, w.engine.epoch]).toEqual(['protected', 2]);
  });

  it('takes the number of the primary, however many commits the VM layer has told it alone', () => {
    const w = new SecondaryWorld().protect();
    for (let i = 0; i < 3; i++) expect(w.engine.checkpointCommit(w.nowUs)).toEqual({ ok: true });
    expect(w.engine.epoch).toBeGreaterThan(2);
    w.begin(2);
    w.commit(2);
    expect(w.out.takeMessages().at(-1)).toEqual({ type: 'checkpoint-committed', epoch: 2 });
    expect([w.engine.state, w.engine.epoch]).toEqual(['protected', 2]);
  });

  it('may still fail over when the VM layer here aborts because the primary died', () => {
    const w = new SecondaryWorld().protect();
    w.begin(2);
    expect(w.engine.checkpointAbort('migration failed', w.nowUs)).toEqual({ ok: true });
    w.engine.onPeerDown('silent', w.nowUs);
    expect(w.engine.failover(false, w.nowUs)).toEqual({ ok: true });
  });

  it('stays ready while the primary is merely down, and no longer once another joins', () => {
    const w = new SecondaryWorld().protect();
    w.engine.onPeerDown('silent', w.nowUs);
    expect(w.engine.state).toBe('unprotected');
    expect(w.engine.status(w.nowUs).failoverReady).toBe(true);
    w.engine.onPeerUp(0, w.nowUs);
    expect(w.engine.status(w.nowUs).failoverReady).toBe(false);
    expect(w.engine.epoch).toBe(1);
  });

  it('refuses a failover while the primary is there, or without a committed state, unless forced', () => {
    const w = new SecondaryWorld();
    expect(w.engine.failover(false, w.nowUs)).toMatchObject({ ok: false });
    w.protect();
    expect(w.engine.failover(false, w.nowUs)).toMatchObject({ ok: false });
    expect(w.engine.state).toBe('protected');
    expect(w.engine.failover(true, w.nowUs)).toEqual({ ok: true });
    expect(w.engine.state).toBe('failed-over');
  });

  it('gives up its readiness at a reset of either node, but not after the failover', () => {
    const w = new SecondaryWorld().protect();
    w.engine.onPeerMessage({ type: 'reset', reason: 'operator' }, w.nowUs);
    expect(w.engine.state).toBe('unprotected');
    expect(w.engine.status(w.nowUs).failoverReady).toBe(false);
    w.begin(2);
    w.commit(2);
    expect(w.engine.reset('operator', w.nowUs)).toEqual({ ok: true });
    expect(w.out.messages.at(-1)).toEqual({ type: 'reset', reason: 'operator' });
    w.begin(3);
    w.commit(3);
    w.failover();
    expect(w.engine.reset('operator', w.nowUs)).toMatchObject({ ok: false });
    expect(w.engine.state).toBe('failed-over');
  });

  it('heeds nothing of a primary that comes back after the failover', () => {
    const w = new SecondaryWorld().protect();
    w.failover();
    w.engine.onPeerUp(9, w.nowUs);
    w.begin(10);
    expect(w.client(fromClient())).toHaveLength(0);
    expect([w.engine.state, w.dropped('peer-after-failover')]).toEqual(['failed-over', 2]);
  });
});

describe('SecondaryEngine, silence (G3)', () => {
  const output = [
    fromSvm(0, 'data'),
    udpFrame({ payload: 'x' }),
    icmpEcho({ isReply: true }),
    arpFrame(),
    arpFrame({ isReply: true }),
    neighbourFrame(),
    neighbourFrame({ isAdvertisement: true }),
    rawFrame(new Uint8Array(60)),
    rawFrame(Uint8Array.of(1, 2, 3)),
  ];

  function sendAll(w: SecondaryWorld): void {
    for (const frame of output) w.svm(frame);
  }

  // Guards the branch on 'failed-over' in SecondaryEngine.onGuestFrame, and the assertion in #sendToNet.
  it('sends nothing of the SVM to the network in any state before the failover', () => {
    const w = new SecondaryWorld();
    sendAll(w);
    w.engine.onPeerUp(0, w.nowUs);
    sendAll(w);
    w.begin(1);
    sendAll(w);
    w.commit(1);
    sendAll(w);
    w.begin(2);
    sendAll(w);
    w.engine.onPeerMessage({ type: 'checkpoint-abort', epoch: 2, reason: 'x' }, w.nowUs);
    sendAll(w);
    w.engine.onPeerDown('x', w.nowUs);
    sendAll(w);
    w.pass(10_000_000);
    expect(w.out.net).toHaveLength(0);
    expect(w.engine.status(w.nowUs).released).toBe(0);
  });

  // Guards the first lines of SecondaryEngine.onNetFrame.
  it('gives nothing of the network to the SVM before the failover', () => {
    const w = new SecondaryWorld().protect();
    expect(w.net(fromClient())).toHaveLength(0);
    expect(w.dropped('net-before-failover')).toBe(1);
    expect(w.out.peerFrames).toHaveLength(0);
  });

  it('sends nothing to the primary that is no replica output: ARP, discovery, groups, an SVM without state', () => {
    const w = new SecondaryWorld();
    w.engine.onPeerUp(0, w.nowUs);
    expect(w.svm(fromSvm(0, 'x'))).toHaveLength(0);
    expect(w.dropped('guest-not-synced')).toBe(1);
    w.begin();
    w.commit();
    const igmp = rawIpFrame(2, { payload: new Uint8Array(8) });
    const mld = rawIpFrame(58, {
      src: GUEST_IP6,
      dst: 'ff02::16',
      payload: Uint8Array.of(143, 0, 0, 0, 0, 0, 0, 0),
    });
    const chatter = [
      arpFrame(),
      neighbourFrame(),
      neighbourFrame({ isAdvertisement: true }),
      igmp,
      mld,
    ];
    for (const frame of chatter) expect(w.svm(frame)).toHaveLength(0);
    expect(w.dropped('guest-link-control')).toBe(chatter.length);
  });
});

describe('SecondaryEngine, translation', () => {
  it('sends the SYN-ACK of the SVM as it is, everything after it in the numbers of the PVM', () => {
    const w = new SecondaryWorld().protect();
    w.client(fromClient({ seq: CLIENT_ISN, flags: TCP_SYN }));
    w.primarySyn(tcpFrame({ seq: PRIMARY_ISN, ack: CLIENT_ISN + 1, flags: TCP_SYN | TCP_ACK }));
    const synAck = { seq: SECONDARY_ISN, ack: CLIENT_ISN + 1, flags: TCP_SYN | TCP_ACK };
    const [sent] = w.svm(tcpFrame(synAck));
    expect(frameBytes(sent!)).toEqual(frameBytes(tcpFrame(synAck)));
    expect([sent!.kind, sent!.epoch]).toEqual([LINK_FRAME_SECONDARY, 1]);
    const [ack] = w.client(fromClient({ ack: primarySeq(0) }));
    expect(numbers(ack!)).toEqual({ seq: CLIENT_ISN + 1, ack: secondarySeq(0) });
    // 300 bytes on, the PVM's numbers have wrapped.
    const [data] = w.svm(fromSvm(300, 'data'));
    expect(numbers(data!)).toEqual({ seq: primarySeq(300), ack: CLIENT_ISN + 1 });
    expect(w.counter('adjusted')).toBe(2);
  });

  it('translates all edges of SACK blocks to the SVM', () => {
    const w = new SecondaryWorld().protect().open();
    const sack: [number, number][] = [
      [primarySeq(100), primarySeq(200)],
      [primarySeq(250), primarySeq(400)],
    ];
    const [frame] = w.client(fromClient({ ack: primarySeq(0), options: { sack } }));
    const expected = fromClient({
      ack: secondarySeq(0),
      options: {
        sack: [
          [secondarySeq(100), secondarySeq(200)],
          [secondarySeq(250), secondarySeq(400)],
        ],
      },
    });
    expect(frameBytes(frame!)).toEqual(frameBytes(expected));
  });

  it('learns from the first ACK of the client when the copy of the SYN-ACK was missed', () => {
    const w = new SecondaryWorld().protect();
    w.client(fromClient({ seq: CLIENT_ISN, flags: TCP_SYN }));
    w.svm(tcpFrame({ seq: SECONDARY_ISN, ack: CLIENT_ISN + 1, flags: TCP_SYN | TCP_ACK }));
    const [ack] = w.client(fromClient({ ack: primarySeq(0) }));
    expect(numbers(ack!).ack).toBe(secondarySeq(0));
    expect(numbers(w.svm(fromSvm(0, 'a'))[0]!).seq).toBe(primarySeq(0));
  });

  it('learns the timestamps too from the first ACK of the client, whichever clock is ahead', () => {
    for (const primaryTsval of [SECONDARY_TSVAL - 7_000, SECONDARY_TSVAL + 7_000]) {
      const w = new SecondaryWorld().protect();
      const options = (tsval: number, tsecr: number) => ({ timestamps: { tsval, tsecr } });
      w.client(fromClient({ seq: CLIENT_ISN, flags: TCP_SYN, options: options(100, 0) }));
      const synAck = { seq: SECONDARY_ISN, ack: CLIENT_ISN + 1, flags: TCP_SYN | TCP_ACK };
      w.svm(tcpFrame({ ...synAck, options: options(SECONDARY_TSVAL, 100) }));
      const ack = (tsecr: number) =>
        fromClient({ ack: primarySeq(0), options: options(101, tsecr) });
      const [sent] = w.client(ack(primaryTsval));
      // Linux (tcp_check_req) drops it otherwise, and sends its SYN-ACK again until it gives up.
      const expected = fromClient({ ack: secondarySeq(0), options: options(101, SECONDARY_TSVAL) });
      expect(frameBytes(sent!)).toEqual(frameBytes(expected));
      const [data] = w.svm(fromSvm(0, 'a', { options: options(SECONDARY_TSVAL + 50, 101) }));
      const translated = { seq: primarySeq(0), options: options(primaryTsval + 50, 101) };
      expect(frameBytes(data!)).toEqual(frameBytes(fromSvm(0, 'a', translated)));
    }
  });

  it('does not let a forged ACK replace what the primary said', () => {
    const w = new SecondaryWorld().protect();
    w.client(fromClient({ seq: CLIENT_ISN, flags: TCP_SYN }));
    w.primarySyn(tcpFrame({ seq: PRIMARY_ISN, ack: CLIENT_ISN + 1, flags: TCP_SYN | TCP_ACK }));
    w.svm(tcpFrame({ seq: SECONDARY_ISN, ack: CLIENT_ISN + 1, flags: TCP_SYN | TCP_ACK }));
    w.client(fromClient({ ack: 123_456 }));
    expect(numbers(w.svm(fromSvm(0, 'a'))[0]!).seq).toBe(primarySeq(0));
  });

  it('translates connections that the guest opens', () => {
    const w = new SecondaryWorld().protect();
    const syn = { srcPort: 50_000, dstPort: 443, flags: TCP_SYN };
    w.svm(tcpFrame({ ...syn, seq: SECONDARY_ISN }));
    w.primarySyn(tcpFrame({ ...syn, seq: PRIMARY_ISN }));
    const answer = { srcPort: 443, dstPort: 50_000, seq: CLIENT_ISN, flags: TCP_SYN | TCP_ACK };
    const [synAck] = w.client(fromClient({ ...answer, ack: primarySeq(0) }));
    expect(numbers(synAck!)).toEqual({ seq: CLIENT_ISN, ack: secondarySeq(0) });
    const [data] = w.svm(fromSvm(0, 'GET', { srcPort: 50_000, dstPort: 443 }));
    expect(numbers(data!).seq).toBe(primarySeq(0));
  });

  it('learns the ISN of a connection that the guest opens from the SYN-ACK alone', () => {
    const w = new SecondaryWorld().protect();
    const ports = { srcPort: 50_000, dstPort: 443 };
    w.svm(tcpFrame({ ...ports, flags: TCP_SYN, seq: SECONDARY_ISN }));
    const answer = { srcPort: 443, dstPort: 50_000, seq: CLIENT_ISN, flags: TCP_SYN | TCP_ACK };
    const [synAck] = w.client(fromClient({ ...answer, ack: primarySeq(0) }));
    expect(numbers(synAck!).ack).toBe(secondarySeq(0));
  });

  it('learns anew when a connection with the same ports follows', () => {
    const w = new SecondaryWorld().protect().open();
    const synAck = { ack: 9_001, flags: TCP_SYN | TCP_ACK };
    w.client(fromClient({ seq: 9_000, flags: TCP_SYN }));
    w.primarySyn(tcpFrame({ ...synAck, seq: 1_000 }));
    w.svm(tcpFrame({ ...synAck, seq: 50 }));
    expect(numbers(w.client(fromClient({ seq: 9_001, ack: 1_001 }))[0]!).ack).toBe(51);
    const [data] = w.svm(tcpFrame({ seq: 51, ack: 9_001, payload: 'z' }));
    expect(numbers(data!).seq).toBe(1_001);
  });

  it('drops what acknowledges a SYN-ACK that the SVM has not sent yet', () => {
    const w = new SecondaryWorld().protect();
    w.client(fromClient({ seq: CLIENT_ISN, flags: TCP_SYN }));
    w.primarySyn(tcpFrame({ seq: PRIMARY_ISN, ack: CLIENT_ISN + 1, flags: TCP_SYN | TCP_ACK }));
    expect(w.client(fromClient({ ack: primarySeq(0) }))).toHaveLength(0);
    expect(w.dropped('client-before-guest-syn')).toBe(1);
  });

  it('passes a connection older than the last commit with delta 0', () => {
    const w = new SecondaryWorld().protect();
    const [ack] = w.client(fromClient({ ack: 42 }));
    expect(numbers(ack!).ack).toBe(42);
    expect(numbers(w.svm(tcpFrame({ seq: 42, payload: 'x' }))[0]!).seq).toBe(42);
  });

  it('is not misled about such a connection by a forged SYN', () => {
    const w = new SecondaryWorld().protect();
    w.client(fromClient({ seq: 999, flags: TCP_SYN }));
    expect(numbers(w.client(fromClient({ ack: 42 }))[0]!).ack).toBe(42);
    expect(numbers(w.svm(tcpFrame({ seq: 42, payload: 'x' }))[0]!).seq).toBe(42);
  });

  it('counts a connection whose ISN cannot be learned, and passes it', () => {
    const w = new SecondaryWorld().protect();
    w.svm(tcpFrame({ seq: SECONDARY_ISN, flags: TCP_SYN }));
    expect(numbers(w.svm(fromSvm(0, 'x'))[0]!).seq).toBe(secondarySeq(0));
    w.svm(fromSvm(1, 'x'));
    expect(w.counter('isnUnknown')).toBe(1);
  });

  it('translates a RST, but not the zero of one that answers a segment without ACK', () => {
    const w = new SecondaryWorld().protect().open();
    const [bare] = w.svm(tcpFrame({ seq: 0, ack: CLIENT_ISN + 9, flags: TCP_RST | TCP_ACK }));
    expect(numbers(bare!).seq).toBe(0);
    const [reset] = w.svm(tcpFrame({ seq: secondarySeq(0), flags: TCP_RST }));
    expect(numbers(reset!).seq).toBe(primarySeq(0));
  });

  it('translates the first fragment of a segment and passes the others', () => {
    const w = new SecondaryWorld().protect().open();
    const fragments = fragmentFrame(fromSvm(0, 'f'.repeat(100)), 64);
    const sent = fragments.map((fragment) => w.svm(fragment)[0]!);
    const whole = tcpFrame({ seq: primarySeq(0), ack: CLIENT_ISN + 1, payload: 'f'.repeat(100) });
    expect(sent.map(frameBytes)).toEqual(fragmentFrame(whole, 64).map(frameBytes));
  });

  it('translates what a router quotes of the guest', () => {
    const w = new SecondaryWorld().protect().open();
    const error = (seq: number): TestFrame => {
      const segment = tcpFrame({ seq, ack: CLIENT_ISN + 1, payload: 'big' });
      const quote = segment.buffer.bytes.slice(segment.offset + 14, segment.offset + 14 + 28);
      const payload = Uint8Array.from([3, 4, 0, 0, 0, 0, 5, 100, ...quote]);
      return rawIpFrame(1, { src: '10.0.0.1', dst: GUEST_IP, payload });
    };
    const [frame] = w.client(error(primarySeq(0)));
    expect(frameBytes(frame!)).toEqual(frameBytes(error(secondarySeq(0))));
    expect(w.counter('quotesAdjusted')).toBe(1);
  });

  it('passes other protocols and malformed client frames as they are', () => {
    const w = new SecondaryWorld().protect();
    const frames = [
      udpFrame({ src: CLIENT_IP, dst: GUEST_IP, payload: 'q' }),
      icmpEcho({ src: CLIENT_IP, dst: GUEST_IP, payload: 'ping' }),
      rawFrame(Uint8Array.of(...new Array(12).fill(2), 8, 0, 0x45, 0)),
    ];
    for (const frame of frames) {
      const before = frameBytes(frame);
      expect(w.client(frame).map(frameBytes)).toEqual([before]);
    }
    expect(w.counter('client-ipv4-truncated')).toBe(1);
  });

  it('drops client frames while there is no state, and copies of SYNs of another epoch', () => {
    const w = new SecondaryWorld();
    w.engine.onPeerUp(0, w.nowUs);
    expect(w.client(fromClient())).toHaveLength(0);
    expect(w.dropped('client-not-protected')).toBe(1);
    w.protect();
    const syn = tcpFrame({ seq: PRIMARY_ISN, flags: TCP_SYN | TCP_ACK });
    w.peer(LINK_FRAME_PRIMARY_SYN, syn, 0);
    w.peer(LINK_FRAME_CLIENT, fromClient(), 0);
    w.peer(LINK_FRAME_SECONDARY, syn);
    expect(w.dropped('primary-syn-old-epoch')).toBe(1);
    expect(w.dropped('client-old-epoch')).toBe(1);
    expect(w.dropped('peer-unexpected-frame')).toBe(1);
  });
});

describe('SecondaryEngine, checkpoint edges', () => {
  it('counts retransmissions of the new state as new output', () => {
    const w = new SecondaryWorld().protect().open();
    w.svm(fromSvm(0, 'the SVM was ahead'));
    w.begin();
    w.commit();
    // The PVM had sent less by then: the same bytes come again, and are kept again.
    w.svm(tcpFrame({ seq: primarySeq(0), ack: CLIENT_ISN + 1, payload: 'the SVM' }));
    expect(w.engine.status(w.nowUs).held.frames).toBe(1);
  });

  it('takes up a handshake that a checkpoint has cut in two', () => {
    const w = new SecondaryWorld().protect();
    const synAck = { ack: CLIENT_ISN + 1, flags: TCP_SYN | TCP_ACK };
    w.client(fromClient({ seq: CLIENT_ISN, flags: TCP_SYN }));
    w.primarySyn(tcpFrame({ ...synAck, seq: PRIMARY_ISN }));
    w.svm(tcpFrame({ ...synAck, seq: SECONDARY_ISN }));
    w.begin();
    w.commit();
    // The SVM sends the SYN-ACK of the PVM again, then the client completes the handshake.
    expect(numbers(w.svm(tcpFrame({ ...synAck, seq: PRIMARY_ISN }))[0]!).seq).toBe(PRIMARY_ISN);
    expect(numbers(w.client(fromClient({ ack: primarySeq(0) }))[0]!).ack).toBe(primarySeq(0));
    const [data] = w.svm(tcpFrame({ seq: primarySeq(0), payload: 'x' }));
    expect(numbers(data!).seq).toBe(primarySeq(0));
  });

  it('notices by the output of the SVM that it runs from the state of the PVM', () => {
    const w = new SecondaryWorld().protect();
    const isn = 3_000_000_000;
    const synAck = { ack: CLIENT_ISN + 1, flags: TCP_SYN | TCP_ACK };
    w.primarySyn(tcpFrame({ ...synAck, seq: PRIMARY_ISN }));
    w.svm(tcpFrame({ ...synAck, seq: isn }));
    w.svm(tcpFrame({ seq: isn + 1, ack: CLIENT_ISN + 1, payload: 'old' }));
    // Copied, resumed, and the message about it not here yet.
    const [data] = w.svm(tcpFrame({ seq: primarySeq(1), ack: CLIENT_ISN + 1, payload: 'new' }));
    expect(numbers(data!).seq).toBe(primarySeq(1));
    expect(numbers(w.client(fromClient({ ack: primarySeq(4) }))[0]!).ack).toBe(primarySeq(4));
    expect([w.counter('untoldCommits'), w.engine.epoch]).toEqual([1, 1]);
    expect(w.failover().filter((f) => infoOf(f).payloadBytes > 0)).toHaveLength(0);
  });

  it('takes no RST and no retransmission for that', () => {
    const w = new SecondaryWorld().protect().open();
    w.svm(fromSvm(70_000, 'x'));
    w.svm(tcpFrame({ seq: primarySeq(0), flags: TCP_RST }));
    expect(numbers(w.svm(fromSvm(0, 'again'))[0]!).seq).toBe(primarySeq(0));
    expect(w.counter('untoldCommits')).toBe(0);
  });

  it('forgets all deltas at the commit', () => {
    const w = new SecondaryWorld().protect().open();
    w.begin();
    w.commit();
    expect(numbers(w.client(fromClient({ ack: primarySeq(9) }))[0]!).ack).toBe(primarySeq(9));
    const [data] = w.svm(tcpFrame({ seq: primarySeq(9), payload: 'x' }));
    expect([numbers(data!).seq, data!.epoch]).toEqual([primarySeq(9), 2]);
  });

  it('keeps client frames from begin on and delivers them after the commit, unadjusted', () => {
    const w = new SecondaryWorld().protect().open();
    w.begin();
    expect(w.client(fromClient({ ack: primarySeq(1), payload: 'one' }))).toHaveLength(0);
    expect(w.client(fromClient({ ack: primarySeq(2), payload: 'two' }))).toHaveLength(0);
    w.commit();
    const frames = w.takeGuest();
    expect(frames.map(payloadOf)).toEqual(['one', 'two']);
    expect(frames.map((f) => numbers(f).ack)).toEqual([primarySeq(1), primarySeq(2)]);
  });

  it('delivers them adjusted as before after an abort', () => {
    const w = new SecondaryWorld().protect().open();
    w.begin();
    w.client(fromClient({ ack: primarySeq(1), payload: 'one' }));
    w.engine.onPeerMessage({ type: 'checkpoint-abort', epoch: 2, reason: 'x' }, w.nowUs);
    const [frame] = w.takeGuest();
    expect(numbers(frame!).ack).toBe(secondarySeq(1));
  });

  it('keeps output that comes after begin and sends it in the new epoch, unadjusted', () => {
    const w = new SecondaryWorld().protect().open();
    w.begin();
    expect(w.svm(tcpFrame({ seq: primarySeq(5), payload: 'new' }))).toHaveLength(0);
    w.commit();
    const [frame] = w.takePeer();
    expect([numbers(frame!).seq, frame!.epoch]).toEqual([primarySeq(5), 2]);
  });

  it('keeps output of an epoch that the primary has begun and not committed, although the VM layer has', () => {
    const w = new SecondaryWorld().protect().open();
    w.begin(2);
    expect(w.engine.checkpointCommit(w.nowUs)).toEqual({ ok: true });
    expect(w.svm(fromSvm(0, 'early', { seq: primarySeq(0) }))).toHaveLength(0);
    w.commit(2);
    expect(w.takePeer().map(payloadOf)).toEqual(['early']);
    // Otherwise it goes its way when the primary is lost, and is retained for a failover.
    w.begin(3);
    expect(w.engine.checkpointCommit(w.nowUs)).toEqual({ ok: true });
    w.svm(fromSvm(5, ' bird', { seq: primarySeq(5) }));
    expect(w.failover().map(payloadOf)).toContain(' bird');
  });

  it('bounds what it keeps, and counts the rest', () => {
    const w = new SecondaryWorld({ keptClientBytesMax: 512 }).protect();
    w.begin();
    for (let i = 0; i < 4; i++) {
      w.client(fromClient({ payload: `${i}` }));
      w.svm(tcpFrame({ payload: `${i}` }));
    }
    expect([w.dropped('client-kept-limit'), w.dropped('guest-kept-limit')]).toEqual([2, 2]);
    w.commit();
    expect(w.takeGuest().map(payloadOf)).toEqual(['0', '1']);
  });

  it('fails over from the old state when the primary dies between begin and commit', () => {
    const w = new SecondaryWorld().protect().open();
    w.svm(fromSvm(0, 'unconfirmed'));
    w.begin();
    w.client(fromClient({ ack: primarySeq(3), payload: 'kept' }));
    w.svm(fromSvm(11, 'later'));
    const sent = w.failover().filter((f) => infoOf(f).payloadBytes > 0);
    expect(sent.map(payloadOf)).toEqual(['unconfirmed', 'later']);
    expect(sent.map((f) => numbers(f).seq)).toEqual([primarySeq(0), primarySeq(11)]);
    const [kept] = w.takeGuest();
    expect([payloadOf(kept!), numbers(kept!).ack]).toEqual(['kept', secondarySeq(3)]);
  });

  it('honours a commit without begin after the primary has died, if there was a state before', () => {
    const w = new SecondaryWorld();
    expect(w.engine.checkpointCommit(w.nowUs)).toMatchObject({ ok: false });
    w.protect().open();
    w.engine.onPeerDown('silent', w.nowUs);
    expect(w.engine.checkpointCommit(w.nowUs)).toEqual({ ok: true });
    w.failover();
    const [data] = w.serve(tcpFrame({ seq: primarySeq(4), payload: 'x' }));
    expect(numbers(data!).seq).toBe(primarySeq(4));
    expect(w.engine.checkpointCommit(w.nowUs)).toMatchObject({ ok: false });
  });

  it('heeds a commit of the VM layer also where the SVM has sent nothing, and the primary is dead unnoticed', () => {
    const w = new SecondaryWorld().protect();
    w.client(fromClient({ seq: CLIENT_ISN, flags: TCP_SYN }));
    w.primarySyn(tcpFrame({ flags: TCP_SYN | TCP_ACK, seq: PRIMARY_ISN, ack: CLIENT_ISN + 1 }));
    expect(w.engine.checkpointCommit(w.nowUs)).toEqual({ ok: true });
    w.failover();
    expect(w.net(fromClient({ ack: primarySeq(0), payload: 'x' })).map(payloadOf)).toEqual(['x']);
  });

  it('honours a commit of the VM layer after the primary has died', () => {
    const w = new SecondaryWorld().protect().open();
    w.svm(fromSvm(0, 'covered'));
    w.begin();
    w.engine.onPeerDown('silent', w.nowUs);
    expect(w.engine.checkpointCommit(w.nowUs)).toEqual({ ok: true });
    expect(w.engine.state).toBe('unprotected');
    w.failover();
    expect(numbers(w.serve(tcpFrame({ seq: primarySeq(4), payload: 'x' }))[0]!).seq).toBe(
      primarySeq(4),
    );
  });
});
