import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { stringify } from 'yaml';
import { ColoError } from '../base/error.ts';
import { parseConfig } from './config.ts';
import type { GivenSettings } from './settings.ts';

/** Every key of the file with a value that it takes; see docs/OPERATING.md. */
const GOOD: Readonly<Record<string, unknown>> = {
  guest: 'packet:tap0',
  net: 'tap:cp0',
  peer: 'listen:192.0.2.1:9000',
  'peer-key': '/etc/colo-proxy/peer.key',
  'peer-ca': '/etc/colo-proxy/ca.pem',
  'peer-cert': '/etc/colo-proxy/cert.pem',
  'peer-private-key': '/etc/colo-proxy/private.pem',
  'peer-insecure': true,
  'peer-timeout': 1_000,
  'compare-timeout': 200,
  'min-run': 100,
  pass: ['tcp:3389', 'udp:53'],
  vm: 'exec:/usr/local/bin/checkpoint',
  nfnetlink: '4711',
  notify: 'unix:/run/notify.sock',
  'on-peer-loss': 'exec:/usr/local/bin/decide',
  control: '/run/colo-proxy/primary.sock',
  'log-level': 'info',
  json: false,
};

const GOOD_LIMITS: Readonly<Record<string, unknown>> = {
  'flows-max': 1_000_000,
  'half-open-flows-max': 65_536,
  'flow-held-bytes-max': 33_554_432,
  'held-bytes-max': 536_870_912,
  'kept-client-bytes-max': 67_108_864,
  'retained-bytes-max': 268_435_456,
  'checkpoint-request-timeout': 2_000,
  'checkpoint-request-tries': 5,
  'checkpoint-commit-timeout': 30_000,
};

/** Values that no key takes, in the shapes that YAML has. */
const BAD_VALUES: readonly unknown[] = [
  '',
  null,
  -1,
  0.5,
  1e300,
  Number.NaN,
  [],
  [[]],
  {},
  { a: 1 },
  'nonsense nonsense',
  '\u0000',
];

/** Keys that a file must not smuggle in. */
const EVIL_KEYS = ['__proto__', 'constructor', 'prototype', 'toString', 'hasOwnProperty'];

type Outcome = { readonly settings: GivenSettings } | { readonly text: string };

/** Reads a file; anything but settings or a configuration error is a bug. */
function read(text: string): Outcome {
  try {
    return { settings: parseConfig(text, 'f.yaml') };
  } catch (error) {
    if (!(error instanceof ColoError)) throw error;
    expect(error.code).toBe('COLO_ERR_CONFIG');
    for (const line of error.message.split('\n')) expect(line).toMatch(/^f\.yaml:(\d+: | ?larger)/);
    return { text: error.message };
  }
}

/** Nothing that a file says may reach objects that are not its own. */
function expectClean(settings: GivenSettings): void {
  expect(Object.getPrototypeOf(settings)).toBe(Object.prototype);
  const fresh: Record<string, unknown> = {};
  for (const key of ['guest', 'polluted', 'a', 'isAdmin']) expect(fresh[key]).toBeUndefined();
  for (const key of Object.keys(settings)) expect(EVIL_KEYS).not.toContain(key);
}

const subset = (record: Readonly<Record<string, unknown>>) =>
  fc.subarray(Object.keys(record)).map((keys) => ({
    keys,
    values: Object.fromEntries(keys.map((key) => [key, record[key]])),
  }));

/** A valid file, as an object. */
const goodFile = fc
  .record({ top: subset(GOOD), limits: fc.option(subset(GOOD_LIMITS)) })
  .map(({ top, limits }) => ({
    ...top.values,
    ...(limits === null ? {} : { limits: limits.values }),
  }));

