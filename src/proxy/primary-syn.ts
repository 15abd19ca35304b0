/**
 * SYN options that bind a connection, for comparing the two guests' SYN or SYN-ACK: the client must be told only what
 * both guests support.
 *
 * @module
 */
import { applyChecksumDelta, delta16, sumOfBytes } from '../rewrite/checksum-delta.ts';
import type { FrameInfo } from '../wire/frame.ts';
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
