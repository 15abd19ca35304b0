/**
 * Opens many connections to an echo service, holds them all at once, and checks on request that each still echoes.
 *
 *     node hold-connections.mjs HOST PORT COUNT
 *
 * Prints `{"open":N,"failures":{CODE:N}}` when all are open or have failed, and for each line on standard input
 * `{"echoed":N}`: how many of the open ones have sent back what was sent.
 */
import { connect } from 'node:net';
import { createInterface } from 'node:readline';

const [host, port, count] = process.argv.slice(2);
const total = Number(count);
const CONCURRENCY = 250;
const ECHO_MS_MAX = 20_000;

/** @type {import('node:net').Socket[]} */
const sockets = [];
let failed = 0;
/** How many failed, by error code. @type {Record<string, number>} */
const failures = {};
let started = 0;

/** @param {() => void} done */
function open(done) {
  const socket = connect({ host, port: Number(port), noDelay: true });
  let settled = false;
  /** @param {boolean} isOpen */
  const settle = (isOpen) => {
    if (settled) return;
    settled = true;
    if (isOpen) sockets.push(socket);
    else failed++;
    done();
  };
  socket.once('connect', () => settle(true));
  socket.on('error', (error) => {
    const { code = 'unknown' } = /** @type {NodeJS.ErrnoException} */ (error);
    if (!settled) failures[code] = (failures[code] ?? 0) + 1;
    settle(false);
  });
  socket.on('close', () => settle(false));
}

/** @param {import('node:net').Socket} socket @param {string} text */
function echo(socket, text) {
  return new Promise((resolve) => {
    let back = '';
    const done = () => {
      clearTimeout(timer);
      socket.off('data', onData);
      resolve(back === text);
    };
    /** @param {Buffer} bytes */
    const onData = (bytes) => {
      back += bytes.toString('latin1');
      if (back.length >= text.length) done();
    };
    const timer = setTimeout(done, ECHO_MS_MAX);
    socket.on('data', onData).write(text, 'latin1');
  });
}

await new Promise((resolve) => {
  const next = () => {
    if (sockets.length + failed === total) resolve(undefined);
    else if (started < total) {
      started++;
      open(next);
    }
  };
  for (let i = 0; i < Math.min(CONCURRENCY, total); i++) next();
});
console.log(JSON.stringify({ open: sockets.length, failures }));

let round = 0;
for await (const _ of createInterface({ input: process.stdin })) {
  round++;
  let echoed = 0;
  for (let from = 0; from < sockets.length; from += CONCURRENCY) {
    const part = sockets.slice(from, from + CONCURRENCY);
    const results = await Promise.all(
      part.map((socket, i) => echo(socket, `connection ${from + i} round ${round}`)),
    );
    echoed += results.filter((isRight) => isRight).length;
  }
  console.log(JSON.stringify({ echoed }));
}
process.exit(0);
