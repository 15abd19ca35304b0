/**
 * What is sent through the lab, and how it is checked: content that every part can make from a seed and
 * an offset, and a digest whose state can travel in a checkpoint.
 *
 * @module
 */
import { createHash } from 'node:crypto';
import { Prng } from '../base/prng.ts';

/**
 * Bytes of the repeated pattern: a prime near 1 MiB, so that data misplaced by any round number of
 * bytes (segments, pages, windows) does not look right.
 */
const PATTERN_BYTES = 1_048_573;
const patterns = new Map<number, Uint8Array>();

function pattern(seed: number): Uint8Array {
  let bytes = patterns.get(seed);
  if (bytes === undefined) {
    bytes = new Prng(seed).fill(new Uint8Array(PATTERN_BYTES));
    patterns.set(seed, bytes);
  }
  return bytes;
}

/**
 * The content `seed` from `offset` on: at least one and at most `bytesMax` bytes.
 * The result is shared: it must not be changed.
 */
export function contentAt(seed: number, offset: number, bytesMax: number): Uint8Array {
  const from = offset % PATTERN_BYTES;
  return pattern(seed).subarray(from, Math.min(from + bytesMax, PATTERN_BYTES));
}

/** Offset in `received` of the first byte that is not content `seed` at `offset`; -1 when all is right. */
export function firstDifference(seed: number, offset: number, received: Uint8Array): number {
  for (let at = 0; at < received.length; ) {
    const wanted = contentAt(seed, offset + at, received.length - at);
    const got = received.subarray(at, at + wanted.length);
    if (Buffer.compare(wanted, got) !== 0)
      return at + wanted.findIndex((byte, i) => byte !== got[i]);
    at += wanted.length;
  }
  return -1;
}

/** SHA-256 of the first `bytes` bytes of content `seed`, hexadecimal. */
export function contentSha256(seed: number, bytes: number): string {
  const hash = createHash('sha256');
  for (let at = 0; at < bytes; ) {
    const piece = contentAt(seed, at, bytes - at);
    hash.update(piece);
    at += piece.length;
  }
  return hash.digest('hex');
}

const CHAIN_BLOCK_BYTES = 64 * 1024;

/** State of a chain digest: plain data. */
export interface ChainState {
  /** Digest of all whole blocks; 32 bytes. */
  readonly chain: Uint8Array;
  /** The bytes of the block that is not full yet. */
  readonly partial: Uint8Array;
}

/**
 * A hash chain: `chain = SHA-256(chain, block)` over blocks of 64 KiB, starting from zeros. Unlike a running SHA-256
 * (whose state Node does not give away) it can be stopped in one process and continued in another.
 */
export class ChainDigest {
  #chain: Uint8Array;
  readonly #block = Buffer.alloc(CHAIN_BLOCK_BYTES);
  #filled = 0;

  constructor(state?: ChainState) {
    this.#chain = state?.chain ?? new Uint8Array(32);
    if (state !== undefined) {
      this.#block.set(state.partial);
      this.#filled = state.partial.length;
    }
  }

  update(bytes: Uint8Array): void {
    for (let at = 0; at < bytes.length; ) {
      const count = Math.min(CHAIN_BLOCK_BYTES - this.#filled, bytes.length - at);
      this.#block.set(bytes.subarray(at, at + count), this.#filled);
      this.#filled += count;
      at += count;
      if (this.#filled === CHAIN_BLOCK_BYTES) this.#close();
    }
  }

  #close(): void {
    const hash = createHash('sha256').update(this.#chain);
    this.#chain = hash.update(this.#block.subarray(0, this.#filled)).digest();
    this.#filled = 0;
  }

  state(): ChainState {
    return {
      chain: Uint8Array.from(this.#chain),
      partial: Uint8Array.from(this.#block.subarray(0, this.#filled)),
    };
  }

  /** Ends the chain with its last, shorter block; hexadecimal. */
  finish(): string {
    this.#close();
    return Buffer.from(this.#chain).toString('hex');
  }
}

/** Chain digest of the first `bytes` bytes of content `seed`. */
export function contentChainDigest(seed: number, bytes: number): string {
  const digest = new ChainDigest();
  for (let at = 0; at < bytes; ) {
    const piece = contentAt(seed, at, bytes - at);
    digest.update(piece);
    at += piece.length;
  }
  return digest.finish();
}

const digests = new Map<string, string>();

/** The digest that tells whether a transfer went right: SHA-256 of a download, chain digest of an upload. */
export function expectedDigest(
  direction: 'download' | 'upload',
  seed: number,
  bytes: number,
): string {
  const key = `${direction} ${seed} ${bytes}`;
  let digest = digests.get(key);
  if (digest === undefined) {
    digest =
      direction === 'download' ? contentSha256(seed, bytes) : contentChainDigest(seed, bytes);
    digests.set(key, digest);
  }
  return digest;
}
