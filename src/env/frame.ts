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

/**
 * Takes one frame. The memory `[offset - VNET_HDR_BYTES, offset + length)` is lent to the callee
 * until the giver says otherwise (see the giver); the callee may change it in place.
 */
export type FrameHandler = (buffer: FrameBuffer, offset: number, length: number) => void;
