import { describe, expect, test } from 'vitest';
import { RecordingNode } from '../../test/support/recording-node.ts';
import {
  decodeNetlinkError,
  ERRNO,
  NLM_F_ACK,
  NLM_F_REQUEST,
  splitNetlink,
} from '../codec/netlink.ts';
import {
  type ColoVerb,
  decodeColoNotify,
  encodeColoRequest,
  encodeLegacyRequest,
} from '../codec/nfnetlink-colo.ts';
import type { Role } from '../env/messages.ts';
import { VM_REQUESTS_WAITING_MAX } from '../limits.ts';
import { type ColoClient, NfnetlinkNode } from './nfnetlink-node.ts';

class FakeClient implements ColoClient {
  readonly name: string;
  trusted = true;
  delivers = true;
  readonly portId: number;
  readonly sent: Uint8Array[] = [];
  constructor(portId: number) {
    this.portId = portId;
    this.name = `port ${portId}`;
  }
  send(bytes: Uint8Array): boolean {
    if (this.delivers) this.sent.push(bytes);
    return this.delivers;
  }
  /** Errno of every NLMSG_ERROR and `notify` for every notification, in order; forgets them. */
  take(): (number | string)[] {
    return this.sent.splice(0).map((bytes) => {
      const message = splitNetlink(bytes).messages[0]!;
      const answer = decodeNetlinkError(message);
      if (answer !== undefined) return answer.errno;
      return `notify ${decodeColoNotify(message)?.different}`;
    });
  }
}

function setUp(role: Role = 'primary') {
  const events = new RecordingNode();
  const node = new NfnetlinkNode({ role, events });
  const client = new FakeClient(11);
  const say = (bytes: Uint8Array, from = client) => {
    for (const message of splitNetlink(bytes).messages) node.onMessage(from, message);
  };
  const flags = NLM_F_REQUEST | NLM_F_ACK;
  const ask = (verb: Exclude<ColoVerb, 'query'>, mode: number, from = client) =>
    say(encodeColoRequest(verb, mode, { flags, seq: 1, portId: from.portId }), from);
  const askLegacy = (verb: ColoVerb, from = client, legacyFlags = flags) =>
    say(encodeLegacyRequest(verb, { flags: legacyFlags, seq: 1, portId: from.portId }), from);
  /** All that is queued has been handled. */
  const settled = () => new Promise<void>((resolve) => setImmediate(resolve));
  const answers = async (from = client) => {
    await settled();
    return from.take();
  };
  return { events, node, client, say, ask, askLegacy, answers, settled };
}

