/**
 * One packet queue of the kernel: packets in batches, verdicts gathered and given together.
 *
 * @module
 */
import { ColoError } from '../base/error.ts';
import { NLA_HDR_BYTES, netlinkAlign } from '../codec/netlink.ts';
import {
  encodeBind,
  encodeLimits,
  encodeStart,
  NF_ACCEPT,
  NF_DROP,
  type NfqueueKind,
  NfqueueMessage,
  readNfqueue,
  VERDICT_BYTES,
  writeVerdict,
} from '../codec/nfqueue-msg.ts';
import type { FrameBuffer } from '../env/frame.ts';
import {
  BATCH_FRAMES_MAX,
  FRAME_BYTES_MAX,
  NFQUEUE_PACKETS_MAX,
  PORT_SOCKET_BUFFER_BYTES,
} from '../limits.ts';
import { EAGAIN, EINTR, ENOBUFS, MSG_TRUNC } from '../os/constants.ts';
import { addressOf, systemError } from '../os/libc.ts';
import { MessageVector } from '../os/message-vector.ts';
import { NetfilterSocket } from '../os/netfilter-socket.ts';
import { checksumAdd, checksumOf } from '../wire/checksum.ts';
import { ETHERNET_HEADER_BYTES } from '../wire/ethernet.ts';
import { TCP_CHECKSUM } from '../wire/tcp.ts';

const CODE = 'COLO_ERR_NFQUEUE_OPEN';
/** Attributes before the packet: about 150 bytes. */
const ATTRIBUTES_BYTES_MAX = 512;
const SLOT_BYTES = Math.ceil((ATTRIBUTES_BYTES_MAX + FRAME_BYTES_MAX) / 64) * 64;
/** Verdicts given in one call; more are given at once. */
const VERDICTS_BYTES_MAX = 256 * 1024;
const ANSWER_BYTES_MAX = 8_192;

/** A packet that waits: `message` says where in `buffer`. Both are lent for the call. */
export type PacketHandler = (buffer: FrameBuffer, message: NfqueueMessage) => void;

export interface QueueCounters {
  /** Packets that the kernel numbered and that did not arrive: no room in the socket. */
  missed: number;
  /** Verdicts that the kernel did not know the packet for (it forgets those of a deleted interface). */
  refused: number;
}

export class KernelQueue {
  readonly number: number;
  readonly counters: QueueCounters = { missed: 0, refused: 0 };
  readonly #socket = new NetfilterSocket(CODE, PORT_SOCKET_BUFFER_BYTES);
  readonly #vector = new MessageVector(BATCH_FRAMES_MAX, 0);
  readonly #ring: FrameBuffer;
  readonly #message = new NfqueueMessage();
  readonly #verdicts: FrameBuffer;
  #verdictBytes = 0;
  #lastId = 0;

  /**
   * Owns the queue from now on.
   *
   * @param failOpen what finds no room in the queue or the socket passes unseen, instead of being dropped
   * @throws ColoError COLO_ERR_NFQUEUE_OPEN
   */
  constructor(number: number, failOpen: boolean) {
    this.number = number;
    const memory = new ArrayBuffer(BATCH_FRAMES_MAX * SLOT_BYTES);
    this.#ring = { bytes: new Uint8Array(memory), view: new DataView(memory) };
    const verdicts = new ArrayBuffer(VERDICTS_BYTES_MAX);
    this.#verdicts = { bytes: new Uint8Array(verdicts), view: new DataView(verdicts) };
    const address = addressOf(memory);
    for (let index = 0; index < BATCH_FRAMES_MAX; index++) {
      this.#vector.setSegment(index, address + index * SLOT_BYTES, SLOT_BYTES);
    }
    try {
      this.#request(encodeBind(number));
      this.#request(encodeLimits(number, NFQUEUE_PACKETS_MAX, failOpen));
      this.#check(this.#socket.send(encodeStart(number)));
    } catch (error) {
      this.#socket.close();
      throw error;
    }
  }

  get fd(): number {
    return this.#socket.fd;
  }

  /** Hands at most BATCH_FRAMES_MAX packets to `handler`; returns how many datagrams there were, 0: none waits. */
  receive(handler: PacketHandler): number {
    for (;;) {
      const count = this.#socket.receive(this.#vector, BATCH_FRAMES_MAX);
      if (count >= 0) return this.#handOver(count, handler);
      if (count === -EAGAIN) return 0;
      // ENOBUFS: only where NETLINK_NO_ENOBUFS is not heeded; the numbers tell what was missed.
      if (count !== -EINTR && count !== -ENOBUFS) return 0;
    }
  }

