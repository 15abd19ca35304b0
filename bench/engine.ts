/**
 * The primary engine alone, without ports: nanoseconds per pair of frames (the PVM's and the SVM's), for payload sizes, numbers of
 * connections and an SVM that is some frames behind.
 *
 *     npm run bench:engine [-- --heap-profile]
 *
 * "garbage" are the bytes of the heap that a pair takes, "kept" what of them is still there after a full collection when all
 * pairs are through. It runs with a young generation that is larger than the garbage, so that the one is the growth of the heap.
 * `--heap-profile`: instead, where in the code it is taken.
 *
 * @module
 */
import { parseArgs } from 'node:util';
import type { EngineOutput } from '../src/env/engine.ts';
import { LINK_FRAME_SECONDARY } from '../src/env/messages.ts';
import { PRIMARY_DEFAULTS } from '../src/proxy/config.ts';
import { PrimaryEngine } from '../src/proxy/primary.ts';
import { TCP_ACK, TCP_SYN } from '../src/wire/tcp.ts';
import { CLIENT_IP, GUEST_IP, tcpFrame } from '../test/support/frame-builder.ts';
import { beginHeapProfile, endHeapProfile } from './heap-probe.mjs';
import { type HeapSites, heapRows, printTable } from './report.ts';

const BATCH = 64;
const PROFILED_PAYLOAD_BYTES = 1_400;

interface Result {
  readonly nsPerPair: number;
  readonly garbageBytesPerPair: number;
  readonly keptBytesPerPair: number;
}

/** With a full collection before: Node's --expose-gc. */
function heapBytes(isCollected: boolean): number {
  if (isCollected) {
    if (globalThis.gc === undefined) throw new Error('node --expose-gc is wanted');
    globalThis.gc();
  }
  return process.memoryUsage().heapUsed;
}

/** What is done around the pairs, beside measuring; see `--heap-profile`. */
interface Around {
  readonly begin: () => void;
  readonly end: () => void;
}

function run(
  payloadBytes: number,
  flows: number,
  behind: number,
  pairs: number,
  around?: Around,
): Result {
  let released = 0;
  const output: EngineOutput = {
    sendToNet: () => {
      released++;
    },
    sendToGuest: () => {},
    sendFrameToPeer: () => {},
    sendMessageToPeer: () => {},
    requestCheckpoint: () => {},
    event: () => {},
  };
  let nowUs = 1_000_000;
  const engine = new PrimaryEngine({ ...PRIMARY_DEFAULTS, heldBytesMax: 2 ** 33 }, output, nowUs);
  engine.onPeerUp(0, nowUs);
  engine.checkpointCommit(nowUs);
  engine.onPeerMessage({ type: 'checkpoint-committed', epoch: 1 }, nowUs);
  engine.flush(nowUs);
  const connections = Array.from({ length: flows }, (_, i) => {
    const port = 1_024 + (i % 60_000);
    const client = `10.${1 + Math.floor(i / 60_000)}.0.9`;
    const fields = { dstPort: port, src: GUEST_IP, dst: flows > 60_000 ? client : CLIENT_IP };
    for (const kind of ['primary', 'secondary']) {
      const syn = tcpFrame({ ...fields, seq: 0, ack: 1, flags: TCP_SYN | TCP_ACK });
      if (kind === 'primary') engine.onGuestFrame(syn.buffer, syn.offset, syn.length, nowUs);
      else engine.onPeerFrame(LINK_FRAME_SECONDARY, 1, syn.buffer, syn.offset, syn.length, nowUs);
    }
    if (i % 64 === 0) engine.flush(nowUs);
    return { port, client: fields.dst };
  });
  // One frame that becomes the next flow's: a real one, too, has just been written by the kernel. (The checksum goes wrong.)
  const frame = tcpFrame({
    src: GUEST_IP,
    ack: 1,
    flags: TCP_ACK,
    payload: new Uint8Array(payloadBytes),
  });
  const ipAt = frame.offset + 14;
  engine.flush(nowUs);
  released = 0;
  const sequence = new Uint32Array(flows).fill(1);
  const sequence2 = new Uint32Array(flows).fill(1);
  const setFlow = (f: number, seq: number): void => {
    const { view } = frame.buffer;
    view.setUint8(ipAt + 17, flows > 60_000 ? 1 + Math.floor(f / 60_000) : 0);
    view.setUint16(ipAt + 22, connections[f]!.port);
    view.setUint32(ipAt + 24, seq);
  };
  const heapBefore = heapBytes(true);
  around?.begin();
  const started = process.hrtime.bigint();
  let p = 0;
  let s = 0;
  while (s < pairs) {
    nowUs += 50;
    for (let i = 0; i < BATCH && p < pairs; i++, p++) {
      const f = p % flows;
      setFlow(f, sequence[f]!);
      sequence[f]! += payloadBytes;
      engine.onGuestFrame(frame.buffer, frame.offset, frame.length, nowUs);
    }
    engine.flush(nowUs);
    for (let i = 0; i < BATCH && s < pairs && s < (p === pairs ? pairs : p - behind); i++, s++) {
      const f = s % flows;
      setFlow(f, sequence2[f]!);
      sequence2[f]! += payloadBytes;
      engine.onPeerFrame(LINK_FRAME_SECONDARY, 1, frame.buffer, frame.offset, frame.length, nowUs);
    }
    engine.flush(nowUs);
    if (engine.nextDeadlineUs() <= nowUs) engine.onTick(nowUs);
  }
  const ns = Number(process.hrtime.bigint() - started);
  const garbage = heapBytes(false) - heapBefore;
  around?.end();
  const kept = heapBytes(true) - heapBefore;
  if (released !== pairs) throw new Error(`released ${released} of ${pairs}`);
  // The engine and its flows are still in use here.
  if (engine.status(nowUs).held.frames !== 0) throw new Error('frames are left');
  return {
    nsPerPair: ns / pairs,
    garbageBytesPerPair: garbage / pairs,
    keptBytesPerPair: kept / pairs,
  };
}

/** Bytes a pair by the site that took them, and those alive after a full collection: two runs, for V8 has one such profile at a time. */
function profile(flows: number): void {
  const pairs = 300_000;
  run(PROFILED_PAYLOAD_BYTES, flows, 64, 20_000);
  const [taken, alive] = [false, true].map((isAlive) => {
    let sites: HeapSites = [];
    run(PROFILED_PAYLOAD_BYTES, flows, 64, pairs, {
      begin: () => beginHeapProfile(isAlive),
      end: () => {
        sites = endHeapProfile();
      },
    });
    return sites;
  }) as [HeapSites, HeapSites];
  process.stderr.write(`\n${flows} connections, bytes a pair\n`);
  printTable(heapRows(taken, alive, pairs));
}

function measure(): void {
  const rows = [];
  for (const payload of [64, 1400, 32_000]) {
    for (const flows of [1, 100, 10_000, 100_000]) {
      for (const behind of [0, 64]) {
        run(payload, flows, behind, 20_000);
        const result = run(payload, flows, behind, payload > 2000 ? 50_000 : 300_000);
        rows.push({
          payload,
          flows,
          behind,
          'ns a pair': Math.round(result.nsPerPair),
          'garbage, bytes a pair': result.garbageBytesPerPair.toFixed(1),
          'kept, bytes a pair': result.keptBytesPerPair.toFixed(2),
        });
      }
    }
  }
  console.table(rows);
}

const { values: options } = parseArgs({
  options: { 'heap-profile': { type: 'boolean', default: false } },
});
if (options['heap-profile']) for (const flows of [1, 100, 10_000]) profile(flows);
else measure();
