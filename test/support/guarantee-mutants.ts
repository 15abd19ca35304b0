/**
 * How each rule behind the guarantees could be broken: one line of the code, and what it would be without the rule.
 * `npm run guarantees:mutants` breaks them one at a time and demands that a test of that guarantee in
 * `test/guarantees.test.ts` fails. A line that has changed meanwhile is reported, too.
 *
 * @module
 */

export interface Mutant {
  /** `G1` ... `G9`. */
  readonly guarantee: string;
  /** What the code would do. */
  readonly title: string;
  /** From the repository's root. */
  readonly file: string;
  /** Occurs exactly once in the file. */
  readonly search: string;
  readonly replace: string;
}

// biome-ignore-start lint/suspicious/noTemplateCurlyInString: the strings are lines of code
const PRIMARY = 'src/proxy/primary.ts';
const TCP = 'src/proxy/primary-tcp.ts';
const ACK = 'src/proxy/primary-ack.ts';
const CAUSES = 'src/proxy/primary-causes.ts';
const DATAGRAM = 'src/proxy/primary-datagram.ts';
const GATE = 'src/compare/ack-gate.ts';
const LENT = 'src/proxy/primary-lent.ts';
const MEMORY = 'src/proxy/primary-memory.ts';
const STREAM = 'src/compare/stream.ts';
const SECONDARY = 'src/proxy/secondary.ts';
const FLOWS = 'src/proxy/secondary-flows.ts';
const FLOW = 'src/proxy/secondary-flow.ts';
const RETENTION = 'src/proxy/retention.ts';
const TAKEOVER = 'src/proxy/secondary-takeover.ts';
const REQUESTS = 'src/proxy/checkpoint-requests.ts';

function mutant(
  guarantee: string,
  file: string,
  title: string,
  search: string,
  replace: string,
): Mutant {
  return { guarantee, file, title, search, replace };
}

const OUTPUT_COMMIT: readonly Mutant[] = [
  mutant(
    'G1',
    LENT,
    'what waits in its stream is not compared',
    'if (!isSameRange(p.stream, pOffset, info, sOffset, seqDistance(at, upTo))) return LENT_NONE;',
    '',
  ),
  mutant(
    'G1',
    LENT,
    'what waits in its stream goes out before all of it was compared',
    'if (!seqBeforeOrEqual(end, compared)) return;',
    '',
  ),
  mutant(
    'G1',
    TCP,
    'bytes are released without the SVM',
    'if (!comparer.started || !seqBeforeOrEqual(segment.segmentEnd, comparer.compared)) {',
    'if (!comparer.started) {',
  ),
  mutant(
    'G1',
    STREAM,
    'bytes that differ count as equal',
    'if (!bytesEqual(p.bytes, pOffset, s.bytes, sOffset, length)) {',
    'if (length < 0) {',
  ),
  mutant(
    'G1',
    PRIMARY,
    'held output goes at begin',
    "this.#setState('checkpointing', 'checkpoint begun');",
    "this.#setState('checkpointing', 'checkpoint begun'); this.#flows.releaseAll();",
  ),
  mutant(
    'G1',
    PRIMARY,
    'held output goes before the secondary knows the commit',
    'this.#commitSent = true;',
    'this.#commitSent = true; this.#flows.releaseAll();',
  ),
  mutant('G1', PRIMARY, 'old epochs count', 'if (epoch !== this.#epoch) {', 'if (epoch < 0) {'),
  mutant(
    'G1',
    TCP,
    'a SYN does not wait',
    'if ((flags & TCP_SYN) !== 0 && !this.handshake.matched) return false;',
    'if ((flags & TCP_SYN) !== 0) return true;',
  ),
  mutant(
    'G1',
    'src/proxy/primary-syn.ts',
    'options that bind the connection may differ',
    'const BINDING = (SCALE_MASK << SCALE_SHIFT) | TIMESTAMPS | SYN_ACK;',
    'const BINDING = TIMESTAMPS | SYN_ACK;',
  ),
  mutant('G1', TCP, 'a RST does not wait', 'return this.secondaryReset;', 'return true;'),
  mutant(
    'G1',
    STREAM,
    'one guest may end its stream alone',
    'if ((primaryEnded && s !== undefined) || (secondaryEnded && p !== undefined)) {',
    'if (primaryEnded && secondaryEnded) {',
  ),
  mutant(
    'G1',
    DATAGRAM,
    'any datagram is a mate',
    'if (rangesEqual(this.secondary[i]!.ranges, incoming)) return i;',
    'return i;',
  ),
  mutant(
    'G1',
    'src/proxy/primary-flows.ts',
    'fragments are compared one by one',
    'if (info.isFragment) this.#fragments.onPrimary(buffer, info);\n    else ',
    '',
  ),
];

