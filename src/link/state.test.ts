import { describe, expect, test } from 'vitest';
import { frameOf, nodeOf, Recorder } from '../../test/support/link-recorder.ts';
import { type Micros, NEVER } from '../base/time.ts';
import { LinkDecoder } from '../codec/link-decode.ts';
import { encodeHeartbeat } from '../codec/link-encode.ts';
import type { LocalNode, PeerHello } from '../env/link.ts';
import { LINK_FRAME_SECONDARY, type LinkMessage, type Role } from '../env/messages.ts';
import { FRAME_BYTES_MAX } from '../limits.ts';
import { LinkCounters } from './counters.ts';
import { SendBufferPool } from './send-queue.ts';
import {
  admitNewcomer,
  type LinkEnd,
  LinkSession,
  type LinkSessionConfig,
  type LinkSessionOutput,
} from './state.ts';

const TIMEOUT_US = 1_000_000;
const HEARTBEAT_US = TIMEOUT_US / 4;

type Overrides = Partial<LinkSessionConfig> &
  Partial<Pick<LinkSessionOutput, 'admit' | 'localNode'>>;

/** One end without a socket: what it writes lies in `out` until somebody carries it. */
class End {
  readonly heard = new Recorder();
  readonly counters = new LinkCounters();
  readonly ends: LinkEnd[] = [];
  out: { bytes: Uint8Array; onWritten: () => void }[] = [];
  readonly session: LinkSession;

  constructor(role: Role, overrides: Overrides = {}) {
    const config: LinkSessionConfig = {
      side: role === 'primary' ? 'listen' : 'connect',
      nodeId: (role === 'primary' ? '1' : '2').repeat(32),
      instance: 1,
      software: 'test',
      timeoutUs: TIMEOUT_US,
      handshakeTimeoutUs: 2_000_000,
      queueBytesMax: 1_000_000,
      ...overrides,
    };
    const output: LinkSessionOutput = {
      write: (bytes, onWritten) => this.out.push({ bytes, onWritten }),
      localNode: overrides.localNode ?? nodeOf(role),
      admit: overrides.admit ?? (() => undefined),
      onUp: (peer) => this.heard.onUp(peer),
      onEnd: (end) => this.ends.push(end),
      onFrame: (...frame) => this.heard.onFrame(...frame),
      onMessage: (message) => this.heard.onMessage(message),
      onBatchEnd: () => this.heard.onBatchEnd(),
    };
    this.session = new LinkSession(config, output, this.counters, new SendBufferPool());
  }

  /** Takes what was written, as the socket would. */
  take(): Uint8Array {
    const taken: number[] = [];
    while (this.out.length > 0) {
      const { bytes, onWritten } = this.out.shift()!;
      for (const byte of bytes) taken.push(byte);
      onWritten();
    }
    return Uint8Array.from(taken);
  }
}

function carry(from: End, to: End, nowUs: Micros): number {
  const bytes = from.take();
  if (bytes.length > 0) to.session.onBytes(bytes, nowUs);
  return bytes.length;
}

/** Both ends up at time `nowUs`, with nothing on the way. */
function pairUp(nowUs: Micros, primary = new End('primary'), secondary = new End('secondary')) {
  primary.session.onOpen(nowUs);
  secondary.session.onOpen(nowUs);
  carry(secondary, primary, nowUs);
  carry(primary, secondary, nowUs);
  carry(secondary, primary, nowUs);
  return { primary, secondary };
}

/** Lets time pass from deadline to deadline as a runner does, carrying both ways; stops after `endUs`. */
function run(
  primary: End,
  secondary: End,
  endUs: Micros,
  isCut = { toPrimary: false, toSecondary: false },
) {
  for (;;) {
    const dueUs = Math.min(primary.session.nextDeadlineUs(), secondary.session.nextDeadlineUs());
    if (dueUs > endUs) return;
    primary.session.onTick(dueUs);
    secondary.session.onTick(dueUs);
    if (isCut.toPrimary) secondary.take();
    else carry(secondary, primary, dueUs);
    if (isCut.toSecondary) primary.take();
    else carry(primary, secondary, dueUs);
  }
}

