import { describe, expect, test } from 'vitest';
import type { FrameBuffer } from '../env/frame.ts';
import type { PeerHello } from '../env/link.ts';
import type { LinkMessage } from '../env/messages.ts';
import { FRAME_BYTES_MAX } from '../limits.ts';
import { type LinkDecodeHandler, LinkDecoder } from './link-decode.ts';
import {
  encodeFrame,
  encodeGoodbye,
  encodeHeartbeat,
  encodeHello,
  encodeMessage,
  encodeRefuse,
  linkMessageBytesMax,
} from './link-encode.ts';
import {
  LINK_BODY_BYTES_MAX,
  LINK_CAUSE_CODES,
  LINK_FRAME_HEADROOM,
  LINK_PROGRESS_ENTRIES_MAX,
  LINK_TEXT_BYTES_MAX,
} from './link-msg.ts';

const HELLO: PeerHello = {
  role: 'secondary',
  nodeId: '000102030405060708090a0b0c0d0e0f',
  instance: 0x0012_3456_789a_bcde,
  epoch: 0xfedc_ba98,
  state: 'failed-over',
  software: '0.1.0',
  heartbeatUs: 250_000,
  timeoutUs: 1_000_000,
};

const MAGIC = '43 4f 4c 4f 50 45 45 52';
const HELLO_BODY =
  `${MAGIC} 00 02 02 05 00 01 02 03 04 05 06 07 08 09 0a 0b 0c 0d 0e 0f ` +
  '00 12 34 56 78 9a bc de fe dc ba 98 00 03 d0 90 00 0f 42 40 00 05 30 2e 31 2e 30';
const HELLO_BYTES = `00 00 00 37 01 00 00 00 ${HELLO_BODY}`;

function memory(bytes = 70_000): FrameBuffer {
  // Dirty memory: an encoder that leaves a byte out is found.
  const buffer = new Uint8Array(bytes).fill(0xa5);
  return { bytes: buffer, view: new DataView(buffer.buffer) };
}

function bytesOf(hex: string): Uint8Array {
  return Uint8Array.from(hex.split(' '), (digits) => Number.parseInt(digits, 16));
}

function hexOf(encode: (buffer: FrameBuffer, offset: number) => number): string {
  const buffer = memory();
  const length = encode(buffer, 5);
  expect(buffer.bytes[4]).toBe(0xa5);
  expect(buffer.bytes[5 + length]).toBe(0xa5);
  return Array.from(buffer.bytes.subarray(5, 5 + length), (byte) =>
    byte.toString(16).padStart(2, '0'),
  ).join(' ');
}

/** Decodes into a list of what the handler heard. */
class Heard implements LinkDecodeHandler {
  readonly list: unknown[] = [];
  readonly decoder = new LinkDecoder(this);
  onHello(hello: PeerHello, isAnswer: boolean): void {
    this.list.push({ isAnswer, ...hello });
  }
  onRefuse(refusal: unknown): void {
    this.list.push(refusal);
  }
  onHeartbeat(heartbeat: unknown): void {
    this.list.push(heartbeat);
  }
  onGoodbye(reason: string): void {
    this.list.push({ goodbye: reason });
  }
  onFrame(kind: number, epoch: number, buffer: FrameBuffer, offset: number, length: number): void {
    const vnet = [...buffer.bytes.subarray(offset - 10, offset)];
    const bytes = [...buffer.bytes.subarray(offset, offset + length)];
    // Both ways of looking at the memory are one.
    if (length > 0) expect(buffer.view.getUint8(offset)).toBe(bytes[0]);
    this.list.push({ kind, epoch, vnet, bytes });
  }
  onMessage(message: LinkMessage): void {
    this.list.push(message);
  }
  onBatchEnd(): void {
    this.list.push('batch-end');
  }
}

/** What an open decoder makes of these bytes, without the batch ends. */
function decodeOpen(hex: string): unknown[] {
  const heard = new Heard();
  heard.decoder.open();
  const error = heard.decoder.push(bytesOf(hex));
  const list = heard.list.filter((entry) => entry !== 'batch-end');
  return error === undefined ? list : [...list, error.error];
}

const ENTRY_4 = {
  ipVersion: 4,
  protocol: 6,
  vlan: 0x00_12_34_56,
  guestPort: 80,
  clientPort: 40_312,
  guestAddress: Uint8Array.of(10, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0),
  clientAddress: Uint8Array.of(10, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0),
  position: 0xffff_fffe,
};
const ENTRY_4_BYTES =
  '04 06 00 50 9d 78 00 00 00 12 34 56 ff ff ff fe ' +
  '0a 00 00 02 00 00 00 00 00 00 00 00 00 00 00 00 0a 00 00 09 00 00 00 00 00 00 00 00 00 00 00 00';

