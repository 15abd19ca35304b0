/**
 * Connection set-up as the primary sees it: both guests' SYN or SYN-ACK, and the options that bind the connection. The
 * client must be told only what both guests support.
 *
 * @module
 */
import { hasBit, withBit } from '../base/bits.ts';
import { applyChecksumDelta, delta16, sumOfBytes } from '../rewrite/checksum-delta.ts';
import { isTransportChecksumRight } from '../wire/checksum.ts';
import type { FrameInfo } from '../wire/frame.ts';
import { type Seq, seqAdd } from '../wire/seq.ts';
import { TCP_ACK, TCP_CHECKSUM } from '../wire/tcp.ts';
import { parseTcpOptions, TCP_OPTION_NOP, TcpOptions } from '../wire/tcp-options.ts';

/** Without an MSS option a peer assumes this (RFC 9293 §3.7.1, IPv4). */
const MSS_DEFAULT = 536;

const scratch = new TcpOptions();

/**
 * The options of one SYN, in the bits of a 32-bit integer: two are kept for every connection.
 *
 * | bits | |
 * | --- | --- |
 * | 0-15 | MSS in bytes; 0: no option |
 * | 16-19 | window scale + 1; 0: no option |
 * | 20 | SACK permitted |
 * | 21 | timestamps |
 * | 22 | it is a SYN-ACK |
 * | 23 | always 1: 0 stands for "no SYN" |
 */
type SynOptions = number;

const NO_SYN: SynOptions = 0;
const SCALE_SHIFT = 16;
const SCALE_MASK = 0xf;
const SACK_PERMITTED = 1 << 20;
const TIMESTAMPS = 1 << 21;
const SYN_ACK = 1 << 22;
const PRESENT = 1 << 23;
/** What both guests must have said alike. */
const BINDING = (SCALE_MASK << SCALE_SHIFT) | TIMESTAMPS | SYN_ACK;

function readSyn(info: FrameInfo): SynOptions {
  parseTcpOptions(info.view, info.l4Offset + 20, info.l4Offset + info.tcpHeaderBytes, scratch);
  return (
    PRESENT |
    scratch.mss |
    ((scratch.windowScale + 1) << SCALE_SHIFT) |
    (scratch.sackPermitted ? SACK_PERMITTED : 0) |
    (scratch.hasTimestamps ? TIMESTAMPS : 0) |
    ((info.tcpFlags & TCP_ACK) !== 0 ? SYN_ACK : 0)
  );
}

/** 0..14; -1: no option. */
function windowScaleOf(syn: SynOptions): number {
  return ((syn >> SCALE_SHIFT) & SCALE_MASK) - 1;
}

/** Bytes; what a peer assumes when there is no option. */
function mssOf(syn: SynOptions): number {
  return syn & 0xffff || MSS_DEFAULT;
}

/**
 * Can the client be told something that both guests keep? MSS and SACK-permitted can be lowered; window
 * scale and timestamps cannot (RFC 7323 binds both ends to what was said).
 */
function agree(primary: SynOptions, secondary: SynOptions): boolean {
  return (primary & BINDING) === (secondary & BINDING);
}

// Bits of `Handshake`; the shift is of what `withScaling` writes.
const MATCHED = 1;
const HAS_SECONDARY_ISN = 2;
/** Does the client scale its windows in a connection that the guest opens (RFC 7323 §2.2)? undefined: its SYN-ACK or SYN was not seen. */
const CLIENT_SHIFT = 2;

/** Two bits of `bits`: 0 undefined, 1 false, 2 true. */
function scalingOf(bits: number, shift: number): boolean | undefined {
  const value = (bits >> shift) & 3;
  return value === 0 ? undefined : value === 2;
}

function withScaling(bits: number, shift: number, scales: boolean | undefined): number {
  const value = scales === undefined ? 0 : scales ? 2 : 1;
  return (bits & ~(3 << shift)) | (value << shift);
}

/** The two SYNs of one connection, through its incarnations. */
export class Handshake {
  #primaryIsn = 0;
  /** The SVM's own, unadjusted. */
  #secondaryIsn = 0;
  /** What the PVM's SYN-ACK acknowledges, and the SVM's. */
  #primaryAck = 0;
  #secondaryAck = 0;
  #primarySyn: SynOptions = NO_SYN;
  /** The SVM's SYN that was not matched with one of the PVM yet. */
  #secondarySyn: SynOptions = NO_SYN;
  /** What the matched SYN of the SVM offered; none after a checkpoint, when there is nothing to lower. */
  #agreedSyn: SynOptions = NO_SYN;
  #bits = 0;

