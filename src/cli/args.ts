/**
 * The command line: commands, flags, help. What a command does is in modules of its own, loaded when it runs,
 * so that `colo-proxy --help` and `ctl` start quickly.
 *
 * @module
 */
import { readFileSync } from 'node:fs';
import { Argument, Command, Option } from 'commander';
import type { Role } from '../env/messages.ts';
import { CONTROL_FLOWS_MAX, EVENTS_KEPT_MAX } from '../limits.ts';
import { LOG_LEVELS } from '../observe/levels.ts';
import type { SimOptions } from '../sim/main.ts';
import { parseEndpoint } from '../vm/endpoint.ts';
import { parseNfnetlinkSpec, parsePeerLossSpec, parseVmSpec } from '../vm/spec.ts';
import { attachCommand, detachCommand } from './args-attach.ts';
import { isNfnetlinkCtl, nfnetlinkCtlCommand } from './args-nfnetlink.ts';
import { checked as argument, compareCommand, rewriteCommand } from './args-sockets.ts';
import type { AttachFlags, DetachFlags } from './attach.ts';
import type { CompareFlags } from './compare.ts';
import type { CtlCommand, CtlOptions } from './ctl.ts';
import type { LabOptions } from './experiments.ts';
import type { NfnetlinkCtlOptions, NfnetlinkVerb } from './nfnetlink-verbs.ts';
import type { RewriteFlags } from './rewrite.ts';
import type { GivenSettings } from './settings.ts';
import {
  type PassValue,
  parseCount,
  parseMilliseconds,
  parsePass,
  parsePath,
  parsePeerAddress,
  parsePeerTimeout,
} from './values.ts';

/** What the command line can start. Each returns the exit code. */
export interface Actions {
  node(role: Role, flags: GivenSettings, configPath: string | undefined): Promise<number>;
  compare(flags: CompareFlags): Promise<number>;
  rewrite(flags: RewriteFlags): Promise<number>;
  attach(role: Role, flags: AttachFlags): Promise<number>;
  detach(flags: DetachFlags): Promise<number>;
  ctl(command: CtlCommand, options: CtlOptions): Promise<number>;
  nfnetlink(verbs: readonly NfnetlinkVerb[], options: NfnetlinkCtlOptions): Promise<number>;
  lab(options: LabOptions): Promise<number>;
  sim(options: SimOptions): Promise<number>;
}

/** Standard output and error of the program, and what it ended with. */
export interface ProgramIo {
  out(text: string): void;
  err(text: string): void;
}

/** Version of the package, as in package.json. */
export function readVersion(): string {
  const file = new URL('../../package.json', import.meta.url);
  return (JSON.parse(readFileSync(file, 'utf8')) as { version: string }).version;
}

/**
 * Builds the parser. `onExit` gets the exit code of the action that ran.
 *
 * @param args what will be parsed: `ctl --nfnetlink` has a command line of its own
 */
export function buildProgram(
  args: readonly string[],
  actions: Actions,
  io: ProgramIo,
  onExit: (exitCode: number) => void,
): Command {
  const program = new Command('colo-proxy')
    .description(
      'Compares what two replicas of a virtual machine answer, and fails over between them',
    )
    .version(readVersion(), '-V, --version')
    .helpCommand(false)
    .addHelpText('after', HELP_EXAMPLES);
  program.addCommand(nodeCommand('primary', actions, onExit));
  program.addCommand(nodeCommand('secondary', actions, onExit));
  program.addCommand(compareCommand(async (flags) => onExit(await actions.compare(flags))));
  program.addCommand(rewriteCommand(async (flags) => onExit(await actions.rewrite(flags))));
  program.addCommand(
    attachCommand(async (role, flags) => onExit(await actions.attach(role, flags))),
  );
  program.addCommand(detachCommand(async (flags) => onExit(await actions.detach(flags))));
  program.addCommand(
    isNfnetlinkCtl(args)
      ? nfnetlinkCtlCommand(argument(parseNfnetlinkSpec), async (verbs, options) =>
          onExit(await actions.nfnetlink(verbs, options)),
        )
      : ctlCommand(actions, onExit),
  );
  program.addCommand(labCommand(actions, onExit));
  program.addCommand(simCommand(actions, onExit));
  for (const command of allCommands(program)) {
    command.exitOverride().configureOutput({
      writeOut: (text) => io.out(text),
      writeErr: (text) => io.err(text),
      // One line, also where commander adds a suggestion on a second one.
      outputError: (text, write) => write(`colo-proxy: ${oneLine(text)}\n`),
    });
  }
  return program;
}

