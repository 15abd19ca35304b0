/**
 * Numbers and yes-or-no facts of one TCP connection of the primary, in few bytes: there may be a million of them (see
 * wire/seq.ts for why the sequence numbers are kept as signed integers).
 *
 * @module
 */
import { hasBit, withBit } from '../base/bits.ts';
import { type Micros, NEVER } from '../base/time.ts';
import type { Seq } from '../wire/seq.ts';

const PRIMARY_END_KNOWN = 1;
const RELEASED_KNOWN = 2;
const CLIENT_ACK_KNOWN = 4;
const PRIMARY_RESET = 8;
const SECONDARY_RESET = 16;
const DIVERGED = 32;
const REPORTED = 64;
const DIRTY = 128;
const PROGRESSED = 256;
const IN_REPORT = 512;

export class TcpFacts {
  #bits = 0;
  #primaryEnd = 0;
  #releasedEnd = 0;
  #clientAck = 0;
  // Not NEVER while nothing waits: a number that is no 32-bit integer takes 16 bytes outside the object.
  #secondarySinceUs: Micros | undefined = undefined;
  #resetSinceUs: Micros | undefined = undefined;

  /** Since when output of the SVM waits for the PVM's; NEVER: none does. */
  get secondarySinceUs(): Micros {
    return this.#secondarySinceUs ?? NEVER;
  }

  set secondarySinceUs(timeUs: Micros) {
    this.#secondarySinceUs = timeUs === NEVER ? undefined : timeUs;
  }

  /** Since when one guest's RST waits for the other's; NEVER: none does. */
  get resetSinceUs(): Micros {
    return this.#resetSinceUs ?? NEVER;
  }

  set resetSinceUs(timeUs: Micros) {
    this.#resetSinceUs = timeUs === NEVER ? undefined : timeUs;
  }

  /**
   * The SVM's connection goes on, or the client begins another: a RST that the PVM has answered with its own says nothing about the
   * PVM's next (RFC 9293 §3.5.1: not each RST ends a connection).
   */
  outliveReset(): void {
    if (this.resetSinceUs === NEVER) this.secondaryReset = false;
  }

  /** End of all that the PVM has sent. */
  get primaryEnd(): Seq {
    return this.#primaryEnd >>> 0;
  }

  set primaryEnd(seq: Seq) {
    this.#primaryEnd = seq | 0;
  }

  /** End of all that was released to the client. */
  get releasedEnd(): Seq {
    return this.#releasedEnd >>> 0;
  }

  set releasedEnd(seq: Seq) {
    this.#releasedEnd = seq | 0;
  }

  /** The client has acknowledged everything before it. */
  get clientAck(): Seq {
    return this.#clientAck >>> 0;
  }

  set clientAck(seq: Seq) {
    this.#clientAck = seq | 0;
  }

  /** Is `primaryEnd` meaningful? */
  get primaryEndKnown(): boolean {
    return hasBit(this.#bits, PRIMARY_END_KNOWN);
  }

  set primaryEndKnown(value: boolean) {
    this.#bits = withBit(this.#bits, PRIMARY_END_KNOWN, value);
  }

  /** Is `releasedEnd` meaningful? */
  get releasedKnown(): boolean {
    return hasBit(this.#bits, RELEASED_KNOWN);
  }

  set releasedKnown(value: boolean) {
    this.#bits = withBit(this.#bits, RELEASED_KNOWN, value);
  }

  /** Is `clientAck` meaningful? */
  get clientAckKnown(): boolean {
    return hasBit(this.#bits, CLIENT_ACK_KNOWN);
  }

  set clientAckKnown(value: boolean) {
    this.#bits = withBit(this.#bits, CLIENT_ACK_KNOWN, value);
  }

  /** The PVM has sent a RST, and nothing since. */
  get primaryReset(): boolean {
    return hasBit(this.#bits, PRIMARY_RESET);
  }

  set primaryReset(value: boolean) {
    this.#bits = withBit(this.#bits, PRIMARY_RESET, value);
  }

  /** The SVM has sent a RST. */
  get secondaryReset(): boolean {
    return hasBit(this.#bits, SECONDARY_RESET);
  }

  set secondaryReset(value: boolean) {
    this.#bits = withBit(this.#bits, SECONDARY_RESET, value);
  }

  /** The guests differ here, see PrimaryFlowBase. */
  get diverged(): boolean {
    return hasBit(this.#bits, DIVERGED);
  }

  set diverged(value: boolean) {
    this.#bits = withBit(this.#bits, DIVERGED, value);
  }

  /** See PrimaryFlowBase. */
  get reported(): boolean {
    return hasBit(this.#bits, REPORTED);
  }

  set reported(value: boolean) {
    this.#bits = withBit(this.#bits, REPORTED, value);
  }

  /** See PrimaryFlowBase. */
  get dirty(): boolean {
    return hasBit(this.#bits, DIRTY);
  }

  set dirty(value: boolean) {
    this.#bits = withBit(this.#bits, DIRTY, value);
  }

  /** See PrimaryFlowBase. */
  get progressed(): boolean {
    return hasBit(this.#bits, PROGRESSED);
  }

  set progressed(value: boolean) {
    this.#bits = withBit(this.#bits, PROGRESSED, value);
  }

  /** See PrimaryFlowBase. */
  get inReport(): boolean {
    return hasBit(this.#bits, IN_REPORT);
  }

  set inReport(value: boolean) {
    this.#bits = withBit(this.#bits, IN_REPORT, value);
  }
}
