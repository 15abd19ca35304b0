/**
 * Entry point of `colo-proxy`: from the arguments to an exit code.
 *
 * @module
 */
import { CommanderError } from 'commander';
import { ColoError } from '../base/error.ts';
import { type Actions, buildProgram, type ProgramIo } from './args.ts';
import { EXIT_INTERNAL, EXIT_OK, EXIT_USAGE, exitCodeOf } from './exit.ts';

const PROCESS_IO: ProgramIo = {
  out: (text) => void process.stdout.write(text),
  err: (text) => void process.stderr.write(text),
};

/** The commands, each loaded when it is used: `--help` and `ctl` need neither FFI nor the engines. */
const ACTIONS: Actions = {
  node: async (role, flags, configPath) => {
    const { resolveSettings } = await import('./settings.ts');
    const file =
      configPath === undefined
        ? undefined
        : (await import('./config.ts')).readConfigFile(configPath);
    const settings = resolveSettings(role, flags, file);
    const { runDaemon } = await import('./daemon.ts');
    return runDaemon(settings);
  },
  compare: async (flags) => {
    const { runCompare } = await import('./compare.ts');
    return runCompare(flags);
  },
  rewrite: async (flags) => {
    const { runRewrite } = await import('./rewrite.ts');
    return runRewrite(flags);
  },
  attach: async (role, flags) => {
    const { runAttach } = await import('./attach.ts');
    return runAttach(role, flags, PROCESS_IO);
  },
  detach: async (flags) => {
    const { runDetach } = await import('./attach.ts');
    return runDetach(flags, PROCESS_IO);
  },
  ctl: async (command, options) => {
    const { runCtl } = await import('./ctl.ts');
    return runCtl(command, options, PROCESS_IO);
  },
  nfnetlink: async (verbs, options) => {
    const { runNfnetlinkCtl } = await import('./nfnetlink-ctl.ts');
    return runNfnetlinkCtl(verbs, options, PROCESS_IO, process.stdin);
  },
  lab: async (options) => {
    const { runLab } = await import('../lab/main.ts');
    return runLab(options);
  },
  sim: async (options) => {
    const { runSim } = await import('../sim/main.ts');
    return runSim(options, {
      out: (line) => PROCESS_IO.out(`${line}\n`),
      progress: (line) => PROCESS_IO.err(`${line}\n`),
    });
  },
};

/**
 * Runs the program.
 *
 * @param argv as in process.argv, with interpreter and script first
 * @returns the exit code; never throws
 */
export async function main(
  argv: readonly string[],
  actions: Actions = ACTIONS,
  io: ProgramIo = PROCESS_IO,
): Promise<number> {
  let exitCode = EXIT_OK;
  const program = buildProgram(argv.slice(2), actions, io, (code) => {
    exitCode = code;
  });
  try {
    await program.parseAsync(argv);
    return exitCode;
  } catch (error) {
    if (error instanceof CommanderError) return error.exitCode === 0 ? EXIT_OK : EXIT_USAGE;
    const code = exitCodeOf(error);
    io.err(describeError(error, code));
    return code;
  }
}

function describeError(error: unknown, exitCode: number): string {
  if (error instanceof ColoError) {
    const lines = error.message.split('\n').map((line) => `colo-proxy: ${line}\n`);
    return lines.join('');
  }
  const { stack, message } = error instanceof Error ? error : new Error(String(error));
  const text = exitCode === EXIT_INTERNAL ? (stack ?? message) : message;
  return `colo-proxy: internal error, please report it: ${text}\n`;
}
