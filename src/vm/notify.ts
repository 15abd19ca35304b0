/**
 * The driver `--notify HOST:PORT | unix:PATH`: the server's end of colo-compare's `notify_dev`, to which Xen's libxl
 * connects (`colo_checkpoint_host`, `colo_checkpoint_port` of the first vif).
 *
 *     VM layer                                     proxy
 *     (connects) COLO_USERSPACE_PROXY_INIT   -->
 *                                            <--   COLO_COMPARE_GET_XEN_INIT      within 500 ms
 *                                            <--   DO_CHECKPOINT                  the outputs differ
 *     (pauses both guests, copies the state)
 *                COLO_CHECKPOINT             -->   both edges of a checkpoint at once
 *
 * One client at a time has a say: the first that has introduced itself, until it is gone. At most one DO_CHECKPOINT is
 * outstanding: libxl reads one per epoch, so another would wait in its socket and cause a needless
 * checkpoint later. Its end is no reset: libxl closes the socket only with its process.
 *
 * @module
 */
import { createServer, type Server, type Socket } from 'node:net';
import { US_PER_MS } from '../base/time.ts';
import {
  encodeNotify,
  NOTIFY_CHECKPOINT,
  NOTIFY_DO_CHECKPOINT,
  NOTIFY_INIT,
  NOTIFY_INIT_ANSWER,
  NotifyDecoder,
} from '../codec/notify.ts';
import type { Log } from '../env/log.ts';
import type { ProxyEvent } from '../env/messages.ts';
import type { VmDriver, VmEvents, VmStatus } from '../env/vm.ts';
import { NOTIFY_INIT_TIMEOUT_US, VM_CLIENTS_MAX, VM_UNREAD_BYTES_MAX } from '../limits.ts';
import {
  type Endpoint,
  endpointText,
  isLocal,
  listenEndpoint,
  prepareAccepted,
} from './endpoint.ts';

/** Longest text of a stranger that is shown in an event. */
const SHOWN_TEXT_MAX = 64;

export interface NotifyOptions {
  readonly endpoint: Endpoint;
  readonly log: Log;
}

export class NotifyDriver implements VmDriver {
  readonly name: string;
  readonly #endpoint: Endpoint;
  readonly #log: Log;
  readonly #server: Server;
  readonly #sockets = new Set<Socket>();
  /** The client that has introduced itself. */
  #client: Socket | undefined;
  #events: VmEvents | undefined;
  /** Commits run one after the other. */
  #queue: Promise<void> = Promise.resolve();
  #wanted = false;
  /** A DO_CHECKPOINT is with the client, and no COLO_CHECKPOINT has come since. */
  #outstanding = false;
  #closed = false;
  readonly #counters = {
    connections: 0,
    refusedConnections: 0,
    notified: 0,
    coalesced: 0,
    checkpoints: 0,
    unknownTexts: 0,
    brokenStreams: 0,
  };

  constructor(options: NotifyOptions) {
    this.#endpoint = options.endpoint;
    this.#log = options.log;
    this.name = `notify:${endpointText(options.endpoint)}`;
    this.#server = createServer((socket) => this.#onConnection(socket));
  }

  /** @throws ColoError `COLO_ERR_VM_LISTEN` */
  async start(events: VmEvents): Promise<void> {
    this.#events = events;
    await listenEndpoint(this.#server, this.#endpoint);
    this.#server.on('error', (error) =>
      this.#log.error({ error: error.message }, 'The notify socket failed'),
    );
    if (!isLocal(this.#endpoint)) {
      const text =
        'The notify protocol has no authentication: whoever reaches this port can release held output';
      this.#log.warn({ address: endpointText(this.#endpoint) }, text);
    }
  }

  requestCheckpoint(): void {
    this.#wanted = true;
    this.#notify();
  }

  onEvent(event: ProxyEvent): void {
    // Whatever began it, the checkpoint covers the request.
    if (event.kind === 'checkpoint-begun') this.#wanted = false;
  }

  status(): VmStatus {
    return {
      driver: this.name,
      client: this.#client !== undefined,
      outstanding: this.#outstanding,
      ...this.#counters,
    };
  }

  async close(): Promise<void> {
    this.#closed = true;
    const closed = new Promise<void>((resolve) => this.#server.close(() => resolve()));
    for (const socket of this.#sockets) socket.destroy();
    await Promise.all([closed, this.#queue]);
  }

  #onConnection(socket: Socket): void {
    if (this.#closed || this.#sockets.size >= VM_CLIENTS_MAX) {
      this.#counters.refusedConnections++;
      socket.destroy();
      return;
    }
    this.#counters.connections++;
    this.#sockets.add(socket);
    prepareAccepted(socket);
    const timer = setTimeout(() => socket.destroy(), NOTIFY_INIT_TIMEOUT_US / US_PER_MS);
    const decoder = new NotifyDecoder();
    socket.on('data', (chunk) => {
      const { texts, brokenLength } = decoder.push(chunk);
      for (const text of texts) {
        if (text === NOTIFY_INIT) clearTimeout(timer);
        this.#onText(socket, text);
      }
      if (brokenLength === undefined) return;
      this.#counters.brokenStreams++;
      this.#report('The notify stream is broken', { length: brokenLength });
      socket.destroy();
    });
    socket.on('error', () => socket.destroy());
    socket.on('close', () => {
      clearTimeout(timer);
      this.#sockets.delete(socket);
      if (this.#client !== socket) return;
      this.#client = undefined;
      this.#outstanding = false;
      this.#report('The VM layer has closed its notify connection');
    });
  }

  #onText(socket: Socket, text: string): void {
    if (socket.destroyed) return;
    if (text === NOTIFY_INIT) {
      this.#introduce(socket);
    } else if (text === NOTIFY_CHECKPOINT && socket === this.#client) {
      this.#checkpoint();
    } else {
      this.#counters.unknownTexts++;
      const shown = JSON.stringify(text.slice(0, SHOWN_TEXT_MAX));
      this.#report('A text of the notify protocol was ignored', { text: shown });
    }
  }

  #introduce(socket: Socket): void {
    if (this.#client !== undefined && this.#client !== socket) {
      this.#counters.refusedConnections++;
      this.#report('A second VM layer was refused: the first is still connected');
      socket.destroy();
      return;
    }
    if (this.#client === undefined) this.#report('The VM layer has introduced itself');
    this.#client = socket;
    this.#send(socket, NOTIFY_INIT_ANSWER);
    this.#outstanding = false;
    this.#notify();
  }

  #checkpoint(): void {
    this.#counters.checkpoints++;
    this.#outstanding = false;
    this.#wanted = false;
    this.#queue = this.#queue.then(async () => {
      if (this.#closed) return;
      const result = await this.#events?.checkpointCommit();
      // The protocol has no answer.
      if (result?.ok === false) this.#report(`The node refused a checkpoint: ${result.error}`);
    });
  }

  #notify(): void {
    const client = this.#client;
    if (!this.#wanted || client === undefined) return;
    if (this.#outstanding) {
      this.#counters.coalesced++;
      return;
    }
    if (!this.#send(client, NOTIFY_DO_CHECKPOINT)) return;
    this.#counters.notified++;
    this.#outstanding = true;
  }

  #send(socket: Socket, text: string): boolean {
    if (socket.writableLength > VM_UNREAD_BYTES_MAX) {
      // It does not read, whatever it is told.
      socket.destroy();
      return false;
    }
    socket.write(encodeNotify(text));
    return true;
  }

  #report(text: string, fields?: Record<string, string | number | boolean>): void {
    if (!this.#closed) this.#events?.report(text, fields);
  }
}
