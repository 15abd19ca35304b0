/**
 * Where memory of the JavaScript heap is taken, by V8's sampling heap profiler: all that was taken, or what of it is alive after a full collection.
 *
 * Preloaded into `compare` by `bench:sockets --heap-profile` (`--import`): SIGUSR2 begins a profile, the next one ends it and writes the sites to
 * the file COLO_BENCH_HEAP. COLO_BENCH_HEAP_ALIVE=1: only what is alive. Unset: does nothing.
 */
import { writeFileSync } from 'node:fs';
import { Session } from 'node:inspector';
import { basename } from 'node:path';
import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';

/** One of so many bytes is looked at, on average. */
const INTERVAL_BYTES = 2_048;

const session = new Session();
setFlagsFromString('--expose-gc');
const collect = runInNewContext('gc');

/** The session lives in this thread: the answer is there when `post` returns. */
function ask(method, parameters) {
  let answer;
  session.post(method, parameters, (error, result) => {
    if (error !== null) throw new Error(`${method}: ${error.message}`);
    answer = result;
  });
  return answer;
}

/** Begins after a full collection. `isAlive`: what is collected until the end does not count. */
export function beginHeapProfile(isAlive) {
  session.connect();
  collect();
  ask('HeapProfiler.startSampling', {
    samplingInterval: INTERVAL_BYTES,
    includeObjectsCollectedByMajorGC: !isAlive,
    includeObjectsCollectedByMinorGC: !isAlive,
  });
}

/** Ends with a full collection. Returns bytes by site (`function file:line`), the most first. */
export function endHeapProfile() {
  collect();
  const { profile } = ask('HeapProfiler.stopSampling');
  session.disconnect();
  const sites = new Map();
  const visit = ({ callFrame, selfSize, children }) => {
    const { functionName, url, lineNumber } = callFrame;
    const place = url === '' ? '' : ` ${basename(url)}:${lineNumber + 1}`;
    const site = `${functionName || '(anonymous)'}${place}`;
    if (selfSize > 0) sites.set(site, (sites.get(site) ?? 0) + selfSize);
    children.forEach(visit);
  };
  visit(profile.head);
  return [...sites].sort(([, a], [, b]) => b - a);
}

const path = process.env.COLO_BENCH_HEAP;
if (path !== undefined) {
  let hasBegun = false;
  process.on('SIGUSR2', () => {
    if (hasBegun) writeFileSync(path, JSON.stringify(endHeapProfile()));
    else beginHeapProfile(process.env.COLO_BENCH_HEAP_ALIVE === '1');
    hasBegun = true;
  });
}
