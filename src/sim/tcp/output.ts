/**
 * The sending half of the model TCP: data, FINs, acknowledgements, probes, retransmission timers.
 *
 * @module
 */
import { type Micros, NEVER } from '../../base/time.ts';
import {
  DELAYED_ACK_US,
  endConnection,
  finPositionOf,
  RETRIES_MAX,
  RTO_MAX_US,
  sendEnd,
  type TcpConnection,
  type TcpIo,
  timestampNow,
  windowOf,
} from './connection.ts';
import {
  ACK,
  blankSegment,
  FIN,
  PSH,
  RST,
  SACK_BLOCKS_MAX,
  SYN,
  type TcpSegment,
  URG,
} from './segment.ts';

/** Fills in what every segment of a synchronized connection carries, and notes what was promised by it. */
function stamp(connection: TcpConnection, segment: TcpSegment, nowUs: Micros): void {
  segment.srcPort = connection.localPort;
  segment.dstPort = connection.remotePort;
  const isSyn = (segment.flags & SYN) !== 0;
  if ((segment.flags & ACK) !== 0) {
    segment.ack = (connection.irs + connection.rcvNxt) >>> 0;
    connection.lastAckSent = connection.rcvNxt;
    connection.ackNow = false;
    connection.ackAtUs = NEVER;
    connection.segmentsToAck = 0;
    if (connection.sackOk && !isSyn) segment.sack = sackBlocks(connection);
  }
  const scale = isSyn ? 0 : connection.rcvScale;
  segment.window = Math.min(windowField(connection, scale), 0xffff);
  connection.rcvEdge = Math.max(
    connection.rcvEdge,
    connection.rcvNxt + segment.window * 2 ** scale,
  );
  const offersTimestamps = isSyn && connection.options.timestamps && (segment.flags & ACK) === 0;
  if (connection.timestampsOk || offersTimestamps) {
    const echo = (segment.flags & ACK) === 0 ? 0 : connection.tsRecent;
    segment.timestamps = { value: timestampNow(connection, nowUs), echo };
  }
}

/** The window never shrinks (RFC 9293 §3.8.6.2.1 discourages it): the edge stays where it was promised. */
function windowField(connection: TcpConnection, scale: number): number {
  const unit = 2 ** scale;
  const promised = Math.max(0, connection.rcvEdge - connection.rcvNxt);
  return Math.max(Math.ceil(promised / unit), Math.floor(windowOf(connection) / unit));
}

function sackBlocks(connection: TcpConnection): number[] {
  const ranges: [number, number][] = [];
  for (const gap of connection.gaps) {
    const last = ranges.at(-1);
    const end = gap.start + gap.bytes.length;
    if (last !== undefined && last[1] === gap.start) last[1] = end;
    else ranges.push([gap.start, end]);
  }
  // RFC 2018 §4: the block of the latest segment comes first.
  const at = connection.lastGapStart;
  ranges.sort(
    (a, b) => Number(b[0] <= at && at < b[1]) - Number(a[0] <= at && at < a[1]) || a[0] - b[0],
  );
  return ranges
    .slice(0, SACK_BLOCKS_MAX)
    .flatMap(([start, end]) => [(connection.irs + start) >>> 0, (connection.irs + end) >>> 0]);
}

/** Sends a SYN or SYN-ACK (again). */
export function sendSyn(connection: TcpConnection, io: TcpIo): void {
  const segment = blankSegment();
  const isAnswer = connection.state === 'syn-received';
  segment.flags = isAnswer ? SYN | ACK : SYN;
  segment.seq = connection.iss;
  segment.mss = connection.options.mss;
  // An answer has only the options that the SYN had (RFC 7323 §2.2, §3.2).
  segment.windowScale = !isAnswer || connection.rcvScale > 0 ? connection.options.windowScale : -1;
  if (connection.options.windowScale === 0) segment.windowScale = -1;
  segment.sackPermitted = isAnswer ? connection.sackOk : connection.options.sack;
  stamp(connection, segment, io.nowUs);
  connection.sndNxt = Math.max(connection.sndNxt, 1);
  connection.sndMax = Math.max(connection.sndMax, 1);
  startRetransmitTimer(connection, io.nowUs);
  io.emit(connection, segment);
}

/** Sends an acknowledgement without data. */
export function sendAck(connection: TcpConnection, io: TcpIo): void {
  const segment = blankSegment();
  segment.flags = ACK;
  segment.seq = (connection.iss + connection.sndNxt) >>> 0;
  stamp(connection, segment, io.nowUs);
  io.emit(connection, segment);
}

