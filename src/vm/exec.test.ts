import { existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { checkpointRequest } from '../../test/support/recording-node.ts';
import { SILENT_LOG } from '../../test/support/silent-log.ts';
import type { Log, LogFields } from '../env/log.ts';
import { parseEndpoint } from './endpoint.ts';
import { ExecVmDriver } from './exec.ts';
import { openVm, type VmSpecs } from './open.ts';
import { parseNfnetlinkSpec, parseVmSpec } from './spec.ts';

let directory: string;
let driver: ExecVmDriver | undefined;
const errors: LogFields[] = [];
const log: Log = { ...SILENT_LOG, error: (fields) => void errors.push(fields) };

beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), 'colo-exec-'));
  errors.length = 0;
});
afterEach(async () => {
  await driver?.close();
  rmSync(directory, { recursive: true });
});

function create(command: string, timeoutUs = 10_000_000): ExecVmDriver {
  driver = new ExecVmDriver({ command, log, controlPath: '/run/x.sock', timeoutUs });
  return driver;
}
const file = (name: string): string => join(directory, name);
/** None of a file that was opened and not yet written. */
const lines = (name: string): string[] =>
  existsSync(file(name)) ? (readFileSync(file(name), 'utf8').match(/.+/g) ?? []) : [];

async function until(condition: () => boolean): Promise<void> {
  for (let i = 0; i < 1_000 && !condition(); i++) await new Promise((r) => setTimeout(r, 5));
  expect(condition()).toBe(true);
}

describe('ExecVmDriver', () => {
  it('runs the command with the request and the control socket in its environment', async () => {
    const vm = create(`printf '%s\\n%s\\n' "$COLO_REQUEST" "$COLO_CONTROL" > ${file('out')}`);
    vm.requestCheckpoint(checkpointRequest(17));
    await until(() => lines('out').length === 2);
    expect(JSON.parse(lines('out')[0] ?? '')).toEqual(checkpointRequest(17));
    expect(lines('out')[1]).toBe('/run/x.sock');
    await until(() => vm.status()['succeeded'] === 1);
  });

  it('runs one command at a time, and of the waiting requests only the newest', async () => {
    const record = `echo "$COLO_REQUEST" | sed 's/.*"id":\\([0-9]*\\).*/\\1/' >> ${file('out')}`;
    const vm = create(`${record}; while [ ! -e ${file('go')} ]; do sleep 0.01; done`);
    for (const id of [1, 2, 3]) vm.requestCheckpoint(checkpointRequest(id));
    await until(() => lines('out').length === 1);
    await new Promise((resolve) => setTimeout(resolve, 50));
    expect(lines('out')).toEqual(['1']);
    const { writeFileSync } = await import('node:fs');
    writeFileSync(file('go'), '');
    await until(() => vm.status()['succeeded'] === 2);
    expect(lines('out')).toEqual(['1', '3']);
    expect(vm.status()['superseded']).toBe(1);
  });

  it('forgets a waiting request when a checkpoint begins', async () => {
    const vm = create(`echo run >> ${file('out')}; sleep 0.1`);
    vm.requestCheckpoint(checkpointRequest(1));
    vm.requestCheckpoint(checkpointRequest(2));
    vm.onEvent({ atUs: 1, kind: 'checkpoint-begun', text: '' });
    await until(() => vm.status()['succeeded'] === 1);
    await new Promise((resolve) => setTimeout(resolve, 50));
    expect(lines('out')).toEqual(['run']);
  });

  it('survives a command that cannot be started', () => {
    const vm = create(`: ${'x'.repeat(200_000)}`);
    vm.requestCheckpoint(checkpointRequest(5));
    expect(errors[0]).toMatchObject({ requestId: 5, error: 'spawn E2BIG' });
    expect(vm.status()).toMatchObject({ failed: 1, running: false });
  });

  it('is not kept alive by what commands leave running', async () => {
    // The test runner has some of its own, which come and go.
    const pipes = () => process.getActiveResourcesInfo().filter((name) => name === 'PipeWrap');
    const before = pipes().length;
    const vm = create('sleep 2 & exit 0');
    for (let id = 1; id <= 10; id++) {
      vm.requestCheckpoint(checkpointRequest(id));
      await until(() => vm.status()['succeeded'] === id);
    }
    expect(pipes().length).toBeLessThan(before + 10);
  });

  it('logs a failure with its output', async () => {
    const vm = create('echo no disk >&2; exit 3');
    vm.requestCheckpoint(checkpointRequest(5));
    await until(() => errors.length === 1);
    expect(errors[0]).toMatchObject({ requestId: 5, exitCode: 3 });
    expect(vm.status()).toMatchObject({ failed: 1, running: false });
  });

  it('ends a command that takes too long, with all that it started', async () => {
    const vm = create(`sleep 60 & echo $! > ${file('pid')}; wait`, 200_000);
    vm.requestCheckpoint(checkpointRequest());
    await until(() => vm.status()['failed'] === 1);
    expect(vm.status()['timedOut']).toBe(1);
    const pid = Number(lines('pid')[0]);
    await until(() => !isAlive(pid));
  });

  it('ends the command on close, also one that ignores SIGTERM', async () => {
    const vm = create(`trap '' TERM; echo $$ > ${file('pid')}; while :; do sleep 0.05; done`);
    vm.requestCheckpoint(checkpointRequest());
    await until(() => lines('pid').length === 1);
    await vm.close();
    expect(isAlive(Number(lines('pid')[0]))).toBe(false);
    vm.requestCheckpoint(checkpointRequest());
    expect(vm.status()['started']).toBe(1);
  });
});

describe('parseVmSpec()', () => {
  it('reads the drivers and refuses the rest', () => {
    expect(parseVmSpec('none')).toEqual({ kind: 'none' });
    expect(parseVmSpec('exec:a b:c')).toEqual({ kind: 'exec', command: 'a b:c' });
    for (const text of [
      '',
      'exec',
      'exec:',
      'exec: ',
      'none:',
      'NONE',
      'exec:a\0b',
      'qmp:',
      'qmp:x',
    ]) {
      expect(() => parseVmSpec(text)).toThrow(
        expect.objectContaining({ code: 'COLO_ERR_VM_SPEC' }),
      );
    }
  });
});

describe('openVm()', () => {
  it('names the driver as the user wrote it', () => {
    const others = { nfnetlink: undefined, notify: undefined };
    const nameOf = (text: string, rest: Partial<VmSpecs> = {}) =>
      openVm({ vm: parseVmSpec(text), ...others, ...rest }, { role: 'primary', log }).name;
    for (const text of ['none', 'exec:sync', 'qmp:unix:/run/qmp', 'qmp:[::1]:4444']) {
      expect(nameOf(text)).toBe(text);
    }
    const nfnetlink = parseNfnetlinkSpec('4711');
    expect(nameOf('none', { nfnetlink })).toBe('nfnetlink:4711');
    const notify = parseEndpoint('127.0.0.1:9009');
    expect(nameOf('exec:sync', { nfnetlink, notify })).toBe(
      'exec:sync + nfnetlink:4711 + notify:127.0.0.1:9009',
    );
  });
});

function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0);
    // A zombie that init has not yet reaped answers the signal as well.
    return !readFileSync(`/proc/${pid}/stat`, 'utf8').includes(') Z ');
  } catch {
    return false;
  }
}
