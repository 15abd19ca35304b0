/**
 * Preloaded into nodes by benchmarks (`--import`): appends what the garbage collector did to the file COLO_BENCH_GC, as
 * JSON lines with `pid`, `role`, `heapBytes` and the pauses since the line before: `ms`, `atMs` (since 1970), `isYoung` (of the young generation
 * alone). Unset: does nothing.
 */
import { appendFileSync } from 'node:fs';
import { constants, PerformanceObserver, performance } from 'node:perf_hooks';

const INTERVAL_MS = 2_000;
const path = process.env.COLO_BENCH_GC;
const role = process.argv[2];

if (path !== undefined && (role === 'primary' || role === 'secondary')) {
  let pauses = [];
  const observer = new PerformanceObserver((list) => {
    for (const { detail, duration, startTime } of list.getEntries()) {
      const isYoung = detail.kind === constants.NODE_PERFORMANCE_GC_MINOR;
      pauses.push({ ms: duration, atMs: performance.timeOrigin + startTime, isYoung });
    }
  });
  observer.observe({ entryTypes: ['gc'] });
  setInterval(() => {
    const heapBytes = process.memoryUsage().heapUsed;
    appendFileSync(path, `${JSON.stringify({ pid: process.pid, role, heapBytes, pauses })}\n`);
    pauses = [];
  }, INTERVAL_MS).unref();
}
