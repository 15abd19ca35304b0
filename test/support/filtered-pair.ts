/**
 * A stock QEMU COLO pair with QEMU's network filters in the layout of its documentation (docs/COLO-FT.txt), and in the places of
 * colo-compare and filter-rewriter either QEMU's own objects or `colo-proxy compare` and `colo-proxy rewrite`.
 *
 *     world:  br0 (the client's address) - tapp - PVM       taps - SVM   (taps is joined to br0 only after a failover)
 *
 * @module
 */
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { closeSync, existsSync, mkdtempSync, openSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { NodeStatus } from '../../src/cli/node.ts';
import { callControl } from '../../src/control/client.ts';
import { Clients } from '../../src/lab/clients.ts';
import { Namespace } from '../../src/lab/netns.ts';
import { COLO_PROXY_SCRIPT } from '../../src/lab/program.ts';
import type { GuestImage } from '../../src/lab/qemu/image.ts';
import { startColo } from '../../src/lab/qemu/machine.ts';
import { ADDRESSES, GUEST_MAC } from '../../src/lab/topology.ts';
import { PairedQemu } from './qemu-pair.ts';

const WAIT_MS_MAX = 30_000;
const BRIDGE_MAC = '02:00:00:00:77:09';
const CHECKPOINT_DELAY_MS = 60_000;

export type Owner = 'qemu' | 'colo-proxy';

export interface FilteredPairOptions {
  readonly compare: Owner;
  readonly rewrite: Owner;
  readonly hasVnetHeader: boolean;
  readonly image: GuestImage;
}

export class FilteredPair {
  readonly clients: Clients;
  readonly #options: FilteredPairOptions;
  readonly #directory: string;
  /** Where the clients and the taps are. */
  readonly world: Namespace;
  #pvm: PairedQemu | undefined;
  #svm: PairedQemu | undefined;
  readonly #ours = new Map<'compare' | 'rewrite', ChildProcess>();

  constructor(options: FilteredPairOptions) {
    this.#options = options;
    this.#directory = mkdtempSync(join(tmpdir(), 'colo-pair-'));
    this.world = new Namespace('world');
    // No frames of IPv6 from the bridge and the taps themselves.
    this.world.sysctl({ 'ipv4/ping_group_range': '0 0' });
    this.world.sysctl({ 'ipv6/conf/all/disable_ipv6': 1, 'ipv6/conf/default/disable_ipv6': 1 });
    this.world.ip([
      'link set lo up',
      // An address of its own: by default it is a port's, and changes with the ports.
      `link add br0 address ${BRIDGE_MAC} type bridge forward_delay 0`,
      `address add ${ADDRESSES[4].client}/24 dev br0`,
      ...['tapp', 'taps'].flatMap((tap) => [`tuntap add ${tap} mode tap`, `link set ${tap} up`]),
      'link set tapp master br0',
      'link set br0 up',
    ]);
    this.clients = new Clients(this.world, 4);
  }

  get pvm(): PairedQemu {
    return this.#pvm!;
  }

  get svm(): PairedQemu {
    return this.#svm!;
  }

  /** Boots both and waits until they are inside of COLO. */
  async start(): Promise<void> {
    const { compare, rewrite, image } = this.#options;
    const common = { directory: this.#directory, shim: image.shim, namespace: this.world };
    this.#pvm = new PairedQemu({ ...common, name: 'P', words: this.#primaryWords() });
    await until('the primary QEMU answers', () => this.pvm.up);
    if (compare === 'colo-proxy') this.#startCompare();
    this.#svm = new PairedQemu({ ...common, name: 'S', words: this.#secondaryWords() });
    await until('the secondary QEMU answers', () => this.svm.up);
    if (rewrite === 'colo-proxy') this.#startRewrite();
    await until('the guest serves', () => this.#read('P.serial').includes('guest: ready'));
    await startColo(this.pvm, this.svm, this.#directory);
    await until('COLO', async () => {
      const modes = [await this.#coloMode(this.pvm), await this.#coloMode(this.svm)];
      return modes.join() === 'primary,secondary';
    });
    for (const name of this.#ours.keys()) {
      await until(
        `${name} is protected`,
        async () => (await this.status(name)).state === 'protected',
      );
    }
    await this.clients.ready;
    if (!(await this.clients.reachGuest())) throw new Error('the client does not reach the guest');
  }

  /** Of one of our processes. */
  async status(name: 'compare' | 'rewrite'): Promise<NodeStatus> {
    const answer = await callControl(this.#file(`${name}.ctl`), { command: 'status' });
    if (!answer.ok) throw new Error(answer.error);
    return answer.result as NodeStatus;
  }

  /** Checkpoints of the primary so far. */
  get checkpoints(): number {
    return this.pvm.events.filter((name) => name === 'STOP').length;
  }

  /** Has QEMU make one and waits until the guest runs again. */
  async checkpoint(): Promise<void> {
    const before = this.pvm.events.length;
    await until('a checkpoint', async () => {
      // One that is asked for during another is swallowed.
      await this.pvm.execute('migrate-set-parameters', {
        'x-checkpoint-delay': CHECKPOINT_DELAY_MS,
      });
      await sleep(20);
      return this.pvm.events.indexOf('STOP', before) >= 0;
    });
    const resumes = (): number => this.pvm.events.filter((name) => name === 'RESUME').length;
    await until('the guest runs', () => resumes() >= this.checkpoints);
  }

  /** The primary host is dead: QEMU and, where there is one, compare. */
  async killPrimary(): Promise<void> {
    await this.pvm.kill();
    await end(this.#ours.get('compare'), 'SIGKILL');
  }

  /** The documented steps on the secondary, then its tap joins the bridge. */
  async failover(): Promise<void> {
    for (const id of ['f2', 'f1']) await this.svm.execute('object-del', { id });
    await this.svm.execute('x-colo-lost-heartbeat');
    // At a failover QEMU switches all filters off, but for its own filter-rewriter.
    for (const id of this.#options.rewrite === 'colo-proxy' ? ['r1', 'r2', 'r3', 'r4'] : []) {
      const on = { path: `/objects/${id}`, property: 'status', value: 'on' };
      await this.svm.execute('qom-set', on);
    }
    this.world.ip(['link set tapp nomaster', 'link set taps master br0']);
  }

  /** Ends everything. Returns what all of them have logged. */
  async close(): Promise<string> {
    await this.clients.kill();
    for (const child of this.#ours.values()) await end(child, 'SIGTERM');
    await this.#pvm?.close();
    await this.#svm?.close();
    this.world.close();
    const names = ['P.log', 'S.log', 'compare.log', 'rewrite.log'];
    const logs = names.map((name) => `--- ${name}\n${this.#read(name)}`).join('\n');
    rmSync(this.#directory, { recursive: true, force: true });
    return logs;
  }

  #startCompare(): void {
    const words = ['--primary-in', this.#port('pri'), '--out', this.#port('out')];
    this.#startOurs('compare', [...words, '--secondary-in', `${this.#port('sec')},server`], 'P');
  }

  #startRewrite(): void {
    const words = ['--guest', this.#port('rw-guest'), '--to-guest', this.#port('rw-to-guest')];
    words.push('--net', this.#port('rw-net'), '--to-net', this.#port('rw-to-net'));
    this.#startOurs('rewrite', words, 'S');
  }

  #startOurs(name: 'compare' | 'rewrite', ports: readonly string[], qemu: 'P' | 'S'): void {
    const words = [COLO_PROXY_SCRIPT, name, ...ports, '--control', this.#file(`${name}.ctl`)];
    words.push('--vm', `qmp:unix:${this.#file(`${qemu}.driver`)}`, '--json');
    if (this.#options.hasVnetHeader) words.push('--vnet-hdr-support');
    const log = openSync(this.#file(`${name}.log`), 'a');
    this.#ours.set(name, spawn(process.execPath, words, { stdio: ['ignore', log, log] }));
    closeSync(log);
  }

  #primaryWords(): string[] {
    const words = this.#machineWords('P', 'tapp');
    words.push(...this.#chardev('mirror0', 'mirror,server=on,wait=off'));
    words.push(...this.#chardev('compare0', 'pri,server=on,wait=off'));
    words.push(...this.#chardev('compare_out', 'out,server=on,wait=off'));
    words.push(...this.#object('filter-mirror,id=m0,netdev=hn0,queue=tx,outdev=mirror0'));
    words.push(
      ...this.#object('filter-redirector,id=redire0,netdev=hn0,queue=rx,indev=compare_out'),
    );
    words.push(...this.#object('filter-redirector,id=redire1,netdev=hn0,queue=rx,outdev=compare0'));
    if (this.#options.compare === 'colo-proxy') return words;
    words.push(...this.#chardev('compare0-0', 'pri'), ...this.#chardev('compare_out0', 'out'));
    words.push(...this.#chardev('compare1', 'sec,server=on,wait=off'));
    words.push('-object', 'iothread,id=iothread1');
    const inputs = 'primary_in=compare0-0,secondary_in=compare1';
    const rest = `${inputs},outdev=compare_out0,iothread=iothread1`;
    words.push(...this.#object(`colo-compare,id=comp0,${rest}`));
    return words;
  }

  #secondaryWords(): string[] {
    const words = this.#machineWords('S', 'taps');
    words.push(...this.#chardev('red0', 'mirror,reconnect=1'));
    words.push(...this.#chardev('red1', 'sec,reconnect=1'));
    words.push(...this.#object('filter-redirector,id=f1,netdev=hn0,queue=tx,indev=red0'));
    words.push(...this.#object('filter-redirector,id=f2,netdev=hn0,queue=rx,outdev=red1'));
    if (this.#options.rewrite === 'qemu') {
      words.push(...this.#object('filter-rewriter,id=rew0,netdev=hn0,queue=all'));
      return words;
    }
    for (const [id, socket] of [
      ['rwtonet', 'rw-to-net'],
      ['rwguest', 'rw-guest'],
      ['rwnet', 'rw-net'],
      ['rwtoguest', 'rw-to-guest'],
    ] as const) {
      words.push(...this.#chardev(id, `${socket},server=on,wait=off`));
    }
    words.push(...this.#object('filter-redirector,id=r4,netdev=hn0,queue=rx,indev=rwtonet'));
    words.push(...this.#object('filter-redirector,id=r3,netdev=hn0,queue=rx,outdev=rwguest'));
    words.push(...this.#object('filter-redirector,id=r1,netdev=hn0,queue=tx,outdev=rwnet'));
    words.push(...this.#object('filter-redirector,id=r2,netdev=hn0,queue=tx,indev=rwtoguest'));
    return words;
  }

  #machineWords(name: 'P' | 'S', tap: string): string[] {
    const { image, hasVnetHeader } = this.#options;
    const header = hasVnetHeader ? 'on' : 'off';
    return [
      ...['-kernel', image.kernel, '-initrd', image.initrd],
      ...['-append', 'console=ttyS0 quiet mitigations=off panic=-1'],
      ...['-serial', `file:${this.#file(`${name}.serial`)}`],
      ...['-netdev', `tap,id=hn0,ifname=${tap},script=no,downscript=no,vnet_hdr=${header}`],
      ...['-device', `virtio-net-pci,id=nic0,netdev=hn0,mac=${GUEST_MAC},romfile=`],
    ];
  }

  #chardev(id: string, socket: string): string[] {
    return ['-chardev', `socket,id=${id},path=${this.#file(socket)}`];
  }

  #object(text: string): string[] {
    return ['-object', this.#options.hasVnetHeader ? `${text},vnet_hdr_support=on` : text];
  }

  #port(socket: string): string {
    return `qemu:unix:${this.#file(socket)}`;
  }

  #file(name: string): string {
    return join(this.#directory, name);
  }

  #read(name: string): string {
    const path = this.#file(name);
    return existsSync(path) ? readFileSync(path, 'latin1') : '';
  }

  async #coloMode(qemu: PairedQemu): Promise<string> {
    return ((await qemu.execute('query-colo-status')) as { mode: string }).mode;
  }
}

export const sleep = (ms: number): Promise<void> =>
  new Promise((resolve) => setTimeout(resolve, ms));

/** @throws Error when the condition does not hold in time */
export async function until(
  what: string,
  condition: () => boolean | Promise<boolean>,
): Promise<void> {
  const endMs = performance.now() + WAIT_MS_MAX;
  while (!(await condition())) {
    if (performance.now() > endMs) throw new Error(`not in time: ${what}`);
    await sleep(10);
  }
}

async function end(child: ChildProcess | undefined, signal: NodeJS.Signals): Promise<void> {
  if (child === undefined || child.exitCode !== null || child.signalCode !== null) return;
  const gone = once(child, 'exit');
  child.kill(signal);
  await gone;
}
