#!/usr/bin/env node
import { main } from '../dist/cli/main.js';

// A reader that has gone (`colo-proxy ctl flows | head`) is no fault of ours.
process.stdout.on('error', (error) => {
  if (error.code === 'EPIPE') process.exit();
});

process.exitCode = await main(process.argv);
