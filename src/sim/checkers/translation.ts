/**
 * G5, translation: what the secondary gives the SVM of a connection is in the SVM's own numbers. An acknowledgement that
 * fits must come with SACK blocks that fit: behind it, and of bytes that the SVM has sent.
 *
 * @module
 */
import { PROTOCOL_TCP, parseIp, type SimFrame, transportChecksumOk } from '../net/packet.ts';
import type { ProxyNode } from '../node.ts';
import { ACK, parseSegment, RST, SYN } from '../tcp/segment.ts';
import type { Checker, Witness } from './checker.ts';
import { positionOf, sentEnd } from './record.ts';

/** An acknowledgement further behind is from another life of the connection, or forged. */
const NEAR_BYTES = 1 << 20;

export class TranslationChecker implements Checker {
  readonly guarantee = 'G5';
  readonly #witness: Witness;

  constructor(witness: Witness) {
    this.#witness = witness;
  }

  onGuestOutput(node: ProxyNode, frame: SimFrame): void {
    if (node !== this.#witness.secondary || !this.#witness.isSvmSynced) return;
    const packet = parseIp(frame);
    if (packet?.protocol !== PROTOCOL_TCP) return;
    const segment = parseSegment(packet.payload);
    if (segment === undefined || segment.sack.length === 0) return;
    if ((segment.flags & (ACK | SYN | RST)) !== ACK || !transportChecksumOk(packet)) return;
    const key = `${packet.src}:${segment.srcPort}:${segment.dstPort}`;
    const stream = this.#witness.recordOf(this.#witness.svm).streams.get(key);
    if (stream === undefined || !stream.hasIsn) return;
    const end = sentEnd(stream) + (stream.fin >= 0 ? 1 : 0);
    const acknowledged = positionOf(stream, segment.ack);
    if (acknowledged > end || acknowledged < end - NEAR_BYTES) return;
    for (const edge of segment.sack) {
      const position = positionOf(stream, edge);
      if (position > acknowledged && position <= end) continue;
      const text = `the SVM got a SACK edge at ${position} of ${key}, acknowledged ${acknowledged}, sent ${end}`;
      this.#witness.broken('G5', text);
      return;
    }
  }
}
