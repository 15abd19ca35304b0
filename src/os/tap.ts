/**
 * A tap device: the interface itself belongs to this process, which reads what the host sends out of it.
 *
 * Sources: Linux drivers/net/tun.c, Documentation/networking/tuntap.rst.
 *
 * @module
 */
import { VNET_HDR_BYTES } from '../limits.ts';
import {
  AF_UNIX,
  IFF_NO_PI,
  IFF_TAP,
  IFF_VNET_HDR,
  IFNAMSIZ,
  O_CLOEXEC,
  O_NONBLOCK,
  O_RDWR,
  SOCK_CLOEXEC,
  SOCK_DGRAM,
  TUN_F_CSUM,
  TUN_F_TSO4,
  TUN_F_TSO6,
  TUNGETIFF,
  TUNSETIFF,
  TUNSETOFFLOAD,
  TUNSETVNETHDRSZ,
} from './constants.ts';
import { interfaceMtu, interfaceRequest, isInterfaceUp, setInterfaceUp } from './interface.ts';
import {
  type Address,
  checkResult,
  close,
  errno,
  ioctl,
  ioctlNumber,
  open,
  read,
  socket,
  writev,
} from './libc.ts';
import type { MessageVector } from './message-vector.ts';

const DEVICE = '/dev/net/tun';
const CODE = 'COLO_ERR_TAP_OPEN';

/** An open tap device; all calls are non-blocking. Failing calls return `-errno`. */
export class TapDevice {
  readonly fd: number;
  readonly interfaceName: string;
  /** For ioctls on the interface, which the device itself does not take. */
  readonly #socketFd: number;

  private constructor(fd: number, socketFd: number, interfaceName: string) {
    this.fd = fd;
    this.#socketFd = socketFd;
    this.interfaceName = interfaceName;
  }

  /**
   * Attaches to the tap device of this name, or makes one that lives until `close`; sets it up. Frames
   * carry virtio-net headers of VNET_HDR_BYTES, and may be TCP GSO frames with partial checksums.
   *
   * @throws ColoError COLO_ERR_TAP_OPEN
   */
  static open(interfaceName: string): TapDevice {
    const failure = (syscall: string) => ({
      code: CODE,
      syscall,
      action: `Cannot open the tap device ${interfaceName}`,
      path: interfaceName,
    });
    const fd = checkResult(open(DEVICE, O_RDWR | O_NONBLOCK | O_CLOEXEC, 0), {
      code: CODE,
      syscall: 'open',
      action: `Cannot open ${DEVICE}`,
      path: DEVICE,
    });
    let socketFd = -1;
    try {
      const ifreq = interfaceRequest(interfaceName);
      ifreq.setUint16(IFNAMSIZ, IFF_TAP | IFF_NO_PI | IFF_VNET_HDR, true);
      checkResult(ioctl(fd, TUNSETIFF, new Uint8Array(ifreq.buffer)), failure('ioctl TUNSETIFF'));
      const headerBytes = new Uint8Array(new Int32Array([VNET_HDR_BYTES]).buffer);
      checkResult(ioctl(fd, TUNSETVNETHDRSZ, headerBytes), failure('ioctl TUNSETVNETHDRSZ'));
      const offloads = TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6;
      checkResult(ioctlNumber(fd, TUNSETOFFLOAD, offloads), failure('ioctl TUNSETOFFLOAD'));
      socketFd = checkResult(socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0), failure('socket'));
      const result = setInterfaceUp(socketFd, interfaceName);
      if (result < 0) checkResult(-1, failure('ioctl SIOCSIFFLAGS'));
      return new TapDevice(fd, socketFd, interfaceName);
    } catch (error) {
      if (socketFd >= 0) close(socketFd);
      close(fd);
      throw error;
    }
  }

  /** Reads one frame with its virtio-net header; bytes, or `-errno`. */
  read(address: Address, bytesMax: number): number {
    const bytes = read(this.fd, address, bytesMax);
    return bytes < 0 ? -errno() : bytes;
  }

  /**
   * Writes messages `[first, first + count)` of `vector`, one call each (a tun device takes no batches); how
   * many were taken, or `-errno` when not even the first was.
   */
  write(vector: MessageVector, first: number, count: number): number {
    for (let index = first; index < first + count; index++) {
      const bytes = writev(this.fd, vector.addressOfSegments(index), vector.segmentCount(index));
      if (bytes < 0) return index > first ? index - first : -errno();
    }
    return count;
  }

  /** Has the device been deleted? */
  isVanished(): boolean {
    return ioctl(this.fd, TUNGETIFF, new Uint8Array(interfaceRequest('').buffer)) < 0;
  }

  /** Largest layer 3 packet of the interface in bytes, or `-errno`. */
  mtu(): number {
    return interfaceMtu(this.#socketFd, this.interfaceName);
  }

  /** Is the interface administratively up? */
  isUp(): boolean {
    return isInterfaceUp(this.#socketFd, this.interfaceName);
  }

  close(): void {
    close(this.#socketFd);
    close(this.fd);
  }
}
