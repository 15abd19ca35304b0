/**
 * The parts of the packet path alone, in nanoseconds a frame, and the memory of a million connections.
 *
 *     npm run bench:micro [-- --json]
 *
 * | row | what is done for each frame |
 * | --- | --- |
 * | dissect | headers and options of a TCP segment of 1400 bytes |
 * | lookup, N flows | key, hash and find, all the flows in random order |
 * | + touch, N flows | the same, and each flow becomes the most recently used, as every frame makes its flow |
 * | memory, a read | one read at random in 64 MiB, each from where the one before it says: what no cache holds costs this here |
 * | compare | both guests' pieces of 1400 bytes queued, compared, dropped |
 * | dissect + lookup + compare | the three, with a thousand flows |
 * | translate, SVM's | sequence number and timestamp of a segment, checksum updated |
 * | translate, client's | ACK number, timestamp and three SACK blocks, checksum updated |
 * | checksum, updated | RFC 1624, one 32-bit field; against: the whole segment summed |
 * | primary engine | a pair of frames, PVM's and SVM's, from port to port (`bench:engine` has more) |
 *
 * The rows are measured in turns, several times over, and the fastest turn counts: what disturbs a shared machine only adds.
 *
 * @module
 */
import { spawnSync } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { Prng } from '../src/base/prng.ts';
import { type Piece, StreamComparer } from '../src/compare/stream.ts';
import { FLOW_ESTABLISHED, type FlowEntry, FlowTable } from '../src/flow/table.ts';
import { adjustClientSegment, adjustGuestSegment } from '../src/rewrite/adjust.ts';
import { checksumAdd, checksumUpdate32 } from '../src/wire/checksum.ts';
import { dissect, FrameInfo } from '../src/wire/frame.ts';
import { seqAdd } from '../src/wire/seq.ts';
import { CLIENT_IP, GUEST_IP, tcpFrame } from '../test/support/frame-builder.ts';
import { printTable, type Row } from './report.ts';

const PAYLOAD_BYTES = 1_400;
const TURNS = 7;
const FRAMES = 200_000;
const FLOW_COUNTS = [1_000, 100_000, 1_000_000] as const;
/** Ports of one address that the flows use. */
const PORTS_EACH = 50_000;

const prng = new Prng(1);
const info = new FrameInfo();
const segment = tcpFrame({
  ack: 1,
  payload: new Uint8Array(PAYLOAD_BYTES),
  options: { timestamps: { tsval: 1, tsecr: 1 } },
});
const acknowledgement = tcpFrame({
  src: CLIENT_IP,
  dst: GUEST_IP,
  srcPort: 1_024,
  dstPort: 80,
  seq: 1,
  ack: 1,
  options: {
    timestamps: { tsval: 1, tsecr: 1 },
    sack: [
      [10, 20],
      [30, 40],
      [50, 60],
    ],
  },
});
/** A result that is used, so that nothing is optimised away. */
let sink = 0;

function dissectSegment(): void {
  sink += dissect(segment.buffer, segment.offset, segment.length, info);
}

interface Place {
  readonly table: FlowTable<FlowEntry>;
  /** All its flows, in random order. */
  readonly order: Uint32Array;
}

function setFlow(flow: number): void {
  segment.buffer.view.setUint8(segment.offset + 14 + 18, Math.floor(flow / PORTS_EACH));
  segment.buffer.view.setUint16(segment.offset + 14 + 22, 1_024 + (flow % PORTS_EACH));
}

function createPlace(flows: number): Place {
  const table = new FlowTable<FlowEntry>({ hashKey: { low: 1, high: 2 }, flowsMax: 2 ** 20 });
  for (let flow = 0; flow < flows; flow++) {
    setFlow(flow);
    dissectSegment();
    table.insert(info, true, { slot: -1 }, 0, FLOW_ESTABLISHED);
  }
  return { table, order: shuffled(flows) };
}

/** 0 to `count` - 1. With `count` places that each name the next, in this order, one comes to all of them. */
function shuffled(count: number): Uint32Array {
  const order = Uint32Array.from({ length: count }, (_, i) => i);
  for (let i = count - 1; i > 0; i--) {
    const other = prng.nextBelow(i + 1);
    const item = order[i]!;
    order[i] = order[other]!;
    order[other] = item;
  }
  return order;
}

/**
 * The key is in the dissected frame: only address and port change, as `info` says where. One frame serves all flows, so that no
 * frame has to be fetched from memory; `order` is read in sequence. Each call goes on where the last one stopped, also that of
 * another turn: no flow is in a cache because it was asked for a moment ago.
 */
