/**
 * G1, output commit: no byte of PVM output reaches a client unless the SVM has sent the same byte of that
 * stream, or remembers having sent it because a checkpoint was committed.
 *
 * @module
 */
import type { NodeState } from '../../env/messages.ts';
import { type IpPacket, PROTOCOL_TCP, parseIp, type SimFrame } from '../net/packet.ts';
import type { ProxyNode } from '../node.ts';
import { FIN, parseSegment, RST, SYN } from '../tcp/segment.ts';
import type { Checker, Witness } from './checker.ts';
import {
  byteAt,
  completeDatagram,
  datagramKey,
  isDiscovery,
  positionOf,
  recordsOf,
  sentEnd,
  streamKey,
} from './record.ts';

/** States in which a node does not claim to protect. */
export function isUnprotected(state: NodeState): boolean {
  return state === 'unprotected' || state === 'syncing';
}

export class OutputCommitChecker implements Checker {
  readonly guarantee = 'G1';
  readonly #witness: Witness;
  readonly #released = new Map<string, number>();
  readonly #fragments = new Map<string, IpPacket[]>();

  constructor(witness: Witness) {
    this.#witness = witness;
  }

  onNetOutput(node: ProxyNode, frame: SimFrame, state: NodeState): void {
    if (node !== this.#witness.primary) return;
    const packet = parseIp(frame);
    if (packet === undefined) return;
    if (packet.protocol === PROTOCOL_TCP) {
      if (!isUnprotected(state)) this.#checkSegment(packet);
      return;
    }
    if (isDiscovery(packet)) return;
    const whole = completeDatagram(this.#fragments, packet);
    if (whole === undefined) return;
    const key = datagramKey(whole);
    const count = (this.#released.get(key) ?? 0) + 1;
    this.#released.set(key, count);
    if (isUnprotected(state)) return;
    const sent = this.#witness.recordOf(this.#witness.svm).datagrams.get(key) ?? 0;
    // Where the guests' links duplicate frames, the engine gets more than the PVM has sent.
    if (sent < (this.#witness.isGuestPathDuplicating ? 1 : count)) {
      this.#fail(`datagram ${key} released ${count} times, the SVM has sent it ${sent} times`);
    }
  }

  #fail(text: string): void {
    this.#witness.broken('G1', text);
  }

  #checkSegment(packet: IpPacket): void {
    const segment = parseSegment(packet.payload);
    if (segment === undefined) return;
    const key = streamKey(packet, segment);
    const { pvm, svm } = this.#witness;
    const records = [this.#witness.recordOf(pvm), this.#witness.recordOf(svm)] as const;
    const { own, other } = recordsOf(...records, key, segment.seq);
    if ((segment.flags & RST) !== 0) {
      if ((other?.resets ?? 0) === 0) this.#fail(`RST of ${key} released, the SVM has sent none`);
      return;
    }
    const count = segment.payload.length;
    const hasSyn = (segment.flags & SYN) !== 0;
    const hasFin = (segment.flags & FIN) !== 0;
    if (count === 0 && !hasSyn && !hasFin) return;
    if (own === undefined || !own.hasIsn) return;
    if (other === undefined || !other.hasIsn) {
      this.#fail(`segment of ${key} released, the SVM has no such connection`);
      return;
    }
    if (own.hasClientIsn && other.hasClientIsn && own.clientIsn !== other.clientIsn) {
      this.#fail(`segment of ${key} released, the SVM has an older connection there`);
      return;
    }
    if (hasSyn) return;
    const start = positionOf(own, segment.seq);
    for (let i = 0; i < count; i++) {
      const position = start + i;
      // Bytes from before the run are behind everybody.
      if (position < other.base) continue;
      const byte = byteAt(other, position);
      if (byte === segment.payload[i]) continue;
      const what = byte < 0 ? `has sent ${sentEnd(other) - 1}` : `sent ${byte}`;
      this.#fail(
        `byte ${position - 1} of ${key} released as ${segment.payload[i]}, the SVM ${what}`,
      );
      return;
    }
    if (hasFin && other.fin !== start + count) {
      this.#fail(`FIN of ${key} released at ${start + count}, the SVM's is at ${other.fin}`);
    }
  }
}