const CONTROL: readonly (readonly [string, LinkMessage])[] = [
  ['00 00 00 04 20 00 00 00 00 00 00 01', { type: 'checkpoint-begin', epoch: 1 }],
  ['00 00 00 04 21 00 00 00 00 00 00 02', { type: 'checkpoint-began', epoch: 2 }],
  ['00 00 00 04 22 00 00 00 00 00 00 03', { type: 'checkpoint-commit', epoch: 3 }],
  ['00 00 00 04 23 00 00 00 ff ff ff ff', { type: 'checkpoint-committed', epoch: 0xffff_ffff }],
  [
    '00 00 00 0a 24 00 00 00 00 00 00 05 00 04 66 75 6c 6c',
    { type: 'checkpoint-abort', epoch: 5, reason: 'full' },
  ],
  [
    '00 00 00 06 25 00 00 00 0b 00 00 02 c3 bc',
    { type: 'checkpoint-request', cause: 'limit', text: 'ü' },
  ],
  ['00 00 00 04 26 00 00 00 00 00 00 00', { type: 'progress', entries: [] }],
  [
    `00 00 00 34 26 00 00 00 00 01 00 00 ${ENTRY_4_BYTES}`,
    { type: 'progress', entries: [ENTRY_4] },
  ],
  ['00 00 00 06 27 00 00 00 00 04 75 73 65 72', { type: 'reset', reason: 'user' }],
  [
    '00 00 00 3c 28 00 00 00 00 02 00 01 ' +
      '04 01 52 54 00 00 00 01 00 00 00 07 0a 00 00 02 00 00 00 00 00 00 00 00 00 00 00 00 ' +
      '06 00 52 54 00 00 00 02 00 00 00 00 fd 00 00 00 00 00 00 00 00 00 00 00 00 00 00 02',
    {
      type: 'guest-addresses',
      isRouter: true,
      addresses: [
        {
          ipVersion: 4,
          vlan: 7,
          ip: Uint8Array.of(10, 0, 0, 2),
          mac: Uint8Array.of(0x52, 0x54, 0, 0, 0, 1),
          certain: true,
        },
        {
          ipVersion: 6,
          vlan: 0,
          ip: Uint8Array.of(0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2),
          mac: Uint8Array.of(0x52, 0x54, 0, 0, 0, 2),
          certain: false,
        },
      ],
    },
  ],
];

describe('golden bytes', () => {
  test.each(CONTROL)('%s', (hex, message) => {
    expect(hexOf((buffer, offset) => encodeMessage(buffer, offset, message))).toBe(hex);
    expect(decodeOpen(hex)).toEqual([message]);
  });

  test('hello and welcome', () => {
    expect(hexOf((buffer, offset) => encodeHello(buffer, offset, HELLO, false))).toBe(HELLO_BYTES);
    const welcome = `00 00 00 37 02 00 00 00 ${HELLO_BODY}`;
    expect(hexOf((buffer, offset) => encodeHello(buffer, offset, HELLO, true))).toBe(welcome);
    for (const [hex, isAnswer] of [
      [HELLO_BYTES, false],
      [welcome, true],
    ] as const) {
      const heard = new Heard();
      expect(heard.decoder.push(bytesOf(hex))).toBeUndefined();
      expect(heard.list).toEqual([{ isAnswer, ...HELLO }, 'batch-end']);
    }
  });

  test('refuse', () => {
    const refusal = { reason: 'role', version: 1, text: 'no' } as const;
    const hex = `00 00 00 10 03 00 00 00 ${MAGIC} 00 01 02 00 00 02 6e 6f`;
    expect(hexOf((buffer, offset) => encodeRefuse(buffer, offset, refusal))).toBe(hex);
    const heard = new Heard();
    heard.decoder.push(bytesOf(hex));
    expect(heard.list).toEqual([refusal, 'batch-end']);
  });

  test('heartbeat', () => {
    const beat = { sentUs: Number.MAX_SAFE_INTEGER, echoUs: 0x1_0000_0001, echoDelayUs: 9 };
    const hex =
      '00 00 00 18 04 00 00 00 00 1f ff ff ff ff ff ff 00 00 00 01 00 00 00 01 00 00 00 00 00 00 00 09';
    expect(hexOf((buffer, offset) => encodeHeartbeat(buffer, offset, beat))).toBe(hex);
    expect(decodeOpen(hex)).toEqual([beat]);
  });

  test('goodbye', () => {
    const hex = '00 00 00 05 05 00 00 00 00 03 62 79 65';
    expect(hexOf((buffer, offset) => encodeGoodbye(buffer, offset, 'bye'))).toBe(hex);
    expect(decodeOpen(hex)).toEqual([{ goodbye: 'bye' }]);
  });

  test.each([1, 2, 3])('frame of kind %d, with the virtio-net header before it', (kind) => {
    const source = memory(16);
    source.bytes.set([1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 0xaa, 0xbb, 0xcc], 2);
    const hex = `00 00 00 11 1${kind} 00 00 00 01 02 03 04 01 02 03 04 05 06 07 08 09 0a aa bb cc`;
    const encode = (buffer: FrameBuffer, offset: number) =>
      encodeFrame(buffer, offset, kind, 0x0102_0304, source, 12, 3);
    expect(hexOf(encode)).toBe(hex);
    const vnet = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10];
    expect(decodeOpen(hex)).toEqual([
      { kind, epoch: 0x0102_0304, vnet, bytes: [0xaa, 0xbb, 0xcc] },
    ]);
  });

  test('every cause has a code of its own', () => {
    const codes = Object.values(LINK_CAUSE_CODES);
    expect(new Set(codes).size).toBe(codes.length);
    expect(Math.max(...codes)).toBe(codes.length);
  });
});

