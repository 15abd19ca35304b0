/**
 * What the link's tests share: a handler that records, waiting, and frames.
 *
 * @module
 */
import type { FrameBuffer } from '../../src/env/frame.ts';
import type { LocalNode, PeerHello, PeerLinkHandlers } from '../../src/env/link.ts';
import type { LinkFrameKind, LinkMessage, Role } from '../../src/env/messages.ts';
import { VNET_HDR_BYTES } from '../../src/limits.ts';

/** One received frame, copied: its virtio-net header too. */
export interface RecordedFrame {
  readonly kind: LinkFrameKind;
  readonly epoch: number;
  readonly vnet: Uint8Array;
  readonly bytes: Uint8Array;
}

/** Keeps all that a link hands out; `log` has the order. */
export class Recorder implements PeerLinkHandlers {
  readonly ups: PeerHello[] = [];
  readonly downs: string[] = [];
  readonly frames: RecordedFrame[] = [];
  readonly messages: LinkMessage[] = [];
  readonly log: string[] = [];
  batches = 0;

  onUp(peer: PeerHello): void {
    this.ups.push(peer);
    this.log.push('up');
  }

  onDown(reason: string): void {
    this.downs.push(reason);
    this.log.push('down');
  }

  onFrame(
    kind: LinkFrameKind,
    epoch: number,
    buffer: FrameBuffer,
    offset: number,
    length: number,
  ): void {
    const vnet = buffer.bytes.slice(offset - VNET_HDR_BYTES, offset);
    const bytes = buffer.bytes.slice(offset, offset + length);
    this.frames.push({ kind, epoch, vnet, bytes });
    this.log.push(`frame ${kind}`);
  }

  onMessage(message: LinkMessage): void {
    this.messages.push(message);
    this.log.push(message.type);
  }

  onBatchEnd(): void {
    this.batches++;
    this.log.push('batch-end');
  }
}

/** A frame of `length` bytes, each `fill`, behind a virtio-net header of 1, 2, 3 ... 10. */
export function frameOf(length: number, fill: number): { buffer: FrameBuffer; offset: number } {
  const bytes = new Uint8Array(VNET_HDR_BYTES + length).fill(fill);
  for (let index = 0; index < VNET_HDR_BYTES; index++) bytes[index] = index + 1;
  return { buffer: { bytes, view: new DataView(bytes.buffer) }, offset: VNET_HDR_BYTES };
}

/** A node in its first state. */
export function nodeOf(role: Role): () => LocalNode {
  return () => ({ role, epoch: 7, state: 'unprotected' });
}

/** Polls until `condition` holds; fails with `what` after `timeoutMs`. */
export async function until(
  condition: () => boolean,
  what: string,
  timeoutMs = 5_000,
): Promise<void> {
  const end = Date.now() + timeoutMs;
  while (!condition()) {
    if (Date.now() > end) throw new Error(`timed out: ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
}
