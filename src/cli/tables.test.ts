import { describe, expect, it } from 'vitest';
import type { NodeStatus } from './node.ts';
import {
  formatBytes,
  formatEvent,
  formatFlows,
  formatStatus,
  formatTable,
  formatUs,
} from './tables.ts';

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

const COUNTERS = { receivedFrames: 7, receivedBytes: 0, sentFrames: 1_234, sentBytes: 0 };

const STATUS: NodeStatus = {
  role: 'secondary',
  state: 'protected',
  reason: 'checkpoint committed',
  epoch: 3,
  flows: 12,
  held: { frames: 2, bytes: 2_048 },
  released: 0,
  compared: 0,
  dropped: { 'net-before-failover': 5, unused: 0 },
  counters: {},
  divergences: 0,
  checkpoints: { requested: 0, committed: 3 },
  latencyUs: { p50: 90, p99: 1_500, max: 2_000_000 },
  failoverReady: true,
  peer: { connected: true, remote: '192.0.2.1:9000', rttUs: 180, lastDownReason: 'none' },
  ports: {
    net: { name: 'packet:cp0', ...COUNTERS, dropped: { 'kernel-queue-full': 2, 'too-long': 1 } },
    guest: { name: 'packet:tap0', ...COUNTERS, dropped: {} },
  },
  link: {
    connected: true,
    lastDownReason: 'none',
    security: 'tls-psk',
    remote: '192.0.2.1:9000',
    peer: undefined,
    rttUs: 180,
    queueBytes: 0,
    sentBytes: 0,
    sentFrames: 0,
    sentMessages: 0,
    receivedBytes: 0,
    receivedFrames: 0,
    receivedMessages: 0,
    dropped: {},
    refused: {},
    ups: 1,
    downs: {},
  },
  vm: { driver: `exec:${'x'.repeat(100)}` },
  process: { version: '1.2.3', pid: 77, uptimeUs: 65_000_000, memoryBytes: 0 },
};

describe('formatStatus()', () => {
  it('says at the top what the node is and why', () => {
    const text = formatStatus(STATUS);
    expect(text.split('\n')[0]).toMatch(/^secondary +protected: checkpoint committed$/);
    expect(text).toMatch(/^peer +192\.0\.2\.1:9000, round trip 180 us, tls-psk$/m);
    expect(text).toMatch(/^may take over +yes$/m);
    expect(text).toMatch(/^net +packet:cp0 +7 +1234 +3$/m);
    expect(text).toMatch(/^net-before-failover +5$/m);
    expect(text).not.toContain('unused');
    expect(text.split('\n').every((line) => line.length <= 100)).toBe(true);
  });

  it('says why there is no peer', () => {
    const peer = { ...STATUS.peer, connected: false, lastDownReason: 'silent for 1000 ms' };
    expect(formatStatus({ ...STATUS, peer })).toMatch(
      /^peer +not connected \(silent for 1000 ms\)$/m,
    );
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