  /** The packet goes on its way as it is. */
  accept(id: number): void {
    this.#add(id, NF_ACCEPT, 0);
  }

  drop(id: number): void {
    this.#add(id, NF_DROP, 0);
  }

  /**
   * The frame at `offset` of `buffer` (with its Ethernet header, which stays behind) goes in the place of the packet.
   *
   * @param tcpOffset of a TCP header whose checksum is partial, from the frame's first byte; 0: the frame is whole as it is
   */
  acceptChanged(
    id: number,
    buffer: FrameBuffer,
    offset: number,
    length: number,
    tcpOffset: number,
  ): void {
    const bytes = length - ETHERNET_HEADER_BYTES;
    const at = this.#add(id, NF_ACCEPT, bytes) - netlinkAlign(bytes);
    const from = offset + ETHERNET_HEADER_BYTES;
    this.#verdicts.bytes.set(buffer.bytes.subarray(from, offset + length), at);
    if (tcpOffset === 0) return;
    const tcp = at + tcpOffset - ETHERNET_HEADER_BYTES;
    // The field holds the pseudo-header's sum, which thereby is part of it.
    const sum = checksumAdd(this.#verdicts.view, tcp, at + bytes - tcp);
    this.#verdicts.view.setUint16(tcp + TCP_CHECKSUM, checksumOf(sum));
  }

  /**
   * Gives the gathered verdicts.
   *
   * @throws ColoError COLO_ERR_NFQUEUE_VERDICT: the kernel takes none; packets would wait for ever
   */
  flush(): void {
    if (this.#verdictBytes === 0) return;
    const bytes = this.#verdicts.bytes.subarray(0, this.#verdictBytes);
    this.#verdictBytes = 0;
    const result = this.#socket.send(bytes);
    if (result === 0) return;
    throw systemError(-result, {
      code: 'COLO_ERR_NFQUEUE_VERDICT',
      syscall: 'send',
      action: `Cannot give verdicts to packet queue ${this.number}`,
    });
  }

  /** Gives the queue up. The kernel drops what waits in it. */
  close(): void {
    this.#socket.close();
  }

  #add(id: number, verdict: number, payloadBytes: number): number {
    const size =
      VERDICT_BYTES + (payloadBytes === 0 ? 0 : NLA_HDR_BYTES + netlinkAlign(payloadBytes));
    if (this.#verdictBytes + size > VERDICTS_BYTES_MAX) this.flush();
    const at = this.#verdictBytes;
    const { view } = this.#verdicts;
    this.#verdictBytes = writeVerdict(view, at, this.number, id, verdict, payloadBytes);
    return this.#verdictBytes;
  }

  #handOver(count: number, handler: PacketHandler): number {
    const message = this.#message;
    for (let index = 0; index < count; index++) {
      const isCut = (this.#vector.flags(index) & MSG_TRUNC) !== 0;
      const kind = this.#read(index);
      if (kind === 'error') this.counters.refused++;
      if (kind !== 'packet') continue;
      message.isCut ||= isCut;
      // The kernel counts up for each packet that it wants to hand over.
      this.counters.missed += (message.id - this.#lastId - 1) >>> 0;
      this.#lastId = message.id;
      handler(this.#ring, message);
    }
    return count;
  }

  #read(index: number): NfqueueKind {
    const length = Math.min(this.#vector.bytes(index), SLOT_BYTES);
    return readNfqueue(this.#ring.view, index * SLOT_BYTES, length, this.#message);
  }

  /** Sends a request and reads its answer, which is there at once. */
  #request(bytes: Uint8Array): void {
    this.#check(this.#socket.send(bytes));
    const answer = new Uint8Array(new ArrayBuffer(ANSWER_BYTES_MAX));
    const length = this.#socket.receiveOne(answer);
    this.#check(Math.min(length, 0));
    const kind = readNfqueue(new DataView(answer.buffer), 0, length, this.#message);
    if (kind !== 'error') {
      throw new ColoError(CODE, `The kernel does not answer for packet queue ${this.number}`);
    }
    this.#check(-this.#message.errno);
  }

  #check(result: number): void {
    if (result >= 0) return;
    const hint = HINTS[-result] ?? '';
    const action = `Cannot open packet queue ${this.number}${hint}`;
    throw systemError(-result, { code: CODE, syscall: 'send', action });
  }
}

/** By errno: what it means here. */
const HINTS: Readonly<Record<number, string>> = {
  1: ' (another program has it, or the right to it is missing)',
  22: ' (does the kernel have nfnetlink_queue?)',
};
