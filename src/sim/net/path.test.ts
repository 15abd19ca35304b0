import { expect, test } from 'vitest';
import { GOLDEN_FRAMES } from '../../../test/golden/frames.ts';
import { Prng } from '../../base/prng.ts';
import { VNET_HDR_BYTES } from '../../limits.ts';
import { EventQueue } from '../event-queue.ts';
import { writeHex } from './packet.ts';
import { type Impairments, Path } from './path.ts';

const DAMAGES: Impairments = {
  delayUsMin: 1,
  delayUsMax: 1,
  loss: 0,
  fragmentLoss: 0,
  duplicate: 0,
  reorder: 0,
  reorderUsMax: 0,
  corrupt: 1,
};

function bitsApart(a: Uint8Array, b: Uint8Array): number {
  let bits = 0;
  a.forEach((byte, i) => {
    for (let rest = byte ^ b[i]!; rest > 0; rest &= rest - 1) bits++;
  });
  return bits;
}

test('Path, one bit of a frame is damaged, on however many links', () => {
  const { hex } = GOLDEN_FRAMES.tcp4Syn;
  const frame = new Uint8Array(VNET_HDR_BYTES + hex.length / 2);
  writeHex(frame, VNET_HDR_BYTES, hex);
  const queue = new EventQueue();
  const arrived: Uint8Array[] = [];
  const second = new Path('b', DAMAGES, queue, new Prng(1), (late) => arrived.push(late));
  const first = new Path('a', DAMAGES, queue, new Prng(2), (early) => second.send(early));
  for (let i = 0; i < 50; i++) first.send(frame);
  for (let event = queue.take(); event !== undefined; event = queue.take()) event.run();
  expect(arrived.map((item) => bitsApart(item, frame))).toEqual(Array(50).fill(1));
});