describe('handshake', () => {
  test('the listening end says nothing before it has heard a hello', () => {
    const primary = new End('primary');
    primary.session.onOpen(0);
    primary.session.onTick(1_999_999);
    expect(primary.out).toEqual([]);
    expect(primary.ends).toEqual([]);
    primary.session.onTick(2_000_000);
    expect(primary.ends).toMatchObject([{ code: 'handshake-timeout', wasUp: false }]);
    expect(primary.out).toEqual([]);
    expect(primary.counters.refused).toEqual({ 'handshake-timeout': 1 });
  });

  test('both ends come up with the hello of the other', () => {
    const { primary, secondary } = pairUp(5_000);
    expect(primary.heard.ups).toMatchObject([{ role: 'secondary', epoch: 7, instance: 1 }]);
    expect(secondary.heard.ups).toMatchObject([{ role: 'primary', heartbeatUs: HEARTBEAT_US }]);
    expect(primary.session.peer?.nodeId).toBe('2'.repeat(32));
    expect(primary.counters.ups).toBe(1);
  });

  test('the listening end is up when it has heard that its welcome has come, not before', () => {
    const [primary, secondary] = [new End('primary'), new End('secondary')];
    primary.session.onOpen(0);
    secondary.session.onOpen(0);
    carry(secondary, primary, 0);
    expect(primary.heard.ups).toEqual([]);
    expect(primary.session.peer).toBeUndefined();
    primary.session.onClosed('cut');
    expect(primary.ends).toMatchObject([{ code: 'closed', wasUp: false }]);
    expect(primary.heard.ups).toEqual([]);
  });

  test('a node that has taken over since its hello does not come up with what it said then', () => {
    let node: LocalNode = { role: 'secondary', epoch: 4, state: 'unprotected' };
    const [primary, secondary] = [
      new End('primary'),
      new End('secondary', { localNode: () => node }),
    ];
    primary.session.onOpen(0);
    secondary.session.onOpen(0);
    carry(secondary, primary, 0);
    node = { ...node, state: 'failed-over' };
    carry(primary, secondary, 0);
    expect(secondary.ends).toMatchObject([{ code: 'stale', wasUp: false }]);
    expect(carry(secondary, primary, 0)).toBe(0);
    expect(primary.heard.ups).toEqual([]);
    const again = pairUp(0, new End('primary'), new End('secondary', { localNode: () => node }));
    expect(again.primary.heard.ups).toMatchObject([{ state: 'failed-over' }]);
  });

  test('the same role at both ends is refused, and the other end hears why', () => {
    const listening = new End('primary');
    const other = new End('primary', { side: 'connect' });
    pairUp(0, listening, other);
    expect(listening.ends).toMatchObject([{ code: 'role', wasUp: false, isGraceful: true }]);
    expect(other.ends).toMatchObject([
      { code: 'peer-refused-role', text: 'refused by the peer: both nodes are primary' },
    ]);
    expect([...listening.heard.ups, ...other.heard.ups]).toEqual([]);
  });

  test('another version is refused with both versions named', () => {
    const primary = new End('primary');
    const secondary = new End('secondary');
    primary.session.onOpen(0);
    secondary.session.onOpen(0);
    const hello = secondary.take();
    hello[8 + 9] = 9;
    primary.session.onBytes(hello, 0);
    expect(primary.ends).toMatchObject([{ code: 'version', isGraceful: true }]);
    expect(primary.ends[0]?.text).toBe('this node speaks link version 2, its peer version 9');
    carry(primary, secondary, 0);
    expect(secondary.ends).toMatchObject([{ code: 'peer-refused-version' }]);
    expect(secondary.ends[0]?.text).toContain('version 2, its peer version 9');
  });

  test('garbage ends the connection without an answer', () => {
    const primary = new End('primary');
    primary.session.onOpen(0);
    primary.session.onBytes(new TextEncoder().encode('GET / HTTP/1.1\r\n\r\n'), 0);
    expect(primary.ends).toMatchObject([{ code: 'garbage', wasUp: false, isGraceful: false }]);
    expect(primary.out).toEqual([]);
  });

  test('a hello to the connecting end, or a welcome to the listening one, is garbage', () => {
    const first = new End('secondary');
    const second = new End('primary', { side: 'connect' });
    first.session.onOpen(0);
    second.session.onOpen(0);
    first.session.onBytes(second.take(), 0);
    expect(first.ends).toMatchObject([{ code: 'garbage' }]);
  });

  test('a refusal by the admission reaches the newcomer', () => {
    const primary = new End('primary', {
      admit: () => ({ reason: 'duplicate', text: 'another peer is connected' }),
    });
    const { secondary } = pairUp(0, primary);
    expect(primary.counters.refused).toEqual({ duplicate: 1 });
    expect(secondary.ends).toMatchObject([{ code: 'peer-refused-duplicate' }]);
  });

  test('a connection that closes during the handshake is counted as refused, not as down', () => {
    const primary = new End('primary');
    primary.session.onOpen(0);
    primary.session.onClosed('gone');
    primary.session.onClosed('gone');
    expect(primary.ends).toMatchObject([{ code: 'closed', wasUp: false }]);
    expect(primary.counters.downs).toEqual({});
  });
});

