import { describe, expect, it } from 'vitest';
import { formatBytes, formatEvent, formatFlows, formatTable, formatUs } from './tables.ts';

describe('formatTable()', () => {
  it('aligns texts to the left and numbers to the right', () => {
    const rows = [
      ['NAME', 'COUNT'],
      ['a', 7],
      ['longer', 1234],
    ];
    expect(formatTable(rows)).toBe('NAME    COUNT\na           7\nlonger   1234\n');
    expect(formatTable([])).toBe('');
  });
});

describe('formatFlows()', () => {
  it('has a line for each flow', () => {
    const flow = {
      flow: 'tcp 10.0.0.2:80 > 10.0.0.9:4',
      tcpState: 'established',
      heldFrames: 2,
      heldBytes: 3_000,
      detail: { compared: 12 },
    };
    const [title, line] = formatFlows([flow]).split('\n');
    expect(title).toMatch(/^FLOW +STATE +HELD FRAMES +HELD BYTES +DETAIL$/);
    expect(line).toMatch(/^tcp 10\.0\.0\.2:80 > 10\.0\.0\.9:4 +established +2 +3000 +compared=12$/);
  });
});

describe('formatEvent()', () => {
  it('is one line without control characters, whatever a peer sends', () => {
    const event = {
      number: 3,
      at: 'T',
      kind: 'peer-down',
      text: 'bye\u001b[2J\n',
      fields: { a: 1 },
    };
    expect(formatEvent(event)).toBe('    3  T  peer-down              bye?[2J?  (a=1)\n');
  });
});

describe('units', () => {
  it('formatUs() and formatBytes() choose the unit', () => {
    expect([0, 999, 1_500, 2_000_000, 3_600_000_000, 90_000_000_000].map(formatUs)).toEqual([
      '0 us',
      '999 us',
      '1.5 ms',
      '2.0 s',
      '60 min',
      '25 h 0 min',
    ]);
    expect([0, 1_023, 1_536, 5 * 1024 ** 3].map(formatBytes)).toEqual([
      '0 bytes',
      '1023 bytes',
      '1.5 KiB',
      '5.0 GiB',
    ]);
  });
});
