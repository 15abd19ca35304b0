/**
 * What the clients do in a run: which sessions, datagrams, scans and garbage, drawn from the run's options.
 *
 * @module
 */
import type { Prng } from '../base/prng.ts';
import { type Micros, NEVER, US_PER_MS } from '../base/time.ts';
import { datagramRequest, type Ending, type SessionPlan } from './host/client.ts';
import {
  FLAG_CLOCK,
  FLAG_CLOSE,
  FLAG_CONNECT_BACK,
  FLAG_READ_SLOWLY,
  FLAG_RESET,
  FLAG_SLOW,
  FLAG_TOKEN,
  FLAG_URGENT,
  type Request,
} from './host/content.ts';
import { SERVICE_PORT, SIMULTANEOUS_PORT } from './host/service.ts';
import { emitIp, PROTOCOL_TCP, type SimFrame } from './net/packet.ts';
import type { WorkloadOptions } from './options.ts';
import { ACK, blankSegment, emitSegment, FIN, PSH, RST, SYN, URG } from './tcp/segment.ts';

/** A port on which every client listens for connections of the guest. */
export const CLIENT_LISTEN_PORT = 6_000;

function drawSize(prng: Prng, largest: number): number {
  if (prng.chance(0.1)) return 0;
  if (prng.chance(0.6)) return prng.nextBetween(1, 400);
  return prng.nextBetween(1, largest);
}

function drawRequest(prng: Prng, options: WorkloadOptions): Request {
  let flags = 0;
  if (prng.chance(options.token)) flags |= FLAG_TOKEN;
  if (prng.chance(options.clock)) flags |= FLAG_CLOCK;
  if (prng.chance(options.slow)) flags |= FLAG_SLOW;
  if (prng.chance(options.urgent)) flags |= FLAG_URGENT;
  if (prng.chance(options.slowReaders / 2)) flags |= FLAG_READ_SLOWLY;
  let seed = prng.nextU32();
  if (prng.chance(options.connectBack)) {
    flags |= FLAG_CONNECT_BACK;
    const port = prng.chance(0.6) ? CLIENT_LISTEN_PORT : SIMULTANEOUS_PORT + prng.nextBelow(1_000);
    seed = ((seed & 0xffff_0000) | port) >>> 0;
  }
  return {
    flags,
    bodyBytes: drawSize(prng, options.largeBytesMax),
    answerBytes: drawSize(prng, options.largeBytesMax),
    seed,
  };
}

/** One session's plan. */
export function drawPlan(prng: Prng, options: WorkloadOptions): SessionPlan {
  const count = prng.nextBetween(1, options.requestsMax);
  const requests = Array.from({ length: count }, () => drawRequest(prng, options));
  let ending: Ending = prng.pick([
    'client-closes',
    'client-closes',
    'half-close-early',
    'stays-open',
  ]);
  const last = requests[count - 1]!;
  const isBack = (last.flags & FLAG_CONNECT_BACK) !== 0;
  if (!isBack && prng.chance(options.closes)) {
    ending = prng.chance(0.5) ? 'guest-closes' : 'both-close';
    requests[count - 1] = { ...last, flags: last.flags | FLAG_CLOSE };
  }
  if (!isBack && prng.chance(options.resets)) {
    ending = prng.pick(['client-resets', 'client-aborts', 'guest-closes']);
    if (ending === 'guest-closes') {
      requests[count - 1] = { ...last, flags: last.flags | FLAG_RESET };
    }
  }
  // The guest has closed its side, and still gets something.
  const isHalfClosed = ending === 'guest-closes' && prng.chance(0.4);
  const afterwards = { flags: 0, bodyBytes: drawSize(prng, 2_000), answerBytes: 0, seed: 1 };
  if (isHalfClosed) requests.push(afterwards);
  // With answers in any order, only the last one may close, so requests then go one by one.
  const hasEnd = requests.some((request) => (request.flags & (FLAG_CLOSE | FLAG_RESET)) !== 0);
  const isSlowReader = prng.chance(options.slowReaders);
  return {
    requests,
    ending,
    isPipelined: !hasEnd && prng.chance(0.5),
    pauseUs: prng.chance(0.3) ? prng.nextBetween(1, 400) * US_PER_MS : 0,
    readBytes: isSlowReader ? prng.nextBetween(100, 3_000) : 0,
    readEveryUs: isSlowReader ? prng.nextBetween(1, prng.pick([60, 600])) * US_PER_MS : 0,
    hasUrgent: prng.chance(options.urgent),
    closeAfterUs: prng.nextBelow(prng.pick([1_000, 10_000, 100_000])),
  };
}