describe('liveness', () => {
  test('heartbeats keep an idle link up, four a timeout', () => {
    const { primary, secondary } = pairUp(0);
    run(primary, secondary, 60 * TIMEOUT_US);
    expect([...primary.ends, ...secondary.ends]).toEqual([]);
    const heartbeats = (primary.counters.sentBytes - 60) / 32;
    expect(heartbeats).toBeGreaterThan(60 * 4 - 1);
    expect(heartbeats).toBeLessThan(60 * 4 + 5);
  });

  test('the end with the shorter timeout sets how often both send', () => {
    const { primary, secondary } = pairUp(0, new End('primary', { timeoutUs: 100_000 }));
    run(primary, secondary, 10_000_000);
    expect([...primary.ends, ...secondary.ends]).toEqual([]);
  });

  test('a hung peer is lost exactly when nothing came for the timeout', () => {
    const { primary, secondary } = pairUp(0);
    run(primary, secondary, 3_000_000);
    // The peer's last heartbeat came at 3 s; it is stopped, its socket stays open.
    const isCut = { toPrimary: true, toSecondary: false };
    run(primary, secondary, 3_999_999, isCut);
    expect(primary.ends).toEqual([]);
    expect(primary.session.nextDeadlineUs()).toBe(4_000_000);
    primary.session.onTick(4_000_000);
    expect(primary.ends).toMatchObject([
      { code: 'silent', text: 'silent for 1000 ms', wasUp: true },
    ]);
    expect(primary.counters.downs).toEqual({ silent: 1 });
    expect(primary.session.nextDeadlineUs()).toBe(NEVER);
    expect(primary.session.peer).toBeUndefined();
  });

  test('a half-open connection, one direction lost, is noticed by the end that hears nothing', () => {
    const { primary, secondary } = pairUp(0);
    run(primary, secondary, 5_000_000, { toPrimary: false, toSecondary: true });
    expect(secondary.ends).toMatchObject([{ code: 'silent' }]);
  });

  test('any bytes count as life, not only heartbeats', () => {
    const { primary, secondary } = pairUp(0);
    for (let nowUs = 900_000; nowUs < 5_000_000; nowUs += 900_000) {
      secondary.session.sendMessage({ type: 'reset', reason: '' });
      secondary.session.flush();
      carry(secondary, primary, nowUs);
      primary.session.onTick(nowUs);
    }
    expect(primary.ends).toEqual([]);
  });

  test('after a stall of this process the peer gets one heartbeat to be read, and no more', () => {
    const { primary, secondary } = pairUp(0);
    run(primary, secondary, 1_000_000);
    // Stopped for 10 s; the timer fires before the waiting bytes are read.
    secondary.session.onTick(1_250_000);
    primary.session.onTick(11_000_000);
    expect(primary.ends).toEqual([]);
    carry(secondary, primary, 11_000_100);
    primary.session.onTick(11_500_000);
    expect(primary.ends).toEqual([]);
    // Stopped again, and this time nothing was waiting.
    primary.session.onTick(30_000_000);
    expect(primary.ends).toEqual([]);
    primary.session.onTick(30_000_000 + HEARTBEAT_US);
    expect(primary.ends).toMatchObject([{ code: 'silent' }]);
  });

  test('stalls that go on do not excuse a dead peer for ever', () => {
    const { primary } = pairUp(0);
    for (let nowUs = 700_000; nowUs <= 3_500_000; nowUs += 700_000) primary.session.onTick(nowUs);
    expect(primary.ends).toMatchObject([{ code: 'silent' }]);
  });

  test('a peer that sends but takes nothing is lost after four timeouts', () => {
    const { primary } = pairUp(0);
    const beat = new Uint8Array(100);
    const memory = { bytes: beat, view: new DataView(beat.buffer) };
    const bytes = beat.subarray(
      0,
      encodeHeartbeat(memory, 0, { sentUs: 1, echoUs: 0, echoDelayUs: 0 }),
    );
    // Nobody takes what primary writes.
    let nowUs = 0;
    while (primary.ends.length === 0 && nowUs < 10_000_000) {
      nowUs += HEARTBEAT_US;
      primary.session.onBytes(bytes, nowUs);
      primary.session.onTick(nowUs);
    }
    expect(primary.ends).toMatchObject([{ code: 'not-reading' }]);
    expect(nowUs).toBeGreaterThanOrEqual(4 * TIMEOUT_US);
    expect(nowUs).toBeLessThanOrEqual(4 * TIMEOUT_US + 2 * HEARTBEAT_US);
  });

  test('the round-trip time leaves out how long the peer kept the echo', () => {
    const { primary, secondary } = pairUp(5_000);
    primary.session.onTick(5_000);
    carry(primary, secondary, 5_700);
    secondary.session.onTick(5_700);
    carry(secondary, primary, 6_500);
    // 700 us there, 800 us back, none kept.
    expect(primary.session.rttUs).toBe(1_500);
    const laterUs = 5_000 + HEARTBEAT_US;
    primary.session.onTick(laterUs);
    carry(primary, secondary, laterUs + 700);
    // Kept for 100 ms, until the secondary's own heartbeat is due.
    secondary.session.onTick(laterUs + 100_700);
    carry(secondary, primary, laterUs + 101_500);
    expect(primary.session.rttUs).toBe(1_500);
  });
});