describe('parseConfig()', () => {
  it('knows every key that this test knows, all at once', () => {
    const outcome = read(stringify({ ...GOOD, limits: GOOD_LIMITS }));
    if ('text' in outcome) throw new Error(outcome.text);
    expect(Object.keys(outcome.settings)).toHaveLength(Object.keys(GOOD).length + 1);
    expect(Object.keys(outcome.settings.limits ?? {})).toHaveLength(
      Object.keys(GOOD_LIMITS).length,
    );
  });

  it('takes any part of a valid file, in any order', () => {
    fc.assert(
      fc.property(goodFile, fc.infiniteStream(fc.nat(99)), (file, order) => {
        const pairs = Object.entries(file).map((pair) => [order.next().value ?? 0, pair] as const);
        const shuffled = pairs.sort((a, b) => a[0] - b[0]).map(([, pair]) => pair);
        const outcome = read(stringify(Object.fromEntries(shuffled)));
        if ('text' in outcome) throw new Error(outcome.text);
        expect(Object.keys(outcome.settings)).toHaveLength(shuffled.length);
        expectClean(outcome.settings);
      }),
      { numRuns: 200 },
    );
  });

  it('names the key of a value that it does not take, and no other', () => {
    const places = [
      ...Object.keys(GOOD).map((key) => [key] as const),
      ...Object.keys(GOOD_LIMITS).map((key) => ['limits', key] as const),
    ];
    fc.assert(
      fc.property(
        goodFile,
        fc.constantFrom(...places),
        fc.constantFrom(...BAD_VALUES),
        (file, place, bad) => {
          const broken = structuredClone(file) as Record<string, unknown>;
          if (place.length === 1) broken[place[0]] = bad;
          else broken['limits'] = { ...(broken['limits'] as object | undefined), [place[1]]: bad };
          const outcome = read(stringify(broken));
          if ('settings' in outcome) {
            // An empty list of exemptions and a path of any name are values.
            const [key] = place;
            const isValue =
              (key === 'pass' && Array.isArray(bad)) ||
              ['peer-key', 'peer-ca', 'peer-cert', 'peer-private-key', 'control'].includes(key);
            expect({ place, bad, isValue }).toMatchObject({ isValue: true });
            return;
          }
          for (const line of outcome.text.split('\n')) {
            expect(line).toContain(`: ${place.join('.')}`);
          }
        },
      ),
      { numRuns: 600 },
    );
  });

  it('names a key that it does not know, wherever it is', () => {
    fc.assert(
      fc.property(
        goodFile,
        fc.oneof(fc.constantFrom(...EVIL_KEYS), fc.stringMatching(/^[a-z_][a-z-]{0,12}$/)),
        fc.boolean(),
        fc.constantFrom(1, 'x', { polluted: true }, [1]),
        (file, key, isInLimits, given) => {
          fc.pre(!(key in GOOD) && !(key in GOOD_LIMITS) && key !== 'limits');
          const { limits, ...rest } = file as Record<string, unknown>;
          const extra = `${JSON.stringify(key)}: ${JSON.stringify(given)}`;
          const top = Object.keys(rest).length === 0 ? '' : stringify(rest);
          const under = Object.entries(limits ?? {}).map(([name, one]) => `  ${name}: ${one}\n`);
          const text = isInLimits
            ? `${top}limits:\n${under.join('')}  ${extra}\n`
            : `${top}${extra}\n`;
          const outcome = read(text);
          expect(outcome).toHaveProperty('text');
          if ('text' in outcome) {
            expect(outcome.text).toContain(`: ${isInLimits ? `limits.${key}` : key}: Unknown key`);
          }
          expectClean({});
        },
      ),
      { numRuns: 400 },
    );
  });

  it('gives settings or a clear error for any document', () => {
    const keys = fc.oneof(
      fc.constantFrom(...Object.keys(GOOD), ...Object.keys(GOOD_LIMITS), 'limits', ...EVIL_KEYS),
      fc.string(),
    );
    const document = fc.letrec((tie) => ({
      node: fc.oneof(
        { depthSize: 'small', withCrossShrink: true },
        fc.string(),
        fc.integer(),
        fc.double(),
        fc.boolean(),
        fc.constant(null),
        fc.date({ noInvalidDate: true }),
        fc.constantFrom(...Object.values(GOOD)),
        fc.array(tie('node'), { maxLength: 4 }),
        fc.array(fc.tuple(keys, tie('node')), { maxLength: 6 }).map((pairs) => new Map(pairs)),
      ),
    }));
    fc.assert(
      fc.property(document.node, (node) => {
        const outcome = read(stringify(node));
        if ('settings' in outcome) expectClean(outcome.settings);
      }),
      { numRuns: 1_000 },
    );
  });

  it('gives settings or a clear error for damaged text, and for YAML that is not for it', () => {
    const pieces = [
      '&a [*a]',
      '*missing',
      '<<: *a',
      '!!binary aGk=',
      '!!js/function "x"',
      '!<tag:evil> x',
      '? {a: b}',
      '---',
      '...',
      '%YAML 9.9',
      '\t',
      '- - -',
      '{',
      '"\\u',
      '|2\n x',
      '\uFEFF',
      '\u0000',
      '__proto__:\n  polluted: 1\n',
      'limits: {__proto__: {flows-max: 1}}',
      'guest: packet:tap0\nguest: packet:tap1\n',
    ];
    const whole = stringify({ ...GOOD, limits: GOOD_LIMITS });
    const text = fc
      .array(
        fc.oneof(
          fc.constantFrom(...pieces),
          fc.string(),
          fc.tuple(fc.nat(whole.length), fc.nat(200)).map(([at, n]) => whole.slice(at, at + n)),
        ),
        { maxLength: 8 },
      )
      .chain((parts) => fc.constantFrom('\n', ' ', '').map((by) => parts.join(by)));
    fc.assert(
      fc.property(text, (given) => {
        const outcome = read(given);
        if ('settings' in outcome) expectClean(outcome.settings);
        expectClean({});
      }),
      { numRuns: 2_000 },
    );
  });

  it('takes no tag that would make something else of the file', () => {
    for (const text of ['!!set {guest}', 'limits: !!set {flows-max}', '!!omap [guest: tap:a]']) {
      expect(read(text)).toHaveProperty('text');
    }
  });

  it('refuses documents that expand without bound, and large ones, before it reads them', () => {
    let bomb = 'a: &a [x]\n';
    for (let i = 1; i < 40; i++) bomb += `k${i}: &k${i} [*a, *a]\n`;
    expect(read(bomb)).toHaveProperty('text');
    expect(read(`guest: ${'x'.repeat(1024 * 1024)}`)).toHaveProperty('text');
    expect(read('['.repeat(50_000))).toHaveProperty('text');
    expect(read(`${'{a: '.repeat(20_000)}`)).toHaveProperty('text');
  });
});
