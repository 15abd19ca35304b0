/**
 * G4, no invention and no reordering: a client sees only frames that the PVM sent, each at most once and per flow
 * in their order, with nothing changed but what input commit lowers. Beside them only pure acknowledgements.
 *
 * What is new in a stream keeps its order; a retransmission of bytes that were released before may pass others.
 *
 * @module
 */
import type { Micros } from '../../base/time.ts';
import type { NodeState } from '../../env/messages.ts';
import { REASSEMBLY_TIMEOUT_US } from '../../limits.ts';
import {
  checksumOffsetOf,
  type IpPacket,
  PROTOCOL_TCP,
  parseIp,
  type SimFrame,
  transportChecksumOk,
} from '../net/packet.ts';
import { hasDroppedOutput, type ProxyNode } from '../node.ts';
import { ACK, FIN, parseSegment, RST, SYN, type TcpSegment } from '../tcp/segment.ts';
import type { Checker, Witness } from './checker.ts';
import { datagramFlow, isDiscovery, streamKey } from './record.ts';

interface Entry {
  /** Everything that may not change, as text. */
  readonly content: string;
  readonly isPureAck: boolean;
  readonly isSound: boolean;
  /** TCP: sequence number after the segment. */
  readonly endSeq: number;
  readonly isFragment: boolean;
  readonly givenUs: Micros;
  isReleased: boolean;
}

interface Ledger {
  entries: Entry[];
  /** TCP: the highest `endSeq` released. */
  releasedSeq: number;
  hasReleased: boolean;
}

const ENTRIES_MAX = 4_000;

function contentOf(packet: IpPacket, segment: TcpSegment | undefined, frame: SimFrame): string {
  const bytes = (data: Uint8Array): string => {
    let low = 0x811c9dc5;
    let high = 0x01000193;
    for (const byte of data) {
      low = Math.imul(low ^ byte, 0x01000193);
      high = Math.imul(high ^ (byte + 0x9e37), 0x85ebca6b);
    }
    return `${data.length}.${low >>> 0}.${high >>> 0}`;
  };
  const outer = `${packet.head.srcMac} ${packet.head.dstMac} ${packet.head.vlan} ${packet.id} ${packet.hopLimit} ${packet.fragmentOffset}`;
  const offload = `${frame[0]} ${frame[1]} ${frame[4]}.${frame[5]}`;
  if (segment === undefined) return `${outer} ${offload} ${bytes(packet.payload)}`;
  // Options of a SYN are lowered to what both guests support; ACK, window and SACK blocks as G2 needs it.
  const stamps = segment.timestamps;
  const value = (segment.flags & SYN) !== 0 || stamps === undefined ? '' : stamps.value;
  return `${outer} ${offload} ${segment.seq} ${segment.flags} ${segment.urgentPointer} ${value} ${bytes(segment.payload)}`;
}

export class InventionChecker implements Checker {
  readonly guarantee = 'G4';
  readonly #witness: Witness;
  readonly #ledgers = new Map<string, Ledger>();

  constructor(witness: Witness) {
    this.#witness = witness;
  }

