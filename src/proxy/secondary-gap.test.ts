import { describe, expect, it } from 'vitest';
import {
  CLIENT_IP,
  GUEST_IP,
  rawFrame,
  type TestFrame,
  udpFrame,
} from '../../test/support/frame-builder.ts';
import { infoOf, payloadOf } from '../../test/support/recording-output.ts';
import {
  CLIENT_ISN,
  fromClient,
  fromSvm,
  primarySeq,
  SecondaryWorld,
  secondarySeq,
} from '../../test/support/secondary-world.ts';
import { OVERHEARD_AGE_US_MAX, OVERHEARD_BYTES_MAX } from '../limits.ts';
import { isTransportChecksumRight } from '../wire/checksum.ts';
import { TCP_SYN } from '../wire/tcp.ts';

function numbers(frame: TestFrame): { seq: number; ack: number } {
  const info = infoOf(frame);
  expect(isTransportChecksumRight(info)).toBe(true);
  return { seq: info.seq, ack: info.ack };
}

describe('failover, what clients sent while nobody served', () => {
  const question = fromClient({ ack: primarySeq(0), payload: 'question' });

  /** What the failover gives to the SVM. */
  function delivered(w: SecondaryWorld): TestFrame[] {
    w.failover();
    return w.takeGuest();
  }

  function ready(): SecondaryWorld {
    const w = new SecondaryWorld().protect().open();
    // The guest's address is known by what it sends.
    w.svm(fromSvm(0, ''));
    return w;
  }

  // A switch floods them once the primary's port has lost its carrier.
  it('reaches the SVM at once, in order and in its numbers, and not before', () => {
    const w = ready();
    expect(w.net(question)).toHaveLength(0);
    expect(w.net(fromClient({ seq: CLIENT_ISN + 9, ack: primarySeq(0), payload: '!' }))).toEqual(
      [],
    );
    const frames = delivered(w);
    expect(frames.map(numbers)).toEqual([
      { seq: CLIENT_ISN + 1, ack: secondarySeq(0) },
      { seq: CLIENT_ISN + 9, ack: secondarySeq(0) },
    ]);
    expect(w.counter('overheardDelivered')).toBe(2);
    expect(w.engine.status(w.nowUs).held).toEqual({ frames: 0, bytes: 0 });
  });

  it('is forgotten at a commit of a living primary, which has heard it too', () => {
    const w = ready();
    w.net(question);
    w.begin();
    w.commit();
    expect(w.engine.status(w.nowUs).held).toEqual({ frames: 0, bytes: 0 });
    expect(delivered(w)).toEqual([]);
  });

  it('outlives a commit that came after the primary was lost', () => {
    const w = ready();
    w.net(question);
    w.engine.onPeerDown('dead', w.nowUs);
    expect(w.engine.checkpointCommit(w.nowUs).ok).toBe(true);
    const result = w.engine.failover(false, w.nowUs);
    expect(result.ok).toBe(true);
    expect(w.takeGuest().map((frame) => infoOf(frame).seq)).toEqual([CLIENT_ISN + 1]);
  });

  it('opens the connection whose SYN nobody answered', () => {
    const w = ready();
    w.net(fromClient({ srcPort: 40_999, flags: TCP_SYN, seq: 7 }));
    expect(delivered(w).map((frame) => infoOf(frame).seq)).toEqual([7]);
  });

  it('leaves out what its client has sent again since', () => {
    const w = ready();
    w.net(question);
    w.nowUs += OVERHEARD_AGE_US_MAX + 1;
    const second = fromClient({ seq: CLIENT_ISN + 9, ack: primarySeq(0), payload: '!' });
    w.net(second);
    expect(w.engine.status(w.nowUs).held.frames).toBe(1);
    expect(delivered(w).map((frame) => infoOf(frame).seq)).toEqual([CLIENT_ISN + 9]);
    // And at the failover itself.
    const late = ready();
    late.net(question);
    late.nowUs += OVERHEARD_AGE_US_MAX + 1;
    expect(delivered(late)).toEqual([]);
  });

  it('keeps the newest within its limit', () => {
    const w = ready();
    const payload = 'x'.repeat(60_000);
    const count = Math.ceil((2 * OVERHEARD_BYTES_MAX) / 60_000);
    for (let i = 0; i < count; i++) {
      w.net(fromClient({ seq: CLIENT_ISN + 1 + i * 60_000, ack: primarySeq(0), payload }));
    }
    const { held } = w.engine.status(w.nowUs);
    expect(held.bytes).toBeLessThanOrEqual(OVERHEARD_BYTES_MAX);
    const frames = delivered(w);
    expect(frames).toHaveLength(held.frames);
    expect(infoOf(frames.at(-1)!).seq).toBe(CLIENT_ISN + 1 + (count - 1) * 60_000);
  });

  it('takes nothing that is not for the guest, nothing but TCP, and nothing while the SVM is no replica', () => {
    const w = ready();
    w.net(fromClient({ dst: '10.0.0.200', payload: 'x' }));
    w.net(udpFrame({ src: CLIENT_IP, dst: GUEST_IP, payload: 'x' }));
    w.net(rawFrame(new Uint8Array(60)));
    expect(delivered(w)).toEqual([]);
    const fresh = new SecondaryWorld();
    fresh.net(question);
    expect(fresh.engine.status(fresh.nowUs).held.frames).toBe(0);
    const reset = ready();
    reset.net(question);
    reset.engine.reset('x', reset.nowUs);
    expect(reset.engine.status(reset.nowUs).held).toEqual({ frames: 0, bytes: 0 });
  });
});

describe('failover, what the primary released last', () => {
  /** Payloads of what the failover sends to the client. */
  function sent(w: SecondaryWorld): string[] {
    const texts = w.failover().filter((frame) => infoOf(frame).protocol === 6);
    return texts.map((frame) => payloadOf(frame)).filter((text) => text !== '');
  }

  function answered(): SecondaryWorld {
    const w = new SecondaryWorld().protect().open();
    w.svm(fromSvm(0, 'first'));
    w.svm(fromSvm(5, 'last'));
    return w;
  }

  // It may have died in the primary's queues: without it the SVM's own timer would be waited for.
  it('is the newest segment of a connection, again, as long as the client has not acknowledged it', () => {
    const w = answered();
    w.progress({ position: primarySeq(9) });
    expect(sent(w)).toEqual(['last']);
  });

  it('is not sent when the client has acknowledged it', () => {
    const w = answered();
    w.progress({ position: primarySeq(9) });
    w.client(fromClient({ ack: primarySeq(9) }));
    expect(sent(w)).toEqual([]);
  });

  it('goes with all that was not released', () => {
    const w = answered();
    w.progress({ position: primarySeq(5) });
    w.svm(fromSvm(9, '!'));
    expect(sent(w)).toEqual(['last', '!']);
  });
});
