/**
 * A client of QMP, the QEMU Machine Protocol: connects (again and again), negotiates, sends commands and hands on
 * events in their order.
 *
 * QEMU may hang, restart, or talk nonsense: every command has a deadline, answers that come later are counted,
 * lines that are no QMP are counted and skipped, and nothing here ever rejects.
 *
 * @module
 */
import type { Socket } from 'node:net';
import { type Micros, US_PER_MS } from '../base/time.ts';
import {
  decodeQmp,
  encodeQmpCommand,
  QmpLineDecoder,
  type QmpMessage,
  type QmpObject,
} from '../codec/qmp-json.ts';
import {
  QMP_COMMAND_TIMEOUT_US,
  QMP_GREETING_TIMEOUT_US,
  QMP_LINE_BYTES_MAX,
  QMP_RECONNECT_MAX_US,
  QMP_RECONNECT_MIN_US,
} from '../limits.ts';
import { connectEndpoint, type Endpoint } from './endpoint.ts';

/** How a command ended. */
export type QmpResult =
  | { readonly ok: true; readonly value: unknown }
  | {
      readonly ok: false;
      /** `refused`: QEMU answered with an error. The others: whether it was carried out is unknown. */
      readonly failure: 'refused' | 'timeout' | 'disconnected';
      /** QEMU's error class, empty for the other failures. */
      readonly errorClass: string;
      readonly text: string;
    };

export type QmpEvent = Extract<QmpMessage, { kind: 'event' }>;

export interface QmpClientHandlers {
  /** Greeting and capabilities are done; commands may be sent. */
  onUp(version: string): void;
  /** The connection is lost, or could not be made; once for each time it was up, and once at the first failure. */
  onDown(reason: string): void;
  /**
   * An attempt to connect has failed. `refused`: nobody listens there, or the socket file is gone, as after the
   * end of the process.
   */
  onUnreachable?(refused: boolean): void;
  /** In the order of the socket; never before `onUp`. */
  onEvent(event: QmpEvent): void;
}

export interface QmpClientOptions {
  readonly endpoint: Endpoint;
  readonly handlers: QmpClientHandlers;
  /** @default QMP_COMMAND_TIMEOUT_US */
  readonly commandTimeoutUs?: Micros;
  /** @default QMP_GREETING_TIMEOUT_US */
  readonly greetingTimeoutUs?: Micros;
  /** @default QMP_RECONNECT_MIN_US */
  readonly reconnectMinUs?: Micros;
}

interface Pending {
  readonly resolve: (result: QmpResult) => void;
  readonly timer: NodeJS.Timeout;
}

type Phase = 'idle' | 'connecting' | 'greeting' | 'negotiating' | 'up' | 'closed';

export class QmpClient {
  readonly #options: QmpClientOptions;
  readonly #pending = new Map<number, Pending>();
  readonly counters = { connects: 0, commands: 0, lateAnswers: 0, unknownLines: 0, timeouts: 0 };
  #phase: Phase = 'idle';
  #socket: Socket | undefined;
  #lines = new QmpLineDecoder(QMP_LINE_BYTES_MAX);
  #timer: NodeJS.Timeout | undefined;
  #reconnectUs: Micros;
  #version = '';
  #lastId = 0;
  /** The first failure is told, then only the loss of a connection that was up. */
  #toldDown = false;

  constructor(options: QmpClientOptions) {
    this.#options = options;
    this.#reconnectUs = options.reconnectMinUs ?? QMP_RECONNECT_MIN_US;
  }

  get up(): boolean {
    return this.#phase === 'up';
  }

