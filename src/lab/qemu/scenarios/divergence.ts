/**
 * Answers that no two machines make alike: the client gets the PVM's, and not one byte of it before QEMU has copied
 * the PVM's state to the SVM.
 *
 * @module
 */
import { expect } from '../../bench.ts';
import { sleep } from '../../clock.ts';
import type { DaemonEvent } from '../../daemons.ts';
import { type Facts, PATIENT_COMPARE_MS, type Scenario, tenth } from '../../scenario.ts';
import { readSegment } from '../../tcp-capture.ts';
import type { MachineEvent, QemuBench } from '../qemu-bench.ts';
import { checkMemory, checkTransfer, MIB, quantile } from './checks.ts';

const TOKENS = 5;
/** More than the least time between two checkpoints: each answer asks for one of its own. */
const INTERVAL_MS = 150;

/** One answer's way; milliseconds. */
interface Way {
  readonly divergenceToStop: number;
  readonly requestToStop: number;
  readonly stopToResume: number;
  readonly divergenceToRelease: number;
  readonly requestToRelease: number;
}

function wayOf(bench: QemuBench, askedMs: number, answeredMs: number): Way {
  const nodeEvent = (kind: string): number => {
    const isIt = (event: DaemonEvent): boolean =>
      event.kind === kind && bench.primary.timeOf(event) >= askedMs;
    const found = bench.primary.events.find(isIt);
    expect(found !== undefined, `the primary has had no ${kind}`);
    return bench.primary.timeOf(found);
  };
  const machineEvent = (name: string, fromMs: number): MachineEvent => {
    const found = bench.event('pvm', name, fromMs);
    expect(found !== undefined && found.atMs < answeredMs, `an answer came without a ${name}`);
    return found;
  };
  const divergence = nodeEvent('divergence');
  const request = nodeEvent('checkpoint-requested');
  const stop = machineEvent('STOP', askedMs);
  const resume = machineEvent('RESUME', stop.atMs);
  const answer = bench.recorder
    .frames()
    // A frame is captured when the lab reads it, which may be long after the client has.
    .filter(({ atMs }) => atMs >= askedMs)
    .map(readSegment)
    .filter((segment) => segment?.fromGuest === true && segment.payloadBytes > 0);
  const first = answer[0];
  expect(first !== undefined, 'the capture does not have the answer');
  const early = answer.filter((segment) => segment!.atMs < resume.atMs);
  const text = `${early.length} segments with data were on the client's cable before the SVM had the PVM's state`;
  expect(early.length === 0, text);
  const released = Math.min(first.atMs, answeredMs);
  return {
    divergenceToStop: stop.atMs - divergence,
    requestToStop: stop.atMs - request,
    stopToResume: resume.atMs - stop.atMs,
    divergenceToRelease: released - divergence,
    requestToRelease: released - request,
  };
}

async function run(bench: QemuBench): Promise<Facts> {
  await sleep(INTERVAL_MS);
  const before = await bench.committed();
  const asked = { type: 'tokens', count: TOKENS, intervalMs: INTERVAL_MS } as const;
  const { tokens } = await bench.client(asked);
  // The SVM's console still has the answers that its later states know nothing of.
  const [primary, secondary] = [bench.pvm.tokens(), bench.svm.tokens()];
  for (const [index, { token }] of tokens.entries()) {
    expect(token === primary[index], `answer ${index} is not the PVM's`);
    expect(secondary[index] !== undefined, `the SVM has made no answer ${index}`);
    expect(token !== secondary[index], `both guests have made the same answer ${index}`);
  }
  const ways = tokens.map(({ ms, atMs }) => wayOf(bench, atMs - ms, atMs));
  // Alike again.
  await checkTransfer(bench, 'download', MIB / 2, 3);
  await checkMemory(bench);
  const { vm } = await bench.primary.status();
  expect(vm['requestsSwallowed'] === 0, 'QEMU has swallowed a request');
  const middle = (what: keyof Way): number =>
    tenth(
      quantile(
        ways.map((way) => way[what]),
        0.5,
      ),
    );
  const longest = (what: keyof Way): number => tenth(Math.max(...ways.map((way) => way[what])));
  return {
    divergences: TOKENS,
    divergenceToStopMs: middle('divergenceToStop'),
    requestToStopMs: middle('requestToStop'),
    requestToStopMsMax: longest('requestToStop'),
    stoppedMs: middle('stopToResume'),
    stoppedMsMax: longest('stopToResume'),
    divergenceToReleaseMs: middle('divergenceToRelease'),
    requestToReleaseMs: middle('requestToRelease'),
    requestToReleaseMsMax: longest('requestToRelease'),
    checkpoints: (await bench.committed()) - before,
  };
}

export const divergence: Scenario<QemuBench> = {
  name: 'qemu-divergence',
  text: 'answers that differ wait until QEMU has copied the state',
  families: [4, 6],
  compareTimeoutMs: PATIENT_COMPARE_MS,
  run,
};
