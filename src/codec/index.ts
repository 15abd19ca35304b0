/**
 * Protocols, as bytes to messages and back, without sockets: the peer link, nfnetlink_colo, QEMU's notify protocol and
 * frame streams, QMP. docs/PROTOCOLS.md describes them.
 *
 * @module
 */
export { type LinkDecodeError, type LinkDecodeHandler, LinkDecoder } from './link-decode.ts';
export {
  encodeFrame,
  encodeGoodbye,
  encodeHeartbeat,
  encodeHello,
  encodeMessage,
  encodeRefuse,
  linkMessageBytesMax,
} from './link-encode.ts';
export { LINK_HEADER_BYTES, LINK_VERSION } from './link-msg.ts';
export {
  decodeNetlinkError,
  encodeNetlink,
  encodeNetlinkError,
  type NetlinkMessage,
  readAttributes,
  splitNetlink,
} from './netlink.ts';
export {
  COLO_MODE,
  type ColoMode,
  type ColoRequest,
  decodeColoNotify,
  decodeColoRequest,
  encodeColoRequest,
  encodeKernelNotify,
  NFCOLO,
} from './nfnetlink-colo.ts';
export { encodeNotify, NotifyDecoder } from './notify.ts';
export { decodeQmp, encodeQmpCommand, QmpLineDecoder, type QmpMessage } from './qmp-json.ts';
