/**
 * The port `pcap:FILE`: the Ethernet frames of a capture file (pcap or pcapng), as fast as they are taken. It can
 * only be read; at the file's end it closes.
 *
 * @module
 */
import { closeSync, fstatSync, openSync, readSync } from 'node:fs';
import { ColoError } from '../base/error.ts';
import type { FrameBuffer, FrameHandler } from '../env/frame.ts';
import type { Port } from '../env/port.ts';
import { BATCH_FRAMES_MAX, FRAME_BYTES_MAX, VNET_HDR_BYTES } from '../limits.ts';
import { ETHERNET_HEADER_BYTES } from '../wire/ethernet.ts';
import { CAPTURE_BLOCK_BYTES_MAX, CaptureDecoder, type CapturedPacket } from '../wire/pcap.ts';
import { LINK_TYPE_ETHERNET } from '../wire/pcapng-writer.ts';
import { CopyQueue } from './copy-queue.ts';
import { countDrop, createPortCounters } from './counters.ts';

/** Bytes of the file that are read at once. */
const CHUNK_BYTES = 64 * 1024;

/** Room for the frames of a chunk, and of a packet that was begun before it. The smallest one, 30 bytes in the file, takes 64. */
const INBOX_BYTES = 4 * (CHUNK_BYTES + CAPTURE_BLOCK_BYTES_MAX);

/** A capture file as a port. */
export class PcapPort implements Port {
  readonly name: string;
  readonly counters = createPortCounters();
  readonly #path: string;
  readonly #fd: number;
  readonly #chunk = new Uint8Array(CHUNK_BYTES);
  readonly #inbox = new CopyQueue(INBOX_BYTES);
  readonly #decoder = new CaptureDecoder((packet) => this.#onPacket(packet));
  #onReadable: () => void = () => {};
  #onClosed: (error: Error) => void = () => {};
  /** Frames at the head of the inbox that the last `receive` handed out. */
  #lent = 0;
  #isAtEnd = false;
  #scheduled: NodeJS.Immediate | undefined;
  #closed = false;

  /** @throws ColoError COLO_ERR_PCAP_OPEN */
  constructor(path: string) {
    this.name = `pcap:${path}`;
    this.#path = path;
    try {
      this.#fd = openSync(path, 'r');
    } catch (cause) {
      throw new ColoError('COLO_ERR_PCAP_OPEN', `Cannot open ${path}: ${messageOf(cause)}`, {
        cause,
        path,
      });
    }
    if (!fstatSync(this.#fd).isFile()) {
      closeSync(this.#fd);
      throw new ColoError('COLO_ERR_PCAP_OPEN', `Cannot open ${path}: it is not a file`, { path });
    }
  }

  start(onReadable: () => void, onClosed: (error: Error) => void): void {
    this.#onReadable = onReadable;
    this.#onClosed = onClosed;
    this.#schedule();
  }

  receive(handler: FrameHandler): number {
    const inbox = this.#inbox;
    inbox.shift(this.#lent);
    this.#lent = 0;
    while (inbox.count === 0 && !this.#isAtEnd && !this.#closed) this.#readChunk();
    const count = this.#closed ? 0 : Math.min(inbox.count, BATCH_FRAMES_MAX);
    this.#lent = count;
    for (let index = 0; index < count; index++) {
      const length = inbox.bytes(index) - VNET_HDR_BYTES;
      this.counters.receivedFrames++;
      this.counters.receivedBytes += length;
      handler(inbox.buffer, inbox.start(index) + VNET_HDR_BYTES, length);
    }
    if (!this.#closed) this.#schedule();
    return count;
  }

  /** Goes nowhere, and is counted. */
  send(_buffer: FrameBuffer, _offset: number, _length: number): void {
    countDrop(this.counters, 'not-connected');
  }

  flush(): void {}

  close(): Promise<void> {
    if (this.#closed) return Promise.resolve();
    this.#closed = true;
    clearImmediate(this.#scheduled);
    closeSync(this.#fd);
    return Promise.resolve();
  }

  /** A later turn either has frames to announce, or the end. */
  #schedule(): void {
    this.#scheduled ??= setImmediate(() => {
      this.#scheduled = undefined;
      if (this.#closed) return;
      if (!this.#isAtEnd || this.#inbox.count > this.#lent) {
        this.#onReadable();
        return;
      }
      void this.close();
      const text = this.#decoder.error ?? `The capture ${this.#path} has been read to its end`;
      const code = this.#decoder.error === undefined ? 'COLO_ERR_PORT_END' : 'COLO_ERR_PCAP_READ';
      this.#onClosed(new ColoError(code, text, { path: this.#path }));
    });
  }

  #readChunk(): void {
    const bytes = readSync(this.#fd, this.#chunk);
    if (bytes > 0) this.#decoder.push(this.#chunk.subarray(0, bytes));
    else this.#decoder.end();
    this.#isAtEnd = bytes === 0 || this.#decoder.error !== undefined;
  }

  #onPacket(packet: CapturedPacket): void {
    const { length } = packet;
    if (packet.linkType !== LINK_TYPE_ETHERNET) {
      countDrop(this.counters, 'not-ethernet');
    } else if (length > FRAME_BYTES_MAX || length < packet.originalBytes) {
      // Cut by the capture's snapshot length: it could not be compared.
      countDrop(this.counters, length > FRAME_BYTES_MAX ? 'too-long' : 'truncated');
    } else if (length < ETHERNET_HEADER_BYTES) {
      countDrop(this.counters, 'too-short');
    } else {
      const at = this.#inbox.reserve(VNET_HDR_BYTES + length);
      if (at < 0) throw new RangeError('the inbox has room for every frame of a chunk');
      const target = this.#inbox.buffer.bytes;
      target.fill(0, at, at + VNET_HDR_BYTES);
      const from = packet.offset;
      target.set(packet.bytes.subarray(from, from + length), at + VNET_HDR_BYTES);
    }
  }
}

function messageOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}