const INPUT_COMMIT: readonly Mutant[] = [
  mutant(
    'G2',
    LENT,
    'what waits in its stream goes out whatever it acknowledges',
    'if (!isFree) return LENT_NONE;',
    '',
  ),
  mutant(
    'G2',
    GATE,
    'the ACK number is that of the PVM',
    'limited.ack = seqMin(ack, this.secondaryAck);',
    'limited.ack = ack;',
  ),
  mutant(
    'G2',
    GATE,
    'the window is that of the PVM',
    'const edge = seqMin(seqAdd(ack, window << this.windowShift), this.secondaryEdge);',
    'const edge = seqAdd(ack, window << this.windowShift);',
  ),
  mutant(
    'G2',
    ACK,
    'SACK blocks are those of the PVM',
    'const trims = segment.hasSack && blocksCovered(context, flow, segment) < 0;',
    'const trims = false;',
  ),
  mutant(
    'G2',
    TCP,
    'a held ACK never follows',
    'if (!this.diverged) sendPendingAck(this.#context, this, this.#releasedEnd());',
    '',
  ),
  mutant(
    'G2',
    GATE,
    'a commit leaves the ACK of the SVM where it was',
    'this.secondaryAck = this.primaryAck;',
    '',
  ),
];

const SILENCE: readonly Mutant[] = [
  mutant(
    'G3',
    SECONDARY,
    'ARP of the SVM goes out',
    "this.#dropped.add('guest-link-control');",
    'this.#output.sendToNet(buffer, offset, length);',
  ),
  mutant(
    'G3',
    SECONDARY,
    'output of the SVM goes out while the primary is lost',
    "this.#counters.add('outputWithoutPeer');",
    'this.#output.sendToNet(info, info.frameOffset, info.frameBytes);',
  ),
  mutant(
    'G3',
    SECONDARY,
    'the SVM hears the network',
    "if (this.#state !== 'failed-over') {\n      if (this.#ready) this.#overheard",
    'if (this.#epoch < 0) {\n      if (this.#ready) this.#overheard',
  ),
  mutant(
    'G3',
    SECONDARY,
    'a failover beside a living primary',
    'if (!force && this.#peerUp)',
    'if (!force && this.#epoch < 0)',
  ),
  mutant(
    'G3',
    SECONDARY,
    'a failover without a committed state',
    'if (!force && !this.#ready) {',
    'if (!force && this.#epoch < 0) {',
  ),
];

const NO_INVENTION: readonly Mutant[] = [
  mutant(
    'G4',
    TCP,
    'the newest goes first',
    'this.held.push(segment);',
    'this.held.unshift(segment);',
  ),
  mutant(
    'G4',
    DATAGRAM,
    'a matched datagram passes those before it',
    'if (this.primary.length === 0) {\n        this.#releaseNow',
    'if (this.primary.length >= 0) {\n        this.#releaseNow',
  ),
  mutant(
    'G4',
    ACK,
    'a built ACK stands where its segment began',
    'if (seq !== undefined) view.setUint32(l4 + TCP_SEQ, seq);',
    '',
  ),
  mutant(
    'G4',
    ACK,
    'a built ACK keeps the flags of its segment',
    'bytes[l4 + TCP_FLAGS] = TCP_ACK | (bytes[l4 + TCP_FLAGS]! & TCP_ECE);',
    '',
  ),
  mutant(
    'G4',
    DATAGRAM,
    'the frame of the SVM is what goes out',
    'waiting.matched = true;\n      this.#countSettled();',
    'waiting.matched = true;\n      this.#context.emit(buffer, info.frameOffset, info.frameBytes);\n      this.#countSettled();',
  ),
];