describe('sending', () => {
  test('frames and messages keep their order, and each chunk is one batch', () => {
    const { primary, secondary } = pairUp(0);
    const { buffer, offset } = frameOf(1_400, 0x42);
    expect(secondary.session.sendFrame(LINK_FRAME_SECONDARY, 1, buffer, offset, 1_400)).toBe(true);
    secondary.session.sendMessage({ type: 'checkpoint-began', epoch: 2 });
    secondary.session.sendFrame(LINK_FRAME_SECONDARY, 2, buffer, offset, 1_400);
    expect(secondary.out).toEqual([]);
    secondary.session.flush();
    expect(secondary.out).toHaveLength(1);
    carry(secondary, primary, 0);
    expect(primary.heard.log).toEqual([
      'up',
      'batch-end',
      'frame 2',
      'checkpoint-began',
      'frame 2',
      'batch-end',
    ]);
    expect(primary.heard.frames.map((frame) => frame.epoch)).toEqual([1, 2]);
    expect(primary.counters).toMatchObject({ receivedFrames: 2, receivedMessages: 1 });
  });

  test('beyond the limit frames are dropped and counted, control messages are not', () => {
    const { primary, secondary } = pairUp(0);
    const { buffer, offset } = frameOf(60_000, 1);
    let sent = 0;
    while (secondary.session.sendFrame(LINK_FRAME_SECONDARY, 0, buffer, offset, 60_000)) sent++;
    expect(sent).toBe(16);
    expect(secondary.session.queueBytes).toBeLessThanOrEqual(1_000_000);
    expect(secondary.counters.dropped).toEqual({ 'queue-full': 1 });
    secondary.session.sendMessage({ type: 'reset', reason: 'still heard' });
    secondary.session.flush();
    carry(secondary, primary, 0);
    expect(primary.heard.frames).toHaveLength(16);
    expect(primary.heard.messages).toEqual([{ type: 'reset', reason: 'still heard' }]);
    expect(secondary.session.queueBytes).toBe(0);
  });

  test('control messages alone cannot fill the memory: the connection is given up', () => {
    const { primary } = pairUp(0);
    const reset: LinkMessage = { type: 'reset', reason: 'x'.repeat(1_000) };
    for (let index = 0; index < 3_000; index++) primary.session.sendMessage(reset);
    expect(primary.session.queueBytes).toBeLessThan(2_010_000);
    expect(primary.ends).toEqual([]);
    primary.session.onTick(HEARTBEAT_US);
    expect(primary.ends).toMatchObject([{ code: 'queue-overrun', wasUp: true }]);
  });

  test('a frame that is too long is refused before it is copied', () => {
    const { primary } = pairUp(0);
    const { buffer, offset } = frameOf(FRAME_BYTES_MAX + 1, 1);
    expect(primary.session.sendFrame(1, 0, buffer, offset, FRAME_BYTES_MAX)).toBe(true);
    expect(primary.session.sendFrame(1, 0, buffer, offset, FRAME_BYTES_MAX + 1)).toBe(false);
    expect(primary.counters.dropped).toEqual({ 'too-long': 1 });
  });

  test('a progress list longer than one message is split and complete', () => {
    const { primary, secondary } = pairUp(0);
    const entries = Array.from({ length: 2_500 }, (_, position) => ({
      ipVersion: 4,
      protocol: 6,
      vlan: 0,
      guestPort: 80,
      clientPort: 1_000,
      guestAddress: new Uint8Array(16),
      clientAddress: new Uint8Array(16),
      position,
    }));
    primary.session.sendMessage({ type: 'progress', entries });
    primary.session.flush();
    carry(primary, secondary, 0);
    expect(secondary.heard.messages).toHaveLength(3);
    const heard = secondary.heard.messages.flatMap((message) =>
      message.type === 'progress' ? message.entries.map((entry) => entry.position) : [],
    );
    expect(heard).toEqual(entries.map((entry) => entry.position));
  });

  test('flushes while a write is under way gather in one buffer', () => {
    const { primary } = pairUp(0);
    for (let index = 0; index < 1_000; index++) {
      primary.session.sendMessage({ type: 'reset', reason: '' });
      primary.session.flush();
    }
    // One write in the socket's hands; the rest waits together.
    expect(primary.out).toHaveLength(1);
    primary.out.shift()!.onWritten();
    expect(primary.out).toHaveLength(1);
    expect(primary.out[0]!.bytes.length).toBe(999 * 10);
  });
});

