/**
 * Fragments put together, as a host does it.
 *
 * @module
 */
import type { IpPacket } from '../net/packet.ts';

/** The datagram that these fragments make; undefined while one is missing. */
export function joinFragments(pieces: readonly IpPacket[]): IpPacket | undefined {
  const last = pieces.find((piece) => !piece.moreFragments);
  if (last === undefined) return undefined;
  const payload = new Uint8Array(last.fragmentOffset + last.payload.length);
  const sorted = [...pieces].sort((a, b) => a.fragmentOffset - b.fragmentOffset);
  let covered = 0;
  for (const piece of sorted) {
    if (piece.fragmentOffset > covered) return undefined;
    if (piece.fragmentOffset + piece.payload.length > payload.length) return undefined;
    payload.set(piece.payload, piece.fragmentOffset);
    covered = Math.max(covered, piece.fragmentOffset + piece.payload.length);
  }
  if (covered < payload.length) return undefined;
  const first = sorted[0]!;
  return { ...first, payload, fragmentOffset: 0, moreFragments: false };
}
