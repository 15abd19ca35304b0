/**
 * The primary node dies in the middle of something; the connection goes on with the secondary.
 *
 * @module
 */
import { type Bench, expect } from '../bench.ts';
import type { TransferRequest, TransferResult } from '../client/transfer.ts';
import { monotonicMs, sleep } from '../clock.ts';
import { type Facts, MEGABYTE, type Scenario, tenth } from '../scenario.ts';

const DOWNLOAD_BYTES = 200 * MEGABYTE;
const UPLOAD_BYTES = 150 * MEGABYTE;
/** The guest connects from and to this port of the client. */
const OPENED_PORT = 4_000;
const IDLE_MS = 500;

interface Failover {
  readonly killedMs: number;
  readonly takenOverMs: number;
}

async function failOver(bench: Bench): Promise<Failover> {
  const killedMs = await bench.killPrimaryNode();
  const { obeyedMs: takenOverMs } = await bench.failover();
  return { killedMs, takenOverMs };
}

/** New connections must work, too. */
async function checkNewConnections(bench: Bench): Promise<void> {
  const short = await bench.client({ type: 'short', count: 20, concurrency: 4, bytesEach: 5_000 });
  expect(
    short.completed === 20 && short.wrong === 0,
    `new connections after failover: ${JSON.stringify(short)}`,
  );
  const ping = await bench.client({ type: 'ping', count: 3, bytes: 56, timeoutMs: 1_000 });
  expect(ping.answered === 3, `ping after failover: ${JSON.stringify(ping)}`);
}

async function transferAcross(
  bench: Bench,
  request: Pick<TransferRequest, 'direction' | 'bytes' | 'openedBy' | 'port'>,
): Promise<Facts> {
  const seed = 11;
  const reached = bench.reached(seed);
  const transfer: Promise<TransferResult> = bench.transfer({
    seed,
    tellAtBytes: Math.floor(request.bytes / 3),
    bytesPerSecondMax: 0,
    ...request,
  });
  // Whichever comes first: a transfer that fails early must be told, not waited for.
  await Promise.race([reached, transfer]);
  const { killedMs, takenOverMs } = await failOver(bench);
  const result = await transfer;
  expect(result.sha256Ok && result.wrongAt < 0, `wrong content at byte ${result.wrongAt}`);
  await checkNewConnections(bench);
  return {
    bytes: result.bytes,
    sha256Ok: true,
    pauseMs: tenth(result.pauseMs),
    takeoverMs: tenth(takenOverMs - killedMs),
    mbitPerSecond: tenth((result.bytes * 8) / 1e6 / result.seconds),
    checkpoints: bench.vm.records.length,
  };
}

async function runIdle(bench: Bench): Promise<Facts> {
  await bench.client({ type: 'session', step: 'open', name: 'idle', openedBy: 'client' });
  await bench.client({ type: 'session', step: 'talk', name: 'idle', bytes: 1_000 });
  await sleep(IDLE_MS);
  const { killedMs, takenOverMs } = await failOver(bench);
  // The first word after the failover comes from the client, and finds the connection alive.
  const talk = await bench.client({ type: 'session', step: 'talk', name: 'idle', bytes: 100_000 });
  const aliveMs = monotonicMs() - killedMs;
  await bench.client({ type: 'session', step: 'talk', name: 'idle', bytes: 1_000 });
  await bench.client({ type: 'session', step: 'close', name: 'idle' });
  await checkNewConnections(bench);
  return {
    pauseMs: tenth(talk.ms),
    takeoverMs: tenth(takenOverMs - killedMs),
    aliveAfterMs: tenth(aliveMs),
    checkpoints: bench.vm.records.length,
  };
}

export const failoverDownload: Scenario = {
  name: 'failover-download',
  text: 'primary node killed in a 200 MB download',
  families: [4, 6],
  run: (bench) =>
    transferAcross(bench, { direction: 'download', bytes: DOWNLOAD_BYTES, openedBy: 'client' }),
};

export const failoverUpload: Scenario = {
  name: 'failover-upload',
  text: 'primary node killed in a 150 MB upload',
  families: [4, 6],
  run: (bench) =>
    transferAcross(bench, { direction: 'upload', bytes: UPLOAD_BYTES, openedBy: 'client' }),
};

export const failoverIdle: Scenario = {
  name: 'failover-idle',
  text: 'an idle connection survives the death of the primary node',
  families: [4, 6],
  run: runIdle,
};

export const failoverGuestOpened: Scenario = {
  name: 'failover-guest-opened',
  text: 'primary node killed in a 200 MB transfer on a connection that the guest opened',
  families: [4, 6],
  run: (bench) =>
    transferAcross(bench, {
      direction: 'download',
      bytes: DOWNLOAD_BYTES,
      openedBy: 'guest',
      port: OPENED_PORT,
    }),
};
