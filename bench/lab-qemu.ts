/**
 * The lab's two guests protected by QEMU 7.2's own COLO objects instead of by colo-proxy, for `lab.ts`: filter-mirror,
 * filter-redirector and colo-compare on the primary node, filter-redirector and filter-rewriter on the secondary, on the
 * same queues as in QEMU's docs/COLO-FT.txt. No virtual machine runs in it:
 *
 *     client - switch - pn:br0 - qnet0 [net - hub - guest] pvm:eth0     filters on `net`; colo-compare in its own thread
 *                          |
 *                       pn:eth1
 *                          |  TCP: copies of the client's frames, frames of the secondary guest
 *                       sn:eth1
 *                          |
 *                          sn: - qnet0 [net - hub - guest] svm:eth0     filters on `net`; qnet0 is in no bridge
 *
 * A netdev is what a tap device is to QEMU; its filters see "tx" (what it has read from the device) and "rx" (what is to
 * be written to it). With a hub and a second tap in the place of the guest's network card, both queues mean the same as
 * with a card.
 *
 * GSO frames pass whole, as they do between a real guest's virtio card and colo-compare with `vnet_hdr_support`. A tap
 * keeps the virtio-net header of its frames only if a network card has once asked for it: so each tap gets one, which is
 * unplugged before the hub takes its place. (On taps without, every frame is cut to the MTU by the kernel, and its
 * checksum computed.)
 *
 * The guests' TCP timestamps are off, as they have to be with filter-rewriter, which does not translate them.
 *
 * Checkpoint requests go to a client in the place of Xen's toolstack (`notify_dev`). It counts them and answers at once,
 * whereupon QEMU releases what it holds: as if a checkpoint took no time. No state is copied, so the secondary guest
 * goes on from where it is.
 *
 * @module
 */
import type { ChildProcess } from 'node:child_process';
import { closeSync, mkdirSync, openSync, readFileSync, writeFileSync } from 'node:fs';
import { connect, type Socket } from 'node:net';
import { join } from 'node:path';
import { NOTIFY_CHECKPOINT, NOTIFY_DO_CHECKPOINT, NotifyDecoder } from '../src/codec/notify.ts';
import { Clients } from '../src/lab/clients.ts';
import { monotonicMs, sleep } from '../src/lab/clock.ts';
import { GuestProcess } from '../src/lab/guest-process.ts';
import type { Namespace } from '../src/lab/netns.ts';
import { QEMU } from '../src/lab/qemu/image.ts';
import {
  addHost,
  buildTopology,
  closeTopology,
  GUEST_MAC,
  PEER_ADDRESSES,
  type Topology,
} from '../src/lab/topology.ts';
import { TUN_F_CSUM, TUN_F_TSO4, TUN_F_TSO6, TUNSETOFFLOAD } from '../src/os/constants.ts';
import { checkResult, ioctlNumber } from '../src/os/libc.ts';
import { TapDevice } from '../src/os/tap.ts';
import { QmpClient } from '../src/vm/qmp-client.ts';

const START_MS_MAX = 15_000;
const POLL_MS = 10;
const COMMAND_US_MAX = 5_000_000;
/** As in docs/COLO-FT.txt. */
const PRIMARY_IN_PORT = 9_001;
const MIRROR_PORT = 9_003;
const SECONDARY_IN_PORT = 9_004;
const OUT_PORT = 9_005;
const SERVER = 'server=on,wait=off';
/** In frames of one connection and guest; QEMU drops what is over it. Its default (1024) is 1.5 MB of full frames. */
const QUEUE_FRAMES_MAX = 1_000_000;
const BIOS_BYTES = 65_536;
const RESET_VECTOR = BIOS_BYTES - 16;

/** Firmware of one instruction: HLT, with interrupts off. */
function writeBios(path: string): void {
  const bios = new Uint8Array(BIOS_BYTES);
  bios[RESET_VECTOR] = 0xf4;
  writeFileSync(path, bios);
}

/** Waits. @throws Error when it does not come in time */
async function until(what: string, condition: () => boolean): Promise<void> {
  const endMs = monotonicMs() + START_MS_MAX;
  while (!condition()) {
    if (monotonicMs() > endMs) throw new Error(`not in time: ${what}`);
    await sleep(POLL_MS);
  }
}

/** A tap device in the place of the cable between a guest and its node: what the guest sends is read from it. */
function plugTap(guest: Namespace, node: Namespace): TapDevice {
  node.ip(['link del tap0']);
  const tap = guest.within(() => TapDevice.open('eth0'));
  // Not up before it is silent.
  guest.ip(['link set eth0 down']);
  addHost(guest, 'guest', GUEST_MAC);
  return tap;
}

interface ProcessOptions {
  readonly name: 'primary' | 'secondary';
  readonly directory: string;
  readonly node: Namespace;
  readonly guest: Namespace;
  /** Chardevs and objects; the netdevs are called `net` and `guest`. */
  readonly words: readonly string[];
}

