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

test('parsePortSpec() takes the QEMU streams apart', () => {
  expect(parsePortSpec('qemu:unix:/run/vm1/nic.sock,server')).toEqual({
    kind: 'qemu',
    endpoint: { kind: 'unix', path: '/run/vm1/nic.sock' },
    isServer: true,
    hasVnetHeader: false,
  });
  expect(parsePortSpec('qemu:tcp:[::1]:9003,vnet_hdr')).toEqual({
    kind: 'qemu',
    endpoint: { kind: 'tcp', host: '::1', port: 9_003 },
    isServer: false,
    hasVnetHeader: true,
  });
});

test('parsePortSpec() takes packet queues apart', () => {
  expect(parsePortSpec('nfqueue:64,tap=tap0,bridge=br0')).toEqual({
    kind: 'nfqueue',
    queue: 64,
    tap: 'tap0',
    bridge: 'br0',
    failOpen: false,
  });
  expect(parsePortSpec('nfqueue:65534,bridge=br0,fail-open,tap=vnet1')).toMatchObject({
    queue: 65_534,
    tap: 'vnet1',
    failOpen: true,
  });
});

test('openPort() opens no packet queue alone', async () => {
  const opening = openPort('nfqueue:64,tap=tap0,bridge=br0');
  await expect(opening).rejects.toThrow('guest and network in one');
});

test.each([
  ['nfqueue:', 'a queue number, 0 to 65534'],
  ['nfqueue:65535,tap=tap0,bridge=br0', 'a queue number, 0 to 65534'],
  ['nfqueue:-1,tap=tap0,bridge=br0', 'a queue number, 0 to 65534'],
  ['nfqueue:64', 'it needs tap=IF'],
  ['nfqueue:64,tap=tap0', 'it needs tap=IF'],
  ['nfqueue:64,tap=,bridge=br0', '"tap=" is none of its options'],
  ['nfqueue:64,tap=tap0,bridge=br0,open', '"open" is none of its options'],
  ['nfqueue:64,tap=tap0,bridge=br0,tap=tap1', 'tap is given twice'],
  ['nfqueue:64,tap=tap0,bridge=a/b', 'cannot be the name'],
  ['pcap:', 'a file must follow'],
  ['qemu:', 'unix:PATH or tcp:HOST:PORT'],
  ['qemu:/run/x', 'unix:PATH or tcp:HOST:PORT'],
  ['qemu:unix:', 'a path must follow'],
  [`qemu:unix:/${'x'.repeat(107)}`, 'longer than 107 bytes'],
  ['qemu:tcp:localhost', 'unix:PATH or tcp:HOST:PORT'],
  ['qemu:tcp:localhost:0', '1 to 65535'],
  ['qemu:tcp:localhost:65536', '1 to 65535'],
  ['qemu:unix:/run/x,sever', 'no option "sever"'],
])('parsePortSpec() refuses "%s" and says why', (spec, reason) => {
  const error = errorOf(() => parsePortSpec(spec));
  expect(error.code).toBe('COLO_ERR_PORT_SPEC');
  expect(error.message).toContain(reason);
});

test('openPort() names the interface that does not exist', async () => {
  await expect(openPort('packet:nosuchif0')).rejects.toMatchObject({
    code: 'COLO_ERR_PACKET_OPEN',
    errno: 'ENODEV',
    path: 'nosuchif0',
    message: expect.stringContaining('no such interface'),
  });
});
