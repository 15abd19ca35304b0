import { expect, test } from 'vitest';
import { HardwareAddresses } from './hardware-addresses.ts';

/** IP address from the beginning, MAC address from byte 16. */
function entry(ip: readonly number[], mac: readonly number[]): DataView {
  const view = new DataView(new ArrayBuffer(22));
  for (const [i, byte] of ip.entries()) view.setUint8(i, byte);
  for (const [i, byte] of mac.entries()) view.setUint8(16 + i, byte);
  return view;
}

function look(table: HardwareAddresses, ipVersion: number, ip: readonly number[]): string {
  const view = entry(ip, [9, 9, 9, 9, 9, 9]);
  const isKnown = table.write(view, ipVersion, 0, 16);
  const text = Buffer.from(new Uint8Array(view.buffer, 16)).toString('hex');
  return isKnown ? text : `unknown ${text}`;
}

const V4 = [10, 0, 0, 9];
const V6 = [0xfd, 0x77, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9];
const MAC = [2, 0, 0, 0, 0, 9];

test('HardwareAddresses tells the address last seen, by IP version', () => {
  const table = new HardwareAddresses();
  expect(look(table, 4, V4)).toBe('unknown 000000000000');
  table.learn(entry(V4, MAC), 4, 0, entry(V4, MAC), 16);
  table.learn(entry(V6, [2, 1, 1, 1, 1, 6]), 6, 0, entry(V6, [2, 1, 1, 1, 1, 6]), 16);
  expect(look(table, 4, V4)).toBe('020000000009');
  expect(look(table, 6, V6)).toBe('020101010106');
  const moved = entry(V4, [2, 0, 0, 0, 0, 0xaa]);
  table.learn(moved, 4, 0, moved, 16);
  expect(look(table, 4, V4)).toBe('0200000000aa');
  expect(look(table, 4, [10, 0, 0, 8])).toBe('unknown 000000000000');
});

test.each([
  ['a group address', [3, 0, 0, 0, 0, 9]],
  ['zero', [0, 0, 0, 0, 0, 0]],
])('HardwareAddresses does not learn %s', (_name, mac) => {
  const table = new HardwareAddresses();
  table.learn(entry(V4, mac), 4, 0, entry(V4, mac), 16);
  expect(look(table, 4, V4)).toBe('unknown 000000000000');
});

test('HardwareAddresses knows thousands, and forgets rather than mixes up', () => {
  const table = new HardwareAddresses();
  const count = 200_000;
  for (let i = 0; i < count; i++) {
    const ip = entry([10, i >>> 16, (i >>> 8) & 255, i & 255], []);
    ip.setUint16(16, 0x0200);
    ip.setUint32(18, i);
    table.learn(ip, 4, 0, ip, 16);
  }
  let known = 0;
  for (let i = 0; i < count; i++) {
    const found = look(table, 4, [10, i >>> 16, (i >>> 8) & 255, i & 255]);
    if (found.startsWith('unknown')) continue;
    known++;
    expect(found).toBe(`0200${i.toString(16).padStart(8, '0')}`);
  }
  expect(known).toBeGreaterThan(30_000);
  expect(known).toBeLessThanOrEqual(65_536);
});
