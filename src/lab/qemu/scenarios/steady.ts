/**
 * Nothing happens to either machine: what clients see of a pair that agrees.
 *
 * @module
 */
import { expect } from '../../bench.ts';
import type { TransferResult } from '../../client/transfer.ts';
import { type Facts, type Scenario, tenth } from '../../scenario.ts';
import type { QemuBench } from '../qemu-bench.ts';
import { checkAnswers, checkMemory, checkShort, checkTransfer, MIB } from './checks.ts';

const PARALLEL = 50;

async function run(bench: QemuBench): Promise<Facts> {
  const before = await bench.primary.status();
  const pingMs = await checkAnswers(bench, 'ping', { count: 30, bytes: 56, timeoutMs: 2_000 });
  await checkShort(bench, 30, 4);
  const parallelMs = await checkShort(bench, PARALLEL, PARALLEL);
  const small = await checkTransfer(bench, 'upload', 1_000, 3);
  const down = await checkTransfer(bench, 'download', 2 * MIB, 1);
  const up = await checkTransfer(bench, 'upload', 2 * MIB, 2);
  await checkAnswers(bench, 'datagrams', { count: 30, bytes: 512, timeoutMs: 2_000 });
  await checkMemory(bench);
  const after = await bench.primary.status();
  const compared = after.compared - before.compared;
  // What a checkpoint has covered is not compared; the rest is.
  expect(compared > 0, 'nothing was compared');
  return {
    bytes: small.bytes + down.bytes + up.bytes,
    sha256Ok: true,
    pingMs: tenth(pingMs),
    downloadMbitPerSecond: rate(down),
    uploadMbitPerSecond: rate(up),
    parallelConnections: PARALLEL,
    parallelMs: tenth(parallelMs),
    comparedFrames: compared,
    releasedFrames: after.released - before.released,
    holdP99Us: after.latencyUs.p99,
    divergences: after.divergences - before.divergences,
    checkpoints: after.checkpoints.committed,
  };
}

function rate({ bytes, seconds }: TransferResult): number {
  return tenth((bytes * 8) / 1e6 / seconds);
}

export const steady: Scenario<QemuBench> = {
  name: 'qemu-steady',
  text: 'ping, 80 connections, 2 MiB down and up, UDP: everything is compared',
  families: [4, 6],
  run,
};
