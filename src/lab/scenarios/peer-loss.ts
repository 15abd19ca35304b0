/**
 * The secondary node dies and comes back: honest about it, serving all the time, protected again.
 *
 * @module
 */
import { type Bench, expect } from '../bench.ts';
import { monotonicMs, sleep } from '../clock.ts';
import { PEER_TIMEOUT_MS } from '../daemons.ts';
import { type Facts, type Scenario, tenth } from '../scenario.ts';

/** For a busy machine. */
const SLACK_MS = 1_000;
const BETWEEN_TALKS_MS = 10;
const RESYNC_MS_MAX = 10_000;

/** Talks on one connection until told to stop; keeps the longest exchange. */
class Talker {
  readonly #bench: Bench;
  readonly #done: Promise<void>;
  #stopping = false;
  longestMs = 0;
  count = 0;

  constructor(bench: Bench) {
    this.#bench = bench;
    this.#done = this.#talk();
    this.#done.catch(() => {});
  }

  async #talk(): Promise<void> {
    while (!this.#stopping) {
      const talk = { type: 'session', step: 'talk', name: 'kept', bytes: 2_000 } as const;
      const { ms } = await this.#bench.client(talk);
      this.longestMs = Math.max(this.longestMs, ms);
      this.count++;
      await sleep(BETWEEN_TALKS_MS);
    }
  }

  /** Rejects when the connection has failed meanwhile. */
  async stop(): Promise<void> {
    this.#stopping = true;
    await this.#done;
  }
}

async function run(bench: Bench): Promise<Facts> {
  await bench.client({ type: 'session', step: 'open', name: 'kept', openedBy: 'client' });
  const talker = new Talker(bench);
  await sleep(200);
  const killedMs = await bench.killSecondaryNode();
  await bench.primary.reaches('unprotected', PEER_TIMEOUT_MS + SLACK_MS);
  const unprotectedMs = monotonicMs() - killedMs;
  await sleep(300);

  const synced = bench.vm.records.length;
  const backMs = monotonicMs();
  await bench.reviveSecondaryNode();
  await bench.vm.made(synced + 1, RESYNC_MS_MAX);
  await bench.primary.reaches('protected', RESYNC_MS_MAX);
  const protectedMs = monotonicMs() - backMs;
  const { cause } = bench.vm.records[synced]!.request;
  expect(cause === 'sync', `the new secondary was synchronised because of ${cause}`);
  await sleep(200);
  await talker.stop();
  expect(
    talker.longestMs < PEER_TIMEOUT_MS + SLACK_MS,
    `service stopped for ${tenth(talker.longestMs)} ms`,
  );

  // Protected means: the connection from before it all survives the primary.
  await bench.killPrimaryNode();
  await bench.failover();
  const talk = await bench.client({ type: 'session', step: 'talk', name: 'kept', bytes: 10_000 });
  return {
    unprotectedMs: tenth(unprotectedMs),
    protectedAgainMs: tenth(protectedMs),
    pauseMs: tenth(talker.longestMs),
    failoverTalkMs: tenth(talk.ms),
    exchanges: talker.count,
    checkpoints: bench.vm.records.length,
  };
}

export const peerLoss: Scenario = {
  name: 'peer-loss',
  text: 'the secondary node dies and comes back: service never stops, protected again',
  families: [4, 6],
  run,
};
