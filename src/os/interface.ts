/**
 * Facts about a network interface by its name (netdevice(7) ioctls).
 *
 * ```text
 * struct ifreq, 40 bytes: 0 name 16 | 16 flags u16, or mtu s32, ...; host order
 * ```
 *
 * @module
 */
import {
  IFF_UP,
  IFNAMSIZ,
  IFREQ_BYTES,
  SIOCGIFFLAGS,
  SIOCGIFMTU,
  SIOCSIFFLAGS,
} from './constants.ts';
import { errno, ioctl } from './libc.ts';

/** A struct ifreq with the name filled in. */
export function interfaceRequest(name: string): DataView {
  const ifreq = new Uint8Array(new ArrayBuffer(IFREQ_BYTES));
  new TextEncoder().encodeInto(name, ifreq.subarray(0, IFNAMSIZ - 1));
  return new DataView(ifreq.buffer);
}

/**
 * Largest layer 3 packet in bytes, or `-errno`.
 *
 * @param socketFd any socket: it says which network namespace is meant
 */
export function interfaceMtu(socketFd: number, name: string): number {
  const ifreq = interfaceRequest(name);
  if (ioctl(socketFd, SIOCGIFMTU, new Uint8Array(ifreq.buffer)) < 0) return -errno();
  return ifreq.getInt32(IFNAMSIZ, true);
}

/** Is the interface administratively up? False too when it does not exist. */
export function isInterfaceUp(socketFd: number, name: string): boolean {
  const ifreq = interfaceRequest(name);
  if (ioctl(socketFd, SIOCGIFFLAGS, new Uint8Array(ifreq.buffer)) < 0) return false;
  return (ifreq.getUint16(IFNAMSIZ, true) & IFF_UP) !== 0;
}

/** Sets the interface up unless it is; 0, or `-errno`. */
export function setInterfaceUp(socketFd: number, name: string): number {
  const ifreq = interfaceRequest(name);
  const memory = new Uint8Array(ifreq.buffer);
  if (ioctl(socketFd, SIOCGIFFLAGS, memory) < 0) return -errno();
  const flags = ifreq.getUint16(IFNAMSIZ, true);
  // Who may use a persistent tap device need not have the right to change the interface.
  if ((flags & IFF_UP) !== 0) return 0;
  ifreq.setUint16(IFNAMSIZ, flags | IFF_UP, true);
  return ioctl(socketFd, SIOCSIFFLAGS, memory) < 0 ? -errno() : 0;
}
