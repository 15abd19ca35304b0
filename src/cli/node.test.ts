import { afterEach, describe, expect, it } from 'vitest';
import {
  BorrowingPort,
  FakeEngine,
  FakeLink,
  FakeVm,
  PEER,
} from '../../test/support/fake-engine.ts';
import { checkpointRequest } from '../../test/support/recording-node.ts';
import { SILENT_LOG } from '../../test/support/silent-log.ts';
import { AssertionError } from '../base/assert.ts';
import { ColoError } from '../base/error.ts';
import type { FrameBuffer } from '../env/frame.ts';
import type { Role } from '../env/messages.ts';
import { VNET_HDR_BYTES } from '../limits.ts';
import { EventRing } from '../observe/events.ts';
import { nowUs } from '../os/clock.ts';
import { MemoryPort } from '../port/memory.ts';
import { PeerLossArbiter } from '../vm/arbiter.ts';
import { parsePeerLossSpec } from '../vm/spec.ts';
import { NodeRunner } from './node.ts';

/** The far end of one of the node's ports: what a client or a guest sees. */
class Outside {
  readonly received: number[] = [];
  readonly port: MemoryPort;

  constructor(port: MemoryPort) {
    this.port = port;
    const read = (): void => {
      while (
        port.receive((buffer, offset, length) => {
          const frame = buffer.bytes.subarray(offset, offset + length);
          // A frame is 60 bytes of one value; anything else was spoilt on its way.
          this.received.push(frame.every((byte) => byte === frame[0]) ? (frame[0] ?? -1) : -1);
        }) > 0
      );
    };
    port.start(read, () => undefined);
  }

  send(...values: number[]): void {
    for (const value of values) {
      const bytes = new Uint8Array(VNET_HDR_BYTES + 60).fill(value, VNET_HDR_BYTES);
      const buffer: FrameBuffer = { bytes, view: new DataView(bytes.buffer) };
      this.port.send(buffer, VNET_HDR_BYTES, 60);
    }
    this.port.flush();
  }
}

class World {
  readonly link = new FakeLink();
  readonly vm = new FakeVm();
  readonly events = new EventRing();
  readonly client: Outside;
  readonly guest: Outside;
  readonly guestPort: MemoryPort;
  readonly runner: NodeRunner;
  engine!: FakeEngine;

  constructor(role: Role, answerTimeoutUs = 1_000_000, onPeerLoss?: string) {
    const [netPort, clientEnd] = MemoryPort.createPair('net');
    const [guestPort, guestEnd] = MemoryPort.createPair('guest');
    this.guestPort = guestPort;
    this.runner = new NodeRunner({
      netPort: new BorrowingPort(netPort),
      guestPort: new BorrowingPort(guestPort),
      link: this.link,
      vm: this.vm,
      log: SILENT_LOG,
      events: this.events,
      nowUs,
      createEngine: (output) => {
        this.engine = new FakeEngine(role, output);
        return this.engine;
      },
      ...(onPeerLoss !== undefined && {
        createArbiter: (actions) =>
          new PeerLossArbiter({ role, spec: parsePeerLossSpec(role, onPeerLoss), actions }),
      }),
      version: '0.0.0',
      answerTimeoutUs,
    });
    this.client = new Outside(clientEnd);
    this.guest = new Outside(guestEnd);
  }
}

let world: World;
async function start(role: Role, answerTimeoutUs?: number, onPeerLoss?: string): Promise<World> {
  world = new World(role, answerTimeoutUs, onPeerLoss);
  await world.runner.start();
  return world;
}
afterEach(async () => {
  await world.runner.stop('test is over');
});

const turn = (): Promise<void> => new Promise((resolve) => setTimeout(resolve, 5));
async function until(condition: () => boolean): Promise<void> {
  const endMs = performance.now() + 5_000;
  while (!condition()) {
    if (performance.now() > endMs) throw new Error('condition did not come true');
    await turn();
  }
}

