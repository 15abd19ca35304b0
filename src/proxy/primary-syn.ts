/**
 * Connection set-up as the primary sees it: both guests' SYN or SYN-ACK, and the options that bind the connection. The
 * client must be told only what both guests support.
 *
 * @module
 */
import { applyChecksumDelta, delta16, sumOfBytes } from '../rewrite/checksum-delta.ts';
import type { FrameInfo } from '../wire/frame.ts';
import type { Seq } from '../wire/seq.ts';
import { TCP_ACK, TCP_CHECKSUM } from '../wire/tcp.ts';
import { parseTcpOptions, TCP_OPTION_NOP, TcpOptions } from '../wire/tcp-options.ts';

/** Without an MSS option a peer assumes this (RFC 9293 §3.7.1, IPv4). */
const MSS_DEFAULT = 536;

const scratch = new TcpOptions();

export class SynOptions {
  readonly isSynAck: boolean;
  /** Bytes; 0: no option. */
  readonly mss: number;
  /** 0..14; -1: no option. */
  readonly windowScale: number;
  readonly sackPermitted: boolean;
  readonly timestamps: boolean;

  private constructor(info: FrameInfo, options: TcpOptions) {
    this.isSynAck = (info.tcpFlags & TCP_ACK) !== 0;
    this.mss = options.mss;
    this.windowScale = options.windowScale;
    this.sackPermitted = options.sackPermitted;
    this.timestamps = options.hasTimestamps;
  }

  /** Reads the options of a SYN or SYN-ACK. */
  static read(info: FrameInfo): SynOptions {
    parseTcpOptions(info.view, info.l4Offset + 20, info.l4Offset + info.tcpHeaderBytes, scratch);
    return new SynOptions(info, scratch);
  }

  /**
   * Can the client be told something that both guests keep? MSS and SACK-permitted can be lowered; window
   * scale and timestamps cannot (RFC 7323 binds both ends to what was said).
   */
  agreesWith(other: SynOptions): boolean {
    return (
      this.windowScale === other.windowScale &&
      this.timestamps === other.timestamps &&
      this.isSynAck === other.isSynAck
    );
  }
}

/** The two SYNs of one connection, through its incarnations. */
export class Handshake {
  /** The PVM's initial sequence number; undefined when the connection was open before it was seen. */
  primaryIsn: Seq | undefined = undefined;
  #primarySyn: SynOptions | undefined = undefined;
  /** The SVM's own, unadjusted. */
  #secondaryIsn: Seq | undefined = undefined;
  /** The SVM's SYN that was not matched with one of the PVM yet. */
  #secondarySyn: SynOptions | undefined = undefined;
  /** What the matched SYN of the SVM offered; undefined after a checkpoint, when there is nothing to lower. */
  #agreedSyn: SynOptions | undefined = undefined;
  /** Did the client's SYN or SYN-ACK offer window scaling (RFC 7323 §2.2)? undefined: not seen. */
  #clientScales: boolean | undefined = undefined;
  /** Have both guests sent their SYN: may the PVM's go? */
  matched = false;

  /** Is the PVM's SYN here and waits for the SVM's? */
  get isWaiting(): boolean {
    return this.#primarySyn !== undefined && !this.matched;
  }

  onClientSyn(info: FrameInfo): void {
    parseTcpOptions(info.view, info.l4Offset + 20, info.l4Offset + info.tcpHeaderBytes, scratch);
    this.#clientScales = scratch.windowScale >= 0;
  }

  /** Returns whether it begins a connection; a retransmission changes nothing. */
  onPrimarySyn(info: FrameInfo): boolean {
    if (this.primaryIsn === info.seq) return false;
    this.primaryIsn = info.seq;
    this.#primarySyn = SynOptions.read(info);
    this.#agreedSyn = undefined;
    this.matched = false;
    return true;
  }

  /** As `onPrimarySyn`, of the SVM. */
  onSecondarySyn(info: FrameInfo): boolean {
    if (this.#secondaryIsn === info.seq) return false;
    this.#secondaryIsn = info.seq;
    this.#secondarySyn = SynOptions.read(info);
    this.matched = false;
    return true;
  }

  /** Matches the two SYNs if both are here. */
  match(): 'waiting' | 'matched' | 'different' {
    if (this.#primarySyn === undefined || this.#secondarySyn === undefined) return 'waiting';
    const secondarySyn = this.#secondarySyn;
    this.#secondarySyn = undefined;
    if (!this.#primarySyn.agreesWith(secondarySyn)) return 'different';
    this.#agreedSyn = secondarySyn;
    this.matched = true;
    return 'matched';
  }

  /** A checkpoint was committed: the SVM has the PVM's connection. */
  adoptCheckpoint(): void {
    this.#secondaryIsn = this.primaryIsn;
    this.#secondarySyn = undefined;
    this.#agreedSyn = undefined;
    this.matched = this.primaryIsn !== undefined;
  }

  /** The guests' window shift, 0..14; it counts only when the client scales too. -1: not known. */
  windowShift(): number {
    const syn = this.#primarySyn;
    if (syn === undefined) return -1;
    if (syn.windowScale < 0) return 0;
    if (this.#clientScales !== undefined) return this.#clientScales ? syn.windowScale : 0;
    return syn.isSynAck ? syn.windowScale : -1;
  }

  /** Lowers the options of the PVM's SYN in place to what both guests support. */
  lower(info: FrameInfo): void {
    if (this.#primarySyn === undefined || this.#agreedSyn === undefined) return;
    lowerSynOptions(info, this.#primarySyn, this.#agreedSyn);
  }
}

/**
 * Lowers MSS and SACK-permitted of the PVM's SYN in place to what the SVM supports too, and mends the checksum.
 * `info` describes the frame.
 */
export function lowerSynOptions(info: FrameInfo, primary: SynOptions, secondary: SynOptions): void {
  const primaryMss = primary.mss === 0 ? MSS_DEFAULT : primary.mss;
  const secondaryMss = secondary.mss === 0 ? MSS_DEFAULT : secondary.mss;
  const lowersMss = primary.mss !== 0 && secondaryMss < primaryMss;
  const dropsSack = primary.sackPermitted && !secondary.sackPermitted;
  if (!lowersMss && !dropsSack) return;
  const { view, bytes } = info;
  parseTcpOptions(view, info.l4Offset + 20, info.l4Offset + info.tcpHeaderBytes, scratch);
  const checksumAt = info.l4Offset + TCP_CHECKSUM;
  if (lowersMss && scratch.mssOffset !== 0) {
    const at = scratch.mssOffset;
    const odd = ((at - info.l4Offset) & 1) === 1;
    view.setUint16(at, secondaryMss);
    if (!info.checksumPartial) {
      applyChecksumDelta(view, checksumAt, delta16(scratch.mss, secondaryMss, odd));
    }
  }
  if (dropsSack && scratch.sackPermittedOffset !== 0) {
    const at = scratch.sackPermittedOffset;
    const odd = ((at - info.l4Offset) & 1) === 1;
    const before = sumOfBytes(bytes, at, at + 2, odd);
    bytes.fill(TCP_OPTION_NOP, at, at + 2);
    const after = sumOfBytes(bytes, at, at + 2, odd);
    if (!info.checksumPartial) applyChecksumDelta(view, checksumAt, (~before & 0xffff) + after);
  }
}
