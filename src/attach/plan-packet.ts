/**
 * Attaching by wire: the daemon stands between the tap, which leaves its bridge, and a veth pair whose other end takes the tap's
 * place there.
 *
 * ```text
 * before   br0: tap0                           guest
 * after    br0: NAME-b === NAME [daemon] tap0  guest
 * ```
 *
 * The alias of NAME says whose it is and what the tap was like: `detach` needs nothing else. It is set when the pair is made, and goes
 * with it in the last step of `detach`.
 *
 * ```text
 * colo-proxy:TAP:BRIDGE:A:D      A, D: arp_ignore and disable_ipv6 of the tap before; - where the kernel had none
 * ```
 *
 * @module
 */
import { checkIsPort, findLink, findPlace, type Place, refused } from './checks.ts';
import { ip, setLink, setStack, silence, stackWords, wordsToStack } from './links.ts';
import type {
  AttachPlan,
  AttachRequest,
  HostFacts,
  Link,
  Plan,
  StackSettings,
  Step,
} from './types.ts';

const TAG = /^colo-proxy:([^:]+):([^:]+):([^:]+):([^:]+)$/;

/** IFNAMSIZ without its zero. */
const NAME_BYTES_MAX = 15;

/**
 * Plans the veth pair, and the tap's way out of its bridge.
 *
 * @throws ColoError `COLO_ERR_ATTACH_INTERFACE`, `..._CONFLICT`: why it cannot be
 */
export function planPacketAttach(request: AttachRequest, facts: HostFacts): AttachPlan {
  const place = findPlace(request, facts);
  const { tap, bridge } = place;
  const found = findVeth(tap.name, facts);
  if (found === undefined) checkIsPort(place);
  const names = namesOf(request, found);
  const near = findLink(facts, names.near);
  const far = findLink(facts, names.far);
  checkPair(request, found, near, far);
  if (bridge.isVlanAware) {
    const text = `${bridge.name} filters VLANs, and those of ${tap.name} would not go over to ${names.far}: use --mode nfqueue, or do it by hand`;
    throw refused('CONFLICT', text);
  }
  const before = found === undefined ? tap.stack : tagOf(found).before;
  const fresh = { arp_ignore: '0', disable_ipv6: facts.hasIpv6 ? '0' : undefined };
  const steps = [
    ...(near === undefined ? [makePair(names, tap)] : []),
    ...(found === undefined ? [setAlias(names, place, before)] : []),
    ...silence(names.near, near?.stack ?? fresh),
    ...silence(names.far, far?.stack ?? fresh),
    ...joinBridge(names.far, far, bridge.name, tap),
    ...(near?.isUp === true ? [] : [setLink(names.near, ['up'], ['down'])]),
    ...(far?.isUp === true ? [] : [setLink(names.far, ['up'], ['down'])]),
    ...silence(tap.name, tap.stack),
    ...(tap.master === bridge.name ? [leaveBridge(tap)] : []),
  ];
  const by = {
    mode: 'packet',
    guest: `packet:${tap.name}`,
    net: `packet:${names.near}`,
  } as const;
  return { steps, notes: [], by };
}

/** Plans the tap's way back, as far as there is a tap and a bridge. */
export function planPacketDetach(tapName: string, facts: HostFacts): Plan {
  const near = findVeth(tapName, facts);
  if (near === undefined) return { steps: [], notes: [] };
  const tag = tagOf(near);
  const tap = findLink(facts, tapName);
  const bridge = findLink(facts, tag.bridge);
  const far = findLink(facts, near.peer);
  const steps: Step[] = [];
  const notes: string[] = [];
  if (tap !== undefined) {
    if (bridge === undefined) {
      notes.push(`there is no bridge ${tag.bridge} any more: ${tapName} stays in none`);
    } else if (tap.master === '') {
      steps.push(...joinBridge(tapName, tap, bridge.name, far));
    }
    steps.push(...setStack(tapName, tap.stack, tag.before));
  }
  steps.push({ action: ip(['link', 'del', 'dev', near.name]), undo: undefined });
  return { steps, notes };
}

