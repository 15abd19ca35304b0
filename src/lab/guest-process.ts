/**
 * The lab's handle of a guest: starts it, steers it, and knows which tokens it made up.
 *
 * @module
 */
import type { GuestReply, GuestRequest, TokenNote } from './guest/main.ts';
import { ProcessChannel } from './messages.ts';
import type { Namespace } from './netns.ts';
import { labModule } from './program.ts';

export class GuestProcess extends ProcessChannel<GuestRequest, GuestReply> {
  /** What this guest answered to `/random`, in order. */
  readonly tokens: string[];

  constructor(namespace: Namespace) {
    const tokens: string[] = [];
    const child = namespace.fork(labModule('guest/main'), [], {
      stdio: ['ignore', 'inherit', 'inherit', 'ipc'],
      detached: true,
    });
    super(child, namespace.name, (note) => tokens.push((note as TokenNote).token));
    this.tokens = tokens;
  }

  /** As a hang of the machine. */
  stop(): void {
    this.child.kill('SIGSTOP');
  }

  continue(): void {
    this.child.kill('SIGCONT');
  }
}
