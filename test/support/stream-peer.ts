/**
 * QEMU's end of a frame stream, as a socket chardev of its filters is: connects to a listening port of ours.
 *
 * @module
 */
import { connect, type Socket } from 'node:net';
import type { TestFrame } from './frame-builder.ts';

/** virtio-net guests have this header. */
const VNET_BYTES = 12;

export class StreamPeer {
  /** Frames received, without heads and virtio-net headers. */
  readonly frames: Uint8Array[] = [];
  readonly #socket: Socket;
  readonly #headBytes: number;
  #pending = Buffer.alloc(0);

  private constructor(socket: Socket, hasVnetHeader: boolean) {
    this.#socket = socket;
    this.#headBytes = hasVnetHeader ? 8 + VNET_BYTES : 4;
    socket.on('data', (chunk) => this.#take(chunk));
    socket.on('error', () => undefined);
  }

  static open(path: string, hasVnetHeader = false): Promise<StreamPeer> {
    return new Promise((resolve, reject) => {
      const socket = connect({ path });
      socket.once('error', reject);
      socket.once('connect', () => {
        socket.removeListener('error', reject);
        resolve(new StreamPeer(socket, hasVnetHeader));
      });
    });
  }

  send(...frames: readonly TestFrame[]): void {
    for (const { buffer, offset, length } of frames) {
      const head = Buffer.alloc(this.#headBytes);
      head.writeUInt32BE(this.#headBytes === 4 ? length : VNET_BYTES + length, 0);
      if (this.#headBytes > 4) head.writeUInt32BE(VNET_BYTES, 4);
      this.#socket.write(head);
      this.#socket.write(buffer.bytes.slice(offset, offset + length));
    }
  }

  sendBytes(bytes: Uint8Array): void {
    this.#socket.write(bytes);
  }

  /** Takes out what has come, once there are `count` frames. */
  async take(count: number, timeoutMs = 5_000): Promise<Uint8Array[]> {
    const end = performance.now() + timeoutMs;
    while (this.frames.length < count) {
      if (performance.now() > end) {
        throw new Error(`${this.frames.length} frames instead of ${count}`);
      }
      await new Promise((resolve) => setTimeout(resolve, 2));
    }
    return this.frames.splice(0);
  }

  close(): Promise<void> {
    return new Promise((resolve) => {
      if (this.#socket.destroyed) resolve();
      else this.#socket.once('close', () => resolve()).destroy();
    });
  }

  #take(chunk: Buffer): void {
    this.#pending = Buffer.concat([this.#pending, chunk]);
    while (this.#pending.length >= 4) {
      const size = this.#pending.readUInt32BE(0);
      const end = this.#headBytes === 4 ? 4 + size : 8 + size;
      if (this.#pending.length < end) return;
      this.frames.push(new Uint8Array(this.#pending.subarray(this.#headBytes, end)));
      this.#pending = this.#pending.subarray(end);
    }
  }
}