describe('ending', () => {
  test('goodbye is the last thing said, and closes the batch before it', () => {
    const { primary, secondary } = pairUp(0);
    const { buffer, offset } = frameOf(60, 1);
    primary.session.sendFrame(1, 0, buffer, offset, 60);
    primary.session.goodbye('shutting down');
    expect(primary.ends).toMatchObject([{ code: 'local', isGraceful: true }]);
    expect(primary.session.sendFrame(1, 0, buffer, offset, 60)).toBe(false);
    carry(primary, secondary, 0);
    expect(secondary.heard.log.slice(-2)).toEqual(['frame 1', 'batch-end']);
    expect(secondary.ends).toMatchObject([{ code: 'goodbye', text: 'goodbye: shutting down' }]);
  });

  test('bytes that break the protocol end the link and are counted', () => {
    const { primary } = pairUp(0);
    primary.session.onBytes(new Uint8Array(8).fill(0xff), 0);
    expect(primary.ends).toMatchObject([{ code: 'malformed', wasUp: true }]);
    expect(primary.counters.downs).toEqual({ malformed: 1 });
    // What comes later is nothing to it.
    primary.session.onBytes(new Uint8Array(8), 0);
    primary.session.onTick(NEVER);
    expect(primary.ends).toHaveLength(1);
  });

  test('nothing is heard of a connection that was ended from within a handler', () => {
    const primary = new End('primary');
    primary.heard.onMessage = () => primary.session.goodbye('enough');
    const { secondary } = pairUp(0, primary);
    const before = primary.heard.log.length;
    secondary.session.sendMessage({ type: 'reset', reason: '1' });
    secondary.session.sendMessage({ type: 'reset', reason: '2' });
    secondary.session.flush();
    carry(secondary, primary, 0);
    expect(primary.heard.log.slice(before)).toEqual([]);
    expect(primary.ends).toHaveLength(1);
  });
});

