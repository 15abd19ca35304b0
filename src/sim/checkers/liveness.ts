/**
 * G6, liveness while faults go on: whatever is held is released or covered by a checkpoint request within the compare
 * timeout (and the minimum run time between checkpoints). That everything ends well once faults stop is judged by the runner.
 *
 * @module
 */
import type { Micros } from '../../base/time.ts';
import type { NodeState } from '../../env/messages.ts';
import { COMPARE_LAG_TIMEOUTS } from '../../limits.ts';
import { PROTOCOL_TCP, parseIp, type SimFrame } from '../net/packet.ts';
import { hasDroppedOutput, type ProxyNode } from '../node.ts';
import { ACK, FIN, parseSegment, RST, SYN, type TcpSegment } from '../tcp/segment.ts';
import type { Checker, Witness } from './checker.ts';
import { isUnprotected } from './output-commit.ts';
import { datagramFlow, isAfter, isDiscovery, streamKey } from './record.ts';

/** Beyond the timeout: the tick that notices it, and the flush after it. */
const SLACK_US: Micros = 30_000;
/** Before everything that waits. */
const NOTHING_US: Micros = -1;

interface Waiting {
  /** TCP: sequence number after the newest output. Datagrams: how many. */
  given: number;
  released: number;
  sinceUs: Micros;
  ackGiven: number;
  ackReleased: number;
  /** From when on it waits for the SVM's: behind output it waits for that. */
  ackSinceUs: Micros;
  /** Sequence number after the output before it. */
  ackBehind: number;
  isTcp: boolean;
  isKnown: boolean;
}

export class LivenessChecker implements Checker {
  readonly guarantee = 'G6';
  readonly #witness: Witness;
  readonly #flows = new Map<string, Waiting>();
  /** Since when nothing excuses waiting. */
  #freeSinceUs: Micros = 0;

  constructor(witness: Witness) {
    this.#witness = witness;
  }

