/**
 * A checkpoint of a guest is real: its open TCP connections go on in another network namespace, with the same
 * bytes, and their peer notices nothing.
 *
 * Here without any proxy: the guests' cables are replugged at the switch while they stand still.
 *
 * @module
 */
import { deserialize } from 'node:v8';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { ChainDigest, contentSha256 } from '../../src/lab/content.ts';
import { GuestProcess } from '../../src/lab/guest-process.ts';
import { ADDRESSES, buildTopology, closeTopology, type Topology } from '../../src/lab/topology.ts';
import { restoreConnection, type TcpConnectionImage } from '../../src/os/tcp-repair.ts';

const ANSWER_MS = 5_000;
const hasRights = process.getuid?.() === 0;

let topology: Topology;
let pvm: GuestProcess;
let svm: GuestProcess;

/** Moves the running guest to the other namespace. */
async function move(
  from: GuestProcess,
  to: GuestProcess,
  beforeLoad: (image: Uint8Array) => void = () => {},
): Promise<number> {
  await Promise.all([from, to].map((guest) => guest.ask({ type: 'freeze' }, ANSWER_MS)));
  const [fromNode, toNode] = from === pvm ? [topology.pn, topology.sn] : [topology.sn, topology.pn];
  // Nothing more may arrive while the state is read.
  fromNode.ip(['link set tap0 nomaster']);
  const { image, connections } = await from.ask({ type: 'take' }, ANSWER_MS);
  beforeLoad(image!);
  await to.ask({ type: 'load', image: image! }, ANSWER_MS);
  toNode.ip(['link set tap0 master br0']);
  // The bridges forget where the guest was: a copied guest has no reason to announce itself.
  topology.switch.ip([`link set p-${fromNode.name} type bridge_slave fdb_flush`]);
  toNode.ip(['link set eth0 type bridge_slave fdb_flush']);
  await to.ask({ type: 'resume' }, ANSWER_MS);
  return connections;
}

/** A program of the client's. */
interface Client {
  /** Resolves when it has printed a line with this text. */
  said(text: string): Promise<void>;
  /** Lets it go on: it waits with `whenTold(next)`. */
  tell(): void;
  /** Its last line. */
  readonly done: Promise<string>;
}

const PRELUDE = `
  const net = require('node:net'); const { createHash } = require('node:crypto');
  const say = (text) => process.stdout.write(text + '\\n');
  const fail = (error) => { say('failed: ' + error.message); process.exit(); };
  const whenTold = (next) => process.stdin.once('data', () => { process.stdin.destroy(); next(); });`;

/** Starts a script; it has `host` and what PRELUDE declares. */
function client(family: 4 | 6, script: string): Client {
  const source = `${PRELUDE} const host = '${ADDRESSES[family].guest}'; ${script}`;
  const child = topology.client.spawn(process.execPath, ['-e', source]);
  let output = '';
  const listeners = new Set<() => void>();
  for (const stream of [child.stdout, child.stderr]) {
    stream?.on('data', (bytes: Buffer) => {
      output += bytes.toString();
      for (const listener of listeners) listener();
    });
  }
  const ended = new Promise<void>((resolve) => child.once('close', () => resolve()));
  return {
    said: (text) => {
      const line = new Promise<void>((resolve) => {
        const look = (): void => {
          if (output.includes(text)) resolve();
        };
        listeners.add(look);
        look();
      });
      const early = ended.then(() => {
        if (!output.includes(text)) throw new Error(`the client never said ${text}: ${output}`);
      });
      return Promise.race([line, early]);
    },
    tell: () => void child.stdin?.write('go\n'),
    done: ended.then(() => output.trimEnd().split('\n').at(-1) ?? ''),
  };
}

