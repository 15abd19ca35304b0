/**
 * `--vm` as an operator writes it. Apart from the drivers, so that the command line can check it without
 * loading them.
 *
 * @module
 */
import { ColoError } from '../base/error.ts';
import { type Endpoint, parseEndpoint } from './endpoint.ts';

/** A checked `--vm`. */
export type VmSpec =
  | { readonly kind: 'none' }
  | { readonly kind: 'exec'; readonly command: string }
  | { readonly kind: 'qmp'; readonly endpoint: Endpoint };

/** A checked `--nfnetlink`. */
export type NfnetlinkSpec =
  | { readonly kind: 'netlink'; readonly portId: number }
  | { readonly kind: 'unix'; readonly path: string };

/** A checked `--on-peer-loss`; see arbiter.ts. */
export type PeerLossSpec =
  | { readonly kind: 'release' | 'hold' | 'wait' | 'failover' }
  | { readonly kind: 'exec'; readonly command: string };

/**
 * Reads `none`, `exec:COMMAND`, `qmp:unix:PATH` or `qmp:HOST:PORT`.
 *
 * @throws ColoError `COLO_ERR_VM_SPEC`
 */
export function parseVmSpec(text: string): VmSpec {
  if (text === 'none') return { kind: 'none' };
  if (text.startsWith('exec:')) {
    const command = text.slice('exec:'.length);
    if (command.trim() !== '' && !command.includes('\0')) return { kind: 'exec', command };
  }
  if (text.startsWith('qmp:'))
    return { kind: 'qmp', endpoint: parseEndpoint(text.slice('qmp:'.length)) };
  const expected = 'none, exec:COMMAND, qmp:unix:PATH or qmp:HOST:PORT';
  throw new ColoError('COLO_ERR_VM_SPEC', `Expected ${expected}; got '${text}'`);
}

/**
 * Reads `PORTID` (1 to 2^32 - 1) or `unix:PATH`.
 *
 * @throws ColoError `COLO_ERR_VM_SPEC`
 */
export function parseNfnetlinkSpec(text: string): NfnetlinkSpec {
  if (/^\d{1,10}$/.test(text)) {
    const portId = Number(text);
    if (portId >= 1 && portId <= 0xffff_ffff) return { kind: 'netlink', portId };
  }
  if (text.startsWith('unix:')) {
    const endpoint = parseEndpoint(text);
    if (endpoint.kind === 'unix') return endpoint;
  }
  const expected = 'PORTID (1 to 4294967295) or unix:PATH';
  throw new ColoError('COLO_ERR_VM_SPEC', `Expected ${expected}; got '${text}'`);
}

/**
 * Reads the primary's `release`, `hold` or `exec:COMMAND`, or the secondary's `wait`, `failover` or `exec:COMMAND`.
 *
 * @throws ColoError `COLO_ERR_VM_SPEC`
 */
export function parsePeerLossSpec(role: 'primary' | 'secondary', text: string): PeerLossSpec {
  const words =
    role === 'primary' ? (['release', 'hold'] as const) : (['wait', 'failover'] as const);
  for (const kind of words) if (text === kind) return { kind };
  if (text.startsWith('exec:')) {
    const command = text.slice('exec:'.length);
    if (command.trim() !== '' && !command.includes('\0')) return { kind: 'exec', command };
  }
  const expected = `${words.join(', ')} or exec:COMMAND`;
  throw new ColoError('COLO_ERR_VM_SPEC', `Expected ${expected}; got '${text}'`);
}

/**
 * Reads a value of `--on-peer-loss` of either role: a configuration file does not know whose it is.
 *
 * @throws ColoError `COLO_ERR_VM_SPEC`
 */
export function parseAnyPeerLossSpec(text: string): PeerLossSpec {
  if (text === 'wait' || text === 'failover') return { kind: text };
  return parsePeerLossSpec('primary', text);
}
