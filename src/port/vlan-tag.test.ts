import { expect, test } from 'vitest';
import { tcpFrame } from '../../test/support/frame-builder.ts';
import { VNET_HDR_BYTES } from '../limits.ts';
import { createFrameBuffer } from '../wire/bytes.ts';
import { VLAN_TAG_BYTES } from '../wire/ethernet.ts';
import { insertVlanTag } from './vlan-tag.ts';

/** The same frame in memory with room before it. */
function withRoom(frame: ReturnType<typeof tcpFrame>) {
  const start = frame.offset - VNET_HDR_BYTES;
  const whole = frame.buffer.bytes.subarray(start, frame.offset + frame.length);
  const buffer = createFrameBuffer(VLAN_TAG_BYTES + whole.length);
  buffer.bytes.set(whole, VLAN_TAG_BYTES);
  return { buffer, offset: VLAN_TAG_BYTES + VNET_HDR_BYTES };
}

test('insertVlanTag() makes the frame that the sender sent, offloads included', () => {
  const fields = { payload: new Uint8Array(3_000).fill(7), gsoType: 1, gsoBytes: 1_448 };
  const partialChecksum = true;
  const { buffer, offset } = withRoom(tcpFrame({ ...fields, partialChecksum }));
  insertVlanTag(buffer, offset, 0x8100_0005);
  const expected = tcpFrame({ ...fields, partialChecksum, vlan: 5 });
  expect(buffer.bytes).toEqual(
    expected.buffer.bytes.subarray(
      expected.offset - VNET_HDR_BYTES,
      expected.offset + expected.length,
    ),
  );
});

test('insertVlanTag() leaves a virtio-net header of zeros as it is, and keeps priority and TPID', () => {
  const { buffer, offset } = withRoom(tcpFrame({ payload: 'x' }));
  insertVlanTag(buffer, offset, 0x88a8_e123);
  expect([...buffer.bytes.subarray(0, VNET_HDR_BYTES)]).toEqual(new Array(VNET_HDR_BYTES).fill(0));
  expect(buffer.view.getUint32(offset - VLAN_TAG_BYTES + 12)).toBe(0x88a8_e123);
});
