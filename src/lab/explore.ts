/**
 * `lab --keep`: tells how to enter a bench that stays up.
 *
 * @module
 */
import type { LabBench } from './bench.ts';
import { COLO_PROXY_SCRIPT } from './program.ts';
import { isRootless, outerPid } from './sandbox.ts';
import { ADDRESSES, namespacesOf } from './topology.ts';

/** What to type in another terminal. */
export function exploreText(bench: LabBench): string {
  const pid = outerPid();
  // In a user namespace of the lab's own, nsenter has to enter that first.
  const user = isRootless() ? `--user=/proc/${pid}/ns/user --preserve-credentials ` : '';
  const enter = namespacesOf(bench.topology).map(
    ({ name, fd }) => `    ${name.padEnd(8)} nsenter ${user}--net=/proc/${pid}/fd/${fd}`,
  );
  const controls = [bench.primary, bench.secondary].map(
    ({ role, controlPath }) =>
      `    ${role.padEnd(10)} node ${COLO_PROXY_SCRIPT} ctl --control ${controlPath} status`,
  );
  return [
    '',
    'The bench is up. Enter a namespace (and run for example `ip addr` there):',
    ...enter,
    `The guest is ${ADDRESSES[4].guest} and ${ADDRESSES[6].guest}: HTTP on 80 (/bytes/N, /random, PUT /upload), echo on 7.`,
    'Ask the nodes:',
    ...controls,
    'Logs:',
    ...[bench.primary, bench.secondary].map(({ logPath }) => `    ${logPath}`),
    'Ctrl-C takes everything down.',
    '',
  ].join('\n');
}
