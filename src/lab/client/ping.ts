/**
 * ICMP and ICMPv6 echo, through the kernel's ping sockets (no raw socket: the kernel writes identifier and checksum).
 *
 * @module
 */

import { FdWatcher } from '../../os/fd-watcher.ts';
import {
  AF_INET,
  AF_INET6,
  bindSocket,
  checkCall,
  closeSocket,
  EAGAIN,
  IPPROTO_ICMP,
  IPPROTO_ICMPV6,
  openSocket,
  receiveDatagram,
  SOCK_DGRAM,
  sendDatagram,
} from '../../os/socket-calls.ts';
import { contentAt } from '../content.ts';
import { ADDRESSES } from '../topology.ts';
import { spread } from './datagrams.ts';
import type { Family } from './http.ts';

export interface PingRequest {
  readonly family: Family;
  readonly count: number;
  /** Payload. */
  readonly bytes: number;
  readonly timeoutMs: number;
}

export interface PingResult {
  readonly sent: number;
  readonly answered: number;
  readonly wrong: number;
  readonly msMedian: number;
  readonly msMax: number;
}

const CONTENT_SEED = 1;
const ECHO_HEADER_BYTES = 8;
const ECHO_REQUEST = { 4: 8, 6: 128 } as const;
const ECHO_REPLY = { 4: 0, 6: 129 } as const;

export async function ping(request: PingRequest): Promise<PingResult> {
  const { family } = request;
  const fd =
    family === 4
      ? openSocket(AF_INET, SOCK_DGRAM, IPPROTO_ICMP)
      : openSocket(AF_INET6, SOCK_DGRAM, IPPROTO_ICMPV6);
  const times: number[] = [];
  let wrong = 0;
  try {
    checkCall('bind', bindSocket(fd, { family, address: ADDRESSES[family].client, port: 0 }));
    for (let sequence = 1; sequence <= request.count; sequence++) {
      const echo = buildEcho(request, sequence);
      const to = { family, address: ADDRESSES[family].guest, port: 0 };
      const startMs = performance.now();
      checkCall('sendto', sendDatagram(fd, echo, to));
      const answer = await receiveWithin(fd, request, sequence);
      if (answer === undefined) continue;
      times.push(performance.now() - startMs);
      const payload = answer.subarray(ECHO_HEADER_BYTES);
      if (Buffer.compare(payload, echo.subarray(ECHO_HEADER_BYTES)) !== 0) wrong++;
    }
  } finally {
    closeSocket(fd);
  }
  return { sent: request.count, answered: times.length, wrong, ...spread(times) };
}

function buildEcho({ family, bytes }: PingRequest, sequence: number): Uint8Array {
  const echo = new Uint8Array(ECHO_HEADER_BYTES + bytes);
  echo[0] = ECHO_REQUEST[family];
  echo[6] = sequence >>> 8;
  echo[7] = sequence & 0xff;
  for (let at = 0; at < bytes; ) {
    const piece = contentAt(CONTENT_SEED, sequence * bytes + at, bytes - at);
    echo.set(piece, ECHO_HEADER_BYTES + at);
    at += piece.length;
  }
  return echo;
}

/** The reply with this sequence number, or undefined when none comes in time. */
async function receiveWithin(
  fd: number,
  { family, timeoutMs }: PingRequest,
  sequence: number,
): Promise<Uint8Array | undefined> {
  const deadlineMs = performance.now() + timeoutMs;
  const buffer = new Uint8Array(65_536);
  while (performance.now() < deadlineMs) {
    const got = receiveDatagram(fd, buffer);
    if (typeof got === 'number') {
      checkCall('recvfrom', got === -EAGAIN ? 0 : got);
      await readable(fd, deadlineMs - performance.now());
      continue;
    }
    const isReply = buffer[0] === ECHO_REPLY[family];
    if (isReply && ((buffer[6]! << 8) | buffer[7]!) === sequence) {
      return buffer.slice(0, got.length);
    }
  }
  return undefined;
}

function readable(fd: number, timeoutMs: number): Promise<void> {
  return new Promise((resolve) => {
    const done = (): void => {
      clearTimeout(timer);
      watcher.close();
      resolve();
    };
    const timer = setTimeout(done, timeoutMs);
    const watcher = new FdWatcher(fd, done);
    watcher.watch(true, false);
  });
}
