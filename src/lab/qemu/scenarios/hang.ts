/**
 * A QEMU hangs (SIGSTOP). The secondary's: its node says so, and the PVM serves alone until it is back. The primary's: noticed, and then it is the
 * operator's to end it and let the secondary take over.
 *
 * @module
 */
import { expect } from '../../bench.ts';
import { monotonicMs } from '../../clock.ts';
import type { DaemonEvent } from '../../daemons.ts';
import { type Facts, type Scenario, tenth } from '../../scenario.ts';
import { type QemuBench, within } from '../qemu-bench.ts';
import { checkMemory, checkShort } from './checks.ts';

/** The driver's: half a second between two questions, two seconds for the answer; the rest is for a busy machine. */
const NOTICED_MS_MAX = 4_000;
const PROTECTED_MS_MAX = 15_000;
const SESSION = 'hang';

async function hangSecondary(bench: QemuBench): Promise<Facts> {
  const atMs = monotonicMs();
  bench.svm.signal('SIGSTOP');
  const talk = bench.client({ type: 'session', step: 'talk', name: SESSION, bytes: 1_000 });
  await within(NOTICED_MS_MAX, 'the client is served without the SVM', talk);
  const servedMs = monotonicMs() - atMs;
  const { state } = await bench.primary.status();
  expect(state === 'syncing' || state === 'unprotected', `the primary says ${state}`);
  await checkShort(bench, 10, 2);
  bench.svm.signal('SIGCONT');
  const continuedMs = monotonicMs();
  await bench.primary.reaches('protected', PROTECTED_MS_MAX);
  await bench.secondary.reaches('protected', PROTECTED_MS_MAX);
  const protectedMs = monotonicMs() - continuedMs;
  return { secondaryServedMs: tenth(servedMs), protectedAgainMs: tenth(protectedMs) };
}

async function hangPrimary(bench: QemuBench): Promise<Facts> {
  const index = bench.primary.events.length;
  const atMs = monotonicMs();
  bench.pvm.signal('SIGSTOP');
  const talk = bench.client({ type: 'session', step: 'talk', name: SESSION, bytes: 1_000 });
  const isHung = ({ fields }: DaemonEvent): boolean => fields?.['hung'] === true;
  await bench.primary.event('vm', index, NOTICED_MS_MAX, isHung);
  const noticedMs = monotonicMs() - atMs;
  await bench.killPrimaryNode();
  const { obeyedMs } = await bench.failover();
  await talk;
  const servedMs = monotonicMs() - atMs;
  await checkShort(bench, 10, 2);
  await checkMemory(bench);
  return {
    noticedMs: tenth(noticedMs),
    takeoverMs: tenth(obeyedMs - atMs - noticedMs),
    primaryServedMs: tenth(servedMs),
  };
}

async function run(bench: QemuBench): Promise<Facts> {
  await bench.client({ type: 'session', step: 'open', name: SESSION, openedBy: 'client' });
  await bench.client({ type: 'session', step: 'talk', name: SESSION, bytes: 1_000 });
  return { ...(await hangSecondary(bench)), ...(await hangPrimary(bench)) };
}

export const hang: Scenario<QemuBench> = {
  name: 'qemu-hang',
  text: 'a QEMU hangs: the secondary is left behind and comes back, the primary is noticed and replaced',
  families: [4],
  run,
};
