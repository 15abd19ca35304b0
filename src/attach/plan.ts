/**
 * What has to be done to attach a tap, or to detach it: facts in, steps out. Only what is missing is planned, so that an attach
 * that is complete gives no steps, and one that was cut short is completed.
 *
 * @module
 */
import { refused } from './checks.ts';
import { planForwardAttach, planForwardDetach } from './plan-forward.ts';
import { findVeth, planPacketAttach, planPacketDetach } from './plan-packet.ts';
import { planQueueAttach, planQueueDetach } from './plan-queue.ts';
import { findRules } from './rules.ts';
import type { AttachPlan, AttachRequest, HostFacts, Plan } from './types.ts';

/**
 * Plans an attach.
 *
 * @throws ColoError `COLO_ERR_ATTACH_INTERFACE`, `..._TABLES`, `..._QUEUE`, `..._CONFLICT`: why it cannot be
 */
export function planAttach(request: AttachRequest, facts: HostFacts): AttachPlan {
  const { tap, mode } = request;
  const rule = findRules(facts.tables).find((other) => other.tap === tap);
  if (mode === 'packet' && rule !== undefined) {
    throw refused('CONFLICT', `${tap} is attached already, by rules: detach it first`);
  }
  const veth = findVeth(tap, facts);
  if (mode === 'nfqueue' && veth !== undefined) {
    throw refused('CONFLICT', `${tap} is attached already, by ${veth.name}: detach it first`);
  }
  const forward = planForwardAttach(request, facts);
  const plan =
    mode === 'packet' ? planPacketAttach(request, facts) : planQueueAttach(request, facts);
  return { ...plan, steps: [...forward, ...plan.steps] };
}

/** Plans to take back whatever attach has done for a tap, which need not exist any more. */
export function planDetach(tap: string, facts: HostFacts): Plan {
  const byVeth = planPacketDetach(tap, facts);
  const byRules = planQueueDetach(tap, facts);
  return {
    steps: [...byVeth.steps, ...byRules.steps, ...planForwardDetach(tap, facts)],
    notes: [...byVeth.notes, ...byRules.notes],
  };
}
