import { describe, expect, test } from 'vitest';
import {
  decodeNetlinkError,
  encodeNetlinkError,
  HOST_LITTLE_ENDIAN,
  NetlinkStreamDecoder,
  NLM_F_ACK,
  NLM_F_REQUEST,
  readNetlinkHeader,
  splitNetlink,
} from './netlink.ts';
import {
  decodeColoNotify,
  decodeColoRequest,
  encodeColoRequest,
  encodeKernelNotify,
  encodeLegacyNotify,
  encodeLegacyRequest,
} from './nfnetlink-colo.ts';

/** Hexadecimal with blanks to bytes. */
function hex(text: string): Uint8Array {
  return Uint8Array.from(text.replaceAll(/\s/g, '').match(/../g) ?? [], (byte) =>
    Number.parseInt(byte, 16),
  );
}

function only(bytes: Uint8Array) {
  const { messages } = splitNetlink(bytes);
  expect(messages).toHaveLength(1);
  return messages[0]!;
}

const FIELDS = { flags: NLM_F_REQUEST | NLM_F_ACK, seq: 0x01020304, portId: 4711 };

// Golden bytes are those of a little-endian machine, the only kind this is built and run on.
describe.runIf(HOST_LITTLE_ENDIAN)('golden bytes', () => {
  const init = hex(`1c000000 030c 0500 04030201 67120000
                    00 00 0000  0500 0100 01 000000`);
  const notify = hex(`1c000000 000c 0000 00000000 67120000
                      00 00 0000  0800 0100 00000001`);

  test('encodeColoRequest() writes PROXY_INIT as the client of 2015', () => {
    expect(encodeColoRequest('init', 1, FIELDS)).toEqual(init);
  });

  test('encodeColoRequest() numbers the other messages 1, 2 and 4', () => {
    expect(encodeColoRequest('checkpoint', 2, FIELDS).subarray(4, 6)).toEqual(hex('010c'));
    expect(encodeColoRequest('failover', 2, FIELDS).subarray(4, 6)).toEqual(hex('020c'));
    expect(encodeColoRequest('reset', 2, FIELDS).subarray(4, 6)).toEqual(hex('040c'));
  });

  test('encodeKernelNotify() writes the result in network order', () => {
    expect(encodeKernelNotify(4711, true)).toEqual(notify);
  });

  test('encodeLegacyRequest() writes a bare header, as libxl does', () => {
    const fields = { flags: NLM_F_REQUEST | NLM_F_ACK, seq: 0, portId: 1 };
    expect(encodeLegacyRequest('init', fields)).toEqual(
      hex('10000000 1400 0500 00000000 01000000'),
    );
    const plain = { ...fields, flags: NLM_F_REQUEST };
    expect(encodeLegacyRequest('query', plain)).toEqual(
      hex('10000000 1100 0100 00000000 01000000'),
    );
    expect(encodeLegacyRequest('checkpoint', plain).subarray(4, 6)).toEqual(hex('1200'));
    expect(encodeLegacyRequest('failover', plain).subarray(4, 6)).toEqual(hex('1300'));
    expect(encodeLegacyRequest('reset', plain).subarray(4, 6)).toEqual(hex('1500'));
  });

  test('encodeLegacyNotify() has length 17 and is padded to 20', () => {
    expect(encodeLegacyNotify(3, true)).toEqual(
      hex('11000000 1100 0000 00000000 03000000 01 000000'),
    );
  });

  test('encodeNetlinkError() acknowledges with the header alone', () => {
    expect(encodeNetlinkError(only(init), 0, 4711)).toEqual(
      hex(`24000000 0200 0000 04030201 67120000 00000000
           1c000000 030c 0500 04030201 67120000`),
    );
  });

  test('encodeNetlinkError() quotes the whole request with an errno', () => {
    expect(encodeNetlinkError(only(init), 17, 4711)).toEqual(
      hex(`30000000 0200 0000 04030201 67120000 efffffff
           1c000000 030c 0500 04030201 67120000 00 00 0000  0500 0100 01 000000`),
    );
  });
});

