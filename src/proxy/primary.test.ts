import { describe, expect, it } from 'vitest';
import {
  arpFrame,
  CLIENT_IP,
  CLIENT_MAC,
  fragmentFrame,
  GUEST_IP,
  GUEST_MAC,
  icmpEcho,
  type TcpFrameFields,
  type TestFrame,
  tcpFrame,
  udpFrame,
} from '../../test/support/frame-builder.ts';
import { infoOf, payloadOf, RecordingOutput } from '../../test/support/recording-output.ts';
import {
  LINK_FRAME_CLIENT,
  LINK_FRAME_PRIMARY_SYN,
  LINK_FRAME_SECONDARY,
} from '../env/messages.ts';
import { isTransportChecksumRight } from '../wire/checksum.ts';
import { TCP_ACK, TCP_FIN, TCP_RST, TCP_SYN } from '../wire/tcp.ts';
import { PRIMARY_DEFAULTS, type PrimaryConfig } from './config.ts';
import { PrimaryEngine } from './primary.ts';

const CLIENT_ISN = 5_000;
const PRIMARY_ISN = 0xffff_ff00; // wraps soon
const SECONDARY_ISN = 77_000;

/** A primary engine with everything around it played by the test. */
class World {
  readonly out = new RecordingOutput();
  readonly engine: PrimaryEngine;
  nowUs = 1_000_000;

  constructor(config: Partial<PrimaryConfig> = {}) {
    this.engine = new PrimaryEngine({ ...PRIMARY_DEFAULTS, ...config }, this.out, this.nowUs);
  }

  primary(frame: TestFrame): TestFrame[] {
    this.engine.onGuestFrame(frame.buffer, frame.offset, frame.length, this.nowUs);
    return this.flush();
  }

  secondary(frame: TestFrame, epoch = this.engine.epoch): TestFrame[] {
    const { buffer, offset, length } = frame;
    this.engine.onPeerFrame(LINK_FRAME_SECONDARY, epoch, buffer, offset, length, this.nowUs);
    return this.flush();
  }

  client(frame: TestFrame): TestFrame[] {
    this.engine.onNetFrame(frame.buffer, frame.offset, frame.length, this.nowUs);
    return this.flush();
  }

  flush(): TestFrame[] {
    this.engine.flush(this.nowUs);
    return this.out.takeNet();
  }

  /** Lets time pass as a runner does: ticks when they are due. */
  pass(us: number): TestFrame[] {
    const endUs = this.nowUs + us;
    for (;;) {
      const nextUs = this.engine.nextDeadlineUs();
      if (nextUs > endUs) break;
      this.nowUs = Math.max(this.nowUs, nextUs);
      this.engine.onTick(this.nowUs);
    }
    this.nowUs = endUs;
    return this.out.takeNet();
  }

  commit(): TestFrame[] {
    expect(this.engine.checkpointBegin(this.nowUs)).toEqual({ ok: true });
    const epoch = this.engine.epoch + 1;
    this.engine.onPeerMessage({ type: 'checkpoint-began', epoch }, this.nowUs);
    expect(this.engine.checkpointCommit(this.nowUs)).toEqual({ ok: true });
    this.engine.onPeerMessage({ type: 'checkpoint-committed', epoch }, this.nowUs);
    return this.flush();
  }

  protect(): this {
    this.engine.onPeerUp(0, this.nowUs);
    this.flush();
    this.commit();
    this.pass(200_000);
    expect(this.engine.state).toBe('protected');
    return this;
  }

  /** A connection that a client has opened; returns what went to the client. */
  open(options: TcpFrameFields['options'] = { mss: 1_460, windowScale: 2 }): TestFrame[] {
    this.client(fromClient({ seq: CLIENT_ISN, flags: TCP_SYN, options }));
    const synAck = { flags: TCP_SYN | TCP_ACK, ack: CLIENT_ISN + 1, options };
    const first = this.primary(tcpFrame({ ...synAck, seq: PRIMARY_ISN }));
    expect(first).toHaveLength(0);
    const frames = this.secondary(tcpFrame({ ...synAck, seq: SECONDARY_ISN }));
    this.client(fromClient({ seq: CLIENT_ISN + 1, ack: PRIMARY_ISN + 1 }));
    return frames;
  }
}

function fromClient(fields: TcpFrameFields): TestFrame {
  return tcpFrame({
    srcMac: CLIENT_MAC,
    dstMac: GUEST_MAC,
    src: CLIENT_IP,
    dst: GUEST_IP,
    srcPort: 40_312,
    dstPort: 80,
    flags: TCP_ACK,
    ...fields,
  });
}

/** A segment of a guest in the PVM's numbers; `at` counts from the first byte of the stream. */
function data(at: number, payload: string, fields: TcpFrameFields = {}): TestFrame {
  return tcpFrame({
    seq: (PRIMARY_ISN + 1 + at) >>> 0,
    ack: CLIENT_ISN + 1,
    payload,
    ...fields,
  });
}

