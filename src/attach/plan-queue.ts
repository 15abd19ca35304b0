/**
 * Attaching by rules: the tap stays in its bridge, and netfilter queues its packets for the daemon.
 *
 * The order of the steps keeps what `detach` has to know in the kernel at any moment: the rules, whose comments
 * say how the bridge was, come before the bridge is changed, and go after it is changed back.
 *
 * @module
 */
import { checkIsPort, findLink, findPlace, refused } from './checks.ts';
import {
  type AttachRule,
  deleteRule,
  type FoundRule,
  findRules,
  insertRule,
  isSameRule,
  queuesOfRules,
  rulesOf,
} from './rules.ts';
import type {
  AttachPlan,
  AttachRequest,
  BridgeCalls,
  HostFacts,
  IpFamily,
  Link,
  Plan,
  Step,
  Tables,
} from './types.ts';

/** Where the search for a free pair begins: low numbers are what other programs take by default. */
const QUEUE_FIRST = 64;

/** Queue numbers are 16 bits; a pair has to fit. */
export const QUEUE_MAX = 65_534;

/** The bridge's own switches: those of net.bridge.* would send the frames of all bridges of the host through iptables. */
const CALL_SWITCHES: Readonly<Record<IpFamily, string>> = {
  4: 'nf_call_iptables',
  6: 'nf_call_ip6tables',
};

const SYSCTL_FOLDER = '/proc/sys/net/bridge';

/**
 * Plans the rules of a tap and the switches of its bridge.
 *
 * @throws ColoError `COLO_ERR_ATTACH_INTERFACE`, `..._TABLES`, `..._QUEUE`, `..._CONFLICT`: why it cannot be
 */
export function planQueueAttach(request: AttachRequest, facts: HostFacts): AttachPlan {
  const { tap, bridge: bridgeName } = request;
  const place = findPlace(request, facts);
  const { bridge } = place;
  checkIsPort(place);
  // iptables would take it for a prefix.
  if (tap.endsWith('+')) {
    throw refused('INTERFACE', `A rule cannot name ${tap}: iptables takes the + for any ending`);
  }
  const found = findRules(facts.tables);
  const own = found.filter((rule) => rule.tap === tap);
  const tables = chooseTables(own, facts);
  const families = facts.hasIpv6 ? ([4, 6] as const) : ([4] as const);
  const queue = own.length > 0 ? queueOf(own) : chooseQueue(request, facts);
  // Who has come first knows what the bridge was like.
  const before = found.find((rule) => rule.bridge === bridgeName)?.before ?? bridge.callsIptables;
  const wanted = families.flatMap((family) =>
    rulesOf(family, { tap, bridge: bridgeName, before, queue, isBypassing: request.isBypassing }),
  );
  checkConflict(request, own, wanted);
  const steps = wanted
    .filter((rule) => !own.some((other) => isSameRule(rule, other)))
    .map((rule) => insertRule(programFor(tables, rule.family), rule));
  return {
    steps: [
      ...loadBridgeNetfilter(facts),
      ...steps,
      ...switchCalls(bridge, { 4: true, 6: facts.hasIpv6 || bridge.callsIptables[6] }),
    ],
    notes: notesOf(bridge, tables, facts),
    by: { mode: 'nfqueue', queue, guest: `nfqueue:${queue},tap=${tap},bridge=${bridgeName}` },
  };
}

/** Plans to take the rules of a tap back; neither it nor its bridge needs to exist any more. */
export function planQueueDetach(tap: string, facts: HostFacts): Plan {
  const found = findRules(facts.tables);
  const own = found.filter((rule) => rule.tap === tap);
  const bridges = new Map(own.map((rule) => [rule.bridge, rule.before]));
  const steps: Step[] = [];
  for (const [name, before] of bridges) {
    const link = findLink(facts, name);
    const bridge = link?.kind === 'bridge' ? link : undefined;
    const isShared = found.some((rule) => rule.bridge === name && rule.tap !== tap);
    if (bridge !== undefined && !isShared) steps.push(...switchCalls(bridge, before));
  }
  return { steps: [...steps, ...own.map(deleteRule)], notes: [] };
}

/** Rules that are there already decide; a second set in the other backend would queue everything twice. */
function chooseTables(own: readonly FoundRule[], facts: HostFacts): Tables {
  const [first] = facts.tables;
  if (first === undefined) throw refused('TABLES', 'There is no iptables on this host: install it');
  const backend = own[0]?.backend;
  const tables = facts.tables.find((other) => other.backend === backend) ?? first;
  if (facts.isBackendGiven && tables !== first) {
    const text = `is attached by rules of ${programFor(tables, 4)}: detach it first, or leave --iptables out`;
    throw refused('CONFLICT', `${own[0]?.tap} ${text}`);
  }
  return tables;
}

