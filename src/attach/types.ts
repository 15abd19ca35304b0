/**
 * What `attach` and `detach` are made of: what is asked for, what the host is like, and the steps that lead from the one to the
 * other. Planning (facts in, steps out) is kept apart from gathering facts and from carrying steps out.
 *
 * @module
 */
export type IpFamily = 4 | 6;

/** Whether frames of a bridge go through iptables and ip6tables: `nf_call_iptables`, `nf_call_ip6tables`. */
export type BridgeCalls = Readonly<Record<IpFamily, boolean>>;

/** How a guest's packets reach the daemon: the tap stays in the bridge, or the daemon stands between the two. */
export type AttachMode = 'nfqueue' | 'packet';

/** What `colo-proxy attach` is asked to do. */
export interface AttachRequest {
  readonly mode: AttachMode;
  /** The guest's interface on this host. */
  readonly tap: string;
  readonly bridge: string;
  /** Packet mode: the veth pair is NAME and NAME-b. Absent: `cp-TAP`. */
  readonly veth?: string;
  /** The raw forward device, where there is one. */
  readonly forwardDev?: string;
  /** First of two queues: the guest's output, then what goes to the guest. Absent: a free pair. */
  readonly queue?: number;
  /** Whether packets pass while no process listens on their queue. */
  readonly isBypassing: boolean;
  /** A process may listen on the queues already: the daemon, started first. */
  readonly isListening: boolean;
}

/** A link as `ip -details link` shows it. */
export interface Link {
  readonly name: string;
  /** `bridge`, `tun`, `veth`; empty for a physical interface. */
  readonly kind: string;
  /** The bridge (or bond) that it belongs to; empty without one. */
  readonly master: string;
  /** The other end of a veth pair; empty for other kinds, and when it is in another network namespace. */
  readonly peer: string;
  readonly alias: string;
  readonly mac: string;
  /** Bytes. */
  readonly mtu: number;
  readonly isUp: boolean;
  /** The bridge's own switches; false of other kinds. */
  readonly callsIptables: BridgeCalls;
  /** Only of bridges: ports belong to VLANs. */
  readonly isVlanAware: boolean;
  /** Only of ports of a bridge: the settings that differ from those of a new port, as `ip` takes them. */
  readonly portSettings: PortSettings;
  /** What the host's own IP stack does on it; undefined where it has none. */
  readonly stack: StackSettings;
}

/** Settings of a bridge's port: keyword and value of `ip link set ... type bridge_slave`. */
export type PortSettings = Readonly<Record<string, string>>;

/** Per interface: net.ipv4.conf.IF.arp_ignore, net.ipv6.conf.IF.disable_ipv6. */
export type StackSettings = Readonly<Record<'arp_ignore' | 'disable_ipv6', string | undefined>>;

/** A kernel knows two sets of tables, with programs of their own. */
export type Backend = 'legacy' | 'nf_tables';

/** The tables of one backend. */
export interface Tables {
  readonly backend: Backend;
  /** As to be called: `iptables`, `/usr/sbin/ip6tables-legacy`. Without a program for it the family is absent. */
  readonly programs: Readonly<Partial<Record<IpFamily, string>>>;
  /** Output of the programs' `-save`. */
  readonly saved: Readonly<Partial<Record<IpFamily, string>>>;
}

/** What planning needs to know of the host. */
export interface HostFacts {
  readonly links: readonly Link[];
  /** The one to be used for new rules comes first; empty without iptables. */
  readonly tables: readonly Tables[];
  /** Whether `tables[0]` was named by the operator. */
  readonly isBackendGiven: boolean;
  /** Queues that a process listens on. */
  readonly boundQueues: readonly number[];
  /**
   * Whether the frames of all bridges go through iptables and ip6tables (net.bridge.*); undefined while the kernel has no
   * br_netfilter, or has not loaded it.
   */
  readonly allBridgesCall: BridgeCalls | undefined;
  readonly hasIpv6: boolean;
}

/** One change of the host. */
export type Action =
  | { readonly kind: 'run'; readonly command: readonly string[] }
  | { readonly kind: 'write'; readonly path: string; readonly text: string };

/** A change and what takes it back; nothing does where that is undefined. */
export interface Step {
  readonly action: Action;
  readonly undo: Action | undefined;
  /** Why it may fail, for the message. */
  readonly hint?: string;
}

/** What is to be done, in this order; nothing when it is done already. */
export interface Plan {
  readonly steps: readonly Step[];
  /** For the operator. */
  readonly notes: readonly string[];
}

/** What the daemon is to be started with. */
export type AttachedBy =
  | {
      readonly mode: 'nfqueue';
      /** First of the two queues. */
      readonly queue: number;
      /** PORT of the guest and of the network. */
      readonly guest: string;
    }
  | { readonly mode: 'packet'; readonly guest: string; readonly net: string };

export interface AttachPlan extends Plan {
  readonly by: AttachedBy;
}
