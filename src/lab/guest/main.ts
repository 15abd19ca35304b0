/**
 * Process of one guest. It runs in the guest's network namespace and is steered by the lab.
 *
 * @module
 */
import { type Asked, note, serveChannel } from '../messages.ts';
import { Guest } from './guest.ts';

/** What the lab may ask of a guest. */
export type GuestRequest =
  | { readonly type: 'status' | 'freeze' | 'resume' | 'take' }
  | { readonly type: 'load'; readonly image: Uint8Array }
  /** The kernel sends nothing (or again) while the services go on: a dead cable. */
  | { readonly type: 'mute' | 'unmute' };

export interface GuestReply {
  /** Answer to `take`. */
  readonly image?: Uint8Array;
  readonly connections: number;
}

/** Said unasked: a token that the other guest cannot know. */
export interface TokenNote {
  readonly token: string;
}

const guest = new Guest((token) => note({ token } satisfies TokenNote));

function carryOut(request: GuestRequest): Uint8Array | undefined {
  switch (request.type) {
    case 'status':
      return undefined;
    case 'freeze':
      guest.freeze();
      return undefined;
    case 'resume':
      guest.resume();
      return undefined;
    case 'take':
      return guest.take();
    case 'load':
      guest.load(request.image);
      return undefined;
    case 'mute':
    case 'unmute':
      guest.mute(request.type === 'mute');
      return undefined;
  }
}

guest.start();
serveChannel((request: Asked): GuestReply => {
  const image = carryOut(request as Asked & GuestRequest);
  return { ...(image !== undefined && { image }), connections: guest.connectionCount };
});