describe('decodeColoRequest()', () => {
  test('reads verb, mode and ABI of all nine requests', () => {
    for (const verb of ['init', 'checkpoint', 'failover', 'reset'] as const) {
      for (const mode of [0, 1, 2] as const) {
        expect(decodeColoRequest(only(encodeColoRequest(verb, mode, FIELDS)))).toEqual({
          ok: true,
          abi: 'nfnetlink',
          verb,
          mode,
        });
      }
    }
    for (const verb of ['query', 'init', 'checkpoint', 'failover', 'reset'] as const) {
      expect(decodeColoRequest(only(encodeLegacyRequest(verb, FIELDS)))).toEqual({
        ok: true,
        abi: 'legacy',
        verb,
        mode: undefined,
      });
    }
  });

  /** PROXY_INIT after `change`, decoded. */
  function changed(change: (view: DataView, bytes: Uint8Array) => void, length = 28) {
    const bytes = encodeColoRequest('init', 1, FIELDS).slice(0, length);
    const view = new DataView(bytes.buffer);
    view.setUint32(0, length, HOST_LITTLE_ENDIAN);
    change(view, bytes);
    return decodeColoRequest(only(bytes));
  }

  test('names what is wrong with a message', () => {
    const nothing = () => {};
    expect(changed((_, bytes) => bytes.fill(3, 24, 25))).toMatchObject({
      failure: 'mode-out-of-range',
    });
    expect(changed((_, bytes) => bytes.fill(255, 24, 25))).toMatchObject({
      failure: 'mode-out-of-range',
    });
    expect(changed(nothing, 20)).toMatchObject({ failure: 'mode-missing' });
    expect(changed(nothing, 16)).toMatchObject({ failure: 'no-nfgenmsg' });
    expect(changed(nothing, 19)).toMatchObject({ failure: 'no-nfgenmsg' });
    const length = (value: number) => (view: DataView) =>
      view.setUint16(20, value, HOST_LITTLE_ENDIAN);
    expect(changed(length(4))).toMatchObject({ failure: 'mode-too-short' });
    expect(changed(length(3))).toMatchObject({ failure: 'mode-missing' });
    expect(changed(length(9))).toMatchObject({ failure: 'mode-missing' });
    expect(changed(length(8))).toMatchObject({ ok: true, mode: 1 });
    const attribute = (value: number) => (view: DataView) =>
      view.setUint16(22, value, HOST_LITTLE_ENDIAN);
    expect(changed(attribute(2))).toMatchObject({ failure: 'mode-missing' });
    expect(changed(attribute(0x4001))).toMatchObject({ ok: true, mode: 1 });
    const type = (value: number) => (view: DataView) =>
      view.setUint16(4, value, HOST_LITTLE_ENDIAN);
    expect(changed(type(0x0b03))).toMatchObject({ failure: 'unknown-subsystem' });
    expect(changed(type(0x0c05))).toMatchObject({ failure: 'unknown-message' });
    expect(changed(type(0x0c00))).toMatchObject({ failure: 'not-for-us' });
    expect(changed(type(0x0016))).toMatchObject({ failure: 'unknown-subsystem' });
  });

  test('takes the last of several mode attributes', () => {
    const bytes = new Uint8Array(36);
    bytes.set(encodeColoRequest('init', 1, FIELDS));
    bytes.set(encodeColoRequest('init', 2, FIELDS).subarray(20), 28);
    new DataView(bytes.buffer).setUint32(0, 36, HOST_LITTLE_ENDIAN);
    expect(decodeColoRequest(only(bytes))).toMatchObject({ ok: true, mode: 2 });
  });
});

