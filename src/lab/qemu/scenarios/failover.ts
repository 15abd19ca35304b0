/**
 * The primary's node dies with its QEMU. Connections from before the last checkpoint have the same numbers in both
 * guests; those opened since were opened by the SVM too, with numbers of its own, and are translated.
 *
 * @module
 */
import { ColoError } from '../../../base/error.ts';
import { expect } from '../../bench.ts';
import type { TransferResult } from '../../client/transfer.ts';
import { type Facts, type Scenario, tenth } from '../../scenario.ts';
import { type CapturedSegment, continuation, readSegment } from '../../tcp-capture.ts';
import type { QemuBench } from '../qemu-bench.ts';
import { checkMemory, checkShort, MIB, TRANSFER } from './checks.ts';

/** Of each transfer, a second. As fast as they go they keep the processors busy, the SVM falls silent, and checkpoints come of themselves. */
const RATE_BYTES = 1.5 * MIB;
const OLDER_BYTES = 6 * MIB;
const NEWER_BYTES = 3 * MIB;
const TOLD_BYTES = MIB / 4;
/** A checkpoint that comes of itself all the same makes the newer connections' numbers alike: then once more. */
const TRIES_MAX = 5;
/** The client's kernel takes and keeps no more than this: what is on its way is on the network. */
const SMALL_BUFFERS = {
  'ipv4/tcp_rmem': '4096 65536 65536',
  'ipv4/tcp_wmem': '4096 65536 65536',
};

/** A download, an upload and an idle connection. */
interface Trio {
  readonly name: string;
  readonly transfers: Promise<readonly [TransferResult, TransferResult]>;
  readonly downloadPort: number;
  readonly uploadPort: number;
  readonly idlePort: number;
}

async function openTrio(
  bench: QemuBench,
  name: string,
  seed: number,
  bytes: number,
): Promise<Trio> {
  const open = { type: 'session', step: 'open', name, openedBy: 'client' } as const;
  const { clientPort: idlePort } = await bench.client(open);
  await bench.client({ type: 'session', step: 'talk', name, bytes: 1_000 });
  const reached = Promise.all([bench.reached(seed), bench.reached(seed + 1)]);
  const request = {
    ...TRANSFER,
    bytes,
    tellAtBytes: TOLD_BYTES,
    bytesPerSecondMax: RATE_BYTES,
  };
  const transfers = Promise.all([
    bench.transfer({ ...request, direction: 'download', seed }),
    bench.transfer({ ...request, direction: 'upload', seed: seed + 1 }),
  ]);
  // A transfer that fails early must be told, not waited for.
  await Promise.race([reached, transfers]);
  const [downloadPort, uploadPort] = await reached;
  return { name, transfers, downloadPort, uploadPort, idlePort };
}

/** Connections of a trio that the secondary translates. */
async function translated(bench: QemuBench, trio: Trio): Promise<number> {
  const ports = [trio.downloadPort, trio.uploadPort, trio.idlePort];
  const flows = (await bench.secondary.flows()).filter(({ flow }) =>
    ports.some((port) => flow.endsWith(`:${port}`)),
  );
  expect(flows.length === ports.length, `the secondary knows ${flows.length} of 3 connections`);
  return flows.filter(({ detail }) => detail['seqDelta'] !== 0).length;
}

/** A trio from before the last checkpoint, and one from after it. */
async function openBoth(bench: QemuBench): Promise<{ older: Trio; newer: Trio }> {
  for (let seed = 10; seed < 10 + 4 * TRIES_MAX; seed += 4) {
    const older = await openTrio(bench, `older-${seed}`, seed, OLDER_BYTES);
    await bench.checkpoint();
    const newer = await openTrio(bench, `newer-${seed}`, seed + 2, NEWER_BYTES);
    if ((await translated(bench, newer)) === 3) return { older, newer };
    await Promise.all([older.transfers, newer.transfers]);
  }
  throw new ColoError(
    'COLO_ERR_LAB_SCENARIO',
    `a checkpoint came after each of ${TRIES_MAX} sets of connections`,
  );
}

interface Pauses {
  readonly downloadMs: number;
  readonly uploadMs: number;
  /** From the idle connection's first question after the takeover to its answer. */
  readonly idleMs: number;
}

async function checkTrio(bench: QemuBench, trio: Trio, killedMs: number): Promise<Pauses> {
  const { name } = trio;
  const { ms } = await bench.client({ type: 'session', step: 'talk', name, bytes: 20_000 });
  const [down, up] = await trio.transfers;
  expect(down.sha256Ok, `${name}, download: wrong content at byte ${down.wrongAt}`);
  expect(up.sha256Ok, `${name}, upload: the guest received something else`);
  await bench.client({ type: 'session', step: 'close', name });
  const segments = bench.recorder
    .frames()
    .map(readSegment)
    .filter((segment): segment is CapturedSegment => segment !== undefined);
  const download = continuation(segments, trio.downloadPort, killedMs);
  const upload = continuation(segments, trio.uploadPort, killedMs);
  const { receivedBytes } = download;
  const { acknowledgedBytes } = upload;
  // Otherwise it was over before the primary died, and shows nothing.
  expect(receivedBytes > TOLD_BYTES, `${name}: the download had only ${receivedBytes} bytes to go`);
  expect(acknowledgedBytes > TOLD_BYTES, `${name}: the upload had only ${acknowledgedBytes} to go`);
  return { downloadMs: download.pauseMs, uploadMs: upload.pauseMs, idleMs: ms };
}

async function run(bench: QemuBench): Promise<Facts> {
  bench.topology.client.sysctl(SMALL_BUFFERS);
  const { older, newer } = await openBoth(bench);
  const olderTranslated = await translated(bench, older);
  expect(olderTranslated === 0, 'connections from before the checkpoint are translated');
  const checkpoints = await bench.committed();
  const killedMs = await bench.killPrimaryNode();
  const { obeyedMs } = await bench.failover();
  const [newerPauses, olderPauses] = await Promise.all([
    checkTrio(bench, newer, killedMs),
    checkTrio(bench, older, killedMs),
  ]);
  await checkShort(bench, 10, 2);
  await checkMemory(bench);
  const pauses = [newerPauses, olderPauses].flatMap(({ downloadMs, uploadMs }) => [
    downloadMs,
    uploadMs,
  ]);
  return {
    bytes: OLDER_BYTES + NEWER_BYTES,
    sha256Ok: true,
    translatedConnections: 3,
    untranslatedConnections: 3,
    takeoverMs: tenth(obeyedMs - killedMs),
    downloadPauseMs: tenth(newerPauses.downloadMs),
    uploadPauseMs: tenth(newerPauses.uploadMs),
    idleAnswerMs: tenth(newerPauses.idleMs),
    olderDownloadPauseMs: tenth(olderPauses.downloadMs),
    olderUploadPauseMs: tenth(olderPauses.uploadMs),
    olderIdleAnswerMs: tenth(olderPauses.idleMs),
    pauseMs: tenth(Math.max(...pauses)),
    checkpoints,
  };
}

export const failover: Scenario<QemuBench> = {
  name: 'qemu-failover',
  text: 'primary QEMU and proxy killed: downloads, uploads, idle connections, older and newer than the checkpoint, go on',
  families: [4, 6],
  run,
};
