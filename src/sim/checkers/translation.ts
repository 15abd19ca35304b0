/**
 * G5, translation: what the secondary gives the SVM of a connection is in the SVM's own numbers: it acknowledges nothing that
 * the SVM has not sent, and its SACK blocks lie behind the acknowledgement.
 *
 * @module
 */
import { tcpQuoteOf } from '../host/path-mtu.ts';
import {
  type IpPacket,
  PROTOCOL_TCP,
  parseIp,
  type SimFrame,
  transportChecksumOk,
} from '../net/packet.ts';
import type { ProxyNode } from '../node.ts';
import { ACK, parseSegment, RST, SYN } from '../tcp/segment.ts';
import type { Checker, Witness } from './checker.ts';
import { positionOf, type StreamRecord, sentEnd } from './record.ts';

/** The client's own numbers need no translation: a segment further away is of another connection. */
const NEAR_BYTES = 1 << 18;
/** No run sends so much on one connection. */
const FAR_BYTES = 1 << 24;

export class TranslationChecker implements Checker {
  readonly guarantee = 'G5';
  readonly #witness: Witness;

  constructor(witness: Witness) {
    this.#witness = witness;
  }

  onGuestOutput(node: ProxyNode, frame: SimFrame): void {
    const { secondary, svm, isSvmSynced, isCheckpointUnderWay } = this.#witness;
    if (node !== secondary || !isSvmSynced || isCheckpointUnderWay) return;
    const packet = parseIp(frame);
    if (packet === undefined || packet.head.vlan !== svm.host.state.vlan) return;
    this.#checkQuote(packet);
    if (packet.protocol !== PROTOCOL_TCP) return;
    const segment = parseSegment(packet.payload);
    if (segment === undefined || (segment.flags & (ACK | SYN | RST)) !== ACK) return;
    // What was damaged on its way is passed on as it is, and refused by the SVM.
    const isFragment = packet.fragmentOffset > 0 || packet.moreFragments;
    if (isFragment || !packet.headerChecksumOk || !transportChecksumOk(packet)) return;
    const key = `${packet.src}:${segment.srcPort}:${segment.dstPort}`;
    const stream = this.#witness.recordOf(svm).streams.get(key);
    if (stream === undefined || !stream.hasIsn || !stream.hasAck) return;
    // Forged segments, and late ones of an older connection, say nothing.
    if (Math.abs((segment.seq - stream.ackMax) | 0) > NEAR_BYTES) return;
    if (!this.#isOpenAtClient(packet.src, segment.srcPort, stream)) return;
    const end = sentEnd(stream) + (stream.fin >= 0 ? 1 : 0);
    const acknowledged = positionOf(stream, segment.ack);
    if (acknowledged > end || acknowledged < end - FAR_BYTES) {
      const text = `the SVM got an acknowledgement of ${acknowledged} of ${key}, it has sent ${end}`;
      this.#fail(text);
      return;
    }
    for (const edge of segment.sack) {
      const position = positionOf(stream, edge);
      if (position > acknowledged && position <= end) continue;
      const text = `the SVM got a SACK edge at ${position} of ${key}, acknowledged ${acknowledged}, sent ${end}`;
      this.#fail(text);
      return;
    }
  }

  /** A segment of the SVM that an ICMP error quotes is one that the SVM has sent. */
  #checkQuote(packet: IpPacket): void {
    const quote = tcpQuoteOf(packet);
    if (quote === undefined || !packet.headerChecksumOk || !transportChecksumOk(packet)) return;
    const key = `${quote.remote}:${quote.remotePort}:${quote.localPort}`;
    const stream = this.#witness.recordOf(this.#witness.svm).streams.get(key);
    if (stream === undefined || !stream.hasIsn || !stream.hasClientIsn) return;
    if (!this.#isOpenAtClient(quote.remote, quote.remotePort, stream)) return;
    const end = sentEnd(stream) + (stream.fin >= 0 ? 1 : 0);
    const position = positionOf(stream, quote.seq);
    if (position < end && position > end - FAR_BYTES) return;
    this.#fail(`the SVM got an error about position ${position} of ${key}, it has sent ${end}`);
  }

  /** Has the client a connection that this segment can be of? Late duplicates of a SYN open others at the guest. */
  #isOpenAtClient(address: string, port: number, stream: StreamRecord): boolean {
    for (const { host, application } of this.#witness.clients) {
      if (host.state.ip4 !== address && host.state.ip6 !== address) continue;
      for (const { connection } of application.open) {
        const isSame = connection.localPort === port && connection.localAddress === address;
        if (isSame && connection.iss === stream.clientIsn && connection.state !== 'time-wait')
          return true;
      }
    }
    return false;
  }

  #fail(text: string): void {
    const { secondary } = this.#witness;
    // A full table forgets half-open connections first: the defined end of what a flood of SYNs can do.
    const { counters } = secondary.engine.status(secondary.nowUs);
    if ((counters['flowsEvicted'] ?? 0) === 0) this.#witness.broken('G5', text);
  }
}
