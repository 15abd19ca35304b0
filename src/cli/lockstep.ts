/**
 * Reads the two streams of `compare` side by side. A frame of the PVM and one of the SVM at the heads of their streams, in a connection
 * where nothing else waits, need no copy: the engine looks at them where they lie, and the PVM's goes out from there, together with its
 * neighbours. Where the two are cut differently, or those of several connections come in another order, the PVM's waits where it
 * lies (`proxy/primary-lent.ts`). Everything else is handed over one by one, as from any port.
 *
 * A frame without a mate waits a little for it (LONE_US) in its stream. That delays nothing that could go out: it would wait in the
 * engine as well.
 *
 * @module
 */
import { type Micros, NEVER, US_PER_MS } from '../base/time.ts';
import type { QemuFrameDecoder } from '../codec/qemu-chardev.ts';
import type { FrameBuffer, FrameHandler } from '../env/frame.ts';
import type { QemuPort } from '../port/qemu.ts';
import type { PrimaryEngine } from '../proxy/primary.ts';
import type { RecordSink } from '../proxy/primary-lent.ts';
import {
  PAIR_NONE,
  PAIR_PRIMARY_AHEAD,
  PAIR_SECONDARY_AHEAD,
  PAIR_TAKEN,
  PAIR_TOOK_PRIMARY,
  PAIR_TOOK_SECONDARY,
  type PairResult,
  readPlainSegment,
} from '../proxy/primary-lockstep.ts';
import { FrameInfo } from '../wire/frame.ts';

/** A lone frame waits so long at the head of its stream. */
const LONE_US: Micros = 1_000;
/** Frames of each stream in one batch. */
const FRAMES_MAX = 1_024;

export interface LockstepParts {
  readonly primary: QemuPort;
  readonly secondary: QemuPort;
  readonly out: QemuPort;
  readonly engine: PrimaryEngine;
  /** Time of the batch under way. */
  readonly batchUs: () => Micros;
  readonly onPrimaryFrame: FrameHandler;
  readonly onSecondaryFrame: FrameHandler;
  /** Lone frames have waited long enough: `run` is to be called. */
  readonly onLone: () => void;
}

export class Lockstep {
  /** Hand everything over: a checkpoint begins. */
  handsOver = false;
  readonly #parts: LockstepParts;
  readonly #primaryInfo = new FrameInfo();
  readonly #secondaryInfo = new FrameInfo();
  #loneTimer: NodeJS.Timeout | undefined;
  /** Since when the same frames have been alone; NEVER: none are. */
  #loneSinceUs: Micros = NEVER;
  #runStream: FrameBuffer | undefined;
  #runOffset = 0;
  #runBytes = 0;
  #runFrames = 0;
  readonly #sink: RecordSink = (stream, offset, length) => this.#addToRun(stream, offset, length);
  // Taken by `skip` in this batch.
  #primaryFrames = 0;
  #secondaryFrames = 0;
  #primaryBytes = 0;
  #secondaryBytes = 0;

  constructor(parts: LockstepParts) {
    this.#parts = parts;
  }

