import { expect, test } from 'vitest';
import { ColoError } from '../base/error.ts';
import { openPort, parsePortSpec } from './open.ts';

function errorOf(body: () => unknown): ColoError {
  try {
    body();
  } catch (error) {
    if (error instanceof ColoError) return error;
    throw error;
  }
  throw new Error('nothing was thrown');
}

test('parsePortSpec() takes the interface kinds apart', () => {
  expect(parsePortSpec('packet:tap0')).toEqual({ kind: 'packet', interfaceName: 'tap0' });
  expect(parsePortSpec('tap:vnet12.100')).toEqual({ kind: 'tap', interfaceName: 'vnet12.100' });
});

test.each([
  ['', 'no port kind'],
  ['eth0', 'no port kind "eth0"'],
  ['Packet:eth0', 'no port kind "Packet"'],
  ['packet', 'an interface name must follow'],
  ['packet:', 'an interface name must follow'],
  ['tap:sixteen-letters-', 'at most 15 bytes'],
  ['tap:ääääääää', 'at most 15 bytes'],
  ['packet:a/b', 'cannot be the name'],
  ['packet:a b', 'cannot be the name'],
  ['packet:eth0:1', 'cannot be the name'],
  ['packet:..', 'cannot be the name'],
])('parsePortSpec() refuses "%s" and says why', (spec, reason) => {
  const error = errorOf(() => parsePortSpec(spec));
  expect(error.code).toBe('COLO_ERR_PORT_SPEC');
  expect(error.message).toContain(reason);
});

test('openPort() names the interface that does not exist', () => {
  const error = errorOf(() => openPort('packet:nosuchif0'));
  expect(error).toMatchObject({
    code: 'COLO_ERR_PACKET_OPEN',
    errno: 'ENODEV',
    path: 'nosuchif0',
  });
  expect(error.message).toContain('no such interface');
});
