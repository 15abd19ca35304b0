/**
 * The command line of `attach` and `detach`.
 *
 * @module
 */
import { Argument, Command, Option } from 'commander';
import { QUEUE_MAX } from '../attach/plan-queue.ts';
import type { Role } from '../env/messages.ts';
import { checked } from './args-sockets.ts';
import type { AttachFlags, DetachFlags } from './attach.ts';
import { parseCount, parsePath } from './values.ts';

const ATTACH_HELP = `
--mode nfqueue (only on the primary, and the default there): the tap stays in its bridge. Rules in the mangle tables of iptables and
ip6tables hand its packets to the daemon: what the guest sends through queue N, what is sent to it through queue N+1. While no
daemon runs they pass (--queue-bypass), or, with --no-bypass, they are dropped.
--mode packet (the default on the secondary): the tap leaves its bridge, an end of a veth pair takes its place, and the daemon
stands between the two. While no daemon runs nothing passes.

A second attach changes nothing; colo-proxy detach takes everything back.

  colo-proxy attach primary   --tap tap0 --bridge br0 --queue 64 --dry-run
  colo-proxy attach secondary --tap tap0 --bridge br0`;

/** `colo-proxy attach`. */
export function attachCommand(run: (role: Role, flags: AttachFlags) => Promise<void>): Command {
  const command = new Command('attach')
    .description("Puts the proxy in a guest's way: links, rules, switches of the bridge")
    .addArgument(new Argument('<role>', 'of this node').choices(['primary', 'secondary']))
    .addOption(new Option('--tap <interface>', "the guest's").makeOptionMandatory())
    .addOption(new Option('--bridge <bridge>', 'that it is in').makeOptionMandatory())
    .addOption(
      new Option('--mode <mode>', 'how its packets reach the daemon').choices([
        'nfqueue',
        'packet',
      ]),
    )
    .addOption(
      new Option('--veth <name>', 'packet: of the pair NAME, NAME-b (default: cp-TAP)').argParser(
        checked(parsePath),
      ),
    )
    .addOption(
      new Option(
        '--forward-dev <interface>',
        'the raw forward device, left to the daemon',
      ).argParser(checked(parsePath)),
    )
    .addOption(
      new Option('--queue <n>', 'first of two queues (default: a free pair)').argParser(
        checked((text) => parseCount(text, 0, QUEUE_MAX)),
      ),
    )
    .option('--no-bypass', 'drop while no daemon runs, rather than pass')
    .option('--listening', 'the daemon was started first, and listens on the queues');
  return addCommon(command)
    .addHelpText('after', ATTACH_HELP)
    .action((role: Role, flags: AttachFlags) => run(role, flags));
}

/** `colo-proxy detach`. */
export function detachCommand(run: (flags: DetachFlags) => Promise<void>): Command {
  const command = new Command('detach')
    .description('Takes back whatever attach has done')
    .addOption(new Option('--tap <interface>', "the guest's").makeOptionMandatory());
  return addCommon(command).action((flags: DetachFlags) => run(flags));
}

function addCommon(command: Command): Command {
  return command
    .addOption(
      new Option('--iptables <program>', "default: the one with rules, or the host's").argParser(
        checked(parsePath),
      ),
    )
    .option('--dry-run', 'print the commands, and change nothing')
    .option('-v, --verbose', 'print each command as it is run, on standard error')
    .option('--json', 'one JSON object at the end, on standard output');
}
