/**
 * What `colo-proxy ctl --nfnetlink` may be told; apart from what carries it out, so that the command line
 * does not load the foreign functions.
 *
 * @module
 */
import type { ColoAbi } from '../codec/nfnetlink-colo.ts';
import type { NfnetlinkSpec } from '../vm/spec.ts';

/** In any order; nothing comes after `watch`. */
export const NFNETLINK_VERBS = [
  'init',
  'checkpoint',
  'failover',
  'reset',
  'query',
  'watch',
] as const;
export type NfnetlinkVerb = (typeof NFNETLINK_VERBS)[number];

export interface NfnetlinkCtlOptions {
  readonly nfnetlink: NfnetlinkSpec;
  readonly mode: 'primary' | 'secondary' | 'unprotected';
  readonly abi: ColoAbi;
  readonly json?: boolean;
}
