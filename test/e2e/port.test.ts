/**
 * Ports on real interfaces between real TCP stacks:
 *
 *     client ns: c0 --- pc :proxy ns: ps --- s0 :server ns
 *                       [packet:pc  packet:ps]   (this process)
 */
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import type { FrameBuffer } from '../../src/env/frame.ts';
import type { Port } from '../../src/env/port.ts';
import { VNET_HDR_BYTES } from '../../src/limits.ts';
import { PacketPort } from '../../src/port/packet.ts';
import { QemuPort } from '../../src/port/qemu.ts';
import { TapPort } from '../../src/port/tap.ts';
import { dissect, FrameInfo } from '../../src/wire/frame.ts';
import { readVnetHeader, VNET_GSO_TCPV4, VNET_NEEDS_CSUM } from '../../src/wire/vnet-hdr.ts';
import { tcpFrame, udpFrame } from '../support/frame-builder.ts';
import { inNetworkNamespace, Namespaces, whyNoNamespaces } from '../support/netns.ts';

const reason = whyNoNamespaces();
const title = reason === '' ? 'ports' : `ports (SKIPPED: ${reason})`;

const pause = (ms: number) => new Promise((resolve) => setTimeout(resolve, ms));

async function until(condition: () => boolean, timeoutMs = 5_000): Promise<void> {
  const end = performance.now() + timeoutMs;
  while (!condition()) {
    if (performance.now() > end) throw new Error('condition not met in time');
    await pause(10);
  }
}

type Observer = (buffer: FrameBuffer, offset: number, length: number) => void;

/** Passes everything that `from` receives to `to`. */
function forward(from: Port, to: Port, observe: Observer = () => {}): { errors: Error[] } {
  const errors: Error[] = [];
  const handler: Observer = (buffer, offset, length) => {
    observe(buffer, offset, length);
    to.send(buffer, offset, length);
  };
  from.start(
    () => {
      while (from.receive(handler) > 0) to.flush();
    },
    (error) => errors.push(error),
  );
  return { errors };
}