describe('PrimaryEngine, TCP', () => {
  it('releases the SYN-ACK when the SVM has sent its own, with another ISN', () => {
    const w = new World().protect();
    const frames = w.open();
    expect(frames).toHaveLength(1);
    expect(infoOf(frames[0]!).seq).toBe(PRIMARY_ISN);
    expect(w.out.peerFrames.map((f) => f.kind)).toEqual([
      LINK_FRAME_CLIENT,
      LINK_FRAME_PRIMARY_SYN,
      LINK_FRAME_CLIENT,
    ]);
  });

  it('holds a SYN-ACK while the SVM has answered another SYN of the client', () => {
    const w = new World().protect();
    const synAck = { flags: TCP_SYN | TCP_ACK, options: { mss: 1_460 } };
    w.secondary(tcpFrame({ ...synAck, seq: SECONDARY_ISN, ack: 77 }));
    const own = tcpFrame({ ...synAck, seq: PRIMARY_ISN, ack: CLIENT_ISN + 1 });
    expect(w.primary(own)).toHaveLength(0);
    const next = tcpFrame({ ...synAck, seq: SECONDARY_ISN + 9, ack: CLIENT_ISN + 1 });
    const frames = w.secondary(next);
    expect(frames.map((frame) => infoOf(frame).seq)).toEqual([PRIMARY_ISN]);
  });

  // Guards #mayGo in primary-tcp.ts: `segmentEnd <= compared` (G1).
  it('holds bytes until the SVM has produced them, however it segments them', () => {
    const w = new World().protect();
    w.open();
    expect(w.primary(data(0, 'hello world'))).toHaveLength(0);
    expect(w.secondary(data(0, 'hello '))).toHaveLength(0);
    const frames = w.secondary(data(6, 'world'));
    expect(frames.map(payloadOf)).toEqual(['hello world']);
  });

  it('releases at once what the SVM produced first', () => {
    const w = new World().protect();
    w.open();
    w.secondary(data(0, 'abcdef'));
    expect(w.primary(data(0, 'abc')).map(payloadOf)).toEqual(['abc']);
    expect(w.primary(data(3, 'def')).map(payloadOf)).toEqual(['def']);
    expect(w.engine.status(w.nowUs).held.frames).toBe(0);
  });

  it('compares across the wrap of sequence numbers', () => {
    const w = new World().protect();
    w.open();
    const chunk = 'x'.repeat(200);
    for (let at = 0; at < 1_000; at += 200) {
      w.primary(data(at, chunk));
      expect(w.secondary(data(at, chunk))).toHaveLength(1);
    }
  });

  it('asks for one checkpoint at the first differing byte, and shows it', () => {
    const w = new World().protect();
    w.open();
    w.primary(data(0, 'token=AAAA'));
    w.secondary(data(0, 'token=BBBB'));
    expect(w.out.requests.at(-1)).toMatchObject({
      cause: 'different-bytes',
      offset: 6,
      primaryExcerpt: '41414141',
      secondaryExcerpt: '42424242',
      delayUs: 0,
    });
    const asked = w.out.requests.length;
    w.secondary(data(10, 'more'));
    w.primary(data(10, 'most'));
    w.pass(500_000);
    expect(w.out.requests).toHaveLength(asked);
    expect(w.out.takeNet()).toHaveLength(0);
  });

  // Guards #onPeerCommitted in primary.ts: release at commit, not at begin (G1).
  it('releases what differed when the commit is confirmed, not before', () => {
    const w = new World().protect();
    w.open();
    w.primary(data(0, 'AAAA'));
    w.secondary(data(0, 'BBBB'));
    const epoch = w.engine.epoch + 1;
    w.engine.checkpointBegin(w.nowUs);
    expect(w.flush()).toHaveLength(0);
    w.engine.onPeerMessage({ type: 'checkpoint-began', epoch }, w.nowUs);
    w.engine.checkpointCommit(w.nowUs);
    expect(w.flush()).toHaveLength(0);
    w.engine.onPeerMessage({ type: 'checkpoint-committed', epoch }, w.nowUs);
    expect(w.flush().map(payloadOf)).toEqual(['AAAA']);
    // Both guests go on from the PVM's state.
    w.primary(data(4, 'next'));
    expect(w.secondary(data(4, 'next')).map(payloadOf)).toEqual(['next']);
  });

  it('compares in the new epoch what the PVM sends between begin and commit', () => {
    const w = new World().protect();
    w.open();
    const epoch = w.engine.epoch + 1;
    w.engine.checkpointBegin(w.nowUs);
    w.primary(data(0, 'early'));
    w.engine.onPeerMessage({ type: 'checkpoint-began', epoch }, w.nowUs);
    w.engine.checkpointCommit(w.nowUs);
    w.engine.onPeerMessage({ type: 'checkpoint-committed', epoch }, w.nowUs);
    expect(w.flush()).toHaveLength(0);
    expect(w.secondary(data(0, 'early'), epoch - 1)).toHaveLength(0);
    expect(w.secondary(data(0, 'early'), epoch).map(payloadOf)).toEqual(['early']);
  });

  it('sends retransmissions of agreed bytes at once, past what is held', () => {
    const w = new World().protect();
    w.open();
    w.primary(data(0, 'abc'));
    w.secondary(data(0, 'abc'));
    expect(w.primary(data(3, 'held'))).toHaveLength(0);
    expect(w.primary(data(0, 'abc')).map(payloadOf)).toEqual(['abc']);
  });

  it('keeps the order of segments and closes gaps', () => {
    const w = new World().protect();
    w.open();
    w.primary(data(3, 'def'));
    w.secondary(data(0, 'abcdef'));
    expect(w.primary(data(0, 'abc')).map(payloadOf)).toEqual(['def', 'abc']);
  });

  it('sends what fills a gap past the segments after the gap', () => {
    const w = new World().protect();
    w.open();
    expect(w.primary(data(3, 'defghi'))).toHaveLength(0);
    expect(w.primary(data(0, 'abc'))).toHaveLength(0);
    // The SVM's window is full: it cannot produce more before the client has "abc".
    expect(w.secondary(data(0, 'abcde')).map(payloadOf)).toEqual(['abc']);
    expect(w.secondary(data(5, 'fghi')).map(payloadOf)).toEqual(['defghi']);
    expect(w.engine.status(w.nowUs).held.frames).toBe(0);
  });

  it('takes a FIN as a position in the stream', () => {
    const w = new World().protect();
    w.open();
    w.primary(data(0, 'bye', { flags: TCP_ACK | TCP_FIN }));
    expect(w.secondary(data(0, 'bye'))).toHaveLength(0);
    expect(w.secondary(data(3, '', { flags: TCP_ACK | TCP_FIN }))).toHaveLength(1);
  });

  it('finds a FIN where the other guest goes on', () => {
    const w = new World().protect();
    w.open();
    w.primary(data(0, '', { flags: TCP_ACK | TCP_FIN }));
    w.secondary(data(0, 'not yet'));
    expect(w.out.requests.at(-1)?.cause).toBe('fin-mismatch');
  });

  it('releases a RST when the SVM has sent one, and asks when it has not', () => {
    const w = new World().protect();
    w.open();
    expect(w.primary(data(0, '', { flags: TCP_RST }))).toHaveLength(0);
    w.pass(250_000);
    expect(w.out.requests.at(-1)?.cause).toBe('reset-mismatch');
    expect(w.secondary(data(0, '', { flags: TCP_RST }))).toHaveLength(1);
  });

  // Guards `outliveReset` in onSecondary, `primaryReset = false` in #noteNumbers (G1).
  it.each([false, true])(
    'a RST that has ended nothing says nothing about the next one (checkpoint: %s)',
    (commits) => {
      const w = new World().protect();
      const syn = { flags: TCP_SYN, options: { mss: 1_460 } };
      w.primary(tcpFrame({ ...syn, seq: PRIMARY_ISN }));
      expect(w.secondary(tcpFrame({ ...syn, seq: SECONDARY_ISN }))).toHaveLength(1);
      // The client had an earlier connection: both guests reset that, and go on (RFC 9293 §3.5.1).
      const reset = tcpFrame({ seq: 1_234, flags: TCP_RST });
      w.primary(reset);
      expect(w.secondary(reset)).toHaveLength(1);
      w.client(
        fromClient({ ...syn, flags: TCP_SYN | TCP_ACK, seq: CLIENT_ISN, ack: PRIMARY_ISN + 1 }),
      );
      w.primary(data(0, ''));
      expect(w.secondary(data(0, ''))).toHaveLength(1);
      if (commits) w.commit();
      expect(w.primary(data(0, '', { flags: TCP_RST }))).toHaveLength(0);
      expect(w.secondary(data(0, '', { flags: TCP_RST }))).toHaveLength(1);
    },
  );

  // Guards `outliveReset` and `primaryReset = false` in onClient (G1).
  it.each([false, true])('nor does that of the connection before (checkpoint: %s)', (commits) => {
    const w = new World().protect();
    w.open();
    w.primary(data(0, '', { flags: TCP_RST }));
    expect(w.secondary(data(0, '', { flags: TCP_RST }))).toHaveLength(1);
    if (commits) w.commit();
    w.client(fromClient({ seq: 90_000, flags: TCP_SYN }));
    const refusal = tcpFrame({ flags: TCP_RST | TCP_ACK, seq: 0, ack: 90_001 });
    expect(w.primary(refusal)).toHaveLength(0);
    expect(w.secondary(refusal)).toHaveLength(1);
  });

  // Guards `isAhead` before `secondaryReset` in #mayGo (G1).
  it('nor does one of the next connection', () => {
    const w = new World().protect();
    w.open();
    w.client(fromClient({ seq: 90_000, flags: TCP_SYN }));
    w.secondary(tcpFrame({ flags: TCP_SYN | TCP_ACK, seq: 900, ack: 90_001 }));
    w.secondary(tcpFrame({ flags: TCP_RST, seq: 901 }));
    expect(w.primary(data(0, '', { flags: TCP_RST }))).toHaveLength(0);
  });

  // Guards `resetSinceUs` and `secondarySinceUs` in adoptCheckpoint.
  it.each([TCP_RST, TCP_ACK | TCP_FIN])(
    'what the SVM alone sent (flags %i) is settled by a checkpoint, however long',
    (flags) => {
      const w = new World().protect();
      w.open();
      w.secondary(data(0, '', { flags }));
      w.pass(250_000);
      const asked = w.out.requests.length;
      w.engine.checkpointBegin(w.nowUs);
      w.pass(1_000_000);
      w.commit();
      expect(w.primary(data(0, '', { window: 1_000 }))).toHaveLength(1);
      w.pass(1_000_000);
      expect(w.out.requests).toHaveLength(asked);
    },
  );

  // Guards SYN_ACK in Handshake.windowShift (G2).
  it('a SYN that the client repeats without options does not decide over the window scale', () => {
    const w = new World().protect();
    const syn = { seq: CLIENT_ISN, flags: TCP_SYN };
    w.client(fromClient({ ...syn, options: { windowScale: 7 } }));
    // As BSD does after a while (net.inet.tcp.rexmit_drop_options); the guests have answered the first.
    w.client(fromClient(syn));
    const synAck = { flags: TCP_SYN | TCP_ACK, ack: CLIENT_ISN + 1, options: { windowScale: 7 } };
    w.primary(tcpFrame({ ...synAck, seq: PRIMARY_ISN }));
    expect(w.secondary(tcpFrame({ ...synAck, seq: SECONDARY_ISN }))).toHaveLength(1);
    // The SVM offers nothing beyond 70,000.
    const first = CLIENT_ISN + 1;
    w.secondary(data(0, '', { ack: first + 69_872, window: 1 }));
    const [frame] = w.primary(data(0, '', { ack: first + 60_000, window: 508 }));
    const { ack, window } = infoOf(frame!);
    expect(ack - first).toBe(60_000);
    expect(window).toBe((70_000 - 60_000) >> 7);
  });

  it('asks when the window scales differ', () => {
    const w = new World().protect();
    const flags = TCP_SYN | TCP_ACK;
    w.primary(tcpFrame({ flags, seq: 1, ack: 2, options: { windowScale: 7 } }));
    w.secondary(tcpFrame({ flags, seq: 9, ack: 2, options: { windowScale: 6 } }));
    expect(w.out.requests.at(-1)?.cause).toBe('different-options');
  });

  it('lowers MSS and SACK-permitted to what both guests support', () => {
    const w = new World().protect();
    const flags = TCP_SYN | TCP_ACK;
    w.primary(tcpFrame({ flags, seq: 1, ack: 2, options: { mss: 8_960, sackPermitted: true } }));
    const frames = w.secondary(tcpFrame({ flags, seq: 9, ack: 2, options: { mss: 1_460 } }));
    expect(frames).toHaveLength(1);
    expect(isTransportChecksumRight(infoOf(frames[0]!))).toBe(true);
    const info = infoOf(frames[0]!);
    expect(info.view.getUint16(info.l4Offset + 22)).toBe(1_460);
  });

  it('picks up a connection that was open before, and does not trust what came earlier', () => {
    const w = new World().protect();
    w.secondary(data(100, 'later'));
    expect(w.primary(data(100, 'later')).map(payloadOf)).toEqual(['later']);
    expect(w.primary(data(50, 'earlier'))).toHaveLength(0);
    expect(w.out.requests.at(-1)?.cause).toBe('unverifiable');
    expect(w.commit().map(payloadOf)).toEqual(['earlier']);
  });

  it('a second connection on the same ports begins anew', () => {
    const w = new World().protect();
    w.open();
    w.primary(data(0, 'one', { flags: TCP_ACK | TCP_FIN }));
    w.secondary(data(0, 'one', { flags: TCP_ACK | TCP_FIN }));
    const flags = TCP_SYN | TCP_ACK;
    w.client(fromClient({ seq: 90_000, flags: TCP_SYN }));
    expect(w.primary(tcpFrame({ flags, seq: 400, ack: 90_001 }))).toHaveLength(0);
    expect(w.secondary(tcpFrame({ flags, seq: 900, ack: 90_001 }))).toHaveLength(1);
    w.primary(tcpFrame({ seq: 401, ack: 90_001, payload: 'two' }));
    const out = w.secondary(tcpFrame({ seq: 401, ack: 90_001, payload: 'two' }));
    expect(out.map(payloadOf)).toEqual(['two']);
  });

  // Guards `#diverge('unverifiable')` in primary-tcp.ts.
  it('what a connection had held does not go when the next one of its ports begins', () => {
    const w = new World().protect();
    w.open();
    expect(w.primary(data(0, 'unseen by the SVM'))).toHaveLength(0);
    const flags = TCP_SYN | TCP_ACK;
    w.client(fromClient({ seq: 90_000, flags: TCP_SYN }));
    // A start far from the last one, so that its numbers are "before" in the new numbering.
    const seq = (PRIMARY_ISN + 0x4000_0000) >>> 0;
    expect(w.primary(tcpFrame({ flags, seq, ack: 90_001 }))).toHaveLength(0);
    expect(w.secondary(tcpFrame({ flags, seq: 900, ack: 90_001 }))).toHaveLength(0);
    expect(w.out.requests.at(-1)?.cause).toBe('unverifiable');
    expect(w.commit().map((frame) => infoOf(frame).tcpFlags & TCP_SYN)).toEqual([0, TCP_SYN]);
  });

  // Guards `held.length > 0` in #onPrimarySyn (G1).
  it('nor does it when that connection was open before it was seen', () => {
    const w = new World().protect();
    w.secondary(data(0, ''));
    expect(w.primary(data(0, 'unseen by the SVM'))).toHaveLength(0);
    const flags = TCP_SYN | TCP_ACK;
    w.client(fromClient({ seq: 90_000, flags: TCP_SYN }));
    const seq = (PRIMARY_ISN + 0x4000_0000) >>> 0;
    expect(w.primary(tcpFrame({ flags, seq, ack: 90_001 }))).toHaveLength(0);
    expect(w.secondary(tcpFrame({ flags, seq: 900, ack: 90_001 }))).toHaveLength(0);
    expect(w.out.requests.at(-1)?.cause).toBe('unverifiable');
    expect(w.commit().map((frame) => infoOf(frame).tcpFlags & TCP_SYN)).toEqual([0, TCP_SYN]);
  });

  it('nor does its RST when the SVM resets the next one', () => {
    const w = new World().protect();
    expect(w.primary(data(0, '', { flags: TCP_RST }))).toHaveLength(0);
    const flags = TCP_SYN | TCP_ACK;
    w.client(fromClient({ seq: 90_000, flags: TCP_SYN }));
    w.primary(tcpFrame({ flags, seq: 400, ack: 90_001 }));
    w.secondary(tcpFrame({ flags, seq: 900, ack: 90_001 }));
    expect(w.secondary(tcpFrame({ flags: TCP_RST, seq: 401 }))).toHaveLength(0);
  });

  // Guards `dropAck` in #onSecondarySyn, `isAhead` in #isRetransmission and #mayGo (G2).
  it('what the SVM says of the next connection of the ports does not count for the one before', () => {
    const w = new World().protect();
    w.open();
    w.secondary(data(0, 'one'));
    expect(w.primary(data(0, 'one'))).toHaveLength(1);
    expect(w.primary(data(3, '', { ack: CLIENT_ISN + 1_001 }))).toHaveLength(0);
    const clientIsn = CLIENT_ISN + 50_000;
    const flags = TCP_SYN | TCP_ACK;
    w.client(fromClient({ seq: clientIsn, flags: TCP_SYN }));
    const synAck = tcpFrame({ flags, seq: 900, ack: clientIsn + 1 });
    expect(w.secondary(synAck)).toHaveLength(0);
    // The PVM has not come so far.
    expect(w.primary(data(0, 'one', { ack: CLIENT_ISN + 1_001 }))).toHaveLength(0);
    expect(w.primary(data(3, '', { ack: CLIENT_ISN + 1_002 }))).toHaveLength(0);
    expect(w.primary(tcpFrame({ flags, seq: 400, ack: clientIsn + 1 }))).toHaveLength(0);
    expect(w.out.requests.at(-1)?.cause).toBe('unverifiable');
    const first = PRIMARY_ISN + 1;
    expect(w.commit().map((frame) => infoOf(frame).seq)).toEqual([first, first + 3, 400]);
  });

  it('the next connection of the ports opens at once when nothing of the one before came after it', () => {
    const w = new World().protect();
    w.open();
    expect(w.primary(data(0, '', { ack: CLIENT_ISN + 1_001 }))).toHaveLength(0);
    const clientIsn = CLIENT_ISN + 50_000;
    const flags = TCP_SYN | TCP_ACK;
    w.client(fromClient({ seq: clientIsn, flags: TCP_SYN }));
    expect(w.secondary(tcpFrame({ flags, seq: 900, ack: clientIsn + 1 }))).toHaveLength(0);
    const frames = w.primary(tcpFrame({ flags, seq: 400, ack: clientIsn + 1 }));
    expect(frames.map((frame) => infoOf(frame).seq)).toEqual([400]);
    expect(w.out.requests.map(({ cause }) => cause)).toEqual(['sync']);
    expect(w.engine.status(w.nowUs).held.frames).toBe(0);
  });
});

