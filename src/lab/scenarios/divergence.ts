/**
 * The guests answer differently: the client gets the primary's answer, and not before the secondary
 * has become its copy.
 *
 * @module
 */
import { type Bench, expect } from '../bench.ts';
import { sleep } from '../clock.ts';
import { type Facts, PATIENT_COMPARE_MS, type Scenario, tenth } from '../scenario.ts';

const TOKEN_COUNT = 6;
const INTERVAL_MS = 150;
const RECORD_MS_MAX = 2_000;

async function run(bench: Bench): Promise<Facts> {
  // The least time between two checkpoints has passed since the first one.
  await sleep(INTERVAL_MS);
  const synced = bench.vm.records.length;
  const { tokens } = await bench.client({
    type: 'tokens',
    count: TOKEN_COUNT,
    intervalMs: INTERVAL_MS,
  });
  // The client has its answer a moment before the VM layer has its record.
  await bench.vm.made(synced + TOKEN_COUNT, RECORD_MS_MAX);
  const records = bench.vm.records.slice(synced);
  for (const [index, { token, atMs }] of tokens.entries()) {
    const record = records[index]!;
    const { request } = record;
    expect(token === bench.pvm.tokens[index], `answer ${index} is not the primary guest's`);
    expect(token !== bench.svm.tokens[index], `both guests made up the same token ${index}`);
    expect(
      atMs >= record.commitAskedMs,
      `answer ${index} came ${tenth(record.commitAskedMs - atMs)} ms before its checkpoint was committed`,
    );
    expect(request.cause === 'different-bytes', `cause ${request.cause} for answer ${index}`);
    expect(
      request.primaryExcerpt !== request.secondaryExcerpt,
      `the excerpts of request ${request.id} do not differ`,
    );
  }
  // The copies are alike again: nothing more to ask for.
  await bench.client({ type: 'short', count: 20, concurrency: 4, bytesEach: 5_000 });
  expect(bench.vm.requests.length === synced + TOKEN_COUNT, 'a checkpoint without a divergence');
  const delays = records.map(({ request }) => request.delayUs);
  const frozen = records.map(({ frozenMs, resumedMs }) => resumedMs - frozenMs);
  return {
    divergences: TOKEN_COUNT,
    checkpoints: bench.vm.records.length,
    requestDelayUs: Math.max(...delays),
    frozenMs: tenth(Math.max(...frozen)),
    pauseMs: tenth(Math.max(...tokens.map(({ ms }) => ms))),
  };
}

export const divergence: Scenario = {
  name: 'divergence',
  text: 'the guests answer differently: no differing byte before the checkpoint is committed',
  families: [4, 6],
  compareTimeoutMs: PATIENT_COMPARE_MS,
  run,
};
