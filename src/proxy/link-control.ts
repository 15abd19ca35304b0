/**
 * Frames that keep the link alive rather than answer a client: ARP, IPv6 neighbour and router discovery, multicast
 * group membership. The PVM's go out at once; the SVM's stay inside (G3): the secondary answers its questions
 * (`neighbours.ts`), and after a failover announces the guest (`guest-addresses.ts`), which then reports its
 * groups when the next query comes.
 *
 * @module
 */
import type { FrameInfo } from '../wire/frame.ts';

const ETHERTYPE_ARP = 0x0806;
const PROTOCOL_IGMP = 2;
const PROTOCOL_ICMPV6 = 58;

/** Is the frame ARP, IGMP, MLD (ICMPv6 130-132, 143) or neighbour discovery (133-137)? */
export function isLinkControl(info: FrameInfo): boolean {
  if (info.etherType === ETHERTYPE_ARP) return true;
  if (info.protocol === PROTOCOL_IGMP && info.ipVersion === 4) return true;
  if (info.protocol !== PROTOCOL_ICMPV6 || info.ipVersion !== 6 || info.isFragment) return false;
  const type = info.icmpType;
  return (type >= 130 && type <= 137) || type === 143;
}
