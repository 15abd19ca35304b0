/**
 * The VM layer's end of colo-compare's `notify_dev`, as libxl plays it: for tests, and for tools that drive a proxy
 * (this one's, or QEMU's colo-compare) without libxl.
 *
 * @module
 */
import type { Socket } from 'node:net';
import { ColoError } from '../base/error.ts';
import { type Micros, US_PER_MS } from '../base/time.ts';
import {
  encodeNotify,
  NOTIFY_CHECKPOINT,
  NOTIFY_DO_CHECKPOINT,
  NOTIFY_INIT,
  NotifyDecoder,
} from '../codec/notify.ts';
import { connectEndpoint, type Endpoint, endpointText } from './endpoint.ts';

export interface NotifyClientOptions {
  readonly endpoint: Endpoint;
  /** The proxy wants a checkpoint. */
  readonly onCheckpointWanted: () => void;
  readonly onClosed?: () => void;
  /** How long to wait for the answer to the introduction; libxl waits 500 ms. @default 500_000 */
  readonly timeoutUs?: Micros;
}

const ANSWER_TIMEOUT_US: Micros = 500_000;

export class NotifyClient {
  readonly #options: NotifyClientOptions;
  #socket: Socket | undefined;

  constructor(options: NotifyClientOptions) {
    this.#options = options;
  }

  /**
   * Connects and introduces itself. As in libxl, any frame is an answer.
   *
   * @throws ColoError `COLO_ERR_NOTIFY_CONNECT`
   */
  async open(): Promise<void> {
    const { endpoint, onCheckpointWanted, onClosed } = this.#options;
    const socket = connectEndpoint(endpoint);
    const decoder = new NotifyDecoder();
    this.#socket = socket;
    await new Promise<void>((resolve, reject) => {
      const fail = (why: string) => {
        socket.destroy();
        const path = endpointText(endpoint);
        const text = `Cannot use the notify protocol at ${path}: ${why}`;
        reject(new ColoError('COLO_ERR_NOTIFY_CONNECT', text, { path }));
      };
      const timeoutMs = (this.#options.timeoutUs ?? ANSWER_TIMEOUT_US) / US_PER_MS;
      const timer = setTimeout(() => fail('no answer in time'), timeoutMs);
      let isAnswered = false;
      socket.on('connect', () => socket.write(encodeNotify(NOTIFY_INIT)));
      socket.on('data', (chunk) => {
        const { texts, brokenLength } = decoder.push(chunk);
        for (const text of texts) {
          if (isAnswered && text === NOTIFY_DO_CHECKPOINT) onCheckpointWanted();
          isAnswered = true;
        }
        if (brokenLength !== undefined) socket.destroy();
        if (!isAnswered) return;
        clearTimeout(timer);
        resolve();
      });
      socket.on('error', (error) => fail(error.message));
      socket.on('close', () => {
        clearTimeout(timer);
        fail('the proxy has closed the connection');
        if (isAnswered) onClosed?.();
      });
    });
  }

  /** Both guests are paused and the state is copied. */
  checkpoint(): void {
    this.#socket?.write(encodeNotify(NOTIFY_CHECKPOINT));
  }

  close(): void {
    this.#socket?.destroy();
  }
}
