/**
 * The port `qemu:`: a frame stream to QEMU (`-netdev stream`, or a socket chardev of its network filters), over a Unix
 * socket or TCP, as client or as server. It outlives its connections: a client connects again, a server waits for the
 * next one. There is no authentication in this protocol; a server takes one connection at a time.
 *
 * Without virtio-net headers the other side gets plain frames: GSO and partial checksums are undone in software.
 *
 * @module
 */
import { lstatSync, unlinkSync } from 'node:fs';
import { ColoError } from '../base/error.ts';
import {
  type DecodeResult,
  QEMU_HEAD_BYTES,
  QEMU_VNET_HEAD_BYTES,
  QEMU_VNET_HEADER_BYTES_MAX,
  QemuFrameDecoder,
  writeQemuHead,
  writeQemuVnetHead,
} from '../codec/qemu-chardev.ts';
import type { FrameBuffer, FrameHandler } from '../env/frame.ts';
import type { Port } from '../env/port.ts';
import { BATCH_FRAMES_MAX, FRAME_BYTES_MAX, VNET_HDR_BYTES } from '../limits.ts';
import { EADDRINUSE, EAGAIN, ECONNREFUSED, EINTR } from '../os/constants.ts';
import { FdWatcher } from '../os/fd-watcher.ts';
import { addressOf, close, errno, read, systemError, writev } from '../os/libc.ts';
import {
  acceptStream,
  connectStream,
  listenStream,
  type StreamAddress,
  takeSocketError,
} from '../os/stream-socket.ts';
import { ETHERNET_HEADER_BYTES } from '../wire/ethernet.ts';
import { countDrop, createPortCounters } from './counters.ts';
import { Poller } from './poller.ts';
import {
  type HeaderRoom,
  isOffloaded,
  SEGMENT_HEADER_BYTES_MAX,
  type SegmentSink,
  SoftwareOffload,
} from './software-offload.ts';
import { StreamSender } from './stream-sender.ts';

/** Between two attempts to connect. */
const RECONNECT_MS = 500;

/** What virtio-net guests have; used until the other side has shown its own. */
const VNET_HEADER_BYTES_DEFAULT = 12;

/** Frames without their virtio-net header have at most the head and rewritten headers before them. */
const HEAD_BYTES_MAX =
  QEMU_VNET_HEAD_BYTES + Math.max(QEMU_VNET_HEADER_BYTES_MAX, SEGMENT_HEADER_BYTES_MAX);

/** A reader of the stream that leaves this much of it gets no more until it has taken some. */
const STREAM_PENDING_MAX = 512 * 1024;

/** How to reach the other side. */
export interface QemuPortOptions {
  readonly name: string;
  readonly address: StreamAddress;
  readonly isServer: boolean;
  /** vnet_hdr_support at the other side. */
  readonly hasVnetHeader: boolean;
}

/** One connection, from when it is established. */
interface Connection {
  readonly fd: number;
  readonly poller: Poller;
  readonly decoder: QemuFrameDecoder;
}

/** A stream to QEMU as a port. */
export class QemuPort implements Port {
  readonly name: string;
  readonly counters = createPortCounters();
  readonly #options: QemuPortOptions;
  readonly #sender: StreamSender;
  readonly #offload = new SoftwareOffload();
  readonly #room: { buffer: FrameBuffer; offset: number };
  readonly #sink: SegmentSink;
  /** The frame that `#sink` gets segments of. */
  #whole: FrameBuffer;
  #listenFd = -1;
  #listener: FdWatcher | undefined;
  #connecting: { readonly fd: number; readonly watcher: FdWatcher } | undefined;
  #connection: Connection | undefined;
  #reconnectTimer: NodeJS.Timeout | undefined;
  #onReadable: () => void = () => {};
  #onConnection: (isConnected: boolean) => void = () => {};
  #vnetHeaderBytes = VNET_HEADER_BYTES_DEFAULT;
  #closed = false;
  /** The last `readStream` has found nothing. */
  #isDrained = false;
  /** It was not to read: there is enough already. */
  #isFull = false;