describe('NfnetlinkNode', () => {
  test('acknowledges INIT once, and then says EEXIST to everybody', async () => {
    const { node, ask, answers } = setUp();
    const other = new FakeClient(12);
    ask('init', 1);
    expect(await answers()).toEqual([0]);
    expect(node.owner?.portId).toBe(11);
    ask('init', 1);
    ask('init', 1, other);
    expect(await answers()).toEqual([ERRNO.EEXIST]);
    expect(await answers(other)).toEqual([ERRNO.EEXIST]);
  });

  test('says ENOENT to everything but INIT without a node, also to a client that does not own it', async () => {
    const { ask, answers, events } = setUp();
    const other = new FakeClient(12);
    for (const verb of ['checkpoint', 'failover', 'reset'] as const) ask(verb, 1);
    expect(await answers()).toEqual([ERRNO.ENOENT, ERRNO.ENOENT, ERRNO.ENOENT]);
    ask('init', 1);
    ask('checkpoint', 1, other);
    expect(await answers(other)).toEqual([ERRNO.ENOENT]);
    expect(events.commands).toEqual([]);
  });

  test('says EINVAL to a mode that is missing, out of range or not the role of the process', async () => {
    const { ask, say, answers } = setUp();
    for (const mode of [3, 255, 2]) ask('init', mode);
    expect(await answers()).toEqual([ERRNO.EINVAL, ERRNO.EINVAL, ERRNO.EINVAL]);
    const noMode = encodeColoRequest('init', 1, { flags: NLM_F_REQUEST, seq: 1, portId: 1 });
    noMode[0] = 20;
    say(noMode.subarray(0, 20));
    const empty = encodeColoRequest('init', 1, { flags: NLM_F_REQUEST, seq: 1, portId: 1 });
    empty[20] = 4;
    say(empty);
    expect(await answers()).toEqual([ERRNO.EINVAL, ERRNO.ERANGE]);
  });

  test('carries out DO_CHECKPOINT and PROXY_RESET of the owner', async () => {
    const { ask, answers, events, node } = setUp();
    ask('init', 1);
    ask('checkpoint', 1);
    ask('reset', 1);
    expect(await answers()).toEqual([0, 0, 0]);
    expect(events.commands).toEqual(['commit', 'reset: PROXY_RESET of port 11']);
    expect(node.owner?.portId).toBe(11);
    ask('checkpoint', 0);
    expect(await answers()).toEqual([ERRNO.EINVAL]);
  });

  test('says EBUSY to what the node refuses', async () => {
    const { ask, answers, events } = setUp('secondary');
    events.answers['failover'] = { ok: false, error: 'the peer is alive' };
    ask('init', 2);
    ask('failover', 2);
    expect(await answers()).toEqual([0, ERRNO.EBUSY]);
    events.answers['failover'] = { ok: true };
    ask('failover', 2);
    expect(await answers()).toEqual([0]);
    expect(events.commands).toEqual(['failover', 'failover']);
  });

  test('says EINVAL to a failover of a primary, by either mode', async () => {
    const { ask, answers, events } = setUp();
    ask('init', 1);
    ask('failover', 1);
    ask('failover', 2);
    expect(await answers()).toEqual([0, ERRNO.EINVAL, ERRNO.EINVAL]);
    expect(events.commands).toEqual([]);
  });

  test('carries out DO_CHECKPOINT on the secondary as well', async () => {
    const { ask, answers, events } = setUp('secondary');
    ask('init', 2);
    ask('checkpoint', 2);
    expect(await answers()).toEqual([0, 0]);
    expect(events.commands).toEqual(['commit']);
  });

  test('answers in the order of the requests, also while one takes time', async () => {
    const { ask, answers, events, settled } = setUp();
    let finish = (_: { ok: true }) => {};
    events.answers['commit'] = new Promise((resolve) => {
      finish = resolve;
    });
    ask('init', 1);
    ask('checkpoint', 1);
    ask('init', 1);
    expect(await answers()).toEqual([0]);
    finish({ ok: true });
    await settled();
    expect(await answers()).toEqual([0, ERRNO.EEXIST]);
  });

  test('says EBUSY when too many requests wait', async () => {
    const { ask, answers, events } = setUp();
    events.answers['commit'] = new Promise(() => {});
    ask('init', 1);
    ask('checkpoint', 1);
    expect(await answers()).toEqual([0]);
    for (let i = 0; i < VM_REQUESTS_WAITING_MAX + 3; i++) ask('checkpoint', 1);
    expect(await answers()).toEqual([ERRNO.EBUSY, ERRNO.EBUSY, ERRNO.EBUSY]);
  });

  test('says EPERM to a sender without permission, whatever it sends', async () => {
    const { ask, answers, node } = setUp();
    const stranger = new FakeClient(13);
    stranger.trusted = false;
    ask('init', 1, stranger);
    const [message] = splitNetlink(
      encodeColoRequest('init', 1, { flags: 1, seq: 1, portId: 1 }),
    ).messages;
    await node.onTruncated(stranger, message!, ERRNO.EINVAL);
    expect(await answers(stranger)).toEqual([ERRNO.EPERM, ERRNO.EPERM]);
    expect(node.owner).toBeUndefined();
  });

  test('does not look at what is no request, and acknowledges only when asked to', async () => {
    const { say, answers, node } = setUp();
    const fields = { seq: 1, portId: 11 };
    say(encodeColoRequest('init', 1, { ...fields, flags: NLM_F_ACK }));
    expect(await answers()).toEqual([0]);
    say(encodeColoRequest('init', 1, { ...fields, flags: 0 }));
    expect(await answers()).toEqual([]);
    expect(node.owner).toBeUndefined();
    say(encodeColoRequest('init', 1, { ...fields, flags: NLM_F_REQUEST }));
    expect(await answers()).toEqual([]);
    expect(node.owner).toBeDefined();
  });
});

