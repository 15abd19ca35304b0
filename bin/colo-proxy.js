#!/usr/bin/env node
import { tuneForPacketPath } from '../dist/os/v8-flags.js';

// A reader that has gone (`colo-proxy ctl flows | head`) is no fault of ours.
process.stdout.on('error', (error) => {
  if (error.code === 'EPIPE') process.exit();
});

// The settings hold for functions made after them, so before the program is loaded.
if (['primary', 'secondary', 'compare', 'rewrite'].includes(process.argv[2])) tuneForPacketPath();
const { main } = await import('../dist/cli/main.js');
process.exitCode = await main(process.argv);
