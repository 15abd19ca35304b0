/**
 * Puts back the VLAN tag that the kernel takes off received frames.
 *
 * @module
 */
import type { FrameBuffer } from '../env/frame.ts';
import { VNET_HDR_BYTES } from '../limits.ts';
import { MAC_BYTES, VLAN_TAG_BYTES } from '../wire/ethernet.ts';
import { VNET_CSUM_START, VNET_FLAGS, VNET_HDR_LEN, VNET_NEEDS_CSUM } from '../wire/vnet-hdr.ts';

const MAC_ADDRESSES_BYTES = 2 * MAC_BYTES;

/**
 * Inserts a tag behind the MAC addresses of a frame by moving them and the virtio-net header 4 bytes
 * forward, so the frame then begins at `offset - VLAN_TAG_BYTES`; so many bytes before the header must be free.
 *
 * @param tag TPID * 65536 + TCI, host order
 */
export function insertVlanTag(buffer: FrameBuffer, offset: number, tag: number): void {
  const { bytes, view } = buffer;
  const vnet = offset - VNET_HDR_BYTES;
  bytes.copyWithin(vnet - VLAN_TAG_BYTES, vnet, offset + MAC_ADDRESSES_BYTES);
  view.setUint32(offset - VLAN_TAG_BYTES + MAC_ADDRESSES_BYTES, tag);
  // hdr_len (when there is one) and csum_start count from the start of the frame.
  const moved = vnet - VLAN_TAG_BYTES;
  const headerBytes = view.getUint16(moved + VNET_HDR_LEN, true);
  if (headerBytes !== 0) view.setUint16(moved + VNET_HDR_LEN, headerBytes + VLAN_TAG_BYTES, true);
  if ((view.getUint8(moved + VNET_FLAGS) & VNET_NEEDS_CSUM) !== 0) {
    view.setUint16(
      moved + VNET_CSUM_START,
      view.getUint16(moved + VNET_CSUM_START, true) + VLAN_TAG_BYTES,
      true,
    );
  }
}
