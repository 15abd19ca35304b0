/**
 * Writes the archive that Linux unpacks as its first file system: cpio, format "newc"
 * (Documentation/driver-api/early-userspace/buffer-format.rst).
 *
 * @module
 */

/** A regular file of the archive. */
export interface ArchiveFile {
  /** Relative to the root, without a leading slash. */
  readonly name: string;
  readonly bytes: Uint8Array;
  readonly executable?: boolean;
}

const MAGIC = '070701';
const TRAILER = 'TRAILER!!!';
const S_IFREG = 0o100000;
const ALIGNMENT = 4;

/** The whole archive, uncompressed. */
export function writeArchive(files: readonly ArchiveFile[]): Uint8Array {
  const parts = files.map((file, index) => member(file, index + 1));
  parts.push(member({ name: TRAILER, bytes: new Uint8Array(0) }, 0));
  return Buffer.concat(parts);
}

function member({ name, bytes, executable = false }: ArchiveFile, inode: number): Buffer {
  const mode = name === TRAILER ? 0 : S_IFREG | (executable ? 0o755 : 0o644);
  const nameBytes = Buffer.from(`${name}\0`);
  // inode, mode, uid, gid, links, mtime, size, device major and minor (twice), name size, checksum
  const fields = [inode, mode, 0, 0, 1, 0, bytes.length, 0, 0, 0, 0, nameBytes.length, 0];
  const header = MAGIC + fields.map((field) => field.toString(16).padStart(8, '0')).join('');
  return Buffer.concat([pad(Buffer.concat([Buffer.from(header), nameBytes])), pad(bytes)]);
}

function pad(bytes: Uint8Array): Buffer {
  const missing = (ALIGNMENT - (bytes.length % ALIGNMENT)) % ALIGNMENT;
  return Buffer.concat([bytes, Buffer.alloc(missing)]);
}
