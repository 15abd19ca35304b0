import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { NEVER } from '../base/time.ts';
import type { FlowKey } from './key.ts';
import {
  EXPIRE_FLOWS_MAX,
  FLOW_CLOSED,
  FLOW_DATAGRAM,
  FLOW_ESTABLISHED,
  FLOW_HALF_OPEN,
  type FlowClass,
  type FlowEntry,
  FlowTable,
} from './table.ts';

const HASH_KEY = { low: 0x01234567, high: 0x89abcdef };

interface TestFlow extends FlowEntry {
  readonly id: number;
}

function tableOf(flowsMax: number, halfOpenMax = flowsMax): FlowTable<TestFlow> {
  return new FlowTable<TestFlow>({ hashKey: HASH_KEY, flowsMax, halfOpenMax });
}

/** Key number `id`: every field takes part, so that each word of the key tells flows apart. */
function keyOf(id: number): FlowKey {
  const guestAddress = new Uint8Array(16);
  const clientAddress = new Uint8Array(16);
  const ipVersion = id % 2 === 0 ? 4 : 6;
  guestAddress[ipVersion === 4 ? 3 : (id >>> 1) % 16] = 1 + (id % 3);
  clientAddress[0] = 10;
  clientAddress[1] = id >>> 16;
  clientAddress[2] = id >>> 8;
  clientAddress[3] = id;
  return {
    ipVersion,
    protocol: id % 5 === 0 ? 17 : 6,
    vlan: id % 7 === 0 ? 4094 * 4096 + 5 : 0,
    guestPort: 80 + (id % 2),
    clientPort: (id * 7919) % 65_536,
    guestAddress,
    clientAddress,
  };
}

function add(table: FlowTable<TestFlow>, id: number, atUs = 0, c: FlowClass = FLOW_ESTABLISHED) {
  const flow: TestFlow = { id, slot: -1 };
  table.insertKey(keyOf(id), flow, atUs, c);
  return flow;
}

const always = () => true;
const ignore = () => {};

describe('FlowTable against a Map and lists', () => {
  it('finds, evicts and ages as the model does, over random operations', () => {
    const operation = fc.record({
      kind: fc.constantFrom('insert', 'insert', 'insert', 'remove', 'touch', 'class', 'expire'),
      id: fc.nat(60),
      flowClass: fc.constantFrom<FlowClass>(0, 1, 2, 3),
      stepUs: fc.nat(40),
    });
    fc.assert(
      fc.property(fc.array(operation, { maxLength: 300 }), (operations) => {
        const timeoutsUs = [100, 400, 50, 200];
        const table = new FlowTable<TestFlow>({ hashKey: HASH_KEY, flowsMax: 40, timeoutsUs });
        // Insertion order of a Map is the order of use: touching deletes and sets again.
        const model = new Map<number, { flow: TestFlow; flowClass: FlowClass; usedUs: number }>();
        let nowUs = 0;
        for (const { kind, id, flowClass, stepUs } of operations) {
          nowUs += stepUs;
          const known = model.get(id);
          if (kind === 'insert' && known === undefined && model.size < 40) {
            model.set(id, { flow: add(table, id, nowUs, flowClass), flowClass, usedUs: nowUs });
          } else if (kind === 'remove' && known !== undefined) {
            table.remove(known.flow);
            expect(known.flow.slot).toBe(-1);
            model.delete(id);
          } else if ((kind === 'touch' || kind === 'class') && known !== undefined) {
            const next = kind === 'class' ? flowClass : known.flowClass;
            if (kind === 'class') table.setClass(known.flow, next, nowUs);
            else table.touch(known.flow, nowUs);
            model.delete(id);
            model.set(id, { flow: known.flow, flowClass: next, usedUs: nowUs });
          } else if (kind === 'expire') {
            const gone: number[] = [];
            table.expire(nowUs, always, (flow) => gone.push(flow.id));
            const due = [...model].filter(([, m]) => m.usedUs + timeoutsUs[m.flowClass]! <= nowUs);
            expect(gone.sort()).toEqual(due.map(([dueId]) => dueId).sort());
            for (const [dueId] of due) model.delete(dueId);
          }
          expect(table.size).toBe(model.size);
          for (const c of [0, 1, 2, 3] as const) {
            const first = [...model.values()].find((m) => m.flowClass === c);
            expect(table.oldest(c)).toBe(first?.flow);
          }
        }
        for (let id = 0; id <= 60; id++) {
          expect(table.findKey(keyOf(id))).toBe(model.get(id)?.flow);
        }
        expect(new Set(table.values())).toEqual(new Set([...model.values()].map((m) => m.flow)));
      }),
      { numRuns: 60 },
    );
  });

  it('keeps every flow through growth, and after removing every other one', () => {
    const table = tableOf(20_000);
    const flows = Array.from({ length: 20_000 }, (_, id) => add(table, id));
    for (const flow of flows) if (flow.id % 2 === 1) table.remove(flow);
    for (let id = 0; id < 20_000; id++) {
      expect(table.findKey(keyOf(id))).toBe(id % 2 === 0 ? flows[id] : undefined);
    }
    expect(table.size).toBe(10_000);
  });
});