/** One QEMU between two taps. */
class TapQemu {
  readonly #logPath: string;
  readonly #name: string;
  readonly #taps: readonly TapDevice[];
  readonly #process: ChildProcess;
  readonly #monitor: QmpClient;

  constructor({ name, directory, node, guest, words }: ProcessOptions) {
    this.#name = name;
    this.#logPath = join(directory, `${name}.log`);
    const monitor = join(directory, `${name}.qmp`);
    const bios = join(directory, `${name}.bios`);
    writeBios(bios);
    const guestTap = plugTap(guest, node);
    const netTap = node.within(() => TapDevice.open('qnet0'));
    this.#taps = [guestTap, netTap];
    const machine = ['-machine', 'q35,accel=tcg', '-m', '1', '-bios', bios];
    machine.push('-nodefaults', '-no-user-config', '-display', 'none');
    // Cards are plugged and unplugged by the slot's own registers, which needs nobody inside.
    machine.push('-global', 'ICH9-LPC.acpi-pci-hotplug-with-bridge-support=off');
    machine.push('-device', 'pcie-root-port,id=root0,slot=1');
    machine.push('-qmp', `unix:${monitor},server=on,wait=off`);
    const netdevs = ['-netdev', 'tap,id=guest,fd=3', '-netdev', 'tap,id=net,fd=4'];
    const log = openSync(this.#logPath, 'a');
    this.#process = node.spawn(QEMU, [...machine, ...netdevs, ...words], {
      stdio: ['ignore', log, log, guestTap.fd, netTap.fd],
      detached: true,
    });
    closeSync(log);
    this.#monitor = new QmpClient({
      endpoint: { kind: 'unix', path: monitor },
      handlers: { onUp: () => {}, onDown: () => {}, onEvent: () => {} },
    });
    this.#monitor.start();
  }

  /** Joins the two taps. @throws Error with what QEMU has said */
  async begin(): Promise<void> {
    try {
      await until(`${this.#name} QEMU answers`, () => {
        if (this.#isGone) throw new Error(`the ${this.#name} QEMU has ended`);
        return this.#monitor.up;
      });
      for (const netdev of ['guest', 'net']) {
        const card = { id: `card-${netdev}`, bus: 'root0', netdev, romfile: '' };
        await this.#execute('device_add', { driver: 'virtio-net-pci', ...card });
        await this.#execute('device_del', { id: card.id });
        const port = { id: `port-${netdev}`, type: 'hubport', hubid: 0, netdev };
        await this.#execute('netdev_add', port);
      }
      // QEMU has switched them off, as no driver has asked for them.
      for (const { fd } of this.#taps) {
        const offloads = TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6;
        checkResult(ioctlNumber(fd, TUNSETOFFLOAD, offloads), {
          code: 'COLO_ERR_LAB_SETUP',
          syscall: 'ioctl TUNSETOFFLOAD',
          action: `Cannot set the offloads of the ${this.#name}'s taps`,
        });
      }
    } catch (cause) {
      const text = cause instanceof Error ? cause.message : String(cause);
      throw new Error(`${text}: ${this.log().trim()}`, { cause });
    }
  }

  log(): string {
    return readFileSync(this.#logPath, 'utf8');
  }

  async #execute(command: string, args: Record<string, unknown>): Promise<void> {
    const result = await this.#monitor.execute(command, args, COMMAND_US_MAX);
    if (!result.ok) throw new Error(`${this.#name} QEMU: ${command}: ${result.text}`);
  }

  get #isGone(): boolean {
    return this.#process.exitCode !== null || this.#process.signalCode !== null;
  }

  async close(): Promise<void> {
    this.#monitor.close();
    if (!this.#isGone) {
      const gone = new Promise((resolve) => this.#process.once('exit', resolve));
      this.#process.kill('SIGKILL');
      await gone;
    }
    for (const tap of this.#taps) tap.close();
  }
}

/** Takes colo-compare's requests and grants them. */
class Grantor {
  /** Requests so far. */
  requests = 0;
  readonly #socket: Socket;
  readonly #decoder = new NotifyDecoder();

  constructor(path: string) {
    this.#socket = connect(path);
    this.#socket.on('error', () => {});
    this.#socket.on('data', (chunk) => this.#onData(chunk));
  }

  get up(): boolean {
    return this.#socket.readyState === 'open';
  }

  #onData(chunk: Buffer): void {
    const { texts } = this.#decoder.push(chunk);
    const count = texts.filter((text) => text === NOTIFY_DO_CHECKPOINT).length;
    if (count === 0) return;
    this.requests += count;
    // With `vnet_hdr_support` colo-compare wants the length of a virtio-net header here too, though it sends none.
    const frame = Buffer.alloc(8 + NOTIFY_CHECKPOINT.length);
    frame.writeUInt32BE(NOTIFY_CHECKPOINT.length);
    frame.write(NOTIFY_CHECKPOINT, 8, 'latin1');
    this.#socket.write(frame);
  }

  close(): void {
    this.#socket.destroy();
  }
}

/** Words of QEMU's command line for a primary or a secondary. */
class Wiring {
  readonly words: string[] = [];

