/**
 * What QEMU's colo-compare and `colo-proxy compare` are both given: for each case the frames of the two guests, in their order.
 * `why` says who is right, and by which rule.
 *
 * @module
 */
import { TCP_ACK, TCP_FIN, TCP_PSH, TCP_RST, TCP_SYN } from '../../../src/wire/tcp.ts';
import {
  arpFrame,
  fragmentFrame,
  icmpEcho,
  rawIpFrame,
  type TcpFrameFields,
  type TestFrame,
  tcpFrame,
  udpFrame,
} from '../frame-builder.ts';
import type { ComparerOptions } from './comparer.ts';

export interface Step {
  readonly from: 'primary' | 'secondary' | 'nobody';
  readonly frames: readonly TestFrame[];
  /** Before the next step. */
  readonly pauseMs: number;
  /** Not part of what is reported: frames that only load the comparer. */
  readonly isBackground: boolean;
}

/** Frames that open the connection before the steps, and have to be released. */
export interface Opening {
  readonly primary: TestFrame;
  readonly secondary: TestFrame;
}

export interface Case {
  readonly name: string;
  readonly why: string;
  readonly options?: Partial<ComparerOptions>;
  /** How long to wait for what happens. @default beyond the compare timeout */
  readonly watchMs?: number;
  /** @param client addresses that no other case uses */
  readonly make: (client: Client) => {
    readonly opening?: Opening;
    readonly steps: readonly Step[];
  };
}

export interface Client {
  readonly ipv4: string;
  readonly ipv6: string;
}

const PVM_ISN = 1_000_000;
const SVM_ISN = 77_000_000;
const CLIENT_ISN = 5_000;
/** Of the SYN-ACKs, which is never scaled. */
const FIRST_WINDOW = 1_000;
const LATE_MS = 50;

function step(from: Step['from'], frames: readonly TestFrame[], pauseMs = 10): Step {
  return { from, frames, pauseMs, isBackground: false };
}

const primary = (...frames: readonly TestFrame[]): Step => step('primary', frames);
const secondary = (...frames: readonly TestFrame[]): Step => step('secondary', frames);
const later = (ms: number): Step => step('nobody', [], ms);

type Fields = TcpFrameFields & { readonly acked?: number };

interface FlowOptions {
  /** Of the PVM. */
  readonly isn?: number;
  readonly clientIsn?: number;
  /** Window scales of PVM and SVM. */
  readonly scales?: readonly [number, number];
}

/** A connection from the client `dst` to port 80 of the guest. */
class Flow {
  readonly opening: Opening;
  readonly #base: TcpFrameFields;
  readonly #isn: number;
  readonly #clientIsn: number;

  constructor(dst: string, base: TcpFrameFields = {}, options: FlowOptions = {}) {
    const { isn = PVM_ISN, clientIsn = CLIENT_ISN, scales = [2, 2] } = options;
    this.#base = { dst, ...base };
    this.#isn = isn;
    this.#clientIsn = clientIsn;
    const synAck = (seq: number, windowScale: number): TestFrame =>
      tcpFrame({
        ...this.#base,
        seq,
        ack: clientIsn + 1,
        flags: TCP_SYN | TCP_ACK,
        window: FIRST_WINDOW,
        options: { mss: 1_460, windowScale, sackPermitted: true },
      });
    this.opening = { primary: synAck(isn, scales[0]!), secondary: synAck(SVM_ISN, scales[1]!) };
  }

