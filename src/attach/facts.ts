/**
 * Looks at the host for `attach` and `detach`: links as `ip` tells them, tables as `iptables-save` does. Nothing is changed by
 * looking.
 *
 * @module
 */
import { spawnSync } from 'node:child_process';
import { existsSync, readFileSync } from 'node:fs';
import { basename, dirname, join } from 'node:path';
import { ColoError } from '../base/error.ts';
import type {
  Backend,
  BridgeCalls,
  HostFacts,
  IpFamily,
  Link,
  PortSettings,
  StackSettings,
  Tables,
} from './types.ts';

/** A host with many rules saves megabytes. */
const OUTPUT_BYTES_MAX = 256 * 1024 * 1024;

/** linux/capability.h */
const CAP_NET_ADMIN = 12n;

/** Names under which distributions have the programs; the plain one is an alternative of the two others. */
const IPTABLES_NAMES = ['iptables', 'iptables-legacy', 'iptables-nft'];

/**
 * Gathers the facts of the network namespace that this process is in.
 *
 * @param iptablesPath the operator's choice
 * @throws ColoError `COLO_ERR_ATTACH_RIGHTS`, `COLO_ERR_ATTACH_TABLES`, `COLO_ERR_ATTACH_FACTS`
 */
export function gatherFacts(iptablesPath?: string): HostFacts {
  checkRights();
  return {
    links: parseLinks(output('ip', ['-json', '-details', 'link', 'show']), readStack),
    tables: gatherTables(iptablesPath),
    isBackendGiven: iptablesPath !== undefined,
    boundQueues: parseBoundQueues(readText('/proc/net/netfilter/nfnetlink_queue') ?? ''),
    allBridgesCall: readCalls(),
    hasIpv6: existsSync('/proc/net/if_inet6'),
  };
}

/**
 * Reads the output of `ip -json -details link show`.
 *
 * @param readStack what the host's IP stack does on an interface
 */
export function parseLinks(json: string, readStack: (name: string) => StackSettings): Link[] {
  const links = JSON.parse(json === '' ? '[]' : json) as IpLink[];
  return links.flatMap((link): Link[] => {
    const { ifname: name, linkinfo } = link;
    if (name === undefined) return [];
    const data = linkinfo?.info_data;
    return [
      {
        name,
        kind: linkinfo?.info_kind ?? '',
        master: link.master ?? '',
        peer: linkinfo?.info_kind === 'veth' ? (link.link ?? '') : '',
        alias: link.ifalias ?? '',
        mac: link.address ?? '',
        mtu: link.mtu ?? 0,
        isUp: link.flags?.includes('UP') === true,
        callsIptables: { 4: data?.nf_call_iptables === 1, 6: data?.nf_call_ip6tables === 1 },
        isVlanAware: data?.vlan_filtering === 1,
        portSettings:
          linkinfo?.info_slave_kind === 'bridge' ? ownSettings(linkinfo.info_slave_data ?? {}) : {},
        stack: readStack(name),
      },
    ];
  });
}

/** What is used of an element of that output. */
interface IpLink {
  readonly ifname?: string;
  readonly link?: string;
  readonly flags?: readonly string[];
  readonly master?: string;
  readonly ifalias?: string;
  readonly address?: string;
  readonly mtu?: number;
  readonly linkinfo?: {
    readonly info_kind?: string;
    readonly info_data?: {
      readonly nf_call_iptables?: number;
      readonly nf_call_ip6tables?: number;
      readonly vlan_filtering?: number;
    };
    readonly info_slave_kind?: string;
    readonly info_slave_data?: Readonly<Record<string, unknown>>;
  };
}

/**
 * Settings of a bridge's port that belong to the port, with those of a new one (br_if.c, new_nbp, and what iproute2 prints). The
 * path cost is not among them: the kernel takes it from the interface's speed.
 */
const NEW_PORT: Readonly<Record<string, unknown>> = {
  priority: 32,
  hairpin: false,
  guard: false,
  root_block: false,
  fastleave: false,
  learning: true,
  flood: true,
  proxy_arp: false,
  proxy_arp_wifi: false,
  multicast_router: 1,
  mcast_flood: true,
  bcast_flood: true,
  mcast_to_unicast: false,
  neigh_suppress: false,
  group_fwd_mask: '0',
  vlan_tunnel: false,
  isolated: false,
  locked: false,
};

function ownSettings(data: Readonly<Record<string, unknown>>): PortSettings {
  const own = Object.entries(NEW_PORT).flatMap(([key, value]) => {
    const given = data[key];
    if (given === undefined || given === value) return [];
    const word = key === 'multicast_router' ? 'mcast_router' : key;
    return [[word, typeof given === 'boolean' ? (given ? 'on' : 'off') : String(given)]];
  });
  return Object.fromEntries(own) as PortSettings;
}

/** Reads /proc/net/netfilter/nfnetlink_queue: a line for each bound queue, which begins with its number. */
export function parseBoundQueues(text: string): number[] {
  return Array.from(text.matchAll(/^\s*(\d+)/gm), ([, number]) => Number(number));
}

