/**
 * One TCP connection between the client and both guests of an {@link EnginePair}. The two guests have their own initial
 * sequence numbers and clocks, as two kernels do; positions are bytes from the start of each stream.
 *
 * @module
 */
import { TCP_ACK, TCP_SYN } from '../../src/wire/tcp.ts';
import { parseTcpOptions, type TcpOptionFields, TcpOptions } from '../../src/wire/tcp-options.ts';
import type { EnginePair, GuestName, NetFrame } from './engine-pair.ts';
import {
  CLIENT_IP,
  CLIENT_IP6,
  CLIENT_MAC,
  GUEST_IP,
  GUEST_IP6,
  GUEST_MAC,
  type TcpFrameFields,
  type TestFrame,
  tcpFrame,
} from './frame-builder.ts';
import { infoOf } from './recording-output.ts';

export type Family = 4 | 6;
export const FAMILIES: readonly Family[] = [4, 6];

export const CLIENT_ISN = 5_000;
/** The PVM's numbers wrap soon. */
export const GUEST_ISN = { pvm: 0xffff_ff00, svm: 77_000 } as const;
/** Clocks of the guests and of the client at time zero. */
const CLOCK = { pvm: 900_000, svm: 20_000, client: 100 } as const;

export interface ConnectionFields {
  readonly family?: Family;
  readonly clientPort?: number;
  /** Options of all three SYNs. @default MSS 1460, window scale 2, SACK permitted, timestamps */
  readonly options?: TcpOptionFields;
}

const OPTIONS: TcpOptionFields = { mss: 1_460, windowScale: 2, sackPermitted: true };

/** Addresses and MACs of a frame in one direction. */
export function addressed(family: Family, fromGuest: boolean) {
  const guest = family === 4 ? GUEST_IP : GUEST_IP6;
  const client = family === 4 ? CLIENT_IP : CLIENT_IP6;
  return fromGuest
    ? { srcMac: GUEST_MAC, dstMac: CLIENT_MAC, src: guest, dst: client }
    : { srcMac: CLIENT_MAC, dstMac: GUEST_MAC, src: client, dst: guest };
}

export class PairConnection {
  readonly #pair: EnginePair;
  readonly #family: Family;
  readonly #clientPort: number;
  readonly #options: TcpOptionFields;
  /** Newest TSval that the client has seen: what PAWS measures by (RFC 7323 §5). */
  tsRecent = 0;

  constructor(pair: EnginePair, fields: ConnectionFields = {}) {
    this.#pair = pair;
    this.#family = fields.family ?? 4;
    this.#clientPort = fields.clientPort ?? 40_312;
    this.#options = fields.options ?? OPTIONS;
  }

  /** The client opens it; returns what it was told. */
  open(): NetFrame[] {
    const pair = this.#pair;
    pair.client(this.syn());
    const told = [
      ...pair.guest('pvm', this.synAck('pvm')),
      ...pair.guest('svm', this.synAck('svm')),
    ];
    this.see(told);
    pair.client(this.fromClient(0, ''));
    pair.takeGuest('pvm');
    pair.takeGuest('svm');
    return told;
  }

  syn(): TestFrame {
    const options = { ...this.#options, timestamps: { tsval: this.clock('client'), tsecr: 0 } };
    return tcpFrame({
      ...addressed(this.#family, false),
      srcPort: this.#clientPort,
      dstPort: 80,
      seq: CLIENT_ISN,
      flags: TCP_SYN,
      options,
    });
  }

  synAck(guest: GuestName, fields: TcpFrameFields = {}): TestFrame {
    const tsecr = CLOCK.client + 1_000;
    return this.fromGuest(guest, -1, '', {
      flags: TCP_SYN | TCP_ACK,
      options: { ...this.#options, timestamps: { tsval: this.clock(guest), tsecr } },
      ...fields,
    });
  }

  /** A segment of the client; `acked` bytes of the guest's stream are acknowledged. */
  fromClient(at: number, payload: string, acked = 0, fields: TcpFrameFields = {}): TestFrame {
    return tcpFrame({
      ...addressed(this.#family, false),
      srcPort: this.#clientPort,
      dstPort: 80,
      seq: (CLIENT_ISN + 1 + at) >>> 0,
      ack: this.seen(acked),
      payload,
      options: { timestamps: { tsval: this.clock('client'), tsecr: this.tsRecent } },
      ...fields,
    });
  }

  /** A segment of a guest in its own numbers; `acked` bytes of the client's stream are acknowledged. */
  fromGuest(guest: GuestName, at: number, payload: string, fields: GuestFields = {}): TestFrame {
    const { acked = 0, sack, ...rest } = fields;
    const timestamps = { tsval: this.clock(guest), tsecr: this.clock('client') };
    const blocks = sack?.map(([left, right]) => [clientSeq(left), clientSeq(right)] as const);
    return tcpFrame({
      ...addressed(this.#family, true),
      srcPort: 80,
      dstPort: this.#clientPort,
      seq: (GUEST_ISN[guest] + 1 + at) >>> 0,
      ack: clientSeq(acked),
      window: 10_000,
      payload,
      options: { timestamps, ...(blocks === undefined ? {} : { sack: blocks }) },
      ...rest,
    });
  }

  /** A guest sends; returns what the client sees. */
  send(guest: GuestName, at: number, payload: string, fields: GuestFields = {}): NetFrame[] {
    return this.see(this.#pair.guest(guest, this.fromGuest(guest, at, payload, fields)));
  }

  /** Both guests send the same, the PVM first. */
  both(at: number, payload: string, fields: GuestFields = {}): NetFrame[] {
    return [...this.send('pvm', at, payload, fields), ...this.send('svm', at, payload, fields)];
  }

  /** Position `at` of the guest's stream as the client counts. */
  seen(at: number): number {
    return (GUEST_ISN.pvm + 1 + at) >>> 0;
  }

  /** Milliseconds on a clock. */
  clock(whose: GuestName | 'client'): number {
    return CLOCK[whose] + Math.floor(this.#pair.nowUs / 1_000);
  }

  /** Notes the timestamps that the client has seen. */
  see(frames: readonly NetFrame[]): NetFrame[] {
    for (const frame of frames) {
      const stamps = timestampsOf(frame);
      if (stamps !== undefined) this.tsRecent = Math.max(this.tsRecent, stamps.tsval);
    }
    return [...frames];
  }
}

export interface GuestFields extends TcpFrameFields {
  readonly acked?: number;
  /** Blocks of the client's stream, as positions. */
  readonly sack?: readonly (readonly [number, number])[];
}

/** Position `at` of the client's stream. */
export function clientSeq(at: number): number {
  return (CLIENT_ISN + 1 + at) >>> 0;
}

/** TSval and TSecr of a segment; undefined without the option. */
export function timestampsOf(frame: TestFrame): { tsval: number; tsecr: number } | undefined {
  const options = optionsOf(frame);
  if (options?.hasTimestamps !== true) return undefined;
  return { tsval: options.tsval, tsecr: options.tsecr };
}

/** The TCP options of a frame; undefined when it is no TCP. */
export function optionsOf(frame: TestFrame): TcpOptions | undefined {
  const info = infoOf(frame);
  if (info.tcpHeaderBytes === 0) return undefined;
  const options = new TcpOptions();
  parseTcpOptions(info.view, info.l4Offset + 20, info.l4Offset + info.tcpHeaderBytes, options);
  return options;
}
