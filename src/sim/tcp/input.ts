/**
 * The receiving half of the model TCP: RFC 9293 §3.10.7, with RFC 7323 (PAWS, timestamps), RFC 2018
 * (SACK) and RFC 5961 (challenge acknowledgements).
 *
 * @module
 */
import { NEVER } from '../../base/time.ts';
import {
  endConnection,
  finPositionOf,
  type Gap,
  ownPosition,
  peerPosition,
  RTO_MAX_US,
  RTO_MIN_US,
  type TcpConnection,
  type TcpIo,
  TIME_WAIT_US,
  timestampNow,
} from './connection.ts';
import { retransmitFirst, scheduleAck, sendSyn, tcpOutput } from './output.ts';
import { ACK, FIN, RST, SYN, segmentLength, type TcpSegment, URG } from './segment.ts';

/** Takes one segment and answers it. */
export function tcpInput(connection: TcpConnection, segment: TcpSegment, io: TcpIo): void {
  if (connection.state === 'closed') return;
  if (connection.state === 'syn-sent') {
    inputSynSent(connection, segment, io);
  } else {
    inputSynchronized(connection, segment, io);
  }
  tcpOutput(connection, io);
}

/** Adopts the peer's SYN: its ISN and its options (RFC 9293 §3.7.1, RFC 7323 §2.2, §3.2). */
export function acceptSyn(connection: TcpConnection, segment: TcpSegment): void {
  connection.irs = segment.seq;
  connection.rcvNxt = 1;
  connection.rcvEdge = Math.max(connection.rcvEdge, 1);
  connection.mss = Math.min(segment.mss > 0 ? segment.mss : 536, connection.options.mss);
  connection.sackOk = segment.sackPermitted && connection.options.sack;
  connection.timestampsOk = segment.timestamps !== undefined && connection.options.timestamps;
  if (segment.timestamps !== undefined) connection.tsRecent = segment.timestamps.value;
  if (segment.windowScale >= 0 && connection.options.windowScale > 0) {
    connection.sndScale = segment.windowScale;
    connection.rcvScale = connection.options.windowScale;
  }
  if (connection.timestampsOk) connection.mss -= 12;
  connection.cwnd = 10 * connection.mss;
  connection.sndWnd = segment.window;
  connection.sndWl1 = 0;
  connection.sndWl2 = 0;
}

function inputSynSent(connection: TcpConnection, segment: TcpSegment, io: TcpIo): void {
  const hasAck = (segment.flags & ACK) !== 0;
  const ack = ownPosition(connection, segment.ack);
  if (hasAck && (ack <= 0 || ack > connection.sndMax)) return;
  if ((segment.flags & RST) !== 0) {
    if (hasAck) endConnection(connection, 'refused');
    return;
  }
  if ((segment.flags & SYN) === 0) return;
  acceptSyn(connection, segment);
  connection.retries = 0;
  if (hasAck) {
    connection.sndUna = ack;
    connection.state = 'established';
    connection.retransmitAtUs = NEVER;
    connection.ackNow = true;
    startKeepalive(connection, io);
  } else {
    // Simultaneous open (RFC 9293 figure 8).
    connection.state = 'syn-received';
    io.note('opens simultaneously');
    sendSyn(connection, io);
  }
}

function startKeepalive(connection: TcpConnection, io: TcpIo): void {
  connection.keepaliveAtUs =
    connection.options.keepaliveUs === NEVER ? NEVER : io.nowUs + connection.options.keepaliveUs;
}

/** RFC 9293 §3.10.7.4, first check, with the window that was promised rather than today's. */
function isAcceptable(connection: TcpConnection, start: number, length: number): boolean {
  const window = Math.max(0, connection.rcvEdge - connection.rcvNxt);
  const end = connection.rcvNxt + window;
  if (length === 0)
    return start === connection.rcvNxt || (start >= connection.rcvNxt && start < end);
  // A FIN or a probe exactly at the edge of a closed window is taken like an ACK: its header counts.
  if (window === 0) return false;
  return start < end && start + length > connection.rcvNxt;
}

/** What a reset means to the application. A passive open only goes back to listening (RFC 9293 §3.10.7.4). */
function resetError(connection: TcpConnection): string {
  if (connection.state === 'syn-received') return 'refused';
  return CLOSED_BOTH_WAYS.has(connection.state) ? '' : 'reset';
}