const HELP_EXAMPLES = `
Examples:
  colo-proxy lab                               the whole system on this machine, in network namespaces
  colo-proxy primary   --guest packet:tap0 --net packet:cp0 --peer listen:192.0.2.1:9000 \\
                       --peer-key /etc/colo-proxy/peer.key --control /run/colo-proxy/primary.sock
  colo-proxy secondary --guest packet:tap0 --net packet:cp0 --peer connect:192.0.2.1:9000 \\
                       --peer-key /etc/colo-proxy/peer.key --control /run/colo-proxy/secondary.sock
  colo-proxy ctl --control /run/colo-proxy/primary.sock status

Exit codes: 0 done, 1 refused by the node, 64 wrong command line, 70 bug, 71 operating system, 78 configuration.`;

const NODE_HELP = `
PORT is packet:IFNAME (an interface, through a packet socket) or tap:IFNAME (a tap device of our own).
Flags go before the same keys of the configuration file (the flags' names without the dashes).
--vm is none (checkpoints come through ctl), exec:COMMAND, qmp:unix:PATH or qmp:HOST:PORT.
exec:COMMAND finds the request as JSON in COLO_REQUEST and the control socket in COLO_CONTROL.
--on-peer-loss exec:COMMAND finds the evidence as JSON in COLO_PEER_LOSS. Exit code 0: do it (release, take over);
75: not known yet, ask again; others: no.
SIGTERM leaves cleanly: the primary passes frames until the last moment and says goodbye to its peer.

Make a key for the peer link:
  (umask 077; head -c 32 /dev/urandom | base64 -w 0 > peer.key)     and copy it to the other node`;

const CTL_HELP = `
Examples:
  colo-proxy ctl --control /run/colo-proxy/primary.sock status --json
  colo-proxy ctl --control /run/colo-proxy/primary.sock checkpoint begin
  colo-proxy ctl --control /run/colo-proxy/secondary.sock failover
  colo-proxy ctl --nfnetlink 4711 --help                 the VM layer of nfnetlink_colo, by hand`;

