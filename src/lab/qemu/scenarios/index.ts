/**
 * The scenarios with real virtual machines, in the order in which they are run.
 *
 * @module
 */
import type { Scenario } from '../../scenario.ts';
import type { QemuBench } from '../qemu-bench.ts';
import { divergence } from './divergence.ts';
import { failover } from './failover.ts';
import { hang } from './hang.ts';
import { secondaryLoss } from './secondary-loss.ts';
import { soak } from './soak.ts';
import { steady } from './steady.ts';

export const QEMU_SCENARIOS: readonly Scenario<QemuBench>[] = [
  steady,
  divergence,
  failover,
  secondaryLoss,
  soak,
  hang,
];
