import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { TCP_ACK, TCP_FIN, TCP_RST, TCP_SYN } from '../wire/tcp.ts';
import {
  TCP_CLOSED,
  TCP_STATE_NAMES,
  TCP_TIME_WAIT,
  TcpTrack,
  TRACK_IGNORED,
  TRACK_OK,
  TRACK_REOPENED,
  tcpFlowClass,
  trackTcp,
} from './tcp-state.ts';

const FLAGS: Record<string, number> = { S: TCP_SYN, A: TCP_ACK, F: TCP_FIN, R: TCP_RST };

/**
 * Plays lines such as `c SA 100 200 5 established`: sender, flags, seq, ack, payload bytes, and the state after it
 * (`!state`: ignored; `*state`: a new connection).
 */
function play(script: string, track = new TcpTrack()): TcpTrack {
  for (const line of script.trim().split('\n')) {
    const [who, flags, seq, ack, payloadBytes, expected] = line.trim().split(/\s+/);
    const tcpFlags = [...flags!].reduce((bits, letter) => bits | FLAGS[letter]!, 0);
    const segment = {
      tcpFlags,
      seq: Number(seq) >>> 0,
      ack: Number(ack) >>> 0,
      payloadBytes: Number(payloadBytes),
    };
    const result = trackTcp(track, segment, who === 'g');
    const mark = result === TRACK_IGNORED ? '!' : result === TRACK_REOPENED ? '*' : '';
    expect(`${line.trim()} -> ${mark}${TCP_STATE_NAMES[track.state]}`).toBe(
      `${line.trim()} -> ${expected}`,
    );
  }
  return track;
}

const HANDSHAKE = `
  c S 100 0 0 syn-sent
  g SA 500 101 0 syn-received
  c A 101 501 0 established`;

describe('trackTcp()', () => {
  it('follows an open, data and an orderly close, across 2^32', () => {
    play(`
      c S 4294967295 0 0 syn-sent
      g SA 4294967290 0 0 syn-received
      c A 0 4294967291 0 established
      c A 0 4294967291 10 established
      g A 4294967291 10 20 established
      c A 10 15 0 established
      c FA 10 15 0 fin-wait
      g A 15 10 0 fin-wait
      g A 15 11 0 close-wait
      g A 15 11 7 close-wait
      g FA 22 11 0 last-ack
      c A 11 22 0 last-ack
      c A 11 23 0 time-wait`);
  });

  it('is established only when both SYNs are acknowledged', () => {
    play(`
      c S 100 0 0 syn-sent
      c S 100 0 0 syn-sent
      g SA 500 101 0 syn-received
      g SA 500 101 0 syn-received
      c A 101 500 0 syn-received
      c A 101 501 0 established`);
  });

  it('follows a connection that the guest opens', () => {
    play(`
      g S 100 0 0 syn-sent
      c SA 500 101 0 syn-received
      g A 101 501 0 established`);
  });

  it('follows a simultaneous open (RFC 9293 figure 7)', () => {
    play(`
      c S 100 0 0 syn-sent
      g S 300 0 0 syn-received
      c SA 100 301 0 syn-received
      g SA 300 101 0 established`);
  });

  it('follows a simultaneous close', () => {
    play(`${HANDSHAKE}
      c FA 101 501 0 fin-wait
      g FA 501 101 0 last-ack
      c A 102 502 0 last-ack
      g A 502 102 0 time-wait`);
  });

  it('an end that begins anew before it is answered moves to its new number', () => {
    play(`
      c S 100 0 0 syn-sent
      c S 9000 0 0 syn-sent
      g SA 500 101 0 syn-received
      g SA 500 9001 0 syn-received
      c A 9001 501 0 established`);
  });

  it('picks up a connection in the middle, also at its FIN and at its SYN-ACK', () => {
    play('g A 1000 2000 100 established');
    play(`g FA 1000 2000 0 fin-wait
      c A 2000 1001 0 close-wait`);
    play(`g SA 500 101 0 syn-received
      c A 101 501 0 established`);
  });

  it('believes a RST at or after what the receiver has acknowledged, and no other', () => {
    play(`${HANDSHAKE}
      g A 501 101 100 established
      c A 101 601 0 established
      g R 600 0 0 !established
      g R 601 0 0 closed`);
  });

  it('a RST against a SYN must acknowledge it', () => {
    play(`c S 100 0 0 syn-sent
      g R 0 0 0 !syn-sent
      g RA 0 100 0 !syn-sent
      g RA 0 102 0 !syn-sent
      g RA 0 101 0 closed`);
  });

  it('a SYN within a connection is answered by a challenge ACK, and changes nothing', () => {
    play(`${HANDSHAKE}
      c S 101 0 0 !established
      c S 90000 0 0 !established
      g S 90000 0 0 !established`);
  });

  it('a SYN after TIME-WAIT or a RST begins a new connection, from either end', () => {
    const closed = `${HANDSHAKE}
      c FA 101 501 0 fin-wait
      g FA 501 102 0 last-ack
      c A 102 502 0 time-wait`;
    const track = play(`${closed}
      c A 102 502 0 time-wait
      c S 7000 0 0 *syn-sent
      g SA 80 7001 0 syn-received
      c A 7001 81 0 established
      c R 7001 0 0 closed
      g S 9 0 0 *syn-sent
      c SA 5 10 0 syn-received
      g A 10 6 0 established`);
    expect(track.guest.hasFin).toBe(false);
  });

  it('an ACK of what was never sent acknowledges nothing', () => {
    play(`${HANDSHAKE}
      c FA 101 501 0 fin-wait
      g A 501 100000 0 fin-wait
      g A 501 102 0 close-wait`);
  });

  it('an ACK of what was never sent makes no later RST unbelievable', () => {
    const track = play(`${HANDSHAKE}
      c A 101 501 0 established
      c A 101 100000 0 established
      g R 501 0 0 closed`);
    expect(track.client.ackMax).toBe(501);
  });

  it('depends on its arguments alone, and both ends are equal', () => {
    const segment = fc.record({
      tcpFlags: fc.constantFrom(2, 18, 16, 17, 4, 20, 24, 0, 1, 3, 255),
      seq: fc.integer({ min: 0, max: 40 }).map((n) => (n - 20) >>> 0),
      ack: fc.integer({ min: 0, max: 40 }).map((n) => (n - 20) >>> 0),
      payloadBytes: fc.nat(9),
      isGuest: fc.boolean(),
    });
    fc.assert(
      fc.property(fc.array(segment, { maxLength: 20 }), (segments) => {
        const track = new TcpTrack();
        const mirrored = new TcpTrack();
        for (const one of segments) {
          const before = track.state;
          const result = trackTcp(track, one, one.isGuest);
          expect(trackTcp(mirrored, one, !one.isGuest)).toBe(result);
          expect(mirrored.state).toBe(track.state);
          expect(mirrored.guest).toEqual(track.client);
          if (result === TRACK_IGNORED) expect(track.state).toBe(before);
          if (before === TCP_CLOSED && result === TRACK_OK) expect(track.state).toBe(TCP_CLOSED);
          if (result === TRACK_REOPENED) expect(before).toBeGreaterThanOrEqual(TCP_TIME_WAIT);
        }
      }),
      { numRuns: 500 },
    );
  });
});

describe('tcpFlowClass()', () => {
  it('is half-open until established, and closed from last-ack on', () => {
    const classes = TCP_STATE_NAMES.map((_, state) => tcpFlowClass(state as 0));
    expect(classes).toEqual([0, 0, 0, 1, 1, 1, 2, 2, 2]);
  });
});