describe('NfnetlinkNode and checkpoint requests', () => {
  test('notifies the owner, also one that comes after the request', async () => {
    const { ask, answers, node } = setUp();
    node.requestCheckpoint();
    ask('init', 1);
    expect(await answers()).toEqual(['notify true', 0]);
    node.requestCheckpoint();
    expect(await answers()).toEqual(['notify true']);
  });

  test('forgets a request that a checkpoint has covered', async () => {
    const { ask, answers, node } = setUp();
    node.requestCheckpoint();
    node.checkpointBegun();
    ask('init', 1);
    expect(await answers()).toEqual([0]);
  });

  test('has at most one notification outstanding in the older ABI', async () => {
    const { askLegacy, answers, node } = setUp();
    askLegacy('init');
    expect(await answers()).toEqual([0]);
    node.requestCheckpoint();
    node.requestCheckpoint();
    expect(await answers()).toEqual(['notify true']);
    askLegacy('checkpoint', undefined, NLM_F_REQUEST);
    node.requestCheckpoint();
    // The checkpoint was on its way when the request came, and covers it.
    expect(await answers()).toEqual([]);
    node.requestCheckpoint();
    expect(await answers()).toEqual(['notify true']);
  });

  test('tries again after a notification that could not be delivered', async () => {
    const { askLegacy, answers, node, client } = setUp();
    askLegacy('init');
    expect(await answers()).toEqual([0]);
    client.delivers = false;
    node.requestCheckpoint();
    client.delivers = true;
    node.requestCheckpoint();
    expect(await answers()).toEqual(['notify true']);
  });

  test('answers a query of the older ABI with the state and its sequence', async () => {
    const { askLegacy, answers, node, client, settled } = setUp();
    askLegacy('init');
    askLegacy('query', undefined, NLM_F_REQUEST);
    expect(await answers()).toEqual([0, 'notify false']);
    node.requestCheckpoint();
    askLegacy('query', undefined, NLM_F_REQUEST);
    await settled();
    expect(splitNetlink(client.sent[1]!).messages[0]?.seq).toBe(1);
    expect(client.take()).toEqual(['notify true', 'notify true']);
  });

  test('does not notify the secondary, nor an unprotected node', async () => {
    const secondary = setUp('secondary');
    secondary.ask('init', 2);
    secondary.node.requestCheckpoint();
    expect(await secondary.answers()).toEqual([0]);
    const unprotected = setUp();
    unprotected.ask('init', 0);
    unprotected.node.requestCheckpoint();
    unprotected.ask('checkpoint', 0);
    expect(await unprotected.answers()).toEqual([0, 0]);
    expect(unprotected.events.commands).toEqual([]);
  });

  test('never fails a CHECKPOINT of the older ABI: libxl would end its replication', async () => {
    const { askLegacy, answers, events } = setUp();
    events.answers['commit'] = { ok: false, error: 'no secondary' };
    askLegacy('init');
    askLegacy('checkpoint', undefined, NLM_F_REQUEST);
    expect(await answers()).toEqual([0]);
    expect(events.reports.at(-1)).toBe('The node refused checkpoint: no secondary');
  });
});

describe('NfnetlinkNode and the end of its owner', () => {
  test('resets the node, which then takes another owner', async () => {
    const { ask, answers, events, node, client, settled } = setUp();
    const other = new FakeClient(12);
    ask('init', 1);
    ask('checkpoint', 1);
    node.onClientGone(client, 'its socket is closed');
    ask('init', 1, other);
    await settled();
    expect(await answers()).toEqual([0, 0]);
    expect(await answers(other)).toEqual([0]);
    expect(events.commands).toEqual(['commit', 'reset: port 11 is gone: its socket is closed']);
  });

  test('does nothing for a client that owned nothing', async () => {
    const { ask, events, node, settled } = setUp();
    ask('init', 1);
    node.onClientGone(new FakeClient(12), 'its socket is closed');
    await settled();
    expect(events.commands).toEqual([]);
    expect(node.owner?.portId).toBe(11);
  });
});
