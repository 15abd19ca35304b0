/**
 * Memory of a primary engine that tracks a million open connections; started by micro.ts.
 * Sequence numbers are random, as real ones are: V8 keeps small integers in less memory.
 *
 * @module
 */
import { Prng } from '../src/base/prng.ts';
import type { EngineOutput } from '../src/env/engine.ts';
import { LINK_FRAME_SECONDARY } from '../src/env/messages.ts';
import { PRIMARY_DEFAULTS } from '../src/proxy/config.ts';
import { PrimaryEngine } from '../src/proxy/primary.ts';
import { seqAdd } from '../src/wire/seq.ts';
import { TCP_ACK, TCP_SYN } from '../src/wire/tcp.ts';
import { CLIENT_IP, GUEST_IP, type TestFrame, tcpFrame } from '../test/support/frame-builder.ts';

const FLOWS = Number(process.argv[2] ?? 1_000_000);
const PORTS_EACH = 50_000;
const MIB = 2 ** 20;

const output: EngineOutput = {
  sendToNet: () => {},
  sendToGuest: () => {},
  sendFrameToPeer: () => {},
  sendMessageToPeer: () => {},
  requestCheckpoint: () => {},
  event: () => {},
};

function memoryBytes(): number {
  globalThis.gc?.();
  const { heapUsed, arrayBuffers } = process.memoryUsage();
  return heapUsed + arrayBuffers;
}

/** Puts the client's address and port, and the numbers, into a frame made once. */
function set(frame: TestFrame, fromClient: boolean, flow: number, seq: number, ack: number): void {
  const { view } = frame.buffer;
  const ip = frame.offset + 14;
  view.setUint8(ip + (fromClient ? 14 : 18), Math.floor(flow / PORTS_EACH));
  view.setUint16(ip + (fromClient ? 20 : 22), 1_024 + (flow % PORTS_EACH));
  view.setUint32(ip + 24, seq);
  view.setUint32(ip + 28, ack);
}

const before = memoryBytes();
// Most of it is the TypeScript compiler, which is no part of the product.
const rssBefore = process.memoryUsage.rss();
let nowUs = 1_000_000;
const limits = { flowsMax: 2 ** 20, halfOpenFlowsMax: 2 ** 20 };
const engine = new PrimaryEngine({ ...PRIMARY_DEFAULTS, ...limits }, output, nowUs);
engine.onPeerUp(0, nowUs);
engine.checkpointCommit(nowUs);
engine.onPeerMessage({ type: 'checkpoint-committed', epoch: 1 }, nowUs);
engine.flush(nowUs);

const fromClient = { src: CLIENT_IP, dst: GUEST_IP, srcPort: 1_024, dstPort: 80 };
const syn = tcpFrame({ ...fromClient, flags: TCP_SYN });
const synAck = tcpFrame({ flags: TCP_SYN | TCP_ACK });
const ack = tcpFrame({ ...fromClient, flags: TCP_ACK });
const answer = tcpFrame({ flags: TCP_ACK, payload: 'answer' });
const prng = new Prng(1);
for (let flow = 0; flow < FLOWS; flow++) {
  const clientIsn = prng.nextU32();
  const guestIsn = prng.nextU32();
  const clientSeq = seqAdd(clientIsn, 1);
  const guestSeq = seqAdd(guestIsn, 1);
  set(syn, true, flow, clientIsn, 0);
  engine.onNetFrame(syn.buffer, syn.offset, syn.length, nowUs);
  set(synAck, false, flow, guestIsn, clientSeq);
  engine.onGuestFrame(synAck.buffer, synAck.offset, synAck.length, nowUs);
  engine.onPeerFrame(LINK_FRAME_SECONDARY, 1, synAck.buffer, synAck.offset, synAck.length, nowUs);
  set(ack, true, flow, clientSeq, guestSeq);
  engine.onNetFrame(ack.buffer, ack.offset, ack.length, nowUs);
  set(answer, false, flow, guestSeq, clientSeq);
  engine.onGuestFrame(answer.buffer, answer.offset, answer.length, nowUs);
  engine.onPeerFrame(LINK_FRAME_SECONDARY, 1, answer.buffer, answer.offset, answer.length, nowUs);
  if (flow % 64 === 0) {
    nowUs += 50;
    engine.flush(nowUs);
  }
}
engine.flush(nowUs);
const { flows } = engine.status(nowUs);
if (flows !== FLOWS) throw new Error(`${flows} flows of ${FLOWS}`);
const bytes = memoryBytes() - before;
process.stdout.write(
  JSON.stringify({
    flows,
    'bytes each': Math.round(bytes / flows),
    MiB: Math.round(bytes / MIB),
    'RSS MiB': Math.round(process.memoryUsage.rss() / MIB),
    'before the first': Math.round(rssBefore / MIB),
  }),
);
