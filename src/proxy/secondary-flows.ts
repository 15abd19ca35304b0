/**
 * The secondary's flow table, and the translation of every frame that belongs to a flow.
 *
 * Entries come from the handshakes that are seen, from the SVM's segments on connections older than the last commit, and
 * from its datagrams. What a client alone sends makes no established entry, so that forged segments cannot fill
 * the table. At the limit a flow goes that costs nothing: half-open, closed, or without a difference between the
 * guests. When only translated ones are left, the primary is asked for a checkpoint, after which none is needed.
 *
 * @module
 */
import { type Micros, NEVER } from '../base/time.ts';
import type { FlowStatus } from '../env/engine.ts';
import type { ProgressEntry } from '../env/messages.ts';
import {
  FLOW_CLASS_NAMES,
  FLOW_CLOSED,
  FLOW_DATAGRAM,
  FLOW_ESTABLISHED,
  FLOW_HALF_OPEN,
  type FlowClass,
  FlowTable,
} from '../flow/table.ts';
import {
  adjustClientSegment,
  adjustGuestSegment,
  readFragmentTcpHeader,
} from '../rewrite/adjust.ts';
import { adjustQuoteForClient, adjustQuoteForGuest, dissectQuote } from '../rewrite/icmp-quote.ts';
import { hasTcpHeader } from '../rewrite/tcp-frame.ts';
import { FrameInfo } from '../wire/frame.ts';
import { IP_PROTOCOL_ICMP, IP_PROTOCOL_ICMPV6, IP_PROTOCOL_TCP } from '../wire/ipv4.ts';
import { seqAdd, seqBeforeOrEqual, seqDistance } from '../wire/seq.ts';
import { TCP_ACK, TCP_FIN, TCP_HEADER_BYTES_MIN, TCP_RST, TCP_SYN } from '../wire/tcp.ts';
import { parseTcpOptions, TcpOptions } from '../wire/tcp-options.ts';
import type { SecondaryConfig } from './config.ts';
import type { Counters } from './counters.ts';
import type { RetainedFrame, Retention } from './retention.ts';
import {
  SecondaryDatagramFlow,
  type SecondaryFlow,
  SecondaryTcpFlow,
  TIMESTAMP_MARGIN,
} from './secondary-flow.ts';

/**
 * A translated connection that both sides have closed is not forgotten before it was quiet for so long, even by a full table: the
 * last ACK may have been lost, and the client's FIN comes again (RFC 9293 §3.10.7.4, TIME-WAIT).
 */
const CLOSED_LINGER_US: Micros = 10_000_000;

/** Counters of the per-frame path. */
export interface SecondaryCounts {
  /** Segments whose numbers were changed, in either direction. */
  adjusted: number;
  /** Quoted headers inside ICMP errors that were changed. */
  quotesAdjusted: number;
}

export class SecondaryFlows {
  readonly counts: SecondaryCounts = { adjusted: 0, quotesAdjusted: 0 };
  /** Time of the batch. */
  nowUs: Micros;
  /** The SVM's output goes to clients: SYNs are translated too, nothing is retained, new flows stay as they are. */
  failedOver = false;

  /** Counts the commits, told and untold: which state the numbers of a flow are of. */
  #generation = 0;
  readonly #table: FlowTable<SecondaryFlow>;
  readonly #retention: Retention;
  readonly #counters: Counters;
  readonly #dropped: Counters;
  readonly #requestCheckpoint: (text: string) => void;
  readonly #options = new TcpOptions();
  readonly #quote = new FrameInfo();

