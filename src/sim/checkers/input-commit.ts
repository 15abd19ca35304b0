/**
 * G2, input commit: no acknowledgement, SACK block or window edge reaches a client that goes beyond what both
 * guests have acknowledged or offered.
 *
 * @module
 */
import type { NodeState } from '../../env/messages.ts';
import { PROTOCOL_TCP, parseIp, type SimFrame } from '../net/packet.ts';
import type { ProxyNode } from '../node.ts';
import { ACK, parseSegment, RST, type TcpSegment } from '../tcp/segment.ts';
import type { Checker, Witness } from './checker.ts';
import { isUnprotected } from './output-commit.ts';
import { edgeOf, isAfter, isReported, recordsOf, type StreamRecord, streamKey } from './record.ts';

export class InputCommitChecker implements Checker {
  readonly guarantee = 'G2';
  readonly #witness: Witness;

  constructor(witness: Witness) {
    this.#witness = witness;
  }

  onNetOutput(node: ProxyNode, frame: SimFrame, state: NodeState): void {
    const { primary, pvm, svm } = this.#witness;
    if (node !== primary || isUnprotected(state)) return;
    const packet = parseIp(frame);
    if (packet?.protocol !== PROTOCOL_TCP) return;
    const segment = parseSegment(packet.payload);
    if (segment === undefined || (segment.flags & (ACK | RST)) !== ACK) return;
    const key = streamKey(packet, segment);
    const records = [this.#witness.recordOf(pvm), this.#witness.recordOf(svm)] as const;
    const { own, other } = recordsOf(...records, key, segment.seq);
    if (own === undefined) return;
    this.#check(key, segment, own, own, 'PVM');
    this.#check(key, segment, own, other, 'SVM');
  }

  #check(
    key: string,
    segment: TcpSegment,
    own: StreamRecord,
    stream: StreamRecord | undefined,
    who: string,
  ): void {
    if (stream === undefined || !stream.hasAck) {
      this.#witness.broken('G2', `ACK ${segment.ack} of ${key} released, the ${who} has sent none`);
      return;
    }
    if (isAfter(segment.ack, stream.ackMax)) {
      const text = `ACK ${segment.ack} of ${key} released, the ${who} has acknowledged ${stream.ackMax}`;
      this.#witness.broken('G2', text);
    }
    const edge = edgeOf(own, segment);
    if (isAfter(edge, stream.edgeMax)) {
      const text = `window edge ${edge} of ${key} released, the ${who} has offered ${stream.edgeMax}`;
      this.#witness.broken('G2', text);
    }
    for (let i = 0; i < segment.sack.length; i += 2) {
      const left = segment.sack[i]!;
      const right = segment.sack[i + 1]!;
      if (!isReported(stream, left, right)) {
        const text = `SACK ${left}-${right} of ${key} released, the ${who} has not reported it`;
        this.#witness.broken('G2', text);
      }
    }
  }
}
