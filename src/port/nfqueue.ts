/**
 * The port `nfqueue:NUM,tap=IF,bridge=IF`: the guest's tap stays in the host's bridge, and rules of iptables hand its IP packets over in
 * two packet queues of the kernel: NUM what the guest sends, NUM + 1 what goes to it. A packet waits in the kernel until its verdict;
 * it goes on its way as it came, or with the acknowledgement that the engine has lowered, or no further.
 *
 * ```text
 * guest -- tap -+- bridge -- rules: queue NUM ------> guest port receives ... net port sends: verdict -- bridge -- network
 *               |            ARP: a copy ----------->                         (what the engine built: a packet socket on the bridge)
 *               +<---------- rules: queue NUM + 1 <-- verdict: guest port sends ... net port receives <----------- network
 *                            ARP: a copy ------------------------------------------>
 * ```
 *
 * Both directions wait, because the engine sees each client frame before the guest does, and keeps those that come
 * between a checkpoint's begin and commit. ARP is no IP: the bridge carries it by itself, and the engine sees copies of it.
 *
 * A protected pair on 2 cores with Node 20.20 and Linux 6.18 (bench/lab.ts), against packet sockets: bulk transfers as fast (80 to 104 %),
 * 59 % of the requests a second over kept-alive connections, where each packet is a small one, 50 us more in a round trip.
 *
 * @module
 */
import { ColoError } from '../base/error.ts';
import type { FrameBuffer, FrameHandler, FrameKeeper } from '../env/frame.ts';
import type { Port, PortCounters } from '../env/port.ts';
import { PORT_SOCKET_BUFFER_BYTES } from '../limits.ts';
import { PacketSocket } from '../os/packet-socket.ts';
import { Bystander } from './bystander.ts';
import { countDrop, createPortCounters } from './counters.ts';
import { HardwareAddresses } from './hardware-addresses.ts';
import { KernelQueue } from './kernel-queue.ts';
import { Poller } from './poller.ts';
import { type LaneParts, type LaneShared, QueueLane } from './queue-lane.ts';
import { QueuedFrames } from './queued-frame.ts';
import { Sender } from './sender.ts';
import { VerdictBook } from './verdict-book.ts';

/** How often it is looked whether the interfaces are still there, and how large their frames may be. */
const CHECK_MS = 1_000;

/** What `nfqueue:` says. */
export interface NfqueueOptions {
  /** As the user wrote it. */
  readonly name: string;
  readonly queue: number;
  readonly tap: string;
  readonly bridge: string;
  /** What finds no room in the kernel passes unseen. */
  readonly failOpen: boolean;
}

/** One direction, and the sockets behind it. */
interface Direction {
  readonly lane: QueueLane;
  readonly queue: KernelQueue;
  readonly bystander: Bystander;
  readonly sender: Sender;
  readonly senderPoller: Poller;
  readonly socket: PacketSocket;
}

function makeDirection(
  socket: PacketSocket,
  parts: Omit<LaneParts, 'sender' | 'queue'>,
  queue: KernelQueue,
  bystander: Bystander,
): Direction {
  const poller = new Poller(socket.fd, {
    onReadable: () => {},
    onWritable: () => sender.retry(),
    onFailed: () => void socket.takeError(),
  });
  const sender = new Sender(
    {
      transmit: (vector, first, count) => socket.send(vector, first, count),
      mtu: () => socket.mtu(),
      wantWritable: (wanted) => poller.watchWritable(wanted),
      onLinkDown: () => {},
    },
    parts.sent,
  );
  const lane = new QueueLane({ ...parts, queue, sender });
  return { lane, queue, bystander, sender, senderPoller: poller, socket };
}

/** The two ports that a tap in a bridge makes. */
export class NfqueueTap {
  readonly guest: LanePort;
  readonly net: LanePort;
  readonly #directions: readonly Direction[];
  readonly #tap: PacketSocket;
  readonly #bridge: PacketSocket;
  readonly #shared: LaneShared;
  #timer: NodeJS.Timeout | undefined;
  #onClosed: ((error: Error) => void) | undefined;
  #closed = false;

