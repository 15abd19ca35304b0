/**
 * What attaching needs, in whatever mode.
 *
 * @module
 */
import { ColoError } from '../base/error.ts';
import type { AttachRequest, HostFacts, Link } from './types.ts';

/** The tap and its bridge, as links. */
export interface Place {
  readonly tap: Link;
  readonly bridge: Link;
}

/**
 * Finds the tap and the bridge of a request.
 *
 * @throws ColoError `COLO_ERR_ATTACH_INTERFACE`
 */
export function findPlace({ tap: tapName, bridge: name }: AttachRequest, facts: HostFacts): Place {
  const tap = findLink(facts, tapName);
  if (tap === undefined) throw refused('INTERFACE', `There is no interface ${tapName}`);
  const bridge = findLink(facts, name);
  if (bridge === undefined) throw refused('INTERFACE', `There is no bridge ${name}`);
  if (bridge.kind !== 'bridge') throw refused('INTERFACE', `${name} is not a bridge of the kernel`);
  return { tap, bridge };
}

/**
 * Checks that the tap is in the bridge.
 *
 * @throws ColoError `COLO_ERR_ATTACH_INTERFACE`
 */
export function checkIsPort({ tap, bridge }: Place): void {
  if (tap.master === bridge.name) return;
  const place = tap.master === '' ? 'in no bridge' : `in ${tap.master}`;
  throw refused('INTERFACE', `${tap.name} is ${place}, not in ${bridge.name}`);
}

export function findLink({ links }: HostFacts, name: string): Link | undefined {
  return links.find((link) => link.name === name);
}

/** The error of an attach that cannot be; `what` is the end of its code. */
export function refused(what: string, text: string): ColoError {
  return new ColoError(`COLO_ERR_ATTACH_${what}`, text);
}
