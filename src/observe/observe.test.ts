import { describe, expect, it } from 'vitest';
import type { ProxyEvent } from '../env/messages.ts';
import { EventRing } from './events.ts';
import { createLog, formatLogLine } from './log.ts';

function event(text: string): ProxyEvent {
  return { atUs: 1, kind: 'state', text };
}

describe('EventRing', () => {
  it('keeps the last events and numbers all of them', () => {
    const ring = new EventRing(3, () => new Date(0));
    for (const text of ['a', 'b', 'c', 'd', 'e']) ring.add(event(text));
    expect(ring.list().map(({ number, text }) => [number, text])).toEqual([
      [3, 'c'],
      [4, 'd'],
      [5, 'e'],
    ]);
    expect(ring.list(2).map(({ text }) => text)).toEqual(['d', 'e']);
    expect(ring.list()[0]?.at).toBe('1970-01-01T00:00:00.000Z');
  });

  it('lists what there is while it is not full', () => {
    const ring = new EventRing(10);
    expect(ring.list()).toEqual([]);
    ring.add(event('a'));
    expect(ring.list(5).map(({ text }) => text)).toEqual(['a']);
  });

  it('tells followers until they stop', () => {
    const ring = new EventRing();
    const seen: string[] = [];
    const stop = ring.follow(({ text }) => seen.push(text));
    ring.add(event('a'));
    stop();
    ring.add(event('b'));
    expect(seen).toEqual(['a']);
  });
});

describe('createLog()', () => {
  it('writes JSON lines with level, time and role', () => {
    const lines: string[] = [];
    const write = (line: string): void => void lines.push(line);
    const log = createLog({ level: 'info', json: true, role: 'primary', write });
    log.debug({}, 'not this');
    log.warn({ peer: 'x', held: 3 }, 'Peer lost');
    expect(lines).toHaveLength(1);
    const record = JSON.parse(lines[0] ?? '');
    expect(record).toMatchObject({ level: 'warn', role: 'primary', held: 3, msg: 'Peer lost' });
    expect(Number.isNaN(Date.parse(record.time))).toBe(false);
  });

  it('writes one readable line otherwise', () => {
    const lines: string[] = [];
    const write = (line: string): void => void lines.push(line);
    createLog({ level: 'debug', json: false, role: 'secondary', write }).info(
      { epoch: 3, reason: 'silent' },
      'Peer lost',
    );
    expect(lines[0]).toMatch(
      /^\d\d:\d\d:\d\d\.\d{3} info {2}secondary: Peer lost \(epoch=3, reason=silent\)\n$/,
    );
  });
});

describe('formatLogLine()', () => {
  it('lets no terminal escape through', () => {
    const line = JSON.stringify({ time: 'x', level: 'info', msg: 'm', output: '\u001b[2Jgone\n' });
    expect(formatLogLine(line)).not.toContain('\u001b');
    expect(formatLogLine(line)).toContain('\\x1b[2Jgone\\x0a');
  });

  it('gives back what is not JSON', () => {
    expect(formatLogLine('plain')).toBe('plain');
  });
});