/** Both sides have closed: a reset changes nothing for the applications. */
const CLOSED_BOTH_WAYS = new Set(['time-wait', 'closing', 'last-ack']);

function inputSynchronized(connection: TcpConnection, segment: TcpSegment, io: TcpIo): void {
  const start = peerPosition(connection, segment.seq);
  const isReset = (segment.flags & RST) !== 0;
  if (connection.timestampsOk && !isReset) {
    // RFC 7323 §5.3: PAWS. Segments without the option are dropped as §3.2 asks.
    if (segment.timestamps === undefined) return;
    if (((segment.timestamps.value - connection.tsRecent) | 0) < 0) {
      io.note('drops a segment by PAWS');
      connection.ackNow = true;
      return;
    }
  }
  if (connection.state === 'syn-received' && start === 0 && isSynAckFor(connection, segment)) {
    // Simultaneous open: the peer's SYN again, now with the acknowledgement (RFC 9293 figure 8).
    if (inputAck(connection, segment, start, io)) connection.ackNow = true;
    return;
  }
  if (!isAcceptable(connection, start, segmentLength(segment))) {
    if (!isReset) refuseSegment(connection, segment, start, io);
    return;
  }
  if (segment.timestamps !== undefined && start <= connection.lastAckSent) {
    connection.tsRecent = segment.timestamps.value;
  }
  if (isReset) {
    // RFC 5961 §3.2: only an exact hit ends the connection.
    if (start !== connection.rcvNxt) connection.ackNow = true;
    else endConnection(connection, resetError(connection));
    return;
  }
  if ((segment.flags & SYN) !== 0) {
    connection.ackNow = true;
    return;
  }
  if ((segment.flags & ACK) === 0) return;
  if (!inputAck(connection, segment, start, io)) return;
  startKeepalive(connection, io);
  if ((segment.flags & URG) !== 0) {
    connection.peerUrgent = Math.max(connection.peerUrgent, start + segment.urgentPointer);
  }
  inputData(connection, segment, start, io);
}

function isSynAckFor(connection: TcpConnection, segment: TcpSegment): boolean {
  const isSynAck = (segment.flags & (SYN | ACK | RST)) === (SYN | ACK);
  return isSynAck && ownPosition(connection, segment.ack) === 1;
}

/** A segment outside of the window is answered; its acknowledgement still counts when it is only a probe. */
function refuseSegment(
  connection: TcpConnection,
  segment: TcpSegment,
  start: number,
  io: TcpIo,
): void {
  connection.ackNow = true;
  if (connection.state === 'time-wait') connection.timeWaitUntilUs = io.nowUs + TIME_WAIT_US;
  const isPlainAck = (segment.flags & (ACK | SYN)) === ACK;
  // RFC 9293 §3.10.7.4: with a zero window, valid ACKs, URGs and RSTs are still processed.
  if (isPlainAck && start <= connection.rcvNxt) inputAck(connection, segment, start, io);
}

/** False when the segment must be dropped. */
function inputAck(
  connection: TcpConnection,
  segment: TcpSegment,
  start: number,
  io: TcpIo,
): boolean {
  const ack = ownPosition(connection, segment.ack);
  if (connection.state === 'syn-received') {
    if (ack !== 1) return false;
    connection.state = 'established';
    connection.retransmitAtUs = NEVER;
    startKeepalive(connection, io);
  }
  if (ack > connection.sndMax) {
    connection.ackNow = true;
    return false;
  }
  // RFC 7323 §2.2: the window of a SYN is never scaled.
  const scale = (segment.flags & SYN) !== 0 ? 0 : connection.sndScale;
  const window = segment.window * 2 ** scale;
  const isDuplicate =
    ack === connection.sndUna &&
    segmentLength(segment) === 0 &&
    window === connection.sndWnd &&
    connection.sndMax > connection.sndUna;
  noteSack(connection, segment);
  if (ack > connection.sndUna) advance(connection, ack, segment, io);
  else if (isDuplicate) countDuplicate(connection, io);
  updateWindow(connection, start, ack, window);
  return true;
}

