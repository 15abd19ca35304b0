/**
 * The secondary's node dies with its QEMU: the PVM serves on, and its QEMU leaves COLO.
 *
 * @module
 */
import { expect } from '../../bench.ts';
import { monotonicMs, sleep } from '../../clock.ts';
import { type Facts, type Scenario, tenth } from '../../scenario.ts';
import { type QemuBench, within } from '../qemu-bench.ts';
import { checkMemory, checkShort, MIB, TRANSFER } from './checks.ts';

const UNPROTECTED_MS_MAX = 3_000;
const COLO_ENDED_MS_MAX = 5_000;

async function leftColo(bench: QemuBench): Promise<void> {
  for (;;) {
    const colo = (await bench.pvm.execute('query-colo-status')) as { mode: string };
    if (colo.mode === 'none') return;
    await sleep(10);
  }
}

async function run(bench: QemuBench): Promise<Facts> {
  const seed = 21;
  const reached = bench.reached(seed);
  const request = { ...TRANSFER, bytes: 8 * MIB, tellAtBytes: MIB / 2, seed };
  const transfer = bench.transfer({ ...request, direction: 'download' });
  await Promise.race([reached, transfer]);
  const killedMs = await bench.killSecondaryNode();
  await bench.primary.reaches('unprotected', UNPROTECTED_MS_MAX);
  const unprotectedMs = monotonicMs() - killedMs;
  await within(COLO_ENDED_MS_MAX, 'the QEMU of the PVM leaves COLO', leftColo(bench));
  const coloEndedMs = monotonicMs() - killedMs;
  const down = await transfer;
  expect(down.sha256Ok, `download: wrong content at byte ${down.wrongAt}`);
  await checkShort(bench, 10, 2);
  await checkMemory(bench);
  const { running } = (await bench.pvm.execute('query-status')) as { running: boolean };
  expect(running, 'the PVM does not run');
  const migration = (await bench.pvm.execute('query-migrate')) as { status: string };
  const { state } = await bench.primary.status();
  expect(state === 'unprotected', `the primary says ${state}`);
  return {
    bytes: down.bytes,
    sha256Ok: true,
    unprotectedMs: tenth(unprotectedMs),
    coloEndedMs: tenth(coloEndedMs),
    migrationStatus: migration.status,
    pauseMs: tenth(down.pauseMs),
  };
}

export const secondaryLoss: Scenario<QemuBench> = {
  name: 'qemu-secondary-loss',
  text: 'secondary QEMU and proxy killed: the service goes on unprotected, COLO ends',
  families: [4],
  run,
};
