// Lets Node 20 run this repository's TypeScript as it is (Node 22.18 and later can without it):
//   node --import ./tools/ts.mjs bench/link.ts
// Types are stripped file by file with the compiler that is a development dependency anyway.
import { register } from 'node:module';

const hooks = `
  import { readFileSync } from 'node:fs';
  import { fileURLToPath } from 'node:url';
  import ts from ${JSON.stringify(import.meta.resolve('typescript'))};

  export function load(url, context, nextLoad) {
    if (!url.startsWith('file:') || !url.endsWith('.ts')) return nextLoad(url, context);
    const { outputText } = ts.transpileModule(readFileSync(fileURLToPath(url), 'utf8'), {
      fileName: fileURLToPath(url),
      compilerOptions: { target: 'es2023', module: 'esnext', verbatimModuleSyntax: true, inlineSourceMap: true },
    });
    return { format: 'module', source: outputText, shortCircuit: true };
  }
`;

register(`data:text/javascript,${encodeURIComponent(hooks)}`);
