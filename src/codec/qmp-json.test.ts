import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { decodeQmp, encodeQmpCommand, QmpLineDecoder } from './qmp-json.ts';

const ascii = (bytes: Uint8Array) => String.fromCharCode(...bytes);
const utf8 = (text: string) => new TextEncoder().encode(text);

describe('decodeQmp()', () => {
  test('reads the greeting of QEMU 7.2', () => {
    const line =
      '{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}, "package": "Debian 1:7.2+dfsg-7+deb12u18+b3"}, "capabilities": ["oob"]}}';
    expect(decodeQmp(line)).toEqual({ kind: 'greeting', version: '7.2.22' });
  });

  test('reads the events of a checkpoint and of a failover', () => {
    expect(
      decodeQmp('{"timestamp": {"seconds": 1700000000, "microseconds": 356695}, "event": "STOP"}'),
    ).toEqual({ kind: 'event', name: 'STOP', data: {}, atUs: 1_700_000_000_356_695 });
    expect(
      decodeQmp(
        '{"timestamp": {"seconds": 1, "microseconds": 2}, "event": "COLO_EXIT", "data": {"mode": "secondary", "reason": "error"}}',
      ),
    ).toEqual({
      kind: 'event',
      name: 'COLO_EXIT',
      data: { mode: 'secondary', reason: 'error' },
      atUs: 1_000_002,
    });
  });

  test('gives no time for an event whose clock failed', () => {
    const line = '{"timestamp": {"seconds": -1, "microseconds": -1}, "event": "RESUME"}';
    expect(decodeQmp(line)).toMatchObject({ kind: 'event', atUs: 0 });
  });

  test('reads answers and errors, with and without id', () => {
    expect(decodeQmp('{"return": {}, "id": 7}')).toEqual({ kind: 'return', id: 7, value: {} });
    expect(decodeQmp('{"return": []}')).toEqual({ kind: 'return', id: undefined, value: [] });
    expect(
      decodeQmp(
        '{"id": 9, "error": {"class": "CommandNotFound", "desc": "The command x has not been found"}}',
      ),
    ).toEqual({
      kind: 'error',
      id: 9,
      errorClass: 'CommandNotFound',
      description: 'The command x has not been found',
    });
    expect(decodeQmp('{"error": {"class": 3}}')).toEqual({
      kind: 'error',
      id: undefined,
      errorClass: '',
      description: '',
    });
  });

  test('calls everything else unknown', () => {
    for (const line of [
      '',
      'garbage',
      '{"event": "STOP"',
      '{"return": NaN}',
      `${'['.repeat(100_000)}`,
    ]) {
      expect(decodeQmp(line)).toEqual({ kind: 'unknown', reason: 'not-json' });
    }
    for (const line of ['[]', '3', 'null', '"STOP"', '[{"event":"STOP"}]']) {
      expect(decodeQmp(line)).toEqual({ kind: 'unknown', reason: 'not-an-object' });
    }
    for (const line of ['{}', '{"event": 3}', '{"error": "x"}', '{"Return": {}}']) {
      expect(decodeQmp(line)).toEqual({ kind: 'unknown', reason: 'no-known-member' });
    }
    expect(decodeQmp('{"QMP": null}')).toEqual({ kind: 'greeting', version: '' });
  });

  test('never throws, on any JSON and on any text', () => {
    fc.assert(
      fc.property(fc.oneof(fc.json(), fc.string(), fc.string({ unit: 'binary' })), (line) => {
        decodeQmp(line);
      }),
      { numRuns: 300 },
    );
    const member = fc.constantFrom(
      'event',
      'return',
      'error',
      'QMP',
      'data',
      'id',
      'timestamp',
      'class',
    );
    const value = fc.dictionary(
      member,
      fc.oneof(fc.jsonValue(), fc.dictionary(member, fc.jsonValue())),
    );
    fc.assert(
      fc.property(value, (message) => {
        decodeQmp(JSON.stringify(message));
      }),
      { numRuns: 300 },
    );
  });
});

describe('encodeQmpCommand()', () => {
  test('writes the commands that the driver uses', () => {
    expect(ascii(encodeQmpCommand('qmp_capabilities', 1))).toBe(
      '{"execute":"qmp_capabilities","id":1}\n',
    );
    expect(
      ascii(encodeQmpCommand('migrate-set-parameters', 2, { 'x-checkpoint-delay': 20000 })),
    ).toBe(
      '{"execute":"migrate-set-parameters","arguments":{"x-checkpoint-delay":20000},"id":2}\n',
    );
    expect(ascii(encodeQmpCommand('x-colo-lost-heartbeat', 3))).toBe(
      '{"execute":"x-colo-lost-heartbeat","id":3}\n',
    );
  });

  test('is ASCII on one line whatever the arguments are', () => {
    fc.assert(
      fc.property(fc.string({ unit: 'binary' }), (text) => {
        const line = encodeQmpCommand('x', 1, { text });
        expect(line.every((byte) => byte < 0x7f)).toBe(true);
        expect(line.indexOf(0x0a)).toBe(line.length - 1);
        expect(JSON.parse(ascii(line))).toEqual({ execute: 'x', arguments: { text }, id: 1 });
      }),
    );
  });
});

describe('QmpLineDecoder', () => {
  test('takes LF, CR LF and empty lines', () => {
    const decoder = new QmpLineDecoder(100);
    expect(decoder.push(utf8('a\r\n\r\n\nb\nc')).lines).toEqual(['a', 'b']);
    expect(decoder.push(utf8('\n')).lines).toEqual(['c']);
  });

  test('skips a line above the limit to its end and goes on', () => {
    const decoder = new QmpLineDecoder(4);
    expect(decoder.push(utf8('1234\n12345\nab'))).toEqual({ lines: ['1234'], tooLong: 1 });
    expect(decoder.push(utf8('cde'))).toEqual({ lines: [], tooLong: 1 });
    expect(decoder.push(utf8('x'.repeat(1000)))).toEqual({ lines: [], tooLong: 0 });
    expect(decoder.push(utf8('x\nok\n'))).toEqual({ lines: ['ok'], tooLong: 0 });
  });

  test('fed byte by byte finds the same lines as at once, also inside characters', () => {
    fc.assert(
      fc.property(
        fc.array(
          fc.string({ unit: 'grapheme', minLength: 1 }).filter((text) => !/[\r\n]/.test(text)),
        ),
        (texts) => {
          const bytes = utf8(texts.map((text) => `${text}\n`).join(''));
          const at = new QmpLineDecoder(1_000).push(bytes).lines;
          const decoder = new QmpLineDecoder(1_000);
          const found = Array.from(bytes, (byte) => decoder.push(Uint8Array.of(byte)).lines).flat();
          expect(found).toEqual(at);
        },
      ),
    );
  });

  test('takes any bytes', () => {
    fc.assert(
      fc.property(fc.array(fc.uint8Array({ maxLength: 64 })), (chunks) => {
        const decoder = new QmpLineDecoder(32);
        for (const chunk of chunks) {
          for (const line of decoder.push(chunk).lines) {
            expect(line.length).toBeLessThanOrEqual(32);
            decodeQmp(line);
          }
        }
      }),
    );
  });
});
