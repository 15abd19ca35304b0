/**
 * A port: where frames come from and go to (a packet socket, a tap, a QEMU stream, memory).
 * All kinds are equal for the engines.
 *
 * @module
 */
import type { FrameBuffer, FrameHandler, FrameKeeper } from './frame.ts';

/** Counters of a port; all only grow. */
export interface PortCounters {
  receivedFrames: number;
  receivedBytes: number;
  sentFrames: number;
  sentBytes: number;
  /** Frames lost, by reason (`kernel-queue-full`, `too-long`, `send-failed`, ...). */
  dropped: Record<string, number>;
}

export interface Port {
  /** As the user wrote it: `packet:tap0`. */
  readonly name: string;
  readonly counters: PortCounters;
  /** Of ports whose frames wait in the kernel: to be told of copies of them. */
  readonly keeper?: FrameKeeper | undefined;
  /** Calls `onReadable` (never synchronously) whenever frames wait; and `onClosed` once, when the port dies. */
  start(onReadable: () => void, onClosed: (error: Error) => void): void;
  /**
   * Hands at most BATCH_FRAMES_MAX waiting frames to `handler`, without blocking. The frames are lent until
   * the next `receive`. Returns how many there were: 0 = drained, and `onReadable` is armed again.
   */
  receive(handler: FrameHandler): number;
  /**
   * Queues a frame for sending. It is borrowed, not copied, until `flush`; what the kernel would not take
   * by then is copied (bounded) or dropped and counted.
   */
  send(buffer: FrameBuffer, offset: number, length: number): void;
  /** Sends all queued frames (sendmmsg). Afterwards no borrowed memory is referenced. */
  flush(): void;
  /**
   * Of ports whose other side comes and goes (streams): `listener` hears of each change, perhaps out of any other call. A port
   * without it always has another side.
   */
  onConnection?(listener: (isConnected: boolean) => void): void;
  /** A checkpoint begins: whatever the port keeps back for a moment is to come with the `receive`s until one returns 0. */
  handOver?(): void;
  close(): Promise<void>;
}
