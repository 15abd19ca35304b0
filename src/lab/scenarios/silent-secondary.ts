/**
 * The secondary guest says nothing: its server hangs, then its cable is dead. Each time the compare
 * timeout asks for a checkpoint, and service goes on.
 *
 * @module
 */
import { type Bench, expect } from '../bench.ts';
import { monotonicMs } from '../clock.ts';
import { type Facts, type Scenario, tenth } from '../scenario.ts';

const COMPARE_TIMEOUT_MS = 200;
/** For a busy machine: scheduling, and the client's own way. */
const SLACK_MS = 1_000;
const TALKS = 3;
const CAUSES: ReadonlySet<string> = new Set(['secondary-silent', 'acknowledgement-behind']);

async function talk(bench: Bench): Promise<number> {
  const { ms } = await bench.client({ type: 'session', step: 'talk', name: 'steady', bytes: 500 });
  return ms;
}

/** One exchange while the secondary is silent; returns what it cost. */
async function talkInSilence(bench: Bench): Promise<{ requestMs: number; talkMs: number }> {
  const before = bench.vm.records.length;
  const startMs = monotonicMs();
  const talkMs = await talk(bench);
  const record = await bench.vm.made(before + 1, COMPARE_TIMEOUT_MS + SLACK_MS);
  const { cause } = record.request;
  expect(CAUSES.has(cause), `a checkpoint because of ${cause}`);
  const requestMs = record.requestedMs - startMs;
  expect(
    requestMs <= COMPARE_TIMEOUT_MS + SLACK_MS,
    `the checkpoint was asked for after ${tenth(requestMs)} ms`,
  );
  return { requestMs, talkMs };
}

async function run(bench: Bench): Promise<Facts> {
  await bench.client({ type: 'session', step: 'open', name: 'steady', openedBy: 'client' });
  await talk(bench);
  expect(bench.vm.requests.length === 1, 'a checkpoint before anything happened');

  bench.svm.stop();
  const hung = await talkInSilence(bench);
  const healed = bench.vm.requests.length;
  await talk(bench);
  expect(bench.vm.requests.length === healed, 'a checkpoint although the secondary is back');

  await bench.svm.ask({ type: 'mute' }, COMPARE_TIMEOUT_MS * 10);
  const cut = [];
  for (let index = 0; index < TALKS; index++) cut.push(await talkInSilence(bench));
  await bench.svm.ask({ type: 'unmute' }, COMPARE_TIMEOUT_MS * 10);
  // One more checkpoint may be on its way; after it the pair is in step again.
  await talk(bench);
  const requests = bench.vm.requests.length;
  const short = await bench.client({ type: 'short', count: 20, concurrency: 4, bytesEach: 5_000 });
  expect(short.completed === 20 && short.wrong === 0, `service: ${JSON.stringify(short)}`);
  expect(bench.vm.requests.length === requests, 'a checkpoint although the secondary is back');
  const all = [hung, ...cut];
  return {
    requestMs: tenth(Math.max(...all.map(({ requestMs }) => requestMs))),
    pauseMs: tenth(Math.max(...all.map(({ talkMs }) => talkMs))),
    checkpoints: bench.vm.records.length,
  };
}

export const silentSecondary: Scenario = {
  name: 'silent-secondary',
  text: 'the secondary hangs, then its cable is cut: a checkpoint within the compare timeout',
  families: [4, 6],
  run,
};
