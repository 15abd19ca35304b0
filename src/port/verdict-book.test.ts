import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { MARK_COPY, VerdictBook } from './verdict-book.ts';

const QUEUE = 7;

describe('VerdictBook', () => {
  it('drops a packet that nobody can send any more, and not before', () => {
    const dropped: number[] = [];
    const book = new VerdictBook((queue, id) => dropped.push(queue, id));
    const mark = book.take(QUEUE, 41, false);
    book.onKept(mark);
    book.onForgotten(mark); // the batch
    expect(dropped).toEqual([]);
    book.onForgotten(mark);
    expect(dropped).toEqual([QUEUE, 41]);
    expect(book.marks).toBe(0);
  });

  it('gives an accepted packet no second verdict', () => {
    const dropped: number[] = [];
    const book = new VerdictBook((_queue, id) => dropped.push(id));
    const mark = book.take(QUEUE, 5, true);
    expect(book.accept(mark)).toBe(5);
    expect(book.isOpen(mark)).toBe(false);
    expect(book.marks).toBe(1);
    book.onForgotten(mark);
    expect({ dropped, marks: book.marks }).toEqual({ dropped: [], marks: 0 });
    expect(() => book.onForgotten(mark)).toThrow('forgotten by those that had it');
  });

  it('lets the oldest packets give way to their copies, but no GSO frames', () => {
    const dropped: number[] = [];
    const book = new VerdictBook((_queue, id) => dropped.push(id), 2);
    const marks = [1, 2, 3, 4, 5].map((id) => book.take(QUEUE, id, id === 2));
    book.relieve();
    expect(dropped).toEqual([1, 3]);
    expect(marks.map((mark) => book.isOpen(mark))).toEqual([false, true, false, true, true]);
    expect({ gaveWay: book.gaveWay, open: book.open }).toEqual({ gaveWay: 2, open: 3 });
  });

  it('says so when there is no mark left, and never gives out the one of mere copies', () => {
    const book = new VerdictBook(() => {});
    for (let id = 0; id < MARK_COPY - 1; id++) {
      const mark = book.take(QUEUE, id, true);
      if (mark === 0 || mark === MARK_COPY) throw new Error(`packet ${id} has mark ${mark}`);
    }
    expect(book.take(QUEUE, 65_535, true)).toBe(0);
    book.onForgotten(1);
    expect(book.take(QUEUE, 65_536, true)).toBe(1);
  });

  it('gives each packet exactly one verdict, whatever happens to its copies', () => {
    const step = fc.record({
      what: fc.constantFrom('take', 'keep', 'forget', 'accept', 'giveWay', 'relieve'),
      which: fc.nat(1_000),
      isGso: fc.boolean(),
    });
    fc.assert(
      fc.property(fc.array(step, { maxLength: 200 }), (steps) => {
        const verdicts = new Map<number, number>();
        const judge = (id: number): void => void verdicts.set(id, (verdicts.get(id) ?? 0) + 1);
        const book = new VerdictBook((_queue, id) => judge(id), 3);
        /** Marks, once for each holder. */
        const holders: number[] = [];
        let id = 0;
        for (const { what, which, isGso } of steps) {
          const at = which % Math.max(holders.length, 1);
          const mark = holders[at];
          if (what === 'take') holders.push(book.take(QUEUE, ++id, isGso));
          else if (what === 'relieve') book.relieve();
          else if (mark === undefined) continue;
          else if (what === 'keep') {
            book.onKept(mark);
            holders.push(mark);
          } else if (what === 'forget') {
            holders.splice(at, 1);
            book.onForgotten(mark);
          } else if (book.isOpen(mark)) {
            if (what === 'accept') judge(book.accept(mark));
            else book.giveWay(mark);
          }
        }
        expect(book.open).toBe(id - verdicts.size);
        for (const mark of holders) book.onForgotten(mark);
        expect([...verdicts.values()].every((count) => count === 1)).toBe(true);
        expect({ verdicts: verdicts.size, open: book.open, marks: book.marks }).toEqual({
          verdicts: id,
          open: 0,
          marks: 0,
        });
      }),
    );
  });
});
