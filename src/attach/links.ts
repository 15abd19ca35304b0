/**
 * Changes of links and of what the host's IP stack does on them.
 *
 * @module
 */
import type { Action, StackSettings, Step } from './types.ts';

/**
 * The host stays out of the traffic of an interface that is the proxy's: its kernel would answer ARP requests for the host's
 * addresses there too (arp_ignore 8: for none), and solicit routers.
 */
const SILENT: StackSettings = { arp_ignore: '8', disable_ipv6: '1' };

/** In an alias, for a setting that the kernel had not. */
const NONE = '-';

const STACK_KEYS = ['arp_ignore', 'disable_ipv6'] as const;

/** Keeps the host's IP stack out of the traffic of an interface. */
export function silence(name: string, stack: StackSettings): Step[] {
  return setStack(name, stack, SILENT);
}

/** Brings the settings that the kernel has from `stack` to `wanted`. */
export function setStack(name: string, stack: StackSettings, wanted: StackSettings): Step[] {
  return STACK_KEYS.flatMap((key) => {
    const [from, to] = [stack[key], wanted[key]];
    if (from === undefined || to === undefined || from === to) return [];
    const path = `/proc/sys/net/${key === 'arp_ignore' ? 'ipv4' : 'ipv6'}/conf/${name}/${key}`;
    return [
      { action: { kind: 'write', path, text: to }, undo: { kind: 'write', path, text: from } },
    ];
  });
}

/** The settings as parts of a tag, in a fixed order. */
export function stackWords(stack: StackSettings): string[] {
  return STACK_KEYS.map((key) => stack[key] ?? NONE);
}

/** Reads what `stackWords` has written. */
export function wordsToStack([arpIgnore, disableIpv6]: readonly string[]): StackSettings {
  const value = (word: string | undefined) => (word === NONE ? undefined : word);
  return { arp_ignore: value(arpIgnore), disable_ipv6: value(disableIpv6) };
}

/** `ip link set`; `undo` undefined where another step takes it back. */
export function setLink(
  name: string,
  words: readonly string[],
  undo: readonly string[] | undefined,
): Step {
  const command = (rest: readonly string[]) => ip(['link', 'set', 'dev', name, ...rest]);
  return { action: command(words), undo: undo && command(undo) };
}

/** A command of iproute2. */
export function ip(words: readonly string[]): Action {
  return { kind: 'run', command: ['ip', ...words] };
}
