import { describe, expect, test } from 'vitest';
import type { RunOptions } from './options.ts';
import { runOnce } from './run.ts';
import { PROTECTED_MS, type Scenario } from './scenarios/scenario.ts';

const PLAYED_MS = PROTECTED_MS + 1_000;

/** Plays a script in which all must go well. */
function play(script: Scenario['script'], vm: Partial<RunOptions['vm']> = {}): void {
  for (const seed of [1, 2, 3]) {
    const options = (calm: RunOptions): RunOptions => ({ ...calm, vm: { ...calm.vm, ...vm } });
    const scenario = { name: 'test', about: '', options, script, untilMs: PLAYED_MS };
    const { outcome, text } = runOnce({ seed, steps: 0, scenario });
    expect({ outcome, text }).toEqual({ outcome: 'ok', text: '' });
  }
}

describe('VmLayer, with a request', () => {
  test('gives up at the secondary, too, what it has begun there', () =>
    play(
      (stage) => {
        const { world } = stage;
        stage.at(PROTECTED_MS, () => {
          Object.assign(world.options.vm, { failBeforeLoad: 1 });
          stage.checkpoint();
        });
        stage.at(PROTECTED_MS + 20, () => {
          stage.demand('G9', !world.vm.isBusy, 'the checkpoint is not over');
          const { state } = world.secondary.engine;
          stage.demand('G9', state === 'protected', `the secondary is ${state}`);
        });
      },
      { oneMessage: 1, tellsSecondary: 1 },
    ));

  test('makes no checkpoint while somebody else has begun one', () =>
    play((stage) => {
      const { world } = stage;
      stage.at(PROTECTED_MS, () => {
        world.vm.reserve();
        stage.checkpoint();
      });
      stage.at(PROTECTED_MS + 50, () => {
        stage.demand('G9', world.vm.checkpoints === 1, 'there was a checkpoint');
        world.vm.free();
      });
      stage.at(PROTECTED_MS + 60, () => {
        stage.demand('G6', world.vm.checkpoints === 2, 'the request was forgotten');
      });
    }));
});

test('a reset of the secondary that is on its way when faults stop leaves nobody unprotected', () =>
  play((stage) => {
    const { secondary } = stage.world;
    stage.at(PLAYED_MS - 0.01, () => {
      secondary.command((engine, nowUs) => engine.reset('operator', nowUs));
    });
  }));
