/**
 * Gives one case to a comparer, watches what comes out of it, has it pass a checkpoint, and puts what was seen into words.
 *
 * @module
 */
import { seqDistance } from '../../../src/wire/seq.ts';
import { TCP_OPTIONS } from '../../../src/wire/tcp.ts';
import { parseTcpOptions, TcpOptions } from '../../../src/wire/tcp-options.ts';
import { dissectFrame, frameBytes, rawFrame, type TestFrame } from '../frame-builder.ts';
import { CASES, type Case, type Client } from './cases.ts';
import { Comparer, type ComparerOptions, type System, sleep, until } from './comparer.ts';

const DEFAULTS: ComparerOptions = { compareTimeoutMs: 600, scanCycleMs: 100, maxQueueSize: 1_024 };
/** For a busy machine: beyond what a comparer is waited for, and less than a compare timeout. */
const SLACK_MS = 400;
/** For what comes together with what was waited for. */
const AFTER_MS = 50;

/** Gives cases to a system: its words for each, in their order. */
export async function runCases(system: System, cases: readonly Case[] = CASES): Promise<string[]> {
  const verdicts: string[] = [];
  const shared = await Comparer.start(system, DEFAULTS);
  try {
    for (const [index, given] of cases.entries()) {
      const client = { ipv4: `10.1.${index}.9`, ipv6: `2001:db8::${index + 16}:9` };
      verdicts.push(await runCase(shared, given, client));
    }
  } finally {
    await shared.close();
  }
  return verdicts;
}

async function runCase(shared: Comparer, given: Case, client: Client): Promise<string> {
  if (given.options === undefined) return await observe(shared, given, DEFAULTS, client);
  const options = { ...DEFAULTS, ...given.options };
  const own = await Comparer.start(shared.system, options);
  try {
    return await observe(own, given, options, client);
  } finally {
    await own.close();
  }
}

async function observe(
  comparer: Comparer,
  given: Case,
  options: ComparerOptions,
  client: Client,
): Promise<string> {
  const { opening, steps } = given.make(client);
  if (opening !== undefined) {
    comparer.primary.send(opening.primary);
    comparer.secondary.send(opening.secondary);
    const key = keyOf(opening.primary);
    const { frames } = comparer.out;
    await until('the connection is open', () => frames.some((bytes) => keyOfBytes(bytes) === key));
    comparer.out.frames.length = 0;
  }
  comparer.askedMs.length = 0;
  for (const { from, frames, pauseMs } of steps) {
    if (from !== 'nobody') comparer[from].send(...frames);
    await sleep(pauseMs);
  }
  const fedMs = performance.now();
  const sent = steps.filter(({ from, isBackground }) => from === 'primary' && !isBackground);
  const load = steps.filter(({ from, isBackground }) => from === 'primary' && isBackground);
  const background = new Set(load.flatMap(({ frames }) => frames.map(keyOf)));
  if (background.size > 0) await comparer.passes();
  for (const probe of comparer.probes) background.add(keyOf(probe));
  const watchMs = given.watchMs ?? options.compareTimeoutMs + options.scanCycleMs + SLACK_MS;
  // What follows the request is seen as well.
  await waitFor(watchMs, () => comparer.askedMs.length > 0);
  await sleep(AFTER_MS);
  const early = comparer.out.frames.splice(0);
  const askedMs = comparer.askedMs[0];
  comparer.checkpoint();
  const watched = (frames: readonly Uint8Array[]): number =>
    frames.filter((bytes) => !background.has(keyOfBytes(bytes))).length;
  const left = sent.flatMap(({ frames }) => frames).length - watched(early);
  await waitFor(left > 0 ? SLACK_MS : 0, () => watched(comparer.out.frames) >= left);
  await sleep(AFTER_MS);
  const late = comparer.out.frames.splice(0);
  return describe({
    sent: sent.flatMap(({ frames }) => frames),
    background,
    early,
    late,
    asked:
      askedMs === undefined
        ? 'never'
        : askedMs < fedMs + (options.compareTimeoutMs * 3) / 4
          ? 'at once'
          : 'after the timeout',
  });
}

