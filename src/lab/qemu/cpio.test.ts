import { describe, expect, it } from 'vitest';
import { writeArchive } from './cpio.ts';

describe('writeArchive', () => {
  it('lays a member out as the kernel documents it', () => {
    const bytes = Buffer.from(
      writeArchive([{ name: 'init', bytes: Buffer.from('12345'), executable: true }]),
    );
    expect(bytes.toString('latin1', 0, 14)).toBe('07070100000001');
    expect(Number.parseInt(bytes.toString('latin1', 14, 22), 16)).toBe(0o100755);
    expect(Number.parseInt(bytes.toString('latin1', 54, 62), 16)).toBe(5);
    expect(bytes.toString('latin1', 110, 115)).toBe('init\0');
    // Header and name fill 115 bytes: one of padding, then the content, padded as well.
    expect(bytes.toString('latin1', 116, 124)).toBe('12345\0\0\0');
    expect(bytes.toString('latin1', 124, 130)).toBe('070701');
    expect(bytes.toString('latin1').includes('TRAILER!!!\0')).toBe(true);
    expect(bytes.length % 4).toBe(0);
  });
});
