import { describe, expect, test } from 'vitest';
import { Prng } from '../../base/prng.ts';
import { type Micros, NEVER } from '../../base/time.ts';
import { EventQueue } from '../event-queue.ts';
import { ClientApplication, expectedBytes, type SessionPlan } from '../host/client.ts';
import { content, FLAG_CLOSE, FLAG_READ_SLOWLY, FLAG_RESET } from '../host/content.ts';
import { createHostState, Host, type HostState } from '../host/host.ts';
import { GuestService, SERVICE_PORT } from '../host/service.ts';
import { completeOffload } from '../net/offload.ts';
import { type Impairments, Path } from '../net/path.ts';
import type { TcpOptions } from './connection.ts';

const TCP: TcpOptions = {
  mss: 1_460,
  windowScale: 3,
  sack: true,
  timestamps: true,
  receiveBytesMax: 60_000,
  delayedAck: true,
  gsoSegments: 4,
  probeWithByte: false,
  keepaliveUs: NEVER,
};

const CLEAN: Impairments = {
  delayUsMin: 100,
  delayUsMax: 300,
  loss: 0,
  duplicate: 0,
  reorder: 0,
  reorderUsMax: 5_000,
  fragmentLoss: 0,
  corrupt: 0,
};

const PLAN: SessionPlan = {
  requests: [
    { flags: 0, bodyBytes: 50_000, answerBytes: 70_000, seed: 1 },
    { flags: 0, bodyBytes: 10, answerBytes: 100, seed: 2 },
  ],
  ending: 'client-closes',
  isPipelined: false,
  pauseUs: 0,
  readBytes: 0,
  readEveryUs: 0,
  hasUrgent: false,
  closeAfterUs: 0,
};

function state(last: string, tcp: TcpOptions): HostState {
  return createHostState({
    mac: `0200000000${last}`,
    ip4: `0a0000${last}`,
    ip6: `fd0000000000000000000000000000${last}`,
    vlan: 0,
    mtu: 1_500,
    tcp,
    partialChecksums: true,
  });
}

/** A client and a guest with nothing but two paths between them. */
class Pair {
  readonly queue = new EventQueue();
  readonly application = new ClientApplication();
  readonly client: Host;
  readonly guest: Host;

  constructor(seed: number, impairments: Impairments, tcp: TcpOptions) {
    const prng = new Prng(seed);
    const toGuest = new Path('to-guest', impairments, this.queue, prng.fork(), (frame) =>
      this.guest.input(frame, this.queue.nowUs),
    );
    const toClient = new Path('to-client', impairments, this.queue, prng.fork(), (frame) =>
      this.client.input(frame, this.queue.nowUs),
    );
    this.client = new Host('client', state('02', tcp), this.application, prng.fork(), (frame) => {
      for (const part of completeOffload(frame)) toGuest.send(part);
    });
    const mood = {
      stuckUntilUs: 0,
      thinkUsMax: 1_000,
      divergence: 0,
      isHurried: false,
      randomPort: 0,
    };
    this.guest = new Host(
      'guest',
      state('01', tcp),
      new GuestService(mood),
      prng.fork(),
      (frame) => {
        for (const part of completeOffload(frame)) toClient.send(part);
      },
    );
    this.guest.state.listening.add(SERVICE_PORT);
  }

  /** Runs until nothing happens any more, or `untilUs`. */
  run(untilUs: Micros): void {
    for (;;) {
      const dueUs = Math.min(this.client.deadlineUs(), this.guest.deadlineUs());
      if (Math.min(dueUs, this.queue.nextUs()) > untilUs) return;
      if (this.queue.nextUs() <= dueUs) {
        this.queue.take()!.run();
      } else {
        this.queue.at(dueUs, 'timer', () => {
          if (this.client.deadlineUs() <= this.queue.nowUs) this.client.timers(this.queue.nowUs);
          if (this.guest.deadlineUs() <= this.queue.nowUs) this.guest.timers(this.queue.nowUs);
        });
        this.queue.take()!.run();
      }
    }
  }
}

function transfer(
  seed: number,
  impairments: Impairments,
  tcp: TcpOptions,
  guest: string,
  plan: SessionPlan,
): void {
  const pair = new Pair(seed, impairments, tcp);
  const session = pair.application.start(pair.client, guest, plan, 5_000);
  pair.run(600_000_000);
  const { state: tcpState, sndUna, sndNxt, rcvNxt } = session.connection;
  expect(
    [session.isDone, session.error],
    JSON.stringify({ tcpState, sndUna, sndNxt, rcvNxt }),
  ).toEqual([true, '']);
  expect(session.receivedCount).toBe(expectedBytes(plan));
  const expected = plan.requests.flatMap((request) => [
    ...content(request.seed, 0, request.answerBytes),
  ]);
  expect(session.received.slice(0, session.receivedCount)).toEqual(Uint8Array.from(expected));
  expect(pair.guest.state.application.damage).toBe(0);
  expect(pair.guest.state.connections.size).toBe(0);
}