function nodeCommand(role: Role, actions: Actions, onExit: (code: number) => void): Command {
  const isPrimary = role === 'primary';
  const command = new Command(role).description(
    isPrimary
      ? 'Runs the node that serves: compares, releases, holds'
      : 'Runs the node that stands by: translates sequence numbers, takes over',
  );
  command
    .addOption(new Option('--guest <port>', "where this node's guest is"))
    .addOption(new Option('--net <port>', 'where the clients are'))
    .addOption(
      option('--peer <address>', 'listen:HOST:PORT or connect:HOST:PORT', parsePeerAddress),
    )
    .addOption(
      new Option('--forward-dev <interface>', 'instead of --peer: raw frames, as in the RFC'),
    )
    .addOption(
      option('--peer-key <file>', 'pre-shared key of both nodes, 32 bytes or more', parsePath),
    )
    .addOption(option('--peer-ca <file>', 'certificate authority of the peer (PEM)', parsePath))
    .addOption(option('--peer-cert <file>', "this node's certificate (PEM)", parsePath))
    .addOption(option('--peer-private-key <file>', 'its private key (PEM)', parsePath))
    .addOption(new Option('--peer-insecure', 'no authentication, no encryption'))
    .addOption(
      option('--peer-timeout <ms>', 'silence after which the peer is lost', parsePeerTimeout),
    );
  if (isPrimary) {
    command
      .addOption(option('--compare-timeout <ms>', 'wait for the other guest', parseMilliseconds))
      .addOption(option('--min-run <ms>', 'least time between two checkpoints', parseMilliseconds))
      .addOption(passOption());
  }
  return command
    .addOption(option('--vm <driver>', 'who makes checkpoints; see below', parseVmSpec))
    .addOption(
      option('--nfnetlink <address>', 'nfnetlink_colo: PORTID or unix:PATH', parseNfnetlinkSpec),
    )
    .addOption(option('--notify <address>', 'HOST:PORT or unix:PATH, for libxl', parseEndpoint))
    .addOption(
      option(
        '--on-peer-loss <action>',
        isPrimary ? 'release, hold or exec:COMMAND' : 'wait, failover or exec:COMMAND',
        (text) => parsePeerLossSpec(role, text),
      ),
    )
    .addOption(option('--control <path>', 'Unix socket for colo-proxy ctl (mode 0600)', parsePath))
    .addOption(option('--config <file>', 'YAML, the same keys as the flags, and limits', parsePath))
    .addOption(new Option('--log-level <level>', 'how much is logged').choices(LOG_LEVELS))
    .addOption(new Option('--json', 'log as JSON lines also on a terminal'))
    .addHelpText('after', NODE_HELP)
    .action(async (options: NodeFlags) => {
      onExit(await actions.node(role, toGiven(options), options.config));
    });
}

/** The options of `primary` and `secondary` under commander's names. */
interface NodeFlags
  extends Omit<GivenSettings, 'limits' | 'peerTimeoutUs' | 'compareTimeoutUs' | 'minRunUs'> {
  readonly config?: string;
  readonly peerTimeout?: number;
  readonly compareTimeout?: number;
  readonly minRun?: number;
}

function toGiven({
  config: _,
  peerTimeout,
  compareTimeout,
  minRun,
  ...same
}: NodeFlags): GivenSettings {
  return {
    ...same,
    ...(peerTimeout !== undefined && { peerTimeoutUs: peerTimeout }),
    ...(compareTimeout !== undefined && { compareTimeoutUs: compareTimeout }),
    ...(minRun !== undefined && { minRunUs: minRun }),
  };
}

function ctlCommand(actions: Actions, onExit: (code: number) => void): Command {
  const ctl = new Command('ctl')
    .description('Asks and commands a running node')
    .addOption(
      option('--control <path>', "the node's control socket", parsePath)
        .env('COLO_CONTROL')
        .makeOptionMandatory(),
    )
    .addOption(new Option('--json', 'the answer as JSON'))
    .helpCommand(false)
    .addHelpText('after', CTL_HELP);
  const add = (name: string, text: string, toCommand: (...given: never[]) => CtlCommand): Command =>
    ctl
      .command(name)
      .description(text)
      .action(async (...given: unknown[]) => {
        onExit(await actions.ctl(toCommand(...(given as never[])), ctl.opts<CtlOptions>()));
      });
  add('status', 'state, counters, ports, peer', () => ({ command: 'status' }));
  add('flows', 'connections and what they wait for', (options: { count: number }) => ({
    command: 'flows',
    count: options.count,
  })).addOption(countOption(1_000, CONTROL_FLOWS_MAX));
  add('events', 'what has happened', (options: { count: number; follow?: true }) => ({
    command: 'events',
    count: options.count,
    follow: options.follow === true,
  }))
    .addOption(countOption(EVENTS_KEPT_MAX, EVENTS_KEPT_MAX))
    .addOption(new Option('-f, --follow', 'go on with what happens next'));
  add(
    'checkpoint',
    'both guests are paused; the secondary runs from the copied state; it failed',
    (step: 'begin' | 'commit' | 'abort', options: { reason?: string }) => ({
      command: 'checkpoint',
      step,
      ...(step === 'abort' && options),
    }),
  )
    .addArgument(new Argument('<step>').choices(['begin', 'commit', 'abort']))
    .addOption(new Option('--reason <text>', 'why it is aborted'));
  add('failover', 'the secondary takes over', (options: { force?: true }) => ({
    command: 'failover',
    force: options.force === true,
  })).addOption(new Option('--force', 'although the peer is alive, or nothing was committed'));
  add('reset', 'back to unprotected; held output is released', (options: { reason?: string }) => ({
    command: 'reset',
    ...options,
  })).addOption(new Option('--reason <text>', 'why'));
  return ctl;
}

