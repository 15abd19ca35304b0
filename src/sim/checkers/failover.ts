/**
 * G5, failover: every connection goes on from what the survivor remembers. At the moment of failover nothing that a
 * client has seen may be unknown to the SVM; at the end every client has got exactly the survivor's stream.
 *
 * @module
 */
import { isResetPlanned, type Session } from '../host/client.ts';
import type { Checker, Witness } from './checker.ts';
import { byteAt, isAfter, type StreamRecord } from './record.ts';

const OPEN_STATES = new Set([
  'established',
  'fin-wait-1',
  'fin-wait-2',
  'close-wait',
  'closing',
  'last-ack',
]);

export class FailoverChecker implements Checker {
  readonly guarantee = 'G5';
  readonly #witness: Witness;

  constructor(witness: Witness) {
    this.#witness = witness;
  }

  onFailover(): void {
    this.#forEachSession((session, stream) => this.#checkKnown(session, stream));
  }

  onPulse(): void {
    if (this.#witness.isOutage) return;
    for (const { application } of this.#witness.clients) {
      for (const session of application.ended.splice(0)) this.#checkReset(session);
    }
  }

  onEnd(): void {
    if (this.#witness.isOutage) return;
    this.#forEachSession((session, stream) => {
      if (stream !== undefined) this.#checkContent(session, stream);
    });
    const { pvm, svm, isFailoverGranted } = this.#witness;
    const survivor = isFailoverGranted ? svm : pvm;
    const { damage } = survivor.host.state.application;
    if (damage > 0) this.#fail(`the survivor has got ${damage} bytes that no client sent`);
  }

  #fail(text: string): void {
    this.#witness.broken('G5', text);
  }

  #forEachSession(visit: (session: Session, stream: StreamRecord | undefined) => void): void {
    const { pvm, svm, isFailoverGranted } = this.#witness;
    const record = this.#witness.recordOf(isFailoverGranted ? svm : pvm);
    for (const { host, application } of this.#witness.clients) {
      for (const session of application.sessions) {
        const { connection } = session;
        const own = host.addressFor(connection.remoteAddress);
        const stream = record.streams.get(
          `${own}:${connection.localPort}:${connection.remotePort}`,
        );
        const isSame = stream?.hasClientIsn === true && stream.clientIsn === connection.iss;
        visit(session, isSame ? stream : undefined);
      }
    }
  }

  /** Nothing the client has got, or was promised, may be beyond what the SVM knows. */
  #checkKnown(session: Session, stream: StreamRecord | undefined): void {
    const { connection, key } = session;
    if (!OPEN_STATES.has(connection.state)) return;
    if (stream === undefined) {
      this.#fail(`the SVM does not know the connection ${key} (${connection.state})`);
      return;
    }
    const end = stream.base + stream.count + (stream.fin >= 0 ? 1 : 0);
    if (connection.rcvNxt > end) {
      this.#fail(`the client of ${key} has ${connection.rcvNxt}, the SVM has sent ${end}`);
    }
    const acked = (connection.iss + connection.sndUna) >>> 0;
    if (isAfter(acked, stream.ackMax)) {
      this.#fail(`the client of ${key} was acknowledged ${acked}, the SVM has ${stream.ackMax}`);
    }
    const edge = (acked + connection.sndWnd) >>> 0;
    if (connection.sndWl2 === connection.sndUna && isAfter(edge, stream.edgeMax)) {
      this.#fail(
        `the client of ${key} may send up to ${edge}, the SVM has offered ${stream.edgeMax}`,
      );
    }
    this.#checkContent(session, stream);
  }

  #checkContent(session: Session, stream: StreamRecord): void {
    const { received, receivedCount, firstPosition, key } = session;
    // A late duplicate of the SYN has opened the next connection there; the one the client had is over.
    const isOver = session.isDone || session.connection.state === 'time-wait';
    if (isOver && stream.count === 0) return;
    for (let i = 0; i < receivedCount; i++) {
      if (firstPosition + i < stream.base) continue;
      const byte = byteAt(stream, firstPosition + i);
      if (byte === received[i]) continue;
      this.#fail(`byte ${i} at the client of ${key} is ${received[i]}, the survivor's is ${byte}`);
      return;
    }
  }

  /** An open connection may be reset only when its service was asked to. */
  #checkReset(session: Session): void {
    if (session.error !== 'reset' || isResetPlanned(session.plan)) return;
    this.#fail(`the connection ${session.key} was reset`);
  }
}
