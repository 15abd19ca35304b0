/**
 * The VM layer's end of nfnetlink_colo, for `colo-proxy ctl --nfnetlink` and for tests: sends one request at a
 * time and waits for its NLMSG_ERROR; notifications come meanwhile.
 *
 * The node belongs to this client's socket: closing the client ends the node.
 *
 * @module
 */
import type { Socket } from 'node:net';
import { ColoError } from '../base/error.ts';
import { type Micros, US_PER_MS } from '../base/time.ts';
import {
  decodeNetlinkError,
  type NetlinkMessage,
  NetlinkStreamDecoder,
  NLM_F_ACK,
  NLM_F_REQUEST,
  splitNetlink,
} from '../codec/netlink.ts';
import {
  COLO_MODE,
  type ColoAbi,
  type ColoVerb,
  decodeColoNotify,
  encodeColoRequest,
  encodeLegacyRequest,
} from '../codec/nfnetlink-colo.ts';
import { NETLINK_DATAGRAM_BYTES_MAX } from '../limits.ts';
import { NetlinkSocket } from '../os/netlink.ts';
import { connectEndpoint } from './endpoint.ts';
import type { NfnetlinkSpec } from './spec.ts';

/** A notification: the proxy wants a checkpoint (or, after `query`, says whether it does). */
export interface ColoNotification {
  readonly abi: ColoAbi;
  readonly different: boolean;
}

export interface NfnetlinkClientOptions {
  readonly spec: NfnetlinkSpec;
  /** @default 'nfnetlink' */
  readonly abi?: ColoAbi;
  readonly onNotification?: (notification: ColoNotification) => void;
  /** The other end is gone (Unix socket only: on netlink nobody tells). */
  readonly onClosed?: (error: Error) => void;
  /** How long to wait for an answer. @default 5_000_000 */
  readonly timeoutUs?: Micros;
}

interface Waiting {
  readonly seq: number;
  readonly resolve: (errno: number) => void;
  readonly reject: (error: Error) => void;
  readonly timer: NodeJS.Timeout;
}

const ANSWER_TIMEOUT_US: Micros = 5_000_000;

export class NfnetlinkClient {
  readonly #options: NfnetlinkClientOptions;
  #netlink: NetlinkSocket | undefined;
  #socket: Socket | undefined;
  #waiting: Waiting | undefined;
  #seq = 0;
  #closed = false;

  constructor(options: NfnetlinkClientOptions) {
    this.#options = options;
  }

  /** This end's port id; on a Unix socket the process id, as the client of 2015 had it. */
  get portId(): number {
    return this.#netlink?.portId ?? process.pid;
  }

  /** @throws ColoError `COLO_ERR_NETLINK_OPEN`, `COLO_ERR_NFNETLINK_CONNECT` */
  async open(): Promise<void> {
    const { spec } = this.#options;
    if (spec.kind === 'netlink') {
      this.#netlink = new NetlinkSocket(0, NETLINK_DATAGRAM_BYTES_MAX);
      this.#netlink.start({
        onDatagram: (bytes, sender) => {
          // Anybody may send to this port; only the proxy is listened to.
          if (sender.portId !== spec.portId) return;
          for (const message of splitNetlink(bytes).messages) this.#onMessage(message);
        },
        onOverrun: () => undefined,
        onFailed: (error) => this.#onClosed(error),
      });
      return;
    }
    const socket = connectEndpoint(spec);
    await new Promise<void>((resolve, reject) => {
      socket.once('connect', resolve);
      socket.once('error', (error) => {
        const text = `Cannot connect to ${spec.path}: ${error.message}`;
        reject(
          new ColoError('COLO_ERR_NFNETLINK_CONNECT', text, { cause: error, path: spec.path }),
        );
      });
    });
    const decoder = new NetlinkStreamDecoder(NETLINK_DATAGRAM_BYTES_MAX);
    socket.on('data', (chunk) => {
      const { messages, broken } = decoder.push(chunk);
      for (const message of messages) this.#onMessage(message);
      if (broken !== undefined) socket.destroy(new Error('The proxy sent no netlink message'));
    });
    socket.on('error', () => undefined);
    socket.on('close', () => {
      const text = 'The proxy has closed the connection';
      this.#onClosed(new ColoError('COLO_ERR_NFNETLINK_CLOSED', text, { path: spec.path }));
    });
    this.#socket = socket;
  }

  /**
   * Sends a request and waits for its answer: the errno, 0 for success.
   *
   * @param mode ignored by the older ABI
   * @throws ColoError `COLO_ERR_NFNETLINK_ANSWER` without an answer in time, or when the proxy is not there
   */
  request(verb: ColoVerb, mode: keyof typeof COLO_MODE): Promise<number> {
    if (this.#waiting !== undefined) throw new RangeError('one request at a time');
    const seq = ++this.#seq;
    const fields = { flags: NLM_F_REQUEST | NLM_F_ACK, seq, portId: this.portId };
    const legacy = this.#options.abi === 'legacy' || verb === 'query';
    const bytes = legacy
      ? encodeLegacyRequest(verb, fields)
      : encodeColoRequest(verb as Exclude<ColoVerb, 'query'>, COLO_MODE[mode], fields);
    return new Promise((resolve, reject) => {
      const timer = setTimeout(
        () => this.#fail(answerError('no answer in time')),
        (this.#options.timeoutUs ?? ANSWER_TIMEOUT_US) / US_PER_MS,
      );
      this.#waiting = { seq, resolve, reject, timer };
      const error = this.send(bytes);
      if (error !== undefined) this.#fail(answerError(error));
    });
  }

  /** Sends bytes as they are: one datagram, or a piece of the stream. Returns the name of an error. */
  send(bytes: Uint8Array): string | undefined {
    const { spec } = this.#options;
    if (spec.kind === 'netlink') return this.#netlink?.send(spec.portId, bytes) ?? undefined;
    if (this.#socket === undefined || this.#socket.destroyed) return 'EPIPE';
    this.#socket.write(bytes);
    return undefined;
  }

  close(): void {
    this.#closed = true;
    this.#fail(answerError('closed'));
    this.#netlink?.close();
    this.#socket?.destroy();
  }

  #onMessage(message: NetlinkMessage): void {
    const answer = decodeNetlinkError(message);
    if (answer !== undefined) {
      const waiting = this.#waiting;
      if (waiting === undefined || waiting.seq !== answer.requestSeq) return;
      this.#waiting = undefined;
      clearTimeout(waiting.timer);
      waiting.resolve(answer.errno);
      return;
    }
    const notification = decodeColoNotify(message);
    if (notification !== undefined) this.#options.onNotification?.(notification);
  }

  #onClosed(error: Error): void {
    this.#fail(answerError(error.message));
    if (!this.#closed) this.#options.onClosed?.(error);
  }

  #fail(error: Error): void {
    const waiting = this.#waiting;
    this.#waiting = undefined;
    if (waiting === undefined) return;
    clearTimeout(waiting.timer);
    waiting.reject(error);
  }
}

function answerError(why: string): ColoError {
  const hint =
    why === 'ECONNREFUSED' ? '; no proxy has that port id in this network namespace' : '';
  return new ColoError('COLO_ERR_NFNETLINK_ANSWER', `The proxy did not answer: ${why}${hint}`);
}
