import { describe, expect, test } from 'vitest';
import { ACK, blankSegment, SYN } from '../tcp/segment.ts';
import { byteAt, createRecord, recordSegment, sentEnd, sentMax } from './record.ts';

const ISN = 0xffff_fff0;

function recorder() {
  const record = createRecord();
  const send = (flags: number, position: number, text: string): void => {
    const segment = blankSegment();
    segment.flags = flags;
    segment.seq = (ISN + position) >>> 0;
    segment.payload = Uint8Array.from(text, (letter) => letter.charCodeAt(0));
    recordSegment(record, 'key', segment, undefined);
  };
  send(SYN | ACK, 0, '');
  return { send, stream: record.streams.get('key')! };
}

describe('the record of what a guest has sent', () => {
  test('keeps what was sent behind a gap until the gap is filled, across 2^32', () => {
    const { send, stream } = recorder();
    send(ACK, 1, 'abcdefgh');
    // Bytes 9 to 12 were lost inside the guest.
    send(ACK, 13, 'mnopqrst');
    send(ACK, 25, 'yz');
    expect([sentEnd(stream), sentMax(stream)]).toEqual([9, 27]);
    expect(byteAt(stream, 13)).toBe(-1);
    send(ACK, 9, 'ijklmn');
    expect([sentEnd(stream), sentMax(stream)]).toEqual([21, 27]);
    send(ACK, 20, 'tuvwxyz');
    expect([sentEnd(stream), sentMax(stream), stream.beyond.length]).toEqual([27, 27, 0]);
    const bytes = Array.from({ length: 26 }, (_, i) => byteAt(stream, 1 + i));
    expect(String.fromCharCode(...bytes)).toBe('abcdefghijklmnopqrstuvwxyz');
  });
});
