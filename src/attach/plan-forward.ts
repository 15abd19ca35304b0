/**
 * The raw forward device of an attach: the host's IP stack leaves it to the daemon, and it is put up. Its alias says whose it is and what
 * it was like, before an alias that it may have had.
 *
 * ```text
 * colo-proxy:TAP:forward:A:D:U[ OLD]      A, D: arp_ignore and disable_ipv6 before; U: 1 if it was up
 * ```
 *
 * @module
 */
import { findLink, refused } from './checks.ts';
import { setLink, setStack, silence, stackWords, wordsToStack } from './links.ts';
import type { AttachRequest, HostFacts, Link, StackSettings, Step } from './types.ts';

const TAG = /^colo-proxy:([^:]+):forward:([^:]+):([^:]+):([01])(?: (.*))?$/s;

/** IFALIASZ of the kernel, without its zero. */
const ALIAS_BYTES_MAX = 255;

/**
 * Plans what a forward device needs; nothing where none is asked for.
 *
 * @throws ColoError `COLO_ERR_ATTACH_INTERFACE`, `..._CONFLICT`: why it cannot be
 */
export function planForwardAttach(request: AttachRequest, facts: HostFacts): Step[] {
  const { forwardDev: name, tap, bridge } = request;
  if (name === undefined) return [];
  const link = findLink(facts, name);
  if (link === undefined) throw refused('INTERFACE', `There is no interface ${name}`);
  if (name === tap || name === bridge) {
    throw refused('INTERFACE', `The forward device cannot be ${name} as well`);
  }
  if (link.master !== '') {
    throw refused('INTERFACE', `${name} is in ${link.master}: a forward device is in no bridge`);
  }
  const other = findForward(tap, facts);
  if (other !== undefined && other.name !== name) {
    throw refused('CONFLICT', `${tap} has the forward device ${other.name}: detach it first`);
  }
  const owner = TAG.exec(link.alias)?.[1];
  if (owner !== undefined && owner !== tap) {
    throw refused('CONFLICT', `${name} is the forward device of ${owner} already`);
  }
  return [
    ...(owner === undefined ? [setTag(link, tap)] : []),
    ...silence(name, link.stack),
    ...(link.isUp ? [] : [setLink(name, ['up'], ['down'])]),
  ];
}

/** Plans to leave the forward device of a tap as it was. */
export function planForwardDetach(tap: string, facts: HostFacts): Step[] {
  const link = findForward(tap, facts);
  if (link === undefined) return [];
  const { before, wasUp, alias } = tagOf(link);
  return [
    ...(link.isUp && !wasUp ? [setLink(link.name, ['down'], ['up'])] : []),
    ...setStack(link.name, link.stack, before),
    setLink(link.name, ['alias', alias], ['alias', link.alias]),
  ];
}

/** The forward device of an attached tap. */
export function findForward(tap: string, { links }: HostFacts): Link | undefined {
  return links.find((link) => TAG.exec(link.alias)?.[1] === tap);
}

function setTag({ name, alias, stack, isUp }: Link, tap: string): Step {
  const tag = ['colo-proxy', tap, 'forward', ...stackWords(stack), isUp ? '1' : '0'].join(':');
  const text = alias === '' ? tag : `${tag} ${alias}`;
  if (new TextEncoder().encode(text).length > ALIAS_BYTES_MAX) {
    throw refused('CONFLICT', `The alias of ${name} leaves no room for what detach has to know`);
  }
  return setLink(name, ['alias', text], ['alias', alias]);
}

function tagOf({ alias }: Link): {
  readonly before: StackSettings;
  readonly wasUp: boolean;
  readonly alias: string;
} {
  const [, , arpIgnore = '', disableIpv6 = '', up, old = ''] = TAG.exec(alias) ?? [];
  return { before: wordsToStack([arpIgnore, disableIpv6]), wasUp: up === '1', alias: old };
}