/** Sends a RST that the peer will accept, and ends the connection. */
export function tcpAbort(connection: TcpConnection, io: TcpIo): void {
  if (connection.state !== 'closed' && connection.state !== 'syn-sent') {
    const segment = blankSegment();
    segment.flags = RST | ACK;
    segment.seq = (connection.iss + connection.sndNxt) >>> 0;
    stamp(connection, segment, io.nowUs);
    io.emit(connection, segment);
  }
  endConnection(connection, 'aborted');
}

function startRetransmitTimer(connection: TcpConnection, nowUs: Micros): void {
  if (connection.retransmitAtUs === NEVER) {
    connection.retransmitAtUs = nowUs + connection.rtoUs;
  }
}

/** Sends bytes `[start, end)`, with the FIN when the range reaches it. */
function sendRange(connection: TcpConnection, start: number, end: number, io: TcpIo): void {
  const segment = blankSegment();
  const bytesEnd = Math.min(end, sendEnd(connection));
  const fin = finPositionOf(connection);
  segment.flags = ACK;
  if (bytesEnd > start) {
    const from = start - connection.sendBase;
    segment.payload = connection.sendBytes.slice(from, from + bytesEnd - start);
    if (bytesEnd === sendEnd(connection)) segment.flags |= PSH;
  }
  if (fin >= 0 && start <= fin && end > fin) segment.flags |= FIN;
  segment.seq = (connection.iss + start) >>> 0;
  if (connection.sendUrgent > start) {
    segment.flags |= URG;
    segment.urgentPointer = Math.min(connection.sendUrgent - start, 0xffff);
  }
  stamp(connection, segment, io.nowUs);
  if (connection.timedPosition < 0 && start >= connection.sndMax) {
    connection.timedPosition = end;
    connection.timedAtUs = io.nowUs;
  }
  connection.sndMax = Math.max(connection.sndMax, end);
  startRetransmitTimer(connection, io.nowUs);
  io.emit(connection, segment);
}

/** Retransmits the first hole: one segment from the oldest position that is neither acknowledged nor in the scoreboard. */
export function retransmitFirst(connection: TcpConnection, io: TcpIo): void {
  const start = connection.sndUna;
  let end = Math.min(start + connection.mss, connection.sndMax);
  for (let i = 0; i < connection.scoreboard.length; i += 2) {
    const left = connection.scoreboard[i]!;
    if (left > start) end = Math.min(end, left);
  }
  connection.timedPosition = -1;
  if (end > start) sendRange(connection, start, end, io);
}

/** Moves a position out of what the receiver has reported by SACK. */
function skipReported(connection: TcpConnection, position: number): number {
  let at = position;
  for (let i = 0; i < connection.scoreboard.length; i += 2) {
    if (connection.scoreboard[i]! <= at && at < connection.scoreboard[i + 1]!) {
      at = connection.scoreboard[i + 1]!;
      i = -2;
    }
  }
  return at;
}

const SENDING_STATES = new Set(['established', 'close-wait', 'fin-wait-1', 'closing', 'last-ack']);

/** Sends what the windows allow, then an acknowledgement if one is due and nothing carried it. */
export function tcpOutput(connection: TcpConnection, io: TcpIo): void {
  if (SENDING_STATES.has(connection.state)) {
    sendNewData(connection, io);
    if (connection.finQueued && connection.sndMax > finPositionOf(connection))
      noteFinSent(connection);
    armPersist(connection, io.nowUs);
  }
  if (connection.ackNow && connection.state !== 'closed' && connection.state !== 'syn-sent') {
    if (connection.state === 'syn-received') sendSyn(connection, io);
    else sendAck(connection, io);
  }
}

function sendNewData(connection: TcpConnection, io: TcpIo): void {
  const fin = finPositionOf(connection);
  const last = fin >= 0 ? fin + 1 : sendEnd(connection);
  for (;;) {
    connection.sndNxt = skipReported(connection, connection.sndNxt);
    const start = connection.sndNxt;
    if (start >= last) return;
    const edge = connection.sndUna + Math.min(connection.sndWnd, connection.cwnd);
    // A FIN needs no window of its own in practice: every stack takes it.
    const limit = edge >= sendEnd(connection) ? last : edge;
    const segmentBytes = connection.mss * io.entropy.nextBetween(1, connection.options.gsoSegments);
    let end = Math.min(start + segmentBytes, limit, last);
    if (fin >= 0 && end === fin && limit > fin) end = fin + 1;
    for (let i = 0; i < connection.scoreboard.length; i += 2) {
      if (connection.scoreboard[i]! > start) end = Math.min(end, connection.scoreboard[i]!);
    }
    if (end <= start) return;
    // Sender side of silly window avoidance: wait for a whole segment unless this is all there is.
    const isSmall = end - start < Math.min(connection.mss, last - start);
    if (isSmall && connection.sndNxt > connection.sndUna) return;
    sendRange(connection, start, end, io);
    connection.sndNxt = end;
  }
}

