import { existsSync, mkdtempSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { connect, createServer, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import fc from 'fast-check';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { SILENT_LOG } from '../../test/support/silent-log.ts';
import type { CommandResult } from '../env/engine.ts';
import type { ProxyEvent } from '../env/messages.ts';
import { CONTROL_CONNECTIONS_MAX, CONTROL_LINE_BYTES_MAX } from '../limits.ts';
import { callControl, followControl } from './client.ts';
import { LINE_TOO_LONG, LineSplitter, parseControlRequest } from './protocol.ts';
import { type ControlHandlers, ControlServer } from './server.ts';

const OK: CommandResult = { ok: true };

/** Writes down the commands; `answer` is what they say. */
class Handlers implements ControlHandlers {
  readonly calls: string[] = [];
  readonly followers = new Set<(event: ProxyEvent) => void>();
  answer: CommandResult | Promise<CommandResult> = OK;
  state = { state: 'protected' as string };

  status(): unknown {
    return this.state;
  }
  flows(countMax: number): [] {
    this.calls.push(`flows ${countMax}`);
    return [];
  }
  events(): ProxyEvent[] {
    return [event('old')];
  }
  followEvents(listener: (event: ProxyEvent) => void): () => void {
    this.followers.add(listener);
    return () => this.followers.delete(listener);
  }
  checkpointBegin(): Promise<CommandResult> {
    return this.#call('begin');
  }
  checkpointCommit(): Promise<CommandResult> {
    return this.#call('commit');
  }
  checkpointAbort(reason: string): Promise<CommandResult> {
    return this.#call(`abort ${reason}`);
  }
  failover(force: boolean): Promise<CommandResult> {
    return this.#call(`failover ${force}`);
  }
  reset(reason: string): Promise<CommandResult> {
    return this.#call(`reset ${reason}`);
  }
  emit(text: string): void {
    for (const follower of this.followers) follower(event(text));
  }
  async #call(call: string): Promise<CommandResult> {
    this.calls.push(call);
    return this.answer;
  }
}

function event(text: string): ProxyEvent {
  return { atUs: 1, kind: 'state', text };
}

let directory: string;
let path: string;
let handlers: Handlers;
let server: ControlServer;
const sockets: Socket[] = [];

beforeEach(async () => {
  directory = mkdtempSync(join(tmpdir(), 'colo-control-'));
  path = join(directory, 'node.sock');
  handlers = new Handlers();
  server = new ControlServer(path, handlers, SILENT_LOG);
  await server.start();
});
afterEach(async () => {
  for (const socket of sockets.splice(0)) socket.destroy();
  await server.close();
  rmSync(directory, { recursive: true });
});

/** Writes raw bytes, and collects what comes back until `count` lines came or the node hung up. */
async function raw(bytes: string | Uint8Array, count: number): Promise<string[]> {
  const socket = connect(path);
  sockets.push(socket);
  let text = '';
  return new Promise((resolve) => {
    const end = (): void => resolve(text.split('\n').slice(0, -1));
    socket.on('error', end);
    socket.on('close', end);
    socket.on('data', (chunk) => {
      text += chunk.toString();
      if (text.split('\n').length > count) end();
    });
    socket.write(bytes);
  });
}

const waitUntil = async (condition: () => boolean): Promise<void> => {
  for (let i = 0; i < 500 && !condition(); i++) await new Promise((r) => setTimeout(r, 5));
  expect(condition()).toBe(true);
};

describe('ControlServer commands', () => {
  it('answers status with what the node says', async () => {
    expect(await callControl(path, { command: 'status' })).toEqual({
      ok: true,
      result: { state: 'protected' },
    });
  });

  it('carries each command to the node', async () => {
    const calls: [object, string][] = [
      [{ command: 'flows', count: 5 }, 'flows 5'],
      [{ command: 'checkpoint', step: 'begin' }, 'begin'],
      [{ command: 'checkpoint', step: 'commit' }, 'commit'],
      [{ command: 'checkpoint', step: 'abort', reason: 'disk full' }, 'abort disk full'],
      [{ command: 'failover' }, 'failover false'],
      [{ command: 'failover', force: true }, 'failover true'],
      [{ command: 'reset', reason: 'maintenance' }, 'reset maintenance'],
    ];
    for (const [request, call] of calls) {
      const answer = await callControl(path, request as { command: string });
      expect(answer.ok).toBe(true);
      expect(handlers.calls.at(-1)).toBe(call);
    }
  });

  it('passes on a refusal of the node', async () => {
    handlers.answer = { ok: false, error: 'The peer link is up' };
    expect(await callControl(path, { command: 'failover' })).toEqual(handlers.answer);
  });

  it('runs the requests of one connection one after the other', async () => {
    let release: () => void = () => undefined;
    handlers.answer = new Promise((resolve) => {
      release = () => resolve(OK);
    });
    const answers = raw('{"command":"reset","reason":"a"}\n{"command":"failover"}\n', 2);
    await waitUntil(() => handlers.calls.length > 0);
    await new Promise((resolve) => setTimeout(resolve, 20));
    expect(handlers.calls).toEqual(['reset a']);
    release();
    expect(await answers).toHaveLength(2);
    expect(handlers.calls).toEqual(['reset a', 'failover false']);
  });

  it('gives kept events first, then those that come', async () => {
    const seen: unknown[] = [];
    const stop = new AbortController();
    const following = followControl(path, 10, (e) => seen.push(e['text']), stop.signal);
    await waitUntil(() => handlers.followers.size === 1);
    handlers.emit('new');
    await waitUntil(() => seen.length === 2);
    expect(seen).toEqual(['old', 'new']);
    stop.abort();
    await following;
    await waitUntil(() => handlers.followers.size === 0);
  });

  it('reports a follower that does not read, and disconnects it', async () => {
    const socket = connect(path);
    sockets.push(socket);
    socket.write('{"command":"events","follow":true}\n'); // and never reads
    socket.pause();
    await waitUntil(() => handlers.followers.size === 1);
    const text = 'x'.repeat(64 * 1024);
    for (let i = 0; i < 200; i++) handlers.emit(text);
    await waitUntil(() => handlers.followers.size === 0);
    expect(server.counters.refused['reader-too-slow']).toBe(1);
  });
});

describe('ControlServer socket', () => {
  it('belongs to its owner alone', () => {
    expect(statSync(path).mode & 0o777).toBe(0o600);
  });

  it('leaves no file behind', async () => {
    await server.close();
    expect(existsSync(path)).toBe(false);
  });

  it('does not take the path of a node that lives', async () => {
    const second = new ControlServer(path, handlers, SILENT_LOG);
    await expect(second.start()).rejects.toMatchObject({ code: 'COLO_ERR_CONTROL_LISTEN' });
    expect(await callControl(path, { command: 'status' })).toMatchObject({ ok: true });
  });

  it('replaces the file of a node that was killed', async () => {
    const stale = join(directory, 'stale.sock');
    await leaveStaleSocket(stale);
    const second = new ControlServer(stale, handlers, SILENT_LOG);
    await second.start();
    expect(await callControl(stale, { command: 'status' })).toMatchObject({ ok: true });
    expect(statSync(stale).mode & 0o777).toBe(0o600);
    await second.close();
  });

  it('does not touch a file that is no socket', async () => {
    const file = join(directory, 'notes.txt');
    writeFileSync(file, 'important');
    const second = new ControlServer(file, handlers, SILENT_LOG);
    await expect(second.start()).rejects.toThrow('is not a socket');
    expect(statSync(file).size).toBe(9);
  });

  it('says what is wrong with a path', async () => {
    const missing = new ControlServer(join(directory, 'no/such.sock'), handlers, SILENT_LOG);
    await expect(missing.start()).rejects.toThrow('create its directory first');
    const long = new ControlServer(`/tmp/${'x'.repeat(120)}`, handlers, SILENT_LOG);
    await expect(long.start()).rejects.toThrow('longer than 107 bytes');
  });

  it('serves a bounded number of connections', async () => {
    const open = (): Promise<Socket> =>
      new Promise((resolve) => {
        const socket = connect(path, () => resolve(socket));
        socket.on('error', () => undefined);
        sockets.push(socket);
      });
    for (let i = 0; i < CONTROL_CONNECTIONS_MAX; i++) await open();
    await expect(callControl(path, { command: 'status' })).rejects.toMatchObject({
      code: 'COLO_ERR_CONTROL_ANSWER',
    });
    expect(server.counters.refused['too-many-connections']).toBe(1);
  });
});

describe('ControlServer hostile input', () => {
  it.each([
    ['not JSON', 'Request is not JSON'],
    ['[]', 'Request is not an object'],
    ['null', 'Request is not an object'],
    ['{}', 'Request has no command'],
    ['{"command":"explode"}', "Unknown command 'explode'"],
    ['{"command":"__proto__"}', "Unknown command '__proto__'"],
    ['{"command":"failover","forse":true}', "Unknown field 'forse'"],
    ['{"command":"failover","force":"yes"}', 'force is true or false'],
    ['{"command":"checkpoint"}', 'step is begin, commit or abort'],
    ['{"command":"checkpoint","step":"begin","reason":"x"}', "Unknown field 'reason'"],
    ['{"command":"flows","count":1e9}', 'count is a whole number 1..10000'],
    ['{"command":"flows","count":-1}', 'count is a whole number 1..10000'],
    [`{"command":"reset","reason":"${'x'.repeat(300)}"}`, 'reason is a text of at most 256'],
  ])('refuses %s', async (line, error) => {
    const [answer] = await raw(`${line}\n`, 1);
    expect(JSON.parse(answer ?? '')).toMatchObject({ ok: false });
    expect(answer).toContain(error);
    expect(handlers.calls).toEqual([]);
    expect(server.counters.refused['bad-request']).toBe(1);
  });

  it('ends a connection whose line does not end, without keeping it', async () => {
    const lines = await raw('x'.repeat(CONTROL_LINE_BYTES_MAX + 1), 9);
    expect(lines).toEqual(['{"ok":false,"error":"Request line is too long"}']);
    expect(server.counters.refused['line-too-long']).toBe(1);
    expect(await callControl(path, { command: 'status' })).toMatchObject({ ok: true });
  });

  it('survives clients that hang up at any moment', async () => {
    handlers.answer = new Promise((resolve) => setTimeout(() => resolve(OK), 20));
    for (let i = 0; i < 20; i++) {
      const socket = connect(path);
      socket.write('{"command":"reset"}\n{"comm');
      await new Promise((resolve) => setTimeout(resolve, i));
      socket.destroy();
    }
    expect(await callControl(path, { command: 'status' })).toMatchObject({ ok: true });
  });

  it('tells a client of an exception and goes on', async () => {
    handlers.status = () => {
      throw new Error('a bug');
    };
    expect(await callControl(path, { command: 'status' })).toEqual({
      ok: false,
      error: 'Internal error: a bug',
    });
  });
});

describe('control client', () => {
  it('says which node is not there', async () => {
    await expect(callControl(join(directory, 'x'), { command: 'status' })).rejects.toMatchObject({
      code: 'COLO_ERR_CONTROL_CONNECT',
      message: expect.stringContaining('is the node running'),
    });
  });

  it('does not wait for ever for a node that hangs', async () => {
    handlers.answer = new Promise(() => undefined);
    await expect(callControl(path, { command: 'reset' }, 30)).rejects.toThrow('none within 30 ms');
  });

  it('refuses an answer that is none', async () => {
    const lie = join(directory, 'lie.sock');
    const liar = createServer((socket) => socket.end('hello\n'));
    await new Promise<void>((resolve) => liar.listen(lie, resolve));
    await expect(callControl(lie, { command: 'status' })).rejects.toThrow('not JSON');
    liar.close();
  });
});

describe('LineSplitter', () => {
  it('gives the same lines however the stream is cut', () => {
    const line = fc.stringMatching(/^[^\n]{0,20}$/u);
    fc.assert(
      fc.property(fc.array(line), fc.infiniteStream(fc.nat(7)), (lines, sizes) => {
        const bytes = new TextEncoder().encode(lines.map((text) => `${text}\n`).join(''));
        const splitter = new LineSplitter();
        const got: string[] = [];
        for (let at = 0; at < bytes.length; ) {
          const size = 1 + (sizes.next().value ?? 0);
          const pieces = splitter.push(bytes.subarray(at, at + size));
          if (pieces !== LINE_TOO_LONG) got.push(...pieces);
          at += size;
        }
        expect(got).toEqual(new TextDecoder().decode(bytes).split('\n').slice(0, -1));
      }),
    );
  });

  it('takes a line of exactly the limit and refuses one byte more', () => {
    expect(new LineSplitter(4).push(new Uint8Array([65, 65, 65, 65, 10]))).toEqual(['AAAA']);
    expect(new LineSplitter(4).push(new Uint8Array([65, 65, 65, 65, 65]))).toBe(LINE_TOO_LONG);
  });
});

describe('parseControlRequest()', () => {
  it('never throws, on any text', () => {
    const command = fc.constantFrom('status', 'flows', 'events', 'checkpoint', 'failover', 'reset');
    const anything = fc.oneof(
      fc.string(),
      fc.json(),
      fc.record({ command, step: fc.anything(), count: fc.anything(), force: fc.anything() }),
    );
    fc.assert(
      fc.property(anything, (value) => {
        const text = typeof value === 'string' ? value : String(JSON.stringify(value));
        expect(['string', 'object']).toContain(typeof parseControlRequest(text));
      }),
    );
  });
});

/** Binds a socket in another process and kills that: the file stays. */
async function leaveStaleSocket(at: string): Promise<void> {
  const { spawn } = await import('node:child_process');
  const script = `require('net').createServer().listen(${JSON.stringify(at)}, () => console.log('up'))`;
  const child = spawn(process.execPath, ['-e', script], { stdio: ['ignore', 'pipe', 'inherit'] });
  await new Promise((resolve) => child.stdout.once('data', resolve));
  child.kill('SIGKILL');
  await new Promise((resolve) => child.once('exit', resolve));
  expect(existsSync(at)).toBe(true);
}
