/**
 * Small questions to the guest's echo service at a steady beat: how long does their user wait, and when?
 *
 * @module
 */
import { createSocket } from 'node:dgram';
import { monotonicMs, sleep } from '../clock.ts';
import { PORTS } from '../guest/services.ts';
import { ADDRESSES } from '../topology.ts';
import { type Family, openConnection } from './http.ts';
import { readExactly } from './sessions.ts';
import { type Wait, Waits } from './waits.ts';

export interface PulseRequest {
  readonly family: Family;
  /**
   * `tcp`: one connection, the next question `intervalMs` after the last answer. A question that is lost waits for the client's own
   * retransmission timer. `udp`: a question every `intervalMs`, whatever is answered.
   */
  readonly protocol: 'tcp' | 'udp';
  /** The pulse beats until so much time has gone. */
  readonly milliseconds: number;
  readonly intervalMs: number;
}

export interface PulseResult {
  readonly answers: number;
  readonly waits: readonly Wait[];
}

const QUESTION = Buffer.alloc(64, 'pulse?');

/** Rejects when the connection fails. */
export function pulse(request: PulseRequest): Promise<PulseResult> {
  return request.protocol === 'tcp' ? pulseTcp(request) : pulseUdp(request);
}

async function pulseTcp({ family, milliseconds, intervalMs }: PulseRequest): Promise<PulseResult> {
  const socket = await openConnection(family, PORTS.echo);
  const startMs = monotonicMs();
  const waits = new Waits(startMs);
  let answers = 0;
  try {
    while (waits.lastMs < startMs + milliseconds) {
      const answered = readExactly(socket, QUESTION);
      socket.write(QUESTION);
      await answered;
      answers++;
      waits.progress(monotonicMs());
      await sleep(intervalMs);
    }
  } finally {
    socket.on('error', () => {});
    socket.end();
  }
  return { answers, waits: waits.list() };
}

async function pulseUdp({ family, milliseconds, intervalMs }: PulseRequest): Promise<PulseResult> {
  const socket = createSocket(family === 4 ? 'udp4' : 'udp6');
  const startMs = monotonicMs();
  const waits = new Waits(startMs);
  let answers = 0;
  try {
    await new Promise<void>((resolve) =>
      socket.connect(PORTS.echo, ADDRESSES[family].guest, resolve),
    );
    socket.on('message', () => {
      answers++;
      waits.progress(monotonicMs());
    });
    while (monotonicMs() < startMs + milliseconds) {
      // While nobody serves, the network may refuse it.
      socket.send(QUESTION, () => {});
      await sleep(intervalMs);
    }
  } finally {
    socket.close();
  }
  return { answers, waits: waits.list() };
}
