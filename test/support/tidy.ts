/**
 * The rules of the repository that no compiler knows: which layer may import which, what the pure layers must not
 * touch, how sequence numbers are compared. `test/tidy.test.ts` applies them to every file; docs/STYLE.md explains them.
 *
 * Everything here works on text, so that the tests can show each rule firing on a file that breaks it.
 *
 * @module
 */
import { posix } from 'node:path';
import ts from 'typescript';

export interface SourceText {
  /** From the repository's root: `src/wire/tcp.ts`. */
  readonly path: string;
  readonly text: string;
}

/** Packages that a layer may import; `node:` stands for all of the platform's modules. */
interface LayerRule {
  readonly layers: readonly string[];
  readonly packages: readonly string[];
  /** Synchronous, deterministic, no platform: see `IMPURE_GLOBALS`. */
  readonly isPure: boolean;
}

const CORE = ['base', 'limits', 'env'];
const PLATFORM = ['node:'];

/**
 * Who may import what, besides itself. `env` is interfaces; `limits` is numbers; both reach everywhere.
 * The order is that of the layers: none imports one below it.
 */
export const LAYERS: Readonly<Record<string, LayerRule>> = {
  base: pure([]),
  limits: pure(['base']),
  env: pure(['base']),
  wire: pure(CORE),
  codec: pure(CORE),
  flow: pure([...CORE, 'wire']),
  rewrite: pure([...CORE, 'wire']),
  compare: pure([...CORE, 'wire', 'flow']),
  proxy: pure([...CORE, 'wire', 'flow', 'rewrite', 'compare']),
  os: shell(CORE, [...PLATFORM, 'koffi']),
  // Ports segment frames that are too long for their interface, which takes knowledge of headers.
  port: shell([...CORE, 'codec', 'os', 'wire'], PLATFORM),
  link: shell([...CORE, 'codec', 'os'], PLATFORM),
  vm: shell([...CORE, 'codec', 'os'], PLATFORM),
  attach: shell(CORE, PLATFORM),
  observe: shell([...CORE, 'wire'], [...PLATFORM, 'pino']),
  control: shell(CORE, PLATFORM),
  sim: {
    layers: [...CORE, 'wire', 'codec', 'flow', 'rewrite', 'compare', 'proxy'],
    packages: [],
    isPure: true,
  },
  lab: shell(['*'], PLATFORM),
  cli: shell(['*'], [...PLATFORM, 'commander', 'yaml', 'zod']),
  index: shell(['*'], []),
};

/** The part of the peer link that does no I/O: held to the rules of a pure layer, and run by the simulation. */
const PURE_LINK_FILES = /^src\/link\/(state|counters|send-queue)\.ts$/;