describe('admitNewcomer()', () => {
  const helloOf = (nodeId: string, instance: number): PeerHello => ({
    role: 'secondary',
    nodeId: nodeId.repeat(32),
    instance,
    epoch: 0,
    state: 'unprotected',
    software: '',
    heartbeatUs: 1,
    timeoutUs: 1,
  });
  const live = { peer: helloOf('a', 5), isSilent: false };

  test.each([
    ['nobody is connected', undefined, helloOf('b', 1), 'admit'],
    ['a stranger beside a live peer', live, helloOf('b', 9), 'refuse'],
    ['the same node, newer', live, helloOf('a', 6), 'replace'],
    ['the same node, the same connection again', live, helloOf('a', 5), 'refuse'],
    [
      'the same node, older (a connection that lay in the network)',
      live,
      helloOf('a', 4),
      'refuse',
    ],
    [
      'another node while the live one is silent',
      { ...live, isSilent: true },
      helloOf('b', 1),
      'replace',
    ],
  ] as const)('%s', (_what, connected, newcomer, verdict) => {
    expect(admitNewcomer(connected, newcomer)).toBe(verdict);
  });

  test('a peer is silent when two heartbeats are missing', () => {
    const { primary, secondary } = pairUp(0);
    run(primary, secondary, 1_000_000);
    expect(primary.session.isSilent(1_000_000 + 2 * HEARTBEAT_US)).toBe(false);
    expect(primary.session.isSilent(1_000_001 + 2 * HEARTBEAT_US)).toBe(true);
  });
});

test('the hello that a session sends is one that the decoder reads', () => {
  const secondary = new End('secondary');
  secondary.session.onOpen(0);
  const heard: PeerHello[] = [];
  const ignore = () => {};
  const decoder = new LinkDecoder({
    onHello: (hello) => heard.push(hello),
    onRefuse: ignore,
    onHeartbeat: ignore,
    onGoodbye: ignore,
    onFrame: ignore,
    onMessage: ignore,
    onBatchEnd: ignore,
  });
  expect(decoder.push(secondary.take())).toBeUndefined();
  expect(heard).toMatchObject([{ role: 'secondary', software: 'test', timeoutUs: TIMEOUT_US }]);
});
