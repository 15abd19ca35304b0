/**
 * One question over HTTP, on a connection of its own.
 *
 * @module
 */
import { PORTS } from '../guest/services.ts';
import { type Family, getText, openConnection } from './http.ts';

export interface TextRequest {
  readonly family: Family;
  readonly path: string;
}

export interface TextResult {
  readonly text: string;
}

/** Rejects when the answer is no success. */
export async function text({ family, path }: TextRequest): Promise<TextResult> {
  const socket = await openConnection(family, PORTS.http);
  try {
    return { text: (await getText(socket, path)).trim() };
  } finally {
    socket.on('error', () => {});
    socket.end();
  }
}