describe('bounds', () => {
  test('a text longer than its limit is cut at a character', () => {
    const reason = 'ü'.repeat(LINK_TEXT_BYTES_MAX);
    const buffer = memory();
    const length = encodeMessage(buffer, 0, { type: 'reset', reason });
    const heard = new Heard();
    heard.decoder.open();
    heard.decoder.push(buffer.bytes.subarray(0, length));
    expect(heard.list[0]).toEqual({ type: 'reset', reason: 'ü'.repeat(LINK_TEXT_BYTES_MAX / 2) });
    const odd = encodeMessage(buffer, 0, { type: 'reset', reason: `a${reason}` });
    expect(buffer.view.getUint16(8)).toBe(LINK_TEXT_BYTES_MAX - 1);
    expect(odd).toBe(8 + 2 + LINK_TEXT_BYTES_MAX - 1);
  });

  test('control characters of a text are not handed out', () => {
    expect(decodeOpen('00 00 00 06 27 00 00 00 00 04 1b 5b 0a 41')).toEqual([
      { type: 'reset', reason: '?[?A' },
    ]);
  });

  test('a progress message of the longest list fits its bound and comes back whole', () => {
    const entries = Array.from({ length: LINK_PROGRESS_ENTRIES_MAX }, (_, index) => ({
      ...ENTRY_4,
      position: index,
    }));
    const buffer = memory();
    const length = encodeMessage(buffer, 0, { type: 'progress', entries });
    expect(length).toBe(linkMessageBytesMax({ type: 'progress', entries }));
    const heard = new Heard();
    heard.decoder.open();
    heard.decoder.push(buffer.bytes.subarray(0, length));
    expect(heard.list[0]).toEqual({ type: 'progress', entries });
    // An engine may keep the entries: they are not views of memory that is used again.
    buffer.bytes.fill(0);
    expect(heard.list[0]).toEqual({ type: 'progress', entries });
  });

  test('the longest frame passes, one byte more is an error before it is kept', () => {
    const header = memory(LINK_FRAME_HEADROOM);
    const heard = new Heard();
    heard.decoder.open();
    const source = memory(10 + FRAME_BYTES_MAX);
    const out = memory();
    const length = encodeFrame(out, 0, 1, 0, source, 10, FRAME_BYTES_MAX);
    expect(heard.decoder.push(out.bytes.subarray(0, length))).toBeUndefined();
    expect(heard.list).toHaveLength(2);
    header.view.setUint32(0, LINK_BODY_BYTES_MAX + 1);
    header.view.setUint32(4, 0x11 << 24);
    expect(heard.decoder.push(header.bytes.subarray(0, 8))?.error).toBe('too-long');
  });
});