  /** `at` bytes after the SYN, in the PVM's numbers, as filter-rewriter makes them. `acked`: bytes of the client. */
  segment(at: number, payload: string, { acked = 0, ...fields }: Fields = {}): TestFrame {
    return tcpFrame({
      ...this.#base,
      seq: (this.#isn + 1 + at) >>> 0,
      ack: (this.#clientIsn + 1 + acked) >>> 0,
      flags: payload === '' ? TCP_ACK : TCP_ACK | TCP_PSH,
      payload,
      ...fields,
    });
  }
}

const A = 'a'.repeat(1_000);
const B = 'b'.repeat(1_000);

/** A case of one connection. */
function tcp(
  name: string,
  why: string,
  steps: (flow: Flow) => readonly Step[],
  flowOf: (client: Client) => Flow = ({ ipv4 }) => new Flow(ipv4),
): Case {
  return {
    name,
    why,
    make: (client) => {
      const flow = flowOf(client);
      return { opening: flow.opening, steps: steps(flow) };
    },
  };
}

/** A case without a connection. */
function other(name: string, why: string, steps: (client: Client) => readonly Step[]): Case {
  return { name, why, make: (client) => ({ steps: steps(client) }) };
}

const STREAM: readonly Case[] = [
  tcp('Equal segments', 'Both.', (flow) => [
    primary(flow.segment(0, A), flow.segment(1_000, B)),
    secondary(flow.segment(0, A), flow.segment(1_000, B)),
  ]),
  tcp(
    'The same bytes, cut at other places',
    'colo-proxy: TCP is a byte stream. QEMU lets the bytes out, but keeps the used-up segment of the SVM until it is too old.',
    (flow) => [
      primary(flow.segment(0, A), flow.segment(1_000, B)),
      secondary(flow.segment(0, A.slice(0, 700)), flow.segment(700, A.slice(700) + B)),
    ],
  ),
  tcp('Other bytes', 'Both: nothing of it may be seen before a checkpoint.', (flow) => [
    primary(flow.segment(0, A)),
    secondary(flow.segment(0, B)),
  ]),
  tcp(
    'The SVM sends nothing',
    'Both. The defaults of the timeout differ: 3000 ms, and 200 ms here.',
    (flow) => [primary(flow.segment(0, A))],
  ),
  tcp(`The SVM sends the same ${LATE_MS} ms later`, 'Both.', (flow) => [
    primary(flow.segment(0, A)),
    later(LATE_MS),
    secondary(flow.segment(0, A)),
  ]),
  tcp(
    'Sequence numbers wrap at 2^32 inside of the bytes',
    'Both.',
    (flow) => [
      primary(flow.segment(0, A), flow.segment(1_000, B)),
      secondary(flow.segment(0, A), flow.segment(1_000, B)),
    ],
    ({ ipv4 }) => new Flow(ipv4, {}, { isn: 0xffff_fe00 }),
  ),
  tcp('The PVM sends a segment again', 'Both: RFC 9293 §3.8.1.', (flow) => [
    primary(flow.segment(0, A)),
    secondary(flow.segment(0, A)),
    primary(flow.segment(0, A)),
    secondary(flow.segment(1_000, '')),
  ]),
  tcp(
    'The PVM sends a segment again, the SVM is silent',
    'colo-proxy: these bytes were agreed on; the retransmission repairs a loss on the way to the client.',
    (flow) => [
      primary(flow.segment(0, A)),
      secondary(flow.segment(0, A)),
      primary(flow.segment(0, A)),
    ],
  ),
  tcp(
    'A retransmission that carries new bytes too',
    'colo-proxy: RFC 9293 §3.8.1 lets a sender put what it sends again into other segments.',
    (flow) => [
      primary(flow.segment(0, A)),
      secondary(flow.segment(0, A)),
      primary(flow.segment(500, A.slice(500) + B)),
      secondary(flow.segment(1_000, B)),
    ],
  ),
  tcp(
    'Segments of the SVM arrive out of order',
    'colo-proxy: the bytes are equal, so no checkpoint is needed.',
    (flow) => [
      primary(flow.segment(0, A), flow.segment(1_000, B)),
      secondary(flow.segment(1_000, B)),
      later(LATE_MS),
      secondary(flow.segment(0, A)),
    ],
  ),
  tcp('Segments of the PVM arrive out of order', 'Both: the bytes are equal.', (flow) => [
    primary(flow.segment(1_000, B), flow.segment(0, A)),
    secondary(flow.segment(0, A), flow.segment(1_000, B)),
  ]),
  tcp(
    'TTL, identification and timestamps differ',
    'Both: each guest has a clock and counters of its own.',
    (flow) => [
      primary(
        flow.segment(0, A, { ttl: 64, id: 7, options: { timestamps: { tsval: 100, tsecr: 5 } } }),
      ),
      secondary(
        flow.segment(0, A, { ttl: 63, id: 9, options: { timestamps: { tsval: 923, tsecr: 5 } } }),
      ),
    ],
  ),
  {
    name: '24 segments wait for a silent SVM, max_queue_size 16',
    why: 'colo-proxy: the guest has to send again what is lost here, after its retransmission timeout. (Beyond twice the limit frames are dropped here too, and counted.)',
    options: { maxQueueSize: 16 },
    make: ({ ipv4 }) => {
      const flow = new Flow(ipv4);
      const all = Array.from({ length: 24 }, (_, i) => flow.segment(1_000 * i, A));
      return { opening: flow.opening, steps: [primary(...all)] };
    },
  },
];

const CONTROL: readonly Case[] = [
  tcp(
    "An ACK beyond the SVM's",
    'colo-proxy: what is acknowledged the client never sends again (RFC 9293 §3.4); after a failover the SVM would lack it.',
    (flow) => [
      primary(flow.segment(0, '', { acked: 500 })),
      secondary(flow.segment(0, '', { acked: 100 })),
    ],
  ),
  tcp(
    "Equal bytes with an ACK beyond the SVM's",
    'colo-proxy: as above; the bytes need not wait for it.',
    (flow) => [
      primary(flow.segment(0, A, { acked: 500 })),
      secondary(flow.segment(0, A, { acked: 100 })),
    ],
  ),
  tcp(
    "Bytes cut at other places with an ACK beyond the SVM's",
    'colo-proxy: as above. Here QEMU looks at the ACK, and stops the bytes too.',
    (flow) => [
      primary(flow.segment(0, A, { acked: 500 })),
      secondary(flow.segment(0, A + B, { acked: 100 })),
    ],
  ),
  tcp(
    "The same, and the client's numbers wrap at 2^32 in between",
    'colo-proxy: all arithmetic is modulo 2^32 (RFC 9293 §3.4). QEMU takes the smaller of two unsigned numbers.',
    (flow) => [
      primary(flow.segment(0, A, { acked: 500 })),
      secondary(flow.segment(0, A + B, { acked: 100 })),
    ],
    ({ ipv4 }) => new Flow(ipv4, {}, { clientIsn: 0xffff_ff00 }),
  ),
  tcp('An ACK of the PVM, and the SVM sends nothing', 'Both.', (flow) => [
    primary(flow.segment(0, '', { acked: 500 })),
  ]),
  tcp(
    "A window beyond the SVM's",
    'colo-proxy: RFC 9293 §3.8.6, the client may fill the window it is offered, and the SVM has not offered it.',
    (flow) => [
      primary(flow.segment(0, '', { window: 60_000 })),
      secondary(flow.segment(0, '', { window: 50_000 })),
    ],
  ),
  tcp(
    "The SVM's window is closed",
    'colo-proxy: the client must not fill a window that the SVM has closed.',
    (flow) => [
      primary(flow.segment(0, '', { acked: FIRST_WINDOW, window: 60_000 })),
      secondary(flow.segment(0, '', { acked: FIRST_WINDOW, window: 0 })),
    ],
  ),
  tcp(
    'A SACK block that the SVM does not have',
    'colo-proxy: the client may drop what was SACKed only after it is acknowledged (RFC 2018 §8), but does not send it again before a timeout.',
    (flow) => [
      primary(
        flow.segment(0, '', { options: { sack: [[CLIENT_ISN + 1_001, CLIENT_ISN + 2_001]] } }),
      ),
      secondary(flow.segment(0, '')),
    ],
  ),
  tcp(
    'RST of the PVM alone',
    'colo-proxy: the connection lives in the SVM (RFC 9293 §3.5.2).',
    (flow) => [
      primary(flow.segment(0, '', { flags: TCP_RST | TCP_ACK })),
      secondary(flow.segment(0, '')),
    ],
  ),
  tcp('RST of the SVM alone, data of the PVM', 'Both.', (flow) => [
    secondary(flow.segment(0, '', { flags: TCP_RST | TCP_ACK })),
    primary(flow.segment(0, A)),
  ]),
  tcp(
    'FIN of the PVM alone',
    'colo-proxy: a FIN takes a sequence number and ends the stream (RFC 9293 §3.4).',
    (flow) => [
      primary(flow.segment(0, '', { flags: TCP_FIN | TCP_ACK })),
      secondary(flow.segment(0, '')),
    ],
  ),
  tcp(
    'FIN of the PVM where the SVM sends more',
    'colo-proxy: the streams end at different places.',
    (flow) => [
      primary(flow.segment(0, A, { flags: TCP_FIN | TCP_ACK })),
      secondary(flow.segment(0, A), flow.segment(1_000, B)),
    ],
  ),
  {
    name: 'SYN-ACKs with other window scales',
    why: 'colo-proxy: the scale binds the whole connection (RFC 7323 §2.2); after a failover every window would be wrong.',
    make: ({ ipv4 }) => {
      const { opening } = new Flow(ipv4, {}, { scales: [7, 2] });
      return { steps: [primary(opening.primary), secondary(opening.secondary)] };
    },
  },
  {
    name: 'SYNs of a connection that the guests open themselves',
    why: 'Both: initial sequence numbers are chosen at random.',
    make: ({ ipv4: dst }) => {
      const syn = (seq: number): TestFrame =>
        tcpFrame({ dst, seq, flags: TCP_SYN, options: { mss: 1_460, windowScale: 2 } });
      return { steps: [primary(syn(PVM_ISN)), secondary(syn(SVM_ISN))] };
    },
  },
  {
    name: 'SYN-ACK of the PVM alone',
    why: 'Both: nothing shows yet that the SVM has the connection.',
    make: ({ ipv4 }) => ({ steps: [primary(new Flow(ipv4).opening.primary)] }),
  },
];

const DATAGRAMS: readonly Case[] = [
  other('UDP, equal', 'Both.', ({ ipv4: dst }) => [
    primary(udpFrame({ dst, payload: 'one' })),
    secondary(udpFrame({ dst, payload: 'one' })),
  ]),
  other('UDP, other bytes', 'Both.', ({ ipv4: dst }) => [
    primary(udpFrame({ dst, payload: 'one' })),
    secondary(udpFrame({ dst, payload: 'two' })),
  ]),
  other(`UDP, the SVM's comes ${LATE_MS} ms later`, 'Both.', ({ ipv4: dst }) => [
    primary(udpFrame({ dst, payload: 'one' })),
    later(LATE_MS),
    secondary(udpFrame({ dst, payload: 'one' })),
  ]),
  other(
    `UDP, two datagrams, the SVM's second comes ${LATE_MS} ms later`,
    'colo-proxy: late is not different.',
    twoDatagrams('one', 'two'),
  ),
  other(
    `UDP, two datagrams, the SVM's first comes ${LATE_MS} ms after its second`,
    'Both: UDP has no order.',
    twoDatagrams('two', 'one'),
  ),
  other('ICMP echo reply, equal', 'Both.', ({ ipv4: dst }) => [
    primary(icmpEcho({ dst, isReply: true, payload: 'ping' })),
    secondary(icmpEcho({ dst, isReply: true, payload: 'ping' })),
  ]),
  other('ICMP echo reply, other bytes', 'Both.', ({ ipv4: dst }) => [
    primary(icmpEcho({ dst, isReply: true, payload: 'ping' })),
    secondary(icmpEcho({ dst, isReply: true, payload: 'pong' })),
  ]),
  other('Another protocol (GRE), equal', 'Both.', ({ ipv4: dst }) => [
    primary(rawIpFrame(47, { dst, payload: 'one two three' })),
    secondary(rawIpFrame(47, { dst, payload: 'one two three' })),
  ]),
  other('Another protocol (GRE), other bytes', 'Both.', ({ ipv4: dst }) => [
    primary(rawIpFrame(47, { dst, payload: 'one two three' })),
    secondary(rawIpFrame(47, { dst, payload: 'one two four!' })),
  ]),
  other('ARP request of the PVM alone', 'Both: it keeps the service alive.', ({ ipv4 }) => [
    primary(arpFrame({ targetIp: ipv4 })),
  ]),
  other(
    'Fragments, equal',
    'Both.',
    fragments((dst) => [
      fragmentFrame(udpFrame({ dst, payload: A + B }), 1_480),
      fragmentFrame(udpFrame({ dst, payload: A + B }), 1_480),
    ]),
  ),
  other(
    'Fragments, the same datagram cut at another place',
    'colo-proxy: RFC 791 §3.2, the datagram is what is compared.',
    fragments((dst) => [
      fragmentFrame(udpFrame({ dst, payload: A + B }), 1_480),
      fragmentFrame(udpFrame({ dst, payload: A + B }), 1_200),
    ]),
  ),
  other(
    'Fragments, the second differs',
    'Both.',
    fragments((dst) => [
      fragmentFrame(udpFrame({ dst, payload: A + B }), 1_480),
      fragmentFrame(udpFrame({ dst, payload: A + A }), 1_480),
    ]),
  ),
];

function twoDatagrams(early: string, late: string): (client: Client) => readonly Step[] {
  return ({ ipv4: dst }) => [
    primary(udpFrame({ dst, payload: 'one' }), udpFrame({ dst, payload: 'two' })),
    secondary(udpFrame({ dst, payload: early })),
    later(LATE_MS),
    secondary(udpFrame({ dst, payload: late })),
  ];
}

function fragments(
  make: (dst: string) => readonly (readonly TestFrame[])[],
): (client: Client) => readonly Step[] {
  return ({ ipv4 }) => {
    const [ofPrimary, ofSecondary] = make(ipv4);
    return [primary(...ofPrimary!), secondary(...ofSecondary!)];
  };
}

const UNCOMPARED = 'colo-proxy: the client sees bytes that the SVM never sent.';

const FAMILIES: readonly Case[] = [
  tcp(
    'IPv6, equal segments',
    'Both.',
    (flow) => [primary(flow.segment(0, A)), secondary(flow.segment(0, A))],
    ({ ipv6 }) => new Flow(ipv6),
  ),
  tcp(
    'IPv6, other bytes',
    UNCOMPARED,
    (flow) => [primary(flow.segment(0, A)), secondary(flow.segment(0, B))],
    ({ ipv6 }) => new Flow(ipv6),
  ),
  tcp(
    'VLAN tag, equal segments',
    'Both.',
    (flow) => [primary(flow.segment(0, A)), secondary(flow.segment(0, A))],
    ({ ipv4 }) => new Flow(ipv4, { vlan: 5 }),
  ),
  tcp(
    'VLAN tag, other bytes',
    UNCOMPARED,
    (flow) => [primary(flow.segment(0, A)), secondary(flow.segment(0, B))],
    ({ ipv4 }) => new Flow(ipv4, { vlan: 5 }),
  ),
];

/** QEMU's table has this many entries. */
const QEMU_CONNECTIONS_MAX = 16_384;

const LIMITS: readonly Case[] = [
  {
    name: `A datagram waits for the SVM's, and ${QEMU_CONNECTIONS_MAX + 16} other flows come`,
    why: 'colo-proxy: a limit is no reason to lose what the guest has sent.',
    options: { compareTimeoutMs: 60_000 },
    watchMs: 100,
    make: ({ ipv4: dst }) => {
      const flood = Array.from({ length: QEMU_CONNECTIONS_MAX + 16 }, (_, i) =>
        udpFrame({ dst, srcPort: 1_024 + (i % 32_768), dstPort: 9, payload: 'x' }),
      );
      const load = (from: Step['from']): Step => ({
        from,
        frames: flood,
        pauseMs: 0,
        isBackground: true,
      });
      return {
        steps: [primary(udpFrame({ dst, payload: 'held' })), load('primary'), load('secondary')],
      };
    },
  },
];

export const CASES: readonly Case[] = [...STREAM, ...CONTROL, ...DATAGRAMS, ...FAMILIES, ...LIMITS];
