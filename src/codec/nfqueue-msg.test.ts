import { expect, test } from 'vitest';
import {
  encodeBind,
  encodeLimits,
  encodeStart,
  NF_ACCEPT,
  NF_DROP,
  NFQUEUE_CHECKSUM_NOT_READY,
  NFQUEUE_GSO,
  NfqueueMessage,
  readNfqueue,
  VERDICT_BYTES,
  writeVerdict,
} from './nfqueue-msg.ts';

const hex = (text: string): Uint8Array<ArrayBuffer> =>
  Uint8Array.from(text.replaceAll(/\s/g, '').match(/../g) ?? [], (pair) =>
    Number.parseInt(pair, 16),
  );
const toHex = (bytes: Uint8Array): string => Buffer.from(bytes).toString('hex');
const read = (bytes: Uint8Array<ArrayBuffer>) => {
  const message = new NfqueueMessage();
  const kind = readNfqueue(new DataView(bytes.buffer), 0, bytes.length, message);
  return { kind, message };
};

/** A packet in the kernel's order of attributes: identity, interfaces, MAC address, offloads, payload. */
const PACKET = `
  54000000 0003 0000 00000000 00000000   02 00 000a
  0b00 0100 00000005 0800 00 00
  0800 0500 00000002
  0800 0700 00000004
  1000 0900 0006 0000 525400c01001 0000
  0800 0e00 00000001
  0c00 0a00 4500001c 12345678
`;

test('readNfqueue() finds identity, source address, offloads and the packet', () => {
  const bytes = hex(PACKET);
  const { kind, message } = read(bytes);
  expect(kind).toBe('packet');
  expect(message.id).toBe(5);
  expect(message.etherType).toBe(0x0800);
  expect(toHex(bytes.subarray(message.macOffset, message.macOffset + 6))).toBe('525400c01001');
  expect(message.info).toBe(NFQUEUE_CHECKSUM_NOT_READY);
  expect(message.info & NFQUEUE_GSO).toBe(0);
  expect(toHex(bytes.subarray(message.payloadOffset))).toBe('4500001c12345678');
  expect(message.payloadBytes).toBe(8);
  expect(message.isCut).toBe(false);
});

test('readNfqueue() tells a packet that was cut by its true length', () => {
  const { message } = read(
    hex(`34000000 0003 0000 00000000 00000000  02 00 000a
         0b00 0100 00000005 0800 00 00
         0800 0d00 00000009
         0c00 0a00 4500001c 12345678`),
  );
  expect(message.isCut).toBe(true);
});

test('readNfqueue() takes nothing for a packet that has no identity or no payload', () => {
  const head = '0003 0000 00000000 00000000 02000000';
  expect(read(hex(`20000000 ${head} 0c00 0a00 4500001c 12345678`)).kind).toBe('other');
  expect(read(hex(`20000000 ${head} 0b00 0100 00000005 0800 00 00`)).kind).toBe('other');
});

test('readNfqueue() reads the errno of an answer', () => {
  const answer = (error: string): string =>
    `24000000 0200 0000 00000000 00000000 ${error} 20000000 0103 0100 00000000 00000000`;
  const { kind, message } = read(hex(answer('feffffff')));
  expect({ kind, errno: message.errno }).toEqual({ kind: 'error', errno: 2 });
  expect(read(hex(answer('00000000'))).message.errno).toBe(0);
});

test('writeVerdict() writes one request after the other', () => {
  const bytes = new Uint8Array(64);
  const view = new DataView(bytes.buffer);
  const second = writeVerdict(view, 0, 10, 0x01020304, NF_ACCEPT);
  expect(second).toBe(VERDICT_BYTES);
  expect(writeVerdict(view, second, 10, 6, NF_DROP)).toBe(64);
  expect(toHex(bytes)).toBe(
    toHex(
      hex(`20000000 0103 0100 00000000 00000000  00 00 000a  0c00 0200 00000001 01020304
           20000000 0103 0100 00000000 00000000  00 00 000a  0c00 0200 00000000 00000006`),
    ),
  );
});

test('writeVerdict() leaves room for a packet, padded to 4 bytes', () => {
  const bytes = new Uint8Array(44);
  const end = writeVerdict(new DataView(bytes.buffer), 0, 0, 1, NF_ACCEPT, 5);
  expect(end).toBe(VERDICT_BYTES + 4 + 8);
  expect(toHex(bytes.subarray(0, 4))).toBe('2c000000');
  expect(toHex(bytes.subarray(VERDICT_BYTES, VERDICT_BYTES + 4))).toBe('09000a00');
});

test('the requests that set a queue up are those of libnetfilter_queue', () => {
  expect(toHex(encodeBind(10))).toBe(
    toHex(hex('1c000000 0203 0500 00000000 00000000 00 00 000a 0800 0100 01 00 0000')),
  );
  const limits = (flags: string): string =>
    toHex(
      hex(`2c000000 0203 0500 00000000 00000000 00 00 000a
           0800 0300 00000400  0800 0400 00000005  0800 0500 ${flags}`),
    );
  expect(toHex(encodeLimits(10, 1_024, false))).toBe(limits('00000004'));
  expect(toHex(encodeLimits(10, 1_024, true))).toBe(limits('00000005'));
  expect(toHex(encodeStart(10))).toBe(
    toHex(hex('20000000 0203 0100 00000000 00000000 00 00 000a 0900 0200 0000fffb 02 000000')),
  );
});
