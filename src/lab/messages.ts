/**
 * Requests and replies between the lab and one of its processes, over child_process' message channel.
 *
 * @module
 */
import type { ChildProcess } from 'node:child_process';
import { ColoError } from '../base/error.ts';

/** What the lab asks; `type` and its fields are the process's own. */
export type Asked = { readonly id: number; readonly type: string };

export type Told<Reply> =
  | { readonly type: 'ready' }
  | { readonly type: 'reply'; readonly id: number; readonly error?: string; readonly reply?: Reply }
  | { readonly type: 'note'; readonly note: unknown };

/** The lab's end: starts nothing, but ends the process. */
export class ProcessChannel<Request extends { readonly type: string }, Reply> {
  readonly child: ChildProcess;
  readonly name: string;
  /** Resolves when the process can be asked. */
  readonly ready: Promise<void>;
  readonly #waiting = new Map<number, { resolve(r: Reply): void; reject(e: Error): void }>();
  readonly #onNote: (note: unknown) => void;
  #lastId = 0;

  /** @param onNote told what the process says unasked */
  constructor(child: ChildProcess, name: string, onNote: (note: unknown) => void = () => {}) {
    this.child = child;
    this.name = name;
    this.#onNote = onNote;
    this.ready = new Promise((resolve, reject) => {
      child.on('message', (message) => this.#onMessage(message as Told<Reply>, resolve));
      child.once('exit', (code, signal) => {
        const error = new ColoError('COLO_ERR_LAB_PROCESS', `${name} ended: ${signal ?? code}`);
        reject(error);
        for (const { reject: refuse } of this.#waiting.values()) refuse(error);
        this.#waiting.clear();
      });
    });
    this.ready.catch(() => {});
  }

  #onMessage(message: Told<Reply>, onReady: () => void): void {
    if (message.type === 'ready') onReady();
    else if (message.type === 'note') this.#onNote(message.note);
    else {
      const waiting = this.#waiting.get(message.id);
      this.#waiting.delete(message.id);
      if (message.error !== undefined) {
        waiting?.reject(new ColoError('COLO_ERR_LAB_PROCESS', `${this.name}: ${message.error}`));
      } else waiting?.resolve(message.reply as Reply);
    }
  }

  /** Rejects when the process reports an error, ends, or does not answer in time. */
  ask(request: Request, timeoutMs: number): Promise<Reply> {
    const id = ++this.#lastId;
    return new Promise((resolve, reject) => {
      const timer = setTimeout(() => {
        this.#waiting.delete(id);
        const text = `${this.name} has not answered ${request.type} within ${timeoutMs} ms`;
        reject(new ColoError('COLO_ERR_LAB_PROCESS', text));
      }, timeoutMs);
      this.#waiting.set(id, {
        resolve: (reply) => {
          clearTimeout(timer);
          resolve(reply);
        },
        reject: (error) => {
          clearTimeout(timer);
          reject(error);
        },
      });
      if (this.child.connected) this.child.send({ id, ...request });
      else {
        this.#waiting.get(id)?.reject(new Error(`${this.name} is gone`));
        this.#waiting.delete(id);
      }
    });
  }

  /** SIGKILL, and waits until the process is gone. */
  async kill(): Promise<void> {
    const { child } = this;
    if (child.exitCode !== null || child.signalCode !== null) return;
    await new Promise<void>((resolve) => {
      child.once('exit', () => resolve());
      child.kill('SIGKILL');
    });
  }
}

/** The process's end: answers each request with what `handle` gives, and ends with the lab. */
export function serveChannel(handle: (request: Asked) => unknown): void {
  process.on('message', (request: Asked) => {
    const answer = async (): Promise<unknown> => handle(request);
    answer().then(
      (reply) => process.send?.({ type: 'reply', id: request.id, reply }),
      (error: unknown) => {
        const text = error instanceof Error ? error.message : String(error);
        process.send?.({ type: 'reply', id: request.id, error: text });
      },
    );
  });
  process.on('disconnect', () => process.exit(0));
  // Ctrl-C reaches the whole process group; the lab decides who ends when.
  process.on('SIGINT', () => {});
  process.send?.({ type: 'ready' });
}

/** Says something to the lab unasked. */
export function note(content: unknown): void {
  process.send?.({ type: 'note', note: content });
}
