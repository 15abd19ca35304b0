/**
 * The rules of `attach`, and how they are found again. Each rule carries a comment that says whose it is, and what its bridge was like
 * before: the kernel's tables are the only state that `detach` needs, so nothing else can be lost or go stale.
 *
 * ```text
 * colo-proxy:TAP:BRIDGE:XY      X, Y: nf_call_iptables and nf_call_ip6tables of the bridge before the first attach
 * ```
 *
 * Interface names contain neither colons nor white space (dev_valid_name in the kernel).
 *
 * @module
 */
import type { Action, Backend, BridgeCalls, IpFamily, Step, Tables } from './types.ts';

/** A rule of `attach`, as wanted or as found. */
export interface AttachRule {
  readonly family: IpFamily;
  readonly chain: 'PREROUTING' | 'POSTROUTING';
  readonly tap: string;
  readonly bridge: string;
  readonly before: BridgeCalls;
  readonly queue: number;
  readonly isBypassing: boolean;
}

/** A rule that is in the tables. */
export interface FoundRule extends AttachRule {
  readonly backend: Backend;
  readonly program: string;
  /** Chain and specification, as iptables takes them after `-A` and `-D`. */
  readonly words: readonly string[];
}

const TAG = /^colo-proxy:([^:]+):([^:]+):([01])([01])$/;

/** For the lock of the tables, which other programs take as well. */
const LOCK_WAIT_SECONDS = '5';

/** The two rules of one family: the guest's output on the first queue, what goes to it on the second. */
export function rulesOf(
  family: IpFamily,
  { queue, ...same }: Omit<AttachRule, 'family' | 'chain'>,
): AttachRule[] {
  return [
    { ...same, family, chain: 'PREROUTING', queue },
    { ...same, family, chain: 'POSTROUTING', queue: queue + 1 },
  ];
}

/** Puts the rule before all others of its chain. */
export function insertRule(program: string, rule: AttachRule): Step {
  const words = [rule.chain, ...specification(rule)];
  return {
    action: iptables(program, '-I', words),
    undo: iptables(program, '-D', words),
    hint: 'it needs xt_physdev, xt_comment and xt_NFQUEUE',
  };
}

/** Takes a rule out of its chain. */
export function deleteRule(rule: FoundRule): Step {
  return {
    action: iptables(rule.program, '-D', rule.words),
    undo: iptables(rule.program, '-I', rule.words),
  };
}

/** The same packets to the same queue in the same way? */
export function isSameRule(a: AttachRule, b: AttachRule): boolean {
  return (
    a.family === b.family &&
    a.chain === b.chain &&
    a.tap === b.tap &&
    a.bridge === b.bridge &&
    a.queue === b.queue &&
    a.isBypassing === b.isBypassing
  );
}

/** All rules of all attached taps. */
export function findRules(tables: readonly Tables[]): FoundRule[] {
  return tables.flatMap(({ backend, programs, saved }) =>
    ([4, 6] as const).flatMap((family) => {
      const program = programs[family];
      if (program === undefined) return [];
      return rulesOfTable(saved[family] ?? '', 'mangle').flatMap((words) => {
        const rule = readRule(family, words);
        return rule === undefined ? [] : [{ ...rule, backend, program, words }];
      });
    }),
  );
}

/** Queue numbers of all NFQUEUE rules, whoever made them. */
export function queuesOfRules(tables: readonly Tables[]): Set<number> {
  const queues = new Set<number>();
  for (const { saved } of tables) {
    const text = `${saved[4] ?? ''}\n${saved[6] ?? ''}`;
    for (const match of text.matchAll(
      / -j NFQUEUE(?: --queue-(?:num|balance) (\d+)(?::(\d+))?)?/g,
    )) {
      const first = Number(match[1] ?? 0);
      const last = Number(match[2] ?? first);
      for (let queue = first; queue <= last; queue++) queues.add(queue);
    }
  }
  return queues;
}

/** Whether the tables hold any rule. */
export function hasRules({ saved }: Tables): boolean {
  return [saved[4], saved[6]].some((text) => /^-A /m.test(text ?? ''));
}

function specification({ chain, tap, bridge, before, queue, isBypassing }: AttachRule): string[] {
  const device =
    chain === 'PREROUTING' ? ['--physdev-in', tap] : ['--physdev-out', tap, '--physdev-is-bridged'];
  const tag = `colo-proxy:${tap}:${bridge}:${Number(before[4])}${Number(before[6])}`;
  const target = ['-j', 'NFQUEUE', '--queue-num', String(queue)];
  const words = ['-m', 'physdev', ...device, '-m', 'comment', '--comment', tag, ...target];
  return isBypassing ? [...words, '--queue-bypass'] : words;
}

function iptables(program: string, verb: '-I' | '-D', words: readonly string[]): Action {
  const command = [program, '-w', LOCK_WAIT_SECONDS, '-t', 'mangle', verb, ...words];
  return { kind: 'run', command };
}

/** The rules of one table in the output of iptables-save, each from its chain on. */
function rulesOfTable(saved: string, table: string): string[][] {
  const rules: string[][] = [];
  let isInside = false;
  for (const line of saved.split('\n')) {
    if (line.startsWith('*')) isInside = line === `*${table}`;
    else if (isInside && line.startsWith('-A ')) rules.push(splitWords(line).slice(1));
  }
  return rules;
}

/** iptables-save puts words in double quotes that need it, with backslashes before quotes and backslashes. */
function splitWords(line: string): string[] {
  const words = line.matchAll(/"((?:[^"\\]|\\.)*)"|(\S+)/g);
  return Array.from(words, ([, quoted, plain]) => quoted?.replace(/\\(.)/g, '$1') ?? plain ?? '');
}

function readRule(family: IpFamily, words: readonly string[]): AttachRule | undefined {
  const after = (word: string): string | undefined => words[words.indexOf(word) + 1];
  const tag = words.includes('--comment') ? TAG.exec(after('--comment') ?? '') : null;
  const chain = words[0];
  if (tag === null || (chain !== 'PREROUTING' && chain !== 'POSTROUTING')) return undefined;
  const [, tap = '', bridge = '', before4, before6] = tag;
  return {
    family,
    chain,
    tap,
    bridge,
    before: { 4: before4 === '1', 6: before6 === '1' },
    queue: Number(after('--queue-num')),
    isBypassing: words.includes('--queue-bypass'),
  };
}