/** Changes state when the FIN has been sent (RFC 9293 §3.10.4). */
function noteFinSent(connection: TcpConnection): void {
  if (connection.state === 'established') connection.state = 'fin-wait-1';
  else if (connection.state === 'close-wait') connection.state = 'last-ack';
}

function armPersist(connection: TcpConnection, nowUs: Micros): void {
  const isWaiting = sendEnd(connection) > connection.sndNxt || hasUnsentFin(connection);
  const isIdle = connection.sndUna === connection.sndMax;
  if (!isWaiting || !isIdle) connection.persistAtUs = NEVER;
  else if (connection.persistAtUs === NEVER) connection.persistAtUs = nowUs + connection.rtoUs;
}

function hasUnsentFin(connection: TcpConnection): boolean {
  return connection.finQueued && connection.sndMax <= finPositionOf(connection);
}

function sendProbe(connection: TcpConnection, io: TcpIo): void {
  if (
    connection.options.probeWithByte &&
    connection.sendCount > 0 &&
    sendEnd(connection) > connection.sndNxt
  ) {
    io.note('probes with a byte');
    sendRange(connection, connection.sndNxt, connection.sndNxt + 1, io);
    connection.sndNxt++;
    return;
  }
  sendOldAck(connection, io);
}

/** An acknowledgement with a sequence number already acknowledged: the peer must answer (keepalive, Linux' window probe). */
function sendOldAck(connection: TcpConnection, io: TcpIo): void {
  const segment = blankSegment();
  segment.flags = ACK;
  segment.seq = (connection.iss + connection.sndUna - 1) >>> 0;
  stamp(connection, segment, io.nowUs);
  io.emit(connection, segment);
}

/** Starts the clock of a delayed acknowledgement, or asks for one at once (RFC 9293 §3.8.6.3). */
export function scheduleAck(connection: TcpConnection, nowUs: Micros): void {
  connection.segmentsToAck++;
  if (!connection.options.delayedAck || connection.segmentsToAck >= 2) connection.ackNow = true;
  else connection.ackAtUs = Math.min(connection.ackAtUs, nowUs + DELAYED_ACK_US);
}

/** Runs the timers that are due. */
export function tcpTimers(connection: TcpConnection, io: TcpIo): void {
  if (connection.timeWaitUntilUs <= io.nowUs) endConnection(connection, '');
  if (connection.state === 'closed') return;
  if (connection.ackAtUs <= io.nowUs) {
    connection.ackNow = true;
    io.note('delays an ACK');
  }
  if (connection.retransmitAtUs <= io.nowUs) onRetransmitTimer(connection, io);
  if (connection.persistAtUs <= io.nowUs) {
    io.note('probes a closed window');
    connection.retries++;
    connection.persistAtUs = NEVER;
    connection.rtoUs = Math.min(connection.rtoUs * 2, RTO_MAX_US);
    sendProbe(connection, io);
  }
  if (connection.keepaliveAtUs <= io.nowUs) {
    connection.keepaliveAtUs = io.nowUs + connection.options.keepaliveUs;
    if (connection.state === 'established' || connection.state === 'close-wait') {
      io.note('sends a keepalive');
      sendOldAck(connection, io);
    }
  }
  tcpOutput(connection, io);
}

function onRetransmitTimer(connection: TcpConnection, io: TcpIo): void {
  connection.retransmitAtUs = NEVER;
  if (connection.sndUna >= connection.sndMax) return;
  io.note('retransmits by timer');
  connection.retries++;
  if (connection.retries > RETRIES_MAX) {
    endConnection(connection, 'timeout');
    return;
  }
  connection.rtoUs = Math.min(connection.rtoUs * 2, RTO_MAX_US);
  connection.timedPosition = -1;
  if (connection.state === 'syn-sent' || connection.state === 'syn-received') {
    sendSyn(connection, io);
    return;
  }
  const flight = connection.sndMax - connection.sndUna;
  connection.ssthresh = Math.max(Math.floor(flight / 2), 2 * connection.mss);
  connection.cwnd = connection.mss;
  connection.recover = -1;
  connection.duplicateAcks = 0;
  // RFC 2018 §8: after a timeout the receiver may have thrown away what it reported.
  connection.scoreboard = [];
  connection.sndNxt = connection.sndUna;
  if (connection.sndWnd === 0) {
    sendRange(
      connection,
      connection.sndUna,
      Math.min(connection.sndUna + 1, connection.sndMax),
      io,
    );
    connection.sndNxt = connection.sndUna + 1;
  }
}
