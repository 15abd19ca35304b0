import { describe, expect, it } from 'vitest';
import {
  arpFrame,
  frameBytes,
  neighbourFrame,
  rawFrame,
  type TestFrame,
  tcpFrame,
  udpFrame,
} from '../../test/support/frame-builder.ts';
import { infoOf } from '../../test/support/recording-output.ts';
import {
  CLIENT_ISN,
  fromClient,
  fromSvm,
  PRIMARY_ISN,
  primarySeq,
  SECONDARY_ISN,
  SecondaryWorld,
} from '../../test/support/secondary-world.ts';
import { FLOW_TIMEOUT_CLOSED_US } from '../limits.ts';
import { isTransportChecksumRight } from '../wire/checksum.ts';
import { TCP_ACK, TCP_FIN, TCP_RST, TCP_SYN } from '../wire/tcp.ts';

function numbers(frame: TestFrame): { seq: number; ack: number } {
  const info = infoOf(frame);
  expect(isTransportChecksumRight(info)).toBe(true);
  return { seq: info.seq, ack: info.ack };
}

describe('SecondaryEngine, limits', () => {
  it('asks once for a checkpoint when only translated flows are left', () => {
    const w = new SecondaryWorld({ flowsMax: 2 }).protect();
    for (const port of [1, 2, 3, 4]) {
      const synAck = { dstPort: port, flags: TCP_SYN | TCP_ACK, ack: CLIENT_ISN + 1 };
      w.primarySyn(tcpFrame({ ...synAck, seq: PRIMARY_ISN }));
      w.svm(tcpFrame({ ...synAck, seq: SECONDARY_ISN }));
      w.client(fromClient({ srcPort: port, ack: primarySeq(0) }));
    }
    const asked = w.out.messages.filter((m) => m.type === 'checkpoint-request');
    expect(asked).toMatchObject([{ cause: 'limit' }]);
    // The first two are still translated.
    expect(numbers(w.svm(fromSvm(0, 'x', { dstPort: 1 }))[0]!).seq).toBe(primarySeq(0));
    // After the commit nothing is translated, so there is room again.
    w.begin();
    w.commit();
    w.svm(tcpFrame({ dstPort: 9, seq: 1 }));
    expect([w.counter('flowsEvicted'), w.engine.status(w.nowUs).flows]).toEqual([1, 2]);
  });

  it('lets no connection begin that it could not translate: a checkpoint brings it', () => {
    const w = new SecondaryWorld({ flowsMax: 1 }).protect().open();
    const syn = () => fromClient({ srcPort: 3, seq: CLIENT_ISN, flags: TCP_SYN });
    const guestSyn = () => tcpFrame({ srcPort: 9_000, dstPort: 3, seq: 1, flags: TCP_SYN });
    expect([w.client(syn()), w.svm(guestSyn()), w.dropped('syn-flow-limit')]).toEqual([[], [], 2]);
    expect(w.out.messages.filter((m) => m.type === 'checkpoint-request')).toHaveLength(1);
    w.begin();
    w.commit();
    // As of then it is the PVM's connection, in the PVM's numbers.
    const [data] = w.svm(tcpFrame({ dstPort: 3, seq: PRIMARY_ISN + 1, payload: 'x' }));
    expect(numbers(data!).seq).toBe(PRIMARY_ISN + 1);
  });

  it('lets connections begin in a full table after the failover', () => {
    const w = new SecondaryWorld({ flowsMax: 1 }).protect().open();
    w.failover();
    const synAck = { dstPort: 3, flags: TCP_SYN | TCP_ACK, seq: 1, ack: CLIENT_ISN + 1 };
    expect(w.net(fromClient({ srcPort: 3, seq: CLIENT_ISN, flags: TCP_SYN }))).toHaveLength(1);
    expect(w.serve(tcpFrame(synAck))).toHaveLength(1);
  });

  it('lets connections begin in a table full of old ones that need no translation', () => {
    const w = new SecondaryWorld({ flowsMax: 2 }).protect();
    for (const port of [7, 8]) w.svm(tcpFrame({ dstPort: port, seq: 1, payload: '' }));
    w.open();
    expect(w.counter('flowsEvicted')).toBe(1);
    expect(numbers(w.svm(fromSvm(0, 'x'))[0]!).seq).toBe(primarySeq(0));
  });

  it('forgets flows without a difference first', () => {
    const w = new SecondaryWorld({ flowsMax: 2 }).protect();
    w.open();
    w.svm(tcpFrame({ dstPort: 7, seq: 1, payload: '' }));
    w.svm(tcpFrame({ dstPort: 8, seq: 1, payload: '' }));
    expect(w.counter('flowsEvicted')).toBe(1);
    expect(numbers(w.svm(fromSvm(0, 'x'))[0]!).seq).toBe(primarySeq(0));
  });

  it('does not let a SYN flood push out a connection', () => {
    const w = new SecondaryWorld({ halfOpenFlowsMax: 4 }).protect().open();
    for (let port = 1; port < 50; port++) {
      w.client(fromClient({ srcPort: port, seq: 1, flags: TCP_SYN }));
    }
    expect(w.engine.status(w.nowUs).flows).toBe(5);
    expect(numbers(w.svm(fromSvm(0, 'x'))[0]!).seq).toBe(primarySeq(0));
  });

  it('makes no entry for stray segments and the RSTs that answer them', () => {
    const w = new SecondaryWorld().protect();
    for (let port = 1; port < 20; port++) {
      w.client(fromClient({ srcPort: port, ack: 1 }));
      w.svm(tcpFrame({ dstPort: port, seq: 1, flags: TCP_RST }));
    }
    expect(w.engine.status(w.nowUs).flows).toBe(0);
  });

  it('forgets a connection some time after both FINs', () => {
    const w = new SecondaryWorld().protect().open();
    w.svm(fromSvm(0, '', { flags: TCP_FIN | TCP_ACK }));
    w.client(fromClient({ ack: primarySeq(1), flags: TCP_FIN | TCP_ACK }));
    w.svm(fromSvm(1, '', { ack: CLIENT_ISN + 2 }));
    expect(w.engine.flows(10)).toMatchObject([{ tcpState: 'closed' }]);
    w.pass(121_000_000);
    expect(w.engine.status(w.nowUs).flows).toBe(0);
  });

  it('does not take a RST for the end of a connection that no guest would take for it: it is damaged, or forged', () => {
    const w = new SecondaryWorld().protect().open();
    const damaged = fromClient({ ack: primarySeq(0), flags: TCP_ACK | TCP_RST });
    damaged.buffer.bytes[damaged.offset + damaged.length - 1]! ^= 1;
    const forged = fromClient({ seq: CLIENT_ISN + 2 ** 27, flags: TCP_RST });
    for (const segment of [damaged, forged]) {
      w.svm(fromSvm(0, 'x'));
      w.client(segment);
      w.pass(FLOW_TIMEOUT_CLOSED_US + 1);
      expect(w.engine.status(w.nowUs).flows).toBe(1);
    }
    w.client(fromClient({ flags: TCP_RST }));
    w.pass(FLOW_TIMEOUT_CLOSED_US + 1);
    expect(w.engine.status(w.nowUs).flows).toBe(0);
  });

  it('keeps a connection whose last ACK is not through: its ends still answer each other', () => {
    const w = new SecondaryWorld().protect().open();
    w.svm(fromSvm(0, '', { flags: TCP_FIN | TCP_ACK }));
    w.client(fromClient({ ack: primarySeq(1), flags: TCP_FIN | TCP_ACK }));
    w.pass(121_000_000);
    const [ack] = w.svm(fromSvm(1, '', { ack: CLIENT_ISN + 2 }));
    expect(numbers(ack!).seq).toBe(primarySeq(1));
  });

  it('lets a closed connection linger in a full table: its last ACK may be lost on the way to the client', () => {
    const w = new SecondaryWorld({ flowsMax: 2 }).protect().open();
    const fin = () => fromClient({ ack: primarySeq(1), flags: TCP_FIN | TCP_ACK });
    const ack = () => fromSvm(1, '', { ack: CLIENT_ISN + 2 });
    w.svm(fromSvm(0, '', { flags: TCP_FIN | TCP_ACK }));
    w.client(fin());
    w.svm(ack());
    expect(w.engine.flows(10)).toMatchObject([{ tcpState: 'closed' }]);
    const others = (): void => {
      for (const port of [7, 8, 9]) w.svm(tcpFrame({ dstPort: port, seq: 1, payload: 'x' }));
    };
    others();
    w.client(fin());
    expect(numbers(w.svm(ack())[0]!).seq).toBe(primarySeq(1));
    w.pass(11_000_000);
    others();
    expect(numbers(w.svm(ack())[0]!).seq).not.toBe(primarySeq(1));
  });

  it('survives any bytes from all sides', () => {
    const w = new SecondaryWorld().protect().open();
    let x = 1;
    for (let i = 0; i < 3_000; i++) {
      const template = [
        fromSvm(0, 'x'.repeat(40)),
        fromClient(),
        neighbourFrame(),
        arpFrame(),
        udpFrame(),
      ][i % 5]!;
      const bytes = frameBytes(template);
      for (let k = 0; k < 3; k++) {
        x = (Math.imul(x, 1_103_515_245) + 12_345) >>> 0;
        bytes[(x >>> 8) % bytes.length] = x >>> 24;
      }
      const frame = rawFrame(bytes.slice(0, 1 + ((x >>> 4) % bytes.length)));
      w.svm(frame);
      w.client(frame);
      w.primarySyn(frame);
    }
    w.failover();
    expect(w.engine.state).toBe('failed-over');
  });
});