/** The backend that a program of the iptables family reports with `--version`; before 1.8 there was only one. */
export function parseBackend(version: string): Backend {
  return version.includes('(nf_tables)') ? 'nf_tables' : 'legacy';
}

/**
 * Brings the tables into the order of preference: the operator's; those with rules; those of the host's `iptables`.
 *
 * @param tables as found, the operator's or the host's first
 */
export function orderTables(
  tables: readonly Tables[],
  isGiven: boolean,
  hasRules: (tables: Tables) => boolean,
): Tables[] {
  if (isGiven) return [...tables];
  const used = tables.filter(hasRules);
  // With rules in both the host's own choice stays first.
  return used.length === 1
    ? [...used, ...tables.filter((other) => !used.includes(other))]
    : [...tables];
}

function checkRights(): void {
  const status = readText('/proc/self/status') ?? '';
  const mask = BigInt(`0x${/^CapEff:\s*([0-9a-f]+)$/m.exec(status)?.[1] ?? '0'}`);
  if ((mask & (1n << CAP_NET_ADMIN)) !== 0n) return;
  throw new ColoError(
    'COLO_ERR_ATTACH_RIGHTS',
    'Links and rules can be changed with CAP_NET_ADMIN only: run it as root',
  );
}

function gatherTables(iptablesPath: string | undefined): Tables[] {
  if (iptablesPath !== undefined && !basename(iptablesPath).startsWith('iptables')) {
    const text = `--iptables takes a program such as iptables-legacy, beside which ip6tables-legacy is; got '${iptablesPath}'`;
    throw new ColoError('COLO_ERR_USAGE', text);
  }
  const names = [...(iptablesPath === undefined ? [] : [iptablesPath]), ...IPTABLES_NAMES];
  const found: Tables[] = [];
  for (const name of names) {
    const version = tryOutput(name, ['--version']);
    if (version === undefined) {
      if (name !== iptablesPath) continue;
      throw new ColoError('COLO_ERR_ATTACH_TABLES', `Cannot run ${name} --version`);
    }
    const backend = parseBackend(version);
    if (!found.some((other) => other.backend === backend)) found.push(readTables(name, backend));
  }
  return orderTables(found, iptablesPath !== undefined, ({ saved }) =>
    [saved[4], saved[6]].some((text) => /^-A /m.test(text ?? '')),
  );
}

function readTables(name: string, backend: Backend): Tables {
  const ipv6 = join(dirname(name), basename(name).replace(/^iptables/, 'ip6tables'));
  const names: Record<IpFamily, string> = {
    4: name,
    6: name.includes('/') ? ipv6 : basename(ipv6),
  };
  const programs: Partial<Record<IpFamily, string>> = {};
  const saved: Partial<Record<IpFamily, string>> = {};
  for (const family of [4, 6] as const) {
    const program = names[family];
    if (tryOutput(program, ['--version']) === undefined) continue;
    programs[family] = program;
    // Asking for a legacy table would make it; the kernel lists those that there are.
    const list = `/proc/net/${family === 4 ? 'ip_tables_names' : 'ip6_tables_names'}`;
    const isEmpty = backend === 'legacy' && (readText(list) ?? '').trim() === '';
    saved[family] = isEmpty ? '' : output(`${program}-save`, []);
  }
  return { backend, programs, saved };
}

function readCalls(): BridgeCalls | undefined {
  const folder = '/proc/sys/net/bridge';
  const ipv4 = readText(`${folder}/bridge-nf-call-iptables`);
  const ipv6 = readText(`${folder}/bridge-nf-call-ip6tables`);
  return ipv4 === undefined ? undefined : { 4: ipv4.trim() === '1', 6: ipv6?.trim() === '1' };
}

function readStack(name: string): StackSettings {
  return {
    arp_ignore: readText(`/proc/sys/net/ipv4/conf/${name}/arp_ignore`)?.trim(),
    disable_ipv6: readText(`/proc/sys/net/ipv6/conf/${name}/disable_ipv6`)?.trim(),
  };
}

function readText(path: string): string | undefined {
  try {
    return readFileSync(path, 'utf8');
  } catch {
    return undefined;
  }
}

function output(program: string, args: readonly string[]): string {
  const result = spawnSync(program, args, { encoding: 'utf8', maxBuffer: OUTPUT_BYTES_MAX });
  if (result.status === 0) return result.stdout;
  const why = result.error?.message ?? result.stderr.trim();
  throw new ColoError('COLO_ERR_ATTACH_FACTS', `Cannot look at the host with ${program}: ${why}`, {
    cause: result.error,
  });
}

/** Undefined when the program is not there or fails. */
function tryOutput(program: string, args: readonly string[]): string | undefined {
  const result = spawnSync(program, args, { encoding: 'utf8', maxBuffer: OUTPUT_BYTES_MAX });
  return result.status === 0 ? result.stdout : undefined;
}
