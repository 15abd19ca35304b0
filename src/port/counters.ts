/**
 * Counters of a port.
 *
 * @module
 */
import type { PortCounters } from '../env/port.ts';

/** Why a port lost a frame; the keys of `PortCounters.dropped`. */
export type PortDropReason =
  | 'kernel-queue-full' // the socket's receive buffer was full
  | 'send-queue-full' // the kernel took no more, and our own queue was full
  | 'too-long' // longer than the MTU, and not TCP; or longer than FRAME_BYTES_MAX
  | 'too-short' // less than an Ethernet header
  | 'link-down' // sent while the interface was down
  | 'offload-unknown' // received with an offload that a virtio-net header cannot say
  | 'send-failed' // the kernel refused this frame
  | 'not-connected' // a stream port without its other side, or lost with the connection
  | 'protocol-error' // a stream that is not the one expected; the connection was closed
  | 'truncated' // a stream that ended inside a frame; a captured packet that was cut
  | 'not-ethernet' // a captured packet of another link type
  | 'marks-used-up' // packet queue: too many packets without a verdict
  | 'no-hardware-address' // packet queue: a frame of the engine's own to somebody who was not seen yet
  | 'not-queued' // not lost, but passed by the bridge unseen: neither IP nor ARP, or with a VLAN tag
  | 'passed-unchecked' // not lost, but passed unseen: the packet queue was full and fails open
  | 'verdict-refused' // packet queue: the kernel had given the packet up
  | 'closed'; // sent to a closed port

/** All zero. */
export function createPortCounters(): PortCounters {
  return { receivedFrames: 0, receivedBytes: 0, sentFrames: 0, sentBytes: 0, dropped: {} };
}

/** Counts lost frames. */
export function countDrop(counters: PortCounters, reason: PortDropReason, frames = 1): void {
  counters.dropped[reason] = (counters.dropped[reason] ?? 0) + frames;
}
