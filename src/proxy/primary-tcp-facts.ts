/**
 * Numbers and yes-or-no facts of one TCP connection of the primary, in few bytes: there may be a million of them (see
 * wire/seq.ts for why the sequence numbers are kept as signed integers).
 *
 * @module
 */
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
    return (this.#bits & PRIMARY_END_KNOWN) !== 0;
  }

  set primaryEndKnown(value: boolean) {
    this.#set(PRIMARY_END_KNOWN, value);
  }

  /** Is `releasedEnd` meaningful? */
  get releasedKnown(): boolean {
    return (this.#bits & RELEASED_KNOWN) !== 0;
  }

  set releasedKnown(value: boolean) {
    this.#set(RELEASED_KNOWN, value);
  }

  /** Is `clientAck` meaningful? */
  get clientAckKnown(): boolean {
    return (this.#bits & CLIENT_ACK_KNOWN) !== 0;
  }

  set clientAckKnown(value: boolean) {
    this.#set(CLIENT_ACK_KNOWN, value);
  }

  /** The PVM has sent a RST. */
  get primaryReset(): boolean {
    return (this.#bits & PRIMARY_RESET) !== 0;
  }

  set primaryReset(value: boolean) {
    this.#set(PRIMARY_RESET, value);
  }

  /** The SVM has sent a RST. */
  get secondaryReset(): boolean {
    return (this.#bits & SECONDARY_RESET) !== 0;
  }

  set secondaryReset(value: boolean) {
    this.#set(SECONDARY_RESET, value);
  }

  /** The guests differ here, see PrimaryFlowBase. */
  get diverged(): boolean {
    return (this.#bits & DIVERGED) !== 0;
  }

  set diverged(value: boolean) {
    this.#set(DIVERGED, value);
  }

  /** See PrimaryFlowBase. */
  get reported(): boolean {
    return (this.#bits & REPORTED) !== 0;
  }

  set reported(value: boolean) {
    this.#set(REPORTED, value);
  }

  /** See PrimaryFlowBase. */
  get dirty(): boolean {
    return (this.#bits & DIRTY) !== 0;
  }

  set dirty(value: boolean) {
    this.#set(DIRTY, value);
  }

  /** See PrimaryFlowBase. */
  get progressed(): boolean {
    return (this.#bits & PROGRESSED) !== 0;
  }

  set progressed(value: boolean) {
    this.#set(PROGRESSED, value);
  }

  /** See PrimaryFlowBase. */
  get inReport(): boolean {
    return (this.#bits & IN_REPORT) !== 0;
  }

  set inReport(value: boolean) {
    this.#set(IN_REPORT, value);
  }

  #set(bit: number, value: boolean): void {
    this.#bits = value ? this.#bits | bit : this.#bits & ~bit;
  }
}