/** The end of the veth pair that the daemon has, of an attached tap. */
export function findVeth(tap: string, { links }: HostFacts): Link | undefined {
  return links.find((link) => TAG.exec(link.alias)?.[1] === tap);
}

interface PairNames {
  readonly near: string;
  readonly far: string;
}

function namesOf({ tap, veth }: AttachRequest, found: Link | undefined): PairNames {
  const near = veth ?? found?.name ?? `cp-${tap}`;
  const far = `${near}-b`;
  if (/[/:\s]/.test(near)) throw refused('INTERFACE', `No interface can have the name ${near}`);
  if (new TextEncoder().encode(far).length <= NAME_BYTES_MAX) return { near, far };
  const text = `${far} is too long for the name of an interface: give a --veth of at most 13 bytes`;
  throw refused('INTERFACE', text);
}

/** Names that are taken must be those of an attach of this tap, or of one that was cut short before it set the alias. */
function checkPair(
  { tap, bridge, veth }: AttachRequest,
  found: Link | undefined,
  near: Link | undefined,
  far: Link | undefined,
): void {
  if (found !== undefined) {
    const isSame = tagOf(found).bridge === bridge && (veth === undefined || veth === found.name);
    if (isSame) return;
    const text = `${tap} is attached already, in ${tagOf(found).bridge} by ${found.name}: detach it first`;
    throw refused('CONFLICT', text);
  }
  const taken = near ?? far;
  if (taken === undefined || isUntagged(near, far)) return;
  throw refused('CONFLICT', `There is an interface ${taken.name} already: choose another --veth`);
}

/** The pair of an attach that was cut short between its first two steps. */
function isUntagged(near: Link | undefined, far: Link | undefined): boolean {
  return near?.kind === 'veth' && near.alias === '' && near.peer === far?.name && far.master === '';
}

/** The far end gets the tap's MAC address and MTU: the bridge may have taken its own from them. */
function makePair({ near, far }: PairNames, tap: Link): Step {
  const mtu = ['mtu', String(tap.mtu)];
  const peer = ['peer', 'name', far, 'address', tap.mac, ...mtu];
  return {
    action: ip(['link', 'add', near, ...mtu, 'type', 'veth', ...peer]),
    undo: ip(['link', 'del', 'dev', near]),
  };
}

function setAlias({ near }: PairNames, { tap, bridge }: Place, before: StackSettings): Step {
  const tag = ['colo-proxy', tap.name, bridge.name, ...stackWords(before)].join(':');
  return setLink(near, ['alias', tag], undefined);
}

function tagOf({ alias }: Link): { readonly bridge: string; readonly before: StackSettings } {
  const [, , bridge = '', ...words] = TAG.exec(alias) ?? [];
  return { bridge, before: wordsToStack(words) };
}

/** Into the bridge, with the settings that the other port has there. */
function joinBridge(
  name: string,
  link: Link | undefined,
  bridge: string,
  other: Link | undefined,
): Step[] {
  const steps: Step[] = [];
  if (link?.master !== bridge) {
    steps.push(setLink(name, ['master', bridge], ['nomaster']));
  }
  const settings = other?.master === bridge ? other.portSettings : {};
  const missing = Object.entries(settings).filter(([key, to]) => link?.portSettings[key] !== to);
  if (missing.length > 0) {
    steps.push(setLink(name, ['type', 'bridge_slave', ...missing.flat()], undefined));
  }
  return steps;
}

function leaveBridge({ name, master, portSettings }: Link): Step {
  const step = setLink(name, ['nomaster'], ['master', master]);
  const settings = Object.entries(portSettings).flat();
  if (settings.length === 0) return step;
  // `ip` takes both in one command.
  return setLink(name, ['nomaster'], ['master', master, 'type', 'bridge_slave', ...settings]);
}