function updateWindow(connection: TcpConnection, start: number, ack: number, window: number): void {
  if (ack < connection.sndUna) return;
  const isNewer =
    start > connection.sndWl1 || (start === connection.sndWl1 && ack >= connection.sndWl2);
  if (!isNewer) return;
  if (window > connection.sndWnd || ack > connection.sndWl2) connection.persistAtUs = NEVER;
  connection.sndWnd = window;
  connection.sndWl1 = start;
  connection.sndWl2 = ack;
}

function noteSack(connection: TcpConnection, segment: TcpSegment): void {
  if (!connection.sackOk) return;
  for (let i = 0; i < segment.sack.length; i += 2) {
    const left = ownPosition(connection, segment.sack[i]!);
    const right = ownPosition(connection, segment.sack[i + 1]!);
    const isValid = left < right && left > connection.sndUna && right <= connection.sndMax;
    if (isValid) connection.scoreboard.push(left, right);
  }
  // Bounded: a few blocks say enough.
  if (connection.scoreboard.length > 32)
    connection.scoreboard.splice(0, connection.scoreboard.length - 32);
}

function advance(connection: TcpConnection, ack: number, segment: TcpSegment, io: TcpIo): void {
  const acked = ack - connection.sndUna;
  measureRtt(connection, ack, segment, io);
  connection.sndUna = ack;
  connection.retries = 0;
  dropAcknowledged(connection, ack);
  connection.sndNxt = Math.max(connection.sndNxt, ack);
  connection.scoreboard = connection.scoreboard.filter(
    (_, i) => connection.scoreboard[i | 1]! > ack,
  );
  if (connection.recover >= 0 && ack >= connection.recover) {
    connection.cwnd = connection.ssthresh;
    connection.recover = -1;
    connection.duplicateAcks = 0;
  } else if (connection.recover >= 0) {
    retransmitFirst(connection, io);
  } else {
    connection.duplicateAcks = 0;
    connection.cwnd +=
      connection.cwnd < connection.ssthresh
        ? Math.min(acked, connection.mss)
        : Math.max(1, Math.floor((connection.mss * connection.mss) / connection.cwnd));
  }
  connection.retransmitAtUs =
    connection.sndUna < connection.sndMax ? io.nowUs + connection.rtoUs : NEVER;
  const fin = finPositionOf(connection);
  if (fin >= 0 && ack > fin) onFinAcknowledged(connection, io);
}

function dropAcknowledged(connection: TcpConnection, ack: number): void {
  const count = Math.min(ack - connection.sendBase, connection.sendCount);
  if (count <= 0) return;
  connection.sendBytes.copyWithin(0, count, connection.sendCount);
  connection.sendCount -= count;
  connection.sendBase += count;
}

function measureRtt(connection: TcpConnection, ack: number, segment: TcpSegment, io: TcpIo): void {
  let sampleUs = -1;
  if (
    segment.timestamps !== undefined &&
    connection.timestampsOk &&
    segment.timestamps.echo !== 0
  ) {
    sampleUs = ((timestampNow(connection, io.nowUs) - segment.timestamps.echo) | 0) * 1000;
  } else if (connection.timedPosition >= 0 && ack >= connection.timedPosition) {
    sampleUs = io.nowUs - connection.timedAtUs;
  }
  if (ack >= connection.timedPosition) connection.timedPosition = -1;
  if (sampleUs < 0 || sampleUs > 60_000_000) return;
  if (connection.srttUs === 0) {
    connection.srttUs = Math.max(sampleUs, 1);
    connection.rttvarUs = sampleUs / 2;
  } else {
    connection.rttvarUs += (Math.abs(sampleUs - connection.srttUs) - connection.rttvarUs) / 4;
    connection.srttUs += (sampleUs - connection.srttUs) / 8;
  }
  const rto = connection.srttUs + 4 * connection.rttvarUs;
  connection.rtoUs = Math.ceil(Math.min(Math.max(rto, RTO_MIN_US), RTO_MAX_US));
}

function countDuplicate(connection: TcpConnection, io: TcpIo): void {
  connection.duplicateAcks++;
  if (connection.duplicateAcks !== 3 || connection.recover >= 0) return;
  connection.ssthresh = Math.max(
    Math.floor((connection.sndMax - connection.sndUna) / 2),
    2 * connection.mss,
  );
  connection.cwnd = connection.ssthresh + 3 * connection.mss;
  connection.recover = connection.sndMax;
  io.note('retransmits by duplicate ACKs');
  retransmitFirst(connection, io);
}