  /** Have both guests sent their SYN: may the PVM's go? */
  get matched(): boolean {
    return hasBit(this.#bits, MATCHED);
  }

  set matched(value: boolean) {
    this.#bits = withBit(this.#bits, MATCHED, value);
  }

  /** The PVM's initial sequence number; undefined when the connection was open before it was seen. */
  get primaryIsn(): Seq | undefined {
    return this.#primarySyn === NO_SYN ? undefined : this.#primaryIsn >>> 0;
  }

  /** Is the PVM's SYN here and waits for the SVM's? */
  get isWaiting(): boolean {
    return this.#primarySyn !== NO_SYN && !this.matched;
  }

  /**
   * Is the SVM's SYN here and waits for the PVM's? Then what the SVM says is of that connection, and nothing of the one before on the
   * same ports, which the PVM may still have.
   */
  get isAhead(): boolean {
    return this.#secondarySyn !== NO_SYN;
  }

  /**
   * A SYN or SYN-ACK of the client. It counts only for the handshake that it is of: neither a damaged segment nor a forged one may
   * decide over the window of a connection that is open. Returns whether the window shift may have changed.
   */
  onClientSyn(info: FrameInfo): boolean {
    const isOpening = this.#primarySyn !== NO_SYN && (this.#primarySyn & SYN_ACK) === 0;
    if (!isOpening || scalingOf(this.#bits, CLIENT_SHIFT) !== undefined) return false;
    const isAnswer = (info.tcpFlags & TCP_ACK) !== 0;
    if (isAnswer && info.ack !== seqAdd(this.#primaryIsn >>> 0, 1)) return false;
    if (info.isFragment || !isTransportChecksumRight(info)) return false;
    parseTcpOptions(info.view, info.l4Offset + 20, info.l4Offset + info.tcpHeaderBytes, scratch);
    this.#bits = withScaling(this.#bits, CLIENT_SHIFT, scratch.windowScale >= 0);
    return true;
  }

  /** Returns whether it begins a connection; a retransmission changes nothing. */
  onPrimarySyn(info: FrameInfo): boolean {
    if (this.primaryIsn === info.seq) return false;
    this.#primaryIsn = info.seq | 0;
    this.#bits = withScaling(this.#bits, CLIENT_SHIFT, undefined);
    this.#primaryAck = info.ack | 0;
    this.#primarySyn = readSyn(info);
    this.#agreedSyn = NO_SYN;
    this.matched = false;
    return true;
  }

  /** As `onPrimarySyn`, of the SVM. */
  onSecondarySyn(info: FrameInfo): boolean {
    if (hasBit(this.#bits, HAS_SECONDARY_ISN) && this.#secondaryIsn >>> 0 === info.seq)
      return false;
    this.#secondaryIsn = info.seq | 0;
    this.#bits |= HAS_SECONDARY_ISN;
    this.#secondaryAck = info.ack | 0;
    this.#secondarySyn = readSyn(info);
    this.matched = false;
    return true;
  }

  /** Matches the two SYNs if both are here. SYN-ACKs that answer different SYNs of the client are of different connections. */
  match(): 'waiting' | 'matched' | 'different' {
    if (this.#primarySyn === NO_SYN || this.#secondarySyn === NO_SYN) return 'waiting';
    const areAnswers = (this.#primarySyn & this.#secondarySyn & SYN_ACK) !== 0;
    if (areAnswers && this.#primaryAck !== this.#secondaryAck) return 'waiting';
    const secondarySyn = this.#secondarySyn;
    this.#secondarySyn = NO_SYN;
    if (!agree(this.#primarySyn, secondarySyn)) return 'different';
    this.#agreedSyn = secondarySyn;
    this.matched = true;
    return 'matched';
  }

  /** A checkpoint was committed: the SVM has the PVM's connection. Returns its window shift: where the SVM had the next one, that said so. */
  adoptCheckpoint(): number {
    this.#secondaryIsn = this.#primaryIsn;
    const isKnown = this.#primarySyn !== NO_SYN;
    this.#bits = withBit(this.#bits, HAS_SECONDARY_ISN, isKnown);
    this.#secondarySyn = NO_SYN;
    this.#agreedSyn = NO_SYN;
    this.matched = isKnown;
    return this.windowShift();
  }

  /** The guests' window shift, 0..14; it counts only when the client scales too. -1: not known. */
  windowShift(): number {
    // Of a connection that was forgotten in its handshake only the SVM's may come again; the guests' are alike.
    const syn = this.#primarySyn === NO_SYN ? this.#secondarySyn : this.#primarySyn;
    if (syn === NO_SYN) return -1;
    const scale = windowScaleOf(syn);
    if (scale < 0) return 0;
    // A guest that answers offers it only where the client has, in the SYN that is answered.
    if ((syn & SYN_ACK) !== 0) return scale;
    const clientScales = scalingOf(this.#bits, CLIENT_SHIFT);
    if (clientScales === undefined) return -1;
    return clientScales ? scale : 0;
  }

  /** Lowers the options of the PVM's SYN in place to what both guests support. */
  lower(info: FrameInfo): void {
    if (this.#primarySyn === NO_SYN || this.#agreedSyn === NO_SYN) return;
    lowerSynOptions(info, this.#primarySyn, this.#agreedSyn);
  }
}

/**
 * Lowers MSS and SACK-permitted of the PVM's SYN in place to what the SVM supports too, and mends the checksum.
 * `info` describes the frame.
 */
function lowerSynOptions(info: FrameInfo, primary: SynOptions, secondary: SynOptions): void {
  const secondaryMss = mssOf(secondary);
  const lowersMss = (primary & 0xffff) !== 0 && secondaryMss < mssOf(primary);
  const dropsSack = (primary & SACK_PERMITTED) !== 0 && (secondary & SACK_PERMITTED) === 0;
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
