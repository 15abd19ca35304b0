/**
 * How long a client waits when the primary node dies: from the failover command, and from the SIGKILL, to the next byte.
 *
 *     npm run bench:failover [-- [--runs N] [--json]]
 *
 * Each run is a pair of its own, with one of three clients: a download as fast as it goes; a UDP question every millisecond;
 * a TCP connection that asks again a millisecond after each answer. The primary node (proxy and guest) is killed, the lab waits
 * as an arbiter would until the secondary has lost its peer, and gives the command.
 *
 * The TCP client asks while nobody serves, and how it fares depends on where its question goes. With the process killed and the cable
 * still up, the switch gives it to the dead node, and the client's own retransmission timer (200 ms and more) decides when it is asked
 * again. With the carrier gone first, as when power is lost, the switch floods it, and the secondary keeps it for the failover.
 *
 * @module
 */
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { Bench } from '../src/lab/bench.ts';
import { type Wait, waitedAfter } from '../src/lab/client/waits.ts';
import { sleep } from '../src/lab/clock.ts';
import { enterSandbox, runInSandbox, sandboxDirectory } from '../src/lab/sandbox.ts';
import { printTable } from './report.ts';

const DOWNLOAD_BYTES = 600_000_000;
const DOWNLOAD_BYTES_BEFORE = 100_000_000;
const PULSE_MS = 3_000;
const PULSE_MS_BEFORE = 1_000;
const SEED = 11;

/** Milliseconds of one run. */
interface Run {
  readonly fromCommand: number;
  readonly fromKill: number;
}

interface Waited {
  readonly waits: readonly Wait[];
}

async function failOver(
  bench: Bench,
  before: Promise<unknown>,
  client: Promise<Waited>,
  carrierFirst = false,
): Promise<Run> {
  await Promise.race([before, client]);
  const killedMs = await bench.killPrimaryNode(carrierFirst);
  const { askedMs } = await bench.failover();
  const { waits } = await client;
  const fromCommand = waitedAfter(askedMs, waits);
  return { fromCommand, fromKill: askedMs + fromCommand - killedMs };
}

function inDownload(bench: Bench): Promise<Run> {
  const before = bench.reached(SEED);
  const client = bench
    .transfer({
      seed: SEED,
      direction: 'download',
      bytes: DOWNLOAD_BYTES,
      openedBy: 'client',
      tellAtBytes: DOWNLOAD_BYTES_BEFORE,
      bytesPerSecondMax: 0,
    })
    .then((result) => {
      if (!result.sha256Ok) throw new Error(`wrong byte at ${result.wrongAt}`);
      return result;
    });
  return failOver(bench, before, client);
}

function inPulse(protocol: 'tcp' | 'udp', carrierFirst = false): (bench: Bench) => Promise<Run> {
  return (bench) => {
    const client = bench.client({ type: 'pulse', protocol, milliseconds: PULSE_MS, intervalMs: 1 });
    return failOver(bench, sleep(PULSE_MS_BEFORE), client, carrierFirst);
  };
}

function quantile(sorted: readonly number[], q: number): number {
  return sorted[Math.min(sorted.length - 1, Math.ceil(q * sorted.length) - 1)]!;
}

function spread(values: readonly number[]): Record<string, string> {
  const sorted = [...values].sort((a, b) => a - b);
  return {
    p50: quantile(sorted, 0.5).toFixed(1),
    p99: quantile(sorted, 0.99).toFixed(1),
    max: sorted.at(-1)!.toFixed(1),
  };
}

async function main(): Promise<number> {
  const { values } = parseArgs({
    options: { runs: { type: 'string', default: '30' }, json: { type: 'boolean', default: false } },
  });
  const directory = sandboxDirectory();
  if (directory === undefined) return runInSandbox();
  enterSandbox((exitCode) => process.exit(exitCode));
  const kinds: Record<string, (bench: Bench) => Promise<Run>> = {
    download: inDownload,
    'UDP every ms': inPulse('udp'),
    'TCP ask and answer, carrier lost first': inPulse('tcp', true),
    'TCP ask and answer, process killed first': inPulse('tcp'),
  };
  const runs: Record<string, Run[]> = {};
  for (let index = 0; index < Number(values.runs); index++) {
    for (const [kind, run] of Object.entries(kinds)) {
      const place = join(directory, `${Object.keys(kinds).indexOf(kind)}-${index}`);
      const bench = await Bench.start({ directory: place, family: 4, seed: 0 });
      try {
        const list = runs[kind] ?? [];
        list.push(await run(bench));
        runs[kind] = list;
      } finally {
        await bench.close();
      }
    }
    process.stderr.write(`\r${index + 1} of ${values.runs} `);
  }
  process.stderr.write('\n');
  if (values.json) process.stdout.write(`${JSON.stringify(runs)}\n`);
  const rows: Record<string, Record<string, string>> = {};
  for (const [kind, list] of Object.entries(runs)) {
    rows[`${kind}: command to next byte, ms`] = spread(list.map((run) => run.fromCommand));
    rows[`${kind}: SIGKILL to next byte, ms`] = spread(list.map((run) => run.fromKill));
  }
  printTable(rows);
  return 0;
}

process.exit(await main());
