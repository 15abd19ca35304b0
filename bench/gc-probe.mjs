/**
 * Preloaded into nodes by benchmarks (`--import`): appends what the garbage collector did to the file COLO_BENCH_GC, as
 * JSON lines with `pid`, `role`, `heapBytes` and the pauses in milliseconds since the line before. Unset: does nothing.
 */
import { appendFileSync } from 'node:fs';
import { PerformanceObserver } from 'node:perf_hooks';

const INTERVAL_MS = 2_000;
const path = process.env.COLO_BENCH_GC;
const role = process.argv[2];

if (path !== undefined && (role === 'primary' || role === 'secondary')) {
  let pauses = [];
  const observer = new PerformanceObserver((list) => {
    for (const entry of list.getEntries()) pauses.push(entry.duration);
  });
  observer.observe({ entryTypes: ['gc'] });
  setInterval(() => {
    const heapBytes = process.memoryUsage().heapUsed;
    appendFileSync(path, `${JSON.stringify({ pid: process.pid, role, heapBytes, pauses })}\n`);
    pauses = [];
  }, INTERVAL_MS).unref();
}