  /**
   * A server listens from now on.
   *
   * @throws ColoError COLO_ERR_QEMU_LISTEN
   */
  constructor(options: QemuPortOptions) {
    this.name = options.name;
    this.#options = options;
    const target = {
      write: this.#write.bind(this),
      wantWritable: (wanted: boolean) => this.#connection?.poller.watchWritable(wanted),
      onBroken: () => this.#disconnect(),
    };
    this.#sender = new StreamSender(target, this.counters, HEAD_BYTES_MAX);
    this.#whole = this.#sender.heads;
    this.#room = { buffer: this.#sender.heads, offset: 0 };
    this.#sink = { room: () => this.#headerRoom(), segment: this.#sendSegment.bind(this) };
    if (options.isServer) this.#listenFd = listenAt(options.address, options.name);
  }

  /** Is the other side there? */
  get isConnected(): boolean {
    return this.#connection !== undefined;
  }

  start(onReadable: () => void, _onClosed: (error: Error) => void): void {
    this.#onReadable = onReadable;
    if (this.#options.isServer) {
      this.#listener = new FdWatcher(this.#listenFd, () => this.#accept());
      this.#listener.watch(true, false);
    } else {
      this.#connect();
    }
  }

  onConnection(listener: (isConnected: boolean) => void): void {
    this.#onConnection = listener;
  }

