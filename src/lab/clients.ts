/**
 * The lab's end of the clients' process; see client/main.ts.
 *
 * @module
 */
import type { ClientCalls, ClientRequest, ClientResult } from './client/main.ts';
import type { TransferRequest, TransferResult } from './client/transfer.ts';
import { expectedDigest } from './content.ts';
import { ProcessChannel } from './messages.ts';
import type { Namespace } from './netns.ts';
import { labModule } from './program.ts';

export type Family = 4 | 6;

export const CLIENT_MS_MAX = 120_000;
const AWAIT_TRIES_MAX = 50;

/** Starts a module of the lab as a process in a namespace. */
export function forkModule(namespace: Namespace, module: string): ReturnType<Namespace['fork']> {
  return namespace.fork(labModule(module), [], {
    stdio: ['ignore', 'inherit', 'inherit', 'ipc'],
    detached: true,
  });
}

/** Clients that talk to the guest over one IP version. */
export class Clients {
  readonly #family: Family;
  readonly #channel: ProcessChannel<ClientRequest, ClientResult>;
  readonly #reached = new Map<number, (clientPort: number) => void>();

  constructor(namespace: Namespace, family: Family) {
    this.#family = family;
    this.#channel = new ProcessChannel(forkModule(namespace, 'client/main'), 'client', (note) => {
      const { reached, clientPort } = note as { reached: number; clientPort: number };
      this.#reached.get(reached)?.(clientPort);
    });
  }

  get ready(): Promise<void> {
    return this.#channel.ready;
  }

  /** Has the clients do something with the guest. */
  ask<Name extends keyof ClientCalls>(
    request: { readonly type: Name } & Omit<ClientCalls[Name]['request'], 'family'>,
  ): Promise<ClientCalls[Name]['result']> {
    const whole = { family: this.#family, ...request } as unknown as ClientRequest;
    return this.#channel.ask(whole, CLIENT_MS_MAX) as Promise<ClientCalls[Name]['result']>;
  }

  /** A long transfer, with what it is checked by. */
  transfer(request: Omit<TransferRequest, 'family' | 'digest'>): Promise<TransferResult> {
    const digest = expectedDigest(request.direction, request.seed, request.bytes);
    return this.ask({ type: 'transfer', ...request, digest });
  }

  /** Resolves with its client's port when the transfer with this seed has come to its `tellAtBytes`. */
  reached(seed: number): Promise<number> {
    return new Promise((resolve) => this.#reached.set(seed, resolve));
  }

  /** Does the guest answer, within some seconds? (Bridge ports take a moment until they forward.) */
  async reachGuest(): Promise<boolean> {
    for (let tries = 0; tries < AWAIT_TRIES_MAX; tries++) {
      const { answered } = await this.ask({ type: 'ping', count: 1, bytes: 8, timeoutMs: 100 });
      if (answered === 1) return true;
    }
    return false;
  }

  kill(): Promise<void> {
    return this.#channel.kill();
  }
}