function labCommand(actions: Actions, onExit: (code: number) => void): Command {
  return new Command('lab')
    .description('Builds the whole system on this machine and runs its scenarios')
    .option('--scenario <name...>', 'only these')
    .option('--list', 'name the scenarios and end')
    .addOption(
      new Option('--guest <kind>', 'what the guests are: processes in namespaces, or machines')
        .choices(['netns', 'qemu'])
        .default('netns'),
    )
    .addOption(
      new Option(
        '--attach <way>',
        'the primary stands in the way of its guest, or by packet queues',
      )
        .choices(['packet', 'nfqueue'])
        .default('packet'),
    )
    .option('--install', 'with --guest qemu: install the Debian packages that it needs')
    .option('--keep', 'leave everything up for exploring, and say how to enter it')
    .option('--json', 'one JSON object at the end, on standard output')
    .action(async (options: LabOptions) => onExit(await actions.lab(options)));
}

function simCommand(actions: Actions, onExit: (code: number) => void): Command {
  const integer = (text: string): number => parseCount(text, 0, Number.MAX_SAFE_INTEGER);
  return new Command('sim')
    .description('Simulates the whole system with faults, deterministically; needs no rights')
    .addOption(option('--seed <n>', 'of the first run', integer).default(1))
    .addOption(option('--runs <n>', 'runs, with the following seeds', integer).default(1))
    .addOption(option('--steps <n>', 'events with faults in each run', integer))
    .option('--scenario <name>', 'a scripted world, or all of them, instead of drawn ones')
    .option('--list', 'name the scenarios')
    .option('--twice', 'run each seed twice: both must go the same way')
    .option('--marks', 'what the runs reached; exit code 1 when a feature of the world was not')
    .option('--keep-going', 'go on after a failure')
    .option('--no-shrink', 'do not search for a shorter run that fails')
    .option('--capture <file>', 'where the frames of a failing run go (pcapng)')
    .option('--verbose', 'every event in words, on standard error')
    .option('--json', 'one JSON object at the end, on standard output')
    .addHelpText(
      'after',
      '\nExit codes: 0, 1 --marks: something was not reached, 127 crash, 128 no progress, 129 a guarantee was broken.',
    )
    .action(async ({ shrink, ...options }: SimOptions & { readonly shrink: boolean }) =>
      onExit(await actions.sim({ ...options, isShrinking: shrink })),
    );
}

function countOption(count: number, max: number): Option {
  return option('-n, --count <n>', 'at most so many', (text) => parseCount(text, 1, max)).default(
    count,
  );
}

function passOption(): Option {
  const text = 'do not compare this port (tcp:3389); may be repeated';
  return new Option('--pass <proto:port>', text).argParser(
    (given, earlier: readonly PassValue[] | undefined) => [
      ...(earlier ?? []),
      argument(parsePass)(given),
    ],
  );
}

function option<T>(flags: string, text: string, parse: (text: string) => T): Option {
  return new Option(flags, text).argParser(argument(parse));
}

function allCommands(command: Command): Command[] {
  return [command, ...command.commands.flatMap(allCommands)];
}

function oneLine(text: string): string {
  return text
    .replace(/^error: /, '')
    .trim()
    .replace(/\s*\n\s*/g, ' ');
}
