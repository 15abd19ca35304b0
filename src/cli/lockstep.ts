/**
 * Reads the two streams of `compare` side by side. A frame of the PVM and one of the SVM at the heads of their streams, in a connection
 * where nothing else waits, need no copy: the engine looks at them where they lie, and the PVM's goes out from there, together with its
 * neighbours. Everything else is handed over one by one, as from any port.
 *
 * A frame without a mate waits a little for it (LONE_US) in its stream. That delays nothing that could go out: it would wait in the
 * engine as well.
 *
 * @module
 */
import { type Micros, NEVER, US_PER_MS } from '../base/time.ts';
import type { QemuFrameDecoder } from '../codec/qemu-chardev.ts';
import type { FrameHandler } from '../env/frame.ts';
import type { QemuPort } from '../port/qemu.ts';
import type { PrimaryEngine } from '../proxy/primary.ts';
import {
  isSameFlow,
  PAIR_NONE,
  PAIR_PRIMARY_AHEAD,
  PAIR_SECONDARY_AHEAD,
  PAIR_TAKEN,
  type PairResult,
  readPlainSegment,
} from '../proxy/primary-lockstep.ts';
import { FrameInfo } from '../wire/frame.ts';

/** A lone frame waits so long at the head of its stream. */
const LONE_US: Micros = 1_000;
/** Frames of each stream in one batch. */
const PAIRS_MAX = 1_024;

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
  // The run of records that go out as they lie in the primary's stream.
  #runOffset = 0;
  #runBytes = 0;
  #runFrames = 0;
  // Taken by `skip` in this batch.
  #pairs = 0;
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
    this.#pairs = 0;
    this.#primaryBytes = 0;
    this.#secondaryBytes = 0;
    let count = p === undefined || s === undefined ? 0 : this.#runPairs(p, s);
    if (count > 0) this.#endWait();
    count += this.#handOverLone(p, s);
    let mayHaveMore = primary.endBatch(this.#pairs, this.#primaryBytes);
    if (readsSecondary && secondary.endBatch(this.#pairs, this.#secondaryBytes)) mayHaveMore = true;
    return count === 0 && mayHaveMore ? 1 : count;
  }

  close(): void {
    clearTimeout(this.#loneTimer);
  }

  #runPairs(p: QemuFrameDecoder, s: QemuFrameDecoder): number {
    const { engine, out, batchUs } = this.#parts;
    const headBytes = out.recordHeadBytes;
    const nowUs = batchUs();
    let count = 0;
    while (count < PAIRS_MAX && p.look() && s.look()) {
      const isPlain = readPlainSegment(p.stream, p.rawOffset, p.rawBytes, this.#primaryInfo);
      const isMatePlain = readPlainSegment(s.stream, s.rawOffset, s.rawBytes, this.#secondaryInfo);
      const fits = p.rawOffset - p.recordOffset === headBytes;
      let result: PairResult = PAIR_NONE;
      if (isPlain && isMatePlain && fits) {
        result = engine.onPair(this.#primaryInfo, this.#secondaryInfo, nowUs);
      }
      if (result === PAIR_TAKEN) {
        this.#take(p, s);
        count++;
        continue;
      }
      this.#sendRun(p);
      const taken = this.#handOverUnequal(isPlain, isMatePlain, result);
      if (taken === 0) break;
      count += taken;
    }
    this.#sendRun(p);
    return count;
  }

  #take(p: QemuFrameDecoder, s: QemuFrameDecoder): void {
    if (this.#runFrames === 0) this.#runOffset = p.recordOffset;
    this.#runBytes += p.recordBytes;
    this.#runFrames++;
    this.#pairs++;
    this.#primaryBytes += p.rawBytes;
    this.#secondaryBytes += s.rawBytes;
    p.skip();
    s.skip();
  }

  /**
   * The heads of the streams are no pair. What brings the streams side by side again goes alone: the mate of what waits in the engine;
   * another kind of frame; a pure ACK, of which either guest may send more than the other.
   */
  #handOverUnequal(isPlain: boolean, isMatePlain: boolean, result: PairResult): number {
    const { primary, secondary, onPrimaryFrame, onSecondaryFrame } = this.#parts;
    const a = this.#primaryInfo;
    const b = this.#secondaryInfo;
    let takesPrimary = true;
    let takesSecondary = true;
    if (isPlain !== isMatePlain) {
      takesPrimary = isMatePlain;
      takesSecondary = isPlain;
    } else if (isPlain) {
      if (result === PAIR_PRIMARY_AHEAD) takesPrimary = false;
      else if (result === PAIR_SECONDARY_AHEAD) takesSecondary = false;
      else if (isSameFlow(a, b) && (a.payloadBytes === 0) !== (b.payloadBytes === 0)) {
        takesPrimary = a.payloadBytes === 0;
        takesSecondary = !takesPrimary;
      }
    }
    let count = 0;
    if (takesPrimary && primary.takeOne(onPrimaryFrame)) count++;
    if (takesSecondary && secondary.takeOne(onSecondaryFrame)) count++;
    return count;
  }

  #sendRun(p: QemuFrameDecoder): void {
    if (this.#runFrames === 0) return;
    this.#parts.out.sendRecords(p.stream, this.#runOffset, this.#runBytes, this.#runFrames);
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
    if (isP && (!waits || this.#mayGo(p))) count += takeAll(primary, onPrimaryFrame);
    if (isS && (!waits || this.#mayGo(s))) count += takeAll(secondary, onSecondaryFrame);
    if (count > 0) this.#endWait();
    else this.#wait();
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

/** Hands all whole frames of a stream over, as far as there is room; at most a batch. */
function takeAll(port: QemuPort, handler: FrameHandler): number {
  let count = 0;
  while (count < PAIRS_MAX && port.takeOne(handler)) count++;
  return count;
}
