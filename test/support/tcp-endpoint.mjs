/**
 * A plain TCP client or server process for tests and benches that need a real stack in another network
 * namespace: `ip netns exec NS node tcp-endpoint.mjs ...`. Plain JavaScript, so that Node runs it as it is. Prints one
 * JSON object a line.
 *
 *   serve HOST PORT                   answers each connection's first byte as its mode:
 *                                     e = echo, d = send `length` bytes, u = take `length` bytes and answer their SHA-256
 *   upload HOST PORT BYTES CHUNK      sends, compares the hash
 *   download HOST PORT BYTES          takes, compares the hash
 *   echo HOST PORT COUNT BYTES        round trips one after the other; their times in microseconds
 */
import { createHash } from 'node:crypto';
import net from 'node:net';

const [mode, host, port, first, second] = process.argv.slice(2);
const CHUNK_BYTES = 1 << 18;

/** The same bytes on both sides. */
const pattern = Buffer.alloc(CHUNK_BYTES * 2);
for (let index = 0; index < pattern.length; index++)
  pattern[index] = (index * 31 + (index >> 8)) & 255;

const print = (object) => process.stdout.write(`${JSON.stringify(object)}\n`);

function sendPattern(socket, bytes, chunkBytes, hash, done) {
  let sent = 0;
  const more = () => {
    while (sent < bytes) {
      const at = sent % CHUNK_BYTES;
      const piece = pattern.subarray(at, at + Math.min(chunkBytes, bytes - sent));
      sent += piece.length;
      hash?.update(piece);
      if (!socket.write(piece)) {
        socket.once('drain', more);
        return;
      }
    }
    done();
  };
  more();
}

function serveConnection(socket) {
  socket.setNoDelay(true);
  socket.on('error', () => {});
  let hash;
  let left = 0;
  socket.once('data', (head) => {
    const kind = String.fromCharCode(head[0]);
    left = head.readUInt32BE(1);
    if (kind === 'd') sendPattern(socket, left, CHUNK_BYTES, undefined, () => socket.end());
    if (kind === 'u') hash = createHash('sha256');
    const onData = (data) => {
      if (kind === 'e') socket.write(data);
      if (kind !== 'u') return;
      hash.update(data);
      left -= data.length;
      if (left === 0) socket.end(hash.digest('hex'));
    };
    socket.on('data', onData);
    if (head.length > 5) onData(head.subarray(5));
  });
}

function connect(kind, bytes) {
  const socket = net.connect(Number(port), host);
  socket.setNoDelay(true);
  socket.on('error', (error) => {
    print({ ok: false, error: error.message });
    process.exit(1);
  });
  const head = Buffer.from([kind.charCodeAt(0), 0, 0, 0, 0]);
  head.writeUInt32BE(bytes, 1);
  return new Promise((resolve) => {
    socket.once('connect', () => {
      socket.write(head);
      resolve(socket);
    });
  });
}

function report(startMs, bytes, ok) {
  const seconds = (performance.now() - startMs) / 1_000;
  print({ ok, bytes, seconds, gbitPerSecond: (bytes * 8) / seconds / 1e9 });
  process.exit(ok ? 0 : 1);
}

async function upload(bytes, chunkBytes) {
  const socket = await connect('u', bytes);
  const hash = createHash('sha256');
  const start = performance.now();
  let answer = '';
  socket.on('data', (data) => {
    answer += data;
  });
  sendPattern(socket, bytes, chunkBytes, hash, () => {
    const expected = hash.digest('hex');
    socket.on('end', () => report(start, bytes, answer === expected));
  });
}

async function download(bytes) {
  const socket = await connect('d', bytes);
  const start = performance.now();
  const hash = createHash('sha256');
  const expected = createHash('sha256');
  sendPattern(
    { write: (piece) => expected.update(piece) },
    bytes,
    CHUNK_BYTES,
    undefined,
    () => {},
  );
  let taken = 0;
  socket.on('data', (data) => {
    hash.update(data);
    taken += data.length;
  });
  socket.on('end', () =>
    report(start, bytes, taken === bytes && hash.digest('hex') === expected.digest('hex')),
  );
}

async function echo(count, bytes) {
  const socket = await connect('e', 0);
  const message = pattern.subarray(0, bytes);
  const times = [];
  let taken = 0;
  let start = 0;
  const next = () => {
    start = performance.now();
    taken = 0;
    socket.write(message);
  };
  socket.on('data', (data) => {
    taken += data.length;
    if (taken < bytes) return;
    times.push((performance.now() - start) * 1_000);
    if (times.length < count) {
      next();
      return;
    }
    times.sort((a, b) => a - b);
    const at = (share) => Math.round(times[Math.floor(times.length * share)]);
    print({ ok: true, p50Us: at(0.5), p90Us: at(0.9), p99Us: at(0.99) });
    process.exit(0);
  });
  next();
}

if (mode === 'serve') {
  net
    .createServer({ allowHalfOpen: true }, serveConnection)
    .listen(Number(port), host, () => print({ ready: true }));
} else if (mode === 'upload') {
  await upload(Number(first), Number(second ?? CHUNK_BYTES));
} else if (mode === 'download') {
  await download(Number(first));
} else if (mode === 'echo') {
  await echo(Number(first), Number(second ?? 1));
}