function onFinAcknowledged(connection: TcpConnection, io: TcpIo): void {
  if (connection.state === 'fin-wait-1') connection.state = 'fin-wait-2';
  else if (connection.state === 'closing') enterTimeWait(connection, io);
  else if (connection.state === 'last-ack') endConnection(connection, '');
}

function enterTimeWait(connection: TcpConnection, io: TcpIo): void {
  connection.state = 'time-wait';
  connection.retransmitAtUs = NEVER;
  connection.persistAtUs = NEVER;
  connection.keepaliveAtUs = NEVER;
  connection.timeWaitUntilUs = io.nowUs + TIME_WAIT_US;
}

const RECEIVING_STATES = new Set(['established', 'fin-wait-1', 'fin-wait-2']);

function inputData(connection: TcpConnection, segment: TcpSegment, start: number, io: TcpIo): void {
  if (!RECEIVING_STATES.has(connection.state)) {
    if (segmentLength(segment) > 0) connection.ackNow = true;
    return;
  }
  const payload = segment.payload;
  const end = start + payload.length;
  if ((segment.flags & FIN) !== 0 && end <= connection.rcvEdge) connection.finPosition = end;
  if (payload.length > 0) {
    const from = Math.max(start, connection.rcvNxt);
    const to = Math.min(end, connection.rcvEdge);
    if (to > from)
      insertGap(connection, { start: from, bytes: payload.slice(from - start, to - start) });
    if (to < end) connection.ackNow = true;
  }
  const before = connection.rcvNxt;
  takeInOrder(connection);
  const isHalfClosed = connection.state !== 'established';
  if (isHalfClosed && connection.rcvNxt > before) io.note('receives after its own FIN');
  if (connection.rcvNxt === connection.finPosition) {
    connection.rcvNxt++;
    connection.ackNow = true;
    onFinReceived(connection, io);
  } else if (payload.length > 0) {
    const isOutOfOrder = connection.gaps.length > 0 || connection.rcvNxt === before;
    if (isOutOfOrder) {
      connection.lastGapStart = start;
      connection.ackNow = true;
    } else {
      scheduleAck(connection, io.nowUs);
    }
  } else if (segmentLength(segment) > 0) {
    connection.ackNow = true;
  }
}

function onFinReceived(connection: TcpConnection, io: TcpIo): void {
  if (connection.state === 'established') connection.state = 'close-wait';
  else if (connection.state === 'fin-wait-1') {
    connection.state = 'closing';
    io.note('closes simultaneously');
  } else if (connection.state === 'fin-wait-2') enterTimeWait(connection, io);
}

/** Adds received bytes; where they overlap what is there, the old ones stay. */
function insertGap(connection: TcpConnection, gap: Gap): void {
  const gaps: Gap[] = [];
  let at = gap.start;
  const end = gap.start + gap.bytes.length;
  const fill = (to: number): void => {
    if (to > at) gaps.push({ start: at, bytes: gap.bytes.slice(at - gap.start, to - gap.start) });
  };
  for (const old of connection.gaps) {
    const oldEnd = old.start + old.bytes.length;
    if (oldEnd <= at || old.start >= end) {
      if (old.start >= end) {
        fill(end);
        at = Math.max(at, end);
      }
      gaps.push(old);
      continue;
    }
    fill(Math.min(old.start, end));
    gaps.push(old);
    at = Math.max(at, oldEnd);
  }
  fill(end);
  gaps.sort((a, b) => a.start - b.start);
  connection.gaps = gaps;
}

function takeInOrder(connection: TcpConnection): void {
  while (connection.gaps[0] !== undefined && connection.gaps[0].start <= connection.rcvNxt) {
    const gap = connection.gaps.shift()!;
    const fresh = gap.bytes.subarray(connection.rcvNxt - gap.start);
    const joined = new Uint8Array(connection.received.length + fresh.length);
    joined.set(connection.received);
    joined.set(fresh, connection.received.length);
    connection.received = joined;
    connection.rcvNxt += fresh.length;
  }
}