describe('NodeRunner.batchUs', () => {
  it('is of the batch under way, also after a port has had nothing', async () => {
    const { guest, guestPort, runner } = await start('primary');
    const times: number[] = [];
    const receive = guestPort.receive.bind(guestPort);
    guestPort.receive = (handler) => {
      times.push(runner.batchUs);
      return receive(handler);
    };
    guest.send(1);
    await turn();
    const laterUs = nowUs();
    const index = times.length;
    expect(index).toBeGreaterThan(1);
    guest.send(2);
    await turn();
    expect(times[index]).toBeGreaterThanOrEqual(laterUs);
  });
});

describe('NodeRunner and a port that is never empty', () => {
  it('takes no more in one turn of the event loop, however long that lasts', async () => {
    const { guest, guestPort } = await start('primary');
    let receives = 0;
    const receive = guestPort.receive.bind(guestPort);
    guestPort.receive = (handler) => {
      receives++;
      return receive(handler);
    };
    const frames = Array.from({ length: 64 * 100 }, (_, index) => index & 0xff);
    guest.send(...frames);
    const perTurn: number[] = [];
    while (world.client.received.length < frames.length) {
      const before = receives;
      await new Promise((resolve) => setImmediate(resolve));
      perTurn.push(receives - before);
    }
    expect(Math.max(...perTurn)).toBe(4);
    expect(world.client.received).toEqual(frames);
  });
});

describe('NodeRunner and a lost peer', () => {
  const decisions = (): unknown[] =>
    world.runner
      .events(100)
      .filter(({ kind }) => kind === 'arbitration')
      .map(({ fields }) => fields?.['decision']);

  it('releases at once by default, and tells the VM layer of the decision', async () => {
    const { engine, link, vm } = await start('primary', undefined, 'release');
    link.handlers?.onUp(PEER);
    link.handlers?.onDown('silent');
    expect(engine.calls).toContain('peer-down silent');
    expect(decisions()).toEqual(['release']);
    expect(vm.seen).toContain('arbitration');
  });

  it('holds until the arbiter says yes', async () => {
    const { engine, link } = await start('primary', undefined, 'exec:true');
    link.handlers?.onUp(PEER);
    link.handlers?.onDown('silent');
    expect(engine.calls).toContain('peer-down silent, hold');
    expect(engine.calls).not.toContain('peer-down peer lost: silent');
    await until(() => engine.calls.includes('peer-down peer lost: silent'));
    expect(decisions()).toEqual(['ask', 'release']);
  });

  it('does not release what it holds by leaving', async () => {
    const { engine, link, runner } = await start('primary', undefined, 'hold');
    link.handlers?.onUp(PEER);
    link.handlers?.onDown('silent');
    await runner.stop('over');
    expect(engine.state).toBe('protected');
    expect(engine.calls.filter((call) => call.startsWith('reset'))).toEqual([]);
  });

  it('lets the secondary take over, and says when the engine refuses', async () => {
    const { engine, link } = await start('secondary', undefined, 'failover');
    engine.answers['failover'] = { ok: false, error: 'no state was committed' };
    link.handlers?.onUp(PEER);
    link.handlers?.onDown('silent');
    await until(() => decisions().length === 2);
    expect(engine.calls).toContain('failover false');
    expect(decisions()).toEqual(['failover', 'refused']);
  });

  it('ends a primary whose guest is dead, and resets a secondary', async () => {
    const primary = await start('primary');
    primary.vm.events?.guestLost('QEMU is dead');
    expect(await primary.runner.ended).toMatchObject({ exitCode: 71 });
    expect(primary.engine.calls.filter((call) => call.startsWith('reset'))).toEqual([]);
    const secondary = await start('secondary');
    secondary.vm.events?.guestLost('QEMU is dead');
    expect(secondary.engine.calls).toContain('reset QEMU is dead');
  });

  it('ends a primary whose peer has taken over, rather than let both serve', async () => {
    const { engine, link, runner } = await start('primary');
    link.handlers?.onUp({ ...PEER, state: 'failed-over' });
    expect(await runner.ended).toMatchObject({
      exitCode: 71,
      error: { code: 'COLO_ERR_PEER_SERVES' },
    });
    expect(engine.calls).not.toContain('peer-up');
    expect(decisions()).toEqual(['end']);
  });

  it('decides nothing when it leaves itself', async () => {
    const { link, runner } = await start('secondary', undefined, 'failover');
    link.handlers?.onUp(PEER);
    await runner.stop('over');
    expect(decisions()).toEqual([]);
  });
});

