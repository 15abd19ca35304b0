/**
 * The flags of `colo-proxy ctl --nfnetlink`, which is a command line of its own: its verbs are those of
 * nfnetlink_colo, several of them on one line.
 *
 * @module
 */
import { Argument, Command, Option } from 'commander';
import type { NfnetlinkSpec } from '../vm/spec.ts';
import {
  NFNETLINK_VERBS,
  type NfnetlinkCtlOptions,
  type NfnetlinkVerb,
} from './nfnetlink-verbs.ts';

/** Is this `ctl` one of the nfnetlink kind? Of all arguments after the script. */
export function isNfnetlinkCtl(args: readonly string[]): boolean {
  return args[0] === 'ctl' && args.some((arg) => /^--nfnetlink(=|$)/.test(arg));
}

const HELP = `
Examples:
  colo-proxy ctl --nfnetlink 4711 init watch            owns the node and shows what the proxy notifies
  colo-proxy ctl --nfnetlink unix:/run/colo.sock --mode secondary init watch
  (sleep 5; echo checkpoint) | colo-proxy ctl --nfnetlink 4711 init watch

The node belongs to this command's socket and ends with it: held output is released, the node is unprotected.
Verbs are said in their order, up to the first that is refused (exit code 1); during watch further ones are read
from standard input, one a line.`;

/** @param parseSpec of `--nfnetlink`, throwing commander's errors */
export function nfnetlinkCtlCommand(
  parseSpec: (text: string) => NfnetlinkSpec,
  run: (verbs: readonly NfnetlinkVerb[], options: NfnetlinkCtlOptions) => Promise<void>,
): Command {
  return new Command('ctl')
    .description('Plays the VM layer of nfnetlink_colo')
    .addOption(
      new Option('--nfnetlink <address>', 'PORTID or unix:PATH of a node')
        .argParser(parseSpec)
        .makeOptionMandatory(),
    )
    .addOption(
      new Option('--mode <mode>', 'of the node')
        .choices(['primary', 'secondary', 'unprotected'])
        .default('primary'),
    )
    .addOption(
      new Option('--abi <abi>', 'legacy: the bare messages of January 2015, which libxl speaks')
        .choices(['nfnetlink', 'legacy'])
        .default('nfnetlink'),
    )
    .addOption(new Option('--json', 'answers and notifications as JSON lines'))
    .addArgument(new Argument('<verbs...>').choices(NFNETLINK_VERBS))
    .helpCommand(false)
    .addHelpText('after', HELP)
    .action((verbs: NfnetlinkVerb[], options: NfnetlinkCtlOptions) => run(verbs, options));
}
