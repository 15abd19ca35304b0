import { describe, expect, test } from 'vitest';
import { Prng } from '../../base/prng.ts';
import { NEVER } from '../../base/time.ts';
import { createConnection, tcpWrite } from '../tcp/connection.ts';
import { ACK, blankSegment, SYN } from '../tcp/segment.ts';
import { byteAt, createRecord, recordSegment, recordsOf, sentEnd } from './record.ts';

const OPTIONS = {
  mss: 1_460,
  windowScale: 0,
  sack: true,
  timestamps: false,
  receiveBytesMax: 8_000,
  delayedAck: false,
  gsoSegments: 1,
  probeWithByte: false,
  keepaliveUs: NEVER,
};

const bytesOf = (text: string) => Uint8Array.from(text, (letter) => letter.charCodeAt(0));

function recorder() {
  const record = createRecord();
  const addresses = { local: '0a000001', remote: '0a000102', localPort: 80, remotePort: 9 };
  const open = (clientIsn: number) => {
    const connection = createConnection(OPTIONS, addresses, 'established', new Prng(clientIsn));
    connection.irs = clientIsn;
    return connection;
  };
  return { record, open };
}

describe('the record of what a guest has sent', () => {
  test('counts what the connection has sent, though it never reached the card', () => {
    const { record, open } = recorder();
    const connection = open(5);
    const send = (flags: number, position: number, text: string): void => {
      const segment = { ...blankSegment(), flags, payload: bytesOf(text) };
      segment.seq = (connection.iss + position) >>> 0;
      recordSegment(record, 'key', segment, connection);
    };
    send(SYN | ACK, 0, '');
    tcpWrite(connection, bytesOf('abcdefghij'));
    connection.sndMax = 5;
    send(ACK, 1, 'abcd');
    // Bytes 5 to 7 were lost inside the guest; the last ones are not sent yet.
    connection.sndMax = 9;
    send(ACK, 8, 'h');
    const stream = record.streams.get('key')!;
    expect(sentEnd(stream)).toBe(9);
    const sent = Array.from({ length: 9 }, (_, i) => byteAt(stream, 1 + i));
    expect(sent).toEqual([...bytesOf('abcdefgh'), -1]);
    connection.finQueued = true;
    connection.sndMax = 12;
    send(ACK, 12, '');
    expect([sentEnd(stream), stream.fin]).toEqual([11, 11]);
  });

  test('knows a segment of the connection before from one of the next', () => {
    const { record, open } = recorder();
    const [first, second] = [open(5), open(77)];
    for (const connection of [first, second]) {
      const syn = { ...blankSegment(), flags: SYN | ACK, seq: connection.iss };
      recordSegment(record, 'key', syn, connection);
    }
    const own = (seq: number) => recordsOf(record, record, 'key', seq >>> 0).own?.clientIsn;
    expect([own(first.iss + 1), own(second.iss + 1)]).toEqual([5, 77]);
    // Behind its FIN it is still the second, also where the first had come so far.
    first.iss = (second.iss - 4_000) >>> 0;
    const streams = record.streams.get('key')!;
    streams.fin = 1;
    streams.previous!.isn = first.iss;
    streams.previous!.count = 6_000;
    expect(own(second.iss + 2)).toBe(77);
    const { own: held, other } = recordsOf(record, record, 'key', (first.iss + 1) >>> 0);
    expect(other).toBe(held);
  });

  test('knows a connection that the SVM has as a copy from one that an old SYN has begun there', () => {
    const { record: pvm, open } = recorder();
    const first = open(5);
    const syn = { ...blankSegment(), flags: SYN | ACK };
    recordSegment(pvm, 'key', { ...syn, seq: first.iss }, first);
    const svm = structuredClone(pvm);
    const again = { ...first, iss: (first.iss + 1_000_000) >>> 0 };
    recordSegment(svm, 'key', { ...syn, seq: again.iss }, again);
    const { own, other } = recordsOf(pvm, svm, 'key', (first.iss + 1) >>> 0);
    expect([own?.isn, other?.isn]).toEqual([first.iss, first.iss]);
  });
});
