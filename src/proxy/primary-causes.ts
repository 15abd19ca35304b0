/**
 * Why a TCP connection of the primary asks for a checkpoint: since when it has waited for the other guest and for what, and where
 * the two differ.
 *
 * @module
 */
import { type Micros, NEVER } from '../base/time.ts';
import type { CheckpointCause } from '../env/messages.ts';
import { COMPARE_LAG_TIMEOUTS } from '../limits.ts';
import { seqAdd, seqDistance } from '../wire/seq.ts';
import { TCP_RST } from '../wire/tcp.ts';
import { EXCERPT_BYTES_MAX, type PrimaryContext } from './primary-context.ts';
import { lentExcerpt } from './primary-lent.ts';
import type { TcpFlow } from './primary-tcp.ts';

/** Since when the other guest has been silent about the oldest thing that waits; NEVER when nothing does. */
export function waitingSinceUs(flow: TcpFlow, compareTimeoutUs: Micros): Micros {
  return Math.min(
    headSinceUs(flow, compareTimeoutUs),
    flow.heldAck?.ackSinceUs ?? NEVER,
    flow.heldAck?.windowSinceUs ?? NEVER,
    sinceProgress(flow, flow.secondarySinceUs, compareTimeoutUs),
    flow.resetSinceUs,
  );
}

/** What has waited longest, when the compare timeout has passed since `waitingSinceUs`. */
export function timeoutCause(flow: TcpFlow, compareTimeoutUs: Micros): CheckpointCause {
  const since = waitingSinceUs(flow, compareTimeoutUs);
  if (headSinceUs(flow, compareTimeoutUs) === since) {
    const isReset = ((flow.held[0]?.flags ?? 0) & TCP_RST) !== 0;
    return isReset ? 'reset-mismatch' : 'secondary-silent';
  }
  if (flow.resetSinceUs === since) return 'reset-mismatch';
  if (flow.heldAck?.ackSinceUs === since) return 'acknowledgement-behind';
  if (flow.heldAck?.windowSinceUs === since) return 'window-closed';
  return 'primary-silent';
}

function headSinceUs(flow: TcpFlow, compareTimeoutUs: Micros): Micros {
  const head = flow.held[0] ?? flow.lentFirst;
  return head === undefined ? NEVER : sinceProgress(flow, head.arrivedUs, compareTimeoutUs);
}

/** See COMPARE_LAG_TIMEOUTS. */
function sinceProgress(flow: TcpFlow, sinceUs: Micros, compareTimeoutUs: Micros): Micros {
  if (flow.progressUs <= sinceUs || sinceUs === NEVER) return sinceUs;
  const lagUs = (COMPARE_LAG_TIMEOUTS - 1) * compareTimeoutUs;
  return Math.min(flow.progressUs, sinceUs + lagUs);
}

/** Asks for a checkpoint, and says where in the stream: bytes after the SYN, or -1 when that is not known. */
export function wantCheckpoint(
  context: PrimaryContext,
  flow: TcpFlow,
  cause: CheckpointCause,
): void {
  const { comparer } = flow;
  const isn = flow.handshake.primaryIsn;
  const isKnown = comparer.started && isn !== undefined;
  const offset = isKnown ? seqDistance(seqAdd(isn, 1), comparer.compared) >>> 0 : -1;
  const primary =
    lentExcerpt(flow, EXCERPT_BYTES_MAX) ?? comparer.excerpt('primary', EXCERPT_BYTES_MAX);
  const secondary = comparer.excerpt('secondary', EXCERPT_BYTES_MAX);
  context.want(flow, cause, offset, primary, secondary);
}