function lookup({ table, order }: Place, touches: boolean): (i: number) => void {
  let next = 0;
  return (i) => {
    setFlow(order[next]!);
    next = next + 1 === order.length ? 0 : next + 1;
    info.bytes = segment.buffer.bytes;
    info.srcPort = 80;
    info.dstPort = segment.buffer.view.getUint16(segment.offset + 14 + 22);
    const flow = table.find(info, true);
    if (flow === undefined) throw new Error('a flow is missing');
    if (touches) table.touch(flow, i);
  };
}

/** Reads one place after the other, each in a cache line of its own. */
function readAtRandom(): () => void {
  const lines = 2 ** 20;
  const lineWords = 16;
  const memory = new Uint32Array(lines * lineWords);
  const order = shuffled(lines);
  for (let i = 0; i < lines; i++) memory[order[i]! * lineWords] = order[(i + 1) % lines]!;
  let at = 0;
  return () => {
    at = memory[at * lineWords]!;
    sink += at;
  };
}

const comparer = new StreamComparer<Piece, Piece>({
  onPrimaryDropped: () => {},
  onSecondaryDropped: () => {},
});
comparer.start(0);
const payload = segment.buffer.bytes.slice(
  segment.offset + 66,
  segment.offset + 66 + PAYLOAD_BYTES,
);
const payload2 = payload.slice();

function compare(): void {
  const seq = comparer.compared;
  const end = seqAdd(seq, PAYLOAD_BYTES);
  comparer.insertPrimary({ seq, end, bytes: payload, offset: 0 });
  comparer.insertSecondary({ seq, end, bytes: payload2, offset: 0 });
  sink += comparer.advance();
}

function nanoseconds(work: (i: number) => void, count = FRAMES): number {
  const started = process.hrtime.bigint();
  for (let i = 0; i < count; i++) work(i);
  return Number(process.hrtime.bigint() - started) / count;
}

function measureAll(): Record<string, number> {
  const places = FLOW_COUNTS.map((flows) => {
    const place = createPlace(flows);
    return { flows, find: lookup(place, false), touch: lookup(place, true) };
  });
  dissectSegment();
  const find = places[0]!.find;
  const works: Record<string, (i: number) => void> = {
    dissect: dissectSegment,
    ...Object.fromEntries(places.map((place) => [`lookup, ${place.flows} flows`, place.find])),
    ...Object.fromEntries(places.map((place) => [`+ touch, ${place.flows} flows`, place.touch])),
    'memory, a read': readAtRandom(),
    compare,
    'dissect + lookup + compare': (i) => {
      dissectSegment();
      find(i);
      compare();
    },
    "translate, SVM's": () => {
      dissect(segment.buffer, segment.offset, segment.length, info);
      adjustGuestSegment(info, 12_345, 99);
    },
    "translate, client's": () => {
      dissect(acknowledgement.buffer, acknowledgement.offset, acknowledgement.length, info);
      adjustClientSegment(info, 12_345, 99);
    },
    'checksum, updated': (i) => {
      sink += checksumUpdate32(sink & 0xffff, i, i + 7);
    },
    'checksum, whole segment': () => {
      sink += checksumAdd(segment.buffer.view, segment.offset + 34, PAYLOAD_BYTES + 32);
    },
  };
  const best: Record<string, number> = {};
  for (let turn = 0; turn < TURNS; turn++) {
    for (const [name, work] of Object.entries(works)) {
      if (name.endsWith('flows')) dissectSegment();
      best[name] = Math.min(best[name] ?? Number.POSITIVE_INFINITY, nanoseconds(work));
    }
  }
  return best;
}

/** In a process of its own, which has nothing else in memory. */
function measureMemory(): Record<string, number> {
  const script = fileURLToPath(new URL('./million-flows.ts', import.meta.url));
  const tools = fileURLToPath(new URL('../tools/ts.mjs', import.meta.url));
  const args = ['--expose-gc', '--max-old-space-size=6000', '--import', tools, script];
  const child = spawnSync(process.execPath, args, { stdio: ['ignore', 'pipe', 'inherit'] });
  if (child.status !== 0) throw new Error('million-flows.ts failed');
  return JSON.parse(child.stdout.toString()) as Record<string, number>;
}

const { values } = parseArgs({ options: { json: { type: 'boolean', default: false } } });
const frames = measureAll();
const memory = measureMemory();
if (values.json) process.stdout.write(`${JSON.stringify({ nanoseconds: frames, memory })}\n`);
const rows: Record<string, Row> = {};
for (const [name, ns] of Object.entries(frames)) rows[name] = { 'ns a frame': ns.toFixed(0) };
printTable(rows);
printTable({ 'a million connections': memory });
if (Number.isNaN(sink)) throw new Error('unreachable');
