/**
 * The command line of what stands in the place of QEMU's network objects.
 *
 * @module
 */
import { Command, InvalidArgumentError, Option } from 'commander';
import { ColoError } from '../base/error.ts';
import { LOG_LEVELS } from '../observe/levels.ts';
import { parseEndpoint } from '../vm/endpoint.ts';
import { parsePeerLossSpec, parseVmSpec } from '../vm/spec.ts';
import type { CompareFlags } from './compare.ts';
import type { RewriteFlags } from './rewrite.ts';
import { type PassValue, parseCount, parseMilliseconds, parsePass, parsePath } from './values.ts';

/** Runs an action and passes its exit code on. */
export type RunCommand<F> = (flags: F) => Promise<void>;

/** Packets of 2 KiB: at most 2 GiB of one connection. */
const QUEUE_PACKETS_MAX = 1_048_576;

const COMPARE_HELP = `
PORT is qemu:unix:PATH[,server] or qemu:tcp:HOST:PORT[,server]: the other end of a socket chardev of QEMU's filters.
In QEMU's documented layout, with the colo-compare object and its chardevs compare0-0, compare1, compare_out0 left out:

  colo-proxy compare --primary-in qemu:tcp:127.0.0.1:9001 --secondary-in qemu:tcp:0.0.0.0:9004,server \\
                     --out qemu:tcp:127.0.0.1:9005 --vm qmp:unix:/run/pvm.qmp --control /run/colo-compare.sock

Checkpoints are asked for, and told, through --vm (qmp: of the primary QEMU) or --notify (libxl connects there).
Until the first one, and while nobody is connected to --secondary-in, the primary's frames pass uncompared.`;

export function compareCommand(run: RunCommand<CompareFlags>): Command {
  const command = new Command('compare')
    .description("Takes the place of QEMU's colo-compare object, between its sockets")
    .addOption(required('--primary-in <port>', "the primary guest's frames"))
    .addOption(required('--secondary-in <port>', "the secondary guest's frames, rewritten"))
    .addOption(required('--out <port>', 'where released frames go'))
    .option('--vnet-hdr-support', 'the filters have vnet_hdr_support')
    .addOption(value('--vm <driver>', 'qmp:ADDRESS, exec:COMMAND or none (ctl)', parseVmSpec))
    .addOption(value('--notify <address>', 'HOST:PORT or unix:PATH, for libxl', parseEndpoint))
    .addOption(value('--compare-timeout <ms>', 'wait for the other guest', parseMilliseconds))
    .addOption(value('--expired-scan-cycle <ms>', 'taken, of no effect', parseMilliseconds))
    .addOption(
      value('--max-queue-size <n>', 'packets held of a connection', (text) =>
        parseCount(text, 1, QUEUE_PACKETS_MAX),
      ),
    )
    .addOption(value('--min-run <ms>', 'least time between two checkpoints', parseMilliseconds))
    .addOption(
      new Option('--pass <proto:port>', 'do not compare this port; may be repeated').argParser(
        (given, earlier: readonly PassValue[] | undefined) => [
          ...(earlier ?? []),
          checked(parsePass)(given),
        ],
      ),
    )
    .addOption(
      value('--on-peer-loss <action>', 'release, hold or exec:COMMAND', (text) =>
        parsePeerLossSpec('primary', text),
      ),
    );
  return addCommon(command)
    .addHelpText('after', COMPARE_HELP)
    .action((flags: CompareFlags) => run(flags));
}

const REWRITE_HELP = `
PORT is qemu:unix:PATH[,server] or qemu:tcp:HOST:PORT[,server]. A filter-redirector uses a socket in one direction only, so there are
two on each side: --guest and --net are where frames come from, --to-guest and --to-net where they go.
On the secondary QEMU, in the place of filter-rewriter (behind f1 and f2 of QEMU's documentation, in this order):

  -object filter-redirector,id=r4,netdev=hn0,queue=rx,indev=tonet
  -object filter-redirector,id=r3,netdev=hn0,queue=rx,outdev=guest
  -object filter-redirector,id=r1,netdev=hn0,queue=tx,outdev=net
  -object filter-redirector,id=r2,netdev=hn0,queue=tx,indev=toguest

  colo-proxy rewrite --guest qemu:unix:/run/guest.sock --to-guest qemu:unix:/run/toguest.sock \\
                     --net qemu:unix:/run/net.sock --to-net qemu:unix:/run/tonet.sock --vm qmp:unix:/run/svm.qmp

At a failover QEMU switches these redirectors off: after x-colo-lost-heartbeat, and before the guest's tap joins its bridge, say
qom-set path=/objects/r1 property=status value=on on its monitor, and the same for r2, r3 and r4.`;

export function rewriteCommand(run: RunCommand<RewriteFlags>): Command {
  const command = new Command('rewrite')
    .description("Takes the place of QEMU's filter-rewriter, between redirectors")
    .addOption(required('--guest <port>', "the secondary guest's frames"))
    .addOption(new Option('--to-guest <port>', 'where frames for it go (default: --guest)'))
    .addOption(required('--net <port>', "the clients' frames, as the primary mirrors them"))
    .addOption(new Option('--to-net <port>', 'where rewritten frames go (default: --net)'))
    .option('--vnet-hdr-support', 'the filters have vnet_hdr_support')
    .addOption(value('--vm <driver>', 'qmp:ADDRESS of the secondary QEMU, or none', parseVmSpec));
  return addCommon(command)
    .addHelpText('after', REWRITE_HELP)
    .action((flags: RewriteFlags) => run(flags));
}

function addCommon(command: Command): Command {
  return command
    .addOption(value('--control <path>', 'Unix socket for colo-proxy ctl (mode 0600)', parsePath))
    .addOption(new Option('--log-level <level>', 'how much is logged').choices(LOG_LEVELS))
    .addOption(new Option('--json', 'log as JSON lines also on a terminal'));
}

function required(flags: string, text: string): Option {
  return new Option(flags, text).makeOptionMandatory();
}

function value<T>(flags: string, text: string, parse: (text: string) => T): Option {
  return new Option(flags, text).argParser(checked(parse));
}

/** commander names the flag before the text of an InvalidArgumentError. */
export function checked<T>(parse: (text: string) => T): (text: string) => T {
  return (text) => {
    try {
      return parse(text);
    } catch (error) {
      if (error instanceof ColoError) throw new InvalidArgumentError(error.message);
      throw error;
    }
  };
}
