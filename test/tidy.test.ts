import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { findFaults, findFileLinks, LAYERS, layerOf } from './support/tidy.ts';

const ROOT = join(import.meta.dirname, '..');

/** Paths of all files below `directory` that end in `ending`, from the repository's root. */
function list(directory: string, ending: string): string[] {
  return readdirSync(join(ROOT, directory), { recursive: true, encoding: 'utf8' })
    .filter((name) => name.endsWith(ending) && !name.includes('node_modules'))
    .map((name) => join(directory, name))
    .sort();
}

const read = (path: string): string => readFileSync(join(ROOT, path), 'utf8');

describe('the repository', () => {
  it('follows its own rules in every source file', () => {
    const paths = list('src', '.ts');
    expect(paths.length).toBeGreaterThan(50);
    expect(paths.flatMap((path) => findFaults({ path, text: read(path) }))).toEqual([]);
  });

  it('has no layer that nobody has ruled about', () => {
    const layers = new Set(list('src', '.ts').map(layerOf));
    expect([...layers].filter((layer) => LAYERS[layer] === undefined)).toEqual([]);
  });

  it('has no Markdown link to a file that is not there', () => {
    const pages = [...list('docs', '.md'), ...readdirSync(ROOT).filter((n) => n.endsWith('.md'))];
    const broken = pages.flatMap((page) =>
      findFileLinks(read(page))
        .filter((link) => !existsSync(join(ROOT, dirname(page), link)))
        .map((link) => `${page}: ${link}`),
    );
    expect(broken).toEqual([]);
  });
});

describe('the rules', () => {
  const head = '/**\n * For this test.\n *\n * @module\n */\n';
  const faultsOf = (path: string, text: string): string[] =>
    findFaults({ path, text: head + text });

  it('a file that breaks none has no faults', () => {
    const text = `import { seqBefore } from '../wire/seq.ts';\nexport const f = seqBefore;\n`;
    expect(faultsOf('src/compare/x.ts', text)).toEqual([]);
  });

  it.each([
    ['src/wire/x.ts', `import { a } from '../flow/table.ts';`],
    ['src/wire/x.ts', `import type { a } from '../flow/table.ts';`],
    ['src/wire/x.ts', `import { readFileSync } from 'node:fs';`],
    ['src/wire/x.ts', `export * from '../proxy/primary.ts';`],
    ['src/flow/x.ts', `import { a } from '../compare/stream.ts';`],
    ['src/rewrite/x.ts', `import { a } from '../flow/table.ts';`],
    ['src/compare/x.ts', `import '../proxy/primary.ts';`],
    ['src/proxy/x.ts', `import { a } from '../os/clock.ts';`],
    ['src/proxy/x.ts', `const a = import('../port/open.ts');`],
    ['src/port/x.ts', `import koffi from 'koffi';`],
    ['src/port/x.ts', `import { a } from '../proxy/primary.ts';`],
    ['src/link/x.ts', `import { a } from '../compare/stream.ts';`],
    ['src/vm/x.ts', `import { a } from '../flow/table.ts';`],
    ['src/observe/x.ts', `import { a } from '../os/clock.ts';`],
    ['src/control/x.ts', `import { a } from '../observe/log.ts';`],
    ['src/sim/x.ts', `import { a } from '../port/memory.ts';`],
    ['src/sim/x.ts', `import { randomBytes } from 'node:crypto';`],
    ['src/sim/x.ts', `import { a } from '../link/connect.ts';`],
    ['src/link/state.ts', `import { a } from '../os/../proxy/primary.ts';`],
    ['src/env/x.ts', `import { a } from '../proxy/primary.ts';`],
    ['src/limits.ts', `import { a } from './wire/seq.ts';`],
    ['src/newlayer/x.ts', `export const a = 1;`],
  ])('%s: a crossing of layers is found: %s', (path, text) => {
    expect(faultsOf(path, text)).toHaveLength(1);
  });

  it.each([
    `const a = Buffer.alloc(1);`,
    `const a = Date.now();`,
    `const a = new Date();`,
    `const a = performance.now();`,
    `const a = Math.random();`,
    `const a = process.pid;`,
    `console.log(1);`,
    `setTimeout(() => 1, 1);`,
    `const a = { now: Date };`,
    `async function f(): void {}`,
    `function f(): Promise<void> { return x; }`,
  ])('what a pure layer must not touch is found: %s', (text) => {
    const pure = ['src/wire/x.ts', 'src/proxy/x.ts', 'src/sim/x.ts', 'src/link/send-queue.ts'];
    for (const path of pure) {
      expect(faultsOf(path, text).length).toBeGreaterThan(0);
    }
    expect(faultsOf('src/cli/x.ts', text)).toEqual([]);
    expect(faultsOf('src/wire/x.test.ts', text)).toEqual([]);
  });

  it('members that are called like globals are not taken for them', () => {
    const text = `const a = { process: 1, Date: 2 };\nexport const b = a.process + a.Date;\n`;
    expect(faultsOf('src/wire/x.ts', text)).toEqual([]);
  });

  it.each([
    `if (seq < end) f();`,
    `const a = info.ack >= limit;`,
    `const a = x > flow.guestAck;`,
    `const a = this.#primarySeq <= 5;`,
    `const a = Math.max(seq, 1);`,
    `const a = Math.min(x, flow.clientAck);`,
  ])('plain order of sequence numbers is found: %s', (text) => {
    expect(faultsOf('src/proxy/x.ts', text)).toHaveLength(1);
    expect(faultsOf('src/wire/seq.ts', text)).toEqual([]);
  });

  it('equality of sequence numbers, and other names, are fine', () => {
    const text = `const a = seq === ack || sackCount < 3 || ackCount > 2 || Math.max(acks, 1) > x;`;
    expect(faultsOf('src/proxy/x.ts', text)).toEqual([]);
  });

  it.each(['TODO', 'FIXME'])('%s is found', (word) => {
    expect(faultsOf('src/wire/x.ts', `// ${word}: later\n`)).toHaveLength(1);
  });

  it('long files, odd names and missing headers are found', () => {
    expect(faultsOf('src/wire/x.ts', '\n'.repeat(600))).toHaveLength(1);
    expect(faultsOf('src/wire/x.ts', '\n'.repeat(590))).toEqual([]);
    expect(faultsOf('src/wire/tcpOptions.ts', '')).toHaveLength(1);
    expect(findFaults({ path: 'src/wire/x.ts', text: 'export const a = 1;\n' })).toHaveLength(1);
  });

  it('findFileLinks() leaves out addresses and anchors', () => {
    const text = '[a](docs/A.md) [b](https://x.example) [c](#here) [d](B.md#there)';
    expect(findFileLinks(text)).toEqual(['docs/A.md', 'B.md']);
  });
});
