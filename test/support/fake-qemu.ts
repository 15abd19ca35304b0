/**
 * A QEMU that is only its monitor: answers QMP on a Unix socket, and plays the checkpoints of a COLO pair as they were
 * measured on QEMU 7.2 (order of events, swallowed requests). Everything can be made to go wrong.
 *
 * @module
 */
import { createServer, type Server, type Socket } from 'node:net';

/** How this QEMU behaves; may be changed at any time. */
export interface FakeQemuBehaviour {
  colo: { mode: string; reason: string };
  isRunning: boolean;
  hasEventsCapability: boolean;
  checkpointDelayMs: number;
  /** Commands that get no answer. */
  mute: Set<string>;
  /** Commands that are answered with GenericError. */
  refuse: Set<string>;
  /** Requests that are answered but start nothing. */
  swallow: number;
  /** From request to STOP, and from STOP to RESUME; no RESUME when negative. */
  stopMs: number;
  resumeMs: number;
  /** Does a checkpoint send MIGRATION_PASS? */
  sendsPass: boolean;
  /** Sends no greeting, as a monitor that serves another client. */
  isSilent: boolean;
}

export class FakeQemu {
  readonly path: string;
  readonly behaviour: FakeQemuBehaviour = {
    colo: { mode: 'none', reason: 'none' },
    isRunning: true,
    hasEventsCapability: true,
    checkpointDelayMs: 60_000,
    mute: new Set(),
    refuse: new Set(),
    swallow: 0,
    stopMs: 1,
    resumeMs: 5,
    sendsPass: true,
    isSilent: false,
  };
  /** Commands received, with the argument of migrate-set-parameters. */
  readonly commands: string[] = [];
  readonly #sockets = new Set<Socket>();
  #server: Server | undefined;
  #pass = 1;

  constructor(path: string) {
    this.path = path;
  }

  start(): Promise<void> {
    const server = createServer((socket) => this.#onConnection(socket));
    this.#server = server;
    return new Promise((resolve) => server.listen(this.path, resolve));
  }

  /** Dies, as by SIGKILL. */
  stop(): Promise<void> {
    for (const socket of this.#sockets) socket.destroy();
    return new Promise((resolve) => {
      if (this.#server === undefined) resolve();
      else this.#server.close(() => resolve());
      this.#server = undefined;
    });
  }

  /** Sends an event to all clients. */
  event(name: string, data?: object, atUs: number = Date.now() * 1_000): void {
    const timestamp = { seconds: Math.floor(atUs / 1e6), microseconds: atUs % 1e6 };
    this.line(JSON.stringify({ timestamp, event: name, ...(data === undefined ? {} : { data }) }));
  }

  /** Sends a line as it is. */
  line(text: string): void {
    for (const socket of this.#sockets) socket.write(`${text}\r\n`);
  }

  /** Sends bytes without a line end. */
  raw(text: string): void {
    for (const socket of this.#sockets) socket.write(text);
  }

  /** COLO begins on the primary: the first state is copied between STOP and RESUME. */
  startColo(mode: 'primary' | 'secondary'): void {
    this.stopGuest();
    this.behaviour.colo = { mode, reason: 'none' };
    this.event('MIGRATION', { status: 'colo' });
    setTimeout(() => this.resumeGuest(), Math.max(this.behaviour.resumeMs, 1));
  }

  stopGuest(): void {
    this.behaviour.isRunning = false;
    this.event('STOP');
  }

  resumeGuest(): void {
    this.behaviour.isRunning = true;
    // Stamped a second too late: a test process that is busy would otherwise see STOP after the RESUME's time.
    this.event('RESUME', undefined, Date.now() * 1_000 + 1_000_000);
  }

  /** STOP, the copying, RESUME. */
  checkpoint(): void {
    this.stopGuest();
    if (this.behaviour.sendsPass) this.event('MIGRATION_PASS', { pass: ++this.#pass });
    if (this.behaviour.resumeMs >= 0) setTimeout(() => this.resumeGuest(), this.behaviour.resumeMs);
  }

  #onConnection(socket: Socket): void {
    this.#sockets.add(socket);
    socket.on('close', () => this.#sockets.delete(socket));
    socket.on('error', () => undefined);
    if (this.behaviour.isSilent) return;
    const version = { qemu: { micro: 22, minor: 2, major: 7 }, package: 'fake' };
    socket.write(`${JSON.stringify({ QMP: { version, capabilities: ['oob'] } })}\r\n`);
    let rest = '';
    socket.on('data', (chunk) => {
      const lines = (rest + chunk.toString('utf8')).split('\n');
      rest = lines.pop() ?? '';
      for (const line of lines) this.#onCommand(socket, JSON.parse(line));
    });
  }

  #onCommand(
    socket: Socket,
    command: { execute: string; id: number; arguments?: Record<string, unknown> },
  ): void {
    const { execute, id } = command;
    const delay = command.arguments?.['x-checkpoint-delay'];
    this.commands.push(delay === undefined ? execute : `${execute} ${delay}`);
    if (this.behaviour.mute.has(execute)) return;
    if (this.behaviour.refuse.has(execute)) {
      const error = { class: 'GenericError', desc: 'refused by the test' };
      socket.write(`${JSON.stringify({ id, error })}\r\n`);
      return;
    }
    // The answer comes first, then what the command does.
    socket.write(`${JSON.stringify({ return: this.#answer(execute), id })}\r\n`);
    if (execute === 'migrate-set-parameters') this.#onCheckpointRequest();
    if (execute === 'x-colo-lost-heartbeat') this.#onLostHeartbeat();
  }

  #answer(execute: string): unknown {
    const { colo, isRunning, hasEventsCapability, checkpointDelayMs } = this.behaviour;
    switch (execute) {
      case 'query-status':
        return { status: isRunning ? 'running' : 'colo', running: isRunning };
      case 'query-colo-status':
        return { mode: colo.mode, 'last-mode': colo.mode, reason: colo.reason };
      case 'query-migrate-parameters':
        return { 'x-checkpoint-delay': checkpointDelayMs };
      case 'query-migrate-capabilities':
        return [{ capability: 'events', state: hasEventsCapability }];
      default:
        return {};
    }
  }

  #onCheckpointRequest(): void {
    const { behaviour } = this;
    if (behaviour.swallow > 0) behaviour.swallow--;
    else if (behaviour.colo.mode === 'primary' && behaviour.isRunning) {
      setTimeout(() => behaviour.isRunning && this.checkpoint(), behaviour.stopMs);
    }
  }

  #onLostHeartbeat(): void {
    const { mode } = this.behaviour.colo;
    if (mode === 'none') return;
    this.behaviour.colo = { mode: 'none', reason: 'request' };
    if (this.behaviour.isRunning) this.stopGuest();
    this.event('COLO_EXIT', { mode, reason: 'request' });
    this.resumeGuest();
  }
}