  receive(handler: FrameHandler): number {
    const connection = this.#connection;
    if (connection === undefined) return 0;
    const { decoder } = connection;
    decoder.reclaim();
    let count = 0;
    while (count < BATCH_FRAMES_MAX) {
      const result: DecodeResult = decoder.next();
      if (result === 'frame') {
        count++;
        this.#take(decoder, handler);
        continue;
      }
      if (result === 'error') {
        if (count > 0) break;
        countDrop(this.counters, 'protocol-error');
        this.#disconnect();
        break;
      }
      // Memory of frames that are lent must not move: reading waits for the next call.
      if (count > 0 || !this.#read(connection)) break;
    }
    // A handler may have closed the port.
    if (this.#connection === connection) connection.poller.answered(count === 0);
    return count;
  }

  /**
   * For a reader that looks at frames where they lie in the stream: begins a batch by reading what has come. What an earlier batch
   * has left stays; what it has taken is no longer lent. Undefined while nobody is connected.
   */
  readStream(): QemuFrameDecoder | undefined {
    const connection = this.#connection;
    if (connection === undefined) return undefined;
    const { decoder } = connection;
    decoder.reclaim();
    this.#isFull = decoder.pendingBytes >= STREAM_PENDING_MAX || decoder.isCrowded;
    this.#isDrained = !this.#isFull && !this.#read(connection);
    return this.#connection?.decoder;
  }

  /** Hands one frame of the stream over as `receive` does; false when there is none that is whole, or no room until the next batch. */
  takeOne(handler: FrameHandler): boolean {
    const decoder = this.#connection?.decoder;
    if (decoder === undefined) return false;
    const result = decoder.next();
    if (result === 'frame') this.#take(decoder, handler);
    else if (result === 'error') {
      countDrop(this.counters, 'protocol-error');
      this.#disconnect();
    }
    return result === 'frame';
  }

  /**
   * Ends a batch that `readStream` began. Of the frames taken by the decoder's `skip` it learns here. `isIdle`: nothing was taken, of any
   * stream. Returns whether there may be more.
   */
  endBatch(skippedFrames: number, skippedBytes: number, isIdle: boolean): boolean {
    this.counters.receivedFrames += skippedFrames;
    this.counters.receivedBytes += skippedBytes;
    // What stands here waits for another stream: not answered, so that the poller is silent until then.
    if (this.#isFull && isIdle) return false;
    this.#connection?.poller.answered(this.#isDrained);
    return this.#connection !== undefined && !this.#isDrained;
  }

  /** Bytes before each frame that is sent: of the head, and of the virtio-net header. */
  get recordHeadBytes(): number {
    return this.#options.hasVnetHeader
      ? QEMU_VNET_HEAD_BYTES + this.#vnetHeaderBytes
      : QEMU_HEAD_BYTES;
  }

  /** As `send`, of frames that lie behind one another in another such stream, with `recordHeadBytes` before each. */
  sendRecords(buffer: FrameBuffer, offset: number, length: number, frames: number): void {
    if (this.#connection === undefined) {
      countDrop(this.counters, this.#closed ? 'closed' : 'not-connected', frames);
      return;
    }
    this.#sender.add(0, buffer, offset, length, length, frames);
  }

  send(buffer: FrameBuffer, offset: number, length: number): void {
    if (this.#connection === undefined) {
      countDrop(this.counters, this.#closed ? 'closed' : 'not-connected');
    } else if (length < ETHERNET_HEADER_BYTES) {
      countDrop(this.counters, 'too-short');
    } else if (this.#options.hasVnetHeader && this.#vnetHeaderBytes > 0) {
      this.#sendWithHeader(buffer, offset, length);
    } else if (isOffloaded(buffer.view, offset)) {
      this.#sendCompleted(buffer, offset, length);
    } else {
      const headBytes = this.#writeHead(this.#sender.headOffset, length);
      this.#sender.add(headBytes, buffer, offset, length, length);
    }
  }

  flush(): void {
    if (this.#connection !== undefined) this.#sender.flush();
  }

  close(): Promise<void> {
    if (this.#closed) return Promise.resolve();
    this.flush();
    this.#closed = true;
    this.#disconnect();
    clearTimeout(this.#reconnectTimer);
    this.#endConnecting();
    this.#listener?.close();
    if (this.#listenFd >= 0) {
      close(this.#listenFd);
      if (this.#options.address.kind === 'unix') removeSocketFile(this.#options.address.path);
    }
    return Promise.resolve();
  }

  #take(decoder: QemuFrameDecoder, handler: FrameHandler): void {
    const length = decoder.frameBytes;
    if (length < ETHERNET_HEADER_BYTES || length > FRAME_BYTES_MAX) {
      const isShort = length < ETHERNET_HEADER_BYTES;
      countDrop(this.counters, isShort ? 'too-short' : 'too-long');
      return;
    }
    if (this.#options.hasVnetHeader) this.#vnetHeaderBytes = decoder.vnetHeaderBytes;
    this.counters.receivedFrames++;
    this.counters.receivedBytes += length;
    handler(decoder.frameBuffer, decoder.frameOffset, length);
  }

  /** Reads more of the stream; false when there is none, or the connection has ended. */
  #read(connection: Connection): boolean {
    const { decoder, fd } = connection;
    decoder.makeRoom();
    const address = addressOf(decoder.stream.bytes.buffer) + decoder.writeOffset;
    const bytes = read(fd, address, decoder.writeBytesMax);
    if (bytes > 0) {
      decoder.onBytes(bytes);
      return true;
    }
    const error = bytes === 0 ? 0 : errno();
    if (error === EINTR) return true;
    if (error === EAGAIN) return false;
    if (decoder.pendingBytes > 0) countDrop(this.counters, 'truncated');
    this.#disconnect();
    return false;
  }

  #write(vector: StreamVector, first: number, count: number): number {
    const fd = this.#connection!.fd;
    // Each message has two segments, and they lie behind one another: one writev for all of them.
    const bytes = writev(fd, vector.addressOfSegments(first), 2 * count);
    return bytes < 0 ? -errno() : bytes;
  }

  /** The virtio-net header goes along, as long as the other side's own. */
  #sendWithHeader(buffer: FrameBuffer, offset: number, length: number): void {
    const vnetBytes = this.#vnetHeaderBytes;
    const { bytes, view } = this.#sender.heads;
    const head = this.#sender.headOffset;
    writeQemuVnetHead(view, head, vnetBytes, length);
    const to = head + QEMU_VNET_HEAD_BYTES;
    const from = offset - VNET_HDR_BYTES;
    for (let index = 0; index < VNET_HDR_BYTES; index++) {
      bytes[to + index] = buffer.bytes[from + index]!;
    }
    for (let index = VNET_HDR_BYTES; index < vnetBytes; index++) bytes[to + index] = 0;
    this.#sender.add(QEMU_VNET_HEAD_BYTES + vnetBytes, buffer, offset, length, length);
  }

  /** As plain frames: what was left to offloading is done here. */
  #sendCompleted(buffer: FrameBuffer, offset: number, length: number): void {
    this.#whole = buffer;
    const isDone = this.#offload.complete(buffer, offset, length, this.#sink);
    if (!isDone) countDrop(this.counters, 'offload-unknown');
  }

  #headerRoom(): HeaderRoom {
    const prefixBytes = this.#options.hasVnetHeader ? QEMU_VNET_HEAD_BYTES : QEMU_HEAD_BYTES;
    this.#room.offset = this.#sender.headOffset + prefixBytes;
    return this.#room;
  }

  #sendSegment(headerBytes: number, payloadOffset: number, payloadBytes: number): void {
    const frameBytes = headerBytes + payloadBytes;
    const headBytes = this.#writeHead(this.#sender.headOffset, frameBytes) + headerBytes;
    this.#sender.add(headBytes, this.#whole, payloadOffset, payloadBytes, frameBytes);
  }

  #writeHead(head: number, frameBytes: number): number {
    const { view } = this.#sender.heads;
    if (this.#options.hasVnetHeader) {
      writeQemuVnetHead(view, head, 0, frameBytes);
      return QEMU_VNET_HEAD_BYTES;
    }
    writeQemuHead(view, head, frameBytes);
    return QEMU_HEAD_BYTES;
  }

  #accept(): void {
    if (this.#connection !== undefined || this.#closed) return;
    const fd = acceptStream(this.#listenFd, this.#options.address.kind);
    if (fd < 0) return;
    // The next one waits in the kernel until this one has ended.
    this.#listener?.watch(false, false);
    this.#establish(fd);
  }

  #connect(): void {
    const fd = connectStream(this.#options.address);
    if (fd < 0) {
      this.#reconnectLater();
      return;
    }
    const watcher = new FdWatcher(fd, (readiness) => {
      const error = takeSocketError(fd);
      if (!readiness.failed && !readiness.writable) return;
      watcher.close();
      this.#connecting = undefined;
      if (error === 0 && !readiness.failed) {
        this.#establish(fd);
      } else {
        close(fd);
        this.#reconnectLater();
      }
    });
    this.#connecting = { fd, watcher };
    watcher.watch(false, true);
  }

  #establish(fd: number): void {
    const poller = new Poller(fd, {
      onReadable: () => this.#onReadable(),
      onWritable: () => this.#sender.retry(),
      onFailed: () => this.#disconnect(),
    });
    const decoder = new QemuFrameDecoder(this.#options.hasVnetHeader);
    this.#connection = { fd, poller, decoder };
    this.#vnetHeaderBytes = VNET_HEADER_BYTES_DEFAULT;
    poller.watchReadable();
    this.#onConnection(true);
  }

  #disconnect(): void {
    const connection = this.#connection;
    if (connection === undefined) return;
    this.#connection = undefined;
    connection.poller.close();
    close(connection.fd);
    this.#sender.reset();
    if (this.#closed) return;
    this.#onConnection(false);
    if (this.#options.isServer) this.#listener?.watch(true, false);
    else this.#reconnectLater();
  }

  #reconnectLater(): void {
    this.#reconnectTimer = setTimeout(() => this.#connect(), RECONNECT_MS);
  }

  #endConnecting(): void {
    this.#connecting?.watcher.close();
    if (this.#connecting !== undefined) close(this.#connecting.fd);
    this.#connecting = undefined;
  }
}

type StreamVector = Parameters<ConstructorParameters<typeof StreamSender>[0]['write']>[0];

/** Listens; a socket file that nobody listens on any more is replaced. */
function listenAt(address: StreamAddress, name: string): number {
  let fd = listenStream(address);
  if (fd === -EADDRINUSE && address.kind === 'unix' && isStale(address)) {
    removeSocketFile(address.path);
    fd = listenStream(address);
  }
  if (fd < 0) {
    throw systemError(-fd, {
      code: 'COLO_ERR_QEMU_LISTEN',
      syscall: 'bind',
      action: `Cannot listen for the port ${name}`,
      path: address.kind === 'unix' ? address.path : address.address,
    });
  }
  return fd;
}

function isStale(address: StreamAddress & { readonly kind: 'unix' }): boolean {
  try {
    if (!lstatSync(address.path).isSocket()) return false;
  } catch (cause) {
    throw new ColoError('COLO_ERR_QEMU_LISTEN', `Cannot look at ${address.path}`, { cause });
  }
  const fd = connectStream(address);
  if (fd >= 0) close(fd);
  // A live listener whose queue is full says EAGAIN: it serves one connection at a time, the others wait there.
  return fd === -ECONNREFUSED;
}

function removeSocketFile(path: string): void {
  try {
    unlinkSync(path);
  } catch {
    // Somebody else has removed it.
  }
}
