import { chmodSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { guestImage, requireTools, whatIsMissing } from './image.ts';

/** The machine's programs, played by scripts: nothing else is in the path. */
let directory: string;
let said: string;
const environment = { ...process.env };

beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), 'colo-image-'));
  said = '';
  process.env['PATH'] = directory;
  process.env['XDG_CACHE_HOME'] = join(directory, 'cache');
});
afterEach(() => {
  process.env['PATH'] = environment['PATH'];
  if (environment['XDG_CACHE_HOME'] === undefined) delete process.env['XDG_CACHE_HOME'];
  else process.env['XDG_CACHE_HOME'] = environment['XDG_CACHE_HOME'];
  rmSync(directory, { recursive: true });
});

function play(name: string, script: string): void {
  const path = join(directory, name);
  writeFileSync(path, `#!/bin/sh\n${script}\n`);
  chmodSync(path, 0o755);
}
const qemu = (version: string) => `echo 'QEMU emulator version ${version} (Debian)'`;
function playAll(): void {
  play('qemu-system-x86_64', qemu('7.2.22'));
  for (const name of ['gcc', 'apt-get', 'dpkg-deb']) play(name, 'true');
}
const say = (text: string): void => {
  said += text;
};

const INSTALL =
  'apt-get update && apt-get install -y --no-install-recommends qemu-system-x86 gcc libc6-dev iproute2 util-linux';

describe.skipIf(process.arch !== 'x64')('requireTools()', () => {
  test('is content with QEMU 7.2, gcc and the tools of Debian', () => {
    playAll();
    expect(whatIsMissing()).toEqual([]);
    requireTools(false, say);
    expect(said).toBe('');
  });

  test('names all that is missing, and the command that installs it', () => {
    play('apt-get', 'true');
    play('dpkg-deb', 'true');
    expect(() => requireTools(false, say)).toThrow(
      expect.objectContaining({
        code: 'COLO_ERR_LAB_MISSING',
        message: `The virtual machines need qemu-system-x86_64, gcc; as root: ${INSTALL} (lab --guest qemu --install runs it)`,
      }),
    );
  });

  test('says which QEMU it has found when that makes no pair', () => {
    playAll();
    play('qemu-system-x86_64', qemu('10.0.2'));
    expect(() => requireTools(false, say)).toThrow(
      /need QEMU 7\.2\.x, as Debian 12 has it \(found: QEMU emulator version 10\.0\.2 \(Debian\)\);/,
    );
  });

  test('installs by that very command when it is asked to', () => {
    playAll();
    rmSync(join(directory, 'qemu-system-x86_64'));
    // `sh` is given the command; what it calls is this.
    play(
      'sh',
      `echo "$2" >${directory}/ran; /bin/cp ${directory}/gcc ${directory}/qemu-system-x86_64`,
    );
    play('gcc', qemu('7.2.22'));
    requireTools(true, say);
    expect(readFileSync(join(directory, 'ran'), 'utf8')).toBe(`${INSTALL}\n`);
    expect(said).toBe(`${INSTALL}\n`);
  });

  test('says so when installing fails, or does not help', () => {
    playAll();
    play('qemu-system-x86_64', qemu('10.0.2'));
    play('sh', 'exit 100');
    expect(() => requireTools(true, say)).toThrow(/^Installing failed: /);
    play('sh', 'exit 0');
    expect(() => requireTools(true, say)).toThrow(/^The virtual machines need QEMU 7\.2\.x[^;]*$/);
  });
});

describe.skipIf(process.arch !== 'x64')('guestImage()', () => {
  test('says what to do when the package lists do not have the kernel, and leaves nothing behind', () => {
    playAll();
    play('apt-cache', 'exit 100');
    expect(() => guestImage(false, say)).toThrow(
      "Debian's package lists have no linux-image-cloud-amd64; as root: apt-get update",
    );
    expect(readdirSync(join(directory, 'cache/colo-proxy'))).toEqual([]);
    expect(said).toMatch(/^building the guest's image in .*\/cache\/colo-proxy\/guest-/);
  });

  test('fetches the lists with --install', () => {
    playAll();
    play('apt-cache', `[ -e ${directory}/lists ] && echo '  Depends: linux-image-6.1.0-cloud'`);
    play('sh', `[ "$2" = 'apt-get update' ] && : >${directory}/lists`);
    play('apt-get', 'echo "E: no network" >&2; exit 100');
    expect(() => guestImage(true, say)).toThrow(
      'apt-get download -q linux-image-6.1.0-cloud failed: E: no network',
    );
    expect(said).toContain('apt-get update\n');
  });
});
