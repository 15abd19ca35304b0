/**
 * All benchmarks, one after the other: tables on the terminal, one JSON object, and the charts of docs/.
 *
 *     npm run bench [-- [--quick] [--charts]]
 *
 * `--quick` takes each figure shorter. `--charts` writes docs/bench-*.svg anew. The peers that are measured against (QEMU, a
 * C compiler for the feeder and the ideal relay, iperf3, wrk) are installed from Debian's packages when they are missing
 * and this is root; otherwise the command that installs them is told.
 *
 * @module
 */
import { spawnSync } from 'node:child_process';
import { writeFileSync } from 'node:fs';
import { cpus } from 'node:os';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { renderCharts } from './charts.ts';

/** Programs and the Debian packages that have them. */
const PEERS: Readonly<Record<string, string>> = {
  'qemu-system-x86_64': 'qemu-system-x86',
  gcc: 'gcc libc6-dev',
  iperf3: 'iperf3',
  wrk: 'wrk',
};

interface Part {
  readonly name: string;
  readonly text: string;
  readonly args: readonly string[];
  readonly quickArgs: readonly string[];
}

const PARTS: readonly Part[] = [
  { name: 'micro', text: 'parts of the packet path', args: [], quickArgs: [] },
  {
    name: 'sockets',
    text: "against QEMU's colo-compare and an ideal relay",
    args: [],
    quickArgs: ['--quick'],
  },
  {
    name: 'lab',
    text: "a protected pair against the plain bridge and QEMU's own objects",
    args: ['--seconds', '5', '--qemu'],
    quickArgs: ['--seconds', '2', '--qemu'],
  },
  {
    name: 'failover',
    text: 'pauses when the primary dies',
    args: ['--runs', '30'],
    quickArgs: ['--runs', '3'],
  },
  {
    name: 'soak',
    text: 'does anything grow?',
    args: ['--seconds', '600'],
    quickArgs: ['--seconds', '30'],
  },
];

function installPeers(): void {
  const isMissing = (program: string): boolean =>
    spawnSync('sh', ['-c', `command -v ${program}`]).status !== 0;
  const packages = Object.keys(PEERS)
    .filter(isMissing)
    .map((program) => PEERS[program]!);
  if (packages.length === 0) return;
  const command = `apt-get update -q && apt-get install -y -q --no-install-recommends ${packages.join(' ')}`;
  if (process.getuid?.() !== 0) {
    console.error(`Peers are missing; as root: ${command}`);
    process.exit(71);
  }
  console.error(command);
  const environment = { ...process.env, DEBIAN_FRONTEND: 'noninteractive' };
  const { status } = spawnSync('sh', ['-c', command], {
    stdio: ['ignore', 2, 2],
    env: environment,
  });
  if (status !== 0) process.exit(71);
}

function runPart({ name, text, args, quickArgs }: Part, isQuick: boolean): unknown {
  console.error(`\n${name}: ${text}`);
  const script = fileURLToPath(new URL(`./${name}.ts`, import.meta.url));
  const tools = fileURLToPath(new URL('../tools/ts.mjs', import.meta.url));
  const chosen = isQuick ? quickArgs : args;
  const child = spawnSync(process.execPath, ['--import', tools, script, '--json', ...chosen], {
    stdio: ['ignore', 'pipe', 'inherit'],
    maxBuffer: 2 ** 26,
  });
  if (child.status !== 0) throw new Error(`bench/${name}.ts ended with ${child.status}`);
  return JSON.parse(child.stdout.toString()) as unknown;
}

const { values } = parseArgs({
  options: {
    quick: { type: 'boolean', default: false },
    charts: { type: 'boolean', default: false },
  },
});
installPeers();
const results: Record<string, unknown> = {
  cpu: `${cpus().length} x ${cpus()[0]?.model ?? 'unknown'}`,
  node: process.version,
};
for (const part of PARTS) results[part.name] = runPart(part, values.quick);
process.stdout.write(`${JSON.stringify(results)}\n`);
if (values.charts) {
  for (const [name, svg] of renderCharts(results)) {
    const path = fileURLToPath(new URL(`../docs/bench-${name}.svg`, import.meta.url));
    writeFileSync(path, svg);
    console.error(`docs/bench-${name}.svg`);
  }
}
