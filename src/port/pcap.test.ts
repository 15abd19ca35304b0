import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { tcpFrame } from '../../test/support/frame-builder.ts';
import type { FrameBuffer } from '../env/frame.ts';
import { VNET_HDR_BYTES } from '../limits.ts';
import { encodeInterface, encodePacket, encodeSectionHeader } from '../wire/pcapng-writer.ts';
import { PcapPort } from './pcap.ts';

let directory: string;
beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), 'colo-pcap-'));
});
afterEach(() => rmSync(directory, { recursive: true }));

const hex = (bytes: Uint8Array) => Buffer.from(bytes).toString('hex');

function writeCapture(blocks: readonly Uint8Array[]): string {
  const path = join(directory, 'capture.pcapng');
  writeFileSync(path, Buffer.concat([encodeSectionHeader({}), ...blocks]));
  return path;
}

/** Reads a capture to its end. */
async function readAll(path: string) {
  const port = new PcapPort(path);
  const frames: string[] = [];
  const handler = (buffer: FrameBuffer, offset: number, length: number) => {
    const start = offset - VNET_HDR_BYTES;
    frames.push(hex(buffer.bytes.subarray(start, offset + length)));
  };
  const error = await new Promise<Error>((resolve) => {
    port.start(() => port.receive(handler), resolve);
  });
  return { port, frames, error };
}

const frameOf = (index: number) => {
  const { buffer, offset, length } = tcpFrame({
    seq: index,
    payload: new Uint8Array(index % 1_461),
  });
  return buffer.bytes.slice(offset, offset + length);
};

test('PcapPort gives all frames of a file in order, each behind a virtio-net header of zeros, then its end', async () => {
  const frames = Array.from({ length: 3_000 }, (_, index) => frameOf(index));
  const blocks = frames.map((bytes) => encodePacket({ interfaceId: 0, atUs: 1, bytes }));
  const result = await readAll(writeCapture([encodeInterface({}), ...blocks]));
  const zeros = '00'.repeat(VNET_HDR_BYTES);
  expect(result.frames).toEqual(frames.map((bytes) => zeros + hex(bytes)));
  expect(result.error).toMatchObject({ code: 'COLO_ERR_PORT_END' });
  expect(result.port.counters).toMatchObject({ receivedFrames: 3_000, dropped: {} });
});

test('PcapPort has room for a file of nothing but the smallest frames', async () => {
  const header = Buffer.alloc(24);
  header.writeUInt32LE(0xa1b2c3d4, 0);
  header.writeUInt16LE(2, 4);
  header.writeUInt16LE(4, 6);
  header.writeUInt32LE(65_535, 16);
  header.writeUInt32LE(1, 20);
  const packet = Buffer.alloc(16 + 14);
  packet.writeUInt32LE(14, 8);
  packet.writeUInt32LE(14, 12);
  const path = join(directory, 'small.pcap');
  writeFileSync(path, Buffer.concat([header, ...Array.from({ length: 20_000 }, () => packet)]));
  const result = await readAll(path);
  expect(result.frames).toHaveLength(20_000);
});

test('PcapPort leaves out, and counts, what is no whole Ethernet frame', async () => {
  const bytes = frameOf(100);
  const path = writeCapture([
    encodeInterface({}),
    encodeInterface({ linkType: 101 }),
    encodePacket({ interfaceId: 1, atUs: 1, bytes }),
    encodePacket({ interfaceId: 0, atUs: 1, bytes, originalBytes: bytes.length + 1 }),
    encodePacket({ interfaceId: 0, atUs: 1, bytes: bytes.subarray(0, 13) }),
    encodePacket({ interfaceId: 0, atUs: 1, bytes }),
  ]);
  const { frames, port } = await readAll(path);
  expect(frames).toHaveLength(1);
  expect(port.counters.dropped).toEqual({ 'not-ethernet': 1, truncated: 1, 'too-short': 1 });
});

test('PcapPort says what is wrong with a file that is cut, is no capture, or is not there', async () => {
  const bytes = frameOf(100);
  const whole = Buffer.concat([
    encodeSectionHeader({}),
    encodeInterface({}),
    encodePacket({ interfaceId: 0, atUs: 1, bytes }),
  ]);
  const cut = join(directory, 'cut.pcapng');
  writeFileSync(cut, whole.subarray(0, whole.length - 1));
  expect((await readAll(cut)).error).toMatchObject({ code: 'COLO_ERR_PCAP_READ', path: cut });
  const text = join(directory, 'text');
  writeFileSync(text, 'this is no capture at all');
  expect((await readAll(text)).error).toMatchObject({ code: 'COLO_ERR_PCAP_READ' });
  const missing = expect.objectContaining({ code: 'COLO_ERR_PCAP_OPEN' });
  expect(() => new PcapPort(join(directory, 'missing'))).toThrow(missing);
  expect(() => new PcapPort(directory)).toThrow(missing);
});
