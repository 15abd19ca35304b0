/**
 * What a network card does with an offloaded frame before it is on the wire: cuts a GSO frame into
 * segments and completes partial checksums (virtio 1.2 §5.1.6.2).
 *
 * @module
 */
import { ACK, emitSegment, FIN, PSH, parseSegment } from '../tcp/segment.ts';
import {
  emitIp,
  type IpPacket,
  PROTOCOL_TCP,
  parseIp,
  type SimFrame,
  VNET_NEEDS_CSUM,
} from './packet.ts';

/** The frames that appear on the wire for `frame`: itself when nothing was offloaded. */
export function completeOffload(frame: SimFrame): SimFrame[] {
  if ((frame[0]! & VNET_NEEDS_CSUM) === 0) return [frame];
  const packet = parseIp(frame);
  if (packet === undefined) return [frame];
  const gsoBytes = frame[1]! === 0 ? 0 : frame[4]! | (frame[5]! << 8);
  if (gsoBytes === 0 || packet.protocol !== PROTOCOL_TCP)
    return [emitPart(packet, packet.payload, 0)];
  const segment = parseSegment(packet.payload);
  if (segment === undefined) return [frame];
  const parts: SimFrame[] = [];
  const { payload, seq, flags } = segment;
  for (let at = 0; at < payload.length || at === 0; at += gsoBytes) {
    const isLast = at + gsoBytes >= payload.length;
    const part = {
      ...segment,
      seq: (seq + at) >>> 0,
      flags: isLast ? flags : flags & ~(FIN | PSH) & 0xff,
      payload: payload.subarray(at, at + gsoBytes),
    };
    part.flags |= flags & ACK;
    parts.push(emitPart(packet, emitSegment(part), parts.length));
  }
  return parts;
}

function emitPart(packet: IpPacket, payload: Uint8Array, index: number): SimFrame {
  const bytes = payload.slice();
  // The checksum field holds the pseudo-header sum: clear it, then have it computed over everything.
  const at = packet.protocol === PROTOCOL_TCP ? 16 : 6;
  bytes[at] = 0;
  bytes[at + 1] = 0;
  return emitIp(
    {
      srcMac: packet.head.srcMac,
      dstMac: packet.head.dstMac,
      vlan: packet.head.vlan,
      src: packet.src,
      dst: packet.dst,
      protocol: packet.protocol,
      id: (packet.id + index) & 0xffff,
      hopLimit: packet.hopLimit,
    },
    bytes,
  );
}
