/**
 * `--on-peer-loss`: what happens when the peer is lost, who decides it, and on what evidence.
 *
 * | role | action | meaning |
 * | --- | --- | --- |
 * | primary | `release` (default) | serves on without protection, at once |
 * | primary | `hold` | nothing is released until the peer is back, or somebody says `ctl reset` |
 * | primary | `exec:COMMAND` | holds while COMMAND decides whether to release |
 * | secondary | `wait` (default) | somebody outside decides (`ctl failover`, nfnetlink, x-colo-lost-heartbeat) |
 * | secondary | `failover` | takes over at once |
 * | secondary | `exec:COMMAND` | takes over when COMMAND says so |
 *
 * The peer is lost when its link is closed, or silent for `--peer-timeout`. Neither tells a dead peer from one that only cannot
 * be reached, so `release` together with `failover` lets both nodes serve when the link alone fails. With COMMAND asking
 * something outside (a lock in etcd, a quorum, a power switch) only one of them does.
 *
 * COMMAND runs under `/bin/sh -c` with the evidence as JSON in COLO_PEER_LOSS and the control socket in COLO_CONTROL.
 * Exit code 0: do it (release, take over). 75 (EX_TEMPFAIL), no end within ARBITER_EXEC_TIMEOUT_US, or no process for it: not known yet, it
 * is run again.
 * Any other: no, and it is not asked again. A peer that comes back ends the asking.
 *
 * @module
 */
import { type ChildProcess, spawn } from 'node:child_process';
import { type Micros, US_PER_MS } from '../base/time.ts';
import type { CommandResult } from '../env/engine.ts';
import type { ProxyEvent, Role } from '../env/messages.ts';
import { ARBITER_EXEC_TIMEOUT_US, ARBITER_RETRY_US } from '../limits.ts';
import type { PeerLossSpec } from './spec.ts';

/** EX_TEMPFAIL of sysexits.h. */
const EXIT_AGAIN = 75;
/** What the VM drivers have reported last, as part of the evidence. */
const VM_REPORTS_KEPT = 8;

/** What is known when the peer is lost. */
export interface PeerLossFacts {
  /** Why the link is down: `silent for 1000 ms`, `closed`, `goodbye: ...`. */
  readonly reason: string;
  /** The node's state and epoch at that moment. */
  readonly state: string;
  readonly epoch: number;
  /** Secondary: a state was committed, so the SVM may serve. */
  readonly failoverReady: boolean;
  /** Where the peer was; empty when it was never there. */
  readonly remote: string;
}

/** What a decision does, and where it is told. */
export interface ArbiterActions {
  /** Primary: give up the peer, release what is held. */
  release(reason: string): void;
  /** Secondary: take over; refused while the peer is there. */
  failover(): Promise<CommandResult>;
  /** Becomes a ProxyEvent of kind `arbitration`. */
  report(text: string, fields: Record<string, string | number | boolean>): void;
}

export interface ArbiterOptions {
  readonly role: Role;
  readonly spec: PeerLossSpec;
  readonly actions: ArbiterActions;
  readonly controlPath?: string | undefined;
  /** @default ARBITER_EXEC_TIMEOUT_US */
  readonly timeoutUs?: Micros;
  /** @default ARBITER_RETRY_US */
  readonly retryUs?: Micros;
}

type Answer = 'yes' | 'no' | 'again';

export class PeerLossArbiter {
  readonly #options: ArbiterOptions;
  readonly #vmReports: string[] = [];
  /** Counts losses and returns: an answer about an older one is void. */
  #case = 0;
  #child: ChildProcess | undefined;
  #timer: NodeJS.Timeout | undefined;

  constructor(options: ArbiterOptions) {
    this.#options = options;
  }

  /** Must the primary hold its output after a loss, until `release`? */
  get holds(): boolean {
    const { role, spec } = this.#options;
    return role === 'primary' && spec.kind !== 'release';
  }