describe('hostile bytes', () => {
  test.each([
    ['a reserved byte of the header', '00 00 00 04 20 00 00 01 00 00 00 01'],
    ['an unknown type', '00 00 00 00 28 00 00 00'],
    ['type 0', '00 00 00 00 00 00 00 00'],
    ['frame kind 0', '00 00 00 0e 10 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00'],
    ['frame kind 4', '00 00 00 0e 14 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00'],
    ['a frame without virtio-net header', '00 00 00 04 11 00 00 00 00 00 00 00'],
    ['a body too short for its fields', '00 00 00 03 20 00 00 00 00 00 00'],
    ['a body too long for its fields', '00 00 00 05 20 00 00 00 00 00 00 00 00'],
    ['a text past the end of its body', '00 00 00 03 27 00 00 00 00 02 41'],
    ['a cause without a meaning', '00 00 00 04 25 00 00 00 0f 00 00 00'],
    ['cause 0', '00 00 00 04 25 00 00 00 00 00 00 00'],
    ['a progress count that is not true', '00 00 00 04 26 00 00 00 00 01 00 00'],
    ['a count of addresses that is not true', '00 00 00 04 28 00 00 00 00 01 00 00'],
    ['flags of addresses without a meaning', '00 00 00 04 28 00 00 00 00 00 00 02'],
    [
      'an IP version that is none',
      `00 00 00 34 26 00 00 00 00 01 00 00 05${ENTRY_4_BYTES.slice(2)}`,
    ],
    ['a second hello', HELLO_BYTES],
    ['a time of 2^53', `00 00 00 18 04 00 00 00 00 20 00 00 00 00 00 00${' 00'.repeat(16)}`],
  ])('%s is malformed', (_what, hex) => {
    expect(decodeOpen(hex)).toEqual(['malformed']);
  });

  test.each([
    ['HTTP', '47 45 54 20 2f 20 48 54 54 50'],
    ['a frame before the hello', '00 00 00 0e 11 00 00 00'],
    ['a hello of 513 bytes', '00 00 02 01 01 00 00 00'],
    ['another magic', HELLO_BYTES.replace('52 00 02', '53 00 02')],
  ])('%s is not this protocol', (_what, hex) => {
    const heard = new Heard();
    expect(heard.decoder.push(bytesOf(hex))?.error).toBe('not-colo');
    expect(heard.list).toEqual([]);
    // It stays an error, whatever comes.
    expect(heard.decoder.push(bytesOf(HELLO_BYTES))?.error).toBe('not-colo');
    expect(heard.list).toEqual([]);
  });

  test('a hello of another version is told as such, whatever follows the version', () => {
    const hex = `00 00 00 0c 01 00 00 00 ${MAGIC} 01 02 99 99`;
    expect(new Heard().decoder.push(bytesOf(hex))).toMatchObject({
      error: 'version',
      version: 0x102,
    });
  });

  test.each([
    ['role 3', HELLO_BYTES.replace('00 02 02 05', '00 02 03 05')],
    ['state 0', HELLO_BYTES.replace('00 02 02 05', '00 02 02 00')],
    ['a timeout that would make the peer flood', HELLO_BYTES.replace('00 0f 42 40', '00 00 4e 1f')],
  ])('a hello with %s is malformed', (_what, hex) => {
    expect(new Heard().decoder.push(bytesOf(hex))?.error).toBe('malformed');
  });

  test('what came before the error is handed out, and its batch ends', () => {
    const heard = new Heard();
    heard.decoder.open();
    heard.decoder.push(bytesOf(`${CONTROL[0]![0]} 00 00 00 00 28 00 00 00`));
    expect(heard.list).toEqual([CONTROL[0]![1], 'batch-end']);
  });

  test('stop() from within a handler ends the handing out', () => {
    const heard = new Heard();
    heard.decoder.open();
    heard.onMessage = () => heard.decoder.stop();
    heard.decoder.push(bytesOf(`${CONTROL[0]![0]} ${CONTROL[1]![0]}`));
    expect(heard.list).toEqual([]);
  });
});

describe('memory', () => {
  test('a frame inside a chunk is handed out in place, also at an odd place of a larger buffer', () => {
    const out = memory(100);
    const source = memory(20);
    const length = encodeFrame(out, 7, 1, 0, source, 10, 3);
    const chunk = out.bytes.subarray(7, 7 + length);
    const heard = new Heard();
    heard.decoder.open();
    let seen: FrameBuffer | undefined;
    heard.onFrame = (_kind, _epoch, buffer) => {
      seen = buffer;
    };
    heard.decoder.push(chunk);
    expect(seen?.bytes).toBe(chunk);
    expect(seen?.view.byteOffset).toBe(7);
  });

  test('a frame put together stays valid until its batch has ended, though the next one has begun', () => {
    const out = memory(200);
    const source = memory(40);
    source.bytes.fill(0x11);
    let end = encodeFrame(out, 0, 1, 0, source, 10, 30);
    source.bytes.fill(0x22);
    end += encodeFrame(out, end, 1, 0, source, 10, 30);
    const heard = new Heard();
    heard.decoder.open();
    let borrowed: Uint8Array | undefined;
    let atBatchEnd: number[] = [];
    heard.onFrame = (_kind, _epoch, buffer, offset, length) => {
      borrowed = buffer.bytes.subarray(offset, offset + length);
    };
    heard.onBatchEnd = () => {
      atBatchEnd = [...borrowed!];
    };
    heard.decoder.push(out.bytes.subarray(0, 20));
    heard.decoder.push(out.bytes.subarray(20, end - 1));
    expect(atBatchEnd).toEqual(new Array(30).fill(0x11));
  });
});