const FAILOVER: readonly Mutant[] = [
  mutant(
    'G5',
    FLOWS,
    'output of the SVM keeps its numbers',
    'adjustGuestSegment(info, seqDelta, tsShift);\n    this.counts.adjusted++;',
    'adjustGuestSegment(info, 0, tsShift);\n    this.counts.adjusted++;',
  ),
  mutant(
    'G5',
    FLOWS,
    'ACK and SACK of the client keep their numbers',
    'adjustClientSegment(info, seqDelta, tsShift);',
    'adjustClientSegment(info, 0, tsShift);',
  ),
  mutant(
    'G5',
    FLOW,
    'the two clocks count as one',
    'return seqAdd(tsval, this.tsDelta + this.tsJump);',
    'return tsval;',
  ),
  mutant(
    'G5',
    FLOW,
    'echoes are not translated back',
    'let own = seqAdd(tsecr, -this.tsDelta);',
    'let own = tsecr; if (own > 0) return own;',
  ),
  mutant(
    'G5',
    TAKEOVER,
    'unconfirmed output waits for a retransmission timer',
    'this.#sendRetained(nowUs);\n    this.#probes',
    'this.#probes',
  ),
  mutant(
    'G5',
    RETENTION,
    'what was released last is forgotten',
    'owner.retainedFirst?.newerInFlow !== undefined &&',
    'owner.retainedFirst !== undefined &&',
  ),
  mutant(
    'G5',
    SECONDARY,
    'what clients send while nobody serves is forgotten',
    'if (this.#ready) this.#overheard.hear(buffer, offset, length, nowUs);',
    '',
  ),
  mutant(
    'G5',
    TAKEOVER,
    'no announcement at once',
    'this.#announced = 0;\n    this.#announce(nowUs);',
    'this.#announced = 1;',
  ),
  mutant(
    'G5',
    FLOW,
    'new connections are not known as such',
    'this.#beginAnew();\n    this.secondaryIsn = info.seq;\n    this.isNew = true;',
    'this.#beginAnew();\n    this.secondaryIsn = info.seq;\n    this.primaryIsn = 0;\n    this.#learn();',
  ),
  mutant(
    'G5',
    PRIMARY,
    'the SVM does not get what the client sends',
    'this.#output.sendFrameToPeer(LINK_FRAME_CLIENT, this.#epoch, buffer, offset, length);',
    '',
  ),
  mutant(
    'G5',
    SECONDARY,
    'nothing is confirmed',
    'for (const entry of message.entries) this.#flows.onProgress(entry);',
    '',
  ),
  mutant(
    'G5',
    FLOWS,
    'translation goes on after a checkpoint',
    'if (flow.generation !== this.#generation) flow.adoptCheckpoint(this.#generation);',
    '',
  ),
];

const LIVENESS: readonly Mutant[] = [
  mutant(
    'G6',
    CAUSES,
    'nobody waits for bytes of the SVM',
    'headSinceUs(flow, compareTimeoutUs),\n',
    '',
  ),
  mutant(
    'G6',
    CAUSES,
    'nobody waits for bytes of the PVM',
    'sinceProgress(flow, flow.secondarySinceUs, compareTimeoutUs),\n',
    '',
  ),
  mutant('G6', CAUSES, 'nobody waits for an ACK', 'flow.heldAck?.ackSinceUs ?? NEVER,\n', ''),
  mutant('G6', CAUSES, 'nobody waits for a window', 'flow.heldAck?.windowSinceUs ?? NEVER,\n', ''),
  mutant('G6', CAUSES, 'nobody waits for a RST of the PVM', 'flow.resetSinceUs,\n  );', ');'),
  mutant(
    'G6',
    CAUSES,
    'any progress is progress enough',
    'return Math.min(flow.progressUs, sinceUs + lagUs);',
    'return flow.progressUs + 0 * lagUs;',
  ),
  mutant(
    'G6',
    DATAGRAM,
    'nobody waits for a datagram',
    'const timeout = since + this.#context.config.compareTimeoutUs;',
    'const timeout = NEVER + since;',
  ),
  mutant(
    'G6',
    DATAGRAM,
    'datagrams that differ wait the whole timeout',
    'return Math.min(timeout, both);',
    'return Math.max(timeout, both);',
  ),
  mutant(
    'G6',
    'src/proxy/primary-fragments.ts',
    'fragments that do not fit ask for nothing',
    "this.#context.want(this.#orphans, 'unverifiable', -1, '', '');",
    '',
  ),
  mutant(
    'G6',
    REQUESTS,
    'a request is made once',
    'if (nowUs < this.#sentAtUs + this.#config.checkpointRequestTimeoutUs) return undefined;',
    'return undefined;',
  ),
  mutant(
    'G6',
    PRIMARY,
    'a VM layer that is silent is waited for',
    'if (this.#requests.givenUp(nowUs)) this.#onRequestsIgnored();',
    '',
  ),
  mutant(
    'G6',
    PRIMARY,
    'a checkpoint may take for ever',
    "this.checkpointAbort('not committed in time', nowUs);",
    '',
  ),
  mutant(
    'G6',
    SECONDARY,
    'output comes before the commit of the primary',
    'this.#isAhead = this.#peerUp && this.#pendingEpoch === this.#primaryEpoch;',
    '',
  ),
  mutant(
    'G6',
    SECONDARY,
    'each word of a commit is another commit',
    "if (this.#state === 'protected' && this.#awaitsWord) {",
    'if (this.#epoch < 0) {',
  ),
  mutant(
    'G6',
    PRIMARY,
    'losing the peer releases nothing',
    'if (wasHolding) this.#flows.releaseAll();',
    '',
  ),
];