  /** Between objects of one QEMU. */
  local(id: string, port: number, more: string): this {
    return this.#socket(id, '127.0.0.1', port, more);
  }

  /** Between the nodes; the primary listens. */
  remote(id: string, port: number, more: string): this {
    return this.#socket(id, PEER_ADDRESSES.pn, port, more);
  }

  #socket(id: string, host: string, port: number, more: string): this {
    this.words.push('-chardev', `socket,id=${id},host=${host},port=${port},nodelay=on,${more}`);
    return this;
  }

  object(text: string): this {
    this.words.push('-object', `${text},vnet_hdr_support=on`);
    return this;
  }
}

function primaryWords(notifyPath: string): string[] {
  const wiring = new Wiring()
    .remote('mirror0', MIRROR_PORT, SERVER)
    .remote('compare1', SECONDARY_IN_PORT, SERVER)
    .local('compare0', PRIMARY_IN_PORT, SERVER)
    .local('compare0-0', PRIMARY_IN_PORT, 'server=off')
    .local('compare_out', OUT_PORT, SERVER)
    .local('compare_out0', OUT_PORT, 'server=off');
  wiring.words.push('-chardev', `socket,id=notify,path=${notifyPath},${SERVER}`);
  wiring.words.push('-object', 'iothread,id=iothread1');
  const inputs = 'primary_in=compare0-0,secondary_in=compare1,outdev=compare_out0';
  const more = `notify_dev=notify,iothread=iothread1,max_queue_size=${QUEUE_FRAMES_MAX}`;
  return wiring
    .object('filter-mirror,id=m0,netdev=net,queue=tx,outdev=mirror0')
    .object('filter-redirector,id=redire0,netdev=net,queue=rx,indev=compare_out')
    .object('filter-redirector,id=redire1,netdev=net,queue=rx,outdev=compare0')
    .object(`colo-compare,id=comp0,${inputs},${more}`).words;
}

function secondaryWords(): string[] {
  return new Wiring()
    .remote('red0', MIRROR_PORT, 'reconnect=1')
    .remote('red1', SECONDARY_IN_PORT, 'reconnect=1')
    .object('filter-redirector,id=f1,netdev=net,queue=tx,indev=red0')
    .object('filter-redirector,id=f2,netdev=net,queue=rx,outdev=red1')
    .object('filter-rewriter,id=rew0,netdev=net,queue=all').words;
}

/** Both guests, their nodes, and clients. */
export class QemuPair {
  readonly topology: Topology;
  readonly clients: Clients;
  readonly #guests: readonly GuestProcess[];
  readonly #primary: TapQemu;
  readonly #secondary: TapQemu;
  readonly #notifyPath: string;
  #grantor: Grantor | undefined;

  /** Builds everything and waits until the client reaches the guest. @throws Error */
  static async start(directory: string): Promise<QemuPair> {
    const pair = new QemuPair(directory);
    try {
      await pair.#begin();
      return pair;
    } catch (error) {
      await pair.close();
      throw error;
    }
  }

  private constructor(directory: string) {
    mkdirSync(directory, { recursive: true });
    this.topology = buildTopology({ impaired: false, plain: true });
    const { client, pn, sn, pvm, svm } = this.topology;
    // filter-rewriter translates none, and Linux refuses a handshake that echoes another time than the guest's own.
    for (const guest of [pvm, svm]) guest.sysctl({ 'ipv4/tcp_timestamps': 0 });
    this.#notifyPath = join(directory, 'notify');
    const words = primaryWords(this.#notifyPath);
    this.#primary = new TapQemu({ name: 'primary', directory, node: pn, guest: pvm, words });
    pn.ip(['link set qnet0 master br0']);
    const others = secondaryWords();
    const secondary = { node: sn, guest: svm, words: others } as const;
    this.#secondary = new TapQemu({ name: 'secondary', directory, ...secondary });
    this.#guests = [new GuestProcess(pvm), new GuestProcess(svm)];
    this.clients = new Clients(client, 4);
  }

  async #begin(): Promise<void> {
    await Promise.all([
      ...this.#guests.map((guest) => guest.ready),
      this.clients.ready,
      this.#primary.begin(),
      this.#secondary.begin(),
    ]);
    const grantor = new Grantor(this.#notifyPath);
    this.#grantor = grantor;
    await until('colo-compare takes a client', () => grantor.up);
    if (!(await this.clients.reachGuest())) {
      const logs = this.#primary.log() + this.#secondary.log();
      throw new Error(`the client does not reach the guest: ${logs.trim()}`);
    }
  }

  /** Checkpoints that colo-compare has asked for so far. */
  get requests(): number {
    return this.#grantor?.requests ?? 0;
  }

  async close(): Promise<void> {
    this.#grantor?.close();
    const processes = [...this.#guests.map((guest) => guest.kill()), this.clients.kill()];
    await Promise.all([...processes, this.#primary.close(), this.#secondary.close()]);
    closeTopology(this.topology);
  }
}
