/**
 * The secondary engine alone, without ports: nanoseconds per frame of the SVM (translated, retained, confirmed) and per frame of
 * a client (translated), for payload sizes and numbers of connections.
 *
 *     node dist-bench/bench/secondary.js   (npm run bench:micro)
 *
 * @module
 */
import type { EngineOutput } from '../src/env/engine.ts';
import { LINK_FRAME_CLIENT, LINK_FRAME_PRIMARY_SYN } from '../src/env/messages.ts';
import { SECONDARY_DEFAULTS } from '../src/proxy/config.ts';
import { SecondaryEngine } from '../src/proxy/secondary.ts';
import { TCP_ACK, TCP_SYN } from '../src/wire/tcp.ts';
import { CLIENT_IP, GUEST_IP, type TestFrame, tcpFrame } from '../test/support/frame-builder.ts';

const BATCH = 64;
const SECONDARY_ISN = 77_000;
const PRIMARY_ISN = 5_000_000;
const SEQ_AT = 14 + 20 + 4;

interface Result {
  readonly guestNs: number;
  readonly clientNs: number;
}

/** `frames` of each direction, in batches: BATCH of the guest, then as many acknowledgements of the client. */
function run(payloadBytes: number, flows: number, frames: number): Result {
  let sent = 0;
  const output: EngineOutput = {
    sendToNet: () => {},
    sendToGuest: () => {
      sent++;
    },
    sendFrameToPeer: () => {
      sent++;
    },
    sendMessageToPeer: () => {},
    requestCheckpoint: () => {},
    event: () => {},
  };
  const nowUs = 1_000_000;
  const engine = new SecondaryEngine(SECONDARY_DEFAULTS, output, nowUs);
  engine.onPeerUp(0, nowUs);
  engine.checkpointCommit(nowUs);
  const guest: TestFrame[] = [];
  const client: TestFrame[] = [];
  for (let i = 0; i < flows; i++) {
    const port = 1_024 + i;
    const synAck = { dstPort: port, ack: 1, flags: TCP_SYN | TCP_ACK };
    const timestamps = { timestamps: { tsval: 1, tsecr: 1 } };
    const p = tcpFrame({ ...synAck, seq: PRIMARY_ISN, options: timestamps });
    engine.onPeerFrame(LINK_FRAME_PRIMARY_SYN, 1, p.buffer, p.offset, p.length, nowUs);
    const s = tcpFrame({ ...synAck, seq: SECONDARY_ISN, options: timestamps });
    engine.onGuestFrame(s.buffer, s.offset, s.length, nowUs);
    engine.flush(nowUs);
    const payload = new Uint8Array(payloadBytes);
    guest.push(tcpFrame({ dstPort: port, ack: 1, payload, options: timestamps }));
    const ends = { src: CLIENT_IP, dst: GUEST_IP, srcPort: port, dstPort: 80 };
    client.push(tcpFrame({ ...ends, seq: 1, options: timestamps }));
  }
  const position = new Uint32Array(flows);
  let guestNs = 0;
  let clientNs = 0;
  sent = 0;
  for (let done = 0; done < frames; done += BATCH) {
    const started = process.hrtime.bigint();
    for (let i = done; i < done + BATCH; i++) {
      const f = i % flows;
      const { buffer, offset, length } = guest[f]!;
      buffer.view.setUint32(offset + SEQ_AT, SECONDARY_ISN + 1 + position[f]!);
      position[f]! += payloadBytes;
      engine.onGuestFrame(buffer, offset, length, nowUs);
    }
    engine.flush(nowUs);
    const middle = process.hrtime.bigint();
    for (let i = done; i < done + BATCH; i++) {
      const f = i % flows;
      const { buffer, offset, length } = client[f]!;
      buffer.view.setUint32(offset + SEQ_AT + 4, PRIMARY_ISN + 1 + position[f]!);
      engine.onPeerFrame(LINK_FRAME_CLIENT, 1, buffer, offset, length, nowUs);
    }
    engine.flush(nowUs);
    guestNs += Number(middle - started);
    clientNs += Number(process.hrtime.bigint() - middle);
  }
  if (sent < 2 * frames) throw new Error(`passed ${sent} of ${2 * frames} frames`);
  return { guestNs: Math.round(guestNs / frames), clientNs: Math.round(clientNs / frames) };
}

const rows = [];
for (const payload of [64, 1400, 32_000]) {
  for (const flows of [1, 100, 10_000]) {
    run(payload, flows, 20_032);
    rows.push({ payload, flows, ...run(payload, flows, payload > 2000 ? 50_048 : 300_032) });
  }
}
console.table(rows);
