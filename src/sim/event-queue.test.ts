import { describe, expect, test } from 'vitest';
import { Prng } from '../base/prng.ts';
import { NEVER } from '../base/time.ts';
import { cloneDeep } from './clone.ts';
import { EventQueue } from './event-queue.ts';

describe('EventQueue', () => {
  test('takes events by time, and in the order of scheduling at the same time', () => {
    const queue = new EventQueue();
    const prng = new Prng(7);
    const times = Array.from({ length: 500 }, () => prng.nextBelow(50));
    times.forEach((atUs, i) => {
      queue.at(atUs, String(i), () => {});
    });
    const taken: [number, number][] = [];
    for (let event = queue.take(); event !== undefined; event = queue.take()) {
      taken.push([event.atUs, Number(event.kind)]);
      expect(queue.nowUs).toBe(event.atUs);
    }
    const expected = times.map((atUs, i): [number, number] => [atUs, i]);
    expected.sort((a, b) => a[0] - b[0] || a[1] - b[1]);
    expect(taken).toEqual(expected);
  });

  test('never goes back in time, and passes over what was cancelled', () => {
    const queue = new EventQueue();
    queue.at(100, 'a', () => {});
    queue.take();
    const late = queue.at(5, 'late', () => {});
    expect(late.atUs).toBe(100);
    late.cancelled = true;
    expect(queue.nextUs()).toBe(NEVER);
    expect(queue.take()).toBeUndefined();
  });
});

describe('cloneDeep()', () => {
  test('copies everything and shares nothing', () => {
    const state = {
      map: new Map([['a', { list: [1, 2], bytes: Uint8Array.of(9) }]]),
      set: new Set([3]),
      at: NEVER,
    };
    const copy = cloneDeep(state);
    expect(copy).toEqual(state);
    copy.map.get('a')!.bytes[0] = 1;
    copy.map.get('a')!.list.push(3);
    copy.set.add(4);
    expect(state.map.get('a')).toEqual({ list: [1, 2], bytes: Uint8Array.of(9) });
    expect(state.set.size).toBe(1);
  });

  test('refuses what is not plain data, so that no checkpoint copies half a guest', () => {
    expect(() => cloneDeep({ run: () => {} })).toThrow('function');
    expect(() => cloneDeep({ queue: new EventQueue() })).toThrow('class');
  });
});
