/**
 * libxl's end of the notify protocol, call by call as libxl_colo_proxy.c has it: two `send()`s for a frame, one `recv()` each for
 * length and text, after which it believes to have them whole.
 *
 * @module
 */
import { connect, type Socket } from 'node:net';
import type { Endpoint } from '../../src/vm/endpoint.ts';

/** While it waits for the answer to its introduction. Its SO_RCVTIMEO is 500 ms: too little for a test on a busy machine. */
const INIT_MS_MAX = 5_000;
/** Its buffer, which it fills without looking at the length. */
const BUFFER_BYTES = 1_024;

export class Libxl {
  readonly socket: Socket;
  #received = Buffer.alloc(0);

  constructor(endpoint: Endpoint) {
    this.socket =
      endpoint.kind === 'unix'
        ? connect(endpoint.path)
        : connect({ host: endpoint.host, port: endpoint.port, noDelay: true });
    this.socket.on('error', () => undefined);
    this.socket.on('data', (chunk) => {
      this.#received = Buffer.concat([this.#received, chunk]);
    });
  }

  /** colo_proxy_setup(). Any frame is an answer. @throws Error when none comes in time */
  async setup(): Promise<string> {
    await this.send('COLO_USERSPACE_PROXY_INIT');
    const answer = await this.receive(INIT_MS_MAX);
    if (answer === undefined) throw new Error('no answer to the introduction');
    return answer;
  }

  /** colo_proxy_preresume(): both guests are paused, the SVM has the state. */
  preresume(): Promise<void> {
    return this.send('COLO_CHECKPOINT');
  }

  /** @param gapMs between the two calls */
  async send(text: string, gapMs = 0): Promise<void> {
    const length = Buffer.alloc(4);
    length.writeUInt32BE(text.length);
    await new Promise((resolve) => this.socket.write(length, resolve));
    await new Promise((resolve) => setTimeout(resolve, gapMs));
    await new Promise((resolve) => this.socket.write(text, 'latin1', resolve));
  }

  /**
   * colo_userspace_proxy_recv(): undefined for a time-out.
   *
   * @throws Error where libxl would go on with half a frame, or write beyond its buffer
   */
  async receive(timeoutMs: number): Promise<string | undefined> {
    const endMs = performance.now() + timeoutMs;
    while (this.#received.length === 0) {
      if (performance.now() >= endMs) return undefined;
      await new Promise((resolve) => setTimeout(resolve, 2));
    }
    const bytes = this.#received;
    const size = bytes.length < 4 ? 0 : bytes.readUInt32BE();
    if (size === 0 || bytes.length < 4 + size) throw new Error('a frame came in pieces');
    if (size >= BUFFER_BYTES) throw new Error(`${size} bytes for a buffer of ${BUFFER_BYTES}`);
    this.#received = bytes.subarray(4 + size);
    return bytes.toString('latin1', 4, 4 + size);
  }

  /** There is no teardown: the socket ends with the process. */
  die(): void {
    this.socket.destroy();
  }
}