describe('PrimaryEngine, a checkpoint that is undone', () => {
  // Guards `#isUndone` in primary.ts (G1): what went out meanwhile is not in the copy.
  it('takes no commit of it, and takes the next checkpoint', () => {
    const w = new World().protect();
    w.open();
    expect(w.engine.checkpointBegin(w.nowUs)).toEqual({ ok: true });
    w.engine.onPeerMessage({ type: 'reset', reason: 'operator' }, w.nowUs);
    expect(w.engine.state).toBe('unprotected');
    expect(w.primary(data(0, 'seen by the client'))).toHaveLength(1);
    expect(w.engine.checkpointCommit(w.nowUs)).toMatchObject({ ok: false });
    expect(w.engine.state).toBe('unprotected');
    w.commit();
    expect(w.engine.state).toBe('protected');
  });

  it('is over once the VM layer says so, though nothing is left to abort', () => {
    const w = new World().protect();
    w.engine.checkpointBegin(w.nowUs);
    w.engine.onPeerMessage({ type: 'reset', reason: 'operator' }, w.nowUs);
    expect(w.engine.checkpointAbort('copy failed', w.nowUs)).toMatchObject({ ok: false });
    expect(w.engine.checkpointCommit(w.nowUs)).toEqual({ ok: true });
  });

  it('by the VM layer itself is over: the next commit may come without a begin', () => {
    const w = new World().protect();
    w.engine.checkpointBegin(w.nowUs);
    expect(w.engine.checkpointAbort('copy failed', w.nowUs)).toEqual({ ok: true });
    expect(w.engine.checkpointCommit(w.nowUs)).toEqual({ ok: true });
  });
});

