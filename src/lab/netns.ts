/**
 * Anonymous network namespaces, held by nothing but file descriptors of this process: when it dies,
 * however it dies, the kernel takes them down with everything in them.
 *
 * The calling thread is moved into a namespace for the length of one synchronous call; sockets made and
 * processes started in between belong to it.
 *
 * @module
 */
import {
  type ChildProcess,
  type ForkOptions,
  fork,
  type SpawnOptions,
  spawn,
  spawnSync,
} from 'node:child_process';
import { closeSync, openSync, writeFileSync } from 'node:fs';
import { ColoError } from '../base/error.ts';
import { CLONE_NEWNET } from '../os/constants.ts';
import { checkResult, setns, unshare } from '../os/libc.ts';

function enter(fd: number, name: string): void {
  checkResult(setns(fd, CLONE_NEWNET), {
    code: 'COLO_ERR_NETNS',
    syscall: 'setns',
    action: `Cannot enter network namespace ${name}`,
  });
}

/** The namespace this process was started in. */
let homeFd: number | undefined;

function home(): number {
  homeFd ??= openSync('/proc/thread-self/ns/net', 'r');
  return homeFd;
}

export class Namespace {
  readonly name: string;
  /** Refers to the namespace; others can be given it, see {@link ip}. */
  readonly fd: number;

  /** @throws ColoError when the kernel refuses (no rights) */
  constructor(name: string) {
    const back = home();
    checkResult(unshare(CLONE_NEWNET), {
      code: 'COLO_ERR_NETNS',
      syscall: 'unshare',
      action: 'Cannot make a network namespace',
    });
    this.name = name;
    this.fd = openSync('/proc/thread-self/ns/net', 'r');
    enter(back, 'home');
  }

  /** Runs `action` inside the namespace. It must be synchronous. */
  within<T>(action: () => T): T {
    const back = home();
    enter(this.fd, this.name);
    try {
      return action();
    } finally {
      enter(back, 'home');
    }
  }

  /**
   * Runs `ip -batch` with these lines. In them `@NAME` stands for the namespace of `others` with that name.
   *
   * @throws ColoError `COLO_ERR_LAB_SETUP` with what ip said
   */
  ip(lines: readonly string[], others: readonly Namespace[] = []): void {
    let input = lines.join('\n');
    for (const [index, other] of others.entries()) {
      // The descriptors are handed to `ip` as its 3rd, 4th, ...
      input = input.replaceAll(`@${other.name}`, `/proc/self/fd/${index + 3}`);
    }
    const stdio: (number | 'pipe')[] = ['pipe', 'pipe', 'pipe', ...others.map((ns) => ns.fd)];
    const result = this.within(() => spawnSync('ip', ['-batch', '-'], { input, stdio }));
    if (result.error !== undefined) {
      throw new ColoError('COLO_ERR_LAB_SETUP', 'Cannot run ip; install iproute2', {
        cause: result.error,
      });
    }
    if (result.status !== 0) {
      const text = result.stderr.toString().trim();
      throw new ColoError('COLO_ERR_LAB_SETUP', `Cannot set up ${this.name}: ${text}`);
    }
  }

  /** Writes settings under /proc/sys/net; those the kernel does not have are left out. */
  sysctl(settings: Readonly<Record<string, string | number>>): void {
    this.within(() => {
      for (const [name, value] of Object.entries(settings)) {
        try {
          writeFileSync(`/proc/sys/net/${name}`, String(value));
        } catch (error) {
          if ((error as NodeJS.ErrnoException).code !== 'ENOENT') throw error;
        }
      }
    });
  }

  spawn(command: string, args: readonly string[], options: SpawnOptions = {}): ChildProcess {
    return this.within(() => spawn(command, args, options));
  }

  /** Starts a module of this program in the namespace, with a message channel. */
  fork(module: string, args: readonly string[], options: ForkOptions = {}): ChildProcess {
    return this.within(() => fork(module, args, { serialization: 'advanced', ...options }));
  }

  /** Gives up this process's hold; the namespace goes when its last process and socket are gone. */
  close(): void {
    closeSync(this.fd);
  }
}