  /** Begins to connect, and goes on doing so until `close`. */
  start(): void {
    if (this.#phase === 'idle') this.#connect();
  }

  /** Sends a command and waits for its end; never rejects. */
  execute(command: string, args?: QmpObject, timeoutUs?: Micros): Promise<QmpResult> {
    if (this.#phase !== 'up') return Promise.resolve(disconnected('not connected'));
    return this.#execute(command, args, timeoutUs);
  }

  /** Drops the connection (QEMU hangs) and makes a new one. */
  reconnect(reason: string): void {
    if (this.#phase !== 'closed') this.#drop(reason);
  }

  close(): void {
    this.#phase = 'closed';
    clearTimeout(this.#timer);
    this.#socket?.destroy();
    this.#failPending('closed');
  }

  #execute(command: string, args?: QmpObject, timeoutUs?: Micros): Promise<QmpResult> {
    const id = ++this.#lastId;
    this.counters.commands++;
    const limitUs = timeoutUs ?? this.#options.commandTimeoutUs ?? QMP_COMMAND_TIMEOUT_US;
    return new Promise((resolve) => {
      const timer = setTimeout(() => {
        this.#pending.delete(id);
        this.counters.timeouts++;
        const text = `no answer to ${command} in ${Math.round(limitUs / US_PER_MS)} ms`;
        resolve({ ok: false, failure: 'timeout', errorClass: '', text });
      }, limitUs / US_PER_MS);
      this.#pending.set(id, { resolve, timer });
      this.#socket?.write(encodeQmpCommand(command, id, args));
    });
  }

  #connect(): void {
    this.#phase = 'connecting';
    this.#lines = new QmpLineDecoder(QMP_LINE_BYTES_MAX);
    this.counters.connects++;
    const socket = connectEndpoint(this.#options.endpoint);
    this.#socket = socket;
    // One deadline for connection and greeting: a monitor that serves another client accepts, and is silent.
    const limitMs = (this.#options.greetingTimeoutUs ?? QMP_GREETING_TIMEOUT_US) / US_PER_MS;
    this.#timer = setTimeout(() => {
      this.#drop(`no greeting in ${limitMs} ms; does the monitor serve another client?`);
    }, limitMs);
    socket.on('connect', () => {
      if (this.#socket === socket) this.#phase = 'greeting';
    });
    socket.on('data', (chunk) => {
      if (this.#socket === socket) this.#onData(chunk);
    });
    let reason = 'QEMU has closed the connection';
    let refused = false;
    socket.on('error', (error) => {
      reason = error.message;
      refused = ['ECONNREFUSED', 'ENOENT'].includes((error as NodeJS.ErrnoException).code ?? '');
    });
    socket.on('close', () => {
      if (this.#socket !== socket) return;
      if (this.#phase === 'connecting') this.#options.handlers.onUnreachable?.(refused);
      this.#drop(reason);
    });
  }

  #drop(reason: string): void {
    const wasUp = this.#phase === 'up';
    const socket = this.#socket;
    this.#socket = undefined;
    socket?.destroy();
    clearTimeout(this.#timer);
    if (this.#phase === 'closed') return;
    this.#phase = 'idle';
    this.#failPending(reason);
    if (wasUp || !this.#toldDown) {
      this.#toldDown = true;
      this.#options.handlers.onDown(reason);
    }
    this.#timer = setTimeout(() => this.#connect(), this.#reconnectUs / US_PER_MS);
    this.#reconnectUs = Math.min(this.#reconnectUs * 2, QMP_RECONNECT_MAX_US);
  }

  #failPending(reason: string): void {
    for (const pending of this.#pending.values()) {
      clearTimeout(pending.timer);
      pending.resolve(disconnected(reason));
    }
    this.#pending.clear();
  }

  #onData(chunk: Uint8Array): void {
    const { lines, tooLong } = this.#lines.push(chunk);
    this.counters.unknownLines += tooLong;
    const socket = this.#socket;
    for (const line of lines) {
      this.#onMessage(decodeQmp(line));
      // A handler may have dropped the connection.
      if (this.#socket !== socket) return;
    }
  }

  #onMessage(message: QmpMessage): void {
    switch (message.kind) {
      case 'greeting':
        if (this.#phase === 'greeting') void this.#negotiate(message.version);
        return;
      case 'event':
        if (this.#phase === 'up') this.#options.handlers.onEvent(message);
        return;
      case 'return':
        this.#settle(message.id, { ok: true, value: message.value });
        return;
      case 'error': {
        const { errorClass, description } = message;
        this.#settle(message.id, {
          ok: false,
          failure: 'refused',
          errorClass,
          text: `${errorClass}: ${description}`,
        });
        return;
      }
      case 'unknown':
        this.counters.unknownLines++;
    }
  }

  #settle(id: unknown, result: QmpResult): void {
    const pending = typeof id === 'number' ? this.#pending.get(id) : undefined;
    if (pending === undefined) {
      this.counters.lateAnswers++;
      return;
    }
    this.#pending.delete(id as number);
    clearTimeout(pending.timer);
    pending.resolve(result);
    if (this.#phase !== 'negotiating') return;
    // Synchronously, so that no event that follows in the same chunk is lost.
    if (!result.ok) {
      this.#drop(`capabilities refused: ${result.text}`);
      return;
    }
    clearTimeout(this.#timer);
    this.#phase = 'up';
    this.#toldDown = true;
    this.#reconnectUs = this.#options.reconnectMinUs ?? QMP_RECONNECT_MIN_US;
    this.#options.handlers.onUp(this.#version);
  }

  async #negotiate(version: string): Promise<void> {
    this.#phase = 'negotiating';
    this.#version = version;
    await this.#execute('qmp_capabilities');
  }
}

function disconnected(text: string): QmpResult {
  return { ok: false, failure: 'disconnected', errorClass: '', text };
}