  /** One batch. Returns how many frames were taken; 0: nothing is there but what waits. */
  run(readsSecondary: boolean): number {
    const { primary, secondary } = this.#parts;
    const p = primary.readStream();
    const s = readsSecondary ? secondary.readStream() : undefined;
    this.#primaryFrames = 0;
    this.#secondaryFrames = 0;
    this.#primaryBytes = 0;
    this.#secondaryBytes = 0;
    let count = p === undefined || s === undefined ? 0 : this.#runHeads(p, s);
    if (count > 0) this.#endWait();
    count += this.#handOverLone(p, s);
    const isIdle = count === 0;
    let mayHaveMore = primary.endBatch(this.#primaryFrames, this.#primaryBytes, isIdle);
    if (readsSecondary) {
      const mayHave = secondary.endBatch(this.#secondaryFrames, this.#secondaryBytes, isIdle);
      mayHaveMore ||= mayHave;
    }
    return count === 0 && mayHaveMore ? 1 : count;
  }

  close(): void {
    clearTimeout(this.#loneTimer);
  }

  /** While the SVM has something to say. A head is read once, however long it stands there. */
  #runHeads(p: QemuFrameDecoder, s: QemuFrameDecoder): number {
    const { engine } = this.#parts;
    const nowUs = this.#parts.batchUs();
    const a = this.#primaryInfo;
    const b = this.#secondaryInfo;
    let isPrimary = false;
    let isSecondary = false;
    let isPlain = false;
    let isMatePlain = false;
    let count = 0;
    while (count < FRAMES_MAX) {
      if (!isSecondary) {
        if (!s.look()) break;
        isSecondary = true;
        isMatePlain = readPlainSegment(s.stream, s.rawOffset, s.rawBytes, b);
      }
      if (!isPrimary && p.look()) {
        isPrimary = true;
        isPlain = this.#readPrimary(p);
      }
      let result: PairResult = PAIR_NONE;
      if (isMatePlain && (isPlain || !isPrimary)) {
        result = engine.onHeads(isPrimary ? a : undefined, b, p, this.#sink, nowUs);
      }
      if (result === PAIR_TAKEN) {
        this.#addToRun(p.stream, p.recordOffset, p.recordBytes);
        this.#skipPrimary(p);
        this.#skipSecondary(s);
        isPrimary = false;
        isSecondary = false;
      } else if (result === PAIR_TOOK_PRIMARY) {
        this.#skipPrimary(p);
        isPrimary = false;
      } else if (result === PAIR_TOOK_SECONDARY) {
        this.#skipSecondary(s);
        isSecondary = false;
      } else {
        // Alone a head is handed over when it has waited.
        if (!isPrimary && result !== PAIR_PRIMARY_AHEAD) break;
        this.#sendRun();
        if (!this.#handOver(isPlain, isMatePlain, result)) break;
        isPrimary = false;
        isSecondary = false;
      }
      count++;
    }
    this.#sendRun();
    return count;
  }

  /** Reads the head of the primary's stream; false when it has to go the ordinary way. */
  #readPrimary({ stream, recordOffset, rawOffset, rawBytes }: QemuFrameDecoder): boolean {
    if (rawOffset - recordOffset !== this.#parts.out.recordHeadBytes) return false;
    return readPlainSegment(stream, rawOffset, rawBytes, this.#primaryInfo);
  }

  #skipPrimary(p: QemuFrameDecoder): void {
    this.#primaryFrames++;
    this.#primaryBytes += p.rawBytes;
    p.skip();
  }

  #skipSecondary(s: QemuFrameDecoder): void {
    this.#secondaryFrames++;
    this.#secondaryBytes += s.rawBytes;
    s.skip();
  }

  /**
   * One of the heads goes the ordinary way, or both. What brings the streams side by side again goes alone: what the engine has said, or
   * another kind of frame.
   */
  #handOver(isPlain: boolean, isMatePlain: boolean, result: PairResult): boolean {
    const { primary, secondary, onPrimaryFrame, onSecondaryFrame } = this.#parts;
    let takesPrimary = result !== PAIR_PRIMARY_AHEAD;
    let takesSecondary = result !== PAIR_SECONDARY_AHEAD;
    if (isPlain !== isMatePlain && result === PAIR_NONE) {
      takesPrimary = isMatePlain;
      takesSecondary = isPlain;
    }
    let hasTaken = false;
    if (takesPrimary && primary.takeOne(onPrimaryFrame)) hasTaken = true;
    if (takesSecondary && secondary.takeOne(onSecondaryFrame)) hasTaken = true;
    return hasTaken;
  }

  /** What goes out as it lies in the primary's stream; neighbours go out as one piece. */
  #addToRun(stream: FrameBuffer, offset: number, length: number): void {
    if (this.#runStream !== stream || this.#runOffset + this.#runBytes !== offset) {
      this.#sendRun();
      this.#runStream = stream;
      this.#runOffset = offset;
    }
    this.#runBytes += length;
    this.#runFrames++;
  }

  #sendRun(): void {
    if (this.#runStream === undefined) return;
    this.#parts.out.sendRecords(this.#runStream, this.#runOffset, this.#runBytes, this.#runFrames);
    this.#runStream = undefined;
    this.#runFrames = 0;
    this.#runBytes = 0;
  }

  /** What is left stands in one stream only, or cannot be looked at. */
  #handOverLone(p: QemuFrameDecoder | undefined, s: QemuFrameDecoder | undefined): number {
    const { primary, secondary, engine, onPrimaryFrame, onSecondaryFrame } = this.#parts;
    const isP = p?.look() === true;
    const isS = s?.look() === true;
    if (!isP && !isS) {
      this.#endWait();
      // A stream that is broken says so when a frame is taken.
      if (p !== undefined && p.pendingBytes > 0) primary.takeOne(onPrimaryFrame);
      if (s !== undefined && s.pendingBytes > 0) secondary.takeOne(onSecondaryFrame);
      return 0;
    }
    // Both: the batch has its full size.
    if (isP && isS && !this.handsOver) return 0;
    const isOver = this.#parts.batchUs() >= this.#loneSinceUs + LONE_US;
    const waits = !this.handsOver && !isOver && s !== undefined && engine.state === 'protected';
    let count = 0;
    if (isP && (!waits || this.#mayGo(p))) count += this.#takePrimary(p);
    if (isS && (!waits || this.#mayGo(s))) count += this.#takeSecondary(s);
    if (count > 0) this.#endWait();
    else this.#wait();
    return count;
  }

  /** The PVM's frames alone: plain segments wait where they lie. */
  #takePrimary(p: QemuFrameDecoder): number {
    const { primary, engine, onPrimaryFrame } = this.#parts;
    const nowUs = this.#parts.batchUs();
    const info = this.#primaryInfo;
    let count = 0;
    while (count < FRAMES_MAX && p.look()) {
      const isTaken =
        this.#readPrimary(p) &&
        engine.onHeads(info, undefined, p, this.#sink, nowUs) === PAIR_TOOK_PRIMARY;
      if (isTaken) this.#skipPrimary(p);
      else if (!primary.takeOne(onPrimaryFrame)) break;
      count++;
    }
    return count;
  }

  /** The SVM's frames alone: one that waits for the PVM must not keep those behind it from what waits for them. */
  #takeSecondary(s: QemuFrameDecoder): number {
    const { secondary, engine, onSecondaryFrame } = this.#parts;
    const nowUs = this.#parts.batchUs();
    const info = this.#secondaryInfo;
    let count = 0;
    while (count < FRAMES_MAX && s.look()) {
      const isTaken =
        readPlainSegment(s.stream, s.rawOffset, s.rawBytes, info) &&
        engine.onHeads(undefined, info, s, this.#sink, nowUs) === PAIR_TOOK_SECONDARY;
      // What was let out goes before what is handed over, even if this one has let it out in part.
      if (!isTaken) this.#sendRun();
      if (isTaken) this.#skipSecondary(s);
      else if (!secondary.takeOne(onSecondaryFrame)) break;
      count++;
    }
    this.#sendRun();
    return count;
  }

  /** Is it of no use that the frame at the stream's head waits? */
  #mayGo(stream: QemuFrameDecoder): boolean {
    const { rawOffset, rawBytes } = stream;
    return !readPlainSegment(stream.stream, rawOffset, rawBytes, this.#primaryInfo);
  }

  /** A timer that runs already is left alone: setting one for each batch would cost more than a call too early. */
  #wait(): void {
    if (this.#loneSinceUs === NEVER) this.#loneSinceUs = this.#parts.batchUs();
    this.#loneTimer ??= setTimeout(() => {
      this.#loneTimer = undefined;
      if (this.#loneSinceUs !== NEVER) this.#parts.onLone();
    }, LONE_US / US_PER_MS);
  }

  #endWait(): void {
    this.#loneSinceUs = NEVER;
  }
}
