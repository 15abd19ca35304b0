/**
 * G9, honest state: a node says at any time what it is, announces every change, and never calls itself protected
 * when it is not: without a committed state on the other side, or with a peer that is gone for longer than the deadline.
 *
 * @module
 */
import { type Micros, NEVER } from '../../base/time.ts';
import type { ProxyEvent } from '../../env/messages.ts';
import type { ProxyNode } from '../node.ts';
import type { Checker, Witness } from './checker.ts';
import { isUnprotected } from './output-commit.ts';

/** The link's tick, one excused stall (a heartbeat), and the end of a stream that travels. */
const SLACK_US: Micros = 400_000;

export class HonestChecker implements Checker {
  readonly guarantee = 'G9';
  readonly #witness: Witness;
  #pulses = 0;
  /** When the primary last met a secondary. */
  #metUs: Micros = -1;
  /** The primary has said that its peer is lost. */
  #isPeerDown = false;

  constructor(witness: Witness) {
    this.#witness = witness;
  }

  onEvent(node: ProxyNode, event: ProxyEvent): void {
    if (node === this.#witness.primary && event.kind === 'peer-up') {
      this.#metUs = this.#witness.nowUs;
      this.#isPeerDown = false;
    } else if (node === this.#witness.primary && event.kind === 'peer-down') {
      this.#isPeerDown = true;
    }
    if (event.kind !== 'state' || event.fields?.['reason']) return;
    this.#witness.broken('G9', `${node.name} has changed its state and does not say why`);
  }

  onSettled(node: ProxyNode): void {
    const { state } = node.engine;
    if (state !== node.announcedState) {
      const text = `${node.name} is ${state}, its last event says ${node.announcedState}`;
      this.#witness.broken('G9', text);
    }
    if (node === this.#witness.primary && this.#isPeerDown && !isUnprotected(state)) {
      this.#witness.broken('G9', `the primary has lost its peer, and is ${state}`);
    }
  }

  onPulse(): void {
    const witness = this.#witness;
    const { primary, secondary, nowUs } = witness;
    const { state } = primary.engine;
    if (primary.isAlive && !primary.isHung && !isUnprotected(state)) {
      const sinceUs = Math.max(witness.linkBrokenSinceUs, witness.disturbedUs);
      const boundUs = 2 * witness.peerTimeoutUs + SLACK_US;
      const lostUs = nowUs - Math.max(witness.svmLostUs, witness.disturbedUs);
      // A primary that has met this SVM since knows better at once.
      const hasMet = this.#metUs > witness.svmLostUs;
      if (state === 'protected' && !witness.isSvmSynced && (hasMet || lostUs > boundUs)) {
        witness.broken('G9', 'the primary is protected, the SVM holds no state of the PVM');
      }
      // What the peer had sent before it gave up may come late, and is a word of it.
      const isSilent = nowUs - witness.primaryHeardUs > witness.peerTimeoutUs + SLACK_US;
      if (witness.linkBrokenSinceUs !== NEVER && nowUs - sinceUs > boundUs && isSilent) {
        const ms = Math.round((nowUs - sinceUs) / 1000);
        witness.broken('G9', `the primary is ${state}, its peer is out of reach for ${ms} ms`);
      }
    }
    // Looking at the whole status costs, so not every time.
    this.#pulses++;
    const isStale = !witness.isSvmSynced || secondary.engine.state === 'syncing';
    if (!secondary.isAlive || this.#pulses % 4 !== 0 || !isStale) return;
    if (secondary.engine.status(secondary.nowUs).failoverReady) {
      witness.broken(
        'G9',
        'the secondary is ready for failover, the SVM holds no (or an old) state of the PVM',
      );
    }
  }
}
