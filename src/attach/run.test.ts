import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { describeAction, exclusively, runSteps } from './run.ts';
import type { Action, Step } from './types.ts';

let folder: string;
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'colo-attach-'));
});
afterEach(() => rmSync(folder, { recursive: true }));

const log = () => readFileSync(join(folder, 'log'), 'utf8');
const say = (word: string): Action => ({
  kind: 'run',
  command: ['sh', '-c', `echo ${word} >> ${folder}/log`],
});
const step = (word: string): Step => ({ action: say(word), undo: say(`un-${word}`) });
const failing = (text: string): Action => ({
  kind: 'run',
  command: ['sh', '-c', `echo "${text}" >&2; exit 3`],
});

describe('runSteps', () => {
  it('does all of them in order', () => {
    const heard: string[] = [];
    runSteps([step('a'), step('b')], (action) => heard.push(describeAction(action)));
    expect(log()).toBe('a\nb\n');
    expect(heard).toHaveLength(2);
  });

  it('takes back what it has done when one fails, the last one first', () => {
    const steps = [
      step('a'),
      { action: say('b'), undo: undefined },
      step('c'),
      { action: failing('no such thing\nsorry'), undo: say('never'), hint: 'a reason' },
      step('d'),
    ];
    const attempt = () => runSteps(steps, () => {});
    expect(attempt).toThrow(
      /^Failed: sh -c [\s\S]*: no such thing; sorry \(a reason.*\)\nNothing has been changed$/,
    );
    expect(log()).toBe('a\nb\nc\nun-c\nun-a\n');
  });

  it('says what it could not take back, and goes on with the rest', () => {
    const steps: Step[] = [
      step('a'),
      { action: say('b'), undo: failing('stuck') },
      { action: failing('bad'), undo: undefined },
    ];
    expect(() => runSteps(steps, () => {})).toThrow(/bad\nNot taken back: sh -c .*: stuck$/);
    expect(log()).toBe('a\nb\nun-a\n');
  });

  it('reports files that cannot be written and programs that are not there', () => {
    const write: Action = { kind: 'write', path: join(folder, 'no', 'x'), text: '1' };
    expect(() => runSteps([{ action: write, undo: undefined }], () => {})).toThrow(/ENOENT/);
    const run: Action = { kind: 'run', command: ['no-such-program-here'] };
    expect(() => runSteps([{ action: run, undo: undefined }], () => {})).toThrow(/ENOENT/);
    const fine: Action = { kind: 'write', path: join(folder, 'log'), text: '1' };
    runSteps([{ action: fine, undo: undefined }], () => {});
    expect(log()).toBe('1');
  });
});

describe('describeAction', () => {
  it('gives lines that a shell takes', () => {
    expect(describeAction({ kind: 'run', command: ['ip', 'link', 'set', "it's", 'a b'] })).toBe(
      "ip link set 'it'\\''s' 'a b'",
    );
    expect(describeAction({ kind: 'write', path: '/proc/x', text: '0' })).toBe('echo 0 > /proc/x');
  });
});

describe('exclusively', () => {
  it('waits for whoever else attaches or detaches in this network namespace', async () => {
    const order: string[] = [];
    const other = createServer();
    // Another run of the tests on this machine may hold it for a moment.
    await exclusively(() => order.push('first'));
    await new Promise<void>((resolve) => other.listen('\0colo-proxy-attach', resolve));
    const waiting = exclusively(() => order.push('last'));
    await new Promise((resolve) => setTimeout(resolve, 150));
    order.push('other');
    other.close();
    await waiting;
    expect(order).toEqual(['first', 'other', 'last']);
  });

  it('gives the lock back when the body throws', async () => {
    const attempt = exclusively(() => {
      throw new Error('no');
    });
    await expect(attempt).rejects.toThrow('no');
    await expect(exclusively(() => 1)).resolves.toBe(1);
  });
});
