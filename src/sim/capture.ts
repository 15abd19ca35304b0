/**
 * What the clients of a run saw, as a pcapng file. Times count from the beginning of the run.
 *
 * @module
 */
import { VNET_HDR_BYTES } from '../limits.ts';
import { encodeInterface, encodePacket, encodeSectionHeader } from '../wire/pcapng-writer.ts';
import type { Seen } from './world.ts';

/** The whole file. */
export function captureOf(seen: readonly Seen[]): Uint8Array {
  const blocks = [
    encodeSectionHeader({ application: 'colo-proxy sim' }),
    encodeInterface({ name: 'clients' }),
    ...seen.map(({ atUs, frame }) =>
      encodePacket({ interfaceId: 0, atUs, bytes: frame, offset: VNET_HDR_BYTES }),
    ),
  ];
  const file = new Uint8Array(blocks.reduce((sum, block) => sum + block.length, 0));
  let at = 0;
  for (const block of blocks) {
    file.set(block, at);
    at += block.length;
  }
  return file;
}
