/**
 * What the lab's virtual machines boot: Debian's cloud kernel, a first file system with the lab's own guest program and the
 * drivers of its network card, and what QEMU 7.2 needs under TCG. Built once and kept in the user's cache.
 *
 * @module
 */
import { type SpawnSyncReturns, spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import { homedir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { gzipSync } from 'node:zlib';
import { ColoError } from '../../base/error.ts';
import { writeArchive } from './cpio.ts';

export const QEMU = 'qemu-system-x86_64';
/** The only series that a COLO pair was found to work with here: in QEMU 10 the primary ends its migration instead. */
const QEMU_SERIES = '7.2.';
/** Debian packages with everything that is needed but the kernel, which is only unpacked. */
const PACKAGES = ['qemu-system-x86', 'gcc', 'libc6-dev', 'iproute2', 'util-linux'] as const;
const KERNEL_PACKAGE = 'linux-image-cloud-amd64';
const LISTS_COMMAND = 'apt-get update';
const INSTALL_COMMAND = `${LISTS_COMMAND} && apt-get install -y --no-install-recommends ${PACKAGES.join(' ')}`;

/** The sources lie beside this file; when it is the built one, in `src` all the same. */
const SOURCES = fileURLToPath(new URL('../../../src/lab/qemu/', import.meta.url));

/** Modules of the kernel that the guest program loads, in any order here. */
const MODULES = [
  'virtio_ring',
  'virtio',
  'virtio_pci_modern_dev',
  'virtio_pci_legacy_dev',
  'virtio_pci',
  'failover',
  'net_failover',
  'virtio_net',
];

/** Files to give to QEMU. */
export interface GuestImage {
  readonly kernel: string;
  readonly initrd: string;
  /** To be loaded with LD_PRELOAD; see bql-shim.c. */
  readonly shim: string;
}

function run(program: string, args: readonly string[], cwd?: string): SpawnSyncReturns<string> {
  return spawnSync(program, args, { encoding: 'utf8', ...(cwd === undefined ? {} : { cwd }) });
}

/** Runs a tool that must succeed. @throws ColoError `COLO_ERR_LAB_IMAGE` with what it said, and `hint` */
function must(program: string, args: readonly string[], cwd?: string, hint = ''): string {
  const { error, status, stdout, stderr } = run(program, args, cwd);
  if (error === undefined && status === 0) return stdout;
  const said = error?.message ?? stderr.trim().split('\n').slice(-3).join(' ');
  const text = `${program} ${args.slice(0, 4).join(' ')} failed: ${said}${hint}`;
  throw new ColoError('COLO_ERR_LAB_IMAGE', text);
}

/** What this machine lacks for virtual machines, in words; empty when it has all. */
export function whatIsMissing(): string[] {
  if (process.arch !== 'x64') return [`an x86-64 machine (this one: ${process.arch})`];
  const missing: string[] = [];
  const { stdout, error } = run(QEMU, ['--version']);
  if (error !== undefined) missing.push(QEMU);
  else if (!stdout.includes(`version ${QEMU_SERIES}`)) {
    const found = stdout.split('\n', 1)[0];
    missing.push(`QEMU ${QEMU_SERIES}x, as Debian 12 has it (found: ${found})`);
  }
  if (run('gcc', ['--version']).error !== undefined) missing.push('gcc');
  for (const tool of ['apt-get', 'dpkg-deb']) {
    if (run(tool, ['--version']).error !== undefined) missing.push(`${tool} of Debian`);
  }
  return missing;
}

/**
 * Sees to it that QEMU and a compiler are here; with `install` by Debian's packages.
 *
 * @throws ColoError `COLO_ERR_LAB_MISSING` with the command that installs what is missing
 */
export function requireTools(install: boolean, say: (text: string) => void): void {
  if (whatIsMissing().length === 0) return;
  if (install) runInstall(INSTALL_COMMAND, say);
  const missing = whatIsMissing();
  if (missing.length === 0) return;
  const way = install ? '' : `; as root: ${INSTALL_COMMAND} (lab --guest qemu --install runs it)`;
  const text = `The virtual machines need ${missing.join(', ')}${way}`;
  throw new ColoError('COLO_ERR_LAB_MISSING', text);
}

function runInstall(command: string, say: (text: string) => void): void {
  say(`${command}\n`);
  const env = { ...process.env, DEBIAN_FRONTEND: 'noninteractive' };
  // Standard output is the report's.
  const { status, error } = spawnSync('sh', ['-c', command], { stdio: ['ignore', 2, 2], env });
  if (status === 0) return;
  const why = error?.message ?? (process.getuid?.() === 0 ? 'see above' : 'it needs root');
  throw new ColoError('COLO_ERR_LAB_MISSING', `Installing failed: ${why}`);
}

/**
 * The image, from the cache or built anew. The first time a kernel of some 30 MB is fetched; with `install` after
 * the package lists, where these are missing.
 *
 * @throws ColoError
 */
export function guestImage(install: boolean, say: (text: string) => void): GuestImage {
  const sources = ['guest.c', 'bql-shim.c'].map((name) => readFileSync(join(SOURCES, name)));
  const hash = createHash('sha256').update(MODULES.join(' '));
  for (const source of sources) hash.update(source);
  const cache = join(process.env['XDG_CACHE_HOME'] ?? join(homedir(), '.cache'), 'colo-proxy');
  const directory = join(cache, `guest-${hash.digest('hex').slice(0, 16)}`);
  const image = {
    kernel: join(directory, 'vmlinuz'),
    initrd: join(directory, 'initrd.gz'),
    shim: join(directory, 'bql-shim.so'),
  };
  if (existsSync(directory)) return image;
  mkdirSync(cache, { recursive: true });
  const work = mkdtempSync(join(cache, 'building-'));
  try {
    say(`building the guest's image in ${directory} ...\n`);
    build(work, install, say);
    // Two labs may build at the same time: the first one's stays.
    if (!existsSync(directory)) renameSync(work, directory);
  } finally {
    rmSync(work, { recursive: true, force: true });
  }
  return image;
}

function build(work: string, install: boolean, say: (text: string) => void): void {
  const unpacked = unpackKernel(work, install, say);
  const boot = join(unpacked, 'boot');
  const kernel = readdirSync(boot).find((name) => name.startsWith('vmlinuz-'));
  if (kernel === undefined) {
    throw new ColoError('COLO_ERR_LAB_IMAGE', 'The kernel package has no boot/vmlinuz');
  }
  compile(['-static', '-o', join(work, 'init'), join(SOURCES, 'guest.c')]);
  buildShim(join(work, 'bql-shim.so'));
  const modules = findModules(join(unpacked, 'lib/modules'));
  const archive = writeArchive([
    { name: 'init', bytes: readFileSync(join(work, 'init')), executable: true },
    ...modules.map((path) => ({
      name: path.slice(path.lastIndexOf('/') + 1),
      bytes: readFileSync(path),
    })),
  ]);
  writeFileSync(join(work, 'initrd.gz'), gzipSync(archive));
  renameSync(join(boot, kernel), join(work, 'vmlinuz'));
  rmSync(unpacked, { recursive: true });
}

function compile(args: readonly string[]): void {
  must('gcc', ['-O2', ...args], undefined, `; as root: ${INSTALL_COMMAND}`);
}

/** Makes the library of bql-shim.c. @throws ColoError */
export function buildShim(path: string): void {
  compile(['-shared', '-fPIC', '-o', path, join(SOURCES, 'bql-shim.c')]);
}

/** The package that the kernel is in; undefined when the package lists do not have it. */
function kernelPackage(): string | undefined {
  const { stdout } = run('apt-cache', ['depends', KERNEL_PACKAGE]);
  return /Depends: (linux-image-\S+)/.exec(stdout ?? '')?.[1];
}

/** Fetches the kernel's package and unpacks it; nothing is installed. */
function unpackKernel(work: string, install: boolean, say: (text: string) => void): string {
  if (install && kernelPackage() === undefined) runInstall(LISTS_COMMAND, say);
  const name = kernelPackage();
  if (name === undefined) {
    const text = `Debian's package lists have no ${KERNEL_PACKAGE}; as root: ${LISTS_COMMAND}`;
    throw new ColoError('COLO_ERR_LAB_IMAGE', text);
  }
  must('apt-get', ['download', '-q', name], work);
  const archive = readdirSync(work).find((file) => file.endsWith('.deb'));
  if (archive === undefined) {
    throw new ColoError('COLO_ERR_LAB_IMAGE', `apt-get has not fetched ${name}`);
  }
  const unpacked = join(work, 'kernel');
  must('dpkg-deb', ['-x', join(work, archive), unpacked]);
  rmSync(join(work, archive));
  return unpacked;
}

/** A module that is not there is built into the kernel. */
function findModules(root: string): string[] {
  const files = readdirSync(root, { recursive: true, encoding: 'utf8' });
  return MODULES.flatMap((module) => {
    const path = files.find((file) => file.endsWith(`/${module}.ko`));
    return path === undefined ? [] : [join(root, path)];
  });
}