/** Crossings that are meant. */
const EXCEPTIONS: readonly { readonly from: RegExp; readonly to: RegExp }[] = [
  { from: /^src\/sim\//, to: PURE_LINK_FILES },
  // The simulator's entry point prints, and exits.
  { from: /^src\/sim\/main\.ts$/, to: /^node:/ },
];

/** What depends on the platform, the clock, chance, or another turn of the event loop. */
const IMPURE_GLOBALS: ReadonlySet<string> = new Set([
  'Buffer',
  'Date',
  'console',
  'crypto',
  'fetch',
  'performance',
  'process',
  'queueMicrotask',
  'require',
  'setImmediate',
  'setInterval',
  'setTimeout',
]);

/** Longest source file, in lines. */
const FILE_LINES_MAX = 600;

/** Names of sequence numbers, whose order is modulo 2^32: `seq`, `guestAck`, `pvm_seq`, `ACK`. */
const SEQUENCE_NAME = /(^|_)(seq|ack)$|(Seq|Ack)$|^(SEQ|ACK)$/;

/**
 * Where names of sequence numbers may be ordered: in the module that does it for everybody, and in the simulator's
 * own TCP, an independent implementation that counts unwrapped positions from its ISN.
 */
const SEQUENCE_MODULES = /^src\/(wire\/seq\.ts$|sim\/tcp\/)/;

/** All faults of one file, as `path:line: text`. */
export function findFaults(source: SourceText): string[] {
  const file = ts.createSourceFile(source.path, source.text, ts.ScriptTarget.ES2023, true);
  const faults = [...checkImports(source), ...checkWords(source), ...checkShape(source)];
  const isTest = isTestFile(source.path);
  const rule = LAYERS[layerOf(source.path)];
  const isPure =
    (rule?.isPure === true && !isTest && source.path !== 'src/sim/main.ts') ||
    PURE_LINK_FILES.test(source.path);
  const visit = (node: ts.Node): void => {
    const fault =
      checkSequenceOrder(source.path, node) ??
      (isPure ? checkPurity(source.path, node) : undefined);
    if (fault !== undefined) faults.push(`${source.path}:${lineOf(file, node)}: ${fault}`);
    ts.forEachChild(node, visit);
  };
  visit(file);
  return faults;
}

/** `wire` of `src/wire/tcp.ts`, `limits` of `src/limits.ts`. */
export function layerOf(path: string): string {
  return (path.split('/')[1] ?? '').replace(/\.ts$/, '');
}

function isTestFile(path: string): boolean {
  return path.endsWith('.test.ts') || /(^|\/)(testing|test-[a-z-]+)\.ts$/.test(path);
}

function checkImports({ path, text }: SourceText): string[] {
  if (isTestFile(path)) return [];
  const layer = layerOf(path);
  const rule = LAYERS[layer];
  if (rule === undefined) return [`${path}:1: ${layer} is not a layer; see test/support/tidy.ts`];
  return ts.preProcessFile(text, true, true).importedFiles.flatMap(({ fileName, pos }) => {
    const target = fileName.startsWith('.') ? posix.join(posix.dirname(path), fileName) : fileName;
    if (isAllowed(rule, layer, target)) return [];
    if (EXCEPTIONS.some(({ from, to }) => from.test(path) && to.test(target))) return [];
    const line = text.slice(0, pos).split('\n').length;
    return [`${path}:${line}: ${layer} may not import ${fileName}`];
  });
}

function isAllowed(rule: LayerRule, layer: string, target: string): boolean {
  if (!target.startsWith('src/')) {
    return rule.packages.some(
      (name) => target === name || (name === 'node:' && target.startsWith(name)),
    );
  }
  const targetLayer = layerOf(target);
  return targetLayer === layer || rule.layers.includes('*') || rule.layers.includes(targetLayer);
}

/** Marks of unfinished work belong into issues. */
function checkWords({ path, text }: SourceText): string[] {
  return text.split('\n').flatMap((line, index) => {
    const word = /\b(TODO|FIXME|XXX|HACK)\b/.exec(line)?.[1];
    return word === undefined ? [] : [`${path}:${index + 1}: ${word} belongs into an issue`];
  });
}

function checkShape({ path, text }: SourceText): string[] {
  const faults: string[] = [];
  const lines = text.split('\n').length - 1;
  if (lines > FILE_LINES_MAX && !isTestFile(path)) {
    faults.push(`${path}:${FILE_LINES_MAX + 1}: ${lines} lines; at most ${FILE_LINES_MAX}`);
  }
  const name = path.split('/').at(-1) ?? '';
  if (!/^[a-z0-9]+(-[a-z0-9]+)*(\.(test|prop\.test))?\.ts$/.test(name)) {
    faults.push(`${path}:1: File names are kebab-case`);
  }
  if (!isTestFile(path) && !/^\/\*\*[\s\S]*?@module[\s\S]*?\*\//.test(text)) {
    faults.push(`${path}:1: A file opens with a comment that says what it is for, and @module`);
  }
  return faults;
}

function checkSequenceOrder(path: string, node: ts.Node): string | undefined {
  if (SEQUENCE_MODULES.test(path)) return undefined;
  if (ts.isBinaryExpression(node) && isOrder(node.operatorToken.kind)) {
    const name = [node.left, node.right].map(nameOf).find((text) => SEQUENCE_NAME.test(text));
    return name && `${name} is a sequence number: compare it with wire/seq.ts`;
  }
  if (ts.isCallExpression(node) && /^Math\.(max|min)$/.test(node.expression.getText())) {
    const name = node.arguments.map(nameOf).find((text) => SEQUENCE_NAME.test(text));
    return name && `${name} is a sequence number: use seqMax of wire/seq.ts`;
  }
  return undefined;
}

function isOrder(kind: ts.SyntaxKind): boolean {
  return (
    kind === ts.SyntaxKind.LessThanToken ||
    kind === ts.SyntaxKind.LessThanEqualsToken ||
    kind === ts.SyntaxKind.GreaterThanToken ||
    kind === ts.SyntaxKind.GreaterThanEqualsToken
  );
}

/** The last name of `ack`, `flow.ack`, `this.#guestAck`; empty for anything else. */
function nameOf(node: ts.Node): string {
  if (ts.isIdentifier(node)) return node.text;
  return ts.isPropertyAccessExpression(node) ? node.name.text : '';
}

function checkPurity(path: string, node: ts.Node): string | undefined {
  const layer = layerOf(path);
  // `env` describes promises of the shell; a type is not a call.
  if (node.kind === ts.SyntaxKind.AsyncKeyword || ts.isAwaitExpression(node)) {
    return `${layer} is synchronous`;
  }
  if (ts.isPropertyAccessExpression(node) && node.getText() === 'Math.random') {
    return `${layer} is given its randomness`;
  }
  if (!ts.isIdentifier(node)) return undefined;
  const isPromise = node.text === 'Promise' && layer !== 'env';
  if (!IMPURE_GLOBALS.has(node.text) && !isPromise) return undefined;
  return isUseOfGlobal(node) ? `${layer} may not use ${node.text}` : undefined;
}

/** Is this identifier a use of a name in scope, rather than the name of a member or a declaration? */
function isUseOfGlobal(node: ts.Identifier): boolean {
  const { parent } = node;
  if (ts.isPropertyAccessExpression(parent)) return parent.expression === node;
  if (ts.isPropertyAssignment(parent)) return parent.initializer === node;
  const isDeclared =
    (ts.isParameter(parent) ||
      ts.isVariableDeclaration(parent) ||
      ts.isMethodDeclaration(parent) ||
      ts.isPropertySignature(parent) ||
      ts.isMethodSignature(parent) ||
      ts.isPropertyDeclaration(parent) ||
      ts.isGetAccessor(parent) ||
      ts.isFunctionDeclaration(parent)) &&
    parent.name === node;
  return !isDeclared;
}

function lineOf(file: ts.SourceFile, node: ts.Node): number {
  return file.getLineAndCharacterOfPosition(node.getStart()).line + 1;
}

/** Links of a Markdown text that lead to files: `[text](path)`, without anchors and addresses. */
export function findFileLinks(text: string): string[] {
  return [...text.matchAll(/\]\(([^)\s]+)\)/g)]
    .map((match) => (match[1] ?? '').replace(/#.*$/, ''))
    .filter((link) => link !== '' && !/^[a-z]+:/.test(link));
}

function pure(layers: readonly string[]): LayerRule {
  return { layers, packages: [], isPure: true };
}

function shell(layers: readonly string[], packages: readonly string[]): LayerRule {
  return { layers, packages, isPure: false };
}
