import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { seqAdd, seqDistance } from '../wire/seq.ts';
import { TcpOptions } from '../wire/tcp-options.ts';
import { AckGate } from './ack-gate.ts';

function sack(...blocks: [number, number][]): TcpOptions {
  const options = new TcpOptions();
  options.sackCount = blocks.length;
  blocks.forEach(([left, right], i) => {
    options.sackEdges[2 * i] = left;
    options.sackEdges[2 * i + 1] = right;
  });
  return options;
}

function gate(shift: number): AckGate {
  const g = new AckGate();
  g.windowShift = shift;
  return g;
}

describe('AckGate', () => {
  it('lowers the acknowledgement to what the SVM has', () => {
    const g = gate(0);
    g.onSecondary(1_000, 5_000, false, undefined);
    expect(g.limit(1_500, 5_000, false)).toEqual({ ack: 1_000, window: 5_000, lowered: true });
  });

  it('keeps the right edge of the window within what both offer', () => {
    const g = gate(2);
    g.onSecondary(1_000, 100, false, undefined); // edge 1400
    const { ack, window } = g.limit(1_200, 200, false); // edge 2000
    expect(ack).toBe(1_000);
    expect(ack + (window << 2)).toBe(1_400);
  });

  it('passes what the SVM covers untouched, across the wrap', () => {
    const g = gate(0);
    g.onSecondary(5, 1_000, false, undefined);
    const limited = { ack: 0xffff_fff0, window: 900, lowered: false };
    expect(g.limit(0xffff_fff0, 900, false)).toEqual(limited);
  });

  it('says nothing is new when the SVM repeats itself', () => {
    const g = gate(0);
    expect(g.onSecondary(10, 100, false, undefined)).toBe(true);
    expect(g.onSecondary(10, 100, false, undefined)).toBe(false);
    expect(g.onSecondary(10, 100, false, sack([20, 30]))).toBe(true);
    expect(g.onSecondary(10, 100, false, sack([20, 30]))).toBe(false);
  });

  it('covers a SACK block only where the SVM has all of it', () => {
    const g = gate(0);
    g.onSecondary(100, 1_000, false, sack([200, 300], [300, 350]));
    expect(g.coversBlock(200, 350)).toBe(true);
    expect(g.coversBlock(50, 90)).toBe(true);
    expect(g.coversBlock(199, 210)).toBe(false);
    expect(g.coversBlock(340, 351)).toBe(false);
    g.onSecondary(220, 1_000, false, undefined);
    expect(g.coversBlock(150, 300)).toBe(true);
  });

  it('starts again from the PVM after a commit', () => {
    const g = gate(0);
    g.onPrimary(700, 50, false);
    g.adoptPrimary();
    expect(g.limit(700, 50, false).lowered).toBe(false);
    expect(g.advances(700, 50)).toBe(false);
  });

  it('never lets out more than both guests said, for any history', () => {
    const segment = fc.record({
      who: fc.constantFrom('primary', 'secondary'),
      step: fc.nat(3_000),
      window: fc.integer({ min: 0, max: 65_535 }),
    });
    fc.assert(
      fc.property(
        fc.integer({ min: 0, max: 0xffff_ffff }),
        fc.integer({ min: -1, max: 14 }),
        fc.array(segment, { maxLength: 60 }),
        (start, shift, segments) => {
          const g = gate(shift);
          const scale = Math.max(0, shift);
          const ack = { primary: 0, secondary: 0 };
          let edgeOfSecondary = -1;
          for (const { who, step, window } of segments) {
            const name = who as 'primary' | 'secondary';
            ack[name] += step;
            const seq = seqAdd(start, ack[name]);
            if (name === 'secondary') {
              g.onSecondary(seq, window, false, undefined);
              edgeOfSecondary = Math.max(edgeOfSecondary, ack.secondary + window * 2 ** scale);
              continue;
            }
            g.onPrimary(seq, window, false);
            if (edgeOfSecondary < 0) continue;
            const limited = g.limit(seq, window, false);
            const out = seqDistance(start, limited.ack);
            expect(out).toBe(Math.min(ack.primary, ack.secondary));
            expect(limited.window).toBeLessThanOrEqual(65_535);
            if (shift >= 0 && limited.window > 0) {
              const edge = out + limited.window * 2 ** scale;
              expect(edge).toBeLessThanOrEqual(edgeOfSecondary);
              expect(edge).toBeLessThanOrEqual(ack.primary + window * 2 ** scale);
            }
          }
        },
      ),
    );
  });
});