async function connectionsAre(guest: GuestProcess, count: number): Promise<void> {
  for (let tries = 0; tries < 500; tries++) {
    const { connections } = await guest.ask({ type: 'status' }, ANSWER_MS);
    if (connections === count) return;
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
  const { connections } = await guest.ask({ type: 'status' }, ANSWER_MS);
  throw new Error(`${guest.name} has ${connections} connections, not ${count}`);
}

describe.skipIf(!hasRights)('checkpoint of a guest (needs root)', () => {
  beforeEach(async () => {
    topology = buildTopology({ impaired: false, plain: true });
    pvm = new GuestProcess(topology.pvm);
    svm = new GuestProcess(topology.svm);
    await Promise.all([pvm.ready, svm.ready]);
    // The first connection waits for the bridges to forward.
    await client(4, `net.connect(13, host, function () { this.destroy(); });`).done;
    await connectionsAre(pvm, 0);
  });

  afterEach(async () => {
    await Promise.all([pvm.kill(), svm.kill()]);
    closeTopology(topology);
  });

  describe.each([4, 6] as const)('IPv%i', (family) => {
    test('a download and an upload go on, moved there and back', async () => {
      const bytes = 60_000_000;
      const download = client(
        family,
        `const hash = createHash('sha256'); let head = '', got = 0, part = 0;
         const s = net.connect(80, host, () => s.write('GET /bytes/${bytes} HTTP/1.1\\r\\n\\r\\n'));
         s.on('data', (d) => {
           if (!head.includes('\\r\\n\\r\\n')) {
             head += d.toString('latin1'); const end = head.indexOf('\\r\\n\\r\\n');
             if (end < 0) return;
             d = Buffer.from(head.slice(end + 4), 'latin1');
           }
           hash.update(d); got += d.length;
           if (got >= (part + 1) * ${bytes / 4}) say('quarter ' + ++part);
           if (got === ${bytes}) { say(hash.digest('hex')); s.destroy(); }
         }).on('error', fail);`,
      );
      const upload = client(
        family,
        `let text = ''; const block = Buffer.alloc(1e6); let left = ${bytes} / 1e6;
         const s = net.connect(80, host, () => {
           s.write('PUT /upload HTTP/1.1\\r\\nContent-Length: ${bytes}\\r\\nConnection: close\\r\\n\\r\\n');
           (function more() { if (left-- > 0) s.write(block, more); })();
         });
         s.on('data', (d) => text += d).on('end', () => say(text.trimEnd())).on('error', fail);`,
      );
      await download.said('quarter 1');
      await move(pvm, svm);
      await download.said('quarter 2');
      await move(svm, pvm);
      await download.said('quarter 3');
      await move(pvm, svm);
      expect(await download.done).toBe(contentSha256(1, bytes));
      const digest = new ChainDigest();
      digest.update(new Uint8Array(bytes));
      expect(await upload.done).toBe(`${digest.finish()} ${bytes}`);
    });

    test('CLOSE_WAIT: the client has ended its stream, the answer still comes whole', async () => {
      const { done, said } = client(
        family,
        `let got = 0; const s = net.connect({ port: 80, host, allowHalfOpen: true }, () =>
           s.end('GET /slow/1500 HTTP/1.1\\r\\n\\r\\nGET /bytes/3000000 HTTP/1.1\\r\\n\\r\\n', () => say('ended')));
         s.on('data', (d) => got += d.length).on('end', () => say('end ' + (got > 3000000))).on('error', fail);`,
      );
      await said('ended');
      expect(await move(pvm, svm)).toBe(1);
      expect(await done).toBe('end true');
    });

    test('FIN_WAIT2: the guest has ended its stream, the client ends its own later', async () => {
      const { done, said, tell } = client(
        family,
        `const s = net.connect({ port: 80, host, allowHalfOpen: true }, () =>
           s.write('GET /bytes/10 HTTP/1.1\\r\\nConnection: close\\r\\n\\r\\n'));
         s.on('data', () => {}).on('end', () => { say('half'); whenTold(() => s.end()); })
          .on('close', (failed) => say('closed ' + failed)).on('error', fail);`,
      );
      await said('half');
      expect(await move(pvm, svm)).toBe(1);
      tell();
      expect(await done).toBe('closed false');
      // The guest sees the end, too.
      await connectionsAre(svm, 0);
    });

    test('a connection with the same addresses that nobody owns makes way', async () => {
      const { done, said, tell } = client(
        family,
        `const s = net.connect(7, host, () => say('open')).on('error', fail);
         s.on('data', () => { say('answered'); process.exit(); });
         whenTold(() => s.write('x'));`,
      );
      await said('open');
      await connectionsAre(pvm, 1);
      expect(
        await move(pvm, svm, (image) => {
          const { connections } = deserialize(image) as {
            connections: { tcp: TcpConnectionImage }[];
          };
          topology.svm.within(() => restoreConnection(connections[0]!.tcp));
        }),
      ).toBe(1);
      // What was destroyed was established, so its peer is told: os/sock-destroy. A half-open one goes in silence.
      await connectionsAre(svm, 1);
      tell();
      expect(await done).toMatch(/answered|ECONNRESET/);
    });

    test('a thousand idle connections are moved, and all answer', async () => {
      const { done, tell } = client(
        family,
        `let answered = 0; const all = [];
         for (let i = 0; i < 1000; i++) all.push(net.connect(7, host).on('error', fail).on('data', () => {
           if (++answered === 1000) { say('all answered'); process.exit(); }
         }));
         whenTold(() => { for (const s of all) s.write('x'); });`,
      );
      await connectionsAre(pvm, 1_000);
      expect(await move(pvm, svm)).toBe(1_000);
      tell();
      expect(await done).toBe('all answered');
    });
  });
});
