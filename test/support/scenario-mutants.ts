/**
 * The faults that the scenarios of `src/sim/scenarios` keep, as what has to be changed in the code to put them back.
 * `npm run sim:mutants -- --scenarios` does so, one at a time, and demands that the scenario fails.
 *
 * @module
 */

/** A line (or a few) and what it was before the fault was found. */
export interface Edit {
  /** From the repository's root. */
  readonly file: string;
  /** Occurs exactly once in the file. */
  readonly search: string;
  readonly replace: string;
}

export interface ScenarioMutant {
  readonly scenario: string;
  readonly edits: readonly Edit[];
}

const PRIMARY = 'src/proxy/primary.ts';
const TCP = 'src/proxy/primary-tcp.ts';
const SECONDARY = 'src/proxy/secondary.ts';
const FLOW = 'src/proxy/secondary-flow.ts';
const FLOWS = 'src/proxy/secondary-flows.ts';

function mutant(scenario: string, file: string, search: string, replace: string): ScenarioMutant {
  return { scenario, edits: [{ file, search, replace }] };
}

export const SCENARIO_MUTANTS: readonly ScenarioMutant[] = [
  mutant(
    'probe-of-replaced-state',
    FLOW,
    'staleGuestAck === undefined ? undefined : seqAdd(staleGuestAck, -PROBE_ACK_BACK);',
    'staleGuestAck;',
  ),
  mutant(
    'last-ack-of-a-full-table',
    FLOWS,
    'return this.nowUs - flow.closedUs >= CLOSED_LINGER_US;',
    'return true;',
  ),
  mutant(
    'ack-of-a-repeat',
    TCP,
    '      this.#release(segment);\n      // Its bytes were agreed on; its ACK may have been kept back.\n      this.#armIfWaiting();\n',
    '      this.#release(segment);\n',
  ),
  {
    scenario: 'window-of-a-forgotten-syn',
    edits: [
      {
        file: 'src/proxy/primary-syn.ts',
        search: 'const syn = this.#primarySyn === NO_SYN ? this.#secondarySyn : this.#primarySyn;',
        replace: 'const syn = this.#primarySyn;',
      },
      // Today it would wait for a checkpoint all the same.
      { file: TCP, search: '    if (this.handshake.isAhead) return false;\n', replace: '' },
    ],
  },
  {
    scenario: 'syn-bit-in-the-middle',
    edits: [
      {
        file: 'src/proxy/primary-syn.ts',
        search: '    if (info.isFragment || !isTransportChecksumRight(info)) return false;\n',
        replace: '',
      },
      {
        file: 'src/proxy/primary-syn.ts',
        search:
          '    if (!isOpening || scalingOf(this.#bits, CLIENT_SHIFT) !== undefined) return false;\n',
        replace: '',
      },
      {
        file: 'src/proxy/primary-syn.ts',
        search:
          '    if (isAnswer && info.ack !== seqAdd(this.#primaryIsn >>> 0, 1)) return false;\n',
        replace: '',
      },
      // Today no SYN of the client decides where the guest has answered one.
      {
        file: 'src/proxy/primary-syn.ts',
        search: '    if ((syn & SYN_ACK) !== 0) return scale;\n',
        replace: '',
      },
    ],
  },
  mutant(
    'repeat-of-a-part',
    TCP,
    'if (!segment.isRepeat || seqBefore(head.seq, segment.seq) || !this.#mayGo(segment)) continue;',
    'if (!segment.isRepeat || !seqBefore(segment.seq, head.seq) || !this.#mayGo(segment)) continue;',
  ),
  mutant(
    'handshake-at-a-commit',
    FLOW,
    '    if (this.primaryIsn === undefined) this.clientIsn = undefined;\n',
    '',
  ),
  mutant(
    'datagram-without-room',
    'src/proxy/primary-flows.ts',
    '    if (this.#hasOrphans) return undefined;\n',
    '',
  ),
  mutant(
    'handshake-lost-with-the-primary',
    FLOW,
    '      failedOver &&\n',
    '      !failedOver &&\n',
  ),
  mutant(
    'probe-before-the-first-ack',
    FLOW,
    'seqDistance(clientIsn, info.seq) >= 0 &&',
    'seqDistance(clientIsn, info.seq) > 1 &&',
  ),
  mutant(
    'handshake-without-room',
    FLOWS,
    'if (isUnknown && !this.failedOver) {',
    'if (isUnknown && this.nowUs < 0) {',
  ),
  mutant(
    'output-of-the-connection-before',
    TCP,
    "if (this.held.length > 0) this.#diverge('unverifiable');",
    "if (this.held.length > 0) this.#want('unverifiable');",
  ),
  mutant(
    'window-of-the-connection-before',
    TCP,
    '    this.gate.forgetSecondary();\n    dropAck(this.#context, this);\n',
    '    this.gate.forgetSecondary();\n',
  ),
  mutant(
    'commit-of-an-undone-checkpoint',
    PRIMARY,
    "    if (isUndone) return { ok: false, error: 'Cannot commit: that checkpoint was undone' };\n",
    '',
  ),
  mutant(
    'syn-in-a-full-table',
    FLOWS,
    "this.#dropped.add('syn-flow-limit');\n    return false;",
    "this.#dropped.add('syn-flow-limit');\n    return true;",
  ),
  mutant(
    'answer-to-another-syn',
    'src/proxy/primary-syn.ts',
    "if (areAnswers && this.#primaryAck !== this.#secondaryAck) return 'waiting';",
    '',
  ),
  mutant(
    'damaged-first-ack',
    FLOW,
    'if (info.isFragment || !isTransportChecksumRight(info)) return;',
    'if (info.isFragment) return;',
  ),
  mutant(
    'syn-ack-of-the-svm-alone',
    FLOWS,
    'if ((isAgain || isLate) && !flow.isNew)',
    'if ((isAgain || isLate) && flow.primaryIsn !== undefined && !flow.isNew)',
  ),
  mutant('addresses-of-a-silent-guest', PRIMARY, '    this.#addresses.tell(this.#output);\n', ''),
  mutant(
    'gap-filler-behind-the-gap',
    TCP,
    'if (this.#repeatsHeld > 0 && held.length > 1) this.#pumpRepeats();',
    '',
  ),
  mutant(
    'window-at-a-commit',
    TCP,
    'if (sinceUs === NEVER && this.heldAck === undefined) return;',
    'if (sinceUs === NEVER) return;',
  ),
  mutant(
    'late-old-ack',
    'src/proxy/primary-ack.ts',
    'if (before !== undefined && seqBefore(info.ack, before.ack)) return;',
    '',
  ),
  mutant(
    'commit-after-an-abort',
    SECONDARY,
    'if (message.epoch <= this.#abortedEpoch) {',
    'if (message.epoch < 0) {',
  ),
  mutant('abort-after-the-next', SECONDARY, '    this.#epoch = this.#primaryEpoch;\n', ''),
  {
    scenario: 'reset-at-a-commit',
    edits: [
      {
        file: PRIMARY,
        search: "    if (this.#state === 'checkpointing') this.#output.sendMessageToPeer(abort);\n",
        replace: '',
      },
      // Today the number of a begin that came before the reset is spent.
      { file: SECONDARY, search: '    this.#epoch = this.#primaryEpoch;\n', replace: '' },
    ],
  },
  {
    scenario: 'spent-epoch',
    edits: [
      {
        file: PRIMARY,
        search:
          "    if (this.#state === 'checkpointing') this.#epoch++;\n    this.#isHolding = false;",
        replace: '    this.#isHolding = false;',
      },
      {
        file: SECONDARY,
        search: '        if (this.#ready) {\n',
        replace: '        if (message.epoch > 0) {\n',
      },
    ],
  },
];
