/**
 * `colo-proxy ctl --nfnetlink`: plays the VM layer of nfnetlink_colo by hand.
 *
 * The node belongs to the socket that sent INIT and ends with it, so all verbs of one command line use one socket, in
 * their order: `init watch` keeps the node until a signal comes. While it watches, further verbs are
 * taken from standard input, one a line.
 *
 * @module
 */
import { createInterface } from 'node:readline';
import { errnoName } from '../codec/netlink.ts';
import type { ColoVerb } from '../codec/nfnetlink-colo.ts';
import { NfnetlinkClient } from '../vm/nfnetlink-client.ts';
import type { CtlIo } from './ctl.ts';
import { EXIT_OK, EXIT_REFUSED } from './exit.ts';
import {
  NFNETLINK_VERBS,
  type NfnetlinkCtlOptions,
  type NfnetlinkVerb,
} from './nfnetlink-verbs.ts';

/**
 * Says the verbs. Returns the exit code: 0, or 1 at the first that the proxy refused.
 *
 * @param input where further verbs come from during `watch`
 * @throws ColoError when there is no proxy, or no answer
 */
export async function runNfnetlinkCtl(
  verbs: readonly NfnetlinkVerb[],
  options: NfnetlinkCtlOptions,
  io: CtlIo,
  input: NodeJS.ReadableStream,
): Promise<number> {
  const isJson = options.json === true;
  const print = (text: string, json: object) =>
    io.out(isJson ? `${JSON.stringify(json)}\n` : `${text}\n`);
  let onClosed: (error: Error) => void = () => undefined;
  const client = new NfnetlinkClient({
    spec: options.nfnetlink,
    abi: options.abi,
    onNotification: ({ abi, different }) => {
      const text = different ? 'notify: the outputs differ' : 'notify: nothing differs';
      print(text, { notify: { abi, different } });
    },
    onClosed: (error) => onClosed(error),
  });
  const say = async (verb: ColoVerb): Promise<boolean> => {
    const errno = await client.request(verb, options.mode);
    const error = errno === 0 ? 'acknowledged' : errnoName(errno);
    print(`${verb}: ${error}`, { verb, errno, ...(errno !== 0 && { error }) });
    return errno === 0;
  };
  await client.open();
  try {
    for (const verb of verbs) {
      if (verb === 'watch') {
        const closed = new Promise<never>((_, reject) => {
          onClosed = reject;
        });
        await Promise.race([closed, watch(say, io, input)]);
      } else if (!(await say(verb))) return EXIT_REFUSED;
    }
    return EXIT_OK;
  } finally {
    client.close();
  }
}

/** Until SIGINT or SIGTERM; the end of the input changes nothing. */
async function watch(
  say: (verb: ColoVerb) => Promise<boolean>,
  io: CtlIo,
  input: NodeJS.ReadableStream,
): Promise<void> {
  // The end of the input must not end the process: nothing else may keep it alive.
  const keepAlive = setInterval(() => undefined, 60_000);
  const lines = createInterface({ input });
  let stop: () => void = () => undefined;
  try {
    await new Promise<void>((resolve, reject) => {
      stop = resolve;
      process.once('SIGINT', stop);
      process.once('SIGTERM', stop);
      let queue = Promise.resolve();
      lines.on('line', (line) => {
        const verb = NFNETLINK_VERBS.find((known) => known === line.trim());
        if (verb === undefined || verb === 'watch') {
          if (line.trim() !== '') io.err(`colo-proxy: Unknown verb '${line.trim()}'\n`);
          return;
        }
        queue = queue.then(() => say(verb)).then(() => undefined);
        queue.catch(reject);
      });
    });
  } finally {
    clearInterval(keepAlive);
    lines.close();
    process.removeListener('SIGINT', stop);
    process.removeListener('SIGTERM', stop);
  }
}
