/**
 * What a link counts over all of its connections. Names and meaning: `PeerLinkStatus`.
 *
 * @module
 */

/** All only grow. */
export class LinkCounters {
  sentBytes = 0;
  sentFrames = 0;
  sentMessages = 0;
  receivedBytes = 0;
  receivedFrames = 0;
  receivedMessages = 0;
  ups = 0;
  readonly dropped: Record<string, number> = {};
  readonly refused: Record<string, number> = {};
  readonly downs: Record<string, number> = {};
}

/** Adds one to `counts[name]`. Names are of the program's own making, never of the peer's. */
export function count(counts: Record<string, number>, name: string): void {
  counts[name] = (counts[name] ?? 0) + 1;
}
