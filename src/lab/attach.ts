/**
 * What an operator does so that the primary node gets the packets of a guest whose tap stays in the bridge.
 *
 * @module
 */
import { spawnSync } from 'node:child_process';
import { ColoError } from '../base/error.ts';
import type { Namespace } from './netns.ts';
import { COLO_PROXY_SCRIPT } from './program.ts';

/** Queue of what the guest sends; the next one is that of what goes to it. */
const QUEUE = 64;
const TAP = 'tap0';
const BRIDGE = 'br0';

/** `--guest` of the primary. */
export const QUEUE_PORT: string = `nfqueue:${QUEUE},tap=${TAP},bridge=${BRIDGE}`;

/**
 * `colo-proxy attach`. @param passes whether packets pass while no proxy runs
 * @throws ColoError `COLO_ERR_LAB_SETUP` with what it said
 */
export function attachByQueue(node: Namespace, passes = true): void {
  const interfaces = ['--tap', TAP, '--bridge', BRIDGE, '--queue', `${QUEUE}`];
  const more = passes ? [] : ['--no-bypass'];
  run(node, ['attach', 'primary', ...interfaces, '--listening', ...more]);
}

/** `colo-proxy detach`. @throws ColoError `COLO_ERR_LAB_SETUP` */
export function detachFromQueue(node: Namespace): void {
  run(node, ['detach', '--tap', TAP]);
}

function run(node: Namespace, args: readonly string[]): void {
  const words = [COLO_PROXY_SCRIPT, ...args];
  const result = node.within(() => spawnSync(process.execPath, words, { encoding: 'utf8' }));
  if (result.status === 0) return;
  const why = result.error?.message ?? result.stderr.trim();
  throw new ColoError('COLO_ERR_LAB_SETUP', `Cannot ${args[0]} in the lab: ${why}`);
}
