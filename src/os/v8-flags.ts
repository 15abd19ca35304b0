/**
 * Settings of the JavaScript engine that suit a process which handles frames, rather than a short-lived tool.
 *
 * A node sees few calls for many bytes (a GSO frame is 64 KiB), so by V8's defaults its packet path would stay unoptimised for
 * minutes; and every chunk of the peer link's stream is a new ArrayBuffer, of which V8 lets so few come together
 * that it collects the whole heap 13 times a second. Download through a protected pair on two cores, Node 20.20: 1.2
 * Gbit/s by the defaults, 1.8 with the first setting, 2.5 with all (docs/BENCHMARKS.md).
 *
 * @module
 */
import { setFlagsFromString } from 'node:v8';

const FLAGS = [
  // The heap may grow to six times its live size before it is collected whole: about 60 MB here.
  '--heap-growing-percent=500',
  // Types are recorded from a function's first call on.
  '--no-lazy-feedback-allocation',
  // Nothing is interpreted: a first request, and a takeover, meet code that has hardly run.
  '--always-sparkplug',
  // The young generation stays at 1 MiB, of 16 by default: a pause copies what is alive in it. And it is copied by this thread alone, which
  // otherwise waits for others that a busy machine does not run. Pauses under load, median and 90 %: 2.2 and 3.9 ms before, 0.4 and 0.6 after.
  '--semi-space-growth-factor=1',
  '--no-parallel-scavenge',
];

/** A function is optimised after 30,000 bytes of bytecode, not 132 KiB. V8 12 (Node 22) has another compiler in between, and not this flag. */
const FLAG_BEFORE_V8_12 = '--interrupt-budget=30000';

/** To be called before the packet path's modules are loaded: functions keep the settings of their making. */
export function tuneForPacketPath(): void {
  for (const flag of FLAGS) setFlagsFromString(flag);
  if (Number.parseInt(process.versions.v8, 10) < 12) setFlagsFromString(FLAG_BEFORE_V8_12);
}