  /** @throws ColoError COLO_ERR_NFQUEUE_OPEN, COLO_ERR_PACKET_OPEN */
  constructor(options: NfqueueOptions) {
    const { name, queue, tap, bridge, failOpen } = options;
    const undo: (() => void)[] = [];
    const open = <T extends { close(): void }>(make: () => T): T => {
      try {
        const made = make();
        undo.push(() => made.close());
        return made;
      } catch (error) {
        for (const close of undo) close();
        throw error;
      }
    };
    const packets = (place: string, frames: Parameters<typeof PacketSocket.open>[2]) =>
      open(() => PacketSocket.open(place, PORT_SOCKET_BUFFER_BYTES, frames));
    const heard = packets(tap, 'received-sample');
    const overheard = packets(tap, 'sent-besides-ip');
    this.#tap = packets(tap, 'none');
    this.#bridge = packets(bridge, 'none');
    const egress = open(() => new KernelQueue(queue, failOpen));
    const ingress = open(() => new KernelQueue(queue + 1, failOpen));
    const book = new VerdictBook((number, id) => (number === queue ? egress : ingress).drop(id));
    const mtu = Math.max(this.#tap.mtu(), 0);
    this.#shared = { book, frames: new QueuedFrames(), failOpen, mtu };
    const guest = createPortCounters();
    const net = createPortCounters();
    const guests = new HardwareAddresses();
    const clients = new HardwareAddresses();
    const shared = this.#shared;
    const ofGuest = new Bystander(heard, guests, clients, guest);
    const ofClients = new Bystander(overheard, clients, guests, net);
    const learnMore = (): void => {
      ofGuest.readAhead();
      ofClients.readAhead();
    };
    const egressParts = { shared, from: guests, to: clients, isIngress: false, learnMore };
    const ingressParts = { shared, from: clients, to: guests, isIngress: true, learnMore };
    const out = makeDirection(
      this.#bridge,
      { ...egressParts, received: guest, sent: net },
      egress,
      ofGuest,
    );
    const into = makeDirection(
      this.#tap,
      { ...ingressParts, received: net, sent: guest },
      ingress,
      ofClients,
    );
    this.#directions = [out, into];
    this.guest = new LanePort({
      name,
      counters: guest,
      from: out,
      to: into,
      tap: this,
      keeper: book,
    });
    this.net = new LanePort({ name, counters: net, from: into, to: out, tap: this, keeper: book });
  }

  /** @internal The first port that is started starts the watch over the interfaces. */
  watch(onClosed: (error: Error) => void): void {
    if (this.#onClosed !== undefined) return;
    this.#onClosed = onClosed;
    this.#timer = setInterval(() => this.#check(), CHECK_MS);
    this.#timer.unref();
  }

  /** Gives both queues up; the kernel drops what waits in them. */
  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    clearInterval(this.#timer);
    for (const port of [this.guest, this.net]) port.poller.close();
    for (const { queue, bystander, sender, senderPoller, socket } of this.#directions) {
      sender.close();
      senderPoller.close();
      bystander.close();
      queue.close();
      socket.close();
    }
  }

  get isClosed(): boolean {
    return this.#closed;
  }

  #check(): void {
    for (const { sender } of this.#directions) sender.refreshMtu();
    this.#shared.mtu = Math.max(this.#tap.mtu(), 0) || this.#shared.mtu;
    const gone = [this.#tap, this.#bridge].find((socket) => socket.isVanished());
    if (gone === undefined) return;
    const path = gone.interfaceName;
    this.close();
    const text = `Interface ${path} has been deleted or moved`;
    this.#onClosed?.(new ColoError('COLO_ERR_PORT_GONE', text, { path }));
  }
}

/** One of the two: receives from one direction, sends into the other. */
class LanePort implements Port {
  readonly name: string;
  readonly counters: PortCounters;
  readonly keeper: FrameKeeper;
  readonly #from: Direction;
  readonly #to: Direction;
  readonly #tap: NfqueueTap;
  /** Closed with the tap. */
  readonly poller: Poller;
  #onReadable: () => void = () => {};

  constructor(parts: {
    name: string;
    counters: PortCounters;
    from: Direction;
    to: Direction;
    tap: NfqueueTap;
    keeper: FrameKeeper;
  }) {
    this.name = parts.name;
    this.counters = parts.counters;
    this.keeper = parts.keeper;
    this.#from = parts.from;
    this.#to = parts.to;
    this.#tap = parts.tap;
    this.poller = new Poller(parts.from.queue.fd, {
      onReadable: () => this.#onReadable(),
      onWritable: () => {},
      onFailed: () => {},
    });
  }

  start(onReadable: () => void, onClosed: (error: Error) => void): void {
    this.#onReadable = onReadable;
    this.#tap.watch(onClosed);
    this.poller.watchReadable();
    this.#from.bystander.start(onReadable);
  }

  receive(handler: FrameHandler): number {
    if (this.#tap.isClosed) return 0;
    const { lane, bystander } = this.#from;
    const count = lane.receive(handler) + bystander.receive(handler);
    this.poller.answered(count === 0);
    return count;
  }

  send(buffer: FrameBuffer, offset: number, length: number): void {
    if (this.#tap.isClosed) countDrop(this.counters, 'closed');
    else this.#to.lane.send(buffer, offset, length);
  }

  flush(): void {
    if (!this.#tap.isClosed) this.#to.lane.flush();
  }

  close(): Promise<void> {
    this.#tap.close();
    return Promise.resolve();
  }
}