describe('PrimaryEngine, input commit (G2)', () => {
  // Guards #passGate in primary-tcp.ts.
  it('holds a pure ACK back until the SVM has acknowledged as much', () => {
    const w = new World().protect();
    w.open();
    expect(w.primary(data(0, '', { ack: CLIENT_ISN + 1_001 }))).toHaveLength(0);
    const frames = w.secondary(data(0, '', { ack: CLIENT_ISN + 1_001 }));
    expect(frames).toHaveLength(1);
    expect(infoOf(frames[0]!).ack).toBe(CLIENT_ISN + 1_001);
    expect(isTransportChecksumRight(infoOf(frames[0]!))).toBe(true);
  });

  it('an older ACK that comes late does not take the place of the one that is held', () => {
    const w = new World().protect();
    w.open();
    expect(w.primary(data(0, '', { ack: CLIENT_ISN + 1_001 }))).toHaveLength(0);
    expect(w.primary(data(0, '', { ack: CLIENT_ISN + 501 }))).toHaveLength(0);
    const frames = w.secondary(data(0, '', { ack: CLIENT_ISN + 1_001 }));
    expect(frames.map((f) => infoOf(f).ack)).toEqual([CLIENT_ISN + 1_001]);
  });

  // Guards `kept.window <= window` in primary-ack.ts (G6: the client would wait for its next probe).
  it('nor does one with a smaller window', () => {
    const w = new World().protect();
    w.open();
    const full = { ack: CLIENT_ISN + 1 + 65_535, window: 0 };
    const open = { ...full, window: 1_000 };
    w.secondary(data(0, '', full));
    expect(w.primary(data(0, '', full))).toHaveLength(1);
    expect(w.primary(data(0, '', open))).toHaveLength(0);
    w.primary(data(0, '', full));
    expect(w.secondary(data(0, '', open)).map((frame) => infoOf(frame).window)).toEqual([1_000]);
  });

  it('lowers the acknowledgement on data, and sends the rest when the SVM catches up', () => {
    const w = new World().protect();
    w.open();
    w.secondary(data(0, 'answer', { ack: CLIENT_ISN + 1 }));
    const out = w.primary(data(0, 'answer', { ack: CLIENT_ISN + 501 }));
    expect(out.map((f) => infoOf(f).ack)).toEqual([CLIENT_ISN + 1]);
    expect(isTransportChecksumRight(infoOf(out[0]!))).toBe(true);
    const later = w.secondary(data(6, '', { ack: CLIENT_ISN + 501 }));
    expect(later.map((f) => [infoOf(f).ack, infoOf(f).payloadBytes])).toEqual([
      [CLIENT_ISN + 501, 0],
    ]);
    expect(infoOf(later[0]!).seq).toBe((PRIMARY_ISN + 7) >>> 0);
  });

  it('offers no more window than both guests', () => {
    const w = new World().protect();
    w.open();
    // The shift is 2: 20,000 is more than the SYN-ACK's unscaled 65,535.
    w.secondary(data(0, 'x', { window: 20_000 }));
    const out = w.primary(data(0, 'x', { window: 60_000 }));
    expect(infoOf(out[0]!).window).toBe(20_000);
  });

  it("gives the PVM's whole window back at a commit, however long ago it was lowered", () => {
    const w = new World().protect();
    w.open();
    w.secondary(data(0, 'x', { window: 20_000 }));
    w.primary(data(0, 'x', { window: 60_000 }));
    expect(w.pass(2_000_000)).toHaveLength(0);
    expect(w.commit().map((f) => infoOf(f).window)).toEqual([60_000]);
    expect(w.engine.status(w.nowUs).held).toEqual({ frames: 0, bytes: 0 });
  });

  // Guards `windowShift` in adoptCheckpoint.
  it('the window scale of a connection that only the SVM began is not that of the one before', () => {
    const w = new World();
    const first = CLIENT_ISN + 1;
    w.primary(data(0, 'open before it was seen', { ack: first, window: 500 }));
    w.protect();
    w.client(fromClient({ seq: 90_000, flags: TCP_SYN }));
    w.secondary(tcpFrame({ flags: TCP_SYN | TCP_ACK, seq: 900, ack: 90_001 }));
    w.commit();
    w.secondary(data(23, '', { ack: first + 64_000, window: 8 }));
    const [frame] = w.primary(data(23, '', { ack: first + 60_000, window: 508 }));
    expect(infoOf(frame!).window).toBe(8);
  });

  it('trims SACK blocks that the SVM does not hold', () => {
    const w = new World().protect();
    w.open();
    const sack = (...blocks: [number, number][]) => ({ options: { sack: blocks } });
    w.secondary(data(0, ''));
    w.primary(data(0, ''));
    expect(w.primary(data(0, '', sack([6_000, 7_000], [8_000, 9_000])))).toHaveLength(0);
    const both = w.secondary(data(0, '', sack([6_000, 7_000], [8_000, 9_000])));
    expect(both.map((f) => infoOf(f).bytes[infoOf(f).l4Offset + 22])).toEqual([5]);
    w.secondary(data(0, 'z', {}));
    const trimmed = w.primary(data(0, 'z', sack([6_000, 7_500])));
    const info = infoOf(trimmed[0]!);
    expect(info.tcpHeaderBytes).toBeGreaterThan(20);
    expect(info.bytes[info.l4Offset + 22]).not.toBe(5);
    expect(isTransportChecksumRight(infoOf(trimmed[0]!))).toBe(true);
  });

  it('asks for a checkpoint when the SVM never acknowledges', () => {
    const w = new World().protect();
    w.open();
    w.primary(data(0, '', { ack: CLIENT_ISN + 1_001 }));
    w.pass(250_000);
    expect(w.out.requests.at(-1)?.cause).toBe('acknowledgement-behind');
    expect(w.commit().map((f) => infoOf(f).ack)).toEqual([CLIENT_ISN + 1_001]);
  });

  it('asks when a retransmission alone carries the ACK that the SVM never sends', () => {
    const w = new World().protect();
    w.open();
    w.secondary(data(0, 'abc'));
    w.primary(data(0, 'abc'));
    w.pass(1_000_000);
    const ack = CLIENT_ISN + 1_001;
    expect(w.primary(data(0, 'abc', { ack })).map((f) => infoOf(f).ack)).toEqual([CLIENT_ISN + 1]);
    w.pass(250_000);
    expect(w.out.requests.at(-1)?.cause).toBe('acknowledgement-behind');
    expect(w.commit().map((f) => infoOf(f).ack)).toEqual([ack]);
  });

  // Guards #fragmentsMayGo in #isRetransmission: an ACK in fragments is not lowered.
  it('holds fragments that acknowledge more than the SVM, though the client has their bytes', () => {
    const w = new World().protect();
    const ack = CLIENT_ISN + 1;
    w.secondary(data(100, 'picked up', { ack }));
    expect(w.primary(data(100, 'picked up', { ack }))).toHaveLength(1);
    w.client(fromClient({ seq: ack, ack: (PRIMARY_ISN + 1 + 109) >>> 0 }));
    const again = data(50, 'x'.repeat(50), { ack: ack + 500 });
    expect(fragmentFrame(again, 24).flatMap((fragment) => w.primary(fragment))).toHaveLength(0);
  });

  it('answers a keepalive probe of the client at once', () => {
    const w = new World().protect();
    w.open();
    w.secondary(data(0, '', {}));
    expect(w.primary(data(0, '', {}))).toHaveLength(1);
    expect(w.primary(data(0, '', {}))).toHaveLength(1);
  });
});

