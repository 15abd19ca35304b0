/**
 * Connections that the guest opens to the client.
 *
 * @module
 */
import { createServer, type Socket } from 'node:net';
import { PORTS } from '../guest/services.ts';
import { ADDRESSES } from '../topology.ts';
import { type Family, getText, openConnection } from './http.ts';

/** Asks the guest to connect to this port of the client, and waits for it. */
export async function acceptFromGuest(family: Family, port: number): Promise<Socket> {
  const server = createServer();
  const { client } = ADDRESSES[family];
  await new Promise<void>((resolve) => server.listen(port, client, resolve));
  const accepted = new Promise<Socket>((resolve) => server.once('connection', resolve));
  const request = await openConnection(family, PORTS.http);
  await getText(request, `/open?address=${client}&port=${port}&local=${port}`);
  request.end();
  const socket = await accepted;
  server.close();
  return socket;
}
