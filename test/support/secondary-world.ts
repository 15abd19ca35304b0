/**
 * A secondary engine with everything around it played by the test: the primary, the SVM, a client, time.
 *
 * @module
 */
import {
  LINK_FRAME_CLIENT,
  LINK_FRAME_PRIMARY_SYN,
  type LinkFrameKind,
  type ProgressEntry,
} from '../../src/env/messages.ts';
import { SECONDARY_DEFAULTS, type SecondaryConfig } from '../../src/proxy/config.ts';
import { SecondaryEngine } from '../../src/proxy/secondary.ts';
import { parseIp } from '../../src/wire/address.ts';
import { TCP_ACK, TCP_SYN } from '../../src/wire/tcp.ts';
import type { TcpOptionFields } from '../../src/wire/tcp-options.ts';
import {
  CLIENT_IP,
  CLIENT_MAC,
  GUEST_IP,
  GUEST_MAC,
  type TcpFrameFields,
  type TestFrame,
  tcpFrame,
} from './frame-builder.ts';
import { type PeerFrame, RecordingOutput } from './recording-output.ts';

export const CLIENT_ISN = 5_000;
/** The PVM's numbers wrap soon. */
export const PRIMARY_ISN = 0xffff_ff00;
export const SECONDARY_ISN = 77_000;
/** What the two SYN-ACKs carry as TSval. */
export const PRIMARY_TSVAL = 900_000;
export const SECONDARY_TSVAL = 20_000;

/** `at` counts from the first byte of the guest's stream. */
export function primarySeq(at: number): number {
  return (PRIMARY_ISN + 1 + at) >>> 0;
}
export function secondarySeq(at: number): number {
  return (SECONDARY_ISN + 1 + at) >>> 0;
}

/** A segment of the client to the guest. */
export function fromClient(fields: TcpFrameFields = {}): TestFrame {
  return tcpFrame({
    srcMac: CLIENT_MAC,
    dstMac: GUEST_MAC,
    src: CLIENT_IP,
    dst: GUEST_IP,
    srcPort: 40_312,
    dstPort: 80,
    seq: CLIENT_ISN + 1,
    ...fields,
  });
}

/** A segment of the SVM in its own numbers. */
export function fromSvm(at: number, payload: string, fields: TcpFrameFields = {}): TestFrame {
  return tcpFrame({ seq: secondarySeq(at), ack: CLIENT_ISN + 1, payload, ...fields });
}

export class SecondaryWorld {
  readonly out = new RecordingOutput();
  readonly engine: SecondaryEngine;
  nowUs = 1_000_000;

  constructor(config: Partial<SecondaryConfig> = {}) {
    this.engine = new SecondaryEngine({ ...SECONDARY_DEFAULTS, ...config }, this.out, this.nowUs);
  }

  /** What a frame of the link made the engine give to the SVM. */
  peer(kind: LinkFrameKind, frame: TestFrame, epoch = this.engine.epoch): TestFrame[] {
    const { buffer, offset, length } = frame;
    this.engine.onPeerFrame(kind, epoch, buffer, offset, length, this.nowUs);
    return this.takeGuest();
  }

  client(frame: TestFrame): TestFrame[] {
    return this.peer(LINK_FRAME_CLIENT, frame);
  }

  primarySyn(frame: TestFrame): void {
    this.peer(LINK_FRAME_PRIMARY_SYN, frame);
  }

  /** What a frame of the SVM made the engine give to the primary. */
  svm(frame: TestFrame): PeerFrame[] {
    this.engine.onGuestFrame(frame.buffer, frame.offset, frame.length, this.nowUs);
    return this.takePeer();
  }

  /** What a frame of the SVM made the engine give to the network. */
  serve(frame: TestFrame): TestFrame[] {
    this.svm(frame);
    return this.out.takeNet();
  }

