/**
 * What the secondary sends of its own accord when it takes over, and in which order:
 *
 * 1. announcements of the guest's addresses, so that switches bring the clients' frames here; repeated, as they may be lost;
 * 2. the SVM's output that the primary had not confirmed: nobody waits for a retransmission timer;
 * 3. for each TCP connection that is open for the client one pure ACK just before its window, which the client must answer
 *    with what it has received (RFC 9293 §3.10.7.4): an acknowledgement that was lost with the primary is not missed, and
 *    where the guest has reset the connection but the RST was lost, the answer makes the guest reset it again.
 *
 * @module
 */
import { type Micros, NEVER } from '../base/time.ts';
import type { FrameBuffer } from '../env/frame.ts';
import { PURE_ACK_BYTES_MAX, writePureAck } from '../rewrite/pure-ack.ts';
import { dissect, FRAME_OK, FrameInfo } from '../wire/frame.ts';
import { seqAdd } from '../wire/seq.ts';
import type { Counters } from './counters.ts';
import type { FramePool } from './frame-pool.ts';
import type { GuestAddresses } from './guest-addresses.ts';
import type { Neighbours } from './neighbours.ts';
import type { Retention } from './retention.ts';
import { type SecondaryFlow, SecondaryTcpFlow } from './secondary-flow.ts';
import type { SecondaryFlows } from './secondary-flows.ts';

/** When the guest's addresses are announced, after the failover. */
const ANNOUNCE_AT_US: readonly Micros[] = [0, 100_000, 300_000, 1_000_000];
/** A kept datagram older than this is of no use: its asker has asked again (DNS resolvers wait 1-5 s). */
const DATAGRAM_AGE_US_MAX: Micros = 2_000_000;
/** Connections probed at once, then again after PROBE_INTERVAL_US: a million of them must not block the node. */
const PROBES_PER_STEP = 1_024;
const PROBE_INTERVAL_US: Micros = 1_000;

type Send = (buffer: FrameBuffer, offset: number, length: number) => void;

/** Collaborators of a Takeover. */
export interface TakeoverInit {
  readonly pool: FramePool;
  readonly flows: SecondaryFlows;
  readonly retention: Retention;
  readonly guest: GuestAddresses;
  readonly neighbours: Neighbours;
  readonly counters: Counters;
  readonly dropped: Counters;
  readonly sendToNet: Send;
}

export class Takeover {
  readonly #init: TakeoverInit;
  readonly #info = new FrameInfo();
  #startedUs: Micros = 0;
  #announced = ANNOUNCE_AT_US.length;
  #probes: Iterator<SecondaryFlow> | undefined;
  #probeAtUs: Micros = NEVER;

  constructor(init: TakeoverInit) {
    this.#init = init;
  }

  /** Sends what is to be sent at once. */
  start(nowUs: Micros): void {
    this.#startedUs = nowUs;
    this.#announced = 0;
    this.#announce(nowUs);
    this.#sendRetained(nowUs);
    this.#probes = this.#init.flows.values();
    this.#probeAtUs = nowUs;
    this.#probe(nowUs);
  }

  onTick(nowUs: Micros): void {
    this.#announce(nowUs);
    this.#probe(nowUs);
  }

  /** When `onTick` has something to do next. */
  nextUs(): Micros {
    const at = ANNOUNCE_AT_US[this.#announced];
    const announceUs = at === undefined ? NEVER : this.#startedUs + at;
    return Math.min(announceUs, this.#probeAtUs);
  }

  #announce(nowUs: Micros): void {
    let isDue = false;
    for (;;) {
      const at = ANNOUNCE_AT_US[this.#announced];
      if (at === undefined || this.#startedUs + at > nowUs) break;
      this.#announced++;
      isDue = true;
    }
    if (!isDue) return;
    const { guest, neighbours, pool, sendToNet, counters } = this.#init;
    const count = guest.announce(pool, (key) => neighbours.has(key), sendToNet);
    counters.add('announcements', count);
  }

  #sendRetained(nowUs: Micros): void {
    const { retention, flows, counters, dropped, sendToNet } = this.#init;
    retention.drain((entry) => {
      const { frame } = entry;
      if (entry.kind === 'datagram' && nowUs - entry.atUs > DATAGRAM_AGE_US_MAX) {
        dropped.add('retained-too-old');
        return;
      }
      if (dissect(frame.buffer, frame.offset, frame.length, this.#info) !== FRAME_OK) return;
      flows.prepareRetained(entry, this.#info);
      sendToNet(frame.buffer, frame.offset, frame.length);
      counters.add('retainedSent');
    });
  }

  #probe(nowUs: Micros): void {
    const probes = this.#probes;
    if (probes === undefined || nowUs < this.#probeAtUs) return;
    this.#probeAtUs = nowUs + PROBE_INTERVAL_US;
    for (let i = 0; i < PROBES_PER_STEP; i++) {
      const next = probes.next();
      if (next.done === true) {
        this.#probes = undefined;
        this.#probeAtUs = NEVER;
        return;
      }
      if (next.value instanceof SecondaryTcpFlow) this.#probeFlow(next.value);
    }
  }

  #probeFlow(flow: SecondaryTcpFlow): void {
    const ack = flow.probeAck;
    if (!flow.isOpen || flow.isOverForClient || flow.isNew || ack === undefined) return;
    const next = flow.clientAck ?? flow.guestEnd;
    if (next === undefined) return;
    const { pool, flows, sendToNet, counters } = this.#init;
    const key = flows.key(flow);
    const frame = pool.acquire(PURE_ACK_BYTES_MAX);
    const { guestTsval } = flow;
    frame.length = writePureAck(frame.buffer, frame.offset, {
      dstMac: macOf(flow.clientMacHigh, flow.clientMacLow),
      srcMac: macOf(flow.guestMacHigh, flow.guestMacLow),
      vlan: key.vlan,
      ipVersion: key.ipVersion,
      srcAddress: key.guestAddress,
      dstAddress: key.clientAddress,
      srcPort: key.guestPort,
      dstPort: key.clientPort,
      seq: seqAdd(next, -1),
      ack,
      window: flow.guestWindow,
      timestamps:
        guestTsval === undefined
          ? undefined
          : { tsval: flow.tsvalForClient(guestTsval, true), tsecr: flow.clientTsval ?? 0 },
    });
    sendToNet(frame.buffer, frame.offset, frame.length);
    pool.release(frame);
    counters.add('probesSent');
  }
}

/** The six bytes of a MAC address kept as 16 and 32 bits. */
function macOf(high: number, low: number): Uint8Array {
  return Uint8Array.of(high >>> 8, high, low >>> 24, low >>> 16, low >>> 8, low);
}