  #flow(key: string, isTcp: boolean): Waiting {
    let flow = this.#flows.get(key);
    if (flow === undefined) {
      flow = {
        given: 0,
        released: 0,
        sinceUs: -1,
        ackGiven: 0,
        ackReleased: 0,
        ackSinceUs: -1,
        ackBehind: 0,
        isTcp,
        isKnown: false,
      };
      this.#flows.set(key, flow);
    }
    return flow;
  }

  onGuestInput(node: ProxyNode, frame: SimFrame): void {
    if (node === this.#witness.primary) this.#note(frame, 'given');
  }

  onNetOutput(node: ProxyNode, frame: SimFrame, _state: NodeState): void {
    if (node === this.#witness.primary) this.#note(frame, 'released');
  }

  #note(frame: SimFrame, what: 'given' | 'released'): void {
    const packet = parseIp(frame);
    if (packet === undefined || isDiscovery(packet)) return;
    if (packet.fragmentOffset > 0 || packet.moreFragments) {
      const { src, dst, protocol, id } = packet;
      this.#noteDatagram(`${src}>${dst} ${protocol} fragments ${id}`, what);
      return;
    }
    if (packet.protocol !== PROTOCOL_TCP) {
      this.#noteDatagram(datagramFlow(packet), what);
      return;
    }
    const segment = parseSegment(packet.payload);
    if (segment === undefined) return;
    const flow = this.#flow(streamKey(packet, segment), true);
    const isSyn = (segment.flags & SYN) !== 0;
    if (!flow.isKnown || (isSyn && what === 'given')) this.#restart(flow, segment);
    if ((segment.flags & RST) === 0) this.#noteSegment(flow, segment, what);
  }

  #restart(flow: Waiting, segment: TcpSegment): void {
    if (flow.isKnown && flow.given === (segment.seq + 1) >>> 0) return;
    flow.isKnown = true;
    flow.given = segment.seq;
    flow.released = segment.seq;
    flow.sinceUs = -1;
    flow.ackGiven = segment.ack;
    flow.ackReleased = segment.ack;
    flow.ackSinceUs = -1;
  }

  #noteSegment(flow: Waiting, segment: TcpSegment, what: 'given' | 'released'): void {
    const { nowUs } = this.#witness;
    const control = (segment.flags & (SYN | FIN)) !== 0 ? 1 : 0;
    const takes = segment.payload.length + control;
    const end = (segment.seq + takes) >>> 0;
    if (what === 'given') {
      // An ACK stands at a position that it does not fill: what is before it may have been lost on its way here.
      if (takes > 0 && isAfter(end, flow.given)) flow.given = end;
      if ((segment.flags & ACK) !== 0 && isAfter(segment.ack, flow.ackGiven))
        flow.ackGiven = segment.ack;
    } else {
      if (isAfter(end, flow.released)) {
        const wasBehind = isAfter(flow.ackBehind, flow.released);
        flow.released = end;
        flow.sinceUs = -1;
        if (wasBehind && flow.ackSinceUs >= 0) flow.ackSinceUs = nowUs;
      }
      if ((segment.flags & ACK) !== 0 && isAfter(segment.ack, flow.ackReleased)) {
        flow.ackReleased = segment.ack;
        flow.ackSinceUs = -1;
      }
    }
    if (isAfter(flow.given, flow.released)) flow.sinceUs = flow.sinceUs < 0 ? nowUs : flow.sinceUs;
    if (isAfter(flow.ackGiven, flow.ackReleased) && flow.ackSinceUs < 0) {
      flow.ackSinceUs = nowUs;
      flow.ackBehind = flow.given;
    }
  }

  #noteDatagram(key: string, what: 'given' | 'released'): void {
    const flow = this.#flow(key, false);
    flow[what]++;
    if (what === 'released') flow.sinceUs = -1;
    if (flow.given > flow.released && flow.sinceUs < 0) flow.sinceUs = this.#witness.nowUs;
  }

  onPulse(): void {
    const { primary, isRequestOpen, nowUs, config, disturbedUs } = this.#witness;
    const isExcused = primary.isHung || isRequestOpen || primary.engine.state === 'checkpointing';
    if (!primary.isAlive || isExcused) {
      this.#freeSinceUs = nowUs;
      return;
    }
    const { compareTimeoutUs, minRunUs } = config;
    const isFree = isUnprotected(primary.engine.state);
    // A checkpoint may have taken up what waited; then each bound counts anew from its end.
    const fromUs = Math.max(this.#freeSinceUs, disturbedUs);
    const latestOf = (timeouts: number): Micros => {
      const boundUs = isFree ? 0 : timeouts * compareTimeoutUs + minRunUs;
      const latestUs = nowUs - boundUs - SLACK_US;
      return fromUs > latestUs ? NOTHING_US : latestUs;
    };
    // A stream that goes on gets more time; see COMPARE_LAG_TIMEOUTS. Fragments wait for each other, and then for the SVM.
    const latestUs = { stream: latestOf(COMPARE_LAG_TIMEOUTS), datagram: latestOf(2) };
    const latestAckUs = latestOf(1);
    for (const [key, flow] of this.#flows) {
      if (flow.sinceUs >= 0 && flow.sinceUs < latestUs[flow.isTcp ? 'stream' : 'datagram']) {
        this.#fail(key, 'output', flow.sinceUs);
        return;
      }
      // Behind output that waits, for which the bound above stands, an ACK may wait as long.
      const isBehind = isAfter(flow.ackBehind, flow.released);
      if (!isBehind && flow.ackSinceUs >= 0 && flow.ackSinceUs < latestAckUs) {
        this.#fail(key, 'an acknowledgement', flow.ackSinceUs);
        return;
      }
    }
  }

  #fail(key: string, what: string, sinceUs: Micros): void {
    const { primary, nowUs } = this.#witness;
    // Output that a limit has refused, counted, is not held.
    if (hasDroppedOutput(primary)) return;
    const ms = Math.round((nowUs - sinceUs) / 1000);
    this.#witness.broken(
      'G6',
      `${what} of ${key} is held for ${ms} ms and no checkpoint is requested`,
    );
  }
}