const BOUNDED: readonly Mutant[] = [
  mutant('G7', MEMORY, 'no request at the limit', 'this.#onLimit(flow);', ''),
  mutant('G7', MEMORY, 'no hard limit', 'if (this.#isOver(flow, 2)) {', 'if (this.#bytes < 0) {'),
  mutant(
    'G7',
    MEMORY,
    'output is dropped at the soft limit',
    'if (this.#isOver(flow, 2)) {',
    'if (this.#bytes >= 0) {',
  ),
  mutant('G7', MEMORY, 'a limit for each flow only', 'this.#bytes > times * heldBytesMax || ', ''),
  mutant(
    'G7',
    'src/proxy/kept-frames.ts',
    'whatever comes is kept',
    'if (this.#bytes >= this.#bytesMax) return false;',
    '',
  ),
  mutant(
    'G7',
    'src/proxy/primary-flows.ts',
    'output without a flow is dropped',
    'this.#orphans.onPrimary(buffer, info, fragments);',
    '',
  ),
];

const HOSTILE: readonly Mutant[] = [
  mutant(
    'G8',
    PRIMARY,
    'output that cannot be read passes',
    "this.#dropped.add(`guest-${DROP_REASON_NAMES[result] ?? 'malformed'}`);\n      return;",
    'this.#context.emit(buffer, offset, length);\n      return;',
  ),
  mutant(
    'G8',
    TCP,
    'positions outside of the stream are kept',
    'if (ahead > AHEAD_MAX || ahead < -AHEAD_MAX) {',
    'if (ahead === 0.5) {',
  ),
  mutant(
    'G8',
    PRIMARY,
    'a commit that nobody asked for is believed',
    "if (this.#state !== 'checkpointing' || !this.#commitSent || epoch !== this.#epoch + 1) {",
    'if (epoch !== this.#epoch + 1) {',
  ),
];

const HONEST: readonly Mutant[] = [
  mutant(
    'G9',
    PRIMARY,
    'the primary changes its state in silence',
    "this.#event('state', `${from} -> ${state}: ${reason}`, { from, to: state, reason });",
    'void from;',
  ),
  mutant(
    'G9',
    SECONDARY,
    'the secondary changes its state in silence',
    "this.#event('state', `${from} -> ${state}: ${reason}`, { from, to: state, reason });",
    'void from;',
  ),
  mutant(
    'G9',
    PRIMARY,
    'a lost peer changes nothing',
    'this.#unprotect(`peer lost: ${reason}`);',
    '',
  ),
  mutant(
    'G9',
    PRIMARY,
    'holding is not said',
    'this.#setState(this.#state, `peer lost, output is held: ${reason}`);',
    '',
  ),
  mutant(
    'G9',
    PRIMARY,
    'protected as soon as a peer is there',
    "this.#setState('syncing', 'peer joined, waiting for the first commit');",
    "this.#setState('protected', 'peer joined');",
  ),
  mutant(
    'G9',
    PRIMARY,
    'the secondary is not told when the VM layer is given up',
    "this.#output.sendMessageToPeer({ type: 'checkpoint-abort', epoch: this.#epoch, reason });",
    '',
  ),
  mutant(
    'G9',
    SECONDARY,
    'an old state survives a new sync',
    '#forgetProtection(): void {\n    this.#ready = false;',
    '#forgetProtection(): void {',
  ),
];

// biome-ignore-end lint/suspicious/noTemplateCurlyInString: the strings are lines of code

export const MUTANTS: readonly Mutant[] = [
  ...OUTPUT_COMMIT,
  ...INPUT_COMMIT,
  ...SILENCE,
  ...NO_INVENTION,
  ...FAILOVER,
  ...LIVENESS,
  ...BOUNDED,
  ...HOSTILE,
  ...HONEST,
];
