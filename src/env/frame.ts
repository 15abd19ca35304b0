/**
 * How frames lie in memory, for every part of the project.
 *
 * A frame is `length` bytes at `offset` of a buffer, beginning with the Ethernet header. The
 * VNET_HDR_BYTES before `offset` are always there and hold its virtio-net header (all zero: nothing
 * offloaded), so a port can send both with one pointer.
 *
 * @module
 */

/** Memory that holds frames; one long-lived pair per ring, because making a DataView costs 100 ns. */
export interface FrameBuffer {
  readonly bytes: Uint8Array;
  /** A view of the same memory as `bytes`, from the same first byte. */
  readonly view: DataView;
}

/** Memory of a stream of frames, of which some may be in use longer than their batch: they stay where they are. */
export interface LendingBuffer extends FrameBuffer {
  /** Frames in use. While there are any, whoever reads into this memory writes only where nothing was written before. */
  lent: number;
}

/**
 * Takes one frame. The memory `[offset - VNET_HDR_BYTES, offset + length)` is lent to the callee
 * until the giver says otherwise (see the giver); the callee may change it in place.
 */
export type FrameHandler = (buffer: FrameBuffer, offset: number, length: number) => void;

/**
 * Hears what becomes of frames that wait elsewhere (in a packet queue of the kernel) while their copies are looked at here. Such a frame
 * carries a mark, 1..65535, in the `hdr_len` field of its virtio-net header, which is only a hint to others. The mark goes with every
 * copy; 0 is a frame of which nothing waits.
 */
export interface FrameKeeper {
  /** A copy was made that may be sent later. */
  onKept(mark: number): void;
  /** That copy is given up: it has been sent by now, or never will be. */
  onForgotten(mark: number): void;
}
