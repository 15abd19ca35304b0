/**
 * Network namespaces with real TCP hosts in them, for tests and benches. Everything made is undone by `close`, also
 * the processes.
 *
 * @module
 */
import { type ChildProcess, execFileSync, spawn } from 'node:child_process';
import { accessSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { CLONE_NEWNET, O_CLOEXEC, O_RDONLY } from '../../src/os/constants.ts';
import { checkResult, close, open, setns } from '../../src/os/libc.ts';

const OWN_NAMESPACE = '/proc/thread-self/ns/net';
const LISTEN_MS_MAX = 20_000;
const ENDPOINT = fileURLToPath(new URL('./tcp-endpoint.mjs', import.meta.url));

/** Why these tests cannot run here; empty when they can. */
export function whyNoNamespaces(): string {
  if (process.getuid?.() !== 0) return 'needs root';
  try {
    execFileSync('ip', ['-V'], { stdio: 'ignore' });
  } catch {
    return 'needs iproute2';
  }
  try {
    accessSync('/dev/net/tun');
  } catch {
    return 'needs /dev/net/tun';
  }
  return '';
}

/** What an endpoint printed last. */
export interface EndpointResult {
  readonly ok: boolean;
  readonly error?: string;
  readonly bytes?: number;
  readonly seconds?: number;
  readonly gbitPerSecond?: number;
  readonly p50Us?: number;
  readonly p99Us?: number;
}

/** Whether the kernel's tables of sockets (/proc/net/tcp and its like) have somebody who waits at this port. */
export function isListening(tables: string, port: number): boolean {
  const hex = port.toString(16).toUpperCase().padStart(4, '0');
  // Local and remote address, then the state: listening, or a datagram socket that is not connected.
  return new RegExp(`:${hex} 0+:0000 (0A|07) `).test(tables);
}

let made = 0;

/** A set of namespaces of one test. */
export class Namespaces {
  readonly #prefix = `colo-${process.pid}-${++made}-`;
  readonly #names = new Set<string>();
  readonly #children = new Set<ChildProcess>();

  /**
   * Makes a namespace. A `quiet` one has no IPv6, so that nothing speaks in it unasked; the others take IPv6 addresses
   * without looking for duplicates first.
   */
  add(name: string, quiet = false): void {
    execFileSync('ip', ['netns', 'add', this.#prefix + name]);
    this.#names.add(name);
    this.ip(name, 'link set lo up');
    const setting = quiet ? 'disable_ipv6' : 'accept_dad';
    for (const scope of ['all', 'default']) {
      const line = `echo ${quiet ? 1 : 0} > /proc/sys/net/ipv6/conf/${scope}/${setting}`;
      this.run(name, ['sh', '-c', line]);
    }
  }

  /** For `inNetworkNamespace`. */
  path(name: string): string {
    return `/run/netns/${this.#prefix}${name}`;
  }

  /** `ip -n NAME ARGUMENTS`, separated by spaces; `@NAME` stands for another namespace of this set. */
  ip(name: string, line: string): string {
    const words = line
      .split(' ')
      .map((word) => (word.startsWith('@') ? this.#prefix + word.slice(1) : word));
    return execFileSync('ip', ['-n', this.#prefix + name, ...words], { encoding: 'utf8' });
  }

  /** Runs a command in a namespace to its end. */
  run(name: string, command: readonly string[]): string {
    const words = ['netns', 'exec', this.#prefix + name, ...command];
    return execFileSync('ip', words, { encoding: 'utf8' });
  }

  /** Joins two namespaces by a veth pair; both ends up. */
  join(a: string, interfaceA: string, b: string, interfaceB: string, mtu = 1_500): void {
    const line = `link add ${interfaceA} mtu ${mtu} type veth peer name ${interfaceB} mtu ${mtu} netns @${b}`;
    this.ip(a, line);
    this.ip(a, `link set dev ${interfaceA} up`);
    this.ip(b, `link set dev ${interfaceB} up`);
  }

  /** Starts a server and waits until it listens. */
  async serve(name: string, host: string, port: number): Promise<void> {
    const child = this.#spawn(name, ['serve', host, String(port)]);
    await new Promise<void>((resolve, reject) => {
      child.stdout?.once('data', () => resolve());
      child.once('exit', () => reject(new Error(`the server on ${host} did not start`)));
    });
  }

  /** Waits until some program there waits for connections or datagrams at a port. @throws Error when none does in time */
  async listens(name: string, protocol: 'tcp' | 'udp', port: number): Promise<void> {
    const endMs = performance.now() + LISTEN_MS_MAX;
    const tables = ['cat', `/proc/net/${protocol}`, `/proc/net/${protocol}6`];
    while (!isListening(this.run(name, tables), port)) {
      if (performance.now() > endMs) throw new Error(`nobody listens on port ${port} of ${name}`);
      await new Promise((resolve) => setTimeout(resolve, 20));
    }
  }

  /** Runs a client of tcp-endpoint.mjs to its end. */
  endpoint(name: string, ...words: (string | number)[]): Promise<EndpointResult> {
    const child = this.#spawn(name, words.map(String));
    let output = '';
    child.stdout?.on('data', (data) => {
      output += String(data);
    });
    return new Promise((resolve) => {
      child.once('close', () => {
        const line = output.trim().split('\n').at(-1) ?? '';
        const none = { ok: false, error: `no result: ${output}` };
        resolve(line === '' ? none : (JSON.parse(line) as EndpointResult));
      });
    });
  }

  /** Runs any program to its end; resolves with what it printed. */
  command(name: string, words: readonly string[]): Promise<string> {
    const child = this.start(name, words);
    let output = '';
    child.stdout?.on('data', (data) => {
      output += String(data);
    });
    return new Promise((resolve) => child.once('close', () => resolve(output)));
  }

  /** Starts any program; `close` ends it. */
  start(name: string, words: readonly string[]): ChildProcess {
    // `ip netns exec` becomes the command, so that a signal reaches it.
    const child = spawn('ip', ['netns', 'exec', this.#prefix + name, ...words], {
      stdio: ['ignore', 'pipe', 'inherit'],
    });
    this.#children.add(child);
    return child;
  }

  /** Ends all processes, those that others have started too, and deletes all namespaces. */
  async close(): Promise<void> {
    for (const child of this.#children) {
      if (child.exitCode !== null || child.signalCode !== null) continue;
      const gone = new Promise((resolve) => child.once('exit', resolve));
      child.kill('SIGKILL');
      await gone;
    }
    for (const name of this.#names) {
      this.#endStrays(name);
      execFileSync('ip', ['netns', 'del', this.#prefix + name]);
    }
    this.#names.clear();
  }

  /** A server's children have its output open, and outlive it. */
  #endStrays(name: string): void {
    const pids = execFileSync('ip', ['netns', 'pids', this.#prefix + name], { encoding: 'utf8' });
    for (const pid of pids.split('\n').filter((line) => line !== '')) {
      try {
        process.kill(Number(pid), 'SIGKILL');
      } catch (error) {
        // It has ended meanwhile.
        if ((error as NodeJS.ErrnoException).code !== 'ESRCH') throw error;
      }
    }
  }

  #spawn(name: string, words: readonly string[]): ChildProcess {
    return this.start(name, [process.execPath, ENDPOINT, ...words]);
  }
}

/**
 * Runs `body`, which must be synchronous, with this thread in the network namespace of `path`
 * (`/run/netns/NAME`, `/proc/PID/ns/net`), and comes back.
 *
 * @throws ColoError COLO_ERR_NETNS; needs CAP_SYS_ADMIN
 */
export function inNetworkNamespace<T>(path: string, body: () => T): T {
  const own = openNamespace(OWN_NAMESPACE);
  try {
    const other = openNamespace(path);
    try {
      enterNamespace(other, path);
    } finally {
      close(other);
    }
    try {
      return body();
    } finally {
      enterNamespace(own, OWN_NAMESPACE);
    }
  } finally {
    close(own);
  }
}

function openNamespace(path: string): number {
  const action = `Cannot open the network namespace ${path}`;
  return checkResult(open(path, O_RDONLY | O_CLOEXEC, 0), {
    code: 'COLO_ERR_NETNS',
    syscall: 'open',
    action,
    path,
  });
}

function enterNamespace(fd: number, path: string): void {
  const action = `Cannot enter the network namespace ${path}`;
  checkResult(setns(fd, CLONE_NEWNET), {
    code: 'COLO_ERR_NETNS',
    syscall: 'setns',
    action,
    path,
  });
}
