/**
 * What is kept of a failed scenario: what passed the client's port of the switch, and the logs of nodes and machines.
 *
 * @module
 */
import { copyFileSync, existsSync, mkdirSync, mkdtempSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { basename, join } from 'node:path';
import { encodeInterface, encodePacket, encodeSectionHeader } from '../wire/pcapng-writer.ts';
import type { LabBench } from './bench.ts';
import { CAPTURE_BYTES, type CapturedFrame } from './capture.ts';
import { monotonicMs } from './clock.ts';

/** Frames as a pcapng file, cut to CAPTURE_BYTES. */
export function writeCapture(
  path: string,
  interfaceName: string,
  frames: readonly CapturedFrame[],
): void {
  const epochOffsetMs = Date.now() - monotonicMs();
  const blocks = [
    encodeSectionHeader({ application: 'colo-proxy lab' }),
    encodeInterface({ name: interfaceName, snapBytes: CAPTURE_BYTES }),
    ...frames.map(({ atMs, bytes, length }) =>
      encodePacket({
        interfaceId: 0,
        bytes,
        originalBytes: length,
        atUs: Math.round((atMs + epochOffsetMs) * 1_000),
      }),
    ),
  ];
  writeFileSync(path, Buffer.concat(blocks));
}

let keptDirectory: string | undefined;

/** Saves what a bench knows; returns the directory. */
export function keepEvidence(bench: LabBench, label: string): string {
  keptDirectory ??= mkdtempSync(join(tmpdir(), 'colo-proxy-lab-failed-'));
  const directory = join(keptDirectory, label);
  mkdirSync(directory, { recursive: true });
  writeCapture(join(directory, 'client.pcapng'), 'p-client', bench.recorder.frames());
  for (const path of bench.logs()) {
    if (existsSync(path)) copyFileSync(path, join(directory, basename(path)));
  }
  return directory;
}
