import { execFileSync } from 'node:child_process';
import { expect, test } from 'vitest';
import {
  type NetlinkSender,
  NetlinkSocket,
  netlinkSocketInodes,
  parseNetlinkInodes,
} from './netlink.ts';

interface Received {
  readonly text: string;
  readonly sender: NetlinkSender;
  readonly cut: boolean;
}

/** A socket that keeps what it receives. */
function open(datagramBytesMax = 256) {
  const socket = new NetlinkSocket(0, datagramBytesMax);
  const received: Received[] = [];
  let wake = () => {};
  socket.start({
    onDatagram: (bytes, sender, cut) => {
      received.push({ text: Buffer.from(bytes).toString('latin1'), sender, cut });
      wake();
    },
    onOverrun: () => {},
    onFailed: (error) => {
      throw error;
    },
  });
  const next = async (count: number) => {
    while (received.length < count) await new Promise<void>((resolve) => (wake = resolve));
    return received;
  };
  return { socket, received, next };
}

const bytes = (text: string) => new Uint8Array(Buffer.from(text, 'latin1'));

test('NetlinkSocket carries datagrams with the sender of the kernel', async () => {
  const a = open();
  const b = open();
  try {
    expect(a.socket.portId).not.toBe(b.socket.portId);
    expect(a.socket.send(b.socket.portId, bytes('one'))).toBeUndefined();
    expect(a.socket.send(b.socket.portId, bytes('two'))).toBeUndefined();
    const [one, two] = await b.next(2);
    const sender = {
      portId: a.socket.portId,
      credentials: { pid: process.pid, uid: process.geteuid?.() },
    };
    expect(one).toEqual({ text: 'one', sender, cut: false });
    expect(two).toEqual({ text: 'two', sender, cut: false });
    expect(b.socket.send(a.socket.portId, bytes('back'))).toBeUndefined();
    expect((await a.next(1))[0]?.text).toBe('back');
  } finally {
    a.socket.close();
    b.socket.close();
  }
});

test('NetlinkSocket cuts what is longer than its buffer, and says so', async () => {
  const a = open();
  const b = open(16);
  try {
    expect(a.socket.send(b.socket.portId, bytes('x'.repeat(200)))).toBeUndefined();
    expect((await b.next(1))[0]).toMatchObject({ text: 'x'.repeat(16), cut: true });
    expect(b.socket.send(a.socket.portId, bytes('x'.repeat(17)))).toBe('EMSGSIZE');
  } finally {
    a.socket.close();
    b.socket.close();
  }
});

test('send() to a port without a socket says ECONNREFUSED, and to a full one EAGAIN', () => {
  const a = open();
  // Nobody receives: the event loop does not run while this test fills its queue.
  const b = new NetlinkSocket(0, 256);
  try {
    let error: string | undefined;
    for (let i = 0; i < 100_000 && error === undefined; i++) {
      error = a.socket.send(b.portId, bytes('x'.repeat(256)));
    }
    expect(error).toBe('EAGAIN');
    b.close();
    expect(a.socket.send(b.portId, bytes('x'))).toBe('ECONNREFUSED');
  } finally {
    a.socket.close();
    b.close();
  }
});

test('netlinkSocketInodes() tells two sockets of one port id apart', () => {
  const inodeOf = (portId: number) => netlinkSocketInodes()?.get(portId);
  const first = new NetlinkSocket(0, 64);
  const portId = first.portId;
  const inode = inodeOf(portId);
  expect(inode).toBeGreaterThan(0);
  first.close();
  expect(inodeOf(portId)).toBeUndefined();
  const second = new NetlinkSocket(portId, 64);
  try {
    expect(second.portId).toBe(portId);
    expect(inodeOf(portId)).toBeGreaterThan(0);
    expect(inodeOf(portId)).not.toBe(inode);
    expect(() => new NetlinkSocket(portId, 64)).toThrow(/EADDRINUSE/);
  } finally {
    second.close();
  }
});

test('parseNetlinkInodes() reads what the kernel prints', () => {
  const text = [
    'sk               Eth Pid        Groups   Rmem     Wmem     Dump  Locks    Drops    Inode',
    '00000000df18091f 0   1234       00000000 0        0        0     2        0        4       ',
    '000000007b02b57f 2   1234       00000000 832      0        0     2        0        9401    ',
    '00000000fbd8f472 2   4294967295 00000000 0        0        0     2        0        9403    ',
    'garbage 2 77',
    '',
  ].join('\n');
  expect(parseNetlinkInodes(text)).toEqual(
    new Map([
      [1234, 9401],
      [0xffff_ffff, 9403],
    ]),
  );
});

test.runIf(process.geteuid?.() === 0)('credentials are those of the sending process', async () => {
  const a = open();
  try {
    // Another process, as nobody: what it claims cannot be more than what it is.
    const script = `
      const c = require('koffi').load(null);
      const socket = c.func('int socket(int, int, int)');
      const sendto = c.func('intptr_t sendto(int, const void *, size_t, int, const void *, uint32_t)');
      process.setgroups([]); process.setgid(65534); process.setuid(65534);
      const to = new Uint8Array(12);
      new Uint16Array(to.buffer, 0, 1)[0] = 16;
      new Uint32Array(to.buffer, 4, 1)[0] = Number(process.argv[1]);
      if (sendto(socket(16, 3, 2), Buffer.from('hello'), 5, 0, to, 12) !== 5) process.exit(1);`;
    execFileSync(process.execPath, ['-e', script, `${a.socket.portId}`]);
    expect((await a.next(1))[0]).toMatchObject({
      text: 'hello',
      sender: { credentials: { uid: 65_534 } },
    });
  } finally {
    a.socket.close();
  }
});
