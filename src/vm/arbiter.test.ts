import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import type { CommandResult } from '../env/engine.ts';
import type { Role } from '../env/messages.ts';
import { PeerLossArbiter, type PeerLossFacts } from './arbiter.ts';
import { parsePeerLossSpec } from './spec.ts';

let directory = '';
let arbiters: PeerLossArbiter[] = [];

beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), 'colo-arbiter-'));
});
afterEach(() => {
  for (const arbiter of arbiters) arbiter.close();
  arbiters = [];
  rmSync(directory, { recursive: true });
});

const FACTS: PeerLossFacts = {
  reason: 'silent for 1000 ms',
  state: 'protected',
  epoch: 7,
  failoverReady: true,
  remote: '192.0.2.1:9000',
};

function setUp(
  role: Role,
  action: string,
  failover: CommandResult = { ok: true },
  timeoutUs = 10_000_000,
) {
  const done: string[] = [];
  const decisions: string[] = [];
  const arbiter = new PeerLossArbiter({
    role,
    spec: parsePeerLossSpec(role, action),
    timeoutUs,
    retryUs: 10_000,
    controlPath: '/run/control.sock',
    actions: {
      release: (reason) => void done.push(`release: ${reason}`),
      failover: () => {
        done.push('failover');
        return Promise.resolve(failover);
      },
      report: (_, fields) => void decisions.push(String(fields['decision'])),
    },
  });
  arbiters.push(arbiter);
  const until = async (condition: () => boolean) => {
    while (!condition()) await new Promise((resolve) => setTimeout(resolve, 2));
  };
  return { arbiter, done, decisions, until };
}

describe('PeerLossArbiter', () => {
  test('releases or takes over at once when told so', () => {
    const primary = setUp('primary', 'release');
    expect(primary.arbiter.holds).toBe(false);
    primary.arbiter.onPeerDown(FACTS);
    expect(primary.done).toEqual(['release: peer lost: silent for 1000 ms']);
    expect(primary.decisions).toEqual(['release']);
    const secondary = setUp('secondary', 'failover');
    secondary.arbiter.onPeerDown(FACTS);
    expect(secondary.done).toEqual(['failover']);
    expect(secondary.decisions).toEqual(['failover']);
  });

  test('does nothing but say so with hold and wait', () => {
    const primary = setUp('primary', 'hold');
    expect(primary.arbiter.holds).toBe(true);
    primary.arbiter.onPeerDown(FACTS);
    const secondary = setUp('secondary', 'wait');
    expect(secondary.arbiter.holds).toBe(false);
    secondary.arbiter.onPeerDown(FACTS);
    expect([...primary.done, ...secondary.done]).toEqual([]);
    expect([...primary.decisions, ...secondary.decisions]).toEqual(['hold', 'wait']);
  });

  test('says when the node refuses to take over', async () => {
    const { arbiter, decisions, until } = setUp('secondary', 'failover', {
      ok: false,
      error: 'no',
    });
    arbiter.onPeerDown(FACTS);
    await until(() => decisions.length === 2);
    expect(decisions).toEqual(['failover', 'refused']);
  });

  test('gives the command its evidence, and does what it says', async () => {
    const file = join(directory, 'evidence');
    const command = `exec:printf %s "$COLO_PEER_LOSS $COLO_CONTROL" > ${file}`;
    const { arbiter, done, decisions, until } = setUp('secondary', command);
    arbiter.onEvent({ atUs: 0, kind: 'vm', text: 'QEMU has left COLO: reason error' });
    arbiter.onEvent({ atUs: 0, kind: 'state', text: 'not of the VM' });
    arbiter.onPeerDown(FACTS);
    await until(() => done.length === 1);
    expect(done).toEqual(['failover']);
    expect(decisions).toEqual(['ask', 'failover']);
    const [json, control] = readFileSync(file, 'utf8').split(/ (?=\/)/);
    expect(JSON.parse(json!)).toEqual({
      role: 'secondary',
      ...FACTS,
      vmReports: ['QEMU has left COLO: reason error'],
    });
    expect(control).toBe('/run/control.sock');
  });

  test('holds when the command says no, and does not ask again', async () => {
    const { arbiter, done, decisions, until } = setUp('primary', 'exec:exit 1');
    expect(arbiter.holds).toBe(true);
    arbiter.onPeerDown(FACTS);
    await until(() => decisions.length === 2);
    await new Promise((resolve) => setTimeout(resolve, 40));
    expect(decisions).toEqual(['ask', 'hold']);
    expect(done).toEqual([]);
  });

  test('asks again after exit code 75, and after a command that hangs', async () => {
    const file = join(directory, 'count');
    const command = `exec:echo x >> ${file}; case $(wc -l < ${file}) in 1) exit 75;; 2) sleep 9;; esac`;
    const { arbiter, done, decisions, until } = setUp('primary', command, { ok: true }, 1_000_000);
    arbiter.onPeerDown(FACTS);
    await until(() => done.length === 1);
    expect(decisions).toEqual(['ask', 'ask', 'ask', 'release']);
  });

  test('asks again when the command could not be started', async () => {
    const { arbiter, decisions, done, until } = setUp('primary', `exec:: ${'x'.repeat(200_000)}`);
    arbiter.onPeerDown(FACTS);
    await until(() => decisions.length > 2);
    expect(new Set(decisions)).toEqual(new Set(['ask']));
    expect(done).toEqual([]);
  });

  test('forgets the question when the peer is back', async () => {
    const { arbiter, done, decisions } = setUp('secondary', 'exec:sleep 0.05');
    arbiter.onPeerDown(FACTS);
    arbiter.onPeerUp();
    await new Promise((resolve) => setTimeout(resolve, 150));
    expect(done).toEqual([]);
    expect(decisions).toEqual(['ask', 'none']);
    arbiter.onPeerUp();
    expect(decisions).toHaveLength(2);
  });

  test('a second loss ends the question about the first', async () => {
    const { arbiter, done, until } = setUp('primary', 'exec:sleep 0.05');
    arbiter.onPeerDown({ ...FACTS, reason: 'first' });
    arbiter.onPeerDown({ ...FACTS, reason: 'second' });
    await until(() => done.length > 0);
    await new Promise((resolve) => setTimeout(resolve, 80));
    expect(done).toEqual(['release: peer lost: second']);
  });
});

test('parsePeerLossSpec() takes the words of the role only', () => {
  expect(parsePeerLossSpec('primary', 'hold')).toEqual({ kind: 'hold' });
  expect(parsePeerLossSpec('secondary', 'failover')).toEqual({ kind: 'failover' });
  expect(parsePeerLossSpec('secondary', 'exec:a b')).toEqual({ kind: 'exec', command: 'a b' });
  for (const text of ['wait', 'failover', 'exec:', 'exec: ', '', 'Release']) {
    expect(() => parsePeerLossSpec('primary', text), text).toThrow(
      /Expected release, hold or exec/,
    );
  }
  for (const text of ['release', 'hold']) {
    expect(() => parsePeerLossSpec('secondary', text), text).toThrow(/Expected wait, failover or/);
  }
});
