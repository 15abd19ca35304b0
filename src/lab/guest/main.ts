/**
 * Process of one guest. It runs in the guest's network namespace and is steered by the lab.
 *
 * @module
 */
import { Guest } from './guest.ts';
import type { GuestCommand, GuestMessage } from './protocol.ts';

const guest = new Guest((token) => say({ type: 'token', token }));

function say(message: GuestMessage): void {
  process.send?.(message);
}

function carryOut(command: GuestCommand): Uint8Array | undefined {
  switch (command.type) {
    case 'freeze':
      guest.freeze();
      return undefined;
    case 'resume':
      guest.resume();
      return undefined;
    case 'take':
      return guest.take();
    case 'load':
      guest.load(command.image);
      return undefined;
    case 'mute':
      guest.mute(true);
      return undefined;
    case 'unmute':
      guest.mute(false);
      return undefined;
  }
}

process.on('message', (command: GuestCommand) => {
  let image: Uint8Array | undefined;
  let error: string | undefined;
  try {
    image = carryOut(command);
  } catch (cause) {
    error = cause instanceof Error ? (cause.stack ?? cause.message) : String(cause);
  }
  say({ type: 'reply', id: command.id, error, image, connections: guest.connectionCount });
});
// The lab is gone: so is the machine.
process.on('disconnect', () => process.exit(0));
guest.start();
say({ type: 'ready' });