  /** Keeps what the VM drivers see: a COLO_EXIT of QEMU is evidence. */
  onEvent(event: ProxyEvent): void {
    if (event.kind !== 'vm') return;
    this.#vmReports.push(event.text);
    if (this.#vmReports.length > VM_REPORTS_KEPT) this.#vmReports.shift();
  }

  /** The peer is lost. To be called when the engine knows. */
  onPeerDown(facts: PeerLossFacts): void {
    this.#cancel();
    const { role, spec } = this.#options;
    const evidence = { role, ...facts, vmReports: [...this.#vmReports] };
    switch (spec.kind) {
      case 'exec':
        this.#report('ask', `Peer lost (${facts.reason}): asking the arbiter`, facts);
        this.#ask(spec.command, JSON.stringify(evidence), facts);
        return;
      case 'release':
      case 'failover':
        this.#act(facts, `Peer lost (${facts.reason}): ${spec.kind}, by --on-peer-loss`);
        return;
      case 'hold':
      case 'wait':
        this.#report(
          spec.kind,
          `Peer lost (${facts.reason}): ${spec.kind}, by --on-peer-loss`,
          facts,
        );
    }
  }

  /** The peer is there again. */
  onPeerUp(): void {
    if (this.#cancel()) {
      this.#options.actions.report('The peer is back: the arbiter is not asked any more', {
        decision: 'none',
      });
    }
  }

  /** Ends a command that runs. */
  close(): void {
    this.#cancel();
  }

  /** Returns whether a decision was under way. */
  #cancel(): boolean {
    this.#case++;
    clearTimeout(this.#timer);
    const isUnderWay = this.#timer !== undefined;
    this.#timer = undefined;
    if (this.#child !== undefined) killGroup(this.#child);
    this.#child = undefined;
    return isUnderWay;
  }

  #act(facts: PeerLossFacts, text: string): void {
    const { role, actions } = this.#options;
    this.#report(role === 'primary' ? 'release' : 'failover', text, facts);
    if (role === 'primary') {
      actions.release(`peer lost: ${facts.reason}`);
      return;
    }
    void actions.failover().then((result) => {
      if (!result.ok) this.#report('refused', `Not taken over: ${result.error}`, facts);
    });
  }

  #ask(command: string, evidence: string, facts: PeerLossFacts): void {
    const current = this.#case;
    const { role } = this.#options;
    void this.#run(command, evidence).then(({ answer, text }) => {
      if (current !== this.#case) return;
      this.#timer = undefined;
      if (answer === 'yes') {
        this.#act(facts, `The arbiter says yes: ${text}`);
      } else if (answer === 'no') {
        const stay = role === 'primary' ? 'hold' : 'wait';
        this.#report(stay, `The arbiter says no: ${text}`, facts);
      } else {
        this.#report('ask', `The arbiter does not know yet: ${text}`, facts);
        const retryMs = (this.#options.retryUs ?? ARBITER_RETRY_US) / US_PER_MS;
        this.#timer = setTimeout(() => this.#ask(command, evidence, facts), retryMs);
      }
    });
  }

  #run(command: string, evidence: string): Promise<{ answer: Answer; text: string }> {
    const { controlPath, timeoutUs } = this.#options;
    const env: NodeJS.ProcessEnv = { ...process.env, COLO_PEER_LOSS: evidence };
    if (controlPath !== undefined) env['COLO_CONTROL'] = controlPath;
    let child: ChildProcess;
    try {
      // A group of its own, so that everything it starts ends with it.
      child = spawn('/bin/sh', ['-c', command], { detached: true, stdio: 'ignore', env });
    } catch (error) {
      // Some failures are thrown (E2BIG, ENOMEM), others come as an event (EAGAIN, EMFILE).
      return Promise.resolve({ answer: 'again', text: (error as Error).message });
    }
    this.#child = child;
    const limitMs = (timeoutUs ?? ARBITER_EXEC_TIMEOUT_US) / US_PER_MS;
    return new Promise((resolve) => {
      const finish = (answer: Answer, text: string) => {
        clearTimeout(timer);
        if (this.#child === child) this.#child = undefined;
        resolve({ answer, text });
      };
      const timer = setTimeout(() => {
        killGroup(child);
        finish('again', `no end within ${limitMs} ms`);
      }, limitMs);
      this.#timer = timer;
      child.once('error', (error) => finish('again', error.message));
      child.once('exit', (code, signal) => {
        if (code === 0) finish('yes', 'exit code 0');
        else if (code === EXIT_AGAIN) finish('again', `exit code ${EXIT_AGAIN}`);
        else finish('no', code === null ? `ended by ${signal}` : `exit code ${code}`);
      });
    });
  }

  #report(decision: string, text: string, facts: PeerLossFacts): void {
    this.#options.actions.report(text, { decision, ...facts });
  }
}

function killGroup(child: ChildProcess): void {
  if (child.pid === undefined) return;
  try {
    process.kill(-child.pid, 'SIGKILL');
  } catch {
    // ESRCH: it has ended, which is what was wanted.
  }
}