describe('PrimaryEngine, datagrams', () => {
  it('matches UDP answers in any order and releases them in the order of the PVM', () => {
    const w = new World().protect();
    expect(w.primary(udpFrame({ payload: 'one' }))).toHaveLength(0);
    expect(w.primary(udpFrame({ payload: 'two' }))).toHaveLength(0);
    expect(w.secondary(udpFrame({ payload: 'two', id: 9 }))).toHaveLength(0);
    expect(w.secondary(udpFrame({ payload: 'one', id: 8 })).map(payloadOf)).toEqual(['one', 'two']);
  });

  it('waits a moment for a late mate before it calls datagrams different', () => {
    const w = new World().protect();
    w.primary(udpFrame({ payload: 'aa' }));
    w.secondary(udpFrame({ payload: 'bb' }));
    expect(w.out.requests.filter((r) => r.cause === 'different-bytes')).toHaveLength(0);
    w.pass(15_000);
    expect(w.out.requests.at(-1)?.cause).toBe('different-bytes');
  });

  it('compares echo replies but for their checksum and IP header', () => {
    const w = new World().protect();
    w.primary(icmpEcho({ isReply: true, payload: 'ping', ttl: 64 }));
    expect(w.secondary(icmpEcho({ isReply: true, payload: 'ping', ttl: 63 }))).toHaveLength(1);
  });

  it('compares fragments as the datagram they make, and releases the originals', () => {
    const w = new World().protect();
    const whole = (id: number) => udpFrame({ payload: 'f'.repeat(3_000), id });
    const mine = fragmentFrame(whole(1), 1_480, 1);
    for (const frame of mine) expect(w.primary(frame)).toHaveLength(0);
    const theirs = fragmentFrame(whole(2), 1_000, 2);
    const out = theirs.flatMap((frame) => w.secondary(frame));
    expect(out).toHaveLength(mine.length);
    expect(infoOf(out[0]!).fragmentId).toBe(1);
    expect(w.engine.status(w.nowUs).held).toEqual({ frames: 0, bytes: 0 });
  });

  it('holds fragments that do not become whole until a commit', () => {
    const w = new World().protect();
    const [first] = fragmentFrame(udpFrame({ payload: 'f'.repeat(3_000) }), 1_480);
    w.primary(first!);
    expect(w.pass(300_000)).toHaveLength(0);
    expect(w.out.requests.at(-1)?.cause).toBe('unverifiable');
    expect(w.commit()).toHaveLength(1);
  });

  it('lets ARP of the PVM go at once and drops that of the SVM', () => {
    const w = new World().protect();
    expect(w.primary(arpFrame())).toHaveLength(1);
    expect(w.secondary(arpFrame())).toHaveLength(0);
  });

  it('passes what the pass list names, and counts it', () => {
    const w = new World({ passList: [{ protocol: 17, port: 53 }] }).protect();
    expect(w.primary(udpFrame({ payload: 'free' }))).toHaveLength(1);
    expect(w.engine.status(w.nowUs).counters['passListed']).toBe(1);
  });

  it('passes it in fragments, too', () => {
    const w = new World({ passList: [{ protocol: 17, port: 53 }] }).protect();
    const fragments = fragmentFrame(udpFrame({ payload: 'f'.repeat(3_000) }), 1_480);
    for (const fragment of fragmentFrame(udpFrame({ payload: 'other' }), 8)) {
      expect(w.secondary(fragment)).toHaveLength(0);
    }
    expect(fragments.flatMap((fragment) => w.primary(fragment))).toHaveLength(3);
    w.pass(1_000_000);
    expect(w.out.requests.map(({ cause }) => cause)).toEqual(['sync']);
    expect(w.engine.status(w.nowUs).held).toEqual({ frames: 0, bytes: 0 });
  });
});

