/**
 * Throughput and round-trip time of the peer link over loopback, one process for each end:
 *
 *     node --import ./tools/ts.mjs bench/link.ts [seconds per case]
 *
 * Each case sends frames of one size as fast as the queue takes them, from primary to secondary or both
 * ways. What counts is what the receiving process was handed. Processor time is that of both processes.
 *
 * @module
 */
import { type ChildProcess, fork } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import type { PeerLink } from '../src/env/link.ts';
import { LINK_FRAME_CLIENT, type Role } from '../src/env/messages.ts';
import { BATCH_FRAMES_MAX, VNET_HDR_BYTES } from '../src/limits.ts';
import { ConnectingLink } from '../src/link/connect.ts';
import { ListeningLink } from '../src/link/listen.ts';
import { type LinkSecurityOptions, loadLinkSecurity } from '../src/link/security.ts';

/** Sender's queue: refilled when it is below. */
const QUEUE_LOW_BYTES = 8 * 1024 * 1024;

interface Order {
  readonly role: Role;
  readonly security: LinkSecurityOptions;
  readonly port: number;
  /** 0: only receive. */
  readonly frameBytes: number;
  readonly seconds: number;
}

interface Report {
  readonly frames: number;
  readonly bytes: number;
  readonly batches: number;
  readonly rttUs: number;
  readonly cpuSeconds: number;
}

/** One end, in its own process. */
async function runEnd(order: Order): Promise<void> {
  const options = {
    host: '127.0.0.1',
    port: order.port,
    security: loadLinkSecurity(order.security, order.role),
    localNode: () => ({ role: order.role, epoch: 0, state: 'unprotected' as const }),
    software: 'bench',
  };
  const link = order.role === 'primary' ? new ListeningLink(options) : new ConnectingLink(options);
  const received = { frames: 0, bytes: 0, batches: 0 };
  const up = new Promise<void>((resolve) => {
    void link.start({
      onUp: () => resolve(),
      onDown: () => {},
      onFrame: (_kind, _epoch, _buffer, _offset, length) => {
        received.frames++;
        received.bytes += length;
      },
      onMessage: () => {},
      onBatchEnd: () => {
        received.batches++;
      },
    });
  });
  await new Promise((resolve) => setTimeout(resolve, 50));
  if (link instanceof ListeningLink) process.send?.({ port: link.port });
  await up;
  const cpu = process.cpuUsage();
  const rttUs = order.frameBytes > 0 ? await pour(link, order) : await idle(link, order.seconds);
  const { user, system } = process.cpuUsage(cpu);
  const report: Report = { ...received, rttUs, cpuSeconds: (user + system) / 1e6 };
  process.send?.({ report });
}

async function idle(link: PeerLink, seconds: number): Promise<number> {
  await new Promise((resolve) => setTimeout(resolve, seconds * 1_000));
  return link.status().rttUs;
}

async function pour(link: PeerLink, { frameBytes, seconds }: Order): Promise<number> {
  const bytes = new Uint8Array(VNET_HDR_BYTES + frameBytes).fill(0x55);
  const buffer = { bytes, view: new DataView(bytes.buffer) };
  const end = Date.now() + seconds * 1_000;
  while (Date.now() < end) {
    for (let index = 0; index < BATCH_FRAMES_MAX; index++) {
      link.sendFrame(LINK_FRAME_CLIENT, 0, buffer, VNET_HDR_BYTES, frameBytes);
    }
    link.flush();
    await new Promise((resolve) => setImmediate(resolve));
    while (link.status().queueBytes > QUEUE_LOW_BYTES && Date.now() < end) {
      await new Promise((resolve) => setTimeout(resolve, 1));
    }
  }
  return link.status().rttUs;
}

/** Runs both ends of one case; resolves with their reports. */
async function runCase(
  security: LinkSecurityOptions,
  seconds: number,
  frameBytes: { readonly primary: number; readonly secondary: number },
): Promise<{ primary: Report; secondary: Report }> {
  const children: ChildProcess[] = [];
  const start = (role: Role, port: number) => {
    const child = fork(fileURLToPath(import.meta.url), ['end'], { execArgv: process.execArgv });
    children.push(child);
    child.send({ role, security, port, seconds, frameBytes: frameBytes[role] });
    return child;
  };
  const reportOf = (child: ChildProcess) =>
    new Promise<Report>((resolve, reject) => {
      child.on(
        'message',
        (message: { report?: Report }) => message.report && resolve(message.report),
      );
      child.on('exit', () => reject(new Error('an end died')));
    });
  try {
    const primary = start('primary', 0);
    const port = await new Promise<number>((resolve) => {
      primary.once('message', (message: { port: number }) => resolve(message.port));
    });
    const secondary = start('secondary', port);
    const [first, second] = await Promise.all([reportOf(primary), reportOf(secondary)]);
    return { primary: first, secondary: second };
  } finally {
    for (const child of children) child.kill();
  }
}

async function main(seconds: number): Promise<void> {
  const directory = mkdtempSync(join(tmpdir(), 'colo-bench-'));
  const keyFile = join(directory, 'key');
  writeFileSync(keyFile, 'a key for a benchmark over loopback, long enough\n', { mode: 0o600 });
  const securities: LinkSecurityOptions[] = [{ kind: 'insecure' }, { kind: 'key', keyFile }];
  console.log(`Node ${process.version}, ${seconds} s a case`);
  try {
    for (const security of securities) {
      for (const size of [65_549, 1_400, 64]) {
        for (const isDuplex of [false, true]) {
          const sizes = { primary: size, secondary: isDuplex ? size : 0 };
          const { primary, secondary } = await runCase(security, seconds, sizes);
          const gbits = (report: Report) => ((report.bytes * 8) / seconds / 1e9).toFixed(2);
          const kframes = (report: Report) => (report.frames / seconds / 1e3).toFixed(0);
          console.log(
            `${security.kind.padEnd(8)} ${String(size).padStart(5)} B  ` +
              `to secondary ${gbits(secondary).padStart(5)} Gbit/s ${kframes(secondary).padStart(5)} kframes/s  ` +
              `to primary ${gbits(primary).padStart(5)} Gbit/s ${kframes(primary).padStart(5)} kframes/s  ` +
              `${(secondary.frames / Math.max(1, secondary.batches)).toFixed(1)} frames a batch  ` +
              `cpu ${((primary.cpuSeconds + secondary.cpuSeconds) / seconds).toFixed(2)}`,
          );
        }
      }
      const { primary } = await runCase(security, Math.max(seconds, 2), {
        primary: 0,
        secondary: 0,
      });
      console.log(`${security.kind.padEnd(8)} idle round trip ${primary.rttUs} us`);
    }
  } finally {
    rmSync(directory, { recursive: true });
  }
}

if (process.argv[2] === 'end') {
  process.once('message', (order: Order) => void runEnd(order));
} else {
  await main(Number(process.argv[2] ?? 2));
}