/** An ordinary session that must succeed once faults have stopped. */
export function lastPlan(prng: Prng): SessionPlan {
  return {
    requests: [{ flags: 0, bodyBytes: 300, answerBytes: 5_000, seed: prng.nextU32() }],
    ending: 'client-closes',
    isPipelined: false,
    pauseUs: 0,
    readBytes: 0,
    readEveryUs: 0,
    hasUrgent: false,
    closeAfterUs: 0,
  };
}

/** A datagram request; long ones travel in fragments both ways. */
export function drawDatagram(prng: Prng, options: WorkloadOptions): Uint8Array {
  let flags = 0;
  if (prng.chance(options.token)) flags |= FLAG_TOKEN;
  if (prng.chance(options.clock)) flags |= FLAG_CLOCK;
  if (prng.chance(options.slow)) flags |= FLAG_SLOW;
  const large = (): number =>
    prng.chance(0.2) ? prng.nextBetween(1_400, 6_000) : prng.nextBetween(8, 500);
  return datagramRequest(flags, Math.max(16, large()), prng.nextU32(), large());
}

/** Addresses of one sender and of the guest. */
export interface Addresses {
  readonly srcMac: string;
  readonly dstMac: string;
  readonly src: string;
  readonly dst: string;
  readonly vlan: number;
}

/** A segment as a port scanner sends them: any flags, to any port; mostly for no connection. */
export function scanFrame(prng: Prng, addresses: Addresses, syn: boolean): SimFrame {
  const segment = blankSegment();
  segment.srcPort = prng.nextBetween(1_024, 65_535);
  segment.dstPort = prng.chance(0.5) ? SERVICE_PORT : prng.nextBetween(1, 65_535);
  segment.seq = prng.nextU32();
  segment.flags = syn
    ? SYN
    : prng.pick([0, SYN, FIN, ACK, RST, SYN | FIN, FIN | PSH | URG, ACK | RST, 255]);
  if ((segment.flags & ACK) !== 0) segment.ack = prng.nextU32();
  segment.window = prng.nextBelow(65_536);
  if ((segment.flags & SYN) !== 0) {
    segment.mss = prng.pick([0, 1, 536, 1_460]);
    segment.windowScale = prng.pick([-1, 2, 14]);
    segment.sackPermitted = prng.chance(0.5);
  }
  if (prng.chance(0.2)) segment.payload = prng.fill(new Uint8Array(prng.nextBelow(60)));
  return emitIp(
    { ...addresses, protocol: PROTOCOL_TCP, id: prng.nextBelow(65_536) },
    emitSegment(segment),
  );
}

/** A damaged frame: a true one with bytes turned over, cut or extended, or nothing but noise. */
export function garbageFrame(prng: Prng, addresses: Addresses): SimFrame {
  if (prng.chance(0.3)) {
    const frame = prng.fill(new Uint8Array(10 + prng.nextBelow(200)));
    frame.fill(0, 0, 10);
    return frame;
  }
  let frame = scanFrame(prng, addresses, prng.chance(0.5));
  for (let i = prng.nextBelow(6); i >= 0; i--) {
    frame[22 + prng.nextBelow(frame.length - 22)] = prng.nextBelow(256);
  }
  if (prng.chance(0.4)) frame = frame.slice(0, 10 + prng.nextBelow(frame.length - 10));
  return frame;
}

/** The time to the next of events that happen every `meanUs` on average. */
export function drawInterval(prng: Prng, meanUs: Micros): Micros {
  if (meanUs === NEVER) return NEVER;
  return Math.max(1, Math.ceil(-Math.log(1 - prng.nextFloat()) * meanUs));
}
