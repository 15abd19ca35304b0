/**
 * A slow comparer of two TCP streams, obviously right: every byte has its place in a map, and all of both streams is looked
 * at again for every question. Tests hold the shipping comparer (`src/compare/stream.ts`) against it.
 *
 * Positions count from the start of the stream and do not wrap; turning them into sequence numbers is the test's business.
 *
 * @module
 */

/** One guest's stream as far as it is known. */
export class ReferenceStream {
  readonly #bytes = new Map<number, number>();
  /** Position of the FIN, once seen. */
  fin: number | undefined = undefined;

  /** Takes a segment. What was there before stays. */
  insert(position: number, bytes: Uint8Array): void {
    bytes.forEach((byte, i) => {
      if (!this.#bytes.has(position + i)) this.#bytes.set(position + i, byte);
    });
  }

  byteAt(position: number): number | undefined {
    return this.#bytes.get(position);
  }
}

/** What two streams have in common. */
export interface ReferenceVerdict {
  readonly verdict: 'equal' | 'different-bytes' | 'different-fin';
  /** End of the agreed prefix; a FIN on which both agree takes one position. */
  readonly compared: number;
}

/** Compares from position 0 as far as both streams reach. */
export function compareStreams(a: ReferenceStream, b: ReferenceStream): ReferenceVerdict {
  for (let position = 0; ; position++) {
    const left = a.byteAt(position);
    const right = b.byteAt(position);
    const leftEnds = a.fin === position;
    const rightEnds = b.fin === position;
    if (left === undefined || right === undefined) {
      if (leftEnds && rightEnds) return { verdict: 'equal', compared: position + 1 };
      const isDifferent = (leftEnds && right !== undefined) || (rightEnds && left !== undefined);
      return { verdict: isDifferent ? 'different-fin' : 'equal', compared: position };
    }
    if (left !== right) return { verdict: 'different-bytes', compared: position };
  }
}