function programFor({ programs, backend }: Tables, family: IpFamily): string {
  const program = programs[family];
  if (program !== undefined) return program;
  const name = family === 4 ? 'iptables' : 'ip6tables';
  throw refused(
    'TABLES',
    `There is no ${name} (${backend}) on this host, but the kernel has IPv${family}`,
  );
}

function queueOf(own: readonly AttachRule[]): number {
  const [rule] = own;
  return rule === undefined ? 0 : rule.queue - Number(rule.chain === 'POSTROUTING');
}

function chooseQueue({ queue, tap, isListening }: AttachRequest, facts: HostFacts): number {
  const inRules = queuesOfRules(facts.tables);
  const bound = new Set(facts.boundQueues);
  if (queue === undefined) {
    for (let free = QUEUE_FIRST; free <= QUEUE_MAX; free += 2) {
      if ([free, free + 1].every((number) => !inRules.has(number) && !bound.has(number)))
        return free;
    }
    throw refused('QUEUE', `No two queues are free for ${tap}`);
  }
  for (const number of [queue, queue + 1]) {
    if (inRules.has(number)) {
      const owner = findRules(facts.tables).find((rule) => rule.queue === number);
      const user = owner === undefined ? 'another rule of iptables' : `the attached ${owner.tap}`;
      throw refused('QUEUE', `Queue ${number} is used by ${user}: choose another --queue`);
    }
    if (bound.has(number) && !isListening) {
      const text = `A process listens on queue ${number} already: choose another --queue, or say --listening when that is the daemon for ${tap}`;
      throw refused('QUEUE', text);
    }
  }
  return queue;
}

/** A half-done attach is completed; one that differs is the operator's to decide. */
function checkConflict(
  { tap, queue }: AttachRequest,
  own: readonly FoundRule[],
  wanted: readonly AttachRule[],
): void {
  const [first] = own;
  if (first === undefined) return;
  const attached = queueOf(own);
  const isOther = own.some((rule) => !wanted.some((other) => isSameRule(rule, other)));
  if (!isOther && (queue === undefined || queue === attached)) return;
  const how = `${first.isBypassing ? 'with' : 'without'} bypass`;
  const text = `${tap} is attached already, in ${first.bridge}, with queue ${attached}, ${how}: detach it first`;
  throw refused('CONFLICT', text);
}

/** The module begins with all bridges of the host sent through iptables; they are to stay as they were. */
function loadBridgeNetfilter({ allBridgesCall }: HostFacts): Step[] {
  if (allBridgesCall !== undefined) return [];
  const names = ['bridge-nf-call-iptables', 'bridge-nf-call-ip6tables', 'bridge-nf-call-arptables'];
  return [
    {
      action: { kind: 'run', command: ['modprobe', 'br_netfilter'] },
      undo: undefined,
      hint: 'without br_netfilter in the kernel no bridged packet reaches iptables',
    },
    ...names.map(
      (name): Step => ({
        action: { kind: 'write', path: `${SYSCTL_FOLDER}/${name}`, text: '0' },
        undo: undefined,
      }),
    ),
  ];
}

function switchCalls(bridge: Link, wanted: BridgeCalls): Step[] {
  const changed = ([4, 6] as const).filter(
    (family) => bridge.callsIptables[family] !== wanted[family],
  );
  if (changed.length === 0) return [];
  const command = (calls: BridgeCalls) => [
    ...['ip', 'link', 'set', 'dev', bridge.name, 'type', 'bridge'],
    ...changed.flatMap((family) => [CALL_SWITCHES[family], calls[family] ? '1' : '0']),
  ];
  return [
    {
      action: { kind: 'run', command: command(wanted) },
      undo: { kind: 'run', command: command(bridge.callsIptables) },
    },
  ];
}

/** What the operator may not expect. */
function notesOf(bridge: Link, { saved }: Tables, { allBridgesCall }: HostFacts): string[] {
  const isNew = (family: IpFamily): boolean =>
    !bridge.callsIptables[family] && allBridgesCall?.[family] !== true;
  const isDropping = ([4, 6] as const).some(
    (family) => isNew(family) && /^\*filter$[^*]*^:FORWARD DROP /m.test(saved[family] ?? ''),
  );
  if (!isDropping) return [];
  const text = `all packets of ${bridge.name} now pass the chain FORWARD, whose policy is DROP: it needs a rule that accepts them`;
  return [text];
}
