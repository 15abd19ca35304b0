/**
 * The configuration file of a node: YAML 1.2, the flags' names as keys, and `limits` besides.
 *
 *     guest: packet:tap0
 *     net: packet:eth0
 *     peer: listen:192.0.2.1:9000
 *     peer-key: /etc/colo-proxy/peer.key
 *     compare-timeout: 200        # milliseconds
 *     pass: [tcp:3389]
 *     limits:
 *       flows-max: 200000
 *
 * Every fault is told with its line and key, all of them at once.
 *
 * @module
 */
import { readFileSync } from 'node:fs';
import {
  type Document,
  isMap,
  isNode,
  isScalar,
  LineCounter,
  type Node,
  parseDocument,
} from 'yaml';
import { z } from 'zod';
import { ColoError } from '../base/error.ts';
import { LOG_LEVELS } from '../observe/levels.ts';
import { parsePortSpec } from '../port/open.ts';
import { parseEndpoint } from '../vm/endpoint.ts';
import { parseAnyPeerLossSpec, parseNfnetlinkSpec, parseVmSpec } from '../vm/spec.ts';
import type { GivenSettings, LimitSettings } from './settings.ts';
import {
  parseCount,
  parseMilliseconds,
  parsePass,
  parsePath,
  parsePeerAddress,
  parsePeerTimeout,
  parseWord,
} from './values.ts';

/** A configuration file is written by hand; a larger one is not a configuration file. */
const CONFIG_BYTES_MAX = 1024 * 1024;

/** 1 TiB: what fits no machine is a mistake. */
const SIZE_BYTES_MAX = 1024 ** 4;

/** Entries of a table: JavaScript's Map and typed arrays end at 2^24 keys. */
const TABLE_COUNT_MAX = 2 ** 24;

/** A text or a number, as YAML makes no difference between `200` and `"200"` for people. */
const scalar = z.union([z.string(), z.number()], { error: 'Expected a text or a number' });

/** A schema from one of the functions of values.ts: their ColoError becomes an issue at this key. */
function value<T>(parse: (text: string) => T): z.ZodType<T> {
  return scalar.transform((given, context) => {
    try {
      return parse(String(given));
    } catch (error) {
      if (!(error instanceof ColoError)) throw error;
      context.addIssue({ code: 'custom', message: error.message });
      return z.NEVER;
    }
  }) as unknown as z.ZodType<T>;
}

function checkPort(text: string): string {
  parsePortSpec(text);
  return text;
}

function checkForwardDevice(name: string): string {
  parsePortSpec(`packet:${name}`);
  return name;
}

const count = (max: number) => value((text) => parseCount(text, 1, max));
const flag = z.boolean({ error: 'Expected true or false' });

const limitsSchema = z.strictObject(
  {
    'flows-max': count(TABLE_COUNT_MAX).optional(),
    'half-open-flows-max': count(TABLE_COUNT_MAX).optional(),
    'flow-held-bytes-max': count(SIZE_BYTES_MAX).optional(),
    'held-bytes-max': count(SIZE_BYTES_MAX).optional(),
    'kept-client-bytes-max': count(SIZE_BYTES_MAX).optional(),
    'retained-bytes-max': count(SIZE_BYTES_MAX).optional(),
    'checkpoint-request-timeout': value(parseMilliseconds).optional(),
    'checkpoint-request-tries': count(1_000).optional(),
    'checkpoint-commit-timeout': value(parseMilliseconds).optional(),
  },
  { error: mapError },
);

const fileSchema = z.strictObject(
  {
    guest: value(checkPort).optional(),
    net: value(checkPort).optional(),
    peer: value(parsePeerAddress).optional(),
    'forward-dev': value(checkForwardDevice).optional(),
    'peer-key': value(parsePath).optional(),
    'peer-ca': value(parsePath).optional(),
    'peer-cert': value(parsePath).optional(),
    'peer-private-key': value(parsePath).optional(),
    'peer-insecure': flag.optional(),
    'peer-timeout': value(parsePeerTimeout).optional(),
    'compare-timeout': value(parseMilliseconds).optional(),
    'min-run': value(parseMilliseconds).optional(),
    pass: z.array(value(parsePass), { error: 'Expected a list such as [tcp:3389]' }).optional(),
    vm: value(parseVmSpec).optional(),
    nfnetlink: value(parseNfnetlinkSpec).optional(),
    notify: value(parseEndpoint).optional(),
    'on-peer-loss': value(parseAnyPeerLossSpec).optional(),
    control: value(parsePath).optional(),
    'log-level': value((text) => parseWord(LOG_LEVELS, text)).optional(),
    json: flag.optional(),
    limits: limitsSchema.optional(),
  },
  { error: mapError },
);

function mapError(issue: { readonly code?: string }): string | undefined {
  return issue.code === 'invalid_type' ? 'Expected keys and values' : undefined;
}

/**
 * Reads a configuration file.
 *
 * @throws ColoError `COLO_ERR_CONFIG_READ` when it cannot be read, `COLO_ERR_CONFIG` with one line of text for each
 * fault: `PATH:LINE: KEY: what is wrong`
 */
export function readConfigFile(path: string): GivenSettings {
  let text: string;
  try {
    text = readFileSync(path, 'utf8');
  } catch (cause) {
    const { code } = cause as NodeJS.ErrnoException;
    throw new ColoError('COLO_ERR_CONFIG_READ', `Cannot read the configuration ${path}: ${code}`, {
      cause,
      path,
    });
  }
  return parseConfig(text, path);
}