describe('NodeRunner frames', () => {
  it('carries frames both ways, and sends them before the engine is called again', async () => {
    const { client, guest, engine } = await start('primary');
    const values = Array.from({ length: 1_000 }, (_, index) => index % 251);
    client.send(...values);
    guest.send(...values);
    await until(() => guest.received.length === 1_000 && client.received.length === 1_000);
    // A late flush would have sent the engine's spoilt memory: -1 here, or 0xee.
    expect(guest.received).toEqual(values);
    expect(client.received).toEqual(values);
    const batches = engine.calls.filter((call) => call === 'flush').length;
    expect(batches).toBeLessThan(100); // batches, not a flush for each frame
  });

  it('gives the peer a turn while a port has frames without end', async () => {
    const { client, guest, engine, link } = await start('primary');
    client.send(...Array.from({ length: 2_000 }, () => 1));
    setImmediate(() => link.receive({ type: 'checkpoint-request', cause: 'limit', text: '' }));
    await until(() => guest.received.length === 2_000);
    const at = engine.calls.indexOf('peer-message checkpoint-request');
    expect(at).toBeGreaterThan(0);
    expect(engine.calls.slice(at).filter((call) => call === 'net').length).toBeGreaterThan(500);
  });

  it('flushes frames of the peer when the link says that its batch has ended', async () => {
    const { guest, link } = await start('secondary');
    const bytes = new Uint8Array(VNET_HDR_BYTES + 60).fill(9, VNET_HDR_BYTES);
    const buffer = { bytes, view: new DataView(bytes.buffer) };
    bytes.set([0x34, 0x12], 2); // the peer's hint of how long the headers are, or a mark of its port
    link.handlers?.onFrame(1, 0, buffer, VNET_HDR_BYTES, 60);
    expect([...bytes.subarray(0, VNET_HDR_BYTES)]).toEqual(new Array(VNET_HDR_BYTES).fill(0));
    link.handlers?.onBatchEnd();
    bytes.fill(0xaa); // the lent memory is used again
    await until(() => guest.received.length === 1);
    expect(guest.received).toEqual([9]);
  });

  it('ticks the engine at its deadline', async () => {
    const { engine, client } = await start('primary');
    const dueUs = nowUs() + 30_000;
    engine.deadlineUs = dueUs;
    client.send(1); // any batch makes the runner look
    await until(() => engine.tickedUs >= 0);
    expect(engine.tickedUs).toBeGreaterThanOrEqual(dueUs);
    expect(engine.tickedUs).toBeLessThan(dueUs + 2_000_000);
  });

  it('moves its timer forward when an earlier deadline appears', async () => {
    const { engine, client } = await start('primary');
    engine.deadlineUs = nowUs() + 60_000_000;
    client.send(1);
    await turn();
    const dueUs = nowUs() + 10_000;
    engine.deadlineUs = dueUs;
    client.send(1);
    await until(() => engine.tickedUs >= 0);
    expect(engine.tickedUs).toBeGreaterThanOrEqual(dueUs);
  });
});

