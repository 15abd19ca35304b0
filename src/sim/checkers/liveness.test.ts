import { describe, expect, test } from 'vitest';
import { US_PER_MS } from '../../base/time.ts';
import { COMPARE_LAG_TIMEOUTS } from '../../limits.ts';
import { PRIMARY_DEFAULTS } from '../../proxy/config.ts';
import { emitIp, PROTOCOL_TCP } from '../net/packet.ts';
import type { ProxyNode } from '../node.ts';
import { ACK, blankSegment, emitSegment } from '../tcp/segment.ts';
import type { Witness } from './checker.ts';
import { LivenessChecker } from './liveness.ts';

const TIMEOUT_MS = 200;
/** Near the wrap. */
const START = 0xffff_fff0;

/** A judge of a protected primary that asks for no checkpoint. */
function court() {
  const said: string[] = [];
  const engine = { state: 'protected', status: () => ({ dropped: {} }) };
  const primary = { isAlive: true, isHung: false, engine } as unknown as ProxyNode;
  const config = { ...PRIMARY_DEFAULTS, minRunUs: 0, compareTimeoutUs: TIMEOUT_MS * US_PER_MS };
  const witness = {
    nowUs: 1,
    primary,
    config,
    isRequestOpen: false,
    disturbedUs: 0,
    broken: (_guarantee: string, text: string) => said.push(text),
  };
  const checker = new LivenessChecker(witness as unknown as Witness);
  const frameOf = (position: number, length: number, ack: number) => {
    const seq = (START + position) >>> 0;
    const payload = new Uint8Array(length);
    const segment = { ...blankSegment(), srcPort: 80, dstPort: 9, seq, ack, flags: ACK, payload };
    const addresses = { srcMac: '020000000001', dstMac: '020000000002', src: '0a000001' };
    const options = { ...addresses, dst: '0a000102', vlan: 0, protocol: PROTOCOL_TCP, id: 0 };
    return emitIp(options, emitSegment(segment));
  };
  return {
    given: (position: number, length: number, ack: number) =>
      checker.onGuestInput(primary, frameOf(position, length, ack)),
    released: (position: number, length: number, ack: number) =>
      checker.onNetOutput(primary, frameOf(position, length, ack), 'protected'),
    /** What has been said `ms` later. */
    saidAfter: (ms: number) => {
      witness.nowUs += ms * US_PER_MS;
      checker.onPulse();
      return said.splice(0);
    },
  };
}

const flow = '0a000102:9:80';
const heldFor = (what: string, ms: number) => [
  `${what} of ${flow} is held for ${ms} ms and no checkpoint is requested`,
];

describe('held output without a request', () => {
  test('an acknowledgement alone has the compare timeout', () => {
    const { given, released, saidAfter } = court();
    given(0, 0, 1);
    released(0, 0, 1);
    given(0, 0, 2);
    expect(saidAfter(TIMEOUT_MS)).toEqual([]);
    expect(saidAfter(40)).toEqual(heldFor('an acknowledgement', TIMEOUT_MS + 40));
  });

  test('behind output of a stream that goes on it may wait for that', () => {
    const { given, released, saidAfter } = court();
    given(0, 0, 1);
    released(0, 0, 1);
    given(0, 100, 2);
    given(100, 0, 3);
    expect(saidAfter(3 * TIMEOUT_MS)).toEqual([]);
    // From then on it waits alone.
    released(0, 100, 1);
    expect(saidAfter(TIMEOUT_MS)).toEqual([]);
    // Output that comes behind it gives it no more time.
    given(100, 100, 3);
    released(100, 100, 1);
    expect(saidAfter(40)).toEqual(heldFor('an acknowledgement', TIMEOUT_MS + 40));
  });

  test('a stream that stands still has its own bound', () => {
    const { given, saidAfter } = court();
    given(0, 100, 1);
    expect(saidAfter(COMPARE_LAG_TIMEOUTS * TIMEOUT_MS)).toEqual([]);
    const ms = COMPARE_LAG_TIMEOUTS * TIMEOUT_MS + 40;
    expect(saidAfter(40)).toEqual(heldFor('output', ms));
  });
});
