/**
 * All scenarios, in the order in which they are run.
 *
 * @module
 */
import type { Scenario } from '../scenario.ts';
import { proxyDeadBypass, proxyDeadNoBypass } from './dead-proxy.ts';
import { divergence } from './divergence.ts';
import { failoverDownload, failoverGuestOpened, failoverIdle, failoverUpload } from './failover.ts';
import { liveAttach } from './live-attach.ts';
import { lossy } from './lossy.ts';
import { peerLoss } from './peer-loss.ts';
import { silentSecondary } from './silent-secondary.ts';
import { steady } from './steady.ts';

export const SCENARIOS: readonly Scenario[] = [
  steady,
  failoverDownload,
  failoverUpload,
  failoverIdle,
  failoverGuestOpened,
  divergence,
  silentSecondary,
  peerLoss,
  lossy,
  liveAttach,
  proxyDeadBypass,
  proxyDeadNoBypass,
];