describe('NodeRunner checkpoints', () => {
  it('begin drains the guest before the engine begins', async () => {
    const { guest, engine, runner, link } = await start('primary');
    guest.send(...Array.from({ length: 200 }, () => 1));
    const answer = runner.checkpointBegin(); // in the same turn: the port has told nobody yet
    const begin = engine.calls.indexOf('begin');
    expect(engine.calls.slice(0, begin).filter((call) => call === 'guest')).toHaveLength(200);
    link.receive({ type: 'checkpoint-began', epoch: 8 });
    expect(await answer).toEqual({ ok: true });
  });

  it('begin answers only when the peer has begun', async () => {
    const { runner, link } = await start('primary');
    let isAnswered = false;
    const answer = runner.checkpointBegin().finally(() => {
      isAnswered = true;
    });
    await turn();
    expect(isAnswered).toBe(false);
    link.receive({ type: 'checkpoint-began', epoch: 8 });
    expect(await answer).toEqual({ ok: true });
    expect(await runner.checkpointBegin()).toEqual({ ok: true }); // idempotent: begun already
  });

  it('commit answers only when the peer has committed', async () => {
    const { runner, link } = await start('primary');
    const begin = runner.checkpointBegin();
    link.receive({ type: 'checkpoint-began', epoch: 8 });
    await begin;
    let isAnswered = false;
    const answer = runner.checkpointCommit().finally(() => {
      isAnswered = true;
    });
    await turn();
    expect(isAnswered).toBe(false);
    link.receive({ type: 'checkpoint-committed', epoch: 8 });
    expect(await answer).toEqual({ ok: true });
  });

  it('a commit without a begin drains the guest, too', async () => {
    const { guest, engine, runner } = await start('primary');
    guest.send(1, 2, 3);
    void runner.checkpointCommit();
    expect(engine.calls.slice(0, engine.calls.indexOf('commit'))).toContain('guest');
  });

  it('a commit after a begin leaves output of the new epoch in the port', async () => {
    const { guest, engine, runner } = await start('primary');
    void runner.checkpointBegin();
    guest.send(1, 2, 3);
    void runner.checkpointCommit();
    expect(engine.calls).not.toContain('guest');
  });

  it('refuses a begin that the peer does not answer in time', async () => {
    const { runner } = await start('primary', 20_000);
    const answer = await runner.checkpointBegin();
    expect(answer).toEqual({ ok: false, error: 'The peer has not answered within 20 ms' });
  });

  it('refuses a begin whose peer is lost meanwhile, with the reason', async () => {
    const { runner, link } = await start('primary');
    link.handlers?.onUp(PEER);
    const answer = runner.checkpointBegin();
    link.handlers?.onDown('silent for 1000 ms');
    expect(await answer).toEqual({
      ok: false,
      error: 'Checkpoint not completed: silent for 1000 ms',
    });
  });

  it('passes on what the engine refuses', async () => {
    const { runner, engine } = await start('primary');
    engine.answers['begin'] = { ok: false, error: 'no secondary' };
    expect(await runner.checkpointBegin()).toEqual({ ok: false, error: 'no secondary' });
  });

  it('a secondary drains its guest before it is told of the begin', async () => {
    const { guest, engine, link } = await start('secondary');
    guest.send(...Array.from({ length: 100 }, () => 1));
    link.receive({ type: 'checkpoint-begin', epoch: 8 });
    const begin = engine.calls.indexOf('peer-message checkpoint-begin');
    expect(engine.calls.slice(0, begin).filter((call) => call === 'guest')).toHaveLength(100);
  });

  it('hands requests to the VM layer after the batch, when the engine may be called', async () => {
    const { engine, vm, runner, client } = await start('primary');
    const calls: string[] = [];
    vm.onRequest = () => {
      calls.push(...engine.calls.slice(-1));
      void runner.checkpointBegin();
    };
    engine.output.requestCheckpoint(checkpointRequest(4));
    client.send(1);
    await until(() => vm.requests.length === 1);
    expect(calls).toEqual(['flush']);
    expect(engine.calls).toContain('begin');
  });
});