describe('model TCP', () => {
  test('moves both directions and closes, IPv4', () => transfer(1, CLEAN, TCP, '0a000001', PLAN));

  test('moves both directions and closes, IPv6', () =>
    transfer(2, CLEAN, TCP, 'fd000000000000000000000000000001', PLAN));

  test('half close: the answer comes after the request’s end of stream', () =>
    transfer(3, CLEAN, TCP, '0a000001', {
      ...PLAN,
      ending: 'half-close-early',
      isPipelined: true,
    }));

  test('a slow reader closes the window and opens it again', () =>
    transfer(4, CLEAN, { ...TCP, receiveBytesMax: 8_000, windowScale: 0 }, '0a000001', {
      ...PLAN,
      readBytes: 1_000,
      readEveryUs: 20_000,
    }));

  test('a guest that reads slowly gets everything, with both kinds of window probe', () => {
    const requests = [{ ...PLAN.requests[0]!, flags: FLAG_READ_SLOWLY, bodyBytes: 20_000 }];
    for (const probeWithByte of [false, true]) {
      const tcp = { ...TCP, probeWithByte, receiveBytesMax: 4_000 };
      transfer(5, CLEAN, tcp, '0a000001', { ...PLAN, requests });
    }
  });

  test('a connection in the place of one in TIME-WAIT has nothing of what the service had not read', () => {
    const pair = new Pair(9, CLEAN, TCP);
    const [upload, small] = PLAN.requests;
    const requests = [
      { ...small!, flags: FLAG_CLOSE | FLAG_READ_SLOWLY, bodyBytes: 0, seed: 3 },
      { ...upload!, bodyBytes: 5_000 },
    ];
    const closed = { ...PLAN, requests, ending: 'guest-closes', isPipelined: true } as const;
    const first = pair.application.start(pair.client, '0a000001', closed, 5_000);
    pair.run(100_000);
    expect([first.isDone, first.error]).toEqual([true, '']);
    const [old] = pair.guest.state.connections.values();
    expect(old!.state).toBe('time-wait');
    expect(old!.received.length).toBeGreaterThan(1_000);
    const second = pair.application.start(pair.client, '0a000001', PLAN, 5_000);
    pair.run(102_000);
    expect([...pair.guest.state.connections.values()]).not.toContain(old);
    pair.run(600_000_000);
    expect([second.isDone, second.error]).toEqual([true, '']);
    expect(second.receivedCount).toBe(expectedBytes(PLAN));
    expect(pair.guest.state.application.damage).toBe(0);
  });

  test('a connection after one that the service has reset has nothing of what came then', () => {
    const pair = new Pair(10, CLEAN, TCP);
    const [upload, small] = PLAN.requests;
    const requests = [
      { ...small!, flags: FLAG_RESET, bodyBytes: 0 },
      { ...upload!, bodyBytes: 5_000 },
    ];
    const reset = { ...PLAN, requests, isPipelined: true };
    const first = pair.application.start(pair.client, '0a000001', reset, 5_000);
    pair.run(100_000);
    expect(first.error).toBe('reset');
    const second = pair.application.start(pair.client, '0a000001', PLAN, 5_000);
    pair.run(600_000_000);
    expect([second.isDone, second.error]).toEqual([true, '']);
    expect(second.receivedCount).toBe(expectedBytes(PLAN));
    expect(pair.guest.state.application.damage).toBe(0);
  });

  test.each(Array.from({ length: 60 }, (_, i) => i))(
    'recovers from loss, reordering, duplicates, damage: seed %i',
    (seed) => {
      const prng = new Prng(seed);
      const impairments = { ...CLEAN, loss: 0.08, duplicate: 0.05, reorder: 0.1, corrupt: 0.03 };
      const tcp: TcpOptions = {
        mss: prng.pick([536, 1_460]),
        windowScale: prng.pick([0, 2, 7]),
        sack: prng.chance(0.5),
        timestamps: prng.chance(0.5),
        receiveBytesMax: prng.pick([3_000, 20_000, 100_000]),
        delayedAck: prng.chance(0.5),
        gsoSegments: prng.pick([1, 8]),
        probeWithByte: prng.chance(0.5),
        keepaliveUs: NEVER,
      };
      transfer(
        seed,
        impairments,
        tcp,
        prng.pick(['0a000001', 'fd000000000000000000000000000001']),
        {
          ...PLAN,
          ending: prng.pick(['client-closes', 'half-close-early']),
          isPipelined: prng.chance(0.5),
        },
      );
    },
  );
});