describe('splitNetlink()', () => {
  const one = encodeColoRequest('init', 1, FIELDS);

  test('finds several messages, the last one without padding', () => {
    const bytes = new Uint8Array([
      ...one,
      ...encodeLegacyNotify(1, true),
      ...encodeLegacyNotify(1, true),
    ]);
    const split = splitNetlink(bytes.subarray(0, bytes.length - 3));
    expect(split.messages.map((message) => message.length)).toEqual([28, 17, 17]);
    expect(split.truncated).toBeUndefined();
    expect(split.strayBytes).toBe(0);
  });

  test('stops at a length below 16, and at one past the end', () => {
    for (const length of [0, 15, 29, 0xffff_ffff]) {
      const bytes = new Uint8Array([...one, ...one]);
      new DataView(bytes.buffer).setUint32(28, length, HOST_LITTLE_ENDIAN);
      const split = splitNetlink(bytes);
      expect(split.messages).toHaveLength(1);
      expect(split.truncated).toMatchObject({ offset: 28, length: 28, seq: 0x01020304 });
    }
  });

  test('counts what is too short for a header', () => {
    expect(splitNetlink(new Uint8Array(0)).strayBytes).toBe(0);
    expect(splitNetlink(one.subarray(0, 15)).strayBytes).toBe(15);
    expect(splitNetlink(new Uint8Array([...one, 1, 2, 3])).strayBytes).toBe(3);
  });
});

describe('NetlinkStreamDecoder', () => {
  test('waits for the padding of a message', () => {
    const decoder = new NetlinkStreamDecoder(8192);
    const bytes = encodeLegacyNotify(1, true);
    expect(decoder.push(bytes.subarray(0, 17)).messages).toHaveLength(0);
    expect(decoder.push(bytes.subarray(17)).messages).toHaveLength(1);
  });

  test('is broken by a length that no message can have, and stays so', () => {
    for (const length of [0, 15, 8193, 0xffff_ffff]) {
      const decoder = new NetlinkStreamDecoder(8192);
      const bytes = encodeLegacyRequest('init', FIELDS);
      new DataView(bytes.buffer).setUint32(0, length, HOST_LITTLE_ENDIAN);
      expect(decoder.push(bytes).broken).toMatchObject({ seq: FIELDS.seq });
      const later = decoder.push(encodeLegacyRequest('init', FIELDS));
      expect(later.messages).toHaveLength(0);
      expect(later.broken).toBeDefined();
    }
  });
});

describe('answers', () => {
  test('decodeNetlinkError() reads errno and request; 0 is not -0', () => {
    const request = only(encodeColoRequest('failover', 1, FIELDS));
    expect(decodeNetlinkError(only(encodeNetlinkError(request, 22, 9)))).toEqual({
      errno: 22,
      requestType: 0x0c02,
      requestSeq: FIELDS.seq,
    });
    expect(decodeNetlinkError(only(encodeNetlinkError(request, 0, 9)))?.errno).toBe(0);
  });

  test('decodeNetlinkError() refuses what is too short or another type', () => {
    const answer = encodeNetlinkError(only(encodeColoRequest('reset', 1, FIELDS)), 0, 9);
    const short = answer.slice(0, 32);
    new DataView(short.buffer).setUint32(0, 32, HOST_LITTLE_ENDIAN);
    expect(decodeNetlinkError(only(short))).toBeUndefined();
    expect(decodeNetlinkError(only(encodeKernelNotify(1, true)))).toBeUndefined();
  });

  test('decodeColoNotify() reads both ABIs', () => {
    expect(decodeColoNotify(only(encodeKernelNotify(1, true)))).toEqual({
      abi: 'nfnetlink',
      different: true,
    });
    expect(decodeColoNotify(only(encodeKernelNotify(1, false)))?.different).toBe(false);
    expect(decodeColoNotify(only(encodeLegacyNotify(1, true)))).toEqual({
      abi: 'legacy',
      different: true,
    });
    expect(decodeColoNotify(only(encodeLegacyNotify(1, false)))?.different).toBe(false);
    expect(decodeColoNotify(only(encodeLegacyRequest('query', FIELDS)))).toBeUndefined();
  });

  test('an answer to a header cut off by the end of the datagram stays inside it', () => {
    const bytes = encodeColoRequest('init', 1, FIELDS);
    new DataView(bytes.buffer).setUint32(0, 4_000_000_000, HOST_LITTLE_ENDIAN);
    const header = readNetlinkHeader(bytes, 0)!;
    expect(encodeNetlinkError(header, 22, 1)).toHaveLength(16 + 4 + 28);
  });
});
