/**
 * All scenarios, by name.
 *
 * @module
 */
import { FAILOVER_SCENARIOS } from './failover.ts';
import { RELEASE_SCENARIOS } from './release.ts';
import type { Scenario } from './scenario.ts';

export const SCENARIOS: readonly Scenario[] = [...FAILOVER_SCENARIOS, ...RELEASE_SCENARIOS];
