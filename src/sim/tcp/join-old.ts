/**
 * Connections that are older than the run: both ends are put together without a handshake.
 *
 * @module
 */
import type { TcpConnection } from './connection.ts';

/** Makes `connection` know what its peer has sent. */
export function joinOld(connection: TcpConnection, peer: TcpConnection): void {
  connection.irs = peer.iss;
  connection.rcvNxt = peer.sndNxt;
  connection.lastAckSent = connection.rcvNxt;
  connection.mss = Math.min(connection.options.mss, peer.options.mss) - 12;
  connection.cwnd = 10 * connection.mss;
  const isScaled = connection.options.windowScale > 0 && peer.options.windowScale > 0;
  connection.rcvScale = isScaled ? connection.options.windowScale : 0;
  connection.sndScale = isScaled ? peer.options.windowScale : 0;
  const unit = 2 ** connection.rcvScale;
  const window = Math.min(Math.floor(connection.options.receiveBytesMax / unit), 0xffff) * unit;
  connection.rcvEdge = connection.rcvNxt + window;
  connection.sndWl1 = connection.rcvNxt;
  connection.sndWl2 = connection.sndUna;
  const peerUnit = 2 ** connection.sndScale;
  connection.sndWnd =
    Math.min(Math.floor(peer.options.receiveBytesMax / peerUnit), 0xffff) * peerUnit;
  connection.sackOk = connection.options.sack && peer.options.sack;
  connection.timestampsOk = connection.options.timestamps && peer.options.timestamps;
  connection.tsRecent = peer.timestampOffset;
}
