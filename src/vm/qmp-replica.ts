/**
 * Checkpoints as the secondary's monitor shows them. The primary tells this node of begin and commit over the peer
 * link; but a primary that dies after the SVM has loaded the new state and before its commit has come would leave
 * this node translating with the numbers of a state that the SVM no longer has. So the RESUME that ends a checkpoint
 * is a commit as well; whichever comes first counts.
 *
 * A RESUME ends a checkpoint when this pause belongs to one that the primary has begun (STOP and the
 * begin come in either order), and COLO has not failed in between: QEMU resumes an SVM inside of COLO only after it has loaded
 * the state. An operator's `stop` and `cont` has no begin and therefore commits nothing.
 *
 * @module
 */
import { type Micros, US_PER_MS } from '../base/time.ts';

/** A begin that comes later than this after RESUME is not that pause's (measured: at most some milliseconds). */
const BEGIN_AFTER_RESUME_US: Micros = 500_000;

export class QmpReplica {
  readonly #commit: () => void;
  #isStopped = false;
  #isBegun = false;
  /** The pause was over before the begin came. */
  #lateUntilMs = 0;

  /** @param commit the SVM runs from the PVM's state */
  constructor(commit: () => void) {
    this.#commit = commit;
  }

  /** STOP, inside of COLO. */
  onStop(): void {
    this.#isStopped = true;
    this.#lateUntilMs = 0;
  }

  /** RESUME, inside of COLO. */
  onResume(): void {
    if (!this.#isStopped) return;
    this.#isStopped = false;
    if (this.#isBegun) this.#done();
    else this.#lateUntilMs = performance.now() + BEGIN_AFTER_RESUME_US / US_PER_MS;
  }

  /** The primary's begin has come. */
  onBegun(): void {
    this.#isBegun = true;
    if (performance.now() < this.#lateUntilMs) this.#done();
  }

  /** The checkpoint is over by another way, or COLO is. */
  onOver(): void {
    this.#isStopped = false;
    this.#isBegun = false;
    this.#lateUntilMs = 0;
  }

  #done(): void {
    this.onOver();
    this.#commit();
  }
}