  /** What a frame of the network made the engine give to the SVM. */
  net(frame: TestFrame): TestFrame[] {
    this.engine.onNetFrame(frame.buffer, frame.offset, frame.length, this.nowUs);
    return this.takeGuest();
  }

  takeGuest(): TestFrame[] {
    this.engine.flush(this.nowUs);
    return this.out.guest.splice(0);
  }

  takePeer(): PeerFrame[] {
    this.engine.flush(this.nowUs);
    return this.out.peerFrames.splice(0);
  }

  begin(epoch = this.engine.epoch + 1): void {
    this.engine.onPeerMessage({ type: 'checkpoint-begin', epoch }, this.nowUs);
    this.engine.flush(this.nowUs);
  }

  commit(epoch = this.engine.epoch + 1): void {
    this.engine.onPeerMessage({ type: 'checkpoint-commit', epoch }, this.nowUs);
    this.engine.flush(this.nowUs);
  }

  /** The primary tells how far a flow was released. */
  progress(entry: Partial<ProgressEntry> & { readonly position: number }): void {
    const message = {
      type: 'progress' as const,
      entries: [
        {
          ipVersion: 4,
          protocol: 6,
          vlan: 0,
          guestPort: 80,
          clientPort: 40_312,
          guestAddress: address(GUEST_IP),
          clientAddress: address(CLIENT_IP),
          ...entry,
        },
      ],
    };
    this.engine.onPeerMessage(message, this.nowUs);
    this.engine.flush(this.nowUs);
  }

  /** Peer up, first checkpoint committed. */
  protect(): this {
    this.engine.onPeerUp(0, this.nowUs);
    this.begin();
    this.commit();
    this.out.takeMessages();
    return this;
  }

  /** A connection that the client has opened, both ISNs learned from the two SYN-ACKs. */
  open(useTimestamps = false): this {
    const options = (tsval: number, tsecr: number): TcpOptionFields =>
      useTimestamps ? { mss: 1_460, timestamps: { tsval, tsecr } } : { mss: 1_460 };
    this.client(fromClient({ seq: CLIENT_ISN, flags: TCP_SYN, options: options(100, 0) }));
    const synAck = { flags: TCP_SYN | TCP_ACK, ack: CLIENT_ISN + 1 };
    this.primarySyn(
      tcpFrame({ ...synAck, seq: PRIMARY_ISN, options: options(PRIMARY_TSVAL, 100) }),
    );
    this.svm(tcpFrame({ ...synAck, seq: SECONDARY_ISN, options: options(SECONDARY_TSVAL, 100) }));
    const timestamps = useTimestamps ? { tsval: 101, tsecr: PRIMARY_TSVAL } : undefined;
    this.client(
      fromClient({ ack: primarySeq(0), ...(timestamps ? { options: { timestamps } } : {}) }),
    );
    return this;
  }

  /** The primary dies, this node takes over; returns what went to the network at once. */
  failover(): TestFrame[] {
    this.engine.onPeerDown('silent', this.nowUs);
    const result = this.engine.failover(false, this.nowUs);
    if (!result.ok) throw new Error(result.error);
    this.engine.flush(this.nowUs);
    return this.out.takeNet();
  }

  /** Lets time pass as a runner does: ticks when they are due. */
  pass(us: number): void {
    const endUs = this.nowUs + us;
    for (;;) {
      const nextUs = this.engine.nextDeadlineUs();
      if (nextUs > endUs) break;
      this.nowUs = Math.max(this.nowUs, nextUs);
      this.engine.onTick(this.nowUs);
    }
    this.nowUs = endUs;
  }

  dropped(name: string): number {
    return this.engine.status(this.nowUs).dropped[name] ?? 0;
  }

  counter(name: string): number {
    return this.engine.status(this.nowUs).counters[name] ?? 0;
  }
}

/** Sixteen bytes, IPv4 in the first four. */
export function address(text: string): Uint8Array {
  const bytes = new Uint8Array(16);
  bytes.set(parseIp(text) ?? []);
  return bytes;
}