describe('NodeRunner events and status', () => {
  it('records events and shows them to the VM layer, but not its own reports', async () => {
    const { engine, vm, events, runner } = await start('primary');
    engine.emit('failover', 5);
    runner.report('QEMU stopped', { pid: 7 });
    expect(vm.seen).toEqual(['failover']);
    expect(events.list().map(({ kind, text }) => [kind, text])).toEqual([
      ['failover', 'failover'],
      ['vm', 'QEMU stopped'],
    ]);
  });

  it('status has the fields that outsiders rely on', async () => {
    const { runner } = await start('primary');
    const status = JSON.parse(JSON.stringify(runner.status()));
    expect(status).toMatchObject({
      role: 'primary',
      state: 'protected',
      reason: 'test',
      epoch: 7,
      peer: { connected: true, rttUs: 180 },
      flows: 0,
      held: { frames: 0, bytes: 0 },
      released: 5,
      compared: 4,
      dropped: { 'secondary-old-epoch': 3 },
      divergences: 1,
      checkpoints: { requested: 2, committed: 1 },
      latencyUs: { p50: 90, p99: 1_500, max: 2_000_000 },
      ports: {
        net: { name: 'memory:net.a', receivedFrames: 0 },
        guest: { name: 'memory:guest.a' },
      },
      link: { refused: { 'wrong-key': 2 } },
    });
  });
});

describe('NodeRunner end', () => {
  it('an assertion stops everything: not even the frames of that batch go out', async () => {
    const { engine, guest, client, runner, link } = await start('primary');
    engine.failure = new AssertionError('impossible');
    guest.send(1);
    const end = await runner.ended;
    expect(end).toMatchObject({ exitCode: 70, error: { message: 'impossible' } });
    engine.failure = undefined;
    guest.send(2, 3);
    await turn();
    expect(client.received).toEqual([]);
    expect(link.log.at(-1)).toBe('goodbye internal error');
    expect(await runner.reset('x')).toMatchObject({ ok: false });
  });

  it('any other exception of the engine counts as a bug, too', async () => {
    const { engine, guest, runner } = await start('secondary');
    engine.failure = new TypeError('undefined is not a frame');
    guest.send(1);
    expect((await runner.ended).exitCode).toBe(70);
  });

  it('a port that dies ends the node with the code of the operating system', async () => {
    const { guestPort, runner, vm } = await start('primary');
    guestPort.fail(new ColoError('COLO_ERR_PACKET_GONE', 'The interface is gone'));
    expect((await runner.ended).exitCode).toBe(71);
    expect(vm.isClosed).toBe(true);
  });

  it('a primary that leaves releases, says goodbye, and passes frames until the link is closed', async () => {
    const { link, client, guest, runner, engine } = await start('primary');
    link.handlers?.onUp(PEER);
    let closeLink: () => void = () => undefined;
    link.closing = new Promise((resolve) => {
      closeLink = resolve;
    });
    const stopped = runner.stop('shutting down');
    await turn();
    expect(link.log).toEqual(['reset', 'flush', 'goodbye shutting down']);
    expect(engine.calls).toContain('reset shutting down');
    guest.send(5);
    client.send(6);
    await until(() => client.received.length === 1 && guest.received.length === 1);
    closeLink();
    await stopped;
    expect((await runner.ended).exitCode).toBe(0);
    guest.send(7);
    await turn();
    expect(client.received).toEqual([5]);
  });

  it('does not open the link when it was told to leave while it started', async () => {
    world = new World('primary');
    let vmStarted: () => void = () => undefined;
    world.vm.starting = new Promise((resolve) => {
      vmStarted = resolve;
    });
    const started = world.runner.start();
    const stopped = world.runner.stop('shutting down');
    vmStarted();
    await Promise.all([started, stopped]);
    expect(world.link.handlers).toBeUndefined();
    expect((await world.runner.ended).exitCode).toBe(0);
  });

  it('refuses commands and forgets waiting ones when it leaves', async () => {
    const { runner } = await start('primary');
    const begin = runner.checkpointBegin();
    const stopped = runner.stop('shutting down');
    expect(await begin).toMatchObject({ ok: false });
    expect(await runner.failover(true)).toEqual({ ok: false, error: 'The node is leaving' });
    await stopped;
  });
});
