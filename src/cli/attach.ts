/**
 * `colo-proxy attach` and `detach`: plans against the host as it is, prints or carries out.
 *
 * @module
 */
import { gatherFacts } from '../attach/facts.ts';
import { planAttach, planDetach } from '../attach/plan.ts';
import { describeAction, exclusively, runSteps } from '../attach/run.ts';
import type { AttachMode, AttachPlan, Plan } from '../attach/types.ts';
import { ColoError } from '../base/error.ts';
import type { Role } from '../env/messages.ts';
import type { ProgramIo } from './args.ts';
import { EXIT_OK } from './exit.ts';

/** What both commands have. */
interface CommonFlags {
  readonly tap: string;
  readonly iptables?: string;
  readonly dryRun?: boolean;
  readonly verbose?: boolean;
  readonly json?: boolean;
}

/** The flags of `attach`. */
export interface AttachFlags extends CommonFlags {
  readonly bridge: string;
  /** @default nfqueue on the primary, packet on the secondary */
  readonly mode?: AttachMode;
  readonly veth?: string;
  readonly forwardDev?: string;
  readonly queue?: number;
  /** `--no-bypass`. */
  readonly bypass: boolean;
  readonly listening?: boolean;
}

export type DetachFlags = CommonFlags;

/** @throws ColoError `COLO_ERR_USAGE`, `COLO_ERR_ATTACH_...` */
export async function runAttach(role: Role, flags: AttachFlags, io: ProgramIo): Promise<number> {
  const { tap, bridge, queue, veth, forwardDev, iptables } = flags;
  const mode = chooseMode(role, flags);
  const request = {
    mode,
    tap,
    bridge,
    ...(queue !== undefined && { queue }),
    ...(veth !== undefined && { veth }),
    ...(forwardDev !== undefined && { forwardDev }),
    isBypassing: flags.bypass,
    isListening: flags.listening === true,
  };
  const plan = await exclusively(() => {
    const made = planAttach(request, gatherFacts(iptables));
    carryOut(made, flags, io);
    return made;
  });
  report(plan, flags, io, { role, bridge, ...plan.by }, attachedText(plan, flags));
  return EXIT_OK;
}

/** The flags of one mode mean nothing in the other. */
function chooseMode(role: Role, flags: AttachFlags): AttachMode {
  const { mode = role === 'primary' ? 'nfqueue' : 'packet' } = flags;
  if (role === 'secondary' && mode === 'nfqueue') {
    const text =
      'The secondary keeps its guest away from the network, which queues do not: it takes --mode packet only';
    throw new ColoError('COLO_ERR_USAGE', text);
  }
  const { queue, bypass, listening, veth } = flags;
  const isQueued = queue !== undefined || !bypass || listening === true;
  if (mode === 'packet' && isQueued) {
    const text = '--queue, --no-bypass and --listening are of --mode nfqueue';
    throw new ColoError('COLO_ERR_USAGE', text);
  }
  if (mode === 'nfqueue' && veth !== undefined) {
    throw new ColoError('COLO_ERR_USAGE', '--veth is of --mode packet');
  }
  return mode;
}

/** @throws ColoError `COLO_ERR_ATTACH_...` */
export async function runDetach(flags: DetachFlags, io: ProgramIo): Promise<number> {
  const { tap, iptables } = flags;
  const plan = await exclusively(() => {
    const made = planDetach(tap, gatherFacts(iptables));
    carryOut(made, flags, io);
    return made;
  });
  const text = plan.steps.length === 0 ? `${tap} is not attached` : `detached ${tap}`;
  report(plan, flags, io, {}, text);
  return EXIT_OK;
}

function carryOut({ steps }: Plan, { dryRun, verbose }: CommonFlags, io: ProgramIo): void {
  if (dryRun === true) return;
  runSteps(steps, (action) => {
    if (verbose === true) io.err(`+ ${describeAction(action)}\n`);
  });
}

function attachedText({ steps, by }: AttachPlan, { tap, bridge, forwardDev }: AttachFlags): string {
  const word = steps.length === 0 ? 'is attached already' : 'attached';
  const net = by.mode === 'packet' ? ` --net ${by.net}` : '';
  const forward = forwardDev === undefined ? '' : ` --forward-dev ${forwardDev}`;
  return `${tap} of ${bridge} ${word}: the daemon takes --guest ${by.guest}${net}${forward}`;
}

/** With `--dry-run` standard output is a script: everything else in it is a comment. */
function report(
  { steps, notes }: Plan,
  { tap, dryRun = false, json }: CommonFlags,
  io: ProgramIo,
  facts: Record<string, unknown>,
  text: string,
): void {
  if (json === true) {
    const commands = steps.map(({ action, undo }) => ({
      command: describeAction(action),
      undo: undo === undefined ? null : describeAction(undo),
    }));
    io.out(`${JSON.stringify({ ok: true, tap, ...facts, dryRun, commands, notes })}\n`);
    return;
  }
  for (const note of notes) io.err(`colo-proxy: note: ${note}\n`);
  if (!dryRun) io.out(`${text}\n`);
  else if (steps.length === 0) io.out('# nothing is to be done\n');
  else for (const { action } of steps) io.out(`${describeAction(action)}\n`);
}
