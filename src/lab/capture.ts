/**
 * Watches a port of the lab's switch: the first bytes of every frame, cheaply enough to run in every scenario.
 *
 * A socket filter shortens frames in the kernel, so a 64 KiB GSO frame costs as much as an acknowledgement.
 *
 * @module
 */
import {
  AF_PACKET,
  ETH_P_ALL,
  PACKET_IGNORE_OUTGOING,
  SOCK_CLOEXEC,
  SOCK_NONBLOCK,
  SOCK_RAW,
  SOL_PACKET,
  SOL_SOCKET,
} from '../os/constants.ts';
import { FdWatcher } from '../os/fd-watcher.ts';
import {
  addressOf,
  bind,
  checkResult,
  close,
  ifNameToIndex,
  recv,
  setsockopt,
  socket,
  writeAddress,
} from '../os/libc.ts';
import { monotonicMs } from './clock.ts';
import type { Namespace } from './netns.ts';
import { GUEST_MAC } from './topology.ts';

/** Bytes of each frame that are seen: all headers, with options. */
export const CAPTURE_BYTES = 160;
const SO_ATTACH_FILTER = 26;
const SO_RCVBUFFORCE = 33;
const SOCKET_BUFFER_BYTES = 16 * 1024 * 1024;
const MSG_TRUNC = 0x20;
const FRAMES_PER_TURN_MAX = 512;
/** struct sock_filter: BPF_RET | BPF_K with the number of bytes to keep. */
const BPF_RET_K = 0x06;

/** A frame as it passed; `bytes` is at most CAPTURE_BYTES long. */
export interface CapturedFrame {
  readonly atMs: number;
  readonly bytes: Uint8Array;
  /** Length on the wire (GSO frames: of the whole). */
  readonly length: number;
}

/** Calls `onFrame` for the frames on an interface; `bytes` is reused after the call. */
export class InterfaceTap {
  readonly #fd: number;
  readonly #watcher: FdWatcher;
  readonly #buffer = new Uint8Array(new ArrayBuffer(CAPTURE_BYTES));
  readonly #onFrame: (bytes: Uint8Array, length: number) => void;

  /**
   * @param received true: only what the interface receives; false: what is sent out of it, too
   * @throws ColoError
   */
  constructor(
    namespace: Namespace,
    interfaceName: string,
    received: boolean,
    onFrame: (bytes: Uint8Array, length: number) => void,
  ) {
    this.#onFrame = onFrame;
    this.#fd = namespace.within(() => openTap(interfaceName, received));
    this.#watcher = new FdWatcher(this.#fd, () => this.drain());
    this.#watcher.watch(true, false);
  }

  /** Handles what waits, now. */
  drain(): void {
    for (let count = 0; count < FRAMES_PER_TURN_MAX; count++) {
      const length = recv(this.#fd, this.#buffer, CAPTURE_BYTES, MSG_TRUNC);
      if (length < 0) return;
      this.#onFrame(this.#buffer.subarray(0, Math.min(length, CAPTURE_BYTES)), length);
    }
  }

  close(): void {
    this.#watcher.close();
    close(this.#fd);
  }
}

function openTap(interfaceName: string, received: boolean): number {
  const failure = (syscall: string) => ({
    code: 'COLO_ERR_LAB_CAPTURE',
    syscall,
    action: `Cannot watch ${interfaceName}`,
  });
  // Protocol 0: nothing is received until bind, when the filter is in place.
  const fd = checkResult(
    socket(AF_PACKET, SOCK_RAW | SOCK_NONBLOCK | SOCK_CLOEXEC, 0),
    failure('socket'),
  );
  const one = Uint8Array.of(1, 0, 0, 0);
  if (received) {
    checkResult(setsockopt(fd, SOL_PACKET, PACKET_IGNORE_OUTGOING, one, 4), failure('setsockopt'));
  }
  const bufferBytes = new Uint8Array(Uint32Array.of(SOCKET_BUFFER_BYTES).buffer);
  // Refused without real root; the default is enough for most scenarios then.
  setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, bufferBytes, 4);
  const program = new ArrayBuffer(8);
  const instruction = new DataView(program);
  instruction.setUint16(0, BPF_RET_K, true);
  instruction.setUint32(4, CAPTURE_BYTES, true);
  // struct sock_fprog: count, padding, pointer
  const fprog = new DataView(new ArrayBuffer(16));
  fprog.setUint16(0, 1, true);
  writeAddress(fprog, 8, addressOf(program));
  const fprogBytes = new Uint8Array(fprog.buffer);
  checkResult(setsockopt(fd, SOL_SOCKET, SO_ATTACH_FILTER, fprogBytes, 16), failure('setsockopt'));
  // struct sockaddr_ll: family, protocol (network order), index
  const address = new DataView(new ArrayBuffer(20));
  address.setUint16(0, AF_PACKET, true);
  address.setUint16(2, ETH_P_ALL, false);
  address.setInt32(4, ifNameToIndex(interfaceName), true);
  checkResult(bind(fd, new Uint8Array(address.buffer), 20), failure('bind'));
  return fd;
}

/** Frames kept by a recorder; the oldest go first. */
const RECORDED_FRAMES_MAX = 200_000;

/** Keeps the last frames of an interface, both directions, for a capture file. */
export class Recorder {
  readonly #tap: InterfaceTap;
  readonly #frames: CapturedFrame[] = [];
  #next = 0;

  constructor(namespace: Namespace, interfaceName: string) {
    this.#tap = new InterfaceTap(namespace, interfaceName, false, (bytes, length) => {
      this.#frames[this.#next] = { atMs: monotonicMs(), bytes: bytes.slice(), length };
      this.#next = (this.#next + 1) % RECORDED_FRAMES_MAX;
    });
  }

  /** Oldest first. */
  frames(): CapturedFrame[] {
    this.#tap.drain();
    return [...this.#frames.slice(this.#next), ...this.#frames.slice(0, this.#next)];
  }

  close(): void {
    this.#tap.close();
  }
}

const ETHERNET_SOURCE_OFFSET = 6;
const GUEST_MAC_BYTES = Uint8Array.from(
  GUEST_MAC.split(':').map((byte) => Number.parseInt(byte, 16)),
);

/** Guards guarantee G3 at the switch: before failover, no frame from SN has the guest's address. */
export class SilenceWatch {
  readonly #tap: InterfaceTap;
  #armed = true;
  #frames = 0;
  #first: CapturedFrame | undefined;

  constructor(switchNs: Namespace) {
    this.#tap = new InterfaceTap(switchNs, 'p-sn', true, (bytes, length) => {
      if (!this.#armed || !isFromGuest(bytes)) return;
      this.#frames++;
      this.#first ??= { atMs: monotonicMs(), bytes: bytes.slice(), length };
    });
  }

  /** From now on the secondary may speak. */
  disarm(): void {
    this.#tap.drain();
    this.#armed = false;
  }

  /** What broke the silence, in words; undefined when nothing did. */
  broken(): string | undefined {
    if (this.#armed) this.#tap.drain();
    if (this.#first === undefined) return undefined;
    const hex = Buffer.from(this.#first.bytes.subarray(0, 64)).toString('hex');
    return `${this.#frames} frames of the guest came from SN before failover, the first: ${hex}`;
  }

  close(): void {
    this.#tap.close();
  }
}

function isFromGuest(frame: Uint8Array): boolean {
  return GUEST_MAC_BYTES.every((byte, i) => frame[ETHERNET_SOURCE_OFFSET + i] === byte);
}
