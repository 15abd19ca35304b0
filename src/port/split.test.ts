import { expect, test } from 'vitest';
import type { FrameBuffer } from '../env/frame.ts';
import { VNET_HDR_BYTES } from '../limits.ts';
import { MemoryPort } from './memory.ts';
import { SplitPort } from './split.ts';

test('SplitPort drops what comes from the wrong direction, one batch in a turn of the event loop', async () => {
  const [to, flooder] = MemoryPort.createPair('to');
  let receives = 0;
  const receive = to.receive.bind(to);
  to.receive = (handler) => {
    receives++;
    return receive(handler);
  };
  const port = new SplitPort(undefined, to);
  port.start(
    () => undefined,
    () => undefined,
  );
  const bytes = new Uint8Array(VNET_HDR_BYTES + 60);
  const buffer: FrameBuffer = { bytes, view: new DataView(bytes.buffer) };
  const frames = 64 * 20;
  for (let i = 0; i < frames; i++) flooder.send(buffer, VNET_HDR_BYTES, 60);
  const perTurn: number[] = [];
  while (port.counters.dropped['wrong-direction'] !== frames) {
    const before = receives;
    await new Promise((resolve) => setImmediate(resolve));
    perTurn.push(receives - before);
  }
  expect(Math.max(...perTurn)).toBe(1);
  expect(port.counters.receivedFrames).toBe(0);
});