describe('limits', () => {
  it('insert() into a full table is a programmer error', () => {
    const table = tableOf(1);
    add(table, 1);
    expect(() => add(table, 2)).toThrow('makeRoom comes first');
  });

  it('makeRoom() forgets closed flows before datagrams before established ones', () => {
    const table = tableOf(3);
    add(table, 1, 0, FLOW_ESTABLISHED);
    add(table, 2, 1, FLOW_DATAGRAM);
    add(table, 3, 2, FLOW_CLOSED);
    const gone: number[] = [];
    for (let i = 0; i < 3; i++) {
      expect(table.makeRoom(FLOW_ESTABLISHED, 9, always, (flow) => gone.push(flow.id))).toBe(true);
      add(table, 10 + i, 9, FLOW_ESTABLISHED);
    }
    expect(gone).toEqual([3, 2, 1]);
  });

  it('a SYN flood pushes out half-open flows only', () => {
    const table = tableOf(100, 10);
    for (let id = 0; id < 50; id++) add(table, id, id, FLOW_ESTABLISHED);
    for (let id = 1_000; id < 11_000; id++) {
      const evicted: FlowClass[] = [];
      expect(
        table.makeRoom(FLOW_HALF_OPEN, id, always, (_, flowClass) => evicted.push(flowClass)),
      ).toBe(true);
      expect(evicted.every((flowClass) => flowClass === FLOW_HALF_OPEN)).toBe(true);
      add(table, id, id, FLOW_HALF_OPEN);
    }
    expect(table.count(FLOW_HALF_OPEN)).toBe(10);
    expect(table.count(FLOW_ESTABLISHED)).toBe(50);
  });

  it('makeRoom() for a half-open flow fails rather than forget an established one', () => {
    const table = tableOf(2);
    add(table, 1);
    add(table, 2);
    expect(table.makeRoom(FLOW_HALF_OPEN, 5, always, ignore)).toBe(false);
    expect(table.size).toBe(2);
  });

  it('makeRoom() passes over flows that cannot be spared', () => {
    const table = tableOf(3);
    for (let id = 0; id < 3; id++) add(table, id, id);
    const gone: number[] = [];
    const canEvict = (flow: TestFlow) => flow.id === 2;
    expect(table.makeRoom(FLOW_ESTABLISHED, 9, canEvict, (flow) => gone.push(flow.id))).toBe(true);
    expect(gone).toEqual([2]);
    expect(table.makeRoom(FLOW_ESTABLISHED, 9, canEvict, ignore)).toBe(true);
    add(table, 3);
    expect(table.makeRoom(FLOW_ESTABLISHED, 9, canEvict, ignore)).toBe(false);
  });
});

describe('ageing', () => {
  it('nextExpiryUs() is NEVER when empty, then the earliest of the classes', () => {
    const table = new FlowTable<TestFlow>({ hashKey: HASH_KEY, timeoutsUs: [10, 1_000, 20, 30] });
    expect(table.nextExpiryUs()).toBe(NEVER);
    add(table, 1, 100, FLOW_ESTABLISHED);
    expect(table.nextExpiryUs()).toBe(1_100);
    add(table, 2, 200, FLOW_DATAGRAM);
    expect(table.nextExpiryUs()).toBe(230);
  });

  it('expire() looks at EXPIRE_FLOWS_MAX flows at most, whatever can be spared', () => {
    const table = tableOf(10_000);
    for (let id = 0; id < 10_000; id++) add(table, id, 0, FLOW_CLOSED);
    expect(table.expire(1e12, always, ignore)).toBe(EXPIRE_FLOWS_MAX);
    let asked = 0;
    table.expire(
      1e12,
      () => {
        asked++;
        return false;
      },
      ignore,
    );
    expect(asked).toBe(EXPIRE_FLOWS_MAX);
  });
});

describe('keys as text and fields', () => {
  it('describeFlow() names guest, then client, in every family', () => {
    const table = tableOf(10);
    const guest4 = Uint8Array.of(10, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0);
    const client4 = Uint8Array.of(10, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0);
    const guest6 = Uint8Array.of(0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2);
    const client6 = Uint8Array.of(0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9);
    const common = { ipVersion: 4, vlan: 0, guestAddress: guest4, clientAddress: client4 };
    const text = (key: FlowKey) => {
      const flow = { id: 0, slot: -1 };
      table.insertKey(key, flow, 0, FLOW_DATAGRAM);
      expect(table.key(flow)).toEqual(key);
      return table.describeFlow(flow);
    };
    expect(text({ ...common, protocol: 6, guestPort: 80, clientPort: 40_312 })).toBe(
      'tcp 10.0.0.2:80 > 10.0.0.9:40312',
    );
    expect(text({ ...common, protocol: 1, guestPort: 77, clientPort: 77 })).toBe(
      'icmp 10.0.0.2 > 10.0.0.9 id 77',
    );
    expect(text({ ...common, protocol: 47, guestPort: 0, clientPort: 0, vlan: 4096 + 5 })).toBe(
      'ip-47 10.0.0.2 > 10.0.0.9 vlan 1.5',
    );
    const six = { ipVersion: 6, vlan: 5, guestAddress: guest6, clientAddress: client6 };
    expect(text({ ...six, protocol: 17, guestPort: 65_535, clientPort: 53 })).toBe(
      'udp [2001:db8::2]:65535 > [fe80::9]:53 vlan 5',
    );
  });

  it('an IPv6 address that begins like an IPv4 one and ends in zeros is another flow', () => {
    const table = tableOf(4);
    const four = { ...keyOf(2), ipVersion: 4 };
    const six = { ...four, ipVersion: 6 };
    const flow = { id: 0, slot: -1 };
    table.insertKey(four, flow, 0, FLOW_DATAGRAM);
    expect(table.findKey(four)).toBe(flow);
    expect(table.findKey(six)).toBeUndefined();
  });
});