/**
 * Reads the text of a configuration file; `path` is for messages.
 *
 * @throws ColoError `COLO_ERR_CONFIG`
 */
export function parseConfig(text: string, path: string): GivenSettings {
  if (Buffer.byteLength(text) > CONFIG_BYTES_MAX) {
    throw new ColoError('COLO_ERR_CONFIG', `${path}: larger than ${CONFIG_BYTES_MAX} bytes`);
  }
  const lines = new LineCounter();
  // Aliases make documents that expand without bound, and nobody needs them here.
  // Tags such as !!set make objects without keys, which would pass for an empty file.
  const document = parseDocument(text, {
    lineCounter: lines,
    prettyErrors: false,
    version: '1.2',
    resolveKnownTags: false,
    logLevel: 'error',
  });
  const faults = [...document.errors, ...document.warnings].map(
    (fault) => `${path}:${lines.linePos(fault.pos[0]).line}: ${fault.message}`,
  );
  if (faults.length > 0) throw configError(faults);
  const content = toPlain(document, path);
  const result = fileSchema.safeParse(content);
  if (result.success) return toSettings(result.data);
  const lineOf = (node: Node | undefined): number =>
    node?.range ? lines.linePos(node.range[0]).line : 1;
  throw configError(
    result.error.issues.flatMap((issue) => describe(issue, path, document, lineOf)),
  );
}

function toPlain(document: Document, path: string): unknown {
  try {
    return document.toJS({ maxAliasCount: 0 }) ?? {};
  } catch (cause) {
    throw new ColoError('COLO_ERR_CONFIG', `${path}:1: Aliases are not supported`, { cause, path });
  }
}

/** `PATH:LINE: KEY: text` of an issue; one for each key that is not known. */
function describe(
  issue: z.core.$ZodIssue,
  path: string,
  document: Document,
  lineOf: (node: Node | undefined) => number,
): string[] {
  const keys = issue.path.map(String);
  if (issue.code === 'unrecognized_keys') {
    return issue.keys.map((key) => {
      const line = lineOf(keyNode(document, [...keys, key]));
      return `${path}:${line}: ${[...keys, key === '' ? '""' : key].join('.')}: Unknown key`;
    });
  }
  const node = document.getIn(issue.path as (string | number)[], true);
  const line = lineOf(isNode(node) ? node : keyNode(document, keys));
  const name = keys.length === 0 ? '' : `${keys.join('.')}: `;
  return [`${path}:${line}: ${name}${issue.message}`];
}

/** The node of a key itself, rather than of its value. */
function keyNode(document: Document, keys: readonly string[]): Node | undefined {
  const parent = keys.length === 1 ? document.contents : document.getIn(keys.slice(0, -1), true);
  if (!isMap(parent)) return undefined;
  const pair = parent.items.find(({ key }) => isScalar(key) && String(key.value) === keys.at(-1));
  return isNode(pair?.key) ? pair.key : undefined;
}

/** A line for each fault. Parts of the file that a message quotes must not break it, nor reach the terminal as they are. */
function configError(faults: readonly string[]): ColoError {
  const lines = faults.map((fault) => fault.replace(/\p{Cc}+/gu, ' '));
  return new ColoError('COLO_ERR_CONFIG', lines.join('\n'));
}

function toSettings(file: z.infer<typeof fileSchema>): GivenSettings {
  const { limits } = file;
  const given = {
    guest: file.guest,
    net: file.net,
    peer: file.peer,
    forwardDev: file['forward-dev'],
    peerKey: file['peer-key'],
    peerCa: file['peer-ca'],
    peerCert: file['peer-cert'],
    peerPrivateKey: file['peer-private-key'],
    peerInsecure: file['peer-insecure'],
    peerTimeoutUs: file['peer-timeout'],
    compareTimeoutUs: file['compare-timeout'],
    minRunUs: file['min-run'],
    pass: file.pass,
    vm: file.vm,
    nfnetlink: file.nfnetlink,
    notify: file.notify,
    onPeerLoss: file['on-peer-loss'],
    control: file.control,
    logLevel: file['log-level'],
    json: file.json,
    limits: limits && toLimits(limits),
  };
  return withoutUndefined(given) as GivenSettings;
}

function toLimits(limits: z.infer<typeof limitsSchema>): LimitSettings {
  return withoutUndefined({
    flowsMax: limits['flows-max'],
    halfOpenFlowsMax: limits['half-open-flows-max'],
    flowHeldBytesMax: limits['flow-held-bytes-max'],
    heldBytesMax: limits['held-bytes-max'],
    keptClientBytesMax: limits['kept-client-bytes-max'],
    retainedBytesMax: limits['retained-bytes-max'],
    checkpointRequestTimeoutUs: limits['checkpoint-request-timeout'],
    checkpointRequestTries: limits['checkpoint-request-tries'],
    checkpointCommitTimeoutUs: limits['checkpoint-commit-timeout'],
  }) as LimitSettings;
}

/** Keys without a value must be absent: a later layer would otherwise overwrite with undefined. */
function withoutUndefined(record: Record<string, unknown>): Record<string, unknown> {
  return Object.fromEntries(Object.entries(record).filter(([, given]) => given !== undefined));
}