/** Until `condition`, or so long. */
async function waitFor(ms: number, condition: () => boolean): Promise<void> {
  const end = performance.now() + ms;
  while (!condition() && performance.now() < end) await sleep(5);
}

interface Observation {
  readonly sent: readonly TestFrame[];
  /** Keys of frames that are not reported. */
  readonly background: ReadonlySet<string>;
  readonly early: readonly Uint8Array[];
  readonly late: readonly Uint8Array[];
  readonly asked: 'never' | 'at once' | 'after the timeout';
}

function describe({ sent, background, early, late, asked }: Observation): string {
  const waiting = sent.map(keyOf);
  const changes: string[] = [];
  const take = (frames: readonly Uint8Array[]): number => {
    let count = 0;
    for (const bytes of frames) {
      const key = keyOfBytes(bytes);
      if (background.has(key)) continue;
      const exact = waiting.indexOf(key);
      const changed = exact >= 0 ? exact : findChanged(bytes, sent, waiting, changes);
      if (changed < 0) continue;
      waiting[changed] = '';
      count++;
    }
    return count;
  };
  const atOnce = take(early);
  const words: string[] = [];
  const earlyChanges = changes.splice(0);
  if (atOnce > 0) words.push(`releases ${amount(atOnce, sent.length)}`);
  words.push(...earlyChanges);
  if (atOnce < sent.length) words.push(`holds ${amount(sent.length - atOnce, sent.length)}`);
  if (asked !== 'never') words.push(`asks for a checkpoint ${asked}`);
  const atCheckpoint = take(late);
  if (atCheckpoint > 0) {
    words.push(`the checkpoint releases ${amount(atCheckpoint, sent.length)}`, ...changes);
  }
  const lost = sent.length - atOnce - atCheckpoint;
  if (lost > 0) words.push(`**loses ${amount(lost, sent.length)}**`);
  return words.join('; ');
}

function amount(count: number, all: number): string {
  if (count === all) return all === 1 ? 'it' : 'all';
  return `${count} of ${all}`;
}

/**
 * The frame that was changed into these bytes: index into `sent`, or -1 where it is none of them. What was changed, or that this
 * frame is none of the PVM's, is added to `changes`.
 */
function findChanged(
  bytes: Uint8Array,
  sent: readonly TestFrame[],
  waiting: readonly string[],
  changes: string[],
): number {
  const out = factsOf(rawFrame(bytes));
  const index = sent.findIndex((frame, i) => {
    const facts = factsOf(frame);
    return waiting[i] !== '' && facts.seq === out.seq && facts.payload === out.payload;
  });
  if (index < 0) {
    changes.push(out.payload === '' ? 'adds an ACK' : '**lets out what the PVM never sent**');
    return -1;
  }
  const given = factsOf(sent[index]!);
  const ackDifference = seqDistance(out.ack, given.ack);
  if (ackDifference !== 0) changes.push(`ack lowered by ${ackDifference}`);
  if (out.window !== given.window) changes.push(`window lowered by ${given.window - out.window}`);
  if (out.sack !== given.sack) changes.push(`SACK ${out.sack === '' ? 'taken out' : 'changed'}`);
  return index;
}

interface Facts {
  readonly seq: number;
  readonly ack: number;
  readonly window: number;
  readonly sack: string;
  readonly payload: string;
}

function factsOf(frame: TestFrame): Facts {
  const info = dissectFrame(frame);
  const { bytes, view, seq, ack, window, l4Offset, tcpHeaderBytes, payloadOffset, payloadBytes } =
    info;
  const payload = Buffer.from(bytes.subarray(payloadOffset, payloadOffset + payloadBytes));
  const options = new TcpOptions();
  if (tcpHeaderBytes > 0) {
    parseTcpOptions(view, l4Offset + TCP_OPTIONS, l4Offset + tcpHeaderBytes, options);
  }
  const sack = options.sackEdges.slice(0, 2 * options.sackCount).join(' ');
  return { seq, ack, window, sack, payload: payload.toString('latin1') };
}

const keyOf = (frame: TestFrame): string => keyOfBytes(frameBytes(frame));

function keyOfBytes(bytes: Uint8Array): string {
  return Buffer.from(bytes).toString('latin1');
}