  constructor(
    config: SecondaryConfig,
    retention: Retention,
    counters: Counters,
    dropped: Counters,
    requestCheckpoint: (text: string) => void,
    nowUs: Micros,
  ) {
    this.#table = new FlowTable<SecondaryFlow>({
      hashKey: config.hashKey,
      flowsMax: config.flowsMax,
      halfOpenMax: config.halfOpenFlowsMax,
    });
    this.#retention = retention;
    this.#counters = counters;
    this.#dropped = dropped;
    this.#requestCheckpoint = requestCheckpoint;
    this.nowUs = nowUs;
  }

  get size(): number {
    return this.#table.size;
  }

  // ------------------------------------------------------------------ SVM output

  /**
   * Translates a frame of the SVM in place into the PVM's numbers and keeps a copy, until it is confirmed. Before the
   * failover a SYN stays as it is (docs/ARCHITECTURE.md: the primary takes its number as the SVM's ISN). False (and counted) when
   * the primary must not hear of it.
   */
  onGuest(info: FrameInfo): boolean {
    if (info.ipVersion === 0) return true;
    if (info.protocol === IP_PROTOCOL_TCP) {
      if (hasTcpHeader(info) || (info.isFragment && readFragmentTcpHeader(info))) {
        return this.#onGuestSegment(info);
      }
      this.#retain('datagram', info, undefined, 0);
      return true;
    }
    if (isIcmp(info) && dissectQuote(info, this.#quote)) this.#onGuestQuote(info);
    this.#onGuestDatagram(info);
    return true;
  }

  #onGuestSegment(info: FrameInfo): boolean {
    const isSyn = (info.tcpFlags & TCP_SYN) !== 0;
    const isReset = (info.tcpFlags & TCP_RST) !== 0;
    let flow = this.#findTcp(info, true);
    // A RST is often the answer to a stray segment: it opens nothing.
    if (flow === undefined && !isReset) flow = this.#insertTcp(info, true, isSyn);
    if (flow === undefined) return !isSyn || this.#mayBeginUnknown();
    const options = this.#parse(info);
    if (isSyn) this.#onGuestSyn(flow, info, options);
    else {
      if (!isReset && flow.isOfReplacedState(info.seq)) this.#onUntoldCommit(flow);
      if (!isReset) this.#onGuestOpen(flow);
    }
    if (!isSyn || this.failedOver) this.#translateGuest(flow, info, options);
    flow.followGuest(info, options);
    this.#classify(flow);
    this.#retainSegment(flow, info, isSyn);
    return true;
  }

  /**
   * May a connection begin that the table has no room for? Before the failover it could not be translated, and would be lost
   * with its first ACK. So its SYN stops here: then the PVM's waits for the checkpoint that was asked for.
   */
  #mayBeginUnknown(): boolean {
    if (this.failedOver) return true;
    this.#dropped.add('syn-flow-limit');
    return false;
  }

  /** The SVM sends on a connection: its handshake is over, as far as one was seen. */
  #onGuestOpen(flow: SecondaryTcpFlow): void {
    if (flow.isOpen) return;
    if (flow.isLearned || (flow.primaryIsn === undefined && flow.secondaryIsn === undefined)) {
      flow.isOpen = true;
    } else if (!flow.isNew && !flow.isUnlearnable) {
      flow.isUnlearnable = true;
      this.#counters.add('isnUnknown');
    }
  }

  #onGuestSyn(flow: SecondaryTcpFlow, info: FrameInfo, options: TcpOptions): void {
    if (!this.failedOver) {
      if (flow.onGuestSyn(info, options)) this.#retention.forget(flow);
      return;
    }
    // A connection whose SYN the PVM had answered, and the SVM only now; or a SYN that is sent again, be it that nobody knows
    // whether the client has one of the PVM (its first ACK will show).
    const isAgain = flow.secondaryIsn === info.seq;
    const isLate = flow.secondaryIsn === undefined && !flow.isOpen && flow.primaryIsn !== undefined;
    if ((isAgain || isLate) && !flow.isNew) flow.onGuestSyn(info, options);
    else flow.beginUntranslated(info);
  }

  #translateGuest(flow: SecondaryTcpFlow, info: FrameInfo, options: TcpOptions): void {
    let seqDelta = flow.isLearned ? flow.seqDelta : 0;
    // RFC 9293 §3.10.7.1: the RST that answers a segment without ACK has sequence number 0, which is no position.
    const isBareReset = (info.tcpFlags & (TCP_RST | TCP_ACK)) === (TCP_RST | TCP_ACK);
    if (isBareReset && info.seq === 0) seqDelta = 0;
    let tsShift = 0;
    if (options.hasTimestamps) {
      const tsval = flow.tsvalForClient(options.tsval, this.failedOver);
      tsShift = seqDistance(options.tsval, tsval);
    }
    if (seqDelta === 0 && tsShift === 0) return;
    adjustGuestSegment(info, seqDelta, tsShift);
    this.counts.adjusted++;
  }

  #retainSegment(flow: SecondaryTcpFlow, info: FrameInfo, isSyn: boolean): void {
    if (this.failedOver) return;
    if (info.isFragment) {
      this.#retain('datagram', info, undefined, 0);
      return;
    }
    if (isSyn) {
      if (flow.retainedFirst === undefined) this.#retain('syn', info, flow, seqAdd(info.seq, 1));
      return;
    }
    const hasFin = (info.tcpFlags & TCP_FIN) !== 0;
    if (info.payloadBytes === 0 && !hasFin) return;
    const end = seqAdd(info.seq, info.payloadBytes + (hasFin ? 1 : 0));
    if (flow.retainedEnd !== undefined && seqBeforeOrEqual(end, flow.retainedEnd)) return;
    if (flow.clientAck !== undefined && seqBeforeOrEqual(end, flow.clientAck)) return;
    flow.retainedEnd = end;
    this.#retain('segment', info, flow, end);
  }

  #onGuestQuote(info: FrameInfo): void {
    const flow = this.#findTcp(this.#quote, false);
    if (flow === undefined || !flow.isLearned || flow.seqDelta === 0) return;
    adjustQuoteForClient(info, this.#quote, flow.seqDelta);
    this.counts.quotesAdjusted++;
  }

  /** The count goes with the primary's, which joins fragments first: a first fragment stands for its datagram. */
  #onGuestDatagram(info: FrameInfo): void {
    if (this.failedOver) return;
    if (info.isFragment && info.fragmentOffset !== 0) {
      this.#retain('datagram', info, undefined, 0);
      return;
    }
    let flow = this.#table.find(info, true);
    if (flow === undefined) {
      if (!this.#makeRoom(FLOW_DATAGRAM)) {
        this.#retain('datagram', info, undefined, 0);
        return;
      }
      flow = new SecondaryDatagramFlow();
      flow.generation = this.#generation;
      this.#table.insert(info, true, flow, this.nowUs, FLOW_DATAGRAM);
    } else this.#table.touch(flow, this.nowUs);
    if (flow.kind !== 'datagram') return;
    this.#bringUpToDate(flow);
    flow.sent++;
    if (info.isFragment) this.#retain('datagram', info, undefined, 0);
    else this.#retain('datagram', info, flow, flow.sent);
  }

  #retain(
    kind: 'segment' | 'syn' | 'datagram',
    info: FrameInfo,
    owner: SecondaryFlow | undefined,
    end: number,
  ): void {
    if (!this.failedOver) this.#retention.add(kind, info, owner, end, this.nowUs);
  }

  // ------------------------------------------------------------------ client frames

  /**
   * Translates a client's frame in place into the SVM's numbers. False (and counted) when it must not be delivered.
   */
  onClient(info: FrameInfo): boolean {
    if (info.ipVersion === 0) return true;
    if (info.protocol === IP_PROTOCOL_TCP) {
      if (hasTcpHeader(info) || (info.isFragment && readFragmentTcpHeader(info))) {
        return this.#onClientSegment(info);
      }
      return true;
    }
    if (isIcmp(info) && dissectQuote(info, this.#quote)) this.#onClientQuote(info);
    return true;
  }

  #onClientSegment(info: FrameInfo): boolean {
    const flags = info.tcpFlags;
    let flow = this.#findTcp(info, false);
    if ((flags & (TCP_SYN | TCP_ACK)) === TCP_SYN) {
      if (flow === undefined && !this.failedOver) flow = this.#insertTcp(info, false, true);
      if (flow === undefined) return this.#mayBeginUnknown();
      flow.onClientSyn(info);
      return true;
    }
    if (flow === undefined) return true;
    const options = this.#parse(info);
    if (!flow.isOpen && (flags & TCP_ACK) !== 0 && (flags & TCP_RST) === 0) {
      if (flow.primaryIsn === undefined && !flow.isNew) {
        flow.learnFromClient(info, options, this.failedOver);
      }
      if (flow.primaryIsn !== undefined && flow.secondaryIsn === undefined) {
        // Its numbers cannot be translated yet, and the SVM would answer a wrong ACK by a RST. The client repeats.
        this.#dropped.add('client-before-guest-syn');
        return false;
      }
      const isUnknown = flow.primaryIsn === undefined && flow.secondaryIsn !== undefined;
      if (isUnknown && !this.failedOver) {
        // Nor can they when neither the copy of the PVM's SYN nor the client's first ACK came through. A checkpoint brings the connection.
        this.#dropped.add('client-before-primary-syn');
        return false;
      }
      if ((flags & TCP_SYN) === 0 && (flow.isLearned || flow.isNew)) flow.isOpen = true;
    }
    flow.followClient(info, options);
    if ((flags & TCP_ACK) !== 0) {
      if (flow.retainedFirst !== undefined) this.#retention.confirmReceived(flow, info.ack);
      this.#translateClient(flow, info, options);
    }
    this.#classify(flow);
    return true;
  }

  #translateClient(flow: SecondaryTcpFlow, info: FrameInfo, options: TcpOptions): void {
    if (flow.isNew) return;
    const seqDelta = flow.isLearned ? flow.seqDelta : 0;
    let tsShift = 0;
    if (options.hasTimestamps) {
      tsShift = seqDistance(flow.tsecrForGuest(options.tsecr), options.tsecr);
    }
    if (seqDelta === 0 && tsShift === 0) return;
    adjustClientSegment(info, seqDelta, tsShift);
    this.counts.adjusted++;
  }

  #onClientQuote(info: FrameInfo): void {
    const flow = this.#findTcp(this.#quote, true);
    if (flow === undefined || !flow.isLearned || flow.seqDelta === 0) return;
    adjustQuoteForGuest(info, this.#quote, flow.seqDelta);
    this.counts.quotesAdjusted++;
  }

  // ------------------------------------------------------------------ the primary's messages

  /** A copy of the PVM's SYN or SYN-ACK. */
  onPrimarySyn(info: FrameInfo): void {
    if (!hasTcpHeader(info) || (info.tcpFlags & TCP_SYN) === 0) {
      this.#dropped.add('primary-syn-malformed');
      return;
    }
    const flow = this.#findTcp(info, true) ?? this.#insertTcp(info, true, true);
    if (flow === undefined) return;
    if (flow.onPrimarySyn(info, this.#parse(info))) this.#retention.forget(flow);
    if ((info.tcpFlags & TCP_ACK) !== 0 && flow.clientIsn === undefined) {
      flow.clientIsn = seqAdd(info.ack, -1);
    }
    this.#classify(flow);
  }

  /** What the primary has released. */
  onProgress(entry: ProgressEntry): void {
    const flow = this.#table.findKey(entry);
    // What is retained is of this epoch, so the flow is up to date.
    if (flow?.retainedFirst === undefined) return;
    if (flow.kind === 'tcp') this.#retention.confirmReleased(flow, entry.position);
    else this.#retention.confirmDatagrams(flow, entry.position);
  }

  /** A checkpoint was committed: from now on nothing differs in the flows that there are. Precondition: nothing is retained. */
  adoptCheckpoint(): void {
    this.#generation++;
  }

  /**
   * The SVM runs from the PVM's state, and nobody has said so: the VM layer has no begin, and its commit is still under way or
   * died with the primary. What the replaced state had sent is no longer its word.
   */
  #onUntoldCommit(flow: SecondaryTcpFlow): void {
    this.#counters.add('untoldCommits');
    this.#retention.clear();
    this.adoptCheckpoint();
    this.#bringUpToDate(flow);
  }

  /** Another sync begins, perhaps with another primary. Precondition: nothing is retained. */
  clear(): void {
    this.#table.clear();
  }

  // ------------------------------------------------------------------ failover

  /**
   * Makes a retained frame fit to be sent after the failover: translates a SYN, and brings timestamps beyond what the
   * client has seen. `info` describes the frame.
   */
  prepareRetained(entry: RetainedFrame, info: FrameInfo): void {
    const flow = entry.owner;
    if (!(flow instanceof SecondaryTcpFlow) || !hasTcpHeader(info)) return;
    const options = this.#parse(info);
    const seqDelta = entry.kind === 'syn' && flow.isLearned ? flow.seqDelta : 0;
    let tsShift = 0;
    if (options.hasTimestamps && !flow.isNew) {
      tsShift = TIMESTAMP_MARGIN + (entry.kind === 'syn' ? flow.tsDelta : 0);
      tsShift += flow.tsvalLack(seqAdd(options.tsval, tsShift));
    }
    adjustGuestSegment(info, seqDelta, tsShift);
  }

  /** All flows, for the probes. */
  *values(): IterableIterator<SecondaryFlow> {
    for (const flow of this.#table.values()) {
      this.#bringUpToDate(flow);
      yield flow;
    }
  }

  /** The key of a flow in the table. */
  key(flow: SecondaryFlow): ReturnType<FlowTable<SecondaryFlow>['key']> {
    return this.#table.key(flow);
  }

  // ------------------------------------------------------------------ time, looking

  expire(nowUs: Micros): void {
    this.#table.expire(
      nowUs,
      () => true,
      (flow) => {
        this.#retention.forget(flow);
        this.#counters.add('flowsAged');
      },
    );
  }

  nextUs(): Micros {
    return this.#table.size === 0 ? NEVER : this.#table.nextExpiryUs();
  }

  list(countMax: number): FlowStatus[] {
    const list: FlowStatus[] = [];
    for (const flow of this.values()) {
      if (list.length >= countMax) break;
      // Otherwise it would show numbers from before the last checkpoint.
      this.#bringUpToDate(flow);
      let heldFrames = 0;
      let heldBytes = 0;
      for (let entry = flow.retainedFirst; entry !== undefined; entry = entry.newerInFlow) {
        heldFrames++;
        heldBytes += entry.frame.slotBytes;
      }
      list.push({
        flow: this.#table.describeFlow(flow),
        tcpState: FLOW_CLASS_NAMES[this.#table.classOf(flow)] ?? '',
        heldFrames,
        heldBytes,
        detail: flow.kind === 'tcp' ? tcpDetail(flow) : { sent: flow.sent },
      });
    }
    return list;
  }

  // ------------------------------------------------------------------ table

  #parse(info: FrameInfo): TcpOptions {
    const start = info.l4Offset + TCP_HEADER_BYTES_MIN;
    parseTcpOptions(info.view, start, info.l4Offset + info.tcpHeaderBytes, this.#options);
    return this.#options;
  }

  #findTcp(info: FrameInfo, guestIsSource: boolean): SecondaryTcpFlow | undefined {
    const flow = this.#table.find(info, guestIsSource);
    if (flow?.kind !== 'tcp') return undefined;
    this.#bringUpToDate(flow);
    return flow;
  }

  /** A commit concerns every flow; each learns of it when it is touched. */
  #bringUpToDate(flow: SecondaryFlow): void {
    if (flow.generation !== this.#generation) flow.adoptCheckpoint(this.#generation);
  }

  #insertTcp(
    info: FrameInfo,
    guestIsSource: boolean,
    isSyn: boolean,
  ): SecondaryTcpFlow | undefined {
    const flowClass = isSyn ? FLOW_HALF_OPEN : FLOW_ESTABLISHED;
    if (!this.#makeRoom(flowClass)) return undefined;
    const flow = new SecondaryTcpFlow();
    flow.generation = this.#generation;
    flow.isOpen = !isSyn;
    this.#table.insert(info, guestIsSource, flow, this.nowUs, flowClass);
    return flow;
  }

  #makeRoom(flowClass: FlowClass): boolean {
    const makeRoom = (forClass: FlowClass): boolean =>
      this.#table.makeRoom(
        forClass,
        this.nowUs,
        (flow) => this.#canEvict(flow),
        (flow) => {
          this.#retention.forget(flow);
          this.#counters.add('flowsEvicted');
        },
      );
    // A handshake, too, may push out a connection that needs no translation: otherwise a table full of old ones would stop each
    // new one, also after the checkpoint.
    const hasRoom =
      makeRoom(flowClass) || (flowClass === FLOW_HALF_OPEN && makeRoom(FLOW_ESTABLISHED));
    if (!hasRoom) {
      this.#counters.add('flowsFull');
      this.#requestCheckpoint('flow table full of translated flows');
    }
    return hasRoom;
  }

  /** May the flow be forgotten although it is in use? */
  #canEvict(flow: SecondaryFlow): boolean {
    this.#bringUpToDate(flow);
    if (flow.kind === 'datagram' || !flow.isOpen) return true;
    if (!flow.isClosed) return !flow.isTranslated && flow.retainedFirst === undefined;
    // A RST needs no translation: what answers a stray segment takes its numbers from that.
    if (!flow.isTranslated || flow.hasGuestReset || flow.hasClientReset) return true;
    return this.nowUs - flow.closedUs >= CLOSED_LINGER_US;
  }

  #classify(flow: SecondaryTcpFlow): void {
    let flowClass: FlowClass = FLOW_HALF_OPEN;
    if (flow.isClosed) {
      flowClass = FLOW_CLOSED;
      flow.closedUs = this.nowUs;
    } else if (flow.isOpen) flowClass = FLOW_ESTABLISHED;
    this.#table.setClass(flow, flowClass, this.nowUs);
  }
}

function isIcmp(info: FrameInfo): boolean {
  return info.protocol === IP_PROTOCOL_ICMP || info.protocol === IP_PROTOCOL_ICMPV6;
}

function tcpDetail(flow: SecondaryTcpFlow): FlowStatus['detail'] {
  return {
    learned: flow.isLearned,
    seqDelta: flow.seqDelta,
    tsDelta: flow.tsDelta + flow.tsJump,
    new: flow.isNew,
  };
}
