/**
 * Strangers at a TCP port: each connects, says something that no peer would say, or nothing at all, and waits until it is
 * shut out.
 *
 *     node strangers.mjs HOST PORT COUNT
 *
 * Prints `{"connected":N}` at the end.
 */
import { randomBytes } from 'node:crypto';
import { connect } from 'node:net';

const [host, port, count] = process.argv.slice(2);
const STAY_MS = 300;
const CONCURRENCY = 50;

/** A TLS record header that promises more than ever comes; an HTTP request; noise; silence. */
const OPENINGS = [
  () => Buffer.concat([Buffer.from([0x16, 0x03, 0x01, 0x40, 0x00, 0x01]), randomBytes(200)]),
  () => Buffer.from('GET / HTTP/1.1\r\nHost: peer\r\n\r\n'),
  () => randomBytes(4_096),
  () => Buffer.alloc(0),
];

let connected = 0;

/** @param {number} index */
function visit(index) {
  return new Promise((resolve) => {
    const socket = connect({ host, port: Number(port) });
    socket.once('connect', () => {
      connected++;
      const bytes = OPENINGS[index % OPENINGS.length]?.() ?? Buffer.alloc(0);
      if (bytes.length > 0) socket.write(bytes);
      setTimeout(() => socket.destroy(), STAY_MS);
    });
    socket.on('error', () => {});
    socket.once('close', resolve);
  });
}

const visits = Number(count);
for (let from = 0; from < visits; from += CONCURRENCY) {
  const part = Array.from({ length: Math.min(CONCURRENCY, visits - from) }, (_, i) =>
    visit(from + i),
  );
  await Promise.all(part);
}
console.log(JSON.stringify({ connected }));
