/** Whole conversations of real Linux hosts through flow table, connection states and reassembly. */
import { describe, expect, it } from 'vitest';
import { GOLDEN_FRAMES, type GoldenFrame } from '../../test/golden/frames.ts';
import { dissectFrame, rawFrame } from '../../test/support/frame-builder.ts';
import { fromHex } from '../wire/bytes.ts';
import { isTransportChecksumRight } from '../wire/checksum.ts';
import { dissect, FRAME_OK, FrameInfo } from '../wire/frame.ts';
import { Reassembly } from './reassembly.ts';
import { type FlowEntry, FlowTable } from './table.ts';
import { TCP_STATE_NAMES, TcpTrack, trackTcp } from './tcp-state.ts';

class ConnectionFlow implements FlowEntry {
  slot = -1;
  readonly track = new TcpTrack();
  readonly states: string[] = [];
}

describe('a conversation of Linux hosts', () => {
  it('is one flow a connection, whose states run from syn-sent to time-wait', () => {
    const table = new FlowTable<ConnectionFlow>({ hashKey: { low: 1, high: 2 } });
    for (const golden of Object.values<GoldenFrame>(GOLDEN_FRAMES)) {
      const info = dissectFrame(rawFrame(fromHex(golden.hex)));
      if (info.protocol !== 6) continue;
      let flow = table.find(info, golden.fromGuest);
      if (flow === undefined) {
        flow = new ConnectionFlow();
        table.insert(info, golden.fromGuest, flow, 0);
      }
      trackTcp(flow.track, info, golden.fromGuest);
      flow.states.push(TCP_STATE_NAMES[flow.track.state]!);
    }
    const flows = [...table.values()];
    expect(flows.map((flow) => table.describeFlow(flow))).toEqual([
      'tcp 10.0.0.2:80 > 10.0.0.9:51468',
      'tcp [2001:db8::2]:80 > [2001:db8::9]:42082',
    ]);
    for (const { states } of flows) {
      expect(states).toEqual([
        'syn-sent',
        'syn-received',
        ...Array.from({ length: 5 }, () => 'established'),
        'fin-wait',
        'last-ack',
        'time-wait',
      ]);
    }
  });

  it.each(['udp4', 'udp6'] as const)(
    '%s fragments join to the datagram sent, last one first',
    (name) => {
      const joined: FrameInfo[] = [];
      const reassembly = new Reassembly<string>({
        onComplete: (buffer, offset, length, fragments) => {
          const info = new FrameInfo();
          expect(dissect(buffer, offset, length, info)).toBe(FRAME_OK);
          expect(fragments).toEqual(['second', 'first']);
          joined.push(info);
        },
        onAbandon: (_, reason) => expect.unreachable(reason),
      });
      const add = (frame: GoldenFrame, handle: string) => {
        reassembly.add(dissectFrame(rawFrame(fromHex(frame.hex))), handle, 0);
      };
      add(GOLDEN_FRAMES[`${name}Fragment2`], 'second');
      add(GOLDEN_FRAMES[`${name}Fragment1`], 'first');
      const info = joined[0]!;
      expect([info.dstPort, info.payloadBytes]).toEqual([53, 2_000]);
      expect(isTransportChecksumRight(info)).toBe(true);
      const payload = info.bytes.slice(info.payloadOffset, info.payloadOffset + 2_000);
      expect(payload.every((byte) => byte === 0x46)).toBe(true);
    },
  );
});
