/**
 * Programs that know nothing of this project, untouched, through the protected pair: curl, iperf3, nginx.
 * Each runs where it is installed, and is skipped by name where it is not.
 *
 * @module
 */
import { spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { ChainDigest, contentAt, contentSha256 } from '../../src/lab/content.ts';
import { ADDRESSES } from '../../src/lab/topology.ts';
import { type KeptLab, startKeptLab } from '../support/kept-lab.ts';

const hasRights = process.getuid?.() === 0;
const has = (program: string): boolean => spawnSync(program, ['--version']).error === undefined;
const hasNginx = spawnSync('nginx', ['-v']).error === undefined;
const FAMILIES = [4, 6] as const;
const GUESTS = ['pvm', 'svm'];
/** Causes of a checkpoint that are told after the compare timeout only. */
const SILENCE: ReadonlySet<string> = new Set([
  'secondary-silent',
  'primary-silent',
  'acknowledgement-behind',
  'window-closed',
]);

let lab: KeptLab;
let directory: string;

function host(family: 4 | 6): string {
  return family === 4 ? ADDRESSES[4].guest : `[${ADDRESSES[6].guest}]`;
}

/** Divergences, but for those of a guest that was silent: on a busy machine it may wait longer than the compare timeout. */
async function divergences(): Promise<string[]> {
  const events = await lab.events('primary');
  return events
    .filter(({ kind, fields }) => kind === 'divergence' && !SILENCE.has(String(fields?.['cause'])))
    .map(({ text }) => text);
}

describe.skipIf(!hasRights)('foreign programs (need root)', () => {
  beforeEach(async () => {
    directory = mkdtempSync(join(tmpdir(), 'colo-proxy-foreign-'));
    lab = await startKeptLab();
  });

  afterEach(async () => {
    await lab.stop();
    rmSync(directory, { recursive: true, force: true });
  });

  test.skipIf(!has('curl'))(
    'curl: downloads and uploads, equal by hash, no divergence',
    async () => {
      const bytes = 30_000_000;
      const upload = join(directory, 'upload');
      const content = Buffer.alloc(bytes);
      for (let at = 0; at < bytes; ) {
        const piece = contentAt(3, at, bytes - at);
        content.set(piece, at);
        at += piece.length;
      }
      writeFileSync(upload, content);
      const digest = new ChainDigest();
      digest.update(content);
      const chain = digest.finish();
      for (const family of FAMILIES) {
        const url = `http://${host(family)}`;
        const download = join(directory, `download${family}`);
        const get = ['curl', '-sgf', '-o', download, `${url}/bytes/${bytes}`];
        const out = await lab.inside('client', [...get, '-w', '%{size_download}']);
        expect(out).toBe(`${bytes}`);
        const sum = await lab.inside('client', ['sha256sum', download]);
        expect(sum.split(' ')[0]).toBe(contentSha256(1, bytes));
        const put = ['curl', '-sgf', '-T', upload, `${url}/upload`];
        expect(await lab.inside('client', put)).toBe(`${chain} ${bytes}\n`);
        // One connection for several requests.
        const urls = [10, 11, 12].map((count) => `${url}/bytes/${count}?seed=1`);
        const many = await lab.inside('client', [
          'curl',
          '-sgf',
          '-w',
          '%{num_connects}',
          '-o',
          '/dev/null',
          '-o',
          '/dev/null',
          '-o',
          '/dev/null',
          ...urls,
        ]);
        expect(many).toBe('100');
      }
      expect(await divergences()).toEqual([]);
    },
  );

  test.skipIf(!has('iperf3'))('iperf3: both directions', async () => {
    for (const [index, direction] of [[], ['-R']].entries()) {
      const port = `${5201 + index}`;
      for (const guest of GUESTS) lab.start(guest, ['iperf3', '-s', '-1', '-p', port]);
      for (const guest of GUESTS) await lab.listens(guest, Number(port));
      // Both servers must send the same bytes: --repeating-payload. Their statistics at the end differ, which is
      // a divergence and costs a checkpoint.
      const options = ['-t', '2', '-J', '--repeating-payload', ...direction];
      const client = ['iperf3', '-c', ADDRESSES[4].guest, '-p', port, ...options];
      const report = JSON.parse(await lab.inside('client', client)) as {
        error?: string;
        end: { sum_received: { bits_per_second: number; bytes: number } };
      };
      expect(report.error).toBeUndefined();
      expect(report.end.sum_received.bytes).toBeGreaterThan(1_000_000);
    }
    expect((await lab.status('primary'))['state']).toMatch(/protected|checkpointing/);
  });

  test.skipIf(!has('curl') || !hasNginx)(
    'nginx as the guests’ server, curl as client',
    async () => {
      const content = Buffer.alloc(10_000_000, 'colo');
      writeFileSync(join(directory, 'file'), content);
      const sha256 = createHash('sha256').update(content).digest('hex');
      for (const guest of GUESTS) {
        const config = join(directory, `${guest}.conf`);
        writeFileSync(
          config,
          `daemon off; master_process off; pid ${directory}/${guest}.pid; error_log stderr;
         user root; events {}
         http { access_log off; server { listen 8080; listen [::]:8080; root ${directory}; } }`,
        );
        lab.start(guest, ['nginx', '-c', config]);
      }
      for (const guest of GUESTS) await lab.listens(guest, 8_080);
      for (const family of FAMILIES) {
        const download = join(directory, `nginx${family}`);
        const url = `http://${host(family)}:8080/file`;
        await lab.inside('client', ['curl', '-sgf', '--retry', '3', '-o', download, url]);
        const sum = await lab.inside('client', ['sha256sum', download]);
        expect(sum.split(' ')[0]).toBe(sha256);
      }
    },
  );
});
