import { afterEach, describe, expect, it } from 'vitest';
import { type TestFrame, udpFrame } from '../../test/support/frame-builder.ts';
import type { Engine } from '../env/engine.ts';
import {
  LINK_FRAME_CLIENT,
  LINK_FRAME_PRIMARY_SYN,
  LINK_FRAME_SECONDARY,
  type LinkFrameKind,
  type LinkMessage,
  type Role,
} from '../env/messages.ts';
import { VNET_HDR_BYTES } from '../limits.ts';
import { MemoryPort } from '../port/memory.ts';
import { ForwardInput } from './forward-input.ts';

const turn = (): Promise<void> => new Promise((resolve) => setTimeout(resolve, 5));

/** A ForwardInput between a guest and a forward device that the test has the other ends of. */
class World {
  readonly guest: MemoryPort;
  readonly wire: MemoryPort;
  readonly input: ForwardInput;
  /** What came: of the guest `g`, of the other node its kind and epoch. */
  readonly heard: string[] = [];
  /** Of the other node's frames. */
  readonly marks: number[] = [];
  readonly answers: LinkMessage[] = [];
  epoch = 3;

  constructor(role: Role) {
    const [guest, guestFar] = MemoryPort.createPair('tap0');
    const [forward, forwardFar] = MemoryPort.createPair('eth1');
    this.guest = guestFar;
    this.wire = forwardFar;
    this.input = new ForwardInput(role, guest, forward, () => 1);
    const onPeerFrame: Engine['onPeerFrame'] = (kind, epoch, { view }, offset) => {
      this.heard.push(`${kind}@${epoch}`);
      this.marks.push(view.getUint16(offset - VNET_HDR_BYTES + 2, true));
    };
    this.input.engine = { epoch: this.epoch, onPeerFrame } as unknown as Engine;
  }

  async start(): Promise<this> {
    const read = (): void => {
      while (this.input.receive(() => this.heard.push('g')) > 0);
    };
    this.input.start(read, () => {});
    this.guest.start(
      () => {},
      () => {},
    );
    this.wire.start(
      () => {},
      () => {},
    );
    await this.input.link.start({
      onUp: () => this.heard.push('up'),
      onDown: () => this.heard.push('down'),
      onFrame: () => {},
      onMessage: (message) => this.answers.push(message),
      onBatchEnd: () => {},
    });
    await turn();
    return this;
  }

  async from(port: MemoryPort, frame: TestFrame = udpFrame({})): Promise<void> {
    port.send(frame.buffer, frame.offset, frame.length);
    port.flush();
    await turn();
  }

  async sendToPeer(kind: LinkFrameKind): Promise<number> {
    const { buffer, offset, length } = udpFrame({});
    this.input.link.sendFrame(kind, this.epoch, buffer, offset, length);
    this.input.flush();
    await turn();
    return this.wire.receive(() => {});
  }
}

describe('ForwardInput', () => {
  let world: World | undefined;
  afterEach(() => world?.input.close());

  it('has a peer from the start on, of whom nothing is known', async () => {
    world = await new World('primary').start();
    expect(world.heard).toEqual(['up']);
    expect(world.input.link.status()).toMatchObject({ connected: true, security: 'insecure' });
  });

  it('primary: mirrors the frames of clients and nothing else, and takes frames for those of the SVM', async () => {
    world = await new World('primary').start();
    expect(await world.sendToPeer(LINK_FRAME_CLIENT)).toBe(1);
    expect(await world.sendToPeer(LINK_FRAME_PRIMARY_SYN)).toBe(0);
    await world.from(world.wire);
    await world.from(world.guest);
    expect(world.heard).toEqual(['up', `${LINK_FRAME_SECONDARY}@3`, 'g']);
  });

  it('lets the guest port keep the packets of which copies are held', () => {
    const keeper = { onKept: () => {}, onForgotten: () => {} };
    const [guest] = MemoryPort.createPair('tap0');
    const [forward] = MemoryPort.createPair('eth1');
    const port = Object.assign(guest, { keeper });
    expect(new ForwardInput('primary', port, forward, () => 1).keeper).toBe(keeper);
  });

  it('primary: passes on neither the mark of a packet queue nor the hint of a kernel, which have the same place', async () => {
    world = await new World('primary').start();
    const frame = udpFrame({});
    const { buffer, offset, length } = frame;
    const mark = (view: DataView, at: number) => view.getUint16(at - VNET_HDR_BYTES + 2, true);
    const setMark = (value: number) =>
      buffer.view.setUint16(offset - VNET_HDR_BYTES + 2, value, true);
    setMark(66);
    await world.from(world.wire, frame);
    expect(world.marks).toEqual([0]);
    setMark(65_535);
    world.input.link.sendFrame(LINK_FRAME_CLIENT, world.epoch, buffer, offset, length);
    world.input.flush();
    await turn();
    const marks: number[] = [];
    world.wire.receive((received, at) => marks.push(mark(received.view, at)));
    expect(marks).toEqual([0]);
  });

  it('secondary: sends the output of the SVM, and takes frames for those of clients', async () => {
    world = await new World('secondary').start();
    expect(await world.sendToPeer(LINK_FRAME_SECONDARY)).toBe(1);
    await world.from(world.wire);
    expect(world.heard).toEqual(['up', `${LINK_FRAME_CLIENT}@3`]);
  });

  it('gives the guest what is for it', async () => {
    world = await new World('primary').start();
    const { buffer, offset, length } = udpFrame({});
    world.input.send(buffer, offset, length);
    world.input.flush();
    await turn();
    expect(world.guest.receive(() => {})).toBe(1);
  });

  it.each(['checkpoint-commit', 'checkpoint-abort'] as const)(
    'primary: leaves the frames of the SVM unread between the begin and the %s',
    async (type) => {
      world = await new World('primary').start();
      const { link } = world.input;
      link.sendMessage({ type: 'checkpoint-begin', epoch: 4 });
      await world.from(world.wire);
      await world.from(world.guest);
      expect(world.heard).toEqual(['up', 'g']);
      expect(world.answers).toEqual([{ type: 'checkpoint-began', epoch: 4 }]);
      link.sendMessage({ type, epoch: 4, reason: '' } as LinkMessage);
      await turn();
      expect(world.heard).toEqual(['up', 'g', `${LINK_FRAME_SECONDARY}@3`]);
    },
  );

  it('secondary: reads on during a checkpoint, the engine keeps what comes', async () => {
    world = await new World('secondary').start();
    world.input.link.sendMessage({ type: 'checkpoint-begin', epoch: 4 });
    await world.from(world.wire);
    expect(world.heard).toEqual(['up', `${LINK_FRAME_CLIENT}@3`]);
  });
});
