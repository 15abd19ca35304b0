/**
 * What the lab and a guest's process say to each other, over the message channel of child_process.fork.
 *
 * @module
 */

/** Each command is answered by one reply with the same `id`. */
export type GuestCommand = { readonly id: number } & (
  | { readonly type: 'freeze' | 'resume' | 'take' }
  | { readonly type: 'load'; readonly image: Uint8Array }
  /** The kernel sends nothing (or again) while the services go on: a dead cable. */
  | { readonly type: 'mute' | 'unmute' }
);

export type GuestMessage =
  | { readonly type: 'ready' }
  | { readonly type: 'token'; readonly token: string }
  | {
      readonly type: 'reply';
      readonly id: number;
      readonly error: string | undefined;
      readonly image: Uint8Array | undefined;
      readonly connections: number;
    };