describe('PrimaryEngine, liveness and limits', () => {
  // Guards #armIfWaiting in primary-tcp.ts (G6).
  it('asks within the compare timeout when the SVM is silent', () => {
    const w = new World().protect();
    w.open();
    const before = w.out.requests.length;
    w.primary(data(0, 'anyone?'));
    w.pass(199_000);
    expect(w.out.requests).toHaveLength(before);
    w.pass(3_000);
    expect(w.out.requests.at(-1)).toMatchObject({ cause: 'secondary-silent' });
  });

  it('does not call a guest silent that is slow but goes on, up to a bound', () => {
    const w = new World().protect();
    w.open();
    const before = w.out.requests.length;
    w.primary(data(0, 'y'.repeat(1_400)));
    for (let at = 0; at < 9; at++) {
      w.pass(100_000);
      w.secondary(data(at, 'y'));
    }
    expect(w.out.requests).toHaveLength(before);
    w.pass(110_000);
    expect(w.out.requests.at(-1)).toMatchObject({ cause: 'secondary-silent' });
  });

  it('keeps the minimum run time between checkpoints', () => {
    const w = new World({ minRunUs: 300_000 }).protect();
    w.commit();
    const before = w.out.requests.length;
    w.primary(udpFrame({ payload: 'aa' }));
    w.secondary(udpFrame({ payload: 'bb' }));
    w.pass(200_000);
    expect(w.out.requests).toHaveLength(before);
    w.pass(150_000);
    expect(w.out.requests).toHaveLength(before + 1);
    expect(w.out.requests.at(-1)?.delayUs).toBeGreaterThan(100_000);
  });

  it('goes unprotected when the VM layer lets all requests pass', () => {
    const w = new World({ checkpointRequestTimeoutUs: 50_000, checkpointRequestTries: 2 });
    w.protect();
    w.open();
    w.primary(data(0, 'stuck'));
    const out = w.pass(1_000_000);
    expect(out.map(payloadOf)).toContain('stuck');
    expect(w.engine.state).toBe('syncing');
  });

  // Guards #hold in primary.ts (G7).
  it('asks for a checkpoint at the queue limit and drops nothing before twice of it', () => {
    const w = new World({ flowHeldBytesMax: 8_192 }).protect();
    w.open();
    const before = w.out.requests.length;
    for (let i = 0; i < 7; i++) w.primary(data(i * 1_000, 'y'.repeat(1_000)));
    expect(w.out.requests.slice(before).map((r) => r.cause)).toEqual(['limit']);
    expect(w.engine.status(w.nowUs).dropped['held-limit']).toBeUndefined();
    expect(w.commit()).toHaveLength(7);
  });

  it.each(['guest', 'client'])('forgets a connection that the %s closed first', (first) => {
    const w = new World().protect();
    w.open();
    const close = {
      guest: () => {
        const ack = CLIENT_ISN + (first === 'guest' ? 1 : 2);
        w.primary(data(0, '', { flags: TCP_ACK | TCP_FIN, ack }));
        w.secondary(data(0, '', { flags: TCP_ACK | TCP_FIN, ack }));
      },
      client: () => {
        const ack = PRIMARY_ISN + (first === 'guest' ? 2 : 1);
        w.client(fromClient({ seq: CLIENT_ISN + 1, ack, flags: TCP_ACK | TCP_FIN }));
      },
    };
    if (first === 'guest') {
      close.guest();
      close.client();
      w.primary(data(1, '', { ack: CLIENT_ISN + 2 }));
      w.secondary(data(1, '', { ack: CLIENT_ISN + 2 }));
    } else {
      close.client();
      close.guest();
      w.client(fromClient({ seq: CLIENT_ISN + 2, ack: PRIMARY_ISN + 2 }));
    }
    expect(w.engine.flows(10)).toMatchObject([{ tcpState: 'time-wait' }]);
    w.pass(121_000_000);
    expect(w.engine.status(w.nowUs).flows).toBe(0);
  });

  it('keeps a connection that a forged RST wants closed', () => {
    const w = new World().protect();
    w.open();
    w.client(fromClient({ seq: CLIENT_ISN - 900_000, flags: TCP_RST }));
    expect(w.engine.flows(10)).toMatchObject([{ tcpState: 'established' }]);
  });

  it('names among the flows what it holds outside of their table, as long as it does', () => {
    const w = new World({ flowsMax: 1 }).protect();
    w.primary(udpFrame({ dstPort: 1, payload: 'takes the only place' }));
    w.primary(udpFrame({ dstPort: 2, payload: 'finds no room' }));
    const whole = udpFrame({ dstPort: 3, payload: 'z'.repeat(1_400) });
    w.primary(fragmentFrame(whole, 1_000)[0]!);
    expect(w.engine.flows(10)).toMatchObject([
      { flow: 'output that cannot be compared', tcpState: '', heldFrames: 1 },
      { heldFrames: 1 },
    ]);
    expect(w.engine.flows(1)).toHaveLength(1);
    const heldBytes = w.engine.flows(10).reduce((sum, flow) => sum + flow.heldBytes, 0);
    expect(heldBytes).toBe(w.engine.status(w.nowUs).held.bytes);
    expect(w.commit()).toHaveLength(3);
    expect(w.engine.flows(10)).toMatchObject([{ heldFrames: 0, heldBytes: 0 }]);
  });

  it('survives a flood of SYNs with bounded flows', () => {
    const w = new World({ halfOpenFlowsMax: 100 }).protect();
    for (let port = 1; port <= 5_000; port++) {
      w.client(fromClient({ srcPort: port, seq: port, flags: TCP_SYN }));
    }
    expect(w.engine.status(w.nowUs).flows).toBeLessThanOrEqual(100);
  });
});