  #ledger(flow: string): Ledger {
    let ledger = this.#ledgers.get(flow);
    if (ledger === undefined) {
      ledger = { entries: [], releasedSeq: 0, hasReleased: false };
      this.#ledgers.set(flow, ledger);
    }
    return ledger;
  }

  #read(frame: SimFrame): { flow: string; entry: Entry } | undefined {
    const packet = parseIp(frame);
    if (packet === undefined || isDiscovery(packet)) return undefined;
    const isTcp = packet.protocol === PROTOCOL_TCP;
    const segment = isTcp ? parseSegment(packet.payload) : undefined;
    if (isTcp && segment === undefined) return undefined;
    const isWhole = packet.fragmentOffset === 0 && !packet.moreFragments;
    let flow = `${packet.src}>${packet.dst} ${packet.protocol} fragments ${packet.id}`;
    if (segment !== undefined) flow = streamKey(packet, segment);
    else if (isWhole) flow = datagramFlow(packet);
    const control = segment === undefined ? 0 : segment.flags & (SYN | FIN | RST);
    const length = (segment?.payload.length ?? 0) + (control & (SYN | FIN) ? 1 : 0);
    return {
      flow,
      entry: {
        content: contentOf(packet, segment, frame),
        isPureAck: segment !== undefined && control === 0 && segment.payload.length === 0,
        isSound: packet.headerChecksumOk && transportChecksumOk(packet),
        endSeq: segment === undefined ? 0 : (segment.seq + length) >>> 0,
        isFragment: !isWhole,
        givenUs: this.#witness.nowUs,
        isReleased: false,
      },
    };
  }

  onGuestInput(node: ProxyNode, frame: SimFrame): void {
    if (node !== this.#witness.primary) return;
    const found = this.#read(frame);
    if (found === undefined) return;
    const ledger = this.#ledger(found.flow);
    ledger.entries.push(found.entry);
    if (ledger.entries.length > ENTRIES_MAX) {
      ledger.entries = ledger.entries.filter((entry) => !entry.isReleased).slice(-ENTRIES_MAX);
    }
  }

  onNetOutput(node: ProxyNode, frame: SimFrame, _state: NodeState): void {
    if (node !== this.#witness.primary) return;
    const found = this.#read(frame);
    if (found === undefined) return;
    const { flow, entry } = found;
    const ledger = this.#ledger(flow);
    const index = ledger.entries.findIndex(
      (item) => !item.isReleased && item.content === entry.content,
    );
    const given = ledger.entries[index];
    if (given === undefined) {
      this.#checkBuilt(flow, frame, entry);
      return;
    }
    given.isReleased = true;
    if (given.isSound && !entry.isSound) {
      this.#witness.broken('G4', `a frame of ${flow} left with a wrong checksum`);
    }
    this.#checkOrder(flow, ledger, index, frame);
  }

  /** A frame that the PVM did not send in this form: a pure ACK built from the PVM's last one. */
  #checkBuilt(flow: string, frame: SimFrame, entry: Entry): void {
    const packet = parseIp(frame);
    const segment = packet?.protocol === PROTOCOL_TCP ? parseSegment(packet.payload) : undefined;
    if (segment === undefined || !entry.isPureAck || segment.flags !== ACK) {
      const offset = packet === undefined ? -1 : checksumOffsetOf(packet.protocol);
      const what = segment === undefined ? `checksum at ${offset}` : `flags ${segment.flags}`;
      const text = `a frame of ${flow} was released that the PVM did not send (${what}): ${entry.content}`;
      this.#witness.broken('G4', text);
    } else if (!entry.isSound) {
      this.#witness.broken('G4', `a built acknowledgement of ${flow} has a wrong checksum`);
    }
  }

  #checkOrder(flow: string, ledger: Ledger, index: number, frame: SimFrame): void {
    const entry = ledger.entries[index]!;
    const packet = parseIp(frame);
    // A fragment that came twice has no place of its own among the others.
    if (packet === undefined || packet.fragmentOffset > 0 || packet.moreFragments) return;
    if (packet.protocol !== PROTOCOL_TCP) {
      // Of several equal datagrams the first is meant, so what is skipped was overtaken.
      const skipped = ledger.entries.slice(0, index).some((item) => !item.isReleased);
      if (skipped && entry.isSound) this.#late(flow, ledger, index);
      return;
    }
    if (entry.isPureAck) return;
    const isNew = !ledger.hasReleased || ((entry.endSeq - ledger.releasedSeq) | 0) > 0;
    if (!isNew) return;
    ledger.hasReleased = true;
    ledger.releasedSeq = entry.endSeq;
  }

  /** Datagrams overtaken: allowed only when the earlier one never gets out, which `onEnd` looks at. */
  #late(flow: string, ledger: Ledger, index: number): void {
    const waiting = ledger.entries.slice(0, index).filter((item) => !item.isReleased);
    for (const item of waiting) this.#overtaken.push({ flow, item });
  }

  readonly #overtaken: { flow: string; item: Entry }[] = [];

  onPulse(): void {
    for (const { flow, item } of this.#overtaken) {
      if (!item.isReleased) continue;
      // Where a limit has dropped frames (counted), an equal one later stands for another.
      if (hasDroppedOutput(this.#witness.primary)) return;
      this.#witness.broken('G4', `a datagram of ${flow} was released after a later one`);
      return;
    }
  }

  #isLost(entry: Entry): boolean {
    if (entry.isReleased || entry.isPureAck) return false;
    // A fragment waits for the others of its datagram.
    return !entry.isFragment || this.#witness.nowUs - entry.givenUs > 2 * REASSEMBLY_TIMEOUT_US;
  }

  onEnd(): void {
    const { primary } = this.#witness;
    if (!primary.isAlive || hasDroppedOutput(primary)) return;
    for (const [flow, ledger] of this.#ledgers) {
      const lost = ledger.entries.find((entry) => this.#isLost(entry));
      if (lost === undefined) continue;
      this.#witness.broken(
        'G7',
        `a frame of ${flow} was swallowed without being counted: ${lost.content}`,
      );
      return;
    }
  }
}