describe.skipIf(reason !== '')(title, () => {
  let spaces: Namespaces;
  let ports: Port[];

  const open = (name: string, spec: `packet:${string}` | `tap:${string}`) => {
    const interfaceName = spec.slice(spec.indexOf(':') + 1);
    const port: Port = inNetworkNamespace(spaces.path(name), () =>
      spec.startsWith('tap:') ? new TapPort(interfaceName) : new PacketPort(interfaceName),
    );
    ports.push(port);
    return port;
  };

  /** The topology above. */
  function build(clientMtu = 1_500, serverMtu = 1_500, serverHostMtu = serverMtu): void {
    spaces.add('client');
    spaces.add('proxy', true);
    spaces.add('server');
    spaces.join('client', 'c0', 'proxy', 'pc', clientMtu);
    spaces.join('proxy', 'ps', 'server', 's0', serverMtu);
    if (serverHostMtu !== serverMtu) {
      spaces.ip('server', `link set dev s0 mtu ${serverHostMtu}`);
    }
    for (const [name, device, last] of [
      ['client', 'c0', 1],
      ['server', 's0', 2],
    ] as const) {
      spaces.ip(name, `addr add 10.77.0.${last}/24 dev ${device}`);
      spaces.ip(name, `addr add fd77::${last}/64 dev ${device} nodad`);
    }
  }

  beforeEach(() => {
    spaces = new Namespaces();
    ports = [];
  });
  afterEach(async () => {
    for (const port of ports) await port.close();
    await spaces.close();
  });

  test.each(['10.77.0.2', 'fd77::2'])(
    'pass GSO frames whole between two stacks, to %s',
    async (host) => {
      build();
      const client = open('proxy', 'packet:pc');
      const server = open('proxy', 'packet:ps');
      const longest = { up: 0, down: 0 };
      const info = new FrameInfo();
      forward(client, server, (buffer, offset, length) => {
        dissect(buffer, offset, length, info);
        longest.up = Math.max(longest.up, info.payloadBytes);
      });
      forward(server, client, (_buffer, _offset, length) => {
        longest.down = Math.max(longest.down, length);
      });
      await spaces.serve('server', host, 7_001);
      const bytes = 60_000_000;
      expect(await spaces.endpoint('client', 'upload', host, 7_001, bytes)).toMatchObject({
        ok: true,
      });
      expect(await spaces.endpoint('client', 'download', host, 7_001, bytes)).toMatchObject({
        ok: true,
      });
      expect(longest.up).toBeGreaterThan(20_000);
      expect(longest.down).toBeGreaterThan(20_000);
      expect(client.counters.dropped).toEqual({});
      expect(server.counters.dropped).toEqual({});
    },
  );

  test('cut TCP frames that are longer than the outgoing MTU', async () => {
    // Both hosts believe in 9000 bytes; the proxy's own interface towards the server takes 1500 (and so does what
    // comes from there: only uploads work).
    build(9_000, 1_500, 9_000);
    const client = open('proxy', 'packet:pc');
    const server = open('proxy', 'packet:ps');
    let overlong = 0;
    const observe: Observer = (buffer, offset, length) => {
      const { gsoType } = readVnetHeader(buffer.view, offset - VNET_HDR_BYTES);
      if (gsoType === 0 && length > 1_514) overlong++;
    };
    forward(client, server, observe);
    forward(server, client);
    for (const host of ['10.77.0.2', 'fd77::2']) {
      await spaces.serve('server', host, 7_001);
      overlong = 0;
      // First one segment a frame, all of them overlong, then GSO frames of many segments of 8948.
      for (const segmentsMax of [1, 64]) {
        spaces.ip('client', `link set dev c0 gso_max_segs ${segmentsMax}`);
        expect(await spaces.endpoint('client', 'upload', host, 7_001, 8_000_000)).toMatchObject({
          ok: true,
        });
      }
      expect(overlong).toBeGreaterThanOrEqual(Math.floor(8_000_000 / 8_948));
    }
    expect(server.counters.dropped).toEqual({});
    // A datagram cannot be cut.
    const datagram = udpFrame({ payload: new Uint8Array(4_000) });
    server.send(datagram.buffer, datagram.offset, datagram.length);
    server.flush();
    expect(server.counters.dropped).toEqual({ 'too-long': 1 });
  });

  test('notice a smaller MTU while running', async () => {
    build(9_000, 9_000, 9_000);
    const client = open('proxy', 'packet:pc');
    const server = open('proxy', 'packet:ps');
    forward(client, server);
    forward(server, client);
    spaces.ip('proxy', 'link set dev ps mtu 1400');
    await spaces.serve('server', '10.77.0.2', 7_001);
    const words = ['upload', '10.77.0.2', 7_001, 4_000_000, 8_000] as const;
    expect(await spaces.endpoint('client', ...words)).toMatchObject({ ok: true });
    expect(server.counters.dropped).toEqual({});
  });

  test('keep VLAN tags, of plain and of GSO frames, with one tag and with two', async () => {
    build();
    const sender = open('client', 'packet:c0');
    const client = open('proxy', 'packet:pc');
    const server = open('proxy', 'packet:ps');
    const receiver = open('server', 'packet:s0');
    forward(client, server);
    forward(server, client);
    const received: string[] = [];
    const vlans: number[] = [];
    const gso: number[] = [];
    const info = new FrameInfo();
    const handler: Observer = (buffer, offset, length) => {
      dissect(buffer, offset, length, info);
      if (info.dstPort !== 40_312) return;
      received.push(Buffer.from(buffer.bytes.subarray(offset, offset + length)).toString('hex'));
      vlans.push(info.vlan);
      const vnet = readVnetHeader(buffer.view, offset - VNET_HDR_BYTES);
      gso.push(vnet.gsoType === VNET_GSO_TCPV4 ? vnet.gsoBytes : 0);
      if ((vnet.flags & VNET_NEEDS_CSUM) !== 0) {
        expect(vnet.csumStart).toBe(info.l4Offset - info.frameOffset);
      }
    };
    receiver.start(
      () => {
        while (receiver.receive(handler) > 0);
      },
      () => {},
    );
    const big = { partialChecksum: true, gsoType: VNET_GSO_TCPV4, gsoBytes: 1_400 };
    const frames = [
      tcpFrame({ vlan: 5, payload: 'one tag' }),
      tcpFrame({ vlan: 5 * 4096 + 6, payload: 'two tags' }),
      tcpFrame({ payload: 'none' }),
      tcpFrame({ vlan: 7, payload: new Uint8Array(30_000).fill(1), ...big }),
    ];
    for (const frame of frames) sender.send(frame.buffer, frame.offset, frame.length);
    sender.flush();
    await until(() => received.length >= frames.length);
    expect(vlans).toEqual([5, 5 * 4096 + 6, 0, 7]);
    expect(gso).toEqual([0, 0, 0, 1_400]);
    expect(received).toEqual(
      frames.map((frame) => {
        const end = frame.offset + frame.length;
        return Buffer.from(frame.buffer.bytes.subarray(frame.offset, end)).toString('hex');
      }),
    );
  });

  test('do not see what they send themselves', async () => {
    build();
    const port = open('proxy', 'packet:pc');
    let received = 0;
    const info = new FrameInfo();
    const handler: Observer = (buffer, offset, length) => {
      dissect(buffer, offset, length, info);
      // The client's own stack may say something, too.
      if (info.dstPort === 40_312) received++;
    };
    port.start(
      () => {
        while (port.receive(handler) > 0);
      },
      () => {},
    );
    const frame = tcpFrame({ payload: 'x' });
    port.send(frame.buffer, frame.offset, frame.length);
    port.flush();
    await pause(100);
    expect(port.counters.sentFrames).toBe(1);
    expect(received).toBe(0);
  });

  test('survive the link going down and up in the middle of a transfer', async () => {
    build();
    const client = open('proxy', 'packet:pc');
    const server = open('proxy', 'packet:ps');
    const { errors } = forward(client, server);
    forward(server, client);
    await spaces.serve('server', '10.77.0.2', 7_001);
    const transfer = spaces.endpoint('client', 'upload', '10.77.0.2', 7_001, 150_000_000);
    await until(() => client.counters.receivedBytes > 1_000_000);
    spaces.ip('proxy', 'link set dev pc down');
    await pause(400);
    const frozen = client.counters.receivedFrames;
    // Something for the client while its link is down.
    const frame = tcpFrame({ payload: 'lost' });
    client.send(frame.buffer, frame.offset, frame.length);
    client.flush();
    expect(client.counters.dropped['link-down']).toBeGreaterThan(0);
    await pause(100);
    expect(client.counters.receivedFrames).toBe(frozen);
    spaces.ip('proxy', 'link set dev pc up');
    expect(await transfer).toMatchObject({ ok: true });
    expect(errors).toEqual([]);
  });

  test('report a deleted interface once, and stay closed', async () => {
    build();
    const client = open('proxy', 'packet:pc');
    const server = open('proxy', 'packet:ps');
    const { errors } = forward(client, server);
    spaces.ip('proxy', 'link del dev pc');
    await until(() => errors.length > 0);
    await pause(300);
    expect(errors).toHaveLength(1);
    expect(errors[0]).toMatchObject({ code: 'COLO_ERR_PORT_GONE', path: 'pc' });
    const frame = tcpFrame({});
    client.send(frame.buffer, frame.offset, frame.length);
    client.flush();
    expect(client.counters.dropped['closed']).toBe(1);
    expect(client.receive(() => {})).toBe(0);
  });

  test('count what the kernel dropped because nobody read', async () => {
    build();
    const sender = open('client', 'packet:c0');
    const reader = open('proxy', 'packet:pc');
    // Started, but its owner does not read.
    reader.start(
      () => {},
      () => {},
    );
    const frame = udpFrame({ payload: new Uint8Array(1_400) });
    for (let count = 0; count < 40_000; count++) {
      sender.send(frame.buffer, frame.offset, frame.length);
    }
    sender.flush();
    await until(() => (reader.counters.dropped['kernel-queue-full'] ?? 0) > 0);
    let left = 0;
    while (reader.receive(() => left++) > 0);
    await until(() => left + (reader.counters.dropped['kernel-queue-full'] ?? 0) >= 40_000);
    expect(left).toBeGreaterThan(1_000);
  });

  test('a frame stream gives up a TCP peer whose host is gone', async () => {
    build();
    const streamAt = (name: string, isServer: boolean): QemuPort => {
      const address = { kind: 'tcp', family: 4, address: '10.77.0.2', port: 9_003 } as const;
      const port = inNetworkNamespace(spaces.path(name), () => {
        const made = new QemuPort({ name, address, isServer, hasVnetHeader: false });
        made.start(
          () => {},
          () => {},
        );
        return made;
      });
      ports.push(port);
      return port;
    };
    spaces.join('client', 'c1', 'server', 's1');
    spaces.ip('client', 'addr flush dev c0');
    spaces.ip('server', 'addr flush dev s0');
    spaces.ip('client', 'addr add 10.77.0.1/24 dev c1');
    spaces.ip('server', 'addr add 10.77.0.2/24 dev s1');
    const server = streamAt('server', true);
    const client = streamAt('client', false);
    await until(() => server.isConnected && client.isConnected);
    spaces.ip('server', 'link set dev s1 down');
    // The client has something on its way, the server has nothing.
    const frame = tcpFrame({ payload: 'lost' });
    client.send(frame.buffer, frame.offset, frame.length);
    client.flush();
    await until(() => !server.isConnected && !client.isConnected, 12_000);
  });

  test('join a tap device with a packet socket', async () => {
    build();
    const tap = open('client', 'tap:tap0');
    const server = open('proxy', 'packet:ps');
    spaces.ip('client', 'addr flush dev c0');
    spaces.ip('client', 'addr add 10.77.0.1/24 dev tap0');
    spaces.ip('client', 'addr add fd77::1/64 dev tap0 nodad');
    let longest = 0;
    const { errors } = forward(tap, server, (_buffer, _offset, length) => {
      longest = Math.max(longest, length);
    });
    forward(server, tap);
    for (const host of ['10.77.0.2', 'fd77::2']) {
      await spaces.serve('server', host, 7_001);
      for (const mode of ['upload', 'download']) {
        const result = await spaces.endpoint('client', mode, host, 7_001, 30_000_000);
        expect(result).toMatchObject({ ok: true });
      }
    }
    expect(longest).toBeGreaterThan(20_000);
    expect(tap.counters.dropped).toEqual({});
    spaces.ip('client', 'link del dev tap0');
    await until(() => errors.length > 0);
    expect(errors[0]).toMatchObject({ code: 'COLO_ERR_PORT_GONE', path: 'tap0' });
  });
});