describe('PrimaryEngine, states (G9)', () => {
  it('passes everything unprotected, and says so', () => {
    const w = new World();
    expect(w.engine.state).toBe('unprotected');
    expect(w.primary(data(0, 'free'))).toHaveLength(1);
  });

  it('asks for the first checkpoint when a peer joins', () => {
    const w = new World();
    w.engine.onPeerUp(0, w.nowUs);
    w.pass(200_000);
    expect(w.engine.state).toBe('syncing');
    expect(w.out.requests.map((r) => r.cause)).toEqual(['sync']);
  });

  // Guards `'protected'` in #wantForFlow.
  it('asks for nothing unprotected, though a SYN differs from an earlier one of the SVM', () => {
    const w = new World().protect();
    const synAck = { flags: TCP_SYN | TCP_ACK, ack: CLIENT_ISN + 1 };
    w.secondary(tcpFrame({ ...synAck, seq: SECONDARY_ISN, options: { windowScale: 6 } }));
    w.engine.onPeerDown('silent', w.nowUs);
    const asked = w.out.requests.length;
    const own = tcpFrame({ ...synAck, seq: PRIMARY_ISN, options: { windowScale: 7 } });
    expect(w.primary(own)).toHaveLength(1);
    w.pass(20_000_000);
    expect(w.out.requests).toHaveLength(asked);
    expect(w.engine.status(w.nowUs).reason).toBe('peer lost: silent');
  });

  it('releases what is held when the peer is lost, and is unprotected', () => {
    const w = new World().protect();
    w.open();
    w.primary(data(0, 'held'));
    w.engine.onPeerDown('silent', w.nowUs);
    expect(w.flush().map(payloadOf)).toEqual(['held']);
    expect(w.engine.state).toBe('unprotected');
    expect(w.engine.status(w.nowUs).reason).toContain('silent');
    expect(w.engine.status(w.nowUs).held.frames).toBe(0);
  });

  it('holds for a lost peer as long as it is told to, asks for nothing, and says so', () => {
    const w = new World().protect();
    w.open();
    w.primary(data(0, 'held'));
    w.engine.onPeerDown('silent', w.nowUs, true);
    const requests = w.out.requests.length;
    expect(w.pass(20_000_000)).toHaveLength(0);
    expect(w.out.requests).toHaveLength(requests);
    expect(w.engine.status(w.nowUs).reason).toBe('peer lost, output is held: silent');
    expect(w.engine.checkpointBegin(w.nowUs).ok).toBe(false);
    w.engine.onPeerDown('decided', w.nowUs);
    expect(w.flush().map(payloadOf)).toEqual(['held']);
    expect(w.engine.state).toBe('unprotected');
  });

  it('holds through an aborted checkpoint, and releases when the peer is back', () => {
    const w = new World({ checkpointCommitTimeoutUs: 400_000 }).protect();
    w.open();
    w.primary(data(0, 'held'));
    w.engine.checkpointBegin(w.nowUs);
    w.engine.onPeerDown('silent', w.nowUs, true);
    expect(w.pass(5_000_000)).toHaveLength(0);
    w.engine.checkpointAbort('QEMU has left COLO', w.nowUs);
    w.primary(data(4, 'more'));
    expect(w.pass(5_000_000)).toHaveLength(0);
    w.engine.onPeerUp(0, w.nowUs);
    expect(w.flush().map(payloadOf)).toEqual(['held', 'more']);
    expect(w.engine.state).toBe('syncing');
  });

  it('keeps client frames between begin and commit and gives them to both afterwards', () => {
    const w = new World().protect();
    w.out.guest = [];
    w.out.peerFrames = [];
    w.engine.checkpointBegin(w.nowUs);
    w.client(fromClient({ seq: 1, payload: 'request' }));
    expect(w.out.guest).toHaveLength(0);
    const epoch = w.engine.epoch + 1;
    w.engine.checkpointCommit(w.nowUs);
    w.engine.onPeerMessage({ type: 'checkpoint-committed', epoch }, w.nowUs);
    w.flush();
    expect(w.out.guest).toHaveLength(1);
    expect(w.out.peerFrames.map((f) => [f.kind, f.epoch])).toEqual([[LINK_FRAME_CLIENT, epoch]]);
  });

  it('aborts a checkpoint when the secondary is reset: its commit may be on the way', () => {
    const w = new World().protect();
    const epoch = w.engine.epoch + 1;
    w.engine.checkpointCommit(w.nowUs);
    w.engine.onPeerMessage({ type: 'reset', reason: 'operator' }, w.nowUs);
    const reason = 'secondary reset: operator';
    expect(w.out.messages.at(-1)).toEqual({ type: 'checkpoint-abort', epoch, reason });
    expect(w.engine.state).toBe('unprotected');
  });

  it('gives up a checkpoint that is never committed', () => {
    const w = new World({ checkpointCommitTimeoutUs: 400_000 }).protect();
    w.open();
    w.primary(data(0, 'held'));
    w.engine.checkpointBegin(w.nowUs);
    expect(w.pass(500_000).map(payloadOf)).toEqual(['held']);
    expect(w.engine.state).toBe('syncing');
  });

  it('never uses the epoch of an aborted checkpoint again: the secondary may have committed it', () => {
    const w = new World().protect();
    w.engine.checkpointBegin(w.nowUs);
    w.engine.checkpointCommit(w.nowUs);
    expect(w.engine.checkpointAbort('the commit took too long', w.nowUs).ok).toBe(true);
    w.flush();
    const begun = w.out.takeMessages().find((m) => m.type === 'checkpoint-begin');
    w.engine.checkpointBegin(w.nowUs);
    w.engine.checkpointCommit(w.nowUs);
    w.flush();
    const again = w.out.takeMessages().find((m) => m.type === 'checkpoint-begin');
    expect(begun?.type === 'checkpoint-begin' && again?.type === 'checkpoint-begin').toBe(true);
    if (begun?.type !== 'checkpoint-begin' || again?.type !== 'checkpoint-begin') return;
    expect(again.epoch).toBeGreaterThan(begun.epoch);
    // The answer to the aborted one is late: it is not the answer to this one.
    w.engine.onPeerMessage({ type: 'checkpoint-committed', epoch: begun.epoch }, w.nowUs);
    expect(w.engine.state).toBe('checkpointing');
    w.engine.onPeerMessage({ type: 'checkpoint-committed', epoch: again.epoch }, w.nowUs);
    expect(w.engine.state).toBe('protected');
  });

  it('refuses to fail over', () => {
    expect(new World().engine.failover(true, 0).ok).toBe(false);
  });

  it('drops output of an old epoch', () => {
    const w = new World().protect();
    w.open();
    w.primary(data(0, 'new'));
    expect(w.secondary(data(0, 'new'), w.engine.epoch - 1)).toHaveLength(0);
    expect(w.engine.status(w.nowUs).dropped['secondary-old-epoch']).toBe(1);
  });

  it('tells the secondary what was released', () => {
    const w = new World().protect();
    w.open();
    w.out.takeMessages();
    w.primary(data(0, 'hello'));
    w.secondary(data(0, 'hello'));
    w.pass(2_000);
    const progress = w.out.takeMessages().filter((m) => m.type === 'progress');
    expect(progress.at(-1)?.entries.at(-1)?.position).toBe((PRIMARY_ISN + 6) >>> 0);
  });
});
